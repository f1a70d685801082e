#include "cpu/conv_transpose2d.h"

#include <algorithm>

#include "cpu/conv2d/conv2d.h"

namespace convx {

namespace {

// The rows and columns that the convolution has as its input.
template <class T>
TensorView<T> reached(const ConvTransposeProblem& problem, TensorView<T> output) {
    output.shape[2] = problem.conv.h.input;
    output.shape[3] = problem.conv.w.input;
    return output;
}

// Rows from first_row on and columns from first_column on: the bias alone. Few cells, unless the input has no channel.
template <class T>
void fill_with_bias(TensorView<T> output, TensorView<const T> bias, int64_t first_row, int64_t first_column) {
    const auto [batch, channels, height, width] = output.shape;
    for (int64_t n = 0; n < batch; ++n)
        for (int64_t k = 0; k < channels; ++k) {
            const T value = bias.data ? bias.data[k * bias.stride[1]] : T(0);
            for (int64_t h = 0; h < height; ++h)
                for (int64_t w = h < first_row ? first_column : 0; w < width; ++w) *output.at(n, k, h, w) = value;
        }
}

template <class T>
void fill_zero(TensorView<T> view) {
    fill_with_bias<T>(view, {}, 0, 0);
}

}  // namespace

template <class T>
void conv_transpose2d_forward(const ConvTransposeProblem& problem, TensorView<const T> input,
                              TensorView<const T> weight, TensorView<const T> bias, TensorView<T> output) {
    const ConvProblem& conv = problem.conv;
    if (problem.is_empty()) return fill_with_bias(output, bias, 0, 0);
    conv2d_grad_input(conv, input, weight, reached(problem, output), bias);
    if (conv.h.input < problem.out_h || conv.w.input < problem.out_w)
        fill_with_bias(output, bias, conv.h.input, conv.w.input);
}

template <class T>
void conv_transpose2d_grad_input(const ConvTransposeProblem& problem, TensorView<const T> grad_output,
                                 TensorView<const T> weight, TensorView<T> grad_input) {
    if (problem.is_empty()) return fill_zero(grad_input);
    conv2d_forward<T>(problem.conv, reached(problem, grad_output), weight, {}, grad_input);
}

template <class T>
void conv_transpose2d_grad_weight(const ConvTransposeProblem& problem, TensorView<const T> grad_output,
                                  TensorView<const T> input, TensorView<T> grad_weight) {
    if (problem.is_empty()) return fill_zero(grad_weight);
    conv2d_grad_weight(problem.conv, input, reached(problem, grad_output), grad_weight);
}

template void conv_transpose2d_forward(const ConvTransposeProblem&, TensorView<const float>, TensorView<const float>,
                                       TensorView<const float>, TensorView<float>);
template void conv_transpose2d_forward(const ConvTransposeProblem&, TensorView<const double>, TensorView<const double>,
                                       TensorView<const double>, TensorView<double>);
template void conv_transpose2d_grad_input(const ConvTransposeProblem&, TensorView<const float>, TensorView<const float>,
                                          TensorView<float>);
template void conv_transpose2d_grad_input(const ConvTransposeProblem&, TensorView<const double>,
                                          TensorView<const double>, TensorView<double>);
template void conv_transpose2d_grad_weight(const ConvTransposeProblem&, TensorView<const float>,
                                           TensorView<const float>, TensorView<float>);
template void conv_transpose2d_grad_weight(const ConvTransposeProblem&, TensorView<const double>,
                                           TensorView<const double>, TensorView<double>);

}  // namespace convx
