// ReLU and its gradient over arrays of any axes and strides. In place is legal: every element is read before it is
// written, by the same thread.
#pragma once

#include "common/array.h"
#include "cuda/stream.h"

namespace convx::cuda {

void relu(const Array& input, const Array& output, Stream stream);
// `output` is that of the forward pass.
void relu_backward(const Array& grad_output, const Array& output, const Array& grad_input, Stream stream);

// With one bit an element, in row-major order of the axes: ceil(elements / 8) bytes, dense where they are written.
void relu_mask(const Array& input, const Array& output, const Array& mask, Stream stream);
void relu_mask_backward(const Array& grad_output, const Array& mask, const Array& grad_input, Stream stream);

}  // namespace convx::cuda
