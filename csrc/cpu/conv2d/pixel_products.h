// The squared norm of one image's weight gradient without that gradient. For each group
//
//   grad_weight = sum over pixels i of g_i x_i^T, so |grad_weight|^2 = sum over i, j of (g_i . g_j) (x_i . x_j)
//
// where g_i are the K/G channels of grad_output at pixel i and x_i the C/G * R * S values that its window reads. A
// product x_i . x_j is the sum over the taps of products of single input pixels, so the window costs additions alone:
// three square matrices over pixels, two of them of products of channels, instead of one over all weights. That wins
// where there are fewer pixels than channels (norms_by_pixels).
//
// In float64 for both types: what the products of float32 numbers lose is the rounding of float64 sums, n 2^-53 |g|^2
// |x|^2, which also bounds the result's error where terms of both signs cancel.
#pragma once

#include "common/problem.h"
#include "cpu/kernels/kernel_set.h"

namespace convx {

// The pixels of an image that the products are taken over.
struct PixelCounts {
    int64_t outputs;  // of grad_output
    int64_t inputs;   // of the input: those that a window reads, and one for a padding value
};
PixelCounts count_pixels(const ConvProblem& problem);

int64_t pixel_products_scratch(const PixelCounts& pixels);

// Of image n; NaN or infinite where the gradient's own norm may be finite, and the other way round.
template <class T>
double norm_by_pixels(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                      const KernelSet<double>& kernels);

}  // namespace convx
