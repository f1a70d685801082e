// What the Winograd kernels of a KernelSet work on. A tile is 4 x 4 outputs and the 6 x 6 inputs that they read; its
// 36 transformed values lie at multiples of a frequency stride, in row-major order.
#pragma once

#include <cstdint>

namespace convx {

// `count` lanes of a panel, from `lane` on, are read from offset, offset + step, offset + 2 * step, ...
struct LaneRun {
    int32_t lane;
    int32_t count;
    int64_t offset;
};

constexpr int winograd_outputs = 4;       // of a tile, along an axis
constexpr int winograd_inputs = 6;        // of a tile, along an axis
constexpr int winograd_frequencies = 36;  // winograd_inputs squared

// Runs (in elements, `step` apart in the source) copied for each channel.
template <class T>
struct WinogradStageArgs {
    const T* source;
    int64_t source_channel, step;
    const LaneRun* runs;
    int run_count;
    int64_t channels;
    T* dest;
    int64_t dest_channel;
};

// products[row][tile] (+)= sum over channels of weights[row] * inputs[tile], the sum taken in chunks; whole vectors of
// tiles are written.
template <class T>
struct WinogradProductsArgs {
    const T* weights;  // panels of [channel][mr]
    int64_t weight_panel;
    const T* inputs;  // panels of [channel][nr]
    int64_t input_panel;
    int64_t channels, chunk, rows, tiles;
    T* products;
    int64_t product_row;
    bool accumulate;
};

// A panel of nr tiles, channel by channel. Tile t begins at source + places[t]; its rows are source_row apart.
template <class T>
struct WinogradInputArgs {
    const T* source;
    int64_t source_channel, source_row;
    const int64_t* places;
    int64_t channels;
    T* dest;  // [frequency][channel][nr]
    int64_t dest_frequency;
};

// A panel of mr (or nr) rows of weights, channel by channel: tap (r, s) of row i at source[tap[3 * r + s] + i]. A whole
// vector can be read behind the last tap.
template <class T>
struct WinogradWeightsArgs {
    const T* source;
    int64_t source_channel;
    int64_t tap[9];
    int64_t channels;
    T* dest;  // [frequency][channel][mr or nr]
    int64_t dest_frequency;
};

// A panel of nr tiles, row by row (output channel by output channel): 4 x 4 outputs of tile t at dest + places[t],
// lines dest_line apart.
template <class T>
struct WinogradOutputArgs {
    const T* source;  // [frequency][row][tile]
    int64_t source_frequency, source_row;
    int64_t rows;
    T* dest;
    const int64_t* places;
    int64_t dest_row, dest_line;
    const T* bias;  // one value per row, or null
    bool relu;
    T* faults;  // per tile: stays 0 while all outputs are finite, becomes NaN otherwise
};

// The same three steps with vectors over channels (winograd_channels.cpp). One tile: its 36 pixels, row by row, each
// with `channels` adjacent ones.
template <class T>
struct WinogradPixelInputArgs {
    const T* const* pixels;
    int64_t channels;
    T* dest;  // [frequency][channel], written in whole vectors
    int64_t dest_frequency;
};

// products[tile][nr] (+)= sum over channels of tiles[tile][channel] * weights[channel][nr].
template <class T>
struct WinogradTileProductsArgs {
    const T* tiles;
    int64_t tile_stride, count;
    const T* weights;
    int64_t channels;
    T* products;
    bool accumulate;
};

// One tile's height x width outputs (4, or less where the plane ends or the tile is a short one) of `rows` channels.
template <class T>
struct WinogradPixelOutputArgs {
    const T* source;  // [frequency][row], readable in whole vectors
    int64_t source_frequency;
    int height, width;
    int64_t rows;
    T* dest;
    int64_t dest_row, dest_pixel;
    const T* bias;  // one value per row, or null
    bool relu;
    T* faults;  // a vector that stays 0 while all outputs are finite
};

// The weight gradient, F(3 x 3, 4 x 4), has vectors over channels: adjacent tiles of one image row, `width` (nr or mr)
// channels of every pixel beside each other.
template <class T>
struct WinogradTilesArgs {
    const T* source;  // [row][column][width]
    int64_t source_row;
    int64_t tiles;
    T* dest;  // [frequency][tile][width]
    int64_t dest_frequency;
};

// Rows of products, transformed back to 3 x 3 taps.
template <class T>
struct WinogradTapsArgs {
    const T* source;  // [frequency][column]
    int64_t source_frequency;
    int64_t columns;
    T* dest;  // [tap][column]
    int64_t dest_tap;
    T* faults;  // a vector that stays 0 while all taps are finite
};

}  // namespace convx
