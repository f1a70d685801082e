// A convolution or pooling problem whose options are resolved: sizes, never pointers.
//
//   N batch, C input channels, H W input size, K output channels, R S kernel size, P Q output size, G groups
//
// check.cpp builds these and is the only place that doubts them.
#pragma once

#include <cstdint>

#include "common/algorithm.h"
#include "common/tensor_view.h"

namespace convx {

enum class PaddingMode { zeros, constant, reflect, replicate, circular };

constexpr const char* padding_mode_names[] = {"zeros", "constant", "reflect", "replicate", "circular"};

// One spatial axis of a sliding window.
struct Axis {
    int64_t input = 1;   // H or W
    int64_t kernel = 1;  // R or S
    int64_t stride = 1;
    int64_t dilation = 1;
    int64_t pad_before = 0;
    int64_t pad_after = 0;
    PaddingMode mode = PaddingMode::zeros;  // pooling ignores it: its padding is never selected
    bool ceil_mode = false;                 // pooling only

    int64_t extent() const { return dilation * (kernel - 1) + 1; }
    int64_t padded() const { return input + pad_before + pad_after; }
    // Cells from the first that a window may cover to the last: with ceil_mode one may reach beyond the padding.
    int64_t covered() const { return padded() > extent() ? padded() : extent(); }

    // The number of window positions: P or Q.
    int64_t output() const {
        const int64_t room = padded() - extent();
        const int64_t rounded = room + (ceil_mode ? stride - 1 : 0);
        int64_t count = (rounded >= 0 ? rounded / stride : -((stride - 1 - rounded) / stride)) + 1;
        // A window may not start in the padding after the input.
        if (ceil_mode && (count - 1) * stride >= input + pad_before) --count;
        return count;
    }

    // The input index under tap `k` of window `o`, before the borders are looked at.
    int64_t position(int64_t o, int64_t k) const { return o * stride + k * dilation - pad_before; }

    // The adjoint splits the input into phases, cells phase + i * stride, which different taps reach: tap `k` reaches
    // cell i of a phase from window first_window(phase, k) + i.
    int64_t phases() const { return stride < input ? stride : input; }
    int64_t phase_cells(int64_t phase) const { return phase < input ? (input - 1 - phase) / stride + 1 : 0; }
    bool reaches(int64_t phase, int64_t k) const { return (phase + pad_before - k * dilation) % stride == 0; }
    int64_t first_window(int64_t phase, int64_t k) const { return (phase + pad_before - k * dilation) / stride; }

    // Whether gradients of the border's cells go back inside: it mirrors or wraps.
    bool folds() const {
        const bool mirrored = mode != PaddingMode::zeros && mode != PaddingMode::constant;
        return mirrored && (pad_before > 0 || pad_after > 0);
    }
    // The axis of the padded image, without a border of its own, where it folds: the adjoint is taken of that first.
    Axis unfolded() const {
        if (!folds()) return *this;
        Axis padded_axis = *this;
        padded_axis.input = padded();
        padded_axis.pad_before = padded_axis.pad_after = 0;
        padded_axis.mode = PaddingMode::zeros;
        return padded_axis;
    }
    bool operator==(const Axis& other) const {
        return input == other.input && kernel == other.kernel && stride == other.stride && dilation == other.dilation &&
               pad_before == other.pad_before && pad_after == other.pad_after && mode == other.mode &&
               ceil_mode == other.ceil_mode;
    }
};

struct ConvProblem {
    DType dtype = DType::float32;
    int64_t batch = 1;         // N
    int64_t in_channels = 1;   // C
    int64_t out_channels = 1;  // K
    int64_t groups = 1;        // G
    Axis h, w;
    double padding_value = 0.0;  // for PaddingMode::constant
    bool relu = false;           // fused behind the forward pass
    Algorithm algorithm = Algorithm::automatic;
    bool channels_last = false;  // the memory order of arrays that convx allocates

    int64_t group_in() const { return groups ? in_channels / groups : 0; }
    int64_t group_out() const { return groups ? out_channels / groups : 0; }
    int64_t taps() const { return h.kernel * w.kernel; }
    int64_t out_h() const { return h.output(); }
    int64_t out_w() const { return w.output(); }
    int64_t out_pixels() const { return out_h() * out_w(); }
    int64_t flops() const { return 2 * batch * out_channels * out_pixels() * group_in() * taps(); }
    bool is_padded() const { return h.pad_before > 0 || h.pad_after > 0 || w.pad_before > 0 || w.pad_after > 0; }

    std::array<int64_t, 4> input_shape() const { return {batch, in_channels, h.input, w.input}; }
    ConvProblem of_batch(int64_t images) const {
        ConvProblem some = *this;
        some.batch = images;
        return some;
    }
    std::array<int64_t, 4> weight_shape() const { return {out_channels, group_in(), h.kernel, w.kernel}; }
    std::array<int64_t, 4> output_shape() const { return {batch, out_channels, out_h(), out_w()}; }
    // The same for one image.
    bool same_image(const ConvProblem& other) const {
        return dtype == other.dtype && in_channels == other.in_channels && out_channels == other.out_channels &&
               groups == other.groups && h == other.h && w == other.w && padding_value == other.padding_value &&
               relu == other.relu && algorithm == other.algorithm && channels_last == other.channels_last;
    }
};

// A transposed convolution: the input gradient of a convolution, with a bias. The convolution writes its input and
// reads its output, so the letters change places: problem.conv has the output as its input, K as its C.
struct ConvTransposeProblem {
    ConvProblem conv;
    // Of the output. Its last cells, behind conv.h.input and conv.w.input, are those that no window reaches: the bias
    // alone, as everywhere where the convolution is empty.
    int64_t out_h = 1, out_w = 1;
    std::array<int64_t, 4> input_shape{};

    bool is_empty() const { return conv.out_channels == 0 || conv.h.input == 0 || conv.w.input == 0; }
    std::array<int64_t, 4> output_shape() const { return {conv.batch, conv.in_channels, out_h, out_w}; }
    // The 1x1 convolution whose output has the shape of this output: its bias has the same gradient.
    ConvProblem bias_sum() const {
        ConvProblem sum;
        sum.dtype = conv.dtype;
        sum.batch = conv.batch;
        sum.out_channels = conv.in_channels;
        sum.h.input = out_h;
        sum.w.input = out_w;
        return sum;
    }
};

struct PoolProblem {
    DType dtype = DType::float32;
    int64_t batch = 1;     // N
    int64_t channels = 1;  // C
    Axis h, w;
    bool channels_last = false;

    int64_t taps() const { return h.kernel * w.kernel; }
    int64_t out_h() const { return h.output(); }
    int64_t out_w() const { return w.output(); }
    // No index of a cell under a window, inside the image or not, is farther than this from that of another.
    int64_t covered_cells() const { return h.covered() * w.covered(); }
    std::array<int64_t, 4> input_shape() const { return {batch, channels, h.input, w.input}; }
    std::array<int64_t, 4> output_shape() const { return {batch, channels, out_h(), out_w()}; }
};

// A convolution with its ReLU, and the pooling of its output; both resolved and for the same batch.
struct FusedProblem {
    ConvProblem conv;
    PoolProblem pool;
};

// What a window code can name: taps 0..254, and 255 for "no gradient".
constexpr int64_t max_code_taps = 255;
constexpr uint8_t no_gradient_code = 255;

}  // namespace convx
