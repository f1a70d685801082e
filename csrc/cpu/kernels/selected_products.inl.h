// The weight gradient where few pixels of a plane have a gradient (fused/grad_weight.cpp): each of
// them adds its gradient times the window of inputs that it has seen. The sums stay in registers while the pixels pass
// by.
//
// Per pixel and tile: a broadcast, a place, and an FMA with an operand in memory for each accumulator, so that two
// loads a cycle bound it: 12 accumulators take 7 cycles.
#pragma once

namespace {

template <class T, int rows, int vectors>
void selected_products_tile(const convx::SelectedProductsArgs<T>& args, int first_row, int first_vector) {
    constexpr int lanes = VecOf<T>::lanes;
    const T* source[rows];
    Vec<T> acc[rows][vectors];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
        source[r] = args.source + args.offsets[first_row + r] + first_vector * lanes;
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) acc[r][v] = broadcast(T(0));
    }
    for (int64_t j = 0; j < args.count; ++j) {
        const Vec<T> grad = broadcast(args.grads[j]);
        const int64_t at = args.places[j];
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) acc[r][v] = fma(grad, load(source[r] + at + v * lanes), acc[r][v]);
    }
    T* sums = args.sums + first_row * args.sums_row + first_vector * lanes;
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) {
            T* to = sums + r * args.sums_row + v * lanes;
            store(to, add(load(to), acc[r][v]));
        }
}

// Row by row in tiles as high as the accumulators allow.
template <class T, int rows, int vectors>
void selected_products_rows(const convx::SelectedProductsArgs<T>& args, int first_row, int first_vector) {
    for (; first_row + rows <= args.rows; first_row += rows)
        selected_products_tile<T, rows, vectors>(args, first_row, first_vector);
    if constexpr (rows > 1) {
        if (first_row < args.rows) selected_products_rows<T, rows - 1, vectors>(args, first_row, first_vector);
    }
}

constexpr int selected_products_height(int vectors, int limit) { return limit / vectors < 7 ? limit / vectors : 7; }

template <class T, int vectors, int limit>
void selected_products_width(const convx::SelectedProductsArgs<T>& args, int first_vector, int width) {
    if constexpr (vectors > 1) {
        if (width < vectors) return selected_products_width<T, vectors - 1, limit>(args, first_vector, width);
    }
    selected_products_rows<T, selected_products_height(vectors, limit), vectors>(args, 0, first_vector);
}

template <class T, int limit>
void selected_products(const convx::SelectedProductsArgs<T>& args) {
    constexpr int widest = limit < 12 ? limit : 12;
    const int pieces = (args.vectors + widest - 1) / widest;
    for (int piece = 0, first = 0; piece < pieces; ++piece) {
        const int end = (piece + 1) * args.vectors / pieces;
        selected_products_width<T, widest, limit>(args, first, end - first);
        first = end;
    }
}

}  // namespace
