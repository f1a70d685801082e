// The weight gradient: a sum over the pixels of the whole batch,
//
//   grad_weight[k, c, r, s] = sum over n, p, q of grad_output[n, k, p, q] * input[n, c, h(r, p), w(s, q)]
#pragma once

#include "common/problem.h"
#include "cpu/conv2d/axis_table.h"
#include "cpu/kernels/kernel_set.h"

namespace convx {

template <class T>
struct PixelSum {
    using Element = T;

    const ConvProblem* problem;
    TensorView<const T> grad_output, input;
    TensorView<T> grad_weight;  // dense K, C/G, R, S
    Border border;

    T pad() const { return static_cast<T>(border.value); }
    int64_t weights() const { return problem->out_channels * problem->group_in() * problem->taps(); }
};

template <class T>
PixelSum<T> pixel_sum(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                      TensorView<T> grad_weight) {
    return {&problem, grad_output, input, grad_weight, forward_border(problem)};
}

// Over dense arrays of the problem's layout, without data.
template <class T>
PixelSum<T> described_pixel_sum(const ConvProblem& problem) {
    const auto dense = [&](const std::array<int64_t, 4>& shape, bool channels_last) {
        return TensorView<T>{nullptr, shape, dense_strides(shape, channels_last)};
    };
    return pixel_sum<T>(problem, dense(problem.output_shape(), problem.channels_last),
                        dense(problem.input_shape(), problem.channels_last), dense(problem.weight_shape(), false));
}

}  // namespace convx
