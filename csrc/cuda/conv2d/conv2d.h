// conv2d and its gradients on CUDA. Problems are resolved (common/check.h), tensors are the caller's device memory, the
// workspace has plan_conv2d(...).workspace_bytes() and belongs to the stream's work until that is done. Nothing here
// allocates, waits, or chooses a stream.
#pragma once

#include "common/problem.h"
#include "cuda/conv2d/plan.h"
#include "cuda/device_tensor.h"
#include "cuda/stream.h"

namespace convx::cuda {

// A gradient that is summed over the batch can be taken from some images at a time: all but the last run leave their
// sums, of the type that sums have, in `sums` (as many as the gradient has elements, row-major), all but the first go
// on from there.
struct Carried {
    void* sums = nullptr;
    bool first = true, last = true;
};

// bias: 1 x K x 1 x 1, without data where there is none.
void conv2d_forward(const ConvProblem& problem, const ConvPlan& plan, const DeviceTensor& input,
                    const DeviceTensor& weight, const DeviceTensor& bias, const DeviceTensor& output, void* workspace,
                    Stream stream);
// With a bias for each input channel, 1 x C x 1 x 1, as a transposed convolution has it; problems that fold
// (common/problem.h) take none.
void conv2d_grad_input(const ConvProblem& problem, const ConvPlan& plan, const DeviceTensor& grad_output,
                       const DeviceTensor& weight, const DeviceTensor& grad_input, void* workspace, Stream stream,
                       const DeviceTensor& bias = {});
void conv2d_grad_weight(const ConvProblem& problem, const ConvPlan& plan, const DeviceTensor& grad_output,
                        const DeviceTensor& input, const DeviceTensor& grad_weight, void* workspace, Stream stream,
                        const Carried& carried = {});
// grad_bias: 1 x K x 1 x 1.
void conv2d_grad_bias(const ConvProblem& problem, const ConvPlan& plan, const DeviceTensor& grad_output,
                      const DeviceTensor& grad_bias, void* workspace, Stream stream, const Carried& carried = {});

// The same for one element type: instantiated in <type>.cu, one translation unit each.
template <class T>
struct Conv2d {
    static void forward(const ConvProblem& problem, const ConvPlan& plan, const DeviceTensor& input,
                        const DeviceTensor& weight, const DeviceTensor& bias, const DeviceTensor& output,
                        void* workspace, Stream stream);
    static void grad_input(const ConvProblem& problem, const ConvPlan& plan, const DeviceTensor& grad_output,
                           const DeviceTensor& weight, const DeviceTensor& grad_input, void* workspace, Stream stream,
                           const DeviceTensor& bias);
    static void grad_weight(const ConvProblem& problem, const ConvPlan& plan, const DeviceTensor& grad_output,
                            const DeviceTensor& input, const DeviceTensor& grad_weight, void* workspace, Stream stream,
                            const Carried& carried);
    static void grad_bias(const ConvProblem& problem, const ConvPlan& plan, const DeviceTensor& grad_output,
                          const DeviceTensor& grad_bias, void* workspace, Stream stream, const Carried& carried);
};

}  // namespace convx::cuda
