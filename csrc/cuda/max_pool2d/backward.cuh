// The gradient of max-pooling as a gather: a thread takes 16 bytes of grad_input, of a row or of a pixel's channels,
// looks at the codes of the windows that cover them, in row-major order, and adds the gradients of those that chose a
// cell of its own. No atomics, and every cell is written once.
//
// int64 indices become codes in the workspace first, since eight bytes looked at by every cell that a window covers
// would cost more than to read them once and write one. An index may lie in the plane but outside its own window, where
// no gather looks for it: planes that have one are marked, and done again by one thread each, window by window. (There
// each addition to a 16-bit cell is rounded; elsewhere the sum is, once.)
//
// Bound by memory: a cell costs one code byte a window, and a gradient is read where it is added. No shared memory; 48
// to 64 registers.
#pragma once

#include "cuda/max_pool2d/forward.cuh"

namespace convx::cuda {

// Windows of one axis over one cell.
struct PoolCover {
    explicit PoolCover(const Axis& axis)
        : step(axis.stride), pad(static_cast<int>(axis.pad_before)), taps(static_cast<int>(axis.kernel)),
          tap_step(axis.dilation), outputs(static_cast<int>(axis.output())),
          reach(static_cast<int>(axis.extent()) - 1) {}

    // Calls visit(output, tap) for those that have a tap on the cell, in ascending order.
    template <class Visit>
    __device__ void each(int cell, const Visit& visit) const {
        const int end = end_at(cell);
        for (int output = first_at(cell); output < end; ++output) {
            const int distance = cell + pad - output * step.value, tap = tap_step.quotient(distance);
            if (tap * tap_step.value == distance) visit(output, tap);
        }
    }
    // The windows over a cell, whether or not they have a tap on it.
    __device__ int first_at(int cell) const {
        const int place = cell + pad;
        return place > reach ? step.quotient(place - reach + step.value - 1) : 0;
    }
    __device__ int end_at(int cell) const {
        const int end = step.quotient(cell + pad) + 1;
        return end < outputs ? end : outputs;
    }

    Divisor step;
    int pad, taps;
    Divisor tap_step;
    int outputs, reach;
};

template <class T, class Code>
struct PoolGather {
    Cells cells;  // of grad_input
    PoolCover h, w;
    Strided4<const T> grad_output;
    Strided4<const Code> codes;
    Strided4<T> grad_input;
    int width;
    bool stores_chunks;  // of a row
};

template <class T, class Code, int count>
__global__ void __launch_bounds__(256, 4) max_pool2d_gather(PoolGather<T, Code> gather) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (index >= gather.cells.count) return;
    const Cell cell = gather.cells.at(static_cast<int>(index));
    const T* const grads = gather.grad_output.image(cell.n, cell.c);
    const Code* const codes = gather.codes.image(cell.n, cell.c);
    Sum<T> sum[count];
#pragma unroll
    for (int i = 0; i < count; ++i) sum[i] = 0;
    gather.h.each(cell.h, [&](int p, int r) {
        gather.w.each(cell.w, [&](int q, int s) {
            const auto code = load_channels<count>(codes + p * gather.codes.h + q * gather.codes.w);
            const Code tap = static_cast<Code>(r * gather.w.taps + s);
            bool any = false;
#pragma unroll
            for (int i = 0; i < count; ++i) any = any || code.value[i] == tap;
            if (!any) return;
            const auto grad = load_channels<count>(grads + p * gather.grad_output.h + q * gather.grad_output.w);
#pragma unroll
            for (int i = 0; i < count; ++i)
                if (code.value[i] == tap) sum[i] += to_sum(grad.value[i]);
        });
    });
    Channels<T, count> result;
#pragma unroll
    for (int i = 0; i < count; ++i) result.value[i] = from_sum<T>(sum[i]);
    store_channels(gather.grad_input.at(cell), result);
}

// `count` cells of a row: the windows over them are looked at once, and say themselves which of the cells they chose.
template <class T, class Code, int count>
__global__ void __launch_bounds__(256, 4) max_pool2d_gather_row(PoolGather<T, Code> gather) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (index >= gather.cells.count) return;
    const Cell cell = gather.cells.at(static_cast<int>(index));
    const int first = cell.w * count;
    const T* const grads = gather.grad_output.image(cell.n, cell.c);
    const Code* const codes = gather.codes.image(cell.n, cell.c);
    Sum<T> sum[count];
#pragma unroll
    for (int i = 0; i < count; ++i) sum[i] = 0;
    const int first_q = gather.w.first_at(first), end_q = gather.w.end_at(first + count - 1);
    gather.h.each(cell.h, [&](int p, int r) {
        const Code* const code = codes + p * gather.codes.h;
        const T* const grad = grads + p * gather.grad_output.h;
#pragma unroll 4
        for (int q = first_q; q < end_q; ++q) {
            const int s = static_cast<int>(code[q * gather.codes.w]) - r * gather.w.taps;
            if (static_cast<unsigned>(s) >= static_cast<unsigned>(gather.w.taps)) continue;
            const int at = q * gather.w.step.value + s * gather.w.tap_step.value - gather.w.pad - first;
            if (static_cast<unsigned>(at) >= count) continue;
            const Sum<T> value = to_sum(grad[q * gather.grad_output.w]);
#pragma unroll
            for (int i = 0; i < count; ++i)
                if (at == i) sum[i] += value;
        }
    });
    Channels<T, count> result;
#pragma unroll
    for (int i = 0; i < count; ++i) result.value[i] = from_sum<T>(sum[i]);
    T* const to = gather.grad_input.at({cell.n, cell.c, cell.h, first});
    if (gather.stores_chunks) {
        store_channels(to, result);
    } else {
#pragma unroll
        for (int i = 0; i < count; ++i)
            if (first + i < gather.width) to[i * gather.grad_input.w] = result.value[i];
    }
}

// Indices to codes.
template <class Code>
struct NameTaps {
    Cells cells;  // of the indices
    PoolWindow h, w;
    Divisor height_step, width_step;
    Strided4<const int64_t> indices;
    Strided4<Code> codes;
    int* foreign;  // a flag for each plane
    int channels;
};

template <class Code>
__global__ void __launch_bounds__(256) max_pool2d_name_taps(NameTaps<Code> names) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (index >= names.cells.count) return;
    const Cell cell = names.cells.at(static_cast<int>(index));
    const int64_t chosen = *names.indices.at(cell);
    Code code = static_cast<Code>(-1);
    if (chosen >= 0 && chosen < static_cast<int64_t>(names.h.size) * names.w.size) {
        const int at = static_cast<int>(chosen), row = at / names.w.size, column = at - row * names.w.size;
        const int below = row - (cell.h * names.h.step + names.h.offset);
        const int beside = column - (cell.w * names.w.step + names.w.offset);
        bool own = below >= 0 && beside >= 0;
        if (own) {
            const int r = names.height_step.quotient(below), s = names.width_step.quotient(beside);
            own =
                r < names.h.taps && s < names.w.taps && r * names.h.tap_step == below && s * names.w.tap_step == beside;
            if (own) code = static_cast<Code>(r * names.w.taps + s);
        }
        // All that come here write the same.
        if (!own) names.foreign[static_cast<int64_t>(cell.n) * names.channels + cell.c] = 1;
    }
    *names.codes.at(cell) = code;
}

template <class T>
struct ForeignPlanes {
    int* foreign;
    int64_t planes;
    int channels, height, width, out_height, out_width;
    Strided4<const T> grad_output;
    Strided4<const int64_t> indices;
    Strided4<T> grad_input;
};

// No flag is set. A kernel, since a memset is none of the shim's words.
template <class Flag>
__global__ void __launch_bounds__(256) clear_flags(Flag* flags, int64_t count) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (index < count) flags[index] = 0;
}

template <class T>
__global__ void __launch_bounds__(32) max_pool2d_foreign(ForeignPlanes<T> pool) {
    const int64_t plane = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
    if (plane >= pool.planes || !pool.foreign[plane]) return;
    const int n = static_cast<int>(plane / pool.channels), c = static_cast<int>(plane - int64_t{n} * pool.channels);
    T* const cells = pool.grad_input.image(n, c);
    for (int h = 0; h < pool.height; ++h)
        for (int w = 0; w < pool.width; ++w) cells[h * pool.grad_input.h + w * pool.grad_input.w] = T{};
    const int64_t count = static_cast<int64_t>(pool.height) * pool.width;
    for (int p = 0; p < pool.out_height; ++p)
        for (int q = 0; q < pool.out_width; ++q) {
            const int64_t index = *pool.indices.at({n, c, p, q});
            if (index < 0 || index >= count) continue;
            const int64_t row = index / pool.width;
            T& cell = cells[row * pool.grad_input.h + (index - row * pool.width) * pool.grad_input.w];
            cell = from_sum<T>(to_sum(cell) + to_sum(*pool.grad_output.at({n, c, p, q})));
        }
}

template <class T, class Code>
void max_pool2d_gather_of(const PoolProblem& problem, const Tensor& grad_output, const Tensor& codes,
                          const Tensor& grad_input, Stream stream) {
    constexpr int count = 16 / static_cast<int>(sizeof(T));
    const auto start = [&](auto kernel, const std::array<int64_t, 4>& shape, bool inside, int of_chunk, bool vectors) {
        for_each_launch(shape, inside, of_chunk, [&](const Cells& cells) {
            const PoolGather<T, Code> gather{cells,
                                             PoolCover(problem.h),
                                             PoolCover(problem.w),
                                             Strided4<const T>(grad_output),
                                             Strided4<const Code>(codes),
                                             Strided4<T>(grad_input),
                                             static_cast<int>(problem.w.input),
                                             vectors};
            launch_each<256>(cells.count, kernel, stream, gather);
        });
    };
    const auto& [n, c, h, w] = grad_input.stride;
    if (c != 1 || w == 1) {
        const auto [batch, channels, height, width] = grad_input.shape;
        const bool vectors = w == 1 && width % count == 0 && n % count == 0 && c % count == 0 && h % count == 0 &&
                             reinterpret_cast<uintptr_t>(grad_input.data) % 16 == 0;
        return start(&max_pool2d_gather_row<T, Code, count>, {batch, channels, height, ceil_div(width, count)}, false,
                     1, vectors);
    }
    if constexpr (sizeof(Code) == 1)
        if (has_chunks(grad_output, sizeof(T), count) && has_chunks(grad_input, sizeof(T), count) &&
            has_chunks(codes, 1, count))
            return start(&max_pool2d_gather<T, Code, count>, grad_input.shape, true, count, false);
    start(&max_pool2d_gather<T, Code, 1>, grad_input.shape, true, 1, false);
}

inline int64_t flag_bytes(const PoolProblem& problem) {
    return workspace_part(problem.batch * problem.channels * static_cast<int64_t>(sizeof(int)));
}

template <class T, class Code>
void max_pool2d_indices_of(const PoolProblem& problem, const Tensor& grad_output, const Tensor& indices,
                           const Tensor& grad_input, void* workspace, Stream stream) {
    int* const foreign = static_cast<int*>(workspace);
    const int64_t planes = problem.batch * problem.channels;
    if (planes == 0) return;
    launch_each<256>(planes, clear_flags<int>, stream, foreign, planes);
    const bool inside = grad_input.stride[1] == 1;
    const Tensor codes{static_cast<char*>(workspace) + flag_bytes(problem), indices.shape,
                       dense_strides(indices.shape, inside)};
    for_each_launch(indices.shape, inside, 1, [&](const Cells& cells) {
        const NameTaps<Code> names{cells,
                                   PoolWindow(problem.h),
                                   PoolWindow(problem.w),
                                   Divisor(problem.h.dilation),
                                   Divisor(problem.w.dilation),
                                   Strided4<const int64_t>(indices),
                                   Strided4<Code>(codes),
                                   foreign,
                                   static_cast<int>(problem.channels)};
        launch_each<256>(cells.count, max_pool2d_name_taps<Code>, stream, names);
    });
    max_pool2d_gather_of<T, Code>(problem, grad_output, codes, grad_input, stream);
    const ForeignPlanes<T> pool{foreign,
                                planes,
                                static_cast<int>(problem.channels),
                                static_cast<int>(problem.h.input),
                                static_cast<int>(problem.w.input),
                                static_cast<int>(problem.out_h()),
                                static_cast<int>(problem.out_w()),
                                Strided4<const T>(grad_output),
                                Strided4<const int64_t>(indices),
                                Strided4<T>(grad_input)};
    launch_each<32>(planes, max_pool2d_foreign<T>, stream, pool);
}

}  // namespace convx::cuda
