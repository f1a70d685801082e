// Depthwise convolution of planes whose columns are adjacent: vectors of columns straight out of the source, rows and
// sums kept in registers (plane_rows.inl.h). Each sum runs over the taps row by row, whichever of the two nests below
// takes it.
#pragma once

#include "cpu/kernels/plane_rows.inl.h"

namespace {

// What happens to a sum on its way out.
template <class T, int stride>
struct PlaneOutput {
    bool has_bias, relu_follows;
    bool spills;  // what a narrow row writes too much is the beginning of the row that follows
    int lanes_used;
    Vec<T> bias;

    explicit PlaneOutput(const convx::DepthwisePlanesArgs<T>& args)
        : has_bias(args.bias != nullptr), relu_follows(args.relu),
          spills(args.dest_row == args.columns && 2 * args.columns >= VecOf<T>::lanes),
          lanes_used(args.columns < VecOf<T>::lanes ? static_cast<int>(args.columns) : VecOf<T>::lanes),
          bias(broadcast(T(0))) {}

    bool is_plain() const { return !has_bias && !relu_follows && (spills || lanes_used == VecOf<T>::lanes); }

    template <bool plain>
    void put(T* to, Vec<T> sum, bool last) const {
        if (stride == 2) sum = in_order(sum);
        if (!plain && has_bias) sum = add(sum, bias);
        if (!plain && relu_follows) sum = relu(sum);
        if (lanes_used == VecOf<T>::lanes || (!last && (plain || spills)))
            store(to, sum);
        else
            store(to, sum, lanes_used);
    }
};

// 3x3: down two vectors of columns at once with the sums that are under way, no row of the source read twice. Two
// chains of dependent FMA, because one would wait for itself.
template <class T, int stride, Edge edge0, Edge edge1, bool plain>
void rolling_pair(const convx::DepthwisePlanesArgs<T>& args, int64_t column0, int64_t column1) {
    const RowTaps<T, 3, stride, edge0> taps0(column0 * stride - args.pad_left, args.width);
    const RowTaps<T, 3, stride, edge1> taps1(column1 * stride - args.pad_left, args.width);
    PlaneOutput<T, stride> output(args);
    const int64_t dest_row = args.dest_row, apart = column1 - column0, rows = args.rows;
    const T* source = args.source;
    const T* weight = args.weights;
    const T* bias = args.bias;
    T* dest = args.dest + args.first_row * dest_row + column0;
    for (int64_t plane = 0; plane < args.planes; ++plane) {
        Vec<T> weights[9];
#pragma GCC unroll 9
        for (int t = 0; t < 9; ++t)
            weights[t] = broadcast(weight[t / 3 * args.weights_row + t % 3 * args.weights_column]);
        if (!plain && bias) output.bias = broadcast(*bias);
        const auto add_taps = [&](Vec<T> sum, const Vec<T>* x, int r) {
            return fma(x[2], weights[3 * r + 2], fma(x[1], weights[3 * r + 1], fma(x[0], weights[3 * r], sum)));
        };
        RowWalk<T> walk(args, source, taps0.first, args.first_row * stride - args.pad_top);
        const Vec<T> zero = broadcast(T(0));
        Vec<T> upper[2], lower[2], sum[2];  // sums that have two rows of taps, one, and three
        const auto read = [&](const auto& taps, const T* p, Vec<T>* x) {
#pragma GCC unroll 3
            for (int s = 0; s < 3; s += stride) taps.read(p, s, x);
        };
        const auto first_row = [&](const auto& taps, const T* p, int v) {
            Vec<T> x[3];
            read(taps, p, x);
            lower[v] = add_taps(zero, x, 0);
        };
        const auto middle_row = [&](const auto& taps, const T* p, int v) {
            Vec<T> x[3];
            read(taps, p, x);
            upper[v] = add_taps(lower[v], x, 1);
            if (stride == 1) lower[v] = add_taps(zero, x, 0);
        };
        const auto last_row = [&](const auto& taps, const T* p, int v) {
            Vec<T> x[3];
            read(taps, p, x);
            sum[v] = add_taps(upper[v], x, 2);
            if (stride == 1) upper[v] = add_taps(lower[v], x, 1);
            lower[v] = add_taps(zero, x, 0);
        };
        const auto both = [&](const auto& step) {
            const T* p = walk.next();
            step(taps0, p, 0);
            step(taps1, p + apart * stride, 1);
        };
        both(first_row);
        if (stride == 1) both(middle_row);
        T* to = dest;
        for (int64_t row = 0; row < rows; ++row, to += dest_row) {
            if (stride == 2) both(middle_row);
            both(last_row);
            output.template put<plain>(to, sum[0], false);
            output.template put<plain>(to + apart, sum[1], false);
        }
        source += args.source_plane;
        weight += args.weights_plane;
        dest += args.dest_plane;
        if (!plain && bias) bias += args.bias_plane;
    }
}

template <class T, int stride>
void rolling_columns(const convx::DepthwisePlanesArgs<T>& args, int64_t first, int64_t second) {
    const bool plain = PlaneOutput<T, stride>(args).is_plain();
    const Edge edge0 = find_edge<T, 3, stride>(first * stride - args.pad_left, args.width),
               edge1 = find_edge<T, 3, stride>(second * stride - args.pad_left, args.width);
    const auto run = [&](auto left, auto right) {
        plain ? rolling_pair<T, stride, decltype(left)::edge, decltype(right)::edge, true>(args, first, second)
              : rolling_pair<T, stride, decltype(left)::edge, decltype(right)::edge, false>(args, first, second);
    };
    if (edge0 == Edge::none && edge1 == Edge::none) return run(EdgeOf<Edge::none>{}, EdgeOf<Edge::none>{});
    if (edge0 == Edge::left && edge1 == Edge::none) return run(EdgeOf<Edge::left>{}, EdgeOf<Edge::none>{});
    if (edge0 == Edge::left && edge1 == Edge::right) return run(EdgeOf<Edge::left>{}, EdgeOf<Edge::right>{});
    if (edge0 == Edge::none && edge1 == Edge::right) return run(EdgeOf<Edge::none>{}, EdgeOf<Edge::right>{});
    run(EdgeOf<Edge::any>{}, EdgeOf<Edge::any>{});
}

// Others: `rows` rows of `vecs` vectors of columns, each load for all the rows that it belongs to.
template <class T, int kernel, int stride, int rows, int vecs, Edge edge, bool plain>
inline void plane_block(const convx::DepthwisePlanesArgs<T>& args, const RowTaps<T, kernel, stride, edge>* taps,
                        RowWalk<T> walk, int64_t apart, T* to, const Vec<T>* weights,
                        const PlaneOutput<T, stride>& output, bool last) {
    Vec<T> acc[rows][vecs];
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < vecs; ++v) acc[i][v] = broadcast(T(0));
#pragma GCC unroll 17
    for (int y = 0; y < (rows - 1) * stride + kernel; ++y) {
        const T* p = walk.next();
        Vec<T> x[vecs][kernel];
#pragma GCC unroll 5
        for (int s = 0; s < kernel; ++s) {
            if (s % stride == 0)
#pragma GCC unroll 2
                for (int v = 0; v < vecs; ++v) taps[v].read(p + v * apart * stride, s, x[v]);
#pragma GCC unroll 8
            for (int i = 0; i < rows; ++i) {
                const int r = y - i * stride;
                if (r < 0 || r >= kernel) continue;
#pragma GCC unroll 2
                for (int v = 0; v < vecs; ++v) acc[i][v] = fma(x[v][s], weights[r * kernel + s], acc[i][v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < vecs; ++v)
            output.template put<plain>(to + i * args.dest_row + v * apart, acc[i][v], last && i == rows - 1);
}

template <int count>
struct Rows {
    static constexpr int rows = count;
};

template <class T, int kernel, int stride, int vecs, Edge edge, bool plain>
void plane_columns(const convx::DepthwisePlanesArgs<T>& args, int64_t column0, int64_t column1) {
    using Taps = RowTaps<T, kernel, stride, edge>;
    const Taps taps[2] = {Taps(column0 * stride - args.pad_left, args.width),
                          Taps(column1 * stride - args.pad_left, args.width)};
    PlaneOutput<T, stride> output(args);
    const T* source = args.source;
    const T* weight = args.weights;
    const T* bias = args.bias;
    T* dest = args.dest + column0;
    const int64_t end = args.first_row + args.rows;
    for (int64_t plane = 0; plane < args.planes; ++plane) {
        Vec<T> weights[kernel * kernel];
#pragma GCC unroll 25
        for (int t = 0; t < kernel * kernel; ++t)
            weights[t] = broadcast(weight[t / kernel * args.weights_row + t % kernel * args.weights_column]);
        if (!plain && bias) output.bias = broadcast(*bias);
        for (int64_t row = args.first_row; row < end;) {
            const auto block = [&](auto count) {
                const RowWalk<T> walk(args, source, taps[0].first, row * stride - args.pad_top);
                plane_block<T, kernel, stride, count.rows, vecs, edge, plain>(args, taps, walk, column1 - column0,
                                                                              dest + row * args.dest_row, weights,
                                                                              output, row + count.rows == end);
                row += count.rows;
            };
            const int64_t left = end - row;
            if (vecs == 1 && left == 7)
                block(Rows<7>{});
            else if (left >= 4 && left != 5)
                block(Rows<4>{});
            else if (left >= 3)
                block(Rows<3>{});
            else if (left == 2)
                block(Rows<2>{});
            else
                block(Rows<1>{});
        }
        source += args.source_plane;
        weight += args.weights_plane;
        dest += args.dest_plane;
        if (!plain && bias) bias += args.bias_plane;
    }
}

// All planes, for one or two vectors of columns.
template <class T, int kernel, int stride>
void pair_of_columns(const convx::DepthwisePlanesArgs<T>& args, int64_t first, int64_t second) {
    const bool plain = PlaneOutput<T, stride>(args).is_plain();
    const Edge edge = find_edge<T, kernel, stride>(first * stride - args.pad_left, args.width);
    if (first == second) {
        const auto run = [&](auto of) {
            plain ? plane_columns<T, kernel, stride, 1, decltype(of)::edge, true>(args, first, first)
                  : plane_columns<T, kernel, stride, 1, decltype(of)::edge, false>(args, first, first);
        };
        return edge == Edge::both ? run(EdgeOf<Edge::both>{}) : run(EdgeOf<Edge::any>{});
    }
    if constexpr (kernel == 3) {
        rolling_columns<T, stride>(args, first, second);
    } else {
        if (edge == Edge::none &&
            find_edge<T, kernel, stride>(second * stride - args.pad_left, args.width) == Edge::none)
            plane_columns<T, kernel, stride, 2, Edge::none, false>(args, first, second);
        else
            plane_columns<T, kernel, stride, 2, Edge::any, false>(args, first, second);
    }
}

template <class T, int kernel, int stride>
void depthwise_planes_sized(const convx::DepthwisePlanesArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes;
    // The last vector overlaps the one before it.
    const int64_t last = args.columns > lanes ? args.columns - lanes : 0;
    if (last <= lanes) return pair_of_columns<T, kernel, stride>(args, 0, last);
    convx::DepthwisePlanesArgs<T> plane = args;
    plane.planes = 1;
    for (int64_t i = 0; i < args.planes; ++i) {
        for (int64_t column = 0;; column += 2 * lanes) {
            if (column > last) column = last;
            const int64_t second = column + lanes < last ? column + lanes : last;
            pair_of_columns<T, kernel, stride>(plane, column, second);
            if (second == last) break;
        }
        plane.source += args.source_plane;
        plane.weights += args.weights_plane;
        plane.dest += args.dest_plane;
        if (args.bias) plane.bias += args.bias_plane;
    }
}

// kernel is 3 or 5, stride 1 or 2.
template <class T>
void depthwise_planes(int kernel, int stride, const convx::DepthwisePlanesArgs<T>& args) {
    if (kernel == 3 && stride == 1) return depthwise_planes_sized<T, 3, 1>(args);
    if (kernel == 3) return depthwise_planes_sized<T, 3, 2>(args);
    if (stride == 1) return depthwise_planes_sized<T, 5, 1>(args);
    depthwise_planes_sized<T, 5, 2>(args);
}

}  // namespace
