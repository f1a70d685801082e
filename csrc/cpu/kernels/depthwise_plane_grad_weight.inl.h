// Weight gradient of depthwise convolutions over planes whose columns are adjacent: vectors of columns on both sides,
// one sum a lane and a tap, in registers down the rows.
//
// A few rows of the gradient meet every row of the input that they share in one go: for four rows of 3x3 with stride 1,
// 22 loads for 36 FMA. A sum goes vector of columns by vector, row by row. Beyond the last column both
// factors are zero, so that nothing outside can spoil a sum.
#pragma once

#include "cpu/kernels/plane_rows.inl.h"

namespace {

// `rows` rows of the gradient, with the tap rows of which the walk shows the first one.
template <class T, int kernel, int stride, int tap_rows, int rows, Edge edge>
[[gnu::always_inline]] inline void add_rows(Vec<T> (&acc)[tap_rows][kernel],
                                            const RowTaps<T, kernel, stride, edge>& taps, RowWalk<T>& walk,
                                            const T* grad, int64_t grad_row, Mask<T> used) {
    Vec<T> g[rows];
#pragma GCC unroll 4
    for (int i = 0; i < rows; ++i) {
        g[i] = edge == Edge::any ? load(grad + i * grad_row, used) : load(grad + i * grad_row);
        if (stride == 2) g[i] = in_order(g[i]);  // its own inverse
    }
#pragma GCC unroll 12
    for (int y = 0; y < (rows - 1) * stride + tap_rows; ++y) {
        const T* p = walk.next();
        Vec<T> x[kernel];
#pragma GCC unroll 5
        for (int s = 0; s < kernel; ++s) {
            if (s % stride == 0) taps.read(p, s, x);
#pragma GCC unroll 4
            for (int i = 0; i < rows; ++i) {
                const int r = y - i * stride;
                if (r >= 0 && r < tap_rows) acc[r][s] = fma(x[s], g[i], acc[r][s]);
            }
        }
    }
    walk.back(tap_rows - stride);
}

// One vector of columns, `used` lanes of it, for the tap rows r0 <= r < r0 + tap_rows.
template <class T, int kernel, int stride, int r0, int tap_rows, Edge edge>
void add_columns(const convx::DepthwiseGradWeightArgs<T>& args, int64_t column) {
    constexpr int lanes = VecOf<T>::lanes;
    const int64_t used = args.columns - column < lanes ? args.columns - column : lanes;
    const RowTaps<T, kernel, stride, edge> taps(column * stride - args.pad_left, args.width, used);
    const Mask<T> mask = lanes_between<T>(0, static_cast<int>(used));
    const int64_t grad_row = args.grad_row;
    const T* source = args.source;
    const T* grad = args.grad + args.first_row * grad_row + column;
    T* sums = args.sums + r0 * kernel * lanes;
    for (int64_t plane = 0; plane < args.planes; ++plane) {
        Vec<T> acc[tap_rows][kernel];
#pragma GCC unroll 10
        for (int t = 0; t < tap_rows * kernel; ++t) acc[t / kernel][t % kernel] = load(sums + t * lanes);
        RowWalk<T> walk(args, source, taps.first, args.first_row * stride - args.pad_top + r0);
        const T* g = grad;
        int64_t rows = args.rows;
        for (; rows >= 4; rows -= 4, g += 4 * grad_row)
            add_rows<T, kernel, stride, tap_rows, 4>(acc, taps, walk, g, grad_row, mask);
        if (rows >= 2) {
            add_rows<T, kernel, stride, tap_rows, 2>(acc, taps, walk, g, grad_row, mask);
            g += 2 * grad_row;
        }
        if (rows % 2) add_rows<T, kernel, stride, tap_rows, 1>(acc, taps, walk, g, grad_row, mask);
#pragma GCC unroll 10
        for (int t = 0; t < tap_rows * kernel; ++t) store(sums + t * lanes, acc[t / kernel][t % kernel]);
        source += args.source_plane;
        grad += args.grad_plane;
        sums += kernel * kernel * lanes;
    }
}

template <class T, int kernel, int stride, int r0, int tap_rows>
void add_tap_rows(const convx::DepthwiseGradWeightArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes;
    if (args.columns <= lanes) return add_columns<T, kernel, stride, r0, tap_rows, Edge::any>(args, 0);
    convx::DepthwiseGradWeightArgs<T> plane = args;
    plane.planes = 1;
    for (int64_t i = 0; i < args.planes; ++i) {
        for (int64_t column = 0; column < args.columns; column += lanes) {
            const Edge edge = column + lanes > args.columns
                                  ? Edge::any
                                  : find_edge<T, kernel, stride>(column * stride - args.pad_left, args.width);
            if (edge == Edge::none)
                add_columns<T, kernel, stride, r0, tap_rows, Edge::none>(plane, column);
            else if (edge == Edge::left)
                add_columns<T, kernel, stride, r0, tap_rows, Edge::left>(plane, column);
            else
                add_columns<T, kernel, stride, r0, tap_rows, Edge::any>(plane, column);
        }
        plane.source += args.source_plane;
        plane.grad += args.grad_plane;
        plane.sums += kernel * kernel * lanes;
    }
}

// 25 sums do not fit in 16 registers: ten at a time.
template <class T, int stride>
void depthwise_grad_weight_of(int kernel, const convx::DepthwiseGradWeightArgs<T>& args) {
    if (kernel == 3) return add_tap_rows<T, 3, stride, 0, 3>(args);
    add_tap_rows<T, 5, stride, 0, 2>(args);
    add_tap_rows<T, 5, stride, 2, 2>(args);
    add_tap_rows<T, 5, stride, 4, 1>(args);
}

// kernel is 3 or 5, stride 1 or 2.
template <class T>
void depthwise_grad_weight(int kernel, int stride, const convx::DepthwiseGradWeightArgs<T>& args) {
    if (stride == 1) return depthwise_grad_weight_of<T, 1>(kernel, args);
    depthwise_grad_weight_of<T, 2>(kernel, args);
}

}  // namespace
