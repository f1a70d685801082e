// How the windows of one axis step over their source: the forward pass, and its adjoint for each residue class.
#pragma once

#include <numeric>
#include <vector>

#include "cuda/conv2d/image_gather.cuh"

namespace convx::cuda {

struct WindowAxis {
    GatherAxis gather;
    int64_t positions;    // window positions
    int64_t first_tap;    // kernel index r of tap 0
    int64_t tap_stride;   // kernel indices between taps
    int64_t first_cell;   // the destination's index of position 0
    int64_t cell_stride;  // and between positions
};

inline WindowAxis forward_axis(const Axis& axis) {
    GatherAxis gather;
    gather.step = static_cast<int>(axis.stride);
    gather.tap_step = static_cast<int>(axis.dilation);
    gather.offset = static_cast<int>(-axis.pad_before);
    gather.size = static_cast<int>(axis.input);
    gather.taps = static_cast<int>(axis.kernel);
    gather.mode = axis.mode;
    return {gather, axis.output(), 0, 1, 0, 1};
}

// Cells h = residue + i * stride read the outputs p with p * stride + r * dilation - pad = h: every r for which
// residue + pad - r * dilation is a multiple of the stride, and these lie stride / gcd(stride, dilation) apart. So the
// adjoint multiplies no inserted zeros, and has the form of a forward pass with stride 1.
inline WindowAxis adjoint_axis(const Axis& axis, int64_t residue) {
    GatherAxis gather;
    const int64_t tap_stride = axis.stride / std::gcd(axis.stride, axis.dilation);
    int64_t first_tap = 0;
    while (first_tap < axis.kernel && (residue + axis.pad_before - first_tap * axis.dilation) % axis.stride != 0)
        ++first_tap;
    gather.taps = first_tap < axis.kernel ? static_cast<int>((axis.kernel - 1 - first_tap) / tap_stride + 1) : 0;
    gather.offset = static_cast<int>((residue + axis.pad_before - first_tap * axis.dilation) / axis.stride);
    gather.tap_step = static_cast<int>(-(axis.dilation * tap_stride) / axis.stride);
    gather.size = static_cast<int>(axis.output());
    const int64_t positions = residue < axis.input ? (axis.input - 1 - residue) / axis.stride + 1 : 0;
    return {gather, positions, first_tap, tap_stride, residue, axis.stride};
}

}  // namespace convx::cuda
