// The weight as one line of memory for each output channel: (input channel, tap) side by side, read in place wherever
// the array allows it.
#pragma once

#include "cpu/conv2d/window_sum.h"
#include "cpu/runtime/thread_pool.h"

namespace convx {

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

}  // namespace convx
