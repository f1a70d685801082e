// Convolution one element at a time in scalar loops that skip what lies outside the image. They run where multiplying
// the border by zero would be wrong: an infinite or NaN factor there has to add nothing. Slow (about 1 GFLOP/s a core)
// and rare: networks with infinite weights have other worries, but they get the right NaNs. conv2d.cpp decides.
#pragma once

#include <cstring>
#include <type_traits>

#include "cpu/conv2d/window_sum.h"

namespace convx {

template <class T>
void run_reference(const WindowSum<T>& sum);
template <class T>
void run_reference(const PixelSum<T>& sum);

// Over the bits and without an early end, which the compiler turns into vectors (0.1 ns a number, where std::isfinite
// one by one takes 1).
inline bool all_finite(const float* x, int64_t count) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < count; ++i) {
        uint32_t bits;
        std::memcpy(&bits, x + i, sizeof bits);
        bad |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return !bad;
}
inline bool all_finite(const double* x, int64_t count) {
    uint64_t bad = 0;
    for (int64_t i = 0; i < count; ++i) {
        uint64_t bits;
        std::memcpy(&bits, x + i, sizeof bits);
        bad |= (bits & 0x7ff0000000000000u) == 0x7ff0000000000000u;
    }
    return !bad;
}

template <class T>
bool has_nan(const T* x, int64_t count) {
    std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t> found = 0;  // a bool would not become a vector: 0.4 ns
    for (int64_t i = 0; i < count; ++i) found |= x[i] != x[i];
    return found != 0;
}

// test(first, count) of all values, in one piece where the array is dense, in rows where these are.
template <class T, class Test>
bool holds_for_all(const TensorView<const T>& view, const Test& test) {
    if (view.stride == dense_strides(view.shape, false) || view.stride == dense_strides(view.shape, true))
        return test(view.data, view.size());
    const auto [batch, channels, height, width] = view.shape;
    const bool inside = view.stride[1] == 1 && view.stride[3] == channels;  // channels within a row
    const int64_t pixels = inside || view.stride[3] == 1 ? width : 1, together = inside ? channels : 1;
    bool holds = true;
    for (int64_t n = 0; n < batch; ++n)
        for (int64_t c = 0; c < channels; c += together)
            for (int64_t h = 0; h < height; ++h)
                for (int64_t w = 0; w < width; w += pixels) holds &= test(view.at(n, c, h, w), pixels * together);
    return holds;
}
template <class T>
bool all_finite(const TensorView<const T>& view) {
    return holds_for_all(view, [](const T* x, int64_t count) { return all_finite(x, count); });
}
template <class T>
bool has_nan(const TensorView<const T>& view) {
    return !holds_for_all(view, [](const T* x, int64_t count) { return !has_nan(x, count); });
}

}  // namespace convx
