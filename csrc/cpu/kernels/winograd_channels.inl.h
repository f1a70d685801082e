// The kernels of winograd_channels.cpp: the transforms of winograd.inl.h and the products between them, with vectors
// over channels instead of tiles. The arithmetic of a lane is the same.
#pragma once

#include "cpu/kernels/winograd.inl.h"

namespace {

// One tile, whose pixels stand anywhere. Whole vectors are written.
template <class T>
void winograd_input_pixels(const convx::WinogradPixelInputArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes;
    for (int64_t c = 0; c < args.channels; c += lanes) {
        const int n = static_cast<int>(args.channels - c < lanes ? args.channels - c : lanes);
        const auto read = [&](int i, Vec<T>(&d)[6]) {
            for (int j = 0; j < 6; ++j) d[j] = load_lanes(args.pixels[6 * i + j] + c, n);
        };
        const auto write = [&](int j, const Vec<T>(&values)[6]) {
            T* to = args.dest + j * args.dest_frequency + c;
#pragma GCC unroll 6
            for (int i = 0; i < 6; ++i) store(to + 6 * i * args.dest_frequency, values[i]);
        };
        transform_tile<T, 6, 6, transform_input<T>>(read, write);
    }
}

template <class T, int vecs, int rows>
inline void tile_products(const convx::WinogradTileProductsArgs<T>& args, const T* tiles, T* products) {
    constexpr int lanes = VecOf<T>::lanes;
    const T* row[rows];
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) row[i] = tiles + i * args.tile_stride;
    Vec<T> acc[rows][vecs];
    multiply_tile<T>(args.channels, StridedRows<T, rows>(row), PackedColumns<T, vecs * lanes>{args.weights}, acc);
    finish_rows<T>(acc, {products, vecs * lanes, args.accumulate}, vecs * lanes);
}

template <class T, int vecs, int rows>
inline void tile_products_pick(const convx::WinogradTileProductsArgs<T>& args, int64_t want_rows, const T* tiles,
                               T* products) {
    if constexpr (rows > 1) {
        if (want_rows < rows) return tile_products_pick<T, vecs, rows - 1>(args, want_rows, tiles, products);
    }
    tile_products<T, vecs, rows>(args, tiles, products);
}

// The tiles in parts of nearly the same size: 8 as 4 + 4, not as 6 + 2, since few rows do not fill the FMA pipes.
template <class T, int mr, int vecs>
void winograd_tile_products(const convx::WinogradTileProductsArgs<T>& args) {
    const T* tiles = args.tiles;
    T* products = args.products;
    for (int64_t left = args.count, parts = (args.count + mr - 1) / mr; left > 0; --parts) {
        const int64_t rows = (left + parts - 1) / parts;
        tile_products_pick<T, vecs, mr>(args, rows, tiles, products);
        tiles += rows * args.tile_stride;
        products += rows * vecs * VecOf<T>::lanes;
        left -= rows;
    }
}

// One tile. What a short axis leaves out (its last frequency, its last outputs) is not read, not written and no fault.
template <class T>
void winograd_output_pixels(const convx::WinogradPixelOutputArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes;
    Vec<T> faults = load(args.faults);
    for (int64_t k = 0; k < args.rows; k += lanes) {
        const int n = static_cast<int>(args.rows - k < lanes ? args.rows - k : lanes);
        const Vec<T> zero = broadcast(T(0));
        const auto read = [&](int j, Vec<T>(&m)[6]) {
            const T* from = args.source + j * args.source_frequency + k;
            const bool full = j < 5 || args.width == 4;
            for (int i = 0; i < 5; ++i) m[i] = full ? load(from + 6 * i * args.source_frequency) : zero;
            m[5] = full && args.height == 4 ? load(from + 30 * args.source_frequency) : zero;
        };
        const Vec<T> bias = args.bias ? load_lanes(args.bias + k, n) : zero;
        const auto write = [&](int i, Vec<T>(&y)[4]) {
            if (i >= args.height) return;
            for (int j = 0; j < args.width; ++j) {
                faults = fma(y[j], zero, faults);
                if (args.bias) y[j] = add(y[j], bias);
                if (args.relu) y[j] = relu(y[j]);
                store_lanes(args.dest + i * args.dest_row + j * args.dest_pixel + k, y[j], n);
            }
        };
        transform_tile<T, 6, 4, transform_output<T>>(read, write);
    }
    store(args.faults, faults);
}

}  // namespace
