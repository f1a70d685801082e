// What a tap of a window reads: images as the rows or the depth of a GEMM, without a copy in between. The one place of
// the CUDA backend where stride, dilation, padding and padding modes turn into addresses (on the CPU: AxisTable).
//
// Pixels are window positions (n, p, q) in row-major order; taps are (r, s, c), channels innermost, so that in NHWC
// adjacent taps are adjacent in memory and in NCHW one tap of adjacent pixels is. The order is part of the result: sums
// run over it, whatever the memory order (SEMANTICS: same bits for any strides).
#pragma once

#include "common/problem.h"
#include "cuda/divisor.h"

namespace convx::cuda {

// One axis of the windows: tap t of position o reads index o * step + t * tap_step + offset of the source. The adjoint
// is of the same form (gather_axes.h), with step 1.
struct GatherAxis {
    static constexpr int reads_value = -1, reads_nothing = -2;

    __device__ int source(int position) const {
        if (static_cast<uint32_t>(position) < static_cast<uint32_t>(size)) return position;
        switch (mode) {
            case PaddingMode::zeros:
                return reads_nothing;
            case PaddingMode::constant:
                return reads_value;
            case PaddingMode::reflect:
                return position < 0 ? -position : 2 * (size - 1) - position;
            case PaddingMode::replicate:
                return position < 0 ? 0 : size - 1;
            default:
                return position < 0 ? position + size : position - size;
        }
    }

    int step = 1, tap_step = 1, offset = 0;
    int size = 1;  // of the source
    int taps = 1;
    PaddingMode mode = PaddingMode::zeros;
};

template <class T>
struct ImageGather {
    // A pixel of the rows or the depth, its part of every address computed once.
    struct Pixel {
        const T* image;  // none: past the last pixel
        int h, w;        // where its window starts
    };
    struct Tap {
        int c, r, s;
    };
    enum class Found { element, padding, nothing };

    __device__ Pixel pixel(int index) const {
        if (index >= pixels) return {nullptr, 0, 0};
        const int row = columns.quotient(index), column = index - row * columns.value;
        const int n = rows.quotient(row), line = row - n * rows.value;
        return {data + n * stride_n, line * h.step + h.offset, column * w.step + w.offset};
    }
    __device__ Tap tap(int index) const {
        const int window = channels.quotient(index);
        const int r = window_columns.quotient(window);
        return {index - window * channels.value, r, window - r * window_columns.value};
    }
    __device__ void advance(Tap& tap) const {
        if (++tap.c < channels.value) return;
        tap.c = 0;
        if (++tap.s < w.taps) return;
        tap.s = 0;
        ++tap.r;
    }

    // Where the pixel's tap lies; nothing past the end of either.
    __device__ Found find(const Pixel& at, const Tap& tap, const T*& element) const {
        if (!at.image || tap.r >= h.taps) return Found::nothing;
        const int row = h.source(at.h + tap.r * h.tap_step), column = w.source(at.w + tap.s * w.tap_step);
        if (row == GatherAxis::reads_nothing || column == GatherAxis::reads_nothing) return Found::nothing;
        if (row < 0 || column < 0) return Found::padding;
        element = at.image + tap.c * stride_c + row * stride_h + column * stride_w;
        return Found::element;
    }
    // Zero stands for what is skipped: right in a product unless the other factor is inf or NaN (see exact sums).
    __device__ T load(const Pixel& at, const Tap& tap) const {
        const T* element = nullptr;
        const Found found = find(at, tap, element);
        return found == Found::element ? *element : found == Found::padding ? padding : from_zero();
    }
    __device__ static T from_zero() { return T{}; }

    const T* data;
    int64_t stride_n, stride_c, stride_h, stride_w;
    GatherAxis h, w;
    int pixels;              // window positions of all images
    int depth;               // taps in all: h.taps * w.taps * channels
    Divisor rows, columns;   // window positions of an image
    Divisor channels;        // of a group
    Divisor window_columns;  // w.taps
    T padding;               // what PaddingMode::constant reads
};

}  // namespace convx::cuda
