// Pixels of a whole batch in one row: the flattened (n, i, j) positions that a GEMM panel covers, and what they read.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/conv2d/axis_table.h"
#include "cpu/kernels/kernel_set.h"

namespace convx {

// Strides of a source or destination tensor in elements: image, channel, row, column.
struct Strides {
    int64_t n, c, h, w;
};
inline Strides strides_of(const std::array<int64_t, 4>& stride) { return {stride[0], stride[1], stride[2], stride[3]}; }

// Part of one row of positions.
struct PixelSegment {
    int64_t n, i, j;
    int64_t lane, count;  // place in the panel
};

// Calls visit(PixelSegment) for every row that pixels [first, first + count) touch.
template <class Visit>
void for_each_segment(int64_t rows, int64_t columns, int64_t first, int64_t count, const Visit& visit) {
    int64_t row = first / columns;
    int64_t j = first % columns;
    for (int64_t lane = 0; lane < count; ++row, j = 0) {
        const int64_t length = std::min(columns - j, count - lane);
        visit(PixelSegment{row / rows, row % rows, j, lane, length});
        lane += length;
    }
}

// The runs that one tap reads for one segment, appended to `runs`. Inside the borders a segment is one run; at borders
// that mirror or wrap it is one run per pixel; what is outside gets none.
inline int append_runs(const AxisTable& h, const AxisTable& w, int64_t tap_h, int64_t tap_w, const Strides& source,
                       const PixelSegment& segment, LaneRun* runs, int run_count) {
    const int64_t row = h.at(tap_h, segment.i);
    if (row == AxisTable::outside) return run_count;
    const int64_t base = segment.n * source.n + row * source.h;
    const AxisTable::Tap& tap = w.taps[static_cast<size_t>(tap_w)];
    const auto append = [&](int64_t j, int64_t count) {
        const int64_t column = w.at(tap_w, j);
        if (column == AxisTable::outside) return;
        runs[run_count++] = {static_cast<int32_t>(segment.lane + j - segment.j), static_cast<int32_t>(count),
                             base + column * source.w};
    };
    const int64_t stop = segment.j + segment.count;
    int64_t j = segment.j;
    for (; j < std::min(tap.begin, stop); ++j) append(j, 1);
    const int64_t inner_stop = std::min(tap.end, stop);
    if (j < inner_stop) {
        append(j, inner_stop - j);
        j = inner_stop;
    }
    for (; j < stop; ++j) append(j, 1);
    return run_count;
}

}  // namespace convx
