// The bias gradient: sums of grad_output over n, p, q for each channel, in two stages. A block takes a part of the
// pixels for 32 channels; its pixels go in turn to 32 lanes, whose sums are added in order, and then those of the
// parts. The order is that of the pixels (n, p, q), whatever the memory order: the layout decides which thread adds, so
// that neighbours in a warp read neighbours in memory.
//
// Bound by memory: 8 loads a thread are in flight. Shared memory: 4.1 KiB (8.3 for double); 32 to 64 registers.
#pragma once

#include "cuda/conv2d/conv2d.h"
#include "cuda/elements.cuh"

namespace convx::cuda {

template <class T>
struct BiasGrad {
    Strided4<const T> grads;
    int64_t pixels, pixels_of_part;
    Divisor columns, plane;  // Q, P * Q
    int channels, parts;
    Sum<T>* partial;  // [part][channel]
    T* result;
    int64_t result_stride;
    Sum<T>* carried;  // null: one run is all
    bool first, last;
};

constexpr int bias_lanes = 32, bias_channels = 32, bias_threads = 256;

template <class T>
struct BiasSums {
    Sum<T> sum[bias_lanes][bias_channels + 1];
};

template <class T, bool channels_adjacent>
__global__ void __launch_bounds__(bias_threads, 4) grad_bias_parts(BiasGrad<T> grad) {
    BiasSums<T>& shared = shared_memory<BiasSums<T>>();
    constexpr int own = bias_lanes * bias_channels / bias_threads, step = bias_threads / 32;
    const int inner = static_cast<int>(threadIdx.x) % 32, outer = static_cast<int>(threadIdx.x) / 32;
    const int first_channel = static_cast<int>(blockIdx.x) * bias_channels;
    const int64_t begin = static_cast<int64_t>(blockIdx.y) * grad.pixels_of_part;
    const int count =
        static_cast<int>(grad.pixels - begin < grad.pixels_of_part ? grad.pixels - begin : grad.pixels_of_part);
    const int64_t n = begin / grad.plane.value;
    const int from = static_cast<int>(begin - n * grad.plane.value);
    const T* const image = grad.grads.data + n * grad.grads.n;

    Sum<T> sum[own];
#pragma unroll
    for (int j = 0; j < own; ++j) sum[j] = 0;
    const auto address = [&](int pixel) {
        const int image_of = grad.plane.quotient(from + pixel), in_plane = from + pixel - image_of * grad.plane.value;
        const int row = grad.columns.quotient(in_plane), column = in_plane - row * grad.columns.value;
        return image + image_of * grad.grads.n + row * grad.grads.h + column * grad.grads.w;
    };
    if constexpr (channels_adjacent) {  // inner: channel, outer: lane
        const int channel = first_channel + inner;
        if (channel < grad.channels)
#pragma unroll 2
            for (int pixel = outer; pixel < count; pixel += bias_lanes)
#pragma unroll
                for (int j = 0; j < own; ++j)
                    if (pixel + j * step < count) sum[j] += to_sum(address(pixel + j * step)[channel * grad.grads.c]);
#pragma unroll
        for (int j = 0; j < own; ++j) shared.sum[outer + j * step][inner] = sum[j];
    } else {
#pragma unroll 2
        for (int pixel = inner; pixel < count; pixel += bias_lanes) {
            const T* const at = address(pixel);
#pragma unroll
            for (int j = 0; j < own; ++j) {
                const int channel = first_channel + outer + j * step;
                if (channel < grad.channels) sum[j] += to_sum(at[channel * grad.grads.c]);
            }
        }
#pragma unroll
        for (int j = 0; j < own; ++j) shared.sum[inner][outer + j * step] = sum[j];
    }
    block_barrier();
    const int channel = first_channel + static_cast<int>(threadIdx.x);
    if (threadIdx.x >= bias_channels || channel >= grad.channels) return;
    Sum<T> total = 0;
    for (int lane = 0; lane < bias_lanes; ++lane) total += shared.sum[lane][threadIdx.x];
    grad.partial[static_cast<int64_t>(blockIdx.y) * grad.channels + channel] = total;
}

template <class T>
struct AddBiasParts {
    __device__ void operator()(int64_t channel) const {
        Sum<T> sum = grad.first ? Sum<T>(0) : grad.carried[channel];
#pragma unroll 8
        for (int part = 0; part < grad.parts; ++part) sum += grad.partial[int64_t{part} * grad.channels + channel];
        if (grad.last)
            grad.result[channel * grad.result_stride] = from_sum<T>(sum);
        else
            grad.carried[channel] = sum;
    }

    BiasGrad<T> grad;
};

template <class T>
void run_grad_bias(const ConvProblem& problem, const ConvPlan& plan, const Tensor& grad_output, const Tensor& grad_bias,
                   void* workspace, Stream stream, const Carried& carried) {
    BiasGrad<T> grad{};
    grad.grads = Strided4<const T>(grad_output);
    grad.pixels = problem.batch * problem.out_pixels();
    grad.pixels_of_part = plan.steps_of_part;
    grad.columns = Divisor(problem.out_w());
    grad.plane = Divisor(problem.out_pixels());
    grad.channels = static_cast<int>(problem.out_channels);
    grad.parts = grad.pixels > 0 ? static_cast<int>(plan.parts) : 0;
    grad.partial = static_cast<Sum<T>*>(workspace);
    grad.result = static_cast<T*>(grad_bias.data);
    grad.result_stride = grad_bias.stride[1];
    grad.carried = static_cast<Sum<T>*>(carried.sums);
    grad.first = carried.first;
    grad.last = carried.last;
    const auto kernel = grad_output.stride[1] == 1 ? &grad_bias_parts<T, true> : &grad_bias_parts<T, false>;
    if (grad.parts > 0)
        launch(kernel, grid(tiles_of(grad.channels, bias_channels), grad.parts), bias_threads, sizeof(BiasSums<T>),
               stream, grad);
    launch_each<128>(grad.channels, AddBiasParts<T>{grad}, stream);
}

}  // namespace convx::cuda
