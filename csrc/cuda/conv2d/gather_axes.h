// How the windows of one axis step over their source: the forward pass, and its adjoint for each phase.
#pragma once

#include <algorithm>
#include <numeric>

#include "cuda/conv2d/image_gather.cuh"

namespace convx::cuda {

struct WindowAxis {
    GatherAxis gather;
    int64_t positions;     // window positions
    int64_t first_tap;     // kernel index r of tap 0
    int64_t tap_stride;    // kernel indices between taps
    int64_t first_pixel;   // the result's index of position 0
    int64_t pixel_stride;  // and between positions
};

inline WindowAxis forward_axis(const Axis& axis) { return {GatherAxis(axis), axis.output(), 0, 1, 0, 1}; }

// The taps that reach a phase of the input (common/problem.h) lie stride / gcd(stride, dilation) apart. So the adjoint
// multiplies no inserted zeros, and has the form of a forward pass with stride 1.
inline WindowAxis adjoint_axis(const Axis& axis, int64_t phase) {
    GatherAxis gather;
    const int64_t tap_stride = axis.stride / std::gcd(axis.stride, axis.dilation);
    int64_t first_tap = 0;
    while (first_tap < axis.kernel && !axis.reaches(phase, first_tap)) ++first_tap;
    gather.taps = first_tap < axis.kernel ? static_cast<int>((axis.kernel - 1 - first_tap) / tap_stride + 1) : 0;
    gather.offset = static_cast<int>(axis.first_window(phase, first_tap));
    gather.tap_step = static_cast<int>(-(axis.dilation * tap_stride) / axis.stride);
    gather.size = static_cast<int>(axis.output());
    return {gather, axis.phase_cells(phase), first_tap, tap_stride, phase, axis.stride};
}

// The windows of both axes over a tensor; `channels`: of a group.
template <class T>
ImageGather<T> image_gather(const Tensor& tensor, const WindowAxis& h, const WindowAxis& w, int64_t channels,
                            double padding_value) {
    const auto divisor = [](int64_t size) { return Divisor(std::max<int64_t>(size, 1)); };
    ImageGather<T> image{};
    image.source = Strided4<const T>(tensor);
    image.h = h.gather;
    if (channels == 0) image.h.taps = 0;
    image.w = w.gather;
    image.pixels = static_cast<int>(tensor.shape[0] * h.positions * w.positions);
    image.depth = static_cast<int>(h.gather.taps * w.gather.taps * channels);
    image.rows = divisor(h.positions);
    image.columns = divisor(w.positions);
    image.channels = divisor(channels);
    image.window_columns = divisor(w.gather.taps);
    image.padding = host_number<T>(padding_value);
    return image;
}

}  // namespace convx::cuda
