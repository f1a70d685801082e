// Max-pooling: a thread takes a window, or with channels innermost the windows of 16 bytes of channels. All values of a
// 2x2 or 3x3 window are loaded before the first is compared.
//
// Bound by memory: a 2x2 window of floats is 4 loads of 4 bytes, whose lines its neighbours share in L1, and one store.
// No shared memory; 32 to 80 registers, most for 3x3 with 16 bytes of channels.
#pragma once

#include <cmath>

#include "cuda/conv2d/image_gather.cuh"
#include "cuda/elements.cuh"

namespace convx::cuda {

enum class Argmax { none, indices, codes };

template <class T>
struct MaxPool {
    GatherAxis h, w;
    int rows;  // of the output
    Strided4<const T> input;
    Strided4<T> output;
    Strided4<int64_t> indices;
    Strided4<uint8_t> codes;
    bool dead_at_zero;
};

// The maxima of a thread's windows so far, and the taps where they stand: -1 before the first.
template <class T, int windows, int count>
struct Maxima {
    __device__ Maxima() {
#pragma unroll
        for (int k = 0; k < windows; ++k)
#pragma unroll
            for (int i = 0; i < count; ++i) {
                best[k][i] = -static_cast<Sum<T>>(INFINITY);
                tap[k][i] = -1;
            }
    }
    // Ties stay with the first tap, a NaN replaces all.
    __device__ void take(int k, const Chunk<T, count>& values, int number) {
#pragma unroll
        for (int i = 0; i < count; ++i) {
            const Sum<T> value = to_sum(values.value[i]);
            const bool replace = tap[k][i] < 0 || value > best[k][i] || is_nan(value);
            best[k][i] = replace ? value : best[k][i];
            tap[k][i] = replace ? number : tap[k][i];
        }
    }

    Sum<T> best[windows][count];
    int tap[windows][count];
};

// taps_h = 0: windows of any size.
template <class T, int taps_h, int taps_w, int count, Argmax argmax>
struct MaxPoolWindows {
    // Windows of a thread, one below the other: two of 2x2, where 35 of about 110 instructions are the same for both
    // (with 16 bytes of channels that share is small already; two of 3x3 would spill).
    static constexpr int windows = taps_h == 2 && taps_w == 2 && count == 1 ? 2 : 1;
    using WindowMaxima = Maxima<T, windows, count>;

    __device__ void operator()(Index4 at) const {
        at.h *= windows;
        const int h = at.h * pool.h.step + pool.h.offset, w = at.w * pool.w.step + pool.w.offset;
        const T* const image = pool.input.image(at.n, at.c);
        WindowMaxima maxima;
        if constexpr (taps_h > 0)
            reduce_loaded(maxima, image, h, w);
        else
            reduce_any(maxima, image, h, w);
#pragma unroll
        for (int k = 0; k < windows; ++k, ++at.h) {
            if (at.h >= pool.rows) break;
            store_chunk(pool.output.at(at), rounded<T>(maxima.best[k]));
            if constexpr (argmax == Argmax::indices) store_indices(at, maxima.tap[k]);
            if constexpr (argmax == Argmax::codes) store_codes(at, maxima.best[k], maxima.tap[k]);
        }
    }

    // All values are loaded before the first is compared.
    __device__ void reduce_loaded(WindowMaxima& maxima, const T* image, int h, int w) const {
        constexpr int taps = taps_h * taps_w;
        Chunk<T, count> values[windows][taps];
        bool inside[windows][taps];
#pragma unroll
        for (int k = 0; k < windows; ++k)
#pragma unroll
            for (int t = 0; t < taps; ++t) {
                const int row = h + k * pool.h.step + t / taps_w * pool.h.tap_step;
                const int column = w + t % taps_w * pool.w.tap_step;
                inside[k][t] = pool.h.contains(row) && pool.w.contains(column);
                if (inside[k][t]) values[k][t] = load(image, row, column);
            }
#pragma unroll
        for (int k = 0; k < windows; ++k)
#pragma unroll
            for (int t = 0; t < taps; ++t)
                if (inside[k][t]) maxima.take(k, values[k][t], t);
    }
    __device__ void reduce_any(WindowMaxima& maxima, const T* image, int h, int w) const {
        for (int r = 0; r < pool.h.taps; ++r) {
            const int row = h + r * pool.h.tap_step;
            if (!pool.h.contains(row)) continue;
#pragma unroll 4
            for (int s = 0; s < pool.w.taps; ++s) {
                const int column = w + s * pool.w.tap_step;
                if (pool.w.contains(column)) maxima.take(0, load(image, row, column), r * pool.w.taps + s);
            }
        }
    }
    __device__ Chunk<T, count> load(const T* image, int row, int column) const {
        return load_chunk<count>(image + row * pool.input.h + column * pool.input.w);
    }

    __device__ void store_indices(const Index4& at, const int (&tap)[count]) const {
        // Where the window starts, computed again: kept, it would spill.
        const int h = at.h * pool.h.step + pool.h.offset, w = at.w * pool.w.step + pool.w.offset;
        int64_t* const to = pool.indices.at(at);
        const int columns = taps_w > 0 ? taps_w : pool.w.taps;
#pragma unroll
        for (int i = 0; i < count; ++i) {
            const int r = tap[i] / columns, s = tap[i] - r * columns;
            const int row = h + r * pool.h.tap_step, column = w + s * pool.w.tap_step;
            to[i * pool.indices.c] = tap[i] < 0 ? -1 : static_cast<int64_t>(row) * pool.w.size + column;
        }
    }
    __device__ void store_codes(const Index4& at, const Sum<T> (&best)[count], const int (&tap)[count]) const {
        Chunk<uint8_t, count> codes;
#pragma unroll
        for (int i = 0; i < count; ++i)
            codes.value[i] = pool.dead_at_zero && best[i] <= 0 ? no_gradient_code : static_cast<uint8_t>(tap[i]);
        store_chunk(pool.codes.at(at), codes);
    }

    MaxPool<T> pool;
};

template <class T, int taps_h, int taps_w, int count, Argmax argmax>
void start_max_pool2d(const MaxPool<T>& pool, const std::array<int64_t, 4>& shape, bool inside, Stream stream) {
    using Windows = MaxPoolWindows<T, taps_h, taps_w, count, argmax>;
    const auto [batch, channels, height, width] = shape;
    launch_elements<3>({batch, channels, ceil_div(height, Windows::windows), width}, inside, count, Windows{pool},
                       stream);
}

template <class T, int count, Argmax argmax>
void select_window(const MaxPool<T>& pool, const std::array<int64_t, 4>& shape, bool inside, Stream stream) {
    if (pool.h.taps == 2 && pool.w.taps == 2)
        start_max_pool2d<T, 2, 2, count, argmax>(pool, shape, inside, stream);
    else if (pool.h.taps == 3 && pool.w.taps == 3)
        start_max_pool2d<T, 3, 3, count, argmax>(pool, shape, inside, stream);
    else
        start_max_pool2d<T, 0, 0, count, argmax>(pool, shape, inside, stream);
}

template <class T>
void max_pool2d_of(const PoolProblem& problem, const Tensor& input, const Tensor& output, const Tensor& indices,
                   const Tensor& codes, bool dead_at_zero, Stream stream) {
    constexpr int count = Chunk<T>::count;
    const MaxPool<T> pool{GatherAxis(problem.h),    GatherAxis(problem.w), static_cast<int>(problem.out_h()),
                          Strided4<const T>(input), Strided4<T>(output),   Strided4<int64_t>(indices),
                          Strided4<uint8_t>(codes), dead_at_zero};
    const bool chunks =
        has_chunks(input, sizeof(T), count) && has_chunks(output, sizeof(T), count) && has_chunks(codes, 1, count);
    const auto start = [&](auto of_count) {
        constexpr int own = decltype(of_count)::value;
        const auto select = indices.data ? &select_window<T, own, Argmax::indices>
                            : codes.data ? &select_window<T, own, Argmax::codes>
                                         : &select_window<T, own, Argmax::none>;
        select(pool, output.shape, chunks || output.stride[1] == 1, stream);
    };
    if (chunks)
        start(std::integral_constant<int, count>{});
    else
        start(std::integral_constant<int, 1>{});
}

}  // namespace convx::cuda
