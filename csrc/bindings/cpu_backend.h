// The CPU as the bodies of the operations see it: HostArrays, and each pass by the element type of its problem.
#pragma once

#include "bindings/host_arrays.h"
#include "common/conv_pass.h"
#include "cpu/relu.h"

namespace convx {

class PreparedWeight;

class Cpu : public HostArrays {
public:
    using HostArrays::HostArrays;

    struct Weight {
        PyArray array;
        const PreparedWeight* prepared;  // or null
    };
    Weight weight(const char* name, py::handle object);

    void set_precision(Precision) {}
    void check_method(const ConvProblem& problem, ConvPass pass) const;
    void check_planes(const PoolProblem&) const {}

    // Tensors without data stand for operands and gradients that there are not.
    static void conv2d_forward(const ConvProblem& problem, const Tensor& input, const Tensor& weight,
                               const Tensor& bias, const Tensor& output, const PreparedWeight* prepared);
    static void conv2d_grad_input(const ConvProblem& problem, const Tensor& grad_output, const Tensor& weight,
                                  const Tensor& grad_input, const Tensor& bias);
    static void conv2d_grad_weight(const ConvProblem& problem, const Tensor& grad_output, const Tensor& input,
                                   const Tensor& grad_weight);
    static void conv2d_grad_bias(const ConvProblem& problem, const Tensor& grad_output, const Tensor& grad_bias);

    static void per_sample_grad_weight(const ConvProblem& problem, const Tensor& grad_output, const Tensor& input,
                                       void* grad_weight);
    static void per_sample_grad_bias(const ConvProblem& problem, const Tensor& grad_output, void* grad_bias);
    static void grad_weight_norms(const ConvProblem& problem, const Tensor& grad_output, const Tensor& input,
                                  double* norms);
    static void grad_bias_norms(const ConvProblem& problem, const Tensor& grad_output, double* norms);

    // A value for each channel, zeros without a bias.
    static void fill(DType dtype, const Tensor& output, const Tensor& bias);

    static void relu(const Array& input, const Array& output) { convx::relu(input, output); }
    static void relu_backward(const Array& grad_output, const Array& output, const Array& grad_input) {
        convx::relu_backward(grad_output, output, grad_input);
    }
    static void relu_mask(const Array& input, const Array& output, const Array& mask) {
        convx::relu_mask(input, output, mask);
    }
    static void relu_mask_backward(const Array& grad_output, const Array& mask, const Array& grad_input) {
        convx::relu_mask_backward(grad_output, mask, grad_input);
    }

    static void max_pool2d(const PoolProblem& problem, const Tensor& input, const Tensor& output, const Tensor& indices,
                           const Tensor& codes);
    // False where an index or a code points outside; the gradients are then unspecified.
    static bool max_pool2d_backward(const PoolProblem& problem, const Tensor& grad_output, const Tensor& chosen,
                                    bool by_codes, const Tensor& grad_input);

    static void conv2d_relu_max_pool2d(const FusedProblem& problem, const Tensor& input, const Tensor& weight,
                                       const Tensor& bias, const Tensor& output, const Tensor& codes);
    static bool conv2d_relu_max_pool2d_backward(const FusedProblem& problem, const Tensor& grad_output,
                                                const Tensor& input, const Tensor& weight, const Tensor& codes,
                                                const Tensor& grad_input, const Tensor& grad_weight,
                                                const Tensor& grad_bias);
};

}  // namespace convx
