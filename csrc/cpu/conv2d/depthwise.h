// Depthwise convolutions without staging (grouped.cpp), straight from and to arrays whose columns or channels are
// adjacent. The order of every sum is that of the staged nest: the same bits, whichever runs.
#pragma once

#include "cpu/conv2d/grouped.h"

namespace convx {

// What the tables of a GroupedConv say, for a window that the planes' kernel takes.
struct DepthwiseWindow {
    int64_t kernel, stride;  // of both axes
    int64_t pad_top, pad_left;
    bool flipped;  // weights from the last to the first
    bool adjoint;  // of a window with stride 2: the padding is that of the forward pass
};

// False where the strides of the arrays do not allow it: nothing has been done then.
template <class T>
bool run_depthwise_planes(const DepthwiseWindow& window, const GroupedConv<T>& conv, const KernelSet<T>& kernels);
template <class T>
bool run_depthwise_pixels(const GroupedConv<T>& conv, const KernelSet<T>& kernels);

// The weight gradient of all channels, [channel][tap] (depthwise_grad_weight_can_run in plan.h).
template <class T>
void depthwise_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                           T* grad_weight, const KernelSet<T>& kernels);

}  // namespace convx
