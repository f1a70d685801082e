// ReLU and its gradient over arrays of any rank and strides. In place is legal: every element is read before it is
// written, by the same thread.
#pragma once

#include "common/shape.h"
#include "common/tensor_view.h"
#include "cuda/stream.h"

namespace convx::cuda {

struct StridedArray {
    void* data;
    Shape stride;  // elements
};

void relu(DType dtype, const Shape& shape, const StridedArray& input, const StridedArray& output, Stream stream);
// `output` is that of the forward pass.
void relu_backward(DType dtype, const Shape& shape, const StridedArray& grad_output, const StridedArray& output,
                   const StridedArray& grad_input, Stream stream);

// With one bit an element, in row-major order of the axes: ceil(elements / 8) bytes, dense where they are written.
void relu_mask(DType dtype, const Shape& shape, const StridedArray& input, const StridedArray& output, uint8_t* mask,
               Stream stream);
void relu_mask_backward(DType dtype, const Shape& shape, const StridedArray& grad_output, const uint8_t* mask,
                        int64_t mask_stride, const StridedArray& grad_input, Stream stream);

}  // namespace convx::cuda
