// Max-pooling over views of any strides: values, int64 indices or one-byte window codes, and both gradients.
#pragma once

#include "common/problem.h"

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

}  // namespace convx
