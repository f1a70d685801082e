// A CUDA device as the bodies of the operations see it: DeviceArrays, and each pass with its plan and its workspace.
#pragma once

#include "bindings/cuda_arrays.h"
#include "cuda/conv2d/per_sample.h"
#include "cuda/conv2d_relu_max_pool2d.h"
#include "cuda/fill.h"
#include "cuda/relu.h"

namespace convx {

cuda::Precision precision_option(const std::string& op, py::handle precision);

class Cuda : public DeviceArrays {
public:
    using DeviceArrays::DeviceArrays;

    struct Weight {
        PyArray array;
        std::nullptr_t prepared;  // the CPU alone prepares weights
    };
    Weight weight(const char* name, py::handle object) { return {input(name, object), nullptr}; }

    void set_precision(Precision precision) { precision_ = precision_option(op_, precision.name); }
    void check_method(const ConvProblem& problem, ConvPass) const;
    void check_planes(const PoolProblem& problem) const { cuda::check_planes(op_, problem); }

    void conv2d_forward(const ConvProblem& problem, const Tensor& input, const Tensor& weight, const Tensor& bias,
                        const Tensor& output, std::nullptr_t) {
        const cuda::ConvPlan plan = planned(problem, ConvPass::forward);
        passes(problem).forward(problem, plan, input, weight, bias, output, workspace(plan), stream());
    }
    void conv2d_grad_input(const ConvProblem& problem, const Tensor& grad_output, const Tensor& weight,
                           const Tensor& grad_input, const Tensor& bias) {
        const cuda::ConvPlan plan = planned(problem, ConvPass::grad_input);
        passes(problem).grad_input(problem, plan, grad_output, weight, bias, grad_input, workspace(plan), stream());
    }
    void conv2d_grad_weight(const ConvProblem& problem, const Tensor& grad_output, const Tensor& input,
                            const Tensor& grad_weight) {
        const cuda::ConvPlan plan = planned(problem, ConvPass::grad_weight);
        passes(problem).grad_weight(problem, plan, grad_output, input, grad_weight, workspace(plan), stream(), {});
    }
    void conv2d_grad_bias(const ConvProblem& problem, const Tensor& grad_output, const Tensor& grad_bias) {
        const cuda::ConvPlan plan = planned(problem, ConvPass::grad_bias);
        passes(problem).grad_bias(problem, plan, grad_output, grad_bias, workspace(plan), stream(), {});
    }

    void per_sample_grad_weight(const ConvProblem& problem, const Tensor& grad_output, const Tensor& input,
                                void* grad_weight) {
        per_sample(problem, ConvPass::grad_weight, grad_output, input, grad_weight, nullptr);
    }
    void per_sample_grad_bias(const ConvProblem& problem, const Tensor& grad_output, void* grad_bias) {
        per_sample(problem, ConvPass::grad_bias, grad_output, {}, grad_bias, nullptr);
    }
    void grad_weight_norms(const ConvProblem& problem, const Tensor& grad_output, const Tensor& input, double* norms) {
        per_sample(problem, ConvPass::grad_weight, grad_output, input, nullptr, norms);
    }
    void grad_bias_norms(const ConvProblem& problem, const Tensor& grad_output, double* norms) {
        per_sample(problem, ConvPass::grad_bias, grad_output, {}, nullptr, norms);
    }

    void fill(DType dtype, const Tensor& output, const Tensor& bias) { cuda::fill(dtype, output, bias, stream()); }

    void relu(const Array& input, const Array& output) { cuda::relu(input, output, stream()); }
    void relu_backward(const Array& grad_output, const Array& output, const Array& grad_input) {
        cuda::relu_backward(grad_output, output, grad_input, stream());
    }
    void relu_mask(const Array& input, const Array& output, const Array& mask) {
        cuda::relu_mask(input, output, mask, stream());
    }
    void relu_mask_backward(const Array& grad_output, const Array& mask, const Array& grad_input) {
        cuda::relu_mask_backward(grad_output, mask, grad_input, stream());
    }

    void max_pool2d(const PoolProblem& problem, const Tensor& input, const Tensor& output, const Tensor& indices,
                    const Tensor& codes) {
        cuda::max_pool2d(problem, input, output, indices, codes, false, stream());
    }
    // Always true: whether a code is illegal is not known before the device has run.
    bool max_pool2d_backward(const PoolProblem& problem, const Tensor& grad_output, const Tensor& argmax, bool by_codes,
                             const Tensor& grad_input);

    void conv2d_relu_max_pool2d(const FusedProblem& problem, const Tensor& input, const Tensor& weight,
                                const Tensor& bias, const Tensor& output, const Tensor& codes) {
        const cuda::FusedPlan plan = cuda::plan_fused_forward(problem, precision_);
        cuda::conv2d_relu_max_pool2d(problem, plan, input, weight, bias, output, codes, workspace(plan), stream());
    }
    bool conv2d_relu_max_pool2d_backward(const FusedProblem& problem, const Tensor& grad_output, const Tensor& input,
                                         const Tensor& weight, const Tensor& codes, const Tensor& grad_input,
                                         const Tensor& grad_weight, const Tensor& grad_bias);

private:
    using DeviceArrays::workspace;
    template <class Plan>
    void* workspace(const Plan& plan) {
        return workspace(plan.workspace_bytes());
    }
    static cuda::ConvPasses passes(const ConvProblem& problem) { return cuda::conv_passes(problem.dtype); }
    cuda::ConvPlan planned(const ConvProblem& problem, ConvPass pass) const {
        return cuda::plan_conv2d(problem, pass, precision_);
    }
    // grad_bias has no input. Gradients, or without these their norms.
    void per_sample(const ConvProblem& problem, ConvPass pass, const Tensor& grad_output, const Tensor& input,
                    void* gradients, double* norms);

    cuda::Precision precision_ = cuda::Precision::ieee;
};

}  // namespace convx
