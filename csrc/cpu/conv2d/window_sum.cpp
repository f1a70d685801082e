#include "cpu/conv2d/window_sum.h"

#include "cpu/runtime/run_tasks.h"

namespace convx {

template <class T>
WindowSum<T> forward_sum(const ConvProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                         TensorView<const T> bias, TensorView<T> output) {
    WindowSum<T> sum{};
    sum.problem = &problem;
    sum.pass = ConvPass::forward;
    sum.batch = problem.batch;
    sum.groups = problem.groups;
    sum.channels = problem.group_in();
    sum.rows = problem.group_out();
    sum.source = input;
    sum.dest = output;
    sum.set_weight(weight);
    sum.bias = bias.data;
    sum.bias_stride = bias.stride[1];
    sum.relu = problem.relu;
    sum.border = forward_border(problem);
    return sum;
}

template <class T>
WindowSum<T> grad_input_sum(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> weight,
                            TensorView<T> grad_input, TensorView<const T> bias) {
    WindowSum<T> sum{};
    sum.problem = &problem;
    sum.pass = ConvPass::grad_input;
    sum.batch = problem.batch;
    sum.groups = problem.groups;
    sum.channels = problem.group_out();
    sum.rows = problem.group_in();
    sum.source = grad_output;
    sum.dest = grad_input;
    sum.set_weight(weight);
    sum.bias = bias.data;
    sum.bias_stride = bias.stride[1];
    // Inputs at the edge lie under taps of windows that do not exist.
    const auto reads_outside = [](const Axis& axis) { return axis.extent() > 1 || axis.pad_before > 0; };
    sum.border = {reads_outside(problem.h) || reads_outside(problem.w), false, 0.0};
    return sum;
}

template <class T>
WindowSum<T> described_sum(const ConvProblem& problem, ConvPass pass) {
    const auto dense = [&](auto type, const std::array<int64_t, 4>& shape) {
        return TensorView<decltype(type)>{nullptr, shape, dense_strides(shape, problem.channels_last)};
    };
    const TensorView<T> input = dense(T(), problem.input_shape()), output = dense(T(), problem.output_shape());
    TensorView<const T> weight{nullptr, problem.weight_shape(), dense_strides(problem.weight_shape(), false)};
    if (pass == ConvPass::forward) return forward_sum<T>(problem, input, weight, {}, output);
    return grad_input_sum<T>(problem, output, weight, input, {});
}

template <class T>
void fill_with_bias(const WindowSum<T>& sum) {
    const auto [batch, channels, height, width] = sum.dest.shape;
    const bool channels_inside = sum.dest.stride[1] == 1;
    const auto value = [&](int64_t row) {
        const T bias = sum.bias ? sum.bias[row * sum.bias_stride] : T(0);
        return sum.relu && bias <= T(0) ? T(0) : bias;
    };
    const int64_t planes = channels_inside ? height : channels;
    parallel_for(batch * planes, parallel_width(8 * sum.dest.size()),
                 [&, channels = channels, height = height, width = width](int64_t task, int) {
                     const int64_t n = task / planes, plane = task % planes;
                     if (channels_inside) {
                         for (int64_t w = 0; w < width; ++w)
                             for (int64_t c = 0; c < channels; ++c) sum.dest.at(n, 0, plane, w)[c] = value(c);
                         return;
                     }
                     for (int64_t h = 0; h < height; ++h)
                         for (int64_t w = 0; w < width; ++w) *sum.dest.at(n, plane, h, w) = value(plane);
                 });
}

template WindowSum<float> forward_sum(const ConvProblem&, TensorView<const float>, TensorView<const float>,
                                      TensorView<const float>, TensorView<float>);
template WindowSum<double> forward_sum(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                                       TensorView<const double>, TensorView<double>);
template WindowSum<float> grad_input_sum(const ConvProblem&, TensorView<const float>, TensorView<const float>,
                                         TensorView<float>, TensorView<const float>);
template WindowSum<double> grad_input_sum(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                                          TensorView<double>, TensorView<const double>);
template WindowSum<float> described_sum(const ConvProblem&, ConvPass);
template WindowSum<double> described_sum(const ConvProblem&, ConvPass);
template void fill_with_bias(const WindowSum<float>&);
template void fill_with_bias(const WindowSum<double>&);

}  // namespace convx
