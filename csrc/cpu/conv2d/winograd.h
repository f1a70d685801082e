// Winograd's F(4 x 4, 3 x 3) for dense 3 x 3 kernels: 36 multiplications for 16 outputs of a channel instead of 144.
//
//   dest tile = A' [ sum over channels of (G weight G') * (B' source tile B) ] A        (kernels/winograd.inl.h)
//
// The sum is a GEMM for each of the 36 frequencies: rows x channels of transformed weights U times channels x tiles of
// transformed inputs V gives the products M. It serves forward and, over grad_output with mirrored taps, grad_input.
//
// Same bits: a frequency is summed channel by channel in chunks that the number of channels fixes, and every transform
// works on one tile (one pair of channels) alone, so neither the cut into tasks nor batch, threads and layout matter.
//
// Inf, NaN and overflow would smear over a tile. They show as outputs that are not finite; an image that has one is
// computed again by the direct method. That depends on the image (and the weights) alone.
#pragma once

#include "cpu/conv2d/implicit_gemm.h"

namespace convx {

// The problem as for the implicit GEMM, with 3 x 3 taps and step 1. `mirrored`: tap r reads position + 2 - r, as in the
// adjoint, instead of position + r (from the first row or column that is read).
// `transformed` weights, as transform_winograd_weights makes them, or null: made for this run.
template <class T>
void run_winograd(const ImplicitGemm<T>& gemm, bool mirrored, const GemmBlocks& direct, const KernelSet<T>& kernels,
                  const T* transformed = nullptr);

// U for every run over the same weights, not mirrored, into winograd_weight_bytes(...) bytes.
template <class T>
int64_t winograd_weight_bytes(const ImplicitGemm<T>& gemm, const KernelSet<T>& kernels);
template <class T>
void transform_winograd_weights(const ImplicitGemm<T>& gemm, const KernelSet<T>& kernels, T* transformed);

}  // namespace convx
