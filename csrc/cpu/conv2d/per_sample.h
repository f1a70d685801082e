// Gradients of the weight and the bias of each image by itself, for differential privacy and influence functions: the
// gradients of a batch of one, in every bit, and the squares of their norms.
#pragma once

#include "common/problem.h"
#include "cpu/conv2d/methods.h"

namespace convx {

// grad_weight: dense N, K, C/G, R, S; grad_bias: dense N, K.
template <class T>
void conv2d_per_sample_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output,
                                   TensorView<const T> input, T* grad_weight);
template <class T>
void conv2d_per_sample_grad_bias(TensorView<const T> grad_output, T* grad_bias);

// The sums of the squares, N each, in float64; one gradient at a time for each thread, or none (the ghost norm).
template <class T>
void conv2d_grad_weight_norms(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                              double* norms);
template <class T>
void conv2d_grad_bias_norms(TensorView<const T> grad_output, double* norms);

PassPlan plan_per_sample_grad_weight(const ConvProblem& problem, const Kernels& kernels, int threads);
PassPlan plan_per_sample_grad_bias(const ConvProblem& problem, const Kernels& kernels, int threads);
PassPlan plan_grad_weight_norms(const ConvProblem& problem, const Kernels& kernels, int threads);
PassPlan plan_grad_bias_norms(const ConvProblem& problem, const Kernels& kernels, int threads);

}  // namespace convx
