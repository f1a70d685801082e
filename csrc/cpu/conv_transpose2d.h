// The transposed convolution on the CPU: the passes of conv2d in other roles. Its output is the input gradient of the
// convolution (plus a bias), its input gradient the convolution itself, its weight gradient the same one. Everything is
// validated by the caller (common/check.h).
#pragma once

#include "common/problem.h"

namespace convx {

// Views in logical N, C, H, W order with any strides; weight is C, K/G, R, S; bias is a 4-D view of shape (1, K, 1, 1)
// with data null for none. Outputs are overwritten.
template <class T>
void conv_transpose2d_forward(const ConvTransposeProblem& problem, TensorView<const T> input,
                              TensorView<const T> weight, TensorView<const T> bias, TensorView<T> output);
template <class T>
void conv_transpose2d_grad_input(const ConvTransposeProblem& problem, TensorView<const T> grad_output,
                                 TensorView<const T> weight, TensorView<T> grad_input);
template <class T>
void conv_transpose2d_grad_weight(const ConvTransposeProblem& problem, TensorView<const T> grad_output,
                                  TensorView<const T> input, TensorView<T> grad_weight);  // dense C, K/G, R, S

}  // namespace convx
