// The weight gradient as an implicit GEMM: output channels are rows, taps (r, s, c) columns, and the sum runs over the
// pixels of the batch, cut into parts that the plan fixes; a second kernel adds the parts in order. No atomics: the
// same bits on every run.
#pragma once

#include <algorithm>

#include "cuda/conv2d/gather_axes.h"
#include "cuda/conv2d/implicit_gemm.cuh"
#include "cuda/conv2d/plan.h"
#include "cuda/conv2d/tiles.cuh"
#include "cuda/launch.cuh"
#include "cuda/numbers.cuh"

namespace convx::cuda {

template <class T>
struct WeightGrad {
    ImageGather<T> grads;   // grad_output, read as by a 1x1 kernel: its taps are output channels
    ImageGather<T> images;  // the input
    T* result;
    int64_t result_k, result_c, result_r, result_s;  // strides
    int rows, columns, groups, parts;
    Sum<T>* partial;  // [part][group][row][column]
    Sum<T>* carried;  // none: one run is all
    bool first, last;
    bool skips;  // the parts are sums of the law already

    // The law's sum: pixels whose tap lies outside under zeros are skipped.
    __device__ Sum<T> exact(int group, int row, int column) const {
        ImageGather<T> g = grads, x = images;
        g.data += static_cast<int64_t>(group) * rows * g.stride_c;
        x.data += static_cast<int64_t>(group) * x.channels.value * x.stride_c;
        const auto channel = g.tap(row);
        const auto tap = x.tap(column);
        Sum<T> sum = 0;
        for (int i = 0; i < x.pixels; ++i) {
            const T *grad = nullptr, *element = nullptr;
            g.find(g.pixel(i), channel, grad);
            const auto found = x.find(x.pixel(i), tap, element);
            if (found == ImageGather<T>::Found::nothing) continue;
            const T value = found == ImageGather<T>::Found::element ? *element : x.padding;
            sum = multiply_add(to_sum(*grad), to_sum(value), sum);
            if (is_nan(sum)) break;  // and stays it: where gradients overflowed, after a few pixels of millions
        }
        return sum;
    }
};

template <class T>
struct PartialOutput {
    __device__ void begin(int first_of_rows, int first_of_columns, int part, int group) {
        first_row = first_of_rows;
        first_column = first_of_columns;
        sums = grad.partial + (static_cast<int64_t>(part) * grad.groups + group) * grad.rows * grad.columns;
    }
    __device__ void begin_row(int row_in_tile) { row = first_row + row_in_tile; }
    __device__ void store(int, int column_in_tile, Sum<T> value) {
        const int column = first_column + column_in_tile;
        if (row < grad.rows && column < grad.columns) sums[static_cast<int64_t>(row) * grad.columns + column] = value;
    }

    WeightGrad<T> grad;
    int first_row, first_column, row;
    Sum<T>* sums;
};

// One thread an element of the gradient, in the order of the partial sums.
template <class T>
__global__ void __launch_bounds__(256, 4) add_parts(WeightGrad<T> grad) {
    const int64_t of_part = int64_t{grad.groups} * grad.rows * grad.columns;
    const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (index >= of_part) return;
    const int64_t line = index / grad.columns;
    const int column = static_cast<int>(index - line * grad.columns);
    const int group = static_cast<int>(line / grad.rows);
    const int row = static_cast<int>(line - int64_t{group} * grad.rows);
    Sum<T> sum = 0;
    for (int part = 0; part < grad.parts; ++part) sum += grad.partial[part * of_part + index];
    if (is_nan(sum) && !grad.skips) sum = grad.exact(group, row, column);
    if (!grad.first) sum += grad.carried[index];
    if (!grad.last) {
        grad.carried[index] = sum;
        return;
    }
    const auto tap = grad.images.tap(column);
    grad.result[line * grad.result_k + tap.c * grad.result_c + tap.r * grad.result_r + tap.s * grad.result_s] =
        from_sum<T>(sum);
}

template <class T>
void add_parts_in_order(const WeightGrad<T>& grad, Stream stream) {
    const int64_t elements = int64_t{grad.groups} * grad.rows * grad.columns;
    launch_each<256>(elements, add_parts<T>, stream, grad);
}

template <class T>
WeightGrad<T> weight_grad(const ConvProblem& problem, const Tensor& grad_output, const Tensor& input,
                          const Tensor& grad_weight, void* workspace, int parts) {
    Axis p, q;
    p.input = problem.out_h();
    q.input = problem.out_w();
    WeightGrad<T> grad{};
    grad.grads = image_gather<T>(grad_output, forward_axis(p), forward_axis(q), problem.group_out(), 0.0);
    grad.images = image_gather<T>(input, forward_axis(problem.h), forward_axis(problem.w), problem.group_in(),
                                  problem.padding_value);
    grad.result = static_cast<T*>(grad_weight.data);
    grad.result_k = grad_weight.stride[0];
    grad.result_c = grad_weight.stride[1];
    grad.result_r = grad_weight.stride[2];
    grad.result_s = grad_weight.stride[3];
    grad.rows = static_cast<int>(problem.group_out());
    grad.columns = static_cast<int>(problem.group_in() * problem.taps());
    grad.groups = static_cast<int>(problem.groups);
    grad.parts = parts;
    grad.partial = static_cast<Sum<T>*>(workspace);
    return grad;
}

template <class Tile>
void run_gemm_grad_weight(const WeightGrad<typename Tile::Element>& grad, bool channels_adjacent, int64_t steps_of_part,
                          Stream stream) {
    using T = typename Tile::Element;
    const int column_tiles = tiles_of(grad.columns, Tile::columns);
    const int row_tiles = tiles_of(grad.rows, Tile::rows);
    const int depth_steps = tiles_of(grad.images.pixels, Tile::depth);
    PartialOutput<T> output{};
    output.grad = grad;
    const auto start = [&](auto adjacent) {
        constexpr Adjacent way = decltype(adjacent)::value;
        using Grads = ImageOperand<Tile, Tile::rows, Lines::taps, way>;
        using Images = ImageOperand<Tile, Tile::columns, Lines::taps, way>;
        launch(implicit_gemm<Tile, Grads, Images, PartialOutput<T>>,
               dim3(static_cast<unsigned>(row_tiles) * static_cast<unsigned>(column_tiles),
                    static_cast<unsigned>(grad.parts), static_cast<unsigned>(grad.groups)),
               Tile::threads, implicit_gemm_shared<Tile>, stream, grad.grads, grad.images, output, column_tiles,
               depth_steps, static_cast<int>(steps_of_part));
    };
    if (channels_adjacent)
        start(std::integral_constant<Adjacent, Adjacent::lines>{});
    else
        start(std::integral_constant<Adjacent, Adjacent::depth>{});
    add_parts_in_order(grad, stream);
}

}  // namespace convx::cuda
