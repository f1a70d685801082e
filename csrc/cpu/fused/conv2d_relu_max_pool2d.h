// The fused training block: pool(relu(conv)), keeping one byte per pooled element for the way back.
#pragma once

#include "common/problem.h"

namespace convx {

// Convolution output that one thread has at a time: some images, or some rows of one.
struct RowBlock {
    int64_t images, rows;
};
RowBlock fused_row_block(const FusedProblem& problem);

template <class T>
void conv2d_relu_max_pool2d(const FusedProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                            TensorView<const T> bias, TensorView<T> output, TensorView<uint8_t> codes);

// Gradients whose data is null are not wanted. Returns false where a code lies outside its window; the gradients are
// then unspecified.
template <class T>
bool conv2d_relu_max_pool2d_backward(const FusedProblem& problem, TensorView<const T> grad_output,
                                     TensorView<const T> input, TensorView<const T> weight,
                                     TensorView<const uint8_t> codes, TensorView<T> grad_input,
                                     TensorView<T> grad_weight, T* grad_bias);

}  // namespace convx
