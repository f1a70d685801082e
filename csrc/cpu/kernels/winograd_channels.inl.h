// The kernels of winograd_channels.cpp: the transforms of winograd.inl.h and the products between them, with vectors
// over channels instead of tiles. The arithmetic of a lane is the same.
#pragma once

namespace {

template <class T>
inline Vec<T> load_lanes(const T* p, int n) {
    return n >= VecOf<T>::lanes ? load(p) : load(p, n);
}

// One tile, whose pixels stand anywhere. Whole vectors are written.
template <class T>
void winograd_input_pixels(const convx::WinogradPixelInput<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    for (int64_t c = 0; c < job.channels; c += lanes) {
        const int n = static_cast<int>(job.channels - c < lanes ? job.channels - c : lanes);
        Vec<T> half[6][6];
        for (int i = 0; i < 6; ++i) {
            Vec<T> d[6];
            if (n == lanes) {
                for (int j = 0; j < 6; ++j) d[j] = load(job.pixels[6 * i + j] + c);
            } else {
                for (int j = 0; j < 6; ++j) d[j] = load(job.pixels[6 * i + j] + c, n);
            }
            transform_input<T>(d, half[i]);
        }
        for (int j = 0; j < 6; ++j) {
            const Vec<T> d[6] = {half[0][j], half[1][j], half[2][j], half[3][j], half[4][j], half[5][j]};
            Vec<T> out[6];
            transform_input<T>(d, out);
            T* to = job.dest + j * job.dest_frequency + c;
#pragma GCC unroll 6
            for (int i = 0; i < 6; ++i) store(to + 6 * i * job.dest_frequency, out[i]);
        }
    }
}

template <class T, int vecs, int rows>
inline void tile_products(const convx::WinogradTileProducts<T>& job, const T* tiles, T* products) {
    constexpr int lanes = VecOf<T>::lanes;
    const T* row[rows];
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) row[i] = tiles + i * job.tile_stride;
    Vec<T> acc[rows][vecs];
    multiply_panels<T, vecs * lanes>(job.channels, LooseRows<T, rows>(row), job.weights, acc);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; ++v) {
            T* to = products + (i * vecs + v) * lanes;
            store(to, job.accumulate ? add(load(to), acc[i][v]) : acc[i][v]);
        }
}

template <class T, int vecs, int rows>
inline void tile_products_pick(const convx::WinogradTileProducts<T>& job, int64_t want_rows, const T* tiles,
                               T* products) {
    if constexpr (rows > 1) {
        if (want_rows < rows) return tile_products_pick<T, vecs, rows - 1>(job, want_rows, tiles, products);
    }
    tile_products<T, vecs, rows>(job, tiles, products);
}

// The tiles in parts of nearly the same size: 8 as 4 + 4, not as 6 + 2, since few rows do not fill the FMA pipes.
template <class T, int mr, int vecs>
void winograd_tile_products(const convx::WinogradTileProducts<T>& job) {
    const T* tiles = job.tiles;
    T* products = job.products;
    for (int64_t left = job.count, parts = (job.count + mr - 1) / mr; left > 0; --parts) {
        const int64_t rows = (left + parts - 1) / parts;
        tile_products_pick<T, vecs, mr>(job, rows, tiles, products);
        tiles += rows * job.tile_stride;
        products += rows * vecs * VecOf<T>::lanes;
        left -= rows;
    }
}

// One tile. What a short axis leaves out (its last frequency, its last outputs) is not read, not written and no fault.
template <class T>
void winograd_output_pixels(const convx::WinogradPixelOutput<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    Vec<T> faults = load(job.faults);
    for (int64_t k = 0; k < job.rows; k += lanes) {
        const int n = static_cast<int>(job.rows - k < lanes ? job.rows - k : lanes);
        const Vec<T> zero = broadcast(T(0));
        Vec<T> half[4][6];
        for (int j = 0; j < 6; ++j) {
            Vec<T> m[6], y[4];
            const T* from = job.source + j * job.source_frequency + k;
            const bool read = j < 5 || job.width == 4;
            for (int i = 0; i < 5; ++i) m[i] = read ? load(from + 6 * i * job.source_frequency) : zero;
            m[5] = read && job.height == 4 ? load(from + 30 * job.source_frequency) : zero;
            transform_output<T>(m, y);
            for (int i = 0; i < 4; ++i) half[i][j] = y[i];
        }
        const Vec<T> bias = job.bias ? load_lanes(job.bias + k, n) : zero;
        for (int i = 0; i < job.height; ++i) {
            Vec<T> y[4];
            transform_output<T>(half[i], y);
            for (int j = 0; j < job.width; ++j) {
                faults = fma(y[j], zero, faults);
                if (job.bias) y[j] = add(y[j], bias);
                if (job.relu) y[j] = relu(y[j]);
                T* to = job.dest + i * job.dest_row + j * job.dest_pixel + k;
                if (n == lanes)
                    store(to, y[j]);
                else
                    store(to, y[j], n);
            }
        }
    }
    store(job.faults, faults);
}

}  // namespace
