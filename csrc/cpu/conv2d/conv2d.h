// The convolution passes on the CPU. Everything is validated by the caller (common/check.h).
#pragma once

#include "common/problem.h"
#include "cpu/conv2d/packed_weight.h"

namespace convx {

// Views in logical N, C, H, W order with any strides; bias is a 4-D view of shape (1, K, 1, 1) with data null for none.
// Outputs are overwritten. `packed`: the weight once more, as pack_weight made it, or null.
template <class T>
void conv2d_forward(const ConvProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                    TensorView<const T> bias, TensorView<T> output, const PackedWeight<T>* packed = nullptr);

// With a bias for each input channel, as a transposed convolution has it; problems that fold (problem.h) take none.
template <class T>
void conv2d_grad_input(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> weight,
                       TensorView<T> grad_input, TensorView<const T> bias = {});

template <class T>
void conv2d_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                        TensorView<T> grad_weight);  // dense K, C/G, R, S

// Sums over all but the channels.
template <class T>
void conv2d_grad_bias(TensorView<const T> grad_output, T* grad_bias);

}  // namespace convx
