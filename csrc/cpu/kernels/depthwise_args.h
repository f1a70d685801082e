// What the depthwise kernels of a KernelSet work on.
#pragma once

#include <cstdint>

namespace convx {

// Rows [first_row, first_row + rows) of the results of some channels, one plane each, columns adjacent in both arrays.
// Tap (r, s) of result (i, j) reads source (i * stride + r - pad_top, j * stride + s - pad_left), and zero where that
// is outside.
template <class T>
struct DepthwisePlanesArgs {
    int64_t planes;
    const T* source;
    int64_t source_plane, source_row;
    int64_t height, width;
    int64_t pad_top, pad_left;
    const T* zeros;    // `width` of them
    const T* weights;  // of tap (0, 0)
    int64_t weights_plane, weights_row, weights_column;
    const T* bias;  // or null
    int64_t bias_plane;
    bool relu;
    T* dest;  // of result (0, 0)
    int64_t dest_plane, dest_row;
    int64_t first_row, rows, columns;
};

// The weight gradient of some channels, added to sums[channel][tap][lane]: rows [first_row, first_row + rows) of their
// planes, columns adjacent in both arrays. What the lanes hold is for their sum alone.
template <class T>
struct DepthwiseGradWeightArgs {
    int64_t planes;
    const T* source;
    int64_t source_plane, source_row;
    int64_t height, width;
    int64_t pad_top, pad_left;
    const T* zeros;  // `width` of them
    const T* grad;   // of row 0
    int64_t grad_plane, grad_row;
    int64_t first_row, rows, columns;
    T* sums;
};

// Pixels whose channels are adjacent: result[pixel][c] = sum over t of sources[t * depthwise_pixels + pixel][c] *
// weights[t * channels + c].
constexpr int depthwise_pixels = 4;
template <class T>
struct DepthwisePixelsArgs {
    int pixels;  // at most depthwise_pixels
    int64_t taps;
    const T* const* sources;
    const T* weights;
    int64_t channels;
    const T* bias;  // `channels` values or null
    bool relu;
    T* dest;
    int64_t dest_pixel;
};

// The weight gradient of some adjacent channels from a run of pixels: sums[t * sums_tap + c] += sum over i < pixels of
// grad[i * grad_pixel + c] * sources[t][i * source_pixel + c].
template <class T>
struct DepthwisePixelProductsArgs {
    int64_t taps;
    const T* const* sources;
    int64_t source_pixel;
    const T* grad;
    int64_t grad_pixel;
    int64_t pixels, channels;
    T* sums;
    int64_t sums_tap;
};

}  // namespace convx
