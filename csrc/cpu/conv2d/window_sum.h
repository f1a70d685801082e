// Forward and the input gradient as one sum over windows, which every method of these passes computes:
//
//   dest[n, row, i, j] = relu(bias[row] + sum over channel, tap of
//                             weight[row, channel, tap] * source[n, channel, h(tap, i), w(tap, j)])
//
// Forward: source is the input, rows are output channels. Input gradient: source is grad_output, rows are input
// channels, and a stride splits dest into phases with taps of their own (axis_map.h): dense sums without
// multiplications by inserted zeros.
#pragma once

#include <utility>

#include "common/conv_pass.h"
#include "common/problem.h"
#include "cpu/conv2d/axis_map.h"
#include "cpu/kernels/kernel_set.h"

namespace convx {

template <class T>
struct PackedWeight;

template <class T>
struct WindowSum {
    using Element = T;

    const ConvProblem* problem;  // grad_input: with borders of zeros alone (unfolded in conv2d.cpp)
    ConvPass pass;
    int64_t batch, groups;
    int64_t channels, rows;  // of a group: summed over, and written
    TensorView<const T> source;
    TensorView<T> dest;
    TensorView<const T> weight_view;
    const T* weight;
    int64_t weight_group, weight_row, weight_channel, weight_h, weight_w;  // strides
    const T* bias;                                                         // groups * rows values, or null
    int64_t bias_stride;
    bool relu;
    Border border;
    const PackedWeight<T>* packed = nullptr;  // the weight once more, as this method has packed it (conv2d.h)

    void set_weight(TensorView<const T> view) {
        weight_view = view;
        weight = view.data;
        weight_group = problem->group_out() * view.stride[0];
        weight_row = view.stride[forward() ? 0 : 1];
        weight_channel = view.stride[forward() ? 1 : 0];
        weight_h = view.stride[2];
        weight_w = view.stride[3];
    }
    bool forward() const { return pass == ConvPass::forward; }
    T pad() const { return static_cast<T>(border.value); }
    int64_t flops() const { return problem->flops(); }
};

// Data may be null: then the sum only describes the problem.
template <class T>
WindowSum<T> window_sum(const ConvProblem& problem, ConvPass pass, TensorView<const T> source,
                        TensorView<const T> weight, TensorView<const T> bias, TensorView<T> dest) {
    WindowSum<T> sum{};
    sum.problem = &problem;
    sum.pass = pass;
    sum.batch = problem.batch;
    sum.groups = problem.groups;
    sum.channels = sum.forward() ? problem.group_in() : problem.group_out();
    sum.rows = sum.forward() ? problem.group_out() : problem.group_in();
    sum.source = source;
    sum.dest = dest;
    sum.set_weight(weight);
    sum.bias = bias.data;
    sum.bias_stride = bias.stride[1];
    sum.relu = sum.forward() && problem.relu;
    sum.border = sum.forward() ? forward_border(problem) : grad_input_border(problem);
    return sum;
}

// Over dense arrays of the problem's layout.
template <class T>
WindowSum<T> described_sum(const ConvProblem& problem, ConvPass pass) {
    TensorView<T> source = dense_view<T>(nullptr, problem.input_shape(), problem.channels_last);
    TensorView<T> dest = dense_view<T>(nullptr, problem.output_shape(), problem.channels_last);
    if (pass == ConvPass::grad_input) std::swap(source, dest);
    return window_sum<T>(problem, pass, source, dense_view<T>(nullptr, problem.weight_shape(), false), {}, dest);
}

// An empty sum everywhere: the bias alone.
template <class T>
void fill_with_bias(const WindowSum<T>& sum);

// --- the weight gradient: a sum over the pixels of the whole batch ---
//
//   grad_weight[k, c, r, s] = sum over n, p, q of grad_output[n, k, p, q] * input[n, c, h(r, p), w(s, q)]

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

template <class T>
PixelSum<T> described_pixel_sum(const ConvProblem& problem) {
    const bool last = problem.channels_last;
    return pixel_sum<T>(problem, dense_view<T>(nullptr, problem.output_shape(), last),
                        dense_view<T>(nullptr, problem.input_shape(), last),
                        dense_view<T>(nullptr, problem.weight_shape(), false));
}

}  // namespace convx
