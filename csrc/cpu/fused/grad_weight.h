// The weight and bias gradients of the fused block from the pooled gradient itself.
#pragma once

#include "cpu/fused/conv2d_relu_max_pool2d.h"
#include "cpu/pass_plan.h"

namespace convx {

// Max-pooling leaves a gradient to one pixel of each window: with 2x2 windows to a quarter of them. Where the weight
// gradient had better sum over these alone than over all pixels.
bool sums_selected_pixels(const FusedProblem& problem);

// The gradients whose data is not null; codes are legal. Returns false where the input or a gradient is inf or NaN:
// zeros times these, which are not summed here, would be NaN. The weight gradient is then unspecified, that of the bias
// is right.
template <class T>
bool selected_pixels_grad_weight(const FusedProblem& problem, TensorView<const T> grad_output,
                                 TensorView<const T> input, TensorView<const uint8_t> codes, TensorView<T> grad_weight,
                                 T* grad_bias);

// Turns the plan of the dense gradient, made for plan.threads, into that of this one.
void describe_selected_pixels(const FusedProblem& problem, PassPlan& plan);

}  // namespace convx
