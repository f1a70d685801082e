// Winograd's method for small planes: vectors run over channels instead of tiles.
//
// A 7 x 7 plane has 4 tiles: a vector of tiles is half empty for a single image, while there are channels enough. So
// the products M of a frequency are tiles (broadcast) x output channels (vectors), the inputs V are made once for all
// tasks, and a task makes the weights U of its output channels in L2, chunk by chunk, and never writes them elsewhere.
//
// An axis is cut into long tiles of 4 outputs and short ones of 3 (7 = 4 + 3, 14 = 4 + 4 + 3 + 3). A short tile is a
// long one whose last output is not wanted: that output alone needs the last frequency, which is left out. At 7 x 7 and
// 14 x 14 a sixth of the products falls away. Tiles are sorted so that every frequency works on adjacent ones.
#pragma once

#include <atomic>

#include "cpu/conv2d/implicit_gemm.h"

namespace convx {

// Marks the images that have an output that is not finite. `transformed` weights or null, as for run_winograd.
template <class T>
void run_winograd_channels(const ImplicitGemm<T>& gemm, bool mirrored, const KernelSet<T>& kernels,
                           const T* transformed, std::atomic<bool>* faulty);

template <class T>
int64_t winograd_channels_weight_bytes(int64_t groups, int64_t channels, int64_t rows, const KernelSet<T>& kernels);
template <class T>
void transform_winograd_channels_weights(const ImplicitGemm<T>& gemm, const KernelSet<T>& kernels, T* transformed);

}  // namespace convx
