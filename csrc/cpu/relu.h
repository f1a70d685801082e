// ReLU over arrays of any axes and strides. In place is legal: the same memory with the same strides.
#pragma once

#include "common/array.h"

namespace convx {

// output = input where not (input <= 0), else 0: a NaN stays.
void relu(const Array& input, const Array& output);

// grad_input = grad_output where not (output <= 0), else 0. grad_input may be grad_output.
void relu_backward(const Array& grad_output, const Array& output, const Array& grad_input);

// With a mask of one bit an element, in row-major order of the axes: ceil(size / 8) bytes, the bits behind the last are
// zero.
void relu_mask(const Array& input, const Array& output, const Array& mask);

// grad_input = grad_output where the bit is set, else 0.
void relu_mask_backward(const Array& grad_output, const Array& mask, const Array& grad_input);

}  // namespace convx
