// Depthwise convolutions without staging (grouped.cpp), straight from and to arrays whose columns or channels are
// adjacent. The order of every sum is that of the staged nest: the same bits, whichever runs.
#pragma once

#include "common/rounding.h"
#include "cpu/conv2d/grouped.h"

namespace convx {

// What the tables of a GroupedConv say, for a window that the planes' kernel takes.
struct DepthwiseWindow {
    int64_t kernel, stride;  // of both axes
    int64_t pad_top, pad_left;
    bool flipped;  // weights from the last to the first
    bool adjoint;  // of a window with stride 2: the padding is that of the forward pass
};

// Masked lanes reach this far beyond the row of zeros, at most. They must not lie in a page that is not there: though
// nothing is read, each such load would cost 100 ns.
constexpr int64_t masked_elements = 64;
inline int64_t depthwise_planes_scratch(int64_t source_columns, int64_t item_bytes) {
    return cache_lines((source_columns + 2 * masked_elements) * item_bytes);
}

// False where the strides of the arrays do not allow it: nothing has been done then.
template <class T>
bool run_depthwise_planes(const DepthwiseWindow& window, const GroupedConv<T>& conv, const KernelSet<T>& kernels);
template <class T>
bool run_depthwise_pixels(const GroupedConv<T>& conv, const KernelSet<T>& kernels);

// The weight gradient of all channels, [channel][tap]: with vectors over columns for the windows of
// depthwise_planes_can_run (plan.h), with vectors over channels for any.
template <class T>
void depthwise_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                           T* grad_weight, const KernelSet<T>& kernels);
template <class T>
void depthwise_pixels_grad_weight(const ConvProblem& problem, const Border& border, TensorView<const T> grad_output,
                                  TensorView<const T> input, T* grad_weight, const KernelSet<T>& kernels);

}  // namespace convx
