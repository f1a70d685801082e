// The weight gradient as an implicit GEMM: output channels are rows, taps (r, s, c) columns, and the sum runs over the
// pixels of the batch under split-K, whose parts the plan fixes; a second kernel adds the parts in order. No atomics:
// the same bits on every run.
#pragma once

#include "cuda/conv2d/gather_axes.h"
#include "cuda/conv2d/implicit_gemm.cuh"
#include "cuda/conv2d/tiles.cuh"

namespace convx::cuda {

template <class T>
struct PixelSum {
    ImageGather<T> grads;   // grad_output, read as by a 1x1 kernel: its taps are output channels
    ImageGather<T> images;  // the input
    Strided4<T> result;     // indexed by (row of all groups, c, r, s)
    int rows, columns, groups, parts;
    Sum<T>* partial;  // [part][group][row][column]
    Sum<T>* carried;  // null: one run is all
    bool first, last;
    bool is_exact;  // the parts have skipped what `exact` skips

    __device__ __host__ int64_t elements() const { return int64_t{groups} * rows * columns; }

    // The sum by definition: pixels whose tap lies outside under zeros are skipped.
    __device__ Sum<T> exact(int group, int row, int column) const {
        ImageGather<T> g = grads, x = images;
        g.to_group(group);
        x.to_group(group);
        const auto channel = g.tap(row);
        const auto tap = x.tap(column);
        Sum<T> sum = 0;
        for (int i = 0; i < x.pixels; ++i) {
            T value;
            if (!x.read(x.pixel(i), tap, value)) continue;
            sum = multiply_add(to_sum(g.load(g.pixel(i), channel)), to_sum(value), sum);
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
        sums = grad.partial + (int64_t{part} * grad.groups + group) * grad.rows * grad.columns;
    }
    __device__ void begin_row(int row_in_tile) { row = first_row + row_in_tile; }
    __device__ void store(int, int column_in_tile, Sum<T> value) {
        const int column = first_column + column_in_tile;
        if (row < grad.rows && column < grad.columns) sums[static_cast<int64_t>(row) * grad.columns + column] = value;
    }

    PixelSum<T> grad;
    int first_row, first_column, row;
    Sum<T>* sums;
};

// One thread an element of the gradient, in the order of the partial sums.
template <class T>
struct AddParts {
    __device__ void operator()(int64_t index) const {
        const int64_t line = index / grad.columns;
        const int column = static_cast<int>(index - line * grad.columns);
        const int group = static_cast<int>(line / grad.rows);
        Sum<T> sum = 0;
        for (int part = 0; part < grad.parts; ++part) sum += grad.partial[part * grad.elements() + index];
        if (is_nan(sum) && !grad.is_exact)
            sum = grad.exact(group, static_cast<int>(line - int64_t{group} * grad.rows), column);
        if (!grad.first) sum += grad.carried[index];
        if (!grad.last) {
            grad.carried[index] = sum;
            return;
        }
        const auto tap = grad.images.tap(column);
        *grad.result.at({static_cast<int>(line), tap.c, tap.r, tap.s}) = from_sum<T>(sum);
    }

    PixelSum<T> grad;
};

template <class T>
PixelSum<T> pixel_sum(const ConvProblem& problem, const Tensor& grad_output, const Tensor& input,
                      const Tensor& grad_weight, void* workspace, int parts) {
    Axis p, q;
    p.input = problem.out_h();
    q.input = problem.out_w();
    PixelSum<T> grad{};
    grad.grads = image_gather<T>(grad_output, forward_axis(p), forward_axis(q), problem.group_out(), 0.0);
    grad.images = image_gather<T>(input, forward_axis(problem.h), forward_axis(problem.w), problem.group_in(),
                                  problem.padding_value);
    grad.result = Strided4<T>(grad_weight);
    grad.rows = static_cast<int>(problem.group_out());
    grad.columns = static_cast<int>(problem.group_in() * problem.taps());
    grad.groups = static_cast<int>(problem.groups);
    grad.parts = parts;
    grad.partial = static_cast<Sum<T>*>(workspace);
    return grad;
}

template <class Tile>
void run_gemm_grad_weight(const PixelSum<typename Tile::Element>& grad, bool channels_adjacent, int steps_of_part,
                          Stream stream) {
    PartialOutput<typename Tile::Element> output{};
    output.grad = grad;
    const GemmSize size{grad.rows, grad.columns, grad.images.pixels, grad.groups};
    const auto start = [&](auto of_thread) {
        constexpr Adjacent adjacent = decltype(of_thread)::value;
        run_implicit_gemm<Tile, ImageOperand<Tile, Tile::rows, Lines::taps, adjacent>,
                          ImageOperand<Tile, Tile::columns, Lines::taps, adjacent>>(
            grad.grads, grad.images, output, size, stream, grad.parts, steps_of_part);
    };
    if (channels_adjacent)
        start(std::integral_constant<Adjacent, Adjacent::lines>{});
    else
        start(std::integral_constant<Adjacent, Adjacent::depth>{});
}

}  // namespace convx::cuda
