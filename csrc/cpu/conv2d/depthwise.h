// What the depthwise methods have in common: straight from and to arrays whose columns or channels are adjacent.
#pragma once

#include "common/rounding.h"
#include "cpu/conv2d/direct.h"

namespace convx {

// Whether the kernels over planes take the window: 3x3 or 5x5, stride 1 or 2.
bool depthwise_planes_take(const ConvProblem& problem);

// Few flops an element: 512 planes of 14 x 14 through 3x3 with stride 2 take 25 us, three times what their flops would.
inline int64_t depthwise_work(int64_t flops, int64_t elements) { return flops + 8 * elements; }

// Rows of a plane that strips of columns go down: 8 KiB run ahead of memory better than all that a 32 KiB L1 holds.
constexpr int64_t depthwise_rows_bytes = 8 * 1024;

// Masked lanes reach this far beyond the row of zeros, at most. They must not lie in a page that is not there: though
// nothing is read, each such load would cost 100 ns.
constexpr int64_t masked_elements = 64;

}  // namespace convx
