// The loop nests behind conv2d.h, one set of functions a method; choose_method (plan.h) says which runs.
#pragma once

#include "common/problem.h"
#include "cpu/conv2d/packed_weight.h"
#include "cpu/kernels.h"

namespace convx {

// gemm: any problem. Packed weights are for the problem's own form (packed_weight.cpp).
template <class T>
void gemm_forward(const ConvProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                  TensorView<const T> bias, TensorView<T> output);
template <class T>
void gemm_grad_input(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> weight,
                     TensorView<T> grad_input, TensorView<const T> bias);
template <class T>
void gemm_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                      TensorView<T> grad_weight);
template <class T>
void gemm_pack_weight(const ConvProblem& problem, TensorView<const T> weight, PackedWeight<T>& packed);
template <class T>
void gemm_forward_packed(const ConvProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                         TensorView<const T> bias, TensorView<T> output, const PackedWeight<T>& packed);

// winograd: 3x3 kernels, stride and dilation 1 (supports_winograd in plan.h).
template <class T>
void winograd_forward(const ConvProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                      TensorView<const T> bias, TensorView<T> output);
template <class T>
void winograd_pack_weight(const ConvProblem& problem, TensorView<const T> weight, PackedWeight<T>& packed);
template <class T>
void winograd_forward_packed(const ConvProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                             TensorView<const T> bias, TensorView<T> output, const PackedWeight<T>& packed);
template <class T>
void winograd_grad_input(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> weight,
                         TensorView<T> grad_input, TensorView<const T> bias);
template <class T>
void winograd_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                          TensorView<T> grad_weight);

// grouped: few channels a group, see grouped_can_run.
template <class T>
void grouped_forward(const ConvProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                     TensorView<const T> bias, TensorView<T> output);
template <class T>
void grouped_grad_input(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> weight,
                        TensorView<T> grad_input, TensorView<const T> bias);
template <class T>
void grouped_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                         TensorView<T> grad_weight);

// few_channels: few input channels, no groups.
template <class T>
void few_channels_forward(const ConvProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                          TensorView<const T> bias, TensorView<T> output);
template <class T>
void few_channels_grad_input(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> weight,
                             TensorView<T> grad_input, TensorView<const T> bias);
template <class T>
void few_channels_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                              TensorView<T> grad_weight);

}  // namespace convx
