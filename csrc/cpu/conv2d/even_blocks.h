// Cuts into blocks of about the same size.
#pragma once

#include <algorithm>

#include "common/rounding.h"

namespace convx {

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
