// Direct convolution for few channels on one side: forward with few input or output channels and the input gradient
// with few input channels, where an implicit GEMM would pack every pixel once a tap for a handful of rows.
//
//   dest[n, row, i, j] = sum over channel, tap of weight[row, channel, tap] * plane[channel, tap][i * pitch + j]
//
// Work: a task owns a band of lines of one image. It stages the lines (staged_planes.h) some channels at a time and
// runs the weights of a few rows over them; neither operand is packed by taps. Every sum
// is one chain of FMA in the order of channels and taps: neither chunks nor bands show in it.
#pragma once

#include "cpu/conv2d/plan.h"
#include "cpu/conv2d/staged_planes.h"

namespace convx {

// Both passes, as one sees the other: rows are what is written, channels what is summed over.
template <class T>
struct FewChannelsPass {
    int64_t batch, rows, channels;
    const T* source;
    Strides source_stride;
    T pad;
    const T* weight;
    int64_t weight_row, weight_channel, weight_h, weight_w;  // strides
    T* dest;
    Strides dest_stride;
    const T* bias;  // with stride bias_stride, or null
    int64_t bias_stride;
    bool relu;
    int64_t flops;
};

struct FewChannelsBlocks {
    bool vectors_of_rows = false;  // vectors run over rows instead of positions (few_channels_rows.cpp)
    int64_t tile_rows = 1;         // rows of a tile
    bool whole_band = false;       // a run is the whole band instead of one line
    int64_t chunk_channels = 1;    // staged, and summed in registers, in one go
    int64_t band_lines = 1;
};

FewChannelsBlocks plan_few_channels_blocks(const PlaneLayout& layout, bool channels_last, int64_t rows,
                                           int64_t channels, int64_t item_bytes, int lanes, int mr, int limit);

// Planes and borders of a pass of the problem.
PlaneLayout few_channels_layout(const ConvProblem& problem, bool forward);

// Counted where it is carved up (few_channels.cpp).
template <class T>
PassScratch few_channels_scratch(const PlaneLayout& layout, const FewChannelsBlocks& blocks, int64_t rows,
                                 int64_t channels, const KernelSet<T>& kernels);

// Vectors over rows (few_channels_rows.cpp). False, and nothing done, if a weight is infinite or NaN.
template <class T>
bool run_few_channels_rows(const FewChannelsPass<T>& pass, const PlaneLayout& layout, const FewChannelsBlocks& blocks,
                           const KernelSet<T>& kernels);
template <class T>
PassScratch few_channels_rows_scratch(const PlaneLayout& layout, const FewChannelsBlocks& blocks, int64_t rows,
                                      int64_t channels, const KernelSet<T>& kernels);

// The weight gradient (few_channels_grad_weight.cpp).
template <class T>
struct FewChannelsGradWeight {
    int64_t batch, rows, channels;  // output and input channels
    const T* grad;
    Strides grad_stride;
    const T* input;
    Strides input_stride;
    T pad;
    int64_t flops;
};

struct FewChannelsGradWeightBlocks {
    bool vectors_of_rows = false;          // vectors run over output channels (few_channels_rows_grad_weight.cpp)
    int64_t images = 1;                    // then: of a chunk, if they are small
    int64_t tile_rows = 1, tile_taps = 1;  // weights of a tile: output channels, (input channel, tap) pairs
    int64_t block_rows = 1;                // output channels staged in one go
    int64_t band_lines = 1;                // lines of the output that are summed in registers in one go
    int64_t splits = 1;                    // parts of the batch's bands, added in order at the end
};

FewChannelsGradWeightBlocks plan_few_channels_grad_weight(const PlaneLayout& layout, int64_t batch, int64_t rows,
                                                          int64_t channels, int64_t item_bytes, int lanes, int mr,
                                                          int limit);
template <class T>
PassScratch few_channels_grad_weight_scratch(const PlaneLayout& layout, const FewChannelsGradWeightBlocks& blocks,
                                             int64_t rows, int64_t channels, const KernelSet<T>& kernels);
template <class T>
void run_few_channels_rows_grad_weight(const FewChannelsGradWeight<T>& job, const PlaneLayout& layout,
                                       const FewChannelsGradWeightBlocks& blocks, const KernelSet<T>& kernels,
                                       T* grad_weight);
template <class T>
PassScratch few_channels_rows_grad_weight_scratch(const PlaneLayout& layout, const FewChannelsGradWeightBlocks& blocks,
                                                  int64_t rows, int64_t channels, const KernelSet<T>& kernels);

}  // namespace convx
