// Weight gradient of 1x1 kernels in NHWC: both operands have their channels adjacent, so the tile is one of rank-1
// updates (gemm_tile.inl.h), with vectors over input channels and broadcasts of grad_output. Nothing is transposed: the
// pixels of a chunk are copied into panels in L2, which takes 5 to 8 % of the time.
//
// Tasks and sums are cut as in grad_weight.cpp: by the problem alone, the parts added in order.
#pragma once

#include "cpu/conv2d/axis_table.h"
#include "cpu/conv2d/plan.h"

namespace convx {

// `pad`: what pixels outside the input read. `grad_weight`, dense, is overwritten.
template <class T>
void run_grad_weight_channels(const ConvProblem& problem, const AxisTable& h, const AxisTable& w, T pad,
                              TensorView<const T> grad_output, TensorView<const T> input, const KernelSet<T>& kernels,
                              T* grad_weight);

}  // namespace convx
