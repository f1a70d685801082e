#include "cpu/fused/row_blocks.h"

#include "cpu/conv2d/methods.h"
#include "cpu/runtime/registry.h"

namespace convx {

namespace {

// As many rows as fit, in steps of the alignment, at least two of these.
int64_t fitting_rows(const FusedProblem& problem) {
    const int64_t rows = problem.conv.out_h();
    if (conv_image_bytes(problem) <= row_block_bytes) return rows;
    const int64_t row_bytes = conv_image_bytes(problem) / rows;
    const int64_t fit = std::max<int64_t>(row_block_bytes / row_bytes / row_alignment, 2) * row_alignment;
    return std::min(fit, rows);
}

// Of the backward pass: more, where Winograd's weights are to be transformed for each block.
int64_t backward_rows(const FusedProblem& problem) {
    const int64_t rows = problem.conv.out_h(), fit = fitting_rows(problem);
    if (!traits_of(problem.conv, ConvPass::grad_input).own_parallelism) return fit;
    const int64_t tile_columns = ceil_div(problem.conv.w.input, winograd_outputs);
    const int64_t wanted = winograd_outputs * ceil_div(winograd_block_tiles, tile_columns);
    const int64_t most = most_group_bytes / 2 / std::max<int64_t>(conv_image_bytes(problem) / rows, 1);
    return std::clamp<int64_t>(std::min(wanted, most / row_alignment * row_alignment), fit, rows);
}

bool same_method(const ConvProblem& whole, const Axis& h, ConvPass pass) {
    ConvProblem part = whole;
    part.h = h;
    return &choose_method(part, pass, active_kernels()) == &choose_method(whole, pass, active_kernels());
}

}  // namespace

int64_t forward_rows(const FusedProblem& problem) {
    const int64_t rows = problem.conv.out_h(), block = fitting_rows(problem);
    // It leaves an image with an inf, a NaN or an overflow to another method, which a block cannot know of its
    // neighbours.
    if (traits_of(problem.conv, ConvPass::forward).whole_images) return rows;
    for (int64_t begin = 0; block < rows && begin < rows; begin += block) {
        const AxisPart part(problem.conv.h, begin, std::min(rows, begin + block));
        if (part.axis.input == 0 || !same_method(problem.conv, part.axis, ConvPass::forward)) return rows;
    }
    return block;
}

int64_t winograd_images(const FusedProblem& problem) {
    const ConvProblem& conv = problem.conv;
    const int64_t tiles = ceil_div(conv.out_h(), winograd_outputs) * ceil_div(conv.out_w(), winograd_outputs);
    const int64_t fit = most_group_bytes / std::max<int64_t>(conv_image_bytes(problem), 1);
    return std::clamp<int64_t>(std::min(fit, ceil_div(winograd_block_tiles, tiles)), 1,
                               std::max<int64_t>(conv.batch, 1));
}

RowBlock fused_row_block(const FusedProblem& problem) {
    const int64_t rows = forward_rows(problem);
    if (rows < problem.conv.out_h()) return {1, rows};
    const bool in_turn = traits_of(problem.conv, ConvPass::forward).own_parallelism;
    return {in_turn ? winograd_images(problem) : images_of_task(problem), rows};
}

Axis BackwardBlock::adjoint_axis(const Axis& h) const {
    Axis axis = h;
    axis.input = input_end - input_begin;
    axis.pad_before = h.pad_before + input_begin - halo_begin * h.stride;
    axis.pad_after = (end - halo_begin - 1) * h.stride + h.extent() - axis.input - axis.pad_before;
    return axis;
}

namespace {

BackwardBlock backward_block(const FusedProblem& problem, int64_t begin, int64_t end, int64_t input_begin,
                             int64_t input_end) {
    const Axis &h = problem.conv.h, &pool = problem.pool.h;
    const int64_t reach = input_begin + h.pad_before - h.extent() + 1;  // of the first tap that could hit the first row
    BackwardBlock block{begin, end, input_begin, input_end, ceil_div(std::max<int64_t>(reach, 0), h.stride), 0, 0};
    const int64_t first = std::min(begin, block.halo_begin);
    block.pool_begin = ceil_div(std::max<int64_t>(first + pool.pad_before - pool.extent() + 1, 0), pool.stride);
    block.pool_end = std::min(pool.output(), (end - 1 + pool.pad_before) / pool.stride + 1);
    return block;
}

}  // namespace

// Cuts lie at multiples of the alignment: of grad_input's rows where the stride is 1, else of the convolution's.
std::vector<BackwardBlock> backward_blocks(const FusedProblem& problem) {
    const Axis& h = problem.conv.h;
    const int64_t rows = problem.conv.out_h(), step = backward_rows(problem);
    BackwardBlock whole = backward_block(problem, 0, rows, 0, h.input);
    whole.halo_begin = 0;  // rows in the border that no input is read by stay part of the problem
    std::vector<BackwardBlock> blocks;
    for (int64_t begin = 0, input_begin = 0, k = 1; begin < rows; ++k) {
        int64_t end = k * step + (h.stride == 1 ? h.pad_before : 0), input_end = end * h.stride - h.pad_before;
        if (end >= rows || input_end >= h.input) {
            end = rows;
            input_end = h.input;
        }
        if (input_end <= input_begin) return {whole};
        const BackwardBlock block = backward_block(problem, begin, end, input_begin, input_end);
        const Axis adjoint = block.adjoint_axis(h);
        const AxisPart part(h, begin, end);
        if (block.halo_begin >= end || adjoint.pad_before < 0 || adjoint.pad_after < 0 || part.axis.input == 0 ||
            !same_method(problem.conv, part.axis, ConvPass::grad_weight) ||
            !same_method(problem.conv, adjoint, ConvPass::grad_input))
            return {whole};
        blocks.push_back(block);
        begin = end;
        input_begin = input_end;
    }
    if (blocks.size() == 1) return {whole};
    return blocks;
}

}  // namespace convx
