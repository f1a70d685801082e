// The register tile of all matrix work: rows x (vecs * lanes) accumulators, fed by two packed panels.
//
// Per step of the reduction: vecs vector loads, `rows` broadcasts, rows * vecs FMA. The tile of each instruction set is
// chosen so that accumulators, one row of columns and one broadcast fit its registers (isa/*.cpp), and so that there
// are at least latency x ports = 8 independent FMA. Sums run in the order of d, whatever the tile: that is what makes
// results equal bit for bit between full tiles, tails and both layouts.
#pragma once

#include <type_traits>

namespace {

template <class T>
inline void finish_row(Vec<T>* acc, int vecs, int columns, int row, const convx::TileOutput<T>& out) {
    constexpr int lanes = VecOf<T>::lanes;
    T* c = out.c + row * out.row_stride;
#pragma GCC unroll 4
    for (int v = 0; v < vecs; ++v) {
        const int n = columns - v * lanes;
        const bool whole = n >= lanes;
        Vec<T> sum = acc[v];
        if (out.accumulate) sum = add(whole ? load(c + v * lanes) : load(c + v * lanes, n), sum);
        if (out.row_bias) sum = add(sum, broadcast(out.row_bias[row]));
        if (out.column_bias) {
            const T* bias = out.column_bias + v * lanes;
            sum = add(sum, whole ? load(bias) : load(bias, n));
        }
        if (out.relu) sum = relu(sum);
        if (whole)
            store(c + v * lanes, sum);
        else
            store(c + v * lanes, sum, n);
    }
}

// The same for a whole tile. What is asked once for all its vectors, if they are full: after a sum of 27 the questions
// for each of them took a quarter of the time.
template <class T, int rows, int vecs>
inline void finish_tile(Vec<T> (&acc)[rows][vecs], int columns, const convx::TileOutput<T>& out) {
    constexpr int lanes = VecOf<T>::lanes;
    if (columns < vecs * lanes) {
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) finish_row<T>(acc[i], vecs, columns, i, out);
        return;
    }
    const convx::TileOutput<T> to = out;
    const auto for_each = [&](const auto& change) {
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
            for (int v = 0; v < vecs; ++v) acc[i][v] = change(acc[i][v], i, v * lanes);
    };
    if (to.accumulate)
        for_each([&](Vec<T> sum, int i, int first) { return add(load(to.c + i * to.row_stride + first), sum); });
    if (to.row_bias) for_each([&](Vec<T> sum, int i, int) { return add(sum, broadcast(to.row_bias[i])); });
    if (to.column_bias) for_each([&](Vec<T> sum, int, int first) { return add(sum, load(to.column_bias + first)); });
    if (to.relu) for_each([](Vec<T> sum, int, int) { return relu(sum); });
    for_each([&](Vec<T> sum, int i, int first) { return store(to.c + i * to.row_stride + first, sum), sum; });
}

// The row operand, element i of step d: out of a packed panel, or of rows that stand anywhere.
template <class T, int mr>
struct PanelRows {
    const T* a;
    PanelRows(const T* panel) : a(panel) {}
    T at(int i, int64_t d) const { return a[d * mr + i]; }
};
template <class T, int rows>
struct LooseRows {
    const T* row[rows];
    LooseRows(const T* const* a) {
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) row[i] = a[i];
    }
    T at(int i, int64_t d) const { return row[i][d]; }
};
// Places that stand anywhere, element d of each at one distance: pixels whose taps are constant distances away.
template <class T, int rows>
struct PlacedRows {
    const T* row[rows];
    const int32_t* offsets;
    PlacedRows(const convx::PlacedPixels<T>& a) : offsets(a.offsets) {
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) row[i] = a.pixel[i];
    }
    T at(int i, int64_t d) const { return row[i][offsets[d]]; }
};

template <class T, int nr, int rows, int vecs, class Rows>
inline void multiply_panels(int64_t depth, const Rows a, const T* b, Vec<T> (&acc)[rows][vecs]) {
    constexpr int lanes = VecOf<T>::lanes;
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; ++v) acc[i][v] = broadcast(T(0));
    for (int64_t d = 0; d < depth; ++d, b += nr) {
        Vec<T> column[vecs];
#pragma GCC unroll 4
        for (int v = 0; v < vecs; ++v) column[v] = load(b + v * lanes);
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) {
            const Vec<T> row = broadcast(a.at(i, d));
#pragma GCC unroll 4
            for (int v = 0; v < vecs; ++v) acc[i][v] = fma(row, column[v], acc[i][v]);
        }
    }
}

template <class T, int nr, int rows, int vecs, class Rows>
void gemm_tile_sized(int columns, int64_t depth, const Rows a, const T* b, const convx::TileOutput<T>& out) {
    Vec<T> acc[rows][vecs];
    multiply_panels<T, nr>(depth, a, b, acc);
    finish_tile<T>(acc, columns, out);
}

// From run-time rows and vectors to one of the mr * nr / lanes compiled tiles. `A` is a panel, an array of rows or one
// of pixels.
template <class T, int mr, int nr, int rows, int vecs, class A>
void gemm_tile_pick(int want_rows, int columns, int64_t depth, A a, const T* b, const convx::TileOutput<T>& out) {
    if constexpr (rows > 1) {
        if (want_rows < rows) return gemm_tile_pick<T, mr, nr, rows - 1, vecs>(want_rows, columns, depth, a, b, out);
    }
    if constexpr (vecs > 1) {
        if (columns <= (vecs - 1) * VecOf<T>::lanes)
            return gemm_tile_pick<T, mr, nr, rows, vecs - 1>(want_rows, columns, depth, a, b, out);
    }
    using Loose =
        std::conditional_t<std::is_same_v<A, convx::PlacedPixels<T>>, PlacedRows<T, rows>, LooseRows<T, rows>>;
    using Rows = std::conditional_t<std::is_same_v<A, const T*>, PanelRows<T, mr>, Loose>;
    gemm_tile_sized<T, nr, rows, vecs, Rows>(columns, depth, Rows(a), b, out);
}

template <class T, int mr, int vecs>
void gemm_tile(int rows, int columns, int64_t depth, const T* a, const T* b, const convx::TileOutput<T>& out) {
    gemm_tile_pick<T, mr, vecs * VecOf<T>::lanes, mr, vecs>(rows, columns, depth, a, b, out);
}

template <class T, int mr, int vecs>
void gemm_tile_rows(int rows, int columns, int64_t depth, const T* const* a, const T* b,
                    const convx::TileOutput<T>& out) {
    gemm_tile_pick<T, mr, vecs * VecOf<T>::lanes, mr, vecs>(rows, columns, depth, a, b, out);
}

template <class T, int mr, int vecs>
void gemm_tile_pixels(int rows, int columns, int64_t depth, const convx::PlacedPixels<T>& a, const T* b,
                      const convx::TileOutput<T>& out) {
    gemm_tile_pick<T, mr, vecs * VecOf<T>::lanes, mr, vecs>(rows, columns, depth, a, b, out);
}

}  // namespace
