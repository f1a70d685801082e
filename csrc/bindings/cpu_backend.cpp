#include "bindings/cpu_backend.h"

#include "bindings/prepared_weight.h"
#include "cpu/conv2d/conv2d.h"
#include "cpu/conv2d/window_sum.h"
#include "cpu/dispatch.h"
#include "cpu/fused/conv2d_relu_max_pool2d.h"
#include "cpu/max_pool2d/max_pool2d.h"

namespace convx {

Cpu::Weight Cpu::weight(const char* name, py::handle object) {
    const PreparedWeight* const prepared = prepared_weight(object);
    return {prepared ? prepared->weight() : input(name, object), prepared};
}

void Cpu::check_method(const ConvProblem& problem, ConvPass pass) const { expect_method(op_, problem, pass); }

void Cpu::conv2d_forward(const ConvProblem& problem, const Tensor& input, const Tensor& weight, const Tensor& bias,
                         const Tensor& output, const PreparedWeight* prepared) {
    dispatch(problem.dtype, [&](auto zero) {
        using T = decltype(zero);
        convx::conv2d_forward<T>(problem, input, weight, bias, output, prepared ? &prepared->packed<T>() : nullptr);
    });
}

void Cpu::conv2d_grad_input(const ConvProblem& problem, const Tensor& grad_output, const Tensor& weight,
                            const Tensor& grad_input, const Tensor& bias) {
    dispatch(problem.dtype, [&](auto zero) {
        convx::conv2d_grad_input<decltype(zero)>(problem, grad_output, weight, grad_input, bias);
    });
}

void Cpu::conv2d_grad_weight(const ConvProblem& problem, const Tensor& grad_output, const Tensor& input,
                             const Tensor& grad_weight) {
    dispatch(problem.dtype,
             [&](auto zero) { convx::conv2d_grad_weight<decltype(zero)>(problem, grad_output, input, grad_weight); });
}

void Cpu::conv2d_grad_bias(const ConvProblem& problem, const Tensor& grad_output, const Tensor& grad_bias) {
    dispatch(problem.dtype,
             [&](auto zero) { convx::conv2d_grad_bias<decltype(zero)>(grad_output, grad_bias.as<decltype(zero)>()); });
}

void Cpu::per_sample_grad_weight(const ConvProblem& problem, const Tensor& grad_output, const Tensor& input,
                                 void* grad_weight) {
    dispatch(problem.dtype, [&](auto zero) {
        using T = decltype(zero);
        conv2d_per_sample_grad_weight<T>(problem, grad_output, input, static_cast<T*>(grad_weight));
    });
}

void Cpu::per_sample_grad_bias(const ConvProblem& problem, const Tensor& grad_output, void* grad_bias) {
    dispatch(problem.dtype, [&](auto zero) {
        using T = decltype(zero);
        conv2d_per_sample_grad_bias<T>(grad_output, static_cast<T*>(grad_bias));
    });
}

void Cpu::grad_weight_norms(const ConvProblem& problem, const Tensor& grad_output, const Tensor& input, double* norms) {
    dispatch(problem.dtype,
             [&](auto zero) { conv2d_grad_weight_norms<decltype(zero)>(problem, grad_output, input, norms); });
}

void Cpu::grad_bias_norms(const ConvProblem& problem, const Tensor& grad_output, double* norms) {
    dispatch(problem.dtype, [&](auto zero) { conv2d_grad_bias_norms<decltype(zero)>(grad_output, norms); });
}

void Cpu::fill(DType dtype, const Tensor& output, const Tensor& bias) {
    dispatch(dtype, [&](auto zero) {
        WindowSum<decltype(zero)> sum{};
        sum.dest = output;
        sum.bias = bias.as<decltype(zero)>();
        sum.bias_stride = bias.stride[1];
        fill_with_bias(sum);
    });
}

void Cpu::max_pool2d(const PoolProblem& problem, const Tensor& input, const Tensor& output, const Tensor& indices,
                     const Tensor& codes) {
    dispatch(problem.dtype,
             [&](auto zero) { convx::max_pool2d<decltype(zero)>(problem, input, output, indices, codes); });
}

bool Cpu::max_pool2d_backward(const PoolProblem& problem, const Tensor& grad_output, const Tensor& chosen,
                              bool by_codes, const Tensor& grad_input) {
    return dispatch(problem.dtype, [&](auto zero) {
        using T = decltype(zero);
        if (by_codes)
            return convx::max_pool2d_backward<T>(problem, grad_output, TensorView<const uint8_t>(chosen), grad_input);
        return convx::max_pool2d_backward<T>(problem, grad_output, TensorView<const int64_t>(chosen), grad_input);
    });
}

void Cpu::conv2d_relu_max_pool2d(const FusedProblem& problem, const Tensor& input, const Tensor& weight,
                                 const Tensor& bias, const Tensor& output, const Tensor& codes) {
    dispatch(problem.conv.dtype, [&](auto zero) {
        convx::conv2d_relu_max_pool2d<decltype(zero)>(problem, input, weight, bias, output, codes);
    });
}

bool Cpu::conv2d_relu_max_pool2d_backward(const FusedProblem& problem, const Tensor& grad_output, const Tensor& input,
                                          const Tensor& weight, const Tensor& codes, const Tensor& grad_input,
                                          const Tensor& grad_weight, const Tensor& grad_bias) {
    return dispatch(problem.conv.dtype, [&](auto zero) {
        using T = decltype(zero);
        return convx::conv2d_relu_max_pool2d_backward<T>(problem, grad_output, input, weight, codes, grad_input,
                                                         grad_weight, grad_bias.as<T>());
    });
}

}  // namespace convx
