// The register tile of dot products: rows x columns vectors of partial sums, fed by lines of memory that both run along
// the reduction, so that neither has to be packed.
//
// Per step of one vector: rows + columns loads and rows * columns FMA. The 3 x 4 tile of AVX2 takes 12 accumulators, 3
// rows and 1 column of the 16 registers, and 7 loads in the time of 12 FMA. At the end the lanes of an accumulator are
// added: lane l has summed d = l, l + lanes, ...; the order depends on the vector's width and on nothing else.
#pragma once

namespace {

// sums[i] = all lanes of parts[i], for i < lanes: a transpose, then a tree of additions.
template <class T>
inline void sum_lanes(Vec<T> (&parts)[VecOf<T>::lanes], T* sums) {
    constexpr int lanes = VecOf<T>::lanes;
    transpose(parts);
#pragma GCC unroll 4
    for (int half = lanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i) parts[i] = add(parts[i], parts[i + half]);
    store(sums, parts[0]);
}

template <class T, int rows, int columns>
void dot_tile_sized(int64_t depth, const T* const* a, const T* const* b, const convx::Epilogue<T>& out) {
    constexpr int lanes = VecOf<T>::lanes;
    constexpr int tile = rows * columns;
    Vec<T> acc[tile];
#pragma GCC unroll 32
    for (int i = 0; i < tile; ++i) acc[i] = broadcast(T(0));
    const T* row[rows];
    const T* column[columns];
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) row[i] = a[i];
#pragma GCC unroll 8
    for (int j = 0; j < columns; ++j) column[j] = b[j];
    int64_t d = 0;
    for (; d + lanes <= depth; d += lanes) {
        Vec<T> left[rows];
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) left[i] = load(row[i] + d);
#pragma GCC unroll 8
        for (int j = 0; j < columns; ++j) {
            const Vec<T> right = load(column[j] + d);
#pragma GCC unroll 8
            for (int i = 0; i < rows; ++i) acc[i * columns + j] = fma(left[i], right, acc[i * columns + j]);
        }
    }
    if (d < depth) {
        const int rest = static_cast<int>(depth - d);
        Vec<T> left[rows];
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) left[i] = load(row[i] + d, rest);
#pragma GCC unroll 8
        for (int j = 0; j < columns; ++j) {
            const Vec<T> right = load(column[j] + d, rest);
#pragma GCC unroll 8
            for (int i = 0; i < rows; ++i) acc[i * columns + j] = fma(left[i], right, acc[i * columns + j]);
        }
    }
    constexpr int padded = (tile + lanes - 1) / lanes * lanes;
    T sums[padded];
#pragma GCC unroll 16
    for (int first = 0; first < padded; first += lanes) {
        Vec<T> parts[lanes];
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) parts[i] = acc[first + i < tile ? first + i : tile - 1];
        sum_lanes<T>(parts, sums + first);
    }
    for (int i = 0; i < rows; ++i) {
        T* c = out.c + i * out.row_stride;
        for (int j = 0; j < columns; ++j) c[j] = out.accumulate ? c[j] + sums[i * columns + j] : sums[i * columns + j];
    }
}

// From run-time rows and columns to one of the compiled tiles.
template <class T, int rows, int columns>
void dot_tile(int want_rows, int want_columns, int64_t depth, const T* const* a, const T* const* b,
              const convx::Epilogue<T>& out) {
    if constexpr (rows > 1) {
        if (want_rows < rows) return dot_tile<T, rows - 1, columns>(want_rows, want_columns, depth, a, b, out);
    }
    if constexpr (columns > 1) {
        if (want_columns < columns) return dot_tile<T, rows, columns - 1>(want_rows, want_columns, depth, a, b, out);
    }
    dot_tile_sized<T, rows, columns>(depth, a, b, out);
}

}  // namespace
