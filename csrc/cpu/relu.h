// ReLU over arrays of any strides. In place is legal: the same memory with the same strides.
#pragma once

#include "common/tensor_view.h"

namespace convx {

// output = input where not (input <= 0), else 0: a NaN stays.
template <class T>
void relu(TensorView<const T> input, TensorView<T> output);

// grad_input = grad_output where not (output <= 0), else 0. grad_input may be grad_output.
template <class T>
void relu_backward(TensorView<const T> grad_output, TensorView<const T> output, TensorView<T> grad_input);

}  // namespace convx
