// Borders that mirror or wrap send gradients back inside: each input cell adds up the cells of the padded image that
// show it, in ascending order. One thread a cell; a few cells near a border look through all of an axis' border, every
// other one reads a single value. Bound by memory.
#pragma once

#include "cuda/cells.cuh"
#include "cuda/conv2d/image_gather.cuh"

namespace convx::cuda {

template <class T>
struct Fold {
    const Sum<T>* padded;  // dense N, C, padded height, padded width
    Strided4<T> result;
    int64_t count;  // cells of the result
    int channels, height, width, padded_height, padded_width;
    GatherAxis h, w;  // what a padded cell shows: source(cell + offset)
};

// Calls visit(cell) for the padded cells that show `shown`, in ascending order.
template <class Visit>
__device__ void each_showing(const GatherAxis& axis, int padded, int shown, const Visit& visit) {
    const int before = -axis.offset, inside = before + axis.size;
    for (int cell = 0; cell < before; ++cell)
        if (axis.source(cell + axis.offset) == shown) visit(cell);
    visit(before + shown);
    for (int cell = inside; cell < padded; ++cell)
        if (axis.source(cell + axis.offset) == shown) visit(cell);
}

template <class T>
__global__ void __launch_bounds__(256, 4) fold_kernel(Fold<T> fold) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (index >= fold.count) return;
    const int64_t line = index / fold.width;
    const int w = static_cast<int>(index - line * fold.width);
    const int64_t plane = line / fold.height;
    const int h = static_cast<int>(line - plane * fold.height);
    const int n = static_cast<int>(plane / fold.channels), c = static_cast<int>(plane - int64_t{n} * fold.channels);
    const Sum<T>* const cells = fold.padded + plane * fold.padded_height * fold.padded_width;
    Sum<T> sum = 0;
    each_showing(fold.h, fold.padded_height, h, [&](int row) {
        each_showing(fold.w, fold.padded_width, w,
                     [&](int column) { sum += cells[static_cast<int64_t>(row) * fold.padded_width + column]; });
    });
    *fold.result.at({n, c, h, w}) = from_sum<T>(sum);
}

template <class T>
void fold(const ConvProblem& problem, const Tensor& padded, const Tensor& result, Stream stream) {
    // An axis that needs no folding has its border, of zeros or a constant, still around it in the problem: no gradient
    // of it comes back, and the padded image is as large as the image there.
    const auto shown = [](const Axis& axis, int64_t padded_size) {
        GatherAxis gather;
        gather.size = static_cast<int>(axis.input);
        gather.offset = padded_size == axis.input ? 0 : static_cast<int>(-axis.pad_before);
        gather.mode = axis.mode;
        return gather;
    };
    Fold<T> fold{};
    fold.padded = static_cast<const Sum<T>*>(padded.data);
    fold.result = Strided4<T>(result);
    fold.count = element_count(result.shape);
    fold.channels = static_cast<int>(result.shape[1]);
    fold.height = static_cast<int>(result.shape[2]);
    fold.width = static_cast<int>(result.shape[3]);
    fold.padded_height = static_cast<int>(padded.shape[2]);
    fold.padded_width = static_cast<int>(padded.shape[3]);
    fold.h = shown(problem.h, padded.shape[2]);
    fold.w = shown(problem.w, padded.shape[3]);
    launch_each<256>(fold.count, fold_kernel<T>, stream, fold);
}

}  // namespace convx::cuda
