// Groups of few channels in arrays whose columns are adjacent: forward and input gradient with vectors over pixels.
//
// A unit is a band of lines of one group of one image. Its source is staged as planes with their border written out
// (staged_planes.h); all lines of the band are one run of positions, so that vectors are full whatever the width is,
// and what lies between the lines is dropped on the way to the result. Sums have the order of grouped.h's nest, which
// takes the other memory layouts: the same bits.
#pragma once

#include "cpu/conv2d/grouped.h"
#include "cpu/conv2d/staged_planes.h"

namespace convx {

struct GroupedPixelsBlocks {
    int64_t tile_rows = 1;   // channels of the result of one tile
    int64_t band_lines = 1;  // positions of the largest class
    int64_t task_units = 1;
};

PlaneLayout grouped_pixels_layout(const ConvProblem& problem, bool forward);
GroupedPixelsBlocks plan_grouped_pixels(const PlaneLayout& layout, int64_t batch, int64_t groups, int64_t channels,
                                        int64_t rows, int64_t item_bytes);
// Counted where it is carved up (grouped_pixels.cpp).
template <class T>
PassScratch grouped_pixels_scratch(const PlaneLayout& layout, const GroupedPixelsBlocks& blocks, int64_t groups,
                                   int64_t channels, int64_t rows, const KernelSet<T>& kernels);

// The axes of `conv` are not looked at.
template <class T>
void run_grouped_pixels(const GroupedConv<T>& conv, const PlaneLayout& layout, int64_t flops,
                        const KernelSet<T>& kernels);

template <class T>
void describe_grouped_pixels(PassPlan& plan, const ConvProblem& problem, bool forward, const KernelSet<T>& kernels,
                             int threads);

}  // namespace convx
