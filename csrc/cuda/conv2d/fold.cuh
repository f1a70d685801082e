// The gradient of the padded image, folded: where a border mirrors or wraps, each input pixel adds up the pixels of the
// padded image that show it, in ascending order. A few pixels near a border look through all of an axis' border, every
// other one reads a single value. Bound by memory.
#pragma once

#include "cuda/conv2d/image_gather.cuh"

namespace convx::cuda {

// Calls visit(pixel) for the pixels of the padded axis that show `shown`, in ascending order.
template <class Visit>
__device__ void each_showing(const GatherAxis& axis, int padded, int shown, const Visit& visit) {
    const int before = -axis.offset, inside = before + axis.size;
    for (int pixel = 0; pixel < before; ++pixel)
        if (axis.source(pixel + axis.offset) == shown) visit(pixel);
    visit(before + shown);
    for (int pixel = inside; pixel < padded; ++pixel)
        if (axis.source(pixel + axis.offset) == shown) visit(pixel);
}

template <class T>
struct Fold {
    __device__ void operator()(const Index4& at) const {
        const Sum<T>* const image = padded.image(at.n, at.c);
        Sum<T> sum = 0;
        each_showing(h, padded_height, at.h, [&](int row) {
            each_showing(w, padded_width, at.w, [&](int column) { sum += image[row * padded.h + column * padded.w]; });
        });
        *result.at(at) = from_sum<T>(sum);
    }

    Strided4<const Sum<T>> padded;
    Strided4<T> result;
    int padded_height, padded_width;
    GatherAxis h, w;  // what a pixel of the padded axis shows: source(pixel + offset)
};

template <class T>
void fold(const ConvProblem& problem, const Tensor& padded, const Tensor& result, Stream stream) {
    // An axis that does not fold still has its border in the problem, of zeros or a constant: no gradient comes back
    // from that, and the padded image has the size of the image there.
    const auto shown = [](const Axis& axis, int64_t padded_size) {
        GatherAxis gather(axis);
        if (padded_size == axis.input) gather.offset = 0;
        return gather;
    };
    const auto [batch, channels, height, width] = padded.shape;
    const Fold<T> fold{Strided4<const Sum<T>>(padded), Strided4<T>(result),      static_cast<int>(height),
                       static_cast<int>(width),        shown(problem.h, height), shown(problem.w, width)};
    launch_elements<4>(result.shape, false, 1, fold, stream);
}

}  // namespace convx::cuda
