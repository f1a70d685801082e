// Direct convolution: lines with their border written out are staged (staged_planes.h) and no operand is packed by
// taps. It pays where an implicit GEMM would pack every pixel once a tap for a handful of rows: forward with few input
// or output channels, the input gradient with few input channels.
//
//   dest[n, row, i, j] = sum over channel, tap of weight[row, channel, tap] * plane[channel, tap][i * pitch + j]
//
// Two drivers: direct_spatial.cpp has vectors of pixels, direct_channels.cpp vectors of the channels that are written.
// Every sum is one chain of FMA in the order of channels and taps: neither chunks nor bands nor the driver show in it.
#pragma once

#include "cpu/conv2d/pixel_sum.h"
#include "cpu/conv2d/staged_planes.h"
#include "cpu/conv2d/window_sum.h"
#include "cpu/runtime/run_tasks.h"

namespace convx {

struct DirectBlocks {
    bool vectors_of_rows = false;  // direct_channels.cpp
    int64_t tile_rows = 1;         // rows of a tile
    bool whole_band = false;       // a run is the whole band instead of one line
    int64_t chunk_channels = 1;    // staged, and summed in registers, in one go
    int64_t band_lines = 1;
};

template <class T>
TaskPlan direct_spatial_tasks(const WindowSum<T>& sum, const PlaneLayout& layout, const DirectBlocks& blocks,
                              const KernelSet<T>& kernels);
template <class T>
TaskPlan direct_channels_tasks(const WindowSum<T>& sum, const PlaneLayout& layout, const DirectBlocks& blocks,
                               const KernelSet<T>& kernels);
// False, and nothing done, if a weight is infinite or NaN.
template <class T>
bool run_direct_spatial(const WindowSum<T>& sum, const PlaneLayout& layout, const DirectBlocks& blocks,
                        const TaskPlan& tasks, const KernelSet<T>& kernels);
template <class T>
bool run_direct_channels(const WindowSum<T>& sum, const PlaneLayout& layout, const DirectBlocks& blocks,
                         const TaskPlan& tasks, const KernelSet<T>& kernels);

// The weight gradient.
struct DirectSumBlocks {
    bool vectors_of_rows = false;          // direct_channels_grad_weight.cpp: vectors of output channels
    int64_t images = 1;                    // then: of a chunk, if they are small
    int64_t tile_rows = 1, tile_taps = 1;  // weights of a tile: output channels, (input channel, tap) pairs
    int64_t block_rows = 1;                // output channels staged in one go
    int64_t band_lines = 1;                // lines of the output that are summed in registers in one go
    int64_t splits = 1;                    // parts of the batch's bands, added in order at the end
};

template <class T>
TaskPlan direct_spatial_tasks(const PixelSum<T>& sum, const PlaneLayout& layout, const DirectSumBlocks& blocks,
                              const KernelSet<T>& kernels);
template <class T>
TaskPlan direct_channels_tasks(const PixelSum<T>& sum, const PlaneLayout& layout, const DirectSumBlocks& blocks,
                               const KernelSet<T>& kernels);
template <class T>
void run_direct_spatial(const PixelSum<T>& sum, const PlaneLayout& layout, const DirectSumBlocks& blocks,
                        const TaskPlan& tasks, const KernelSet<T>& kernels);
template <class T>
void run_direct_channels(const PixelSum<T>& sum, const PlaneLayout& layout, const DirectSumBlocks& blocks,
                         const TaskPlan& tasks, const KernelSet<T>& kernels);

}  // namespace convx
