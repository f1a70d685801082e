// What a tap of a window reads: images as the rows or the depth of a GEMM, without a copy in between. GatherAxis turns
// stride, dilation, padding and padding modes into addresses (on the CPU: AxisTable).
//
// Pixels are window positions (n, p, q) in row-major order; taps are (r, s, c), channels innermost, so that in NHWC
// adjacent taps are adjacent in memory and in NCHW one tap of adjacent pixels is. The order is part of the result: sums
// run over it, whatever the memory order (same bits for any strides).
#pragma once

#include "common/problem.h"
#include "cuda/elements.cuh"

namespace convx::cuda {

// One axis of the windows: tap t of position o reads index o * step + t * tap_step + offset of the source. The adjoint
// is of the same form (gather_axes.h), with step 1.
struct GatherAxis {
    static constexpr int reads_value = -1, reads_nothing = -2;

    GatherAxis() = default;
    explicit GatherAxis(const Axis& axis)
        : step(static_cast<int>(axis.stride)), tap_step(static_cast<int>(axis.dilation)),
          offset(static_cast<int>(-axis.pad_before)), size(static_cast<int>(axis.input)),
          taps(static_cast<int>(axis.kernel)), mode(axis.mode) {}

    __device__ bool contains(int position) const {
        return static_cast<uint32_t>(position) < static_cast<uint32_t>(size);
    }
    __device__ int source(int position) const {
        if (contains(position)) return position;
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
    // A pixel of the rows or the depth, whose part of every address is computed once.
    struct Pixel {
        const T* image;  // null past the last pixel
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
        return {source.image(n, 0), line * h.step + h.offset, column * w.step + w.offset};
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

    // Where the pixel's tap reads; nothing past the end of either.
    __device__ Found find(const Pixel& at, const Tap& tap, const T*& element) const {
        if (!at.image || tap.r >= h.taps) return Found::nothing;
        const int row = h.source(at.h + tap.r * h.tap_step), column = w.source(at.w + tap.s * w.tap_step);
        if (row == GatherAxis::reads_nothing || column == GatherAxis::reads_nothing) return Found::nothing;
        if (row < 0 || column < 0) return Found::padding;
        element = at.image + tap.c * source.c + row * source.h + column * source.w;
        return Found::element;
    }
    // False, and zero, where the tap reads nothing. The zero is right in a product unless the other factor is inf or
    // NaN (see WindowSum::exact).
    __device__ bool read(const Pixel& at, const Tap& tap, T& value) const {
        const T* element = nullptr;
        const Found found = find(at, tap, element);
        value = found == Found::element ? *element : found == Found::padding ? padding : T{};
        return found != Found::nothing;
    }
    __device__ T load(const Pixel& at, const Tap& tap) const {
        T value;
        read(at, tap, value);
        return value;
    }
    __device__ void to_group(int group) { source.data += static_cast<int64_t>(group) * channels.value * source.c; }

    Strided4<const T> source;
    GatherAxis h, w;
    int pixels;              // window positions of all images
    int depth;               // taps in all: h.taps * w.taps * channels
    Divisor rows, columns;   // window positions of an image
    Divisor channels;        // of a group
    Divisor window_columns;  // w.taps
    T padding;               // what PaddingMode::constant reads
};

// What 3x3 windows of one channel read: 3 columns of some rows.
template <class T, int rows>
struct Patch3 {
    // row_at(j): row j of the source, or reads_nothing; `first_column`: where the windows start.
    template <class RowAt>
    __device__ Patch3(const T* image, const Strided4<const T>& source, const RowAt& row_at, const GatherAxis& w,
                      int first_column, T padding) {
#pragma unroll
        for (int s = 0; s < 3; ++s) column[s] = w.source(first_column + s * w.tap_step);
#pragma unroll
        for (int j = 0; j < rows; ++j) {
            const int row = row_at(j);
            row_found[j] = row != GatherAxis::reads_nothing;
            const T* const line = image + row * source.h;
#pragma unroll
            for (int s = 0; s < 3; ++s) {
                value[j][s] = padding;
                if (row >= 0 && column[s] >= 0) value[j][s] = line[column[s] * source.w];
            }
        }
    }
    __device__ bool found(int j, int s) const { return row_found[j] && column[s] != GatherAxis::reads_nothing; }

    T value[rows][3];
    int column[3];
    bool row_found[rows];
};

}  // namespace convx::cuda
