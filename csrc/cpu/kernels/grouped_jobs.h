// What the kernels of the grouped passes work on: blocks of pixels of a few channels whose rows stand ready, with their
// borders, side by side (conv2d/staging.h).
#pragma once

#include <cstdint>

namespace convx {

// The sums of a block of rows x columns pixels for `channels` output channels of one group: what tap t of pixel (i, j)
// reads lies at source + offsets[t] + i * source_row + j. A whole vector can be read from every pixel on.
template <class T>
struct GroupedTile {
    const T* source;
    int64_t source_row;
    const int64_t* offsets;
    int64_t taps;      // of all input channels of the group
    const T* weights;  // [panel of grouped_panel channels][tap][channel of the panel]
    const T* bias;     // one value per channel, or null
    bool relu;
    int64_t channels, rows, columns;
    T* dest;
    int64_t dest_channel, dest_row;
};
// Four broadcast weights and three vectors of pixels make twelve sums: what 16 registers hold.
constexpr int64_t grouped_panel = 4;

// The weight gradient of a block, added to sums[channel][tap][lane]: lane l sums over the columns l, l + lanes, ...
template <class T>
struct GroupedGradWeight {
    const T* source;
    int64_t source_row;
    const int64_t* offsets;
    int64_t taps;
    const T* grad;
    int64_t grad_channel, grad_row;
    int64_t channels, rows, columns;
    T* sums;
};

// With enough channels a group, vectors run over the channels of the result, one or two of them (`vecs`), and pixels
// are broadcast from wherever they lie: no stride takes rows apart, and no vector holds columns that there are not.
//
// A tile is as many pixels (or taps) x `vecs` accumulators; the addresses of more than 8 would not stay in registers.
constexpr int grouped_channel_pixels(int vecs, int limit) { return limit / vecs < 8 ? limit / vecs : 8; }

// One tile: dest[to[p]][channel] = relu(sum over t < taps of source[places[p] + offsets[t]] * weights[t][channel] +
// bias[channel])
template <class T>
struct GroupedChannels {
    int vecs;
    const T* source;
    const int32_t* offsets;
    int64_t taps;      // of all input channels of the group
    const T* weights;  // [tap][vecs * lanes]
    const T* bias;     // vecs * lanes values, or null
    bool relu;
    const int32_t* places;
    const int32_t* to;
    int pixels;
    T* dest;  // [pixel][vecs * lanes]
};

// sums[t][channel] += sum over pixels of source[offsets[t] + place of the pixel] * grad[pixel][channel]: the sum over
// the pixels is taken apart, then added.
template <class T>
struct GroupedChannelSums {
    int vecs;
    const T* source;
    int64_t source_image, source_row, source_step;  // from image to image, pixel to pixel
    const int32_t* offsets;
    int64_t taps;
    const T* grad;  // [image][row][column][vecs * lanes]
    int64_t images, rows, columns;
    T* sums;
};

}  // namespace convx
