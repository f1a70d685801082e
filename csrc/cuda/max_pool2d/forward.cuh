// Max-pooling: a thread takes a window, or with channels innermost the windows of 16 bytes of channels. All values of a
// 2x2 or 3x3 window are loaded before the first is compared.
//
// Bound by memory: a 2x2 window of floats is 4 loads of 4 bytes, whose lines its neighbours share in L1, and one store.
// No shared memory; 28 to 80 registers, most for 3x3 with 16 bytes of channels.
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
    int rows;  // of the output
    Strided4<const T> input;
    Strided4<T> output;
    Strided4<int64_t> indices;
    Strided4<uint8_t> codes;
    bool dead_at_zero;
};

// Windows of a thread, one below the other: of 2x2, where what is worked out for the first too makes 35 of about 110
// instructions, and 16 bytes of channels do not make that small already (3x3: two would spill).
template <int taps_h, int taps_w, int count>
constexpr int windows_of_thread = taps_h == 2 && taps_w == 2 && count == 1 ? 2 : 1;

template <class T, int taps_h, int taps_w, int count, Chosen chosen>
__global__ void __launch_bounds__(256, 3) max_pool2d_kernel(MaxPool<T> pool) {
    constexpr int windows = windows_of_thread<taps_h, taps_w, count>;
    const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (index >= pool.cells.count) return;
    Cell cell = pool.cells.at(static_cast<int>(index));
    cell.h *= windows;
    const int h = cell.h * pool.h.step + pool.h.offset, w = cell.w * pool.w.step + pool.w.offset;
    const T* const image = pool.input.image(cell.n, cell.c);
    Sum<T> best[windows][count];
    int tap[windows][count];
#pragma unroll
    for (int k = 0; k < windows; ++k)
#pragma unroll
        for (int i = 0; i < count; ++i) {
            best[k][i] = -static_cast<Sum<T>>(INFINITY);
            tap[k][i] = -1;
        }
    // Ties stay with the first tap, a NaN replaces all.
    const auto take = [&](int k, const Channels<T, count>& values, int number) {
#pragma unroll
        for (int i = 0; i < count; ++i) {
            const Sum<T> value = to_sum(values.value[i]);
            const bool replace = tap[k][i] < 0 || value > best[k][i] || is_nan(value);
            best[k][i] = replace ? value : best[k][i];
            tap[k][i] = replace ? number : tap[k][i];
        }
    };
    if constexpr (taps_h > 0) {
        constexpr int taps = taps_h * taps_w;
        Channels<T, count> values[windows][taps];
        bool inside[windows][taps];
#pragma unroll
        for (int k = 0; k < windows; ++k)
#pragma unroll
            for (int t = 0; t < taps; ++t) {
                const int row = h + k * pool.h.step + t / taps_w * pool.h.tap_step;
                const int column = w + t % taps_w * pool.w.tap_step;
                inside[k][t] = static_cast<unsigned>(row) < static_cast<unsigned>(pool.h.size) &&
                               static_cast<unsigned>(column) < static_cast<unsigned>(pool.w.size);
                if (inside[k][t])
                    values[k][t] = load_channels<count>(image + row * pool.input.h + column * pool.input.w);
            }
#pragma unroll
        for (int k = 0; k < windows; ++k)
#pragma unroll
            for (int t = 0; t < taps; ++t)
                if (inside[k][t]) take(k, values[k][t], t);
    } else {
        for (int r = 0; r < pool.h.taps; ++r) {
            const int row = h + r * pool.h.tap_step;
            if (static_cast<unsigned>(row) >= static_cast<unsigned>(pool.h.size)) continue;
#pragma unroll 4
            for (int s = 0; s < pool.w.taps; ++s) {
                const int column = w + s * pool.w.tap_step;
                if (static_cast<unsigned>(column) < static_cast<unsigned>(pool.w.size))
                    take(0, load_channels<count>(image + row * pool.input.h + column * pool.input.w),
                         r * pool.w.taps + s);
            }
        }
    }
#pragma unroll
    for (int k = 0; k < windows; ++k, ++cell.h) {
        if (cell.h >= pool.rows) break;
        Channels<T, count> result;
#pragma unroll
        for (int i = 0; i < count; ++i) result.value[i] = from_sum<T>(best[k][i]);
        store_channels(pool.output.at(cell), result);
        if constexpr (chosen == Chosen::indices) {
            int64_t* const at = pool.indices.at(cell);
#pragma unroll
            for (int i = 0; i < count; ++i) {
                const int columns = taps_w > 0 ? taps_w : pool.w.taps;
                const int r = tap[k][i] / columns, s = tap[k][i] - r * columns;
                const int row = h + k * pool.h.step + r * pool.h.tap_step, column = w + s * pool.w.tap_step;
                at[i * pool.indices.c] = tap[k][i] < 0 ? -1 : static_cast<int64_t>(row) * pool.w.size + column;
            }
        }
        if constexpr (chosen == Chosen::codes) {
            Channels<uint8_t, count> codes;
#pragma unroll
            for (int i = 0; i < count; ++i)
                codes.value[i] =
                    pool.dead_at_zero && best[k][i] <= 0 ? no_gradient_code : static_cast<uint8_t>(tap[k][i]);
            store_channels(pool.codes.at(cell), codes);
        }
    }
}

template <class T, int taps_h, int taps_w, int count>
void start_max_pool2d(MaxPool<T> pool, const std::array<int64_t, 4>& shape, bool inside, Stream stream) {
    const auto [batch, channels, height, width] = shape;
    constexpr int windows = windows_of_thread<taps_h, taps_w, count>;
    const auto kernel = pool.indices.data ? &max_pool2d_kernel<T, taps_h, taps_w, count, Chosen::indices>
                        : pool.codes.data ? &max_pool2d_kernel<T, taps_h, taps_w, count, Chosen::codes>
                                          : &max_pool2d_kernel<T, taps_h, taps_w, count, Chosen::nothing>;
    for_each_launch({batch, channels, ceil_div(height, windows), width}, inside, count, [&](const Cells& cells) {
        pool.cells = cells;
        launch_each<256>(cells.count, kernel, stream, pool);
    });
}

template <class T, int count>
void choose_window(const MaxPool<T>& pool, const std::array<int64_t, 4>& shape, bool inside, Stream stream) {
    if (pool.h.taps == 2 && pool.w.taps == 2)
        start_max_pool2d<T, 2, 2, count>(pool, shape, inside, stream);
    else if (pool.h.taps == 3 && pool.w.taps == 3)
        start_max_pool2d<T, 3, 3, count>(pool, shape, inside, stream);
    else
        start_max_pool2d<T, 0, 0, count>(pool, shape, inside, stream);
}

template <class T>
void max_pool2d_of(const PoolProblem& problem, const Tensor& input, const Tensor& output, const Tensor& indices,
                   const Tensor& codes, bool dead_at_zero, Stream stream) {
    constexpr int count = 16 / static_cast<int>(sizeof(T));
    const MaxPool<T> pool{{},
                          PoolWindow(problem.h),
                          PoolWindow(problem.w),
                          static_cast<int>(problem.out_h()),
                          Strided4<const T>(input),
                          Strided4<T>(output),
                          Strided4<int64_t>(indices),
                          Strided4<uint8_t>(codes),
                          dead_at_zero};
    if (has_chunks(input, sizeof(T), count) && has_chunks(output, sizeof(T), count) && has_chunks(codes, 1, count))
        choose_window<T, count>(pool, output.shape, true, stream);
    else
        choose_window<T, 1>(pool, output.shape, output.stride[1] == 1, stream);
}

}  // namespace convx::cuda
