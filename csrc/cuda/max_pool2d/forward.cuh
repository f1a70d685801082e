// Max-pooling: a thread takes a window, or with channels innermost the windows of 16 bytes of channels. All values of a
// 2x2 or 3x3 window are loaded before the first is compared.
//
// Bound by memory: a 2x2 window of floats is 4 loads of 4 bytes, whose lines its neighbours share in L1, and one store.
// No shared memory; registers: see csrc/README.md.
#pragma once

#include <cmath>

#include "cuda/cells.cuh"

namespace convx::cuda {

struct PoolWindow {
    explicit PoolWindow(const Axis& axis)
        : taps(static_cast<int>(axis.kernel)), step(static_cast<int>(axis.stride)),
          tap_step(static_cast<int>(axis.dilation)), offset(static_cast<int>(-axis.pad_before)),
          size(static_cast<int>(axis.input)) {}
    int taps, step, tap_step, offset, size;
};

enum class Chosen { nothing, indices, codes };

template <class T>
struct MaxPool {
    Cells cells;  // of the output
    PoolWindow h, w;
    Strided4<const T> input;
    Strided4<T> output;
    Strided4<int64_t> indices;
    Strided4<uint8_t> codes;
    bool dead_at_zero;
};

template <class T, int taps_h, int taps_w, int count, Chosen chosen>
__global__ void __launch_bounds__(256, 3) max_pool2d_kernel(MaxPool<T> pool) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (index >= pool.cells.count) return;
    const Cell cell = pool.cells.at(static_cast<int>(index));
    const int h = cell.h * pool.h.step + pool.h.offset, w = cell.w * pool.w.step + pool.w.offset;
    const T* const image = pool.input.image(cell.n, cell.c);
    Sum<T> best[count];
    int tap[count];
#pragma unroll
    for (int i = 0; i < count; ++i) {
        best[i] = -static_cast<Sum<T>>(INFINITY);
        tap[i] = -1;
    }
    // Ties stay with the first tap, a NaN replaces all.
    const auto take = [&](const Channels<T, count>& values, int number) {
#pragma unroll
        for (int i = 0; i < count; ++i) {
            const Sum<T> value = to_sum(values.value[i]);
            const bool replace = tap[i] < 0 || value > best[i] || is_nan(value);
            best[i] = replace ? value : best[i];
            tap[i] = replace ? number : tap[i];
        }
    };
    if constexpr (taps_h > 0) {
        Channels<T, count> values[taps_h * taps_w];
        bool inside[taps_h * taps_w];
#pragma unroll
        for (int t = 0; t < taps_h * taps_w; ++t) {
            const int row = h + t / taps_w * pool.h.tap_step, column = w + t % taps_w * pool.w.tap_step;
            inside[t] = static_cast<unsigned>(row) < static_cast<unsigned>(pool.h.size) &&
                        static_cast<unsigned>(column) < static_cast<unsigned>(pool.w.size);
            if (inside[t]) values[t] = load_channels<count>(image + row * pool.input.h + column * pool.input.w);
        }
#pragma unroll
        for (int t = 0; t < taps_h * taps_w; ++t)
            if (inside[t]) take(values[t], t);
    } else {
        for (int r = 0; r < pool.h.taps; ++r) {
            const int row = h + r * pool.h.tap_step;
            if (static_cast<unsigned>(row) >= static_cast<unsigned>(pool.h.size)) continue;
#pragma unroll 4
            for (int s = 0; s < pool.w.taps; ++s) {
                const int column = w + s * pool.w.tap_step;
                if (static_cast<unsigned>(column) < static_cast<unsigned>(pool.w.size))
                    take(load_channels<count>(image + row * pool.input.h + column * pool.input.w), r * pool.w.taps + s);
            }
        }
    }
    Channels<T, count> result;
#pragma unroll
    for (int i = 0; i < count; ++i) result.value[i] = from_sum<T>(best[i]);
    store_channels(pool.output.at(cell), result);
    if constexpr (chosen == Chosen::indices) {
        int64_t* const at = pool.indices.at(cell);
#pragma unroll
        for (int i = 0; i < count; ++i) {
            const int r = tap[i] / pool.w.taps, s = tap[i] - r * pool.w.taps;
            at[i * pool.indices.c] =
                tap[i] < 0 ? -1 : static_cast<int64_t>(h + r * pool.h.tap_step) * pool.w.size + w + s * pool.w.tap_step;
        }
    }
    if constexpr (chosen == Chosen::codes) {
        Channels<uint8_t, count> codes;
#pragma unroll
        for (int i = 0; i < count; ++i)
            codes.value[i] = pool.dead_at_zero && best[i] <= 0 ? no_gradient_code : static_cast<uint8_t>(tap[i]);
        store_channels(pool.codes.at(cell), codes);
    }
}

template <class T, int taps_h, int taps_w, int count>
void start_max_pool2d(const MaxPool<T>& pool, Stream stream) {
    const dim3 grid(static_cast<unsigned>((int64_t{pool.cells.count} + 255) / 256));
    if (pool.indices.data)
        launch(max_pool2d_kernel<T, taps_h, taps_w, count, Chosen::indices>, grid, 256, 0, stream, pool);
    else if (pool.codes.data)
        launch(max_pool2d_kernel<T, taps_h, taps_w, count, Chosen::codes>, grid, 256, 0, stream, pool);
    else
        launch(max_pool2d_kernel<T, taps_h, taps_w, count, Chosen::nothing>, grid, 256, 0, stream, pool);
}

template <class T, int count>
void choose_window(const MaxPool<T>& pool, Stream stream) {
    if (pool.h.taps == 2 && pool.w.taps == 2)
        start_max_pool2d<T, 2, 2, count>(pool, stream);
    else if (pool.h.taps == 3 && pool.w.taps == 3)
        start_max_pool2d<T, 3, 3, count>(pool, stream);
    else
        start_max_pool2d<T, 0, 0, count>(pool, stream);
}

template <class T>
void max_pool2d_of(const PoolProblem& problem, const DeviceTensor& input, const DeviceTensor& output,
                   const DeviceTensor& indices, const DeviceTensor& codes, bool dead_at_zero, Stream stream) {
    constexpr int count = 16 / static_cast<int>(sizeof(T));
    const bool chunks =
        has_chunks(input, sizeof(T), count) && has_chunks(output, sizeof(T), count) && has_chunks(codes, 1, count);
    const bool inside = chunks || output.stride[1] == 1;
    for_each_launch(output.shape, inside, chunks ? count : 1, [&](const Cells& cells) {
        const MaxPool<T> pool{cells,
                              PoolWindow(problem.h),
                              PoolWindow(problem.w),
                              Strided4<const T>(input),
                              Strided4<T>(output),
                              Strided4<int64_t>(indices),
                              Strided4<uint8_t>(codes),
                              dead_at_zero};
        if (chunks)
            choose_window<T, count>(pool, stream);
        else
            choose_window<T, 1>(pool, stream);
    });
}

}  // namespace convx::cuda
