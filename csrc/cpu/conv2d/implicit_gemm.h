// Forward convolution and the input gradient as one loop nest: a GEMM whose pixel operand is never a matrix in memory
// but packed panel by panel out of the image.
//
//   dest[n, row, i, j] = sum over channel, tap of weight[row, channel, tap] * source[n, channel, h(tap, i), w(tap, j)]
//
// Work: a task owns a block of pixels (over the whole batch) and packs them chunk by chunk of the reduction into L2;
// the weights were packed once for all tasks. Where there are fewer pixels than output channels it is the other way
// round: the pixels are packed once and a task owns output channels, so that neither operand is packed twice. The order
// of every sum is channel by channel, tap by tap, in chunks that the per-image problem fixes: the same bits for any
// thread count, batch and memory layout.
#pragma once

#include "cpu/conv2d/axis_table.h"
#include "cpu/conv2d/pixels.h"
#include "cpu/conv2d/plan.h"
#include "cpu/kernels.h"

namespace convx {

template <class T>
struct ImplicitGemm {
    int64_t batch, groups;
    int64_t channels;  // reduction channels of a group
    int64_t rows;      // output channels of a group
    const AxisTable* h;
    const AxisTable* w;

    const T* source;
    Strides source_stride;
    T pad;                                // what taps outside the source read, unless they are skipped:
    bool skip_outside_h, skip_outside_w;  // then they add nothing, not even 0 * inf

    const T* weight;
    int64_t weight_group, weight_row, weight_channel;  // strides
    int64_t weight_h, weight_w;                        // strides of the kernel indices
    const T* packed_weight;                            // as pack_gemm_weights makes it, or null: packed for this run
    bool packed_finite;                                // what pack_gemm_weights returned

    T* dest;
    Strides dest_stride;
    const T* bias;  // groups * rows values with stride bias_stride, or null
    int64_t bias_stride;
    bool relu;

    bool skips_h() const { return skip_outside_h && h->reads_outside(); }
    bool skips_w() const { return skip_outside_w && w->reads_outside(); }
    bool skips() const { return skips_h() || skips_w(); }
    int64_t pixels() const { return batch * h->positions * w->positions; }
    int64_t taps() const { return static_cast<int64_t>(h->taps.size() * w->taps.size()); }
};

// Skipping is done by multiplying with zero. Where that is not the same, because a weight is infinite or NaN or because
// one axis skips and the other pads with a number, the plain loops run instead.
template <class T>
void run_implicit_gemm(const ImplicitGemm<T>& gemm, const GemmBlocks& blocks, const KernelSet<T>& kernels);

// The weights as the nest reads them, into packed_weight_bytes(...) bytes; false if one is infinite or NaN.
template <class T>
bool pack_gemm_weights(const ImplicitGemm<T>& gemm, const GemmBlocks& blocks, const KernelSet<T>& kernels, T* packed);

}  // namespace convx
