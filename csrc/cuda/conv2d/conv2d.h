// conv2d and its gradients on CUDA. Problems are resolved (common/check.h), tensors are the caller's device memory, the
// workspace has plan_conv2d(...).workspace_bytes() and belongs to the stream's work until that is done. Nothing here
// allocates, waits, or chooses a stream.
#pragma once

#include "common/problem.h"
#include "cuda/conv2d/plan.h"
#include "cuda/stream.h"

namespace convx::cuda {

// A gradient that is summed over the batch can be taken from some images at a time: all but the last run leave their
// sums, of the type that sums have, in `sums` (as many as the gradient has elements, row-major), all but the first go
// on from there.
struct Carried {
    void* sums = nullptr;
    bool first = true, last = true;
};

// The passes for one element type. Biases and their gradients: 1 x K x 1 x 1, without data where there is none; that of
// grad_input has a value for each input channel, as a transposed convolution has it, and problems that fold
// (common/problem.h) take none.
struct ConvPasses {
    void (*forward)(const ConvProblem& problem, const ConvPlan& plan, const Tensor& input, const Tensor& weight,
                    const Tensor& bias, const Tensor& output, void* workspace, Stream stream);
    void (*grad_input)(const ConvProblem& problem, const ConvPlan& plan, const Tensor& grad_output,
                       const Tensor& weight, const Tensor& bias, const Tensor& grad_input, void* workspace,
                       Stream stream);
    void (*grad_weight)(const ConvProblem& problem, const ConvPlan& plan, const Tensor& grad_output,
                        const Tensor& input, const Tensor& grad_weight, void* workspace, Stream stream,
                        const Carried& carried);
    void (*grad_bias)(const ConvProblem& problem, const ConvPlan& plan, const Tensor& grad_output,
                      const Tensor& grad_bias, void* workspace, Stream stream, const Carried& carried);
};

ConvPasses conv_passes(DType dtype);

// Instantiated in <type>.cu, one translation unit each.
template <class T>
ConvPasses conv_passes_of();

}  // namespace convx::cuda
