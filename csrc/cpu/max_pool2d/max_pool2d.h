// Max-pooling over views of any strides: values, int64 indices or one-byte window codes, and both gradients.
#pragma once

#include <string_view>

#include "common/problem.h"
#include "cpu/kernels/kernel_set.h"
#include "cpu/pass_plan.h"

namespace convx {

// The index of a window without a tap inside the image (dilation can carry one over a small image): no gradient.
constexpr int64_t no_gradient_index = -1;

// Indices and codes are written where their data is not null.
template <class T>
void max_pool2d(const PoolProblem& problem, TensorView<const T> input, TensorView<T> output,
                TensorView<int64_t> indices, TensorView<uint8_t> codes);

// Every element of grad_input is written; the gradients of a cell are added in row-major order of the windows.
// Returns false, with grad_input unspecified, where an index lies outside the plane or a code names no tap of its
// window inside the image. no_gradient_code is legal everywhere, no_gradient_index for windows without a tap alone.
template <class T>
bool max_pool2d_backward(const PoolProblem& problem, TensorView<const T> grad_output, TensorView<const int64_t> indices,
                         TensorView<T> grad_input);
template <class T>
bool max_pool2d_backward(const PoolProblem& problem, TensorView<const T> grad_output, TensorView<const uint8_t> codes,
                         TensorView<T> grad_input);

// What would run, for convx.explain: for arrays that are dense in the layout of the problem. By indices or codes; in
// the forward pass, neither is possible.
enum class Argmax { none, indices, codes };
PassPlan plan_max_pool2d(const PoolProblem& problem, bool backward, Argmax argmax, const Kernels& kernels, int threads);

// For tests: the method that computes every pass that it supports; any other name: the first that suits.
void set_max_pool2d_method(std::string_view name);

}  // namespace convx
