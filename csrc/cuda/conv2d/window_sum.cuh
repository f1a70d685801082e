// Window sums, which the forward pass and the input gradient both are: sums over windows of images, with a weight for
// every tap.
#pragma once

#include <algorithm>

#include "cuda/conv2d/gather_axes.h"

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

// The result of a window sum, rounded to the element type, or with the type of the sums where something is still to be
// added. Addresses are pointers: a pointer and an offset beside it would cost the tensor-core tiles the two registers
// that they do not have.
template <class T>
struct SumTarget {
    SumTarget() = default;
    SumTarget(const Tensor& result, const WindowAxis& rows, const WindowAxis& columns)
        : n(result.stride[0]), c(result.stride[1]), h(rows.pixel_stride * result.stride[2]),
          w(columns.pixel_stride * result.stride[3]), unrounded(result.unrounded) {
        data =
            result.as<char>() + (rows.first_pixel * result.stride[2] + columns.first_pixel * result.stride[3]) * item();
    }
    __host__ __device__ int64_t item() const {
        return sizeof(T) < sizeof(Sum<T>) && unrounded ? static_cast<int64_t>(sizeof(Sum<T>)) : int64_t{sizeof(T)};
    }
    __device__ char* at(const Index4& index) const {
        return data + (index.n * n + index.c * c + index.h * h + index.w * w) * item();
    }
    __device__ void put(char* at, Sum<T> value) const {
        if (sizeof(T) < sizeof(Sum<T>) && unrounded)
            *reinterpret_cast<Sum<T>*>(at) = value;
        else
            *reinterpret_cast<T*>(at) = from_sum<T>(value);
    }

    char* data;          // of window position (0, 0)
    int64_t n, c, h, w;  // strides between channels and window positions
    bool unrounded;
};

// What follows a sum.
template <class T>
struct Epilogue {
    Epilogue() = default;
    Epilogue(const Tensor& bias_tensor, bool with_relu)
        : bias(bias_tensor.as<const T>()), bias_stride(bias_tensor.stride[1]), relu(with_relu) {}
    __device__ Sum<T> bias_of(int channel) const { return bias ? to_sum(bias[channel * bias_stride]) : Sum<T>(0); }
    __device__ Sum<T> rectified(Sum<T> sum) const { return relu ? relu_of(sum) : sum; }

    const T* bias;  // of all channels, or null
    int64_t bias_stride;
    bool relu;
};

template <class T>
struct WindowSum {
    ImageGather<T> image;
    TapWeights<T> weight;
    SumTarget<T> result;
    Epilogue<T> epilogue;
    int columns;  // channels of the result in a group
    int groups;

    // Channel 0 of a group at a pixel of the result.
    __device__ char* result_at(int pixel, int group) const {
        const int row = image.columns.quotient(pixel), w = pixel - row * image.columns.value;
        const int n = image.rows.quotient(row);
        return result.at({n, group * columns, row - n * image.rows.value, w});
    }
    // The sum by definition, tap by tap: what lies outside under zeros is skipped, not multiplied. A GEMM multiplies it
    // by zero, and calls this where it gets NaN.
    __device__ Sum<T> exact(int pixel, int group, int column) const {
        ImageGather<T> of_group = image;
        of_group.to_group(group);
        const auto at = of_group.pixel(pixel);
        Sum<T> sum = 0;
        for (auto tap = of_group.tap(0); tap.r < image.h.taps; of_group.advance(tap)) {
            T value;
            if (!of_group.read(at, tap, value)) continue;
            sum = multiply_add(to_sum(value), to_sum(*weight.at(group, column, tap.c, tap.r, tap.s)), sum);
            if (is_nan(sum)) break;  // and stays it
        }
        return sum;
    }
};

// `channels`: of the source, in a group; `columns`: of the result.
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
    sum.result = SumTarget<T>(result, h, w);
    sum.columns = static_cast<int>(columns);
    sum.groups = static_cast<int>(groups);
    return sum;
}

}  // namespace convx::cuda
