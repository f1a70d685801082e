// What the depthwise kernels of a KernelSet work on.
#pragma once

#include <cstdint>

namespace convx {

// Rows [first_row, first_row + rows) of the result of one channel, columns adjacent in both arrays. Tap (r, s) of
// result (i, j) reads source (i * stride + r - pad_top, j * stride + s - pad_left), and zero where that is outside.
template <class T>
struct DepthwisePlane {
    const T* source;
    int64_t source_row;
    int64_t height, width;
    int64_t pad_top, pad_left;
    // Room for the source rows that are read, zero where no column of the source belongs: `pitch` elements a row, the
    // columns of the second residue modulo stride from residue_pitch on.
    T* staged;
    int64_t pitch, residue_pitch;
    const T* weights;  // kernel * kernel
    const T* bias;     // one value or null
    bool relu;
    T* dest;  // of result (0, 0)
    int64_t dest_row;
    int64_t first_row, rows, columns;
};

// Pixels whose channels are adjacent: result[pixel][c] = sum over t of sources[t * depthwise_pixels + pixel][c] *
// weights[t * channels + c].
constexpr int depthwise_pixels = 4;
template <class T>
struct DepthwisePixels {
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

}  // namespace convx
