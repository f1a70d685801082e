// The gradient of max-pooling as a gather: a thread takes 16 bytes of grad_input, of a row or of a pixel's channels,
// reads the codes of the windows that cover them, in row-major order, and adds the gradients of the windows whose
// argmax is one of its own pixels. No atomics, and every element is written once.
//
// int64 indices become codes in the workspace first: eight bytes read by every pixel that a window covers would cost
// more than reading them once and writing one. An index may lie in the plane but outside its own window, where no
// gather looks for it: planes that have one are flagged, and computed again by one thread each, window by window.
// (There each addition to a 16-bit element is rounded; elsewhere the sum is, once.)
//
// Bound by memory: a pixel costs one code byte a window, and a gradient is read where it is added. No shared memory; 48
// to 64 registers.
#pragma once

#include "cuda/max_pool2d/forward.cuh"

namespace convx::cuda {

// The windows of one axis over one pixel.
struct PoolCover {
    explicit PoolCover(const Axis& axis)
        : step(axis.stride), pad(static_cast<int>(axis.pad_before)), taps(static_cast<int>(axis.kernel)),
          tap_step(axis.dilation), outputs(static_cast<int>(axis.output())),
          reach(static_cast<int>(axis.extent()) - 1) {}

    // Calls visit(output, tap) for those that have a tap on the pixel, in ascending order.
    template <class Visit>
    __device__ void each(int pixel, const Visit& visit) const {
        const int end = end_at(pixel);
        for (int output = first_at(pixel); output < end; ++output) {
            const int distance = pixel + pad - output * step.value, tap = tap_step.quotient(distance);
            if (tap * tap_step.value == distance) visit(output, tap);
        }
    }
    // The windows over a pixel, whether or not they have a tap on it.
    __device__ int first_at(int pixel) const {
        const int padded = pixel + pad;
        return padded > reach ? step.quotient(padded - reach + step.value - 1) : 0;
    }
    __device__ int end_at(int pixel) const {
        const int end = step.quotient(pixel + pad) + 1;
        return end < outputs ? end : outputs;
    }

    Divisor step;
    int pad, taps;
    Divisor tap_step;
    int outputs, reach;
};

// A thread takes `count` channels of a pixel or, with of_row, adjacent pixels of a row.
template <class T, class Code, int count, bool of_row>
struct PoolGather {
    __device__ void operator()(const Index4& at) const {
        const T* const grads = grad_output.image(at.n, at.c);
        const Code* const plane = codes.image(at.n, at.c);
        Sum<T> sum[count];
#pragma unroll
        for (int i = 0; i < count; ++i) sum[i] = 0;
        if constexpr (of_row)
            add_to_row(sum, grads, plane, at.h, at.w * count);
        else
            add_to_channels(sum, grads, plane, at);
        const Chunk<T, count> result = rounded<T>(sum);
        const int first = of_row ? at.w * count : at.w;
        T* const to = grad_input.at({at.n, at.c, at.h, first});
        if (!of_row || stores_chunks) return store_chunk(to, result);
#pragma unroll
        for (int i = 0; i < count; ++i)
            if (first + i < width) to[i * grad_input.w] = result.value[i];
    }

    __device__ void add_to_channels(Sum<T> (&sum)[count], const T* grads, const Code* plane, const Index4& at) const {
        h.each(at.h, [&](int p, int r) {
            w.each(at.w, [&](int q, int s) {
                const auto code = load_chunk<count>(plane + p * codes.h + q * codes.w);
                const Code tap = static_cast<Code>(r * w.taps + s);
                bool any = false;
#pragma unroll
                for (int i = 0; i < count; ++i) any = any || code.value[i] == tap;
                if (!any) return;
                const auto grad = load_chunk<count>(grads + p * grad_output.h + q * grad_output.w);
#pragma unroll
                for (int i = 0; i < count; ++i)
                    if (code.value[i] == tap) sum[i] += to_sum(grad.value[i]);
            });
        });
    }
    // Every window over the row's pixels is read once, and its code says which of them is its argmax.
    __device__ void add_to_row(Sum<T> (&sum)[count], const T* grads, const Code* plane, int row, int first) const {
        const int first_q = w.first_at(first), end_q = w.end_at(first + count - 1);
        h.each(row, [&](int p, int r) {
            const Code* const code = plane + p * codes.h;
            const T* const grad = grads + p * grad_output.h;
#pragma unroll 4
            for (int q = first_q; q < end_q; ++q) {
                const int s = static_cast<int>(code[q * codes.w]) - r * w.taps;
                if (static_cast<unsigned>(s) >= static_cast<unsigned>(w.taps)) continue;
                const int pixel = q * w.step.value + s * w.tap_step.value - w.pad - first;
                if (static_cast<unsigned>(pixel) >= count) continue;
                const Sum<T> value = to_sum(grad[q * grad_output.w]);
#pragma unroll
                for (int i = 0; i < count; ++i)
                    if (pixel == i) sum[i] += value;
            }
        });
    }

    PoolCover h, w;
    Strided4<const T> grad_output;
    Strided4<const Code> codes;
    Strided4<T> grad_input;
    int width;
    bool stores_chunks;  // of a row
};

template <class Code>
struct IndicesToCodes {
    __device__ void operator()(const Index4& at) const {
        const int64_t index = *indices.at(at);
        Code code = static_cast<Code>(-1);
        if (index >= 0 && index < static_cast<int64_t>(h.size) * w.size) {
            const int row = static_cast<int>(index) / w.size, column = static_cast<int>(index) - row * w.size;
            const int below = row - (at.h * h.step + h.offset), beside = column - (at.w * w.step + w.offset);
            bool own = below >= 0 && beside >= 0;
            if (own) {
                const int r = h_dilation.quotient(below), s = w_dilation.quotient(beside);
                own = r < h.taps && s < w.taps && r * h.tap_step == below && s * w.tap_step == beside;
                if (own) code = static_cast<Code>(r * w.taps + s);
            }
            // All that come here write the same.
            if (!own) foreign[static_cast<int64_t>(at.n) * channels + at.c] = 1;
        }
        *codes.at(at) = code;
    }

    GatherAxis h, w;
    Divisor h_dilation, w_dilation;
    Strided4<const int64_t> indices;
    Strided4<Code> codes;
    int* foreign;  // a flag for each plane: it has an index outside its window
    int channels;
};

// A kernel, since a memset is none of the shim's primitives.
struct ClearFlags {
    __device__ void operator()(int64_t index) const { flags[index] = 0; }
    int* flags;
};

// grad_input of the flagged planes, window by window.
template <class T>
struct ForeignPlanes {
    __device__ void operator()(int64_t plane) const {
        if (!foreign[plane]) return;
        const int n = static_cast<int>(plane / channels), c = static_cast<int>(plane - int64_t{n} * channels);
        T* const image = grad_input.image(n, c);
        for (int h = 0; h < height; ++h)
            for (int w = 0; w < width; ++w) image[h * grad_input.h + w * grad_input.w] = T{};
        const int64_t pixels = static_cast<int64_t>(height) * width;
        for (int p = 0; p < out_height; ++p)
            for (int q = 0; q < out_width; ++q) {
                const int64_t index = *indices.at({n, c, p, q});
                if (index < 0 || index >= pixels) continue;
                const int64_t row = index / width;
                T& element = image[row * grad_input.h + (index - row * width) * grad_input.w];
                element = from_sum<T>(to_sum(element) + to_sum(*grad_output.at({n, c, p, q})));
            }
    }

    const int* foreign;
    int channels, height, width, out_height, out_width;
    Strided4<const T> grad_output;
    Strided4<const int64_t> indices;
    Strided4<T> grad_input;
};

template <class T, class Code, int count, bool of_row>
void start_gather(const PoolProblem& problem, const Tensor& grad_output, const Tensor& codes, const Tensor& grad_input,
                  bool stores_chunks, Stream stream) {
    const auto [batch, channels, height, width] = grad_input.shape;
    const PoolGather<T, Code, count, of_row> gather{PoolCover(problem.h),
                                                    PoolCover(problem.w),
                                                    Strided4<const T>(grad_output),
                                                    Strided4<const Code>(codes),
                                                    Strided4<T>(grad_input),
                                                    static_cast<int>(width),
                                                    stores_chunks};
    launch_elements<4>({batch, channels, height, of_row ? ceil_div(width, count) : width}, !of_row, of_row ? 1 : count,
                       gather, stream);
}

template <class T, class Code>
void max_pool2d_gather(const PoolProblem& problem, const Tensor& grad_output, const Tensor& codes,
                       const Tensor& grad_input, Stream stream) {
    constexpr int count = Chunk<T>::count;
    const auto& [n, c, h, w] = grad_input.stride;
    if (c != 1 || w == 1) {
        const bool stores_chunks = w == 1 && grad_input.shape[3] % count == 0 && n % count == 0 && c % count == 0 &&
                                   h % count == 0 && reinterpret_cast<uintptr_t>(grad_input.data) % 16 == 0;
        return start_gather<T, Code, count, true>(problem, grad_output, codes, grad_input, stores_chunks, stream);
    }
    if constexpr (sizeof(Code) == 1)
        if (has_chunks(grad_output, sizeof(T), count) && has_chunks(grad_input, sizeof(T), count) &&
            has_chunks(codes, 1, count))
            return start_gather<T, Code, count, false>(problem, grad_output, codes, grad_input, false, stream);
    start_gather<T, Code, 1, false>(problem, grad_output, codes, grad_input, false, stream);
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
    launch_each(planes, ClearFlags{foreign}, stream);
    const bool inside = grad_input.stride[1] == 1;
    const Tensor codes{static_cast<char*>(workspace) + flag_bytes(problem), indices.shape,
                       dense_strides(indices.shape, inside)};
    const IndicesToCodes<Code> convert{GatherAxis(problem.h),
                                       GatherAxis(problem.w),
                                       Divisor(problem.h.dilation),
                                       Divisor(problem.w.dilation),
                                       Strided4<const int64_t>(indices),
                                       Strided4<Code>(codes),
                                       foreign,
                                       static_cast<int>(problem.channels)};
    launch_elements(indices.shape, inside, 1, convert, stream);
    max_pool2d_gather<T, Code>(problem, grad_output, codes, grad_input, stream);
    const ForeignPlanes<T> recompute{foreign,
                                     static_cast<int>(problem.channels),
                                     static_cast<int>(problem.h.input),
                                     static_cast<int>(problem.w.input),
                                     static_cast<int>(problem.out_h()),
                                     static_cast<int>(problem.out_w()),
                                     Strided4<const T>(grad_output),
                                     Strided4<const int64_t>(indices),
                                     Strided4<T>(grad_input)};
    launch_each<32>(planes, recompute, stream);
}

}  // namespace convx::cuda
