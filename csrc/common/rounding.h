// Division that rounds up, for non-negative sizes, and cuts into blocks of about the same size.
#pragma once

#include <algorithm>
#include <cstdint>

namespace convx {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// What a part of CUDA's workspace takes: as cudaMalloc aligns.
constexpr int64_t workspace_part(int64_t bytes) { return round_up(bytes, 256); }

// Scratch is carved in whole cache lines, so that every part starts on one.
constexpr int64_t cache_lines(int64_t bytes) { return round_up(bytes, 64); }

// `size` in blocks of about the same number of panels `width` wide, `most` elements at most.
inline int64_t even_blocks(int64_t size, int64_t most, int64_t width) {
    const int64_t panels = ceil_div(std::max<int64_t>(size, 1), width);
    const int64_t parts = ceil_div(panels * width, most);
    return ceil_div(panels, parts) * width;
}

// The size of a part where `size` is cut into as few even parts of at most `most` as will do.
inline int64_t even_part(int64_t size, int64_t most) {
    return ceil_div(size, ceil_div(size, std::max<int64_t>(most, 1)));
}

}  // namespace convx
