// Groups of enough channels for vectors of them (kernels/grouped_channels.inl.h): forward and input gradient.
//
// A unit is a band of lines of one group of one image. Its source is staged as planes with their border written out
// (staged_planes.h), unstrided, since the kernel broadcasts single pixels; the result is [pixel][channel] until it is
// transposed to where it belongs, which joins the classes of a strided gradient for nothing. The order of every sum is
// channel by channel, tap by tap, in one go: the same bits for any thread count, batch and memory layout.
#pragma once

#include "cpu/conv2d/grouped.h"
#include "cpu/conv2d/staged_planes.h"

namespace convx {

struct GroupedPlanes {
    GroupedPlanes(const ConvProblem& problem, bool forward);

    PlaneLayout layout;
    int64_t advance_h, advance_w;  // lines and columns from one position to the next
    int64_t taps;                  // of all classes
    int64_t kernel_w, kernel_taps;

    int64_t band(int64_t lines) const { return (lines - 1) * advance_h + 1; }  // staged for so many positions
    // Elements of a plane for a band, and those that the last vectors may touch.
    int64_t plane_size(int64_t lines, int64_t lanes) const { return layout.plane_size(band(lines), lanes); }
};

struct GroupedChannelsBlocks {
    int64_t band_lines = 1;  // positions of the largest class
    int64_t dest_rows = 1;   // rows of the result that they are
    int64_t task_units = 1;
};

GroupedChannelsBlocks plan_grouped_channels(const GroupedPlanes& planes, int64_t batch, int64_t groups,
                                            int64_t channels, int64_t rows, int64_t dest_columns, int64_t item_bytes,
                                            int lanes);
template <class T>
PassScratch grouped_channels_scratch(const GroupedPlanes& planes, const GroupedChannelsBlocks& blocks, int64_t groups,
                                     int64_t channels, int64_t rows, int64_t dest_columns, const KernelSet<T>& kernels);

// The axes of `conv` are not looked at.
template <class T>
void run_grouped_channels(const GroupedConv<T>& conv, const GroupedPlanes& planes, int64_t flops,
                          const KernelSet<T>& kernels);

// The weight gradient (grouped_channels_grad_weight.cpp).
struct GroupedChannelSumsBlocks {
    int64_t band_lines = 1;  // lines of the output, or
    int64_t images = 1;      // whole images, that are summed in registers in one go
    int64_t chunks = 1;      // of the batch
    int64_t splits = 1;      // parts of the chunks, added in order at the end
};
GroupedChannelSumsBlocks plan_grouped_channel_sums(const GroupedPlanes& planes, int64_t batch, int64_t groups,
                                                   int64_t channels, int64_t item_bytes, int lanes);
template <class T>
PassScratch grouped_channel_sums_scratch(const GroupedPlanes& planes, const GroupedChannelSumsBlocks& blocks,
                                         int64_t groups, int64_t channels, int64_t rows, int64_t columns,
                                         const KernelSet<T>& kernels);
template <class T>
void grouped_channels_grad_weight(const ConvProblem& problem, T pad, TensorView<const T> grad_output,
                                  TensorView<const T> input, T* grad_weight, const KernelSet<T>& kernels);

template <class T>
void describe_grouped_channels(PassPlan& plan, const ConvProblem& problem, bool forward, const KernelSet<T>& kernels,
                               int threads);
template <class T>
void describe_grouped_channel_sums(PassPlan& plan, const ConvProblem& problem, const KernelSet<T>& kernels,
                                   int threads);

}  // namespace convx
