// The transposed convolution on CUDA: the passes of conv2d in other roles. Its output is the input gradient of the
// convolution (plus a bias), its input gradient the convolution itself, its weight gradient the same one. Plans are
// those of these passes for problem.conv, and of problem.bias_sum() for the bias gradient, which is conv2d_grad_bias.
#pragma once

#include "cuda/conv2d/conv2d.h"

namespace convx::cuda {

// Where problem.is_empty(), no plan is needed and the workspace may be null.
void conv_transpose2d_forward(const ConvTransposeProblem& problem, const ConvPlan& plan, const DeviceTensor& input,
                              const DeviceTensor& weight, const DeviceTensor& bias, const DeviceTensor& output,
                              void* workspace, Stream stream);
void conv_transpose2d_grad_input(const ConvTransposeProblem& problem, const ConvPlan& plan,
                                 const DeviceTensor& grad_output, const DeviceTensor& weight,
                                 const DeviceTensor& grad_input, void* workspace, Stream stream);
void conv_transpose2d_grad_weight(const ConvTransposeProblem& problem, const ConvPlan& plan,
                                  const DeviceTensor& grad_output, const DeviceTensor& input,
                                  const DeviceTensor& grad_weight, void* workspace, Stream stream);

}  // namespace convx::cuda
