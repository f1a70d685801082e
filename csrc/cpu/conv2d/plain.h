// Convolution one element at a time in scalar loops that skip what lies outside the image. They run where multiplying
// the border by zero would be wrong: an infinite or NaN factor there has to add nothing. Slow (about 1 GFLOP/s a core)
// and rare: networks with infinite weights have other worries, but they get the right NaNs.
#pragma once

#include "cpu/conv2d/conv2d.h"
#include "cpu/conv2d/implicit_gemm.h"

namespace convx {

template <class T>
void run_plain(const ImplicitGemm<T>& gemm);

template <class T>
void plain_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                       TensorView<T> grad_weight);

}  // namespace convx
