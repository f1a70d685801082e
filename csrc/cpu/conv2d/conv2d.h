// The convolution passes on the CPU. Everything is validated by the caller (common/check.h).
#pragma once

#include "common/problem.h"
#include "cpu/kernels/kernel_set.h"
#include "cpu/pass_plan.h"
#include "cpu/runtime/workspace.h"

namespace convx {

// A weight in the form in which the method of the plan reads it, made once for many forward passes. Every other call
// packs the weight again: nothing beside the arithmetic of a large batch, but as much as the rest of the call where one
// small image meets many channels. Only a call that would make the very same form uses it, so results have the same
// bits with and without it.
struct MethodInfo;

template <class T>
struct PackedWeight {
    const MethodInfo* method;
    const Kernels* kernels;  // the tile is the width of panels
    int64_t groups;
    bool channels_last;   // which operand has the rows of the tile
    Workspace data;       // empty where the method has nothing to make ahead
    bool finite = false;  // no weight is infinite or NaN

    const T* weights() const { return static_cast<const T*>(data.data()); }
    bool fits(const MethodInfo& by, const Kernels& with, const ConvProblem& problem) const {
        return weights() && method == &by && kernels == &with && groups == problem.groups &&
               channels_last == problem.channels_last;
    }
};

// For the forward pass of the problem, by the method that is chosen for it.
template <class T>
PackedWeight<T> pack_weight(const ConvProblem& problem, TensorView<const T> weight);

// Views in logical N, C, H, W order with any strides; bias is a 4-D view of shape (1, K, 1, 1) with data null for none.
// Outputs are overwritten. `packed`: the weight once more, as pack_weight made it, or null.
template <class T>
void conv2d_forward(const ConvProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                    TensorView<const T> bias, TensorView<T> output, const PackedWeight<T>* packed = nullptr);

// With a bias for each input channel, as a transposed convolution has it; problems that fold (problem.h) take none.
template <class T>
void conv2d_grad_input(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> weight,
                       TensorView<T> grad_input, TensorView<const T> bias = {});

template <class T>
void conv2d_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                        TensorView<T> grad_weight);  // dense K, C/G, R, S

// Sums over all but the channels.
template <class T>
void conv2d_grad_bias(TensorView<const T> grad_output, T* grad_bias);

// --- gradients of each image by itself, for differential privacy and influence functions: the gradients of a batch of
// one, in every bit, and the squares of their norms (per_sample.cpp) ---

// grad_weight: dense N, K, C/G, R, S; grad_bias: dense N, K.
template <class T>
void conv2d_per_sample_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output,
                                   TensorView<const T> input, T* grad_weight);
template <class T>
void conv2d_per_sample_grad_bias(TensorView<const T> grad_output, T* grad_bias);

// The sums of the squares, N each, in float64; one gradient at a time for each thread, or none (the ghost norm).
template <class T>
void conv2d_grad_weight_norms(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                              double* norms);
template <class T>
void conv2d_grad_bias_norms(TensorView<const T> grad_output, double* norms);

PassPlan plan_per_sample_grad_weight(const ConvProblem& problem, const Kernels& kernels, int threads);
PassPlan plan_per_sample_grad_bias(const ConvProblem& problem, const Kernels& kernels, int threads);
PassPlan plan_grad_weight_norms(const ConvProblem& problem, const Kernels& kernels, int threads);
PassPlan plan_grad_bias_norms(const ConvProblem& problem, const Kernels& kernels, int threads);

}  // namespace convx
