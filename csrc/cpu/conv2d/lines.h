// Lines of memory, (input channel, tap) side by side, read in place wherever the array allows it: the weight of an
// output channel, and the patch that a window covers.
#pragma once

#include "cpu/conv2d/window_sum.h"
#include "cpu/runtime/thread_pool.h"

namespace convx {

// The weight of each output channel.
template <class T>
class WeightLines {
public:
    explicit WeightLines(const TensorView<const T>& weight)
        : weight_(weight), depth_(weight.shape[1] * weight.shape[2] * weight.shape[3]), first_(weight.data),
          step_(weight.stride[0]) {
        const auto [k, channels, height, width] = weight.shape;
        (void)k;
        in_place_ = (width == 1 || weight.stride[3] == 1) && (height == 1 || weight.stride[2] == width) &&
                    (channels == 1 || weight.stride[1] == height * width);
    }

    int64_t copied() const { return in_place_ ? 0 : weight_.shape[0] * depth_; }  // elements

    // Before the first line is asked for; `copies` has room for copied() elements.
    void prepare(T* copies, int threads) {
        if (in_place_) return;
        parallel_for(weight_.shape[0], threads, [&](int64_t k, int) {
            T* to = copies + k * depth_;
            for (int64_t c = 0; c < weight_.shape[1]; ++c)
                for (int64_t r = 0; r < weight_.shape[2]; ++r)
                    for (int64_t s = 0; s < weight_.shape[3]; ++s) *to++ = *weight_.at(k, c, r, s);
        });
        first_ = copies;
        step_ = depth_;
    }
    const T* operator[](int64_t k) const { return first_ + k * step_; }
    int64_t step() const { return step_; }

private:
    const TensorView<const T> weight_;
    const int64_t depth_;
    bool in_place_;
    const T* first_;
    int64_t step_;
};

// Whether a patch is a line of the input: taps of a row, rows of a channel, and channels follow each other.
inline bool covers_lines(const ConvProblem& problem, const std::array<int64_t, 4>& stride) {
    const Axis &h = problem.h, &w = problem.w;
    return h.padded() == h.input && w.padded() == w.input && (w.kernel == 1 || stride[3] * w.dilation == 1) &&
           (h.kernel == 1 || stride[2] * h.dilation == w.kernel) &&
           (problem.group_in() == 1 || stride[1] == problem.taps());
}

// The patch of each output pixel of the batch.
template <class T>
class PatchLines {
public:
    PatchLines(const ConvProblem& problem, const TensorView<const T>& input, T pad)
        : problem_(problem), input_(input), pad_(pad), h_(forward_table(problem.h)), w_(forward_table(problem.w)),
          in_place_(covers_lines(problem, input.stride)) {}

    bool in_place() const { return in_place_; }
    PixelPlace place(int64_t pixel) const { return place_of(h_.positions, w_.positions, pixel); }
    const T* at(int64_t group, int64_t pixel) const {
        const auto [n, i, j] = place(pixel);
        return input_.at(n, group * problem_.group_in(), h_.at(0, i), w_.at(0, j));
    }
    void copy(int64_t group, int64_t pixel, T* to) const {
        const auto [n, i, j] = place(pixel);
        const T* image = input_.at(n, group * problem_.group_in(), 0, 0);
        const int64_t step = input_.stride[3];
        for (int64_t c = 0; c < problem_.group_in(); ++c, image += input_.stride[1])
            for (int64_t r = 0; r < problem_.h.kernel; ++r) {
                const int64_t y = h_.at(r, i);
                const T* line = image + y * input_.stride[2];
                for (int64_t s = 0; s < problem_.w.kernel; ++s) {
                    const int64_t x = w_.at(s, j);
                    *to++ = y == AxisTable::outside || x == AxisTable::outside ? pad_ : line[x * step];
                }
            }
    }

private:
    const ConvProblem& problem_;
    const TensorView<const T> input_;
    const T pad_;
    const AxisTable h_, w_;
    const bool in_place_;
};

}  // namespace convx
