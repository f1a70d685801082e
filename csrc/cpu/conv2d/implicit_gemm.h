// Forward convolution and the input gradient as one driver: a GEMM whose pixel operand is never a matrix in memory but
// packed panel by panel out of the image.
//
//   dest[n, row, i, j] = sum over channel, tap of weight[row, channel, tap] * source[n, channel, h(tap, i), w(tap, j)]
//
// Work: a task owns a block of pixels (over the whole batch) and packs them chunk by chunk of the reduction into L2;
// the weights were packed once for all tasks. Where there are fewer pixels than output channels it is the other way
// round: the pixels are packed once and a task owns output channels, so that neither operand is packed twice. The order
// of every sum is channel by channel, tap by tap, in chunks that the per-image problem fixes: the same bits for any
// thread count, batch and memory layout.
#pragma once

#include "cpu/conv2d/window_sum.h"
#include "cpu/runtime/run_tasks.h"

namespace convx {

// One phase of a window sum (all of it without a stride): positions are adjacent, and all have the same taps.
template <class T>
struct ImplicitGemm {
    int64_t batch, groups;
    int64_t channels;  // reduction channels of a group
    int64_t rows;      // output channels of a group
    const AxisTable* h;
    const AxisTable* w;

    const T* source;
    Strides source_stride;
    T pad;  // what taps outside the source read

    const T* weight;
    int64_t weight_group, weight_row, weight_channel;  // strides
    int64_t weight_h, weight_w;                        // strides of the kernel indices
    const T* packed_weight;                            // as pack_gemm_weights makes it, or null: packed for this run

    T* dest;
    Strides dest_stride;
    const T* bias;  // groups * rows values with stride bias_stride, or null
    int64_t bias_stride;
    bool relu;

    int64_t pixels() const { return batch * h->positions * w->positions; }
    int64_t taps() const { return static_cast<int64_t>(h->taps.size() * w->taps.size()); }
    int64_t flops() const { return 2 * groups * rows * channels * taps() * pixels(); }
};

template <class T>
ImplicitGemm<T> phase_of(const WindowSum<T>& sum, const PhaseTables& h, const PhaseTables& w, size_t i, size_t j) {
    const Strides to = strides_of(sum.dest.stride);
    const auto step = [&](const Axis& axis) { return sum.forward() ? 1 : axis.stride; };
    ImplicitGemm<T> gemm{};
    gemm.batch = sum.batch;
    gemm.groups = sum.groups;
    gemm.channels = sum.channels;
    gemm.rows = sum.rows;
    gemm.h = &h[i];
    gemm.w = &w[j];
    gemm.source = sum.source.data;
    gemm.source_stride = strides_of(sum.source.stride);
    gemm.pad = sum.pad();
    gemm.weight = sum.weight;
    gemm.weight_group = sum.weight_group;
    gemm.weight_row = sum.weight_row;
    gemm.weight_channel = sum.weight_channel;
    gemm.weight_h = sum.weight_h;
    gemm.weight_w = sum.weight_w;
    gemm.dest = sum.dest.at(0, 0, static_cast<int64_t>(i), static_cast<int64_t>(j));
    gemm.dest_stride = {to.n, to.c, step(sum.problem->h) * to.h, step(sum.problem->w) * to.w};
    gemm.bias = sum.bias;
    gemm.bias_stride = sum.bias_stride;
    gemm.relu = sum.relu;
    return gemm;
}

// Some rows of one group and some reduction channels of them.
struct WeightPart {
    int64_t group, first_row, first_channel, channels;
};

// A panel of `width` rows (those that there are not: zeros) in all taps, to dest[channel][tap][width].
template <class T>
void pack_weight_panel(const ImplicitGemm<T>& gemm, const WeightPart& part, int64_t width, const KernelSet<T>& kernels,
                       T* dest);

struct GemmBlocks {
    bool pixels_in_rows = false;  // channels-last: vectors run over output channels instead of pixels
    bool by_rows = false;        // few pixels: a task owns output channels and sees all pixels, not the other way round
    int64_t chunk_channels = 1;  // reduction channels (times taps) that are summed in registers in one go
    int64_t block_panels = 1;    // pixel panels of one task
    int64_t pass_panels = 1;     // those that stay in L2 while the output channels of the task pass by
    int64_t block_rows = 1;      // output channels of one task
};

struct GemmPlan {
    GemmBlocks blocks;
    TaskPlan tasks;
};

template <class T>
GemmBlocks plan_gemm_blocks(const ImplicitGemm<T>& gemm, bool channels_last, const KernelSet<T>& kernels);
template <class T>
GemmPlan plan_implicit_gemm(const ImplicitGemm<T>& gemm, bool channels_last, const KernelSet<T>& kernels);

template <class T>
void run_implicit_gemm(const ImplicitGemm<T>& gemm, const GemmPlan& plan, const KernelSet<T>& kernels);

// The weights as the driver reads them.
template <class T>
int64_t packed_weight_bytes(const ImplicitGemm<T>& gemm, const GemmBlocks& blocks, const KernelSet<T>& kernels);
template <class T>
void pack_gemm_weights(const ImplicitGemm<T>& gemm, const GemmBlocks& blocks, const KernelSet<T>& kernels, T* packed);

}  // namespace convx
