// The micro-kernel of all matrix work: a tile of rows x vecs vectors of sums, broadcast elements of A by vectors of B.
//
// Per step of the reduction: vecs vector loads, `rows` broadcasts, rows * vecs FMA. The tile of each instruction set is
// chosen so that accumulators, one row of columns and one broadcast fit its registers (isa/*.cpp), and so that there
// are at least latency x ports = 8 independent FMA. Sums run in the order of d, whatever the tile: that is what makes
// results equal bit for bit between full tiles, tails and both layouts. Always inlined: a call would put the
// accumulators in memory (37 % at depth 27).
#pragma once

#include <type_traits>

namespace {

// The addressings of A: element d of row i.
template <class T, int mr>
struct PackedRows {
    const T* a;
    PackedRows(const T* panel) : a(panel) {}
    T at(int i, int64_t d) const { return a[d * mr + i]; }
};
template <class T, int rows>
struct StridedRows {
    const T* row[rows];
    StridedRows(const T* const* a) {
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) row[i] = a[i];
    }
    T at(int i, int64_t d) const { return row[i][d]; }
};
// Pixels in place, whose taps are constant distances away.
template <class T, int rows>
struct IndirectRows {
    const T* row[rows];
    const int32_t* offsets;
    IndirectRows(const convx::Indirection<T>& a) : offsets(a.offsets) {
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) row[i] = a.pixel[i];
    }
    T at(int i, int64_t d) const { return row[i][offsets[d]]; }
};

// The addressings of B: vector v of step d.
template <class T, int nr>
struct PackedColumns {
    const T* b;
    Vec<T> at(int v, int64_t d) const { return load(b + d * nr + v * VecOf<T>::lanes); }
};
template <class T>
struct StridedColumns {
    const T* b;
    int64_t stride;
    Vec<T> at(int v, int64_t d) const { return load(b + d * stride + v * VecOf<T>::lanes); }
};
template <class T, int vecs>
struct IndirectColumns {
    const T* column[vecs];
    const int64_t* offsets;
    IndirectColumns(const T* const* b, const int64_t* distances) : offsets(distances) {
#pragma GCC unroll 8
        for (int v = 0; v < vecs; ++v) column[v] = b[v];
    }
    Vec<T> at(int v, int64_t d) const { return load(column[v] + offsets[d]); }
};

template <class T, int rows, int vecs, class A, class B>
[[gnu::always_inline]] inline void multiply_tile(int64_t depth, const A a, const B b, Vec<T> (&acc)[rows][vecs]) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
        for (int v = 0; v < vecs; ++v) acc[i][v] = broadcast(T(0));
    for (int64_t d = 0; d < depth; ++d) {
        // The smaller side stays in registers while the other passes by: 2 rows of 6 vectors take 12 + 2 + 1 of AVX2's
        // 16 registers, not 12 + 6 + 1 (0.50 cycles an FMA, not 0.71, in a model of Haswell).
        if constexpr (rows < vecs) {
            Vec<T> row[rows];
#pragma GCC unroll 16
            for (int i = 0; i < rows; ++i) row[i] = broadcast(a.at(i, d));
#pragma GCC unroll 8
            for (int v = 0; v < vecs; ++v) {
                const Vec<T> column = rows > 1 ? in_register(b.at(v, d)) : b.at(v, d);
#pragma GCC unroll 16
                for (int i = 0; i < rows; ++i) acc[i][v] = fma(row[i], column, acc[i][v]);
            }
        } else {
            Vec<T> column[vecs];
#pragma GCC unroll 8
            for (int v = 0; v < vecs; ++v) column[v] = b.at(v, d);
#pragma GCC unroll 16
            for (int i = 0; i < rows; ++i) {
                const Vec<T> row = broadcast(a.at(i, d));
#pragma GCC unroll 8
                for (int v = 0; v < vecs; ++v) acc[i][v] = fma(row, column[v], acc[i][v]);
            }
        }
    }
}

// The epilogue: vector v of row i goes to at(i, v), n of its lanes if the vectors are not `full`. A question is asked
// once for the tile, not once a vector (25 % at depth 27); where it is a constant, not at all.
template <class T, bool full, int rows, int vecs, class At>
[[gnu::always_inline]] inline void finish_tile(Vec<T> (&acc)[rows][vecs], const convx::Epilogue<T> to, int n,
                                               const At& at) {
    const auto for_each = [&](const auto& change) {
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
            for (int v = 0; v < vecs; ++v) acc[i][v] = change(acc[i][v], i, v);
    };
    const auto read = [n](const T* from) { return full ? load(from) : load(from, n); };
    if (to.accumulate) for_each([&](Vec<T> sum, int i, int v) { return add(read(at(i, v)), sum); });
    if (to.row_bias) for_each([&](Vec<T> sum, int i, int) { return add(sum, broadcast(to.row_bias[i])); });
    if (to.column_bias)
        for_each([&](Vec<T> sum, int, int v) { return add(sum, read(to.column_bias + v * VecOf<T>::lanes)); });
    if (to.relu) for_each([](Vec<T> sum, int, int) { return relu(sum); });
    for_each([&](Vec<T> sum, int i, int v) {
        if (full)
            store(at(i, v), sum);
        else
            store(at(i, v), sum, n);
        return sum;
    });
}

// The same for rows that end within a vector, out of memory, so that there is one such text for all tiles.
template <class T>
[[gnu::noinline]] void finish_tail(const T* sums, int rows, int vecs, int columns, const convx::Epilogue<T>& to) {
    constexpr int lanes = VecOf<T>::lanes;
    for (int i = 0; i < rows; ++i)
        for (int v = 0; v < vecs; ++v, sums += lanes) {
            Vec<T> acc[1][1] = {{load(sums)}};
            const int n = columns - v * lanes;
            const convx::Epilogue<T> row{nullptr,
                                         0,
                                         to.accumulate,
                                         to.row_bias ? to.row_bias + i : nullptr,
                                         to.column_bias ? to.column_bias + v * lanes : nullptr,
                                         to.relu};
            finish_tile<T, false>(acc, row, n < lanes ? n : lanes,
                                  [&](int, int) { return to.c + i * to.row_stride + v * lanes; });
        }
}

// Rows of adjacent columns, `columns` of them.
template <class T, int rows, int vecs>
[[gnu::always_inline]] inline void finish_rows(Vec<T> (&acc)[rows][vecs], const convx::Epilogue<T>& to, int columns) {
    constexpr int lanes = VecOf<T>::lanes;
    if (columns >= vecs * lanes)
        return finish_tile<T, true>(acc, to, lanes, [&](int i, int v) { return to.c + i * to.row_stride + v * lanes; });
    T sums[rows * vecs * lanes];
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
        for (int v = 0; v < vecs; ++v) store(sums + (i * vecs + v) * lanes, acc[i][v]);
    finish_tail<T>(sums, rows, vecs, columns, to);
}

template <class T, int rows, int vecs, class A, class B>
[[gnu::noinline]] void gemm_tile_sized(int columns, int64_t depth, const A a, const B b, const convx::Epilogue<T>& to) {
    Vec<T> acc[rows][vecs];
    multiply_tile<T>(depth, a, b, acc);
    finish_rows<T>(acc, to, columns);
}

// From run-time rows and columns to one of the mr * vecs compiled tiles. `A` is a panel, an array of rows or one of
// pixels.
template <class T, int mr, int rows, int vecs, class A, class B>
void gemm_tile_pick(int want_rows, int columns, int64_t depth, A a, B b, const convx::Epilogue<T>& to) {
    if constexpr (rows > 1) {
        if (want_rows < rows) return gemm_tile_pick<T, mr, rows - 1, vecs>(want_rows, columns, depth, a, b, to);
    }
    if constexpr (vecs > 1) {
        if (columns <= (vecs - 1) * VecOf<T>::lanes)
            return gemm_tile_pick<T, mr, rows, vecs - 1>(want_rows, columns, depth, a, b, to);
    }
    using InPlace =
        std::conditional_t<std::is_same_v<A, convx::Indirection<T>>, IndirectRows<T, rows>, StridedRows<T, rows>>;
    using Rows = std::conditional_t<std::is_same_v<A, const T*>, PackedRows<T, mr>, InPlace>;
    gemm_tile_sized<T, rows, vecs>(columns, depth, Rows(a), b, to);
}

template <class T, int mr, int vecs>
void gemm_tile(int rows, int columns, int64_t depth, const T* a, const T* b, const convx::Epilogue<T>& to) {
    gemm_tile_pick<T, mr, mr, vecs>(rows, columns, depth, a, PackedColumns<T, vecs * VecOf<T>::lanes>{b}, to);
}

template <class T, int mr, int vecs>
void gemm_tile_rows(int rows, int columns, int64_t depth, const T* const* a, const T* b, int64_t b_stride,
                    const convx::Epilogue<T>& to) {
    gemm_tile_pick<T, mr, mr, vecs>(rows, columns, depth, a, StridedColumns<T>{b, b_stride}, to);
}

template <class T, int mr, int vecs>
void gemm_tile_pixels(int rows, int columns, int64_t depth, const convx::Indirection<T>& a, const T* b,
                      const convx::Epilogue<T>& to) {
    gemm_tile_pick<T, mr, mr, vecs>(rows, columns, depth, a, PackedColumns<T, vecs * VecOf<T>::lanes>{b}, to);
}

}  // namespace
