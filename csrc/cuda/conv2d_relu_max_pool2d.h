// The training block of the early networks: pool(relu(conv + bias)), and its gradients. The convolution's output lies
// in the workspace, for some images at a time; the backward pass reads one argmax code for each pooled element, 255
// where the ReLU is dead.
#pragma once

#include "cuda/conv2d/conv2d.h"
#include "cuda/max_pool2d/max_pool2d.h"

namespace convx::cuda {

struct FusedPlan {
    int64_t images = 1;          // at a time
    int64_t buffer_bytes = 0;    // the convolution's output, or its gradient
    int64_t pass_bytes = 0;      // the workspace of the passes, one after the other
    int64_t carried_weight = 0;  // bytes of sums over images that are carried on
    int64_t carried_bias = 0;
    ConvPlan forward, grad_input, grad_weight, grad_bias;

    int64_t workspace_bytes() const { return buffer_bytes + pass_bytes + carried_weight + carried_bias; }
};

FusedPlan plan_fused_forward(const FusedProblem& problem, Precision precision);
FusedPlan plan_fused_backward(const FusedProblem& problem, Precision precision, const std::array<bool, 3>& mask);

void conv2d_relu_max_pool2d(const FusedProblem& problem, const FusedPlan& plan, const Tensor& input,
                            const Tensor& weight, const Tensor& bias, const Tensor& output, const Tensor& codes,
                            void* workspace, Stream stream);

// Gradients without data are not computed; the plan was made for those that have it. A code outside its window adds
// nothing.
void conv2d_relu_max_pool2d_backward(const FusedProblem& problem, const FusedPlan& plan, const Tensor& grad_output,
                                     const Tensor& input, const Tensor& weight, const Tensor& codes,
                                     const Tensor& grad_input, const Tensor& grad_weight, const Tensor& grad_bias,
                                     void* workspace, Stream stream);

}  // namespace convx::cuda
