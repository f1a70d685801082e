// Division that rounds up, for non-negative sizes.
#pragma once

#include <cstdint>

namespace convx {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// What a part of CUDA's workspace takes: as cudaMalloc aligns.
constexpr int64_t workspace_part(int64_t bytes) { return round_up(bytes, 256); }

// Scratch is carved in whole cache lines, so that every part starts on one.
constexpr int64_t cache_lines(int64_t bytes) { return round_up(bytes, 64); }

}  // namespace convx
