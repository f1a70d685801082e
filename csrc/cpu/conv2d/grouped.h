// Forward and input gradient of convolutions with few channels a group as one loop nest. It runs depthwise ones of any
// window and memory layout, and others whose channels are adjacent in memory; for the rest there are grouped_pixels.h
// and grouped_channels.h.
//
//   dest[n, k, i, j] = sum over channel c of k's group, tap of weight[k, c, tap] * source[n, c, h(tap, i), w(tap, j)]
//
// A unit is a block of rows of a few groups of one image: its source is staged (staging.h), then the kernels run over
// it, class by class where a stride makes several. The order of every sum is channel by channel, tap by tap, in one go:
// the same bits for any thread count, batch and memory layout.
#pragma once

#include "cpu/conv2d/plan.h"
#include "cpu/conv2d/staging.h"

namespace convx {

template <class T>
struct GroupedConv {
    int64_t batch, groups;
    int64_t channels;  // reduction channels of a group
    int64_t rows;      // result channels of a group
    const StagedAxis* h;
    const StagedAxis* w;

    TensorView<const T> source;
    T pad;

    const T* weight;
    int64_t weight_group, weight_row, weight_channel;  // strides
    int64_t weight_h, weight_w;                        // strides of the kernel indices

    TensorView<T> dest;
    const T* bias;  // groups * rows values with stride bias_stride, or null
    int64_t bias_stride;
    bool relu;
};

template <class T>
void run_grouped(const GroupedConv<T>& conv, const KernelSet<T>& kernels);

}  // namespace convx
