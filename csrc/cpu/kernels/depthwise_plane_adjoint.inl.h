// The adjoint of a depthwise window with stride 2, for planes whose columns are adjacent: even and odd columns of the
// result are sums over taps of one parity each, made side by side from the same loads and interleaved on the way out;
// so are even and odd rows. The order of every sum is that of the source, row by row.
#pragma once

#include "cpu/kernels/plane_rows.inl.h"

namespace {

// Two vectors of columns from `column` on, an even number. Seen with its padding, result column 2 u takes the taps
// 0, 2, ... from source columns u, u - 1, ..., column 2 u + 1 the taps 1, 3, ...; rows alike.
template <class T, int kernel, bool even_padding, Edge edge>
void adjoint_columns(const convx::DepthwisePlanesArgs<T>& args, int64_t column) {
    constexpr int lanes = VecOf<T>::lanes, reach = (kernel + 1) / 2;
    const RowTaps<T, reach, 1, edge> taps(column / 2 + (args.pad_left + 1) / 2 - (reach - 1), args.width);
    const int64_t begin = args.first_row + args.pad_top, end = begin + args.rows;
    const int columns = static_cast<int>(args.columns - column < 2 * lanes ? args.columns - column : 2 * lanes);
    // What a narrow row writes too much is the beginning of the row that follows.
    const bool spills = args.dest_row == columns && columns >= lanes;
    const T* source = args.source;
    const T* weight = args.weights;
    const T* bias = args.bias;
    T* dest = args.dest + column;
    for (int64_t plane = 0; plane < args.planes; ++plane) {
        Vec<T> weights[kernel][kernel];
#pragma GCC unroll 25
        for (int t = 0; t < kernel * kernel; ++t)
            weights[t / kernel][t % kernel] =
                broadcast(weight[t / kernel * args.weights_row + t % kernel * args.weights_column]);
        RowWalk<T> walk(args, source, taps.first, begin / 2 - (reach - 1));
        Vec<T> x[reach][reach];
        const auto read = [&](Vec<T>* row) {
            const T* p = walk.next();
#pragma GCC unroll 3
            for (int m = 0; m < reach; ++m) taps.read(p, m, row);
        };
#pragma GCC unroll 3
        for (int k = 1; k < reach; ++k) read(x[k]);
        T* to = dest + args.first_row * args.dest_row;
        for (int64_t h = begin / 2 * 2; h < end; h += 2) {
#pragma GCC unroll 3
            for (int k = 1; k < reach; ++k)
#pragma GCC unroll 3
                for (int m = 0; m < reach; ++m) x[k - 1][m] = x[k][m];
            read(x[reach - 1]);
#pragma GCC unroll 2
            for (int odd_row = 0; odd_row < 2; ++odd_row) {
                if (h + odd_row < begin || h + odd_row >= end) continue;
                Vec<T> between = broadcast(T(0)), middle = broadcast(T(0));
#pragma GCC unroll 3
                for (int k = odd_row; k < reach; ++k) {
                    const int r = kernel - 1 - 2 * k + odd_row;
#pragma GCC unroll 3
                    for (int m = 0; m < reach; ++m) {
                        const int s = kernel - 1 - 2 * m;
                        between = fma(x[k][m], weights[r][s], between);
                        if (even_padding ? m > 0 : m < reach - 1)
                            middle = fma(x[k][m], weights[r][even_padding ? s + 1 : s - 1], middle);
                    }
                }
                const Vec<T> even = even_padding ? between : middle, odd = even_padding ? middle : between;
                Vec<T> low = interleave_low(even, odd), high = interleave_high(even, odd);
                if (bias) {
                    low = add(low, broadcast(*bias));
                    high = add(high, broadcast(*bias));
                }
                if (columns == 2 * lanes || (spills && h + odd_row + 1 < end)) {
                    store(to, low);
                    store(to + lanes, high);
                } else {
                    store(to, low, columns < lanes ? columns : lanes);
                    if (columns > lanes) store(to + lanes, high, columns - lanes);
                }
                to += args.dest_row;
            }
        }
        source += args.source_plane;
        weight += args.weights_plane;
        if (bias) bias += args.bias_plane;
        dest += args.dest_plane;
    }
}

template <class T, int kernel>
void adjoint_pair(const convx::DepthwisePlanesArgs<T>& args, int64_t column) {
    constexpr int reach = (kernel + 1) / 2;
    const int64_t first = column / 2 + (args.pad_left + 1) / 2 - (reach - 1);
    const bool inside = find_edge<T, reach, 1>(first, args.width) == Edge::none;
    if (args.pad_left % 2 == 0)
        inside ? adjoint_columns<T, kernel, true, Edge::none>(args, column)
               : adjoint_columns<T, kernel, true, Edge::any>(args, column);
    else
        inside ? adjoint_columns<T, kernel, false, Edge::none>(args, column)
               : adjoint_columns<T, kernel, false, Edge::any>(args, column);
}

template <class T, int kernel>
void depthwise_planes_adjoint_sized(const convx::DepthwisePlanesArgs<T>& args) {
    constexpr int pair = 2 * VecOf<T>::lanes;
    if (args.columns <= pair) return adjoint_pair<T, kernel>(args, 0);
    // The last vectors overlap those before them.
    const int64_t last = args.columns % 2 == 0 ? args.columns - pair : args.columns;
    convx::DepthwisePlanesArgs<T> plane = args;
    plane.planes = 1;
    for (int64_t i = 0; i < args.planes; ++i) {
        for (int64_t column = 0; column < args.columns; column += pair)
            adjoint_pair<T, kernel>(plane, column < last ? column : last);
        plane.source += args.source_plane;
        plane.weights += args.weights_plane;
        if (args.bias) plane.bias += args.bias_plane;
        plane.dest += args.dest_plane;
    }
}

// The adjoint of kernel 3 or 5 with stride 2: `source` is the gradient of the output, `dest` that of the input,
// pad_top and pad_left are those of the forward pass; without ReLU.
template <class T>
void depthwise_planes_adjoint(int kernel, const convx::DepthwisePlanesArgs<T>& args) {
    if (kernel == 3) return depthwise_planes_adjoint_sized<T, 3>(args);
    depthwise_planes_adjoint_sized<T, 5>(args);
}

}  // namespace
