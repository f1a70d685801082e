// What the forward pass and the input gradient both are: sums over windows of images, with a weight for every tap.
#pragma once

#include <algorithm>

#include "cuda/conv2d/gather_axes.h"
#include "cuda/numbers.cuh"

namespace convx::cuda {

// The weights of the taps (r, s, c) of one window sum; `column` is the channel of the result within its group.
template <class T>
struct TapWeights {
    __device__ const T* at(int group, int column, int c, int r, int s) const {
        return data + group * stride_group + column * stride_column + c * stride_channel + r * stride_r + s * stride_s;
    }
    const T* data;
    int64_t stride_group, stride_column, stride_channel, stride_r, stride_s;
};

// `channels`, `columns`: of the source and of the result, in a group. The adjoint exchanges the weight's first axes.
template <class T>
TapWeights<T> tap_weights(const Tensor& weight, bool adjoint, int64_t channels, int64_t columns) {
    const auto [k, cg, r, s] = weight.stride;
    return {weight.as<const T>(), (adjoint ? channels : columns) * k, adjoint ? cg : k, adjoint ? k : cg, r, s};
}

template <class T>
struct WindowSum {
    ImageGather<T> image;
    TapWeights<T> weight;
    SumTarget<T> result;
    int64_t first_cell;                              // offset of the class' first cell in the result
    int64_t result_n, result_c, result_h, result_w;  // strides
    int columns;                                     // channels of the result in a group
    int groups;
    const T* bias;  // of all channels, or none
    int64_t bias_stride;
    bool relu;

    // The offset in the result of a pixel and channel 0 of a group.
    __device__ int64_t cell(int pixel, int group) const {
        const int row = image.columns.quotient(pixel), w = pixel - row * image.columns.value;
        const int n = image.rows.quotient(row), h = row - n * image.rows.value;
        return first_cell + n * result_n + static_cast<int64_t>(group) * columns * result_c + h * result_h +
               w * result_w;
    }
    __device__ Sum<T> bias_of(int group, int column) const {
        return bias ? to_sum(bias[(static_cast<int64_t>(group) * columns + column) * bias_stride]) : Sum<T>(0);
    }
    __device__ Sum<T> finished(Sum<T> sum, int group, int column) const {
        sum += bias_of(group, column);
        return relu ? relu_of(sum) : sum;
    }
    // The sum as the law has it, tap by tap: what lies outside under zeros is skipped, not multiplied. The fast ways
    // multiply it by zero, and ask here when they get NaN.
    __device__ Sum<T> exact(int pixel, int group, int column) const {
        ImageGather<T> of_group = image;
        of_group.data += static_cast<int64_t>(group) * image.channels.value * image.stride_c;
        const auto at = of_group.pixel(pixel);
        Sum<T> sum = 0;
        for (auto tap = of_group.tap(0); tap.r < image.h.taps; of_group.advance(tap)) {
            const T* element = nullptr;
            const auto found = of_group.find(at, tap, element);
            if (found == ImageGather<T>::Found::nothing) continue;
            const T value = found == ImageGather<T>::Found::element ? *element : image.padding;
            sum = multiply_add(to_sum(value), to_sum(*weight.at(group, column, tap.c, tap.r, tap.s)), sum);
            if (is_nan(sum)) break;  // and stays it
        }
        return sum;
    }
};

// Host side. `channels`: of the source, in a group; weight strides: how the source's and the result's channels step.
template <class T>
WindowSum<T> window_sum(const WindowAxis& h, const WindowAxis& w, int64_t groups, int64_t channels, int64_t columns,
                        const Tensor& source, const Tensor& weight, bool adjoint, const Tensor& result,
                        double padding_value) {
    WindowSum<T> sum{};
    sum.image = image_gather<T>(source, h, w, channels, padding_value);

    sum.weight = tap_weights<T>(weight, adjoint, channels, columns);
    sum.weight.data += h.first_tap * sum.weight.stride_r + w.first_tap * sum.weight.stride_s;
    sum.weight.stride_r *= h.tap_stride;
    sum.weight.stride_s *= w.tap_stride;

    sum.result = {static_cast<char*>(result.data), result.unrounded};
    sum.first_cell = h.first_cell * result.stride[2] + w.first_cell * result.stride[3];
    sum.result_n = result.stride[0];
    sum.result_c = result.stride[1];
    sum.result_h = h.cell_stride * result.stride[2];
    sum.result_w = w.cell_stride * result.stride[3];
    sum.columns = static_cast<int>(columns);
    sum.groups = static_cast<int>(groups);
    return sum;
}

}  // namespace convx::cuda
