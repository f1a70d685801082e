// What the kernels of the grouped passes work on: blocks of pixels of a few channels whose rows stand ready, with their
// borders, side by side (conv2d/padded_tile.h).
#pragma once

#include <cstdint>

namespace convx {

// The sums of a block of rows x columns pixels for `channels` output channels of one group: what tap t of pixel (i, j)
// reads lies at source + offsets[t] + i * source_row + j. A whole vector can be read from every pixel on.
template <class T>
struct DirectTileArgs {
    const T* source;
    int64_t source_row;
    const int64_t* offsets;
    int64_t taps;      // of all input channels of the group
    const T* weights;  // [panel of direct_panel channels][tap][channel of the panel]
    const T* bias;     // one value per channel, or null
    bool relu;
    int64_t channels, rows, columns;
    T* dest;
    int64_t dest_channel, dest_row;
};
// Four broadcast weights and three vectors of pixels (six with 32 registers) make a tile of sums.
constexpr int64_t direct_panel = 4;

// The weight gradient of a block, added to sums[channel][tap][lane]: lane l sums over the columns l, l + lanes, ...
template <class T>
struct DirectGradWeightArgs {
    const T* source;
    int64_t source_row;
    const int64_t* offsets;
    int64_t taps;
    const T* grad;
    int64_t grad_channel, grad_row;
    int64_t channels, rows, columns;
    T* sums;
};

}  // namespace convx
