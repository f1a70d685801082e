// The passes, each handed to the method that the plan chose.
#include "cpu/conv2d/conv2d.h"

#include <algorithm>

#include "cpu/conv2d/methods.h"
#include "cpu/conv2d/plan.h"

namespace convx {

template <class T>
void conv2d_forward(const ConvProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                    TensorView<const T> bias, TensorView<T> output) {
    switch (choose_method(problem, ConvPass::forward)) {
        case ConvMethod::winograd:
            return winograd_forward(problem, input, weight, bias, output);
        case ConvMethod::grouped:
            return grouped_forward(problem, input, weight, bias, output);
        case ConvMethod::few_channels:
            return few_channels_forward(problem, input, weight, bias, output);
        default:
            return gemm_forward(problem, input, weight, bias, output);
    }
}

template <class T>
void conv2d_grad_input(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> weight,
                       TensorView<T> grad_input, TensorView<const T> bias) {
    switch (choose_method(problem, ConvPass::grad_input)) {
        case ConvMethod::winograd:
            return winograd_grad_input(problem, grad_output, weight, grad_input, bias);
        case ConvMethod::grouped:
            return grouped_grad_input(problem, grad_output, weight, grad_input, bias);
        case ConvMethod::few_channels:
            return few_channels_grad_input(problem, grad_output, weight, grad_input, bias);
        default:
            return gemm_grad_input(problem, grad_output, weight, grad_input, bias);
    }
}

template <class T>
void conv2d_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                        TensorView<T> grad_weight) {
    const int64_t size = grad_weight.size();
    if (size == 0) return;
    if (problem.batch == 0) return std::fill(grad_weight.data, grad_weight.data + size, T(0)), void();
    switch (choose_method(problem, ConvPass::grad_weight)) {
        case ConvMethod::grouped:
            return grouped_grad_weight(problem, grad_output, input, grad_weight);
        case ConvMethod::winograd:
            return winograd_grad_weight(problem, grad_output, input, grad_weight);
        case ConvMethod::few_channels:
            return few_channels_grad_weight(problem, grad_output, input, grad_weight);
        default:
            return gemm_grad_weight(problem, grad_output, input, grad_weight);
    }
}

template void conv2d_forward(const ConvProblem&, TensorView<const float>, TensorView<const float>,
                             TensorView<const float>, TensorView<float>);
template void conv2d_forward(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                             TensorView<const double>, TensorView<double>);
template void conv2d_grad_input(const ConvProblem&, TensorView<const float>, TensorView<const float>, TensorView<float>,
                                TensorView<const float>);
template void conv2d_grad_input(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                                TensorView<double>, TensorView<const double>);
template void conv2d_grad_weight(const ConvProblem&, TensorView<const float>, TensorView<const float>,
                                 TensorView<float>);
template void conv2d_grad_weight(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                                 TensorView<double>);

}  // namespace convx
