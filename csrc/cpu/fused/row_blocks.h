// The fused block in blocks: which rows and images go through together, and what a block of rows is as a problem of its
// own.
#pragma once

#include <algorithm>
#include <vector>

#include "common/rounding.h"
#include "cpu/fused/conv2d_relu_max_pool2d.h"

namespace convx {

// Convolution output (or its gradient) that a task has at a time: it stays in L2 or, with all cores at work, in L3.
constexpr int64_t row_block_bytes = int64_t{1} << 20;

// Rows of tiles that a method may compute together (Winograd): a block that starts at a multiple of these has the bits
// of the whole image.
constexpr int64_t row_alignment = 4;

// Enough tasks that the last round of a few threads wastes little.
constexpr int64_t fused_tasks = 16;

// Work of the block for the choice of threads: pooling takes as long as two thirds of a small convolution.
inline int64_t fused_flops(const FusedProblem& problem) { return 3 * problem.conv.flops(); }

inline int64_t conv_image_bytes(const FusedProblem& problem) {
    return problem.conv.out_channels * problem.conv.out_pixels() * item_size(problem.conv.dtype);
}

// Work of a task beside which its calls of convolution and pooling cost little (about 5 us).
constexpr int64_t least_task_flops = 4'000'000;

// Images that go through together where whole ones do: those that fit; of a large batch no more than make enough
// tasks.
inline int64_t images_of_task(const FusedProblem& problem) {
    const int64_t batch = std::max<int64_t>(problem.conv.batch, 1);
    const int64_t fit = row_block_bytes / std::max<int64_t>(conv_image_bytes(problem), 1);
    const int64_t least = least_task_flops * batch / std::max<int64_t>(problem.conv.flops(), 1);
    return std::clamp<int64_t>(std::min(fit, std::max(ceil_div(batch, fused_tasks), least)), 1, batch);
}

// Winograd transforms its weights in every call, which costs as much as some 50 tiles: so that it gets at least
// winograd_block_tiles in one, if their output stays within most_group_bytes, in the last-level cache. Its calls share
// themselves out.
constexpr int64_t winograd_block_tiles = 1024;
constexpr int64_t most_group_bytes = int64_t{16} << 20;
int64_t winograd_images(const FusedProblem& problem);

// Windows [begin, end) of an axis as an axis of its own, over the part of the input that they see.
struct AxisPart {
    Axis axis;
    int64_t input_begin;

    AxisPart(const Axis& whole, int64_t begin, int64_t end) : axis(whole) {
        const int64_t first = whole.position(begin, 0), stop = whole.position(end - 1, whole.kernel - 1) + 1;
        input_begin = std::clamp<int64_t>(first, 0, whole.input);
        axis.input = std::clamp<int64_t>(stop, input_begin, whole.input) - input_begin;
        axis.pad_before = input_begin - first;
        axis.pad_after = stop - first - axis.pad_before - axis.input;
        axis.ceil_mode = false;
    }
    int64_t input_end() const { return input_begin + axis.input; }
};

// Rows [begin, end) of a view.
template <class T>
TensorView<T> rows_of(TensorView<T> view, int64_t begin, int64_t end) {
    view.data += begin * view.stride[2];
    view.shape[2] = end - begin;
    return view;
}

// The rows of a plane lie one behind the other, those of an image where channels are adjacent: visit(n, c, elements of
// a row) for each of these, c being the first channel.
template <class T, class Visit>
void for_each_plane(const TensorView<T>& view, const Visit& visit) {
    const int64_t inside = view.stride[1] == 1 ? view.shape[1] : 1;
    for (int64_t n = 0; n < view.shape[0]; ++n)
        for (int64_t c = 0; c < view.shape[1]; c += inside) visit(n, c, view.shape[3] * inside);
}

// Rows of convolution output in a block: all of them where that fits, where a block could lie in the padding, or where
// its method would not be that of the whole image (Winograd: forward always).
int64_t forward_rows(const FusedProblem& problem);

// The rows of a block of the backward pass. Its weight gradient is that of convolution rows [begin, end); its rows
// [input_begin, input_end) of grad_input get gradients from [halo_begin, end); and windows [pool_begin, pool_end) are
// all that selected something in these.
struct BackwardBlock {
    int64_t begin, end;
    int64_t input_begin, input_end;
    int64_t halo_begin;
    int64_t pool_begin, pool_end;

    // The adjoint that gives grad_input's rows from rows [halo_begin, end).
    Axis adjoint_axis(const Axis& h) const;
};

// One block, or several in order.
std::vector<BackwardBlock> backward_blocks(const FusedProblem& problem);

}  // namespace convx
