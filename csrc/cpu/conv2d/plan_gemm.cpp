// The blocks of the implicit GEMM passes, and their description.
#include "cpu/conv2d/plan.h"

#include <algorithm>

#include "common/rounding.h"
#include "cpu/conv2d/axis_table.h"
#include "cpu/conv2d/implicit_gemm.h"

namespace convx {

namespace {

// One reused panel (depth x 6 or 16 floats) has to stay in a 32 KiB L1 beside the streamed one: 256 deep is 6 + 16 KiB.
constexpr int64_t target_depth = 256;
// Packed pixels of one task, in L2 (512 KiB and more) beside the weights that stream through.
constexpr int64_t pixel_block_bytes = 192 * 1024;
// Enough tasks that the last round of 4 to 16 threads wastes little; the number follows from the problem alone.
constexpr int64_t wanted_tasks = 48;

AxisTable densest_class(const Axis& axis) {
    const std::vector<AxisTable> classes = residue_classes(axis);
    return *std::max_element(classes.begin(), classes.end(),
                             [](const AxisTable& a, const AxisTable& b) { return a.taps.size() < b.taps.size(); });
}

}  // namespace

GemmBlocks plan_gemm_blocks(bool channels_last, int64_t pixels, int64_t groups, int64_t channels, int64_t rows,
                            int64_t taps, int64_t item_bytes, int mr, int nr) {
    GemmBlocks blocks;
    blocks.pixels_in_rows = channels_last;
    const int64_t pixel_width = channels_last ? mr : nr;
    const int64_t row_width = channels_last ? nr : mr;
    channels = std::max<int64_t>(channels, 1);
    taps = std::max<int64_t>(taps, 1);

    // The depth decides the order of sums, so it may depend on nothing but channels and taps. Even chunks.
    const int64_t chunks = ceil_div(channels, std::clamp(target_depth / taps, int64_t{1}, channels));
    blocks.chunk_channels = ceil_div(channels, chunks);

    // The smaller operand is packed once for all tasks, of the larger one every task packs its own part in L2. With
    // pixels the larger one: as many panels as fit and as leave enough tasks, with all rows.
    const int64_t depth = blocks.chunk_channels * taps;
    const int64_t panels = std::max<int64_t>(ceil_div(pixels, pixel_width), 1);
    const int64_t row_panels = ceil_div(std::max<int64_t>(rows, 1), row_width);
    const int64_t fit = std::max<int64_t>(pixel_block_bytes / (depth * pixel_width * item_bytes), 1);
    blocks.by_rows = panels * pixel_width < rows;
    if (blocks.by_rows) {
        blocks.block_panels = panels;
        blocks.pass_panels = ceil_div(panels, ceil_div(panels, fit));
        blocks.block_rows = std::min(ceil_div(row_panels * groups, wanted_tasks) + 1, row_panels) * row_width;
        return blocks;
    }
    blocks.block_panels = std::clamp(panels * groups / (2 * wanted_tasks), int64_t{1}, fit);
    blocks.pass_panels = blocks.block_panels;
    const int64_t pixel_tasks = groups * ceil_div(panels, blocks.block_panels);
    // Splitting rows packs the pixels again for each part, so a part keeps at least 8 panels.
    const int64_t row_parts = std::clamp(ceil_div(wanted_tasks, pixel_tasks), int64_t{1}, ceil_div(row_panels, 8));
    blocks.block_rows = ceil_div(row_panels, row_parts) * row_width;
    return blocks;
}

namespace {

// `size` in blocks of about the same number of panels, `most` at most.
int64_t even_blocks(int64_t size, int64_t most, int64_t width) {
    const int64_t panels = ceil_div(std::max<int64_t>(size, 1), width);
    const int64_t parts = ceil_div(panels * width, most);
    return ceil_div(panels, parts) * width;
}

}  // namespace

template <class T>
GradWeightBlocks plan_grad_weight_blocks(const ConvProblem& problem, const KernelSet<T>& kernels) {
    GradWeightBlocks blocks;
    const int64_t rows = problem.group_out(), columns = problem.group_in() * problem.taps();
    blocks.plane = std::max<int64_t>(problem.out_pixels(), 1);
    blocks.pixels = problem.batch * problem.out_pixels();
    // A chunk of an image, or several images: 2 KiB of pixels a line, so that 2 tiles of columns and one of rows share
    // L1, and the sum across lanes at its end (about 20 cycles a tile) is 5 to 8 % of the tile's 300.
    const int64_t target = 2048 / static_cast<int64_t>(sizeof(T));
    blocks.parts = ceil_div(blocks.plane, target);
    if (blocks.parts > 1) {
        blocks.chunk_pixels = round_up(ceil_div(blocks.plane, blocks.parts), 16);
        blocks.parts = ceil_div(blocks.plane, blocks.chunk_pixels);
        blocks.chunks = problem.batch * blocks.parts;
    } else {
        const int64_t most = std::max<int64_t>(target / blocks.plane, 1);
        blocks.images = ceil_div(problem.batch, ceil_div(problem.batch, most));
        blocks.chunk_pixels = blocks.images * blocks.plane;
        blocks.chunks = ceil_div(problem.batch, blocks.images);
    }
    blocks.stage_stride = round_up(blocks.chunk_pixels, 16);
    // In L2 (512 KiB): 96 lines of rows (192 KiB), 64 staged columns (128 KiB) and 96 x 192 partial sums (72 KiB).
    // Columns that have to be staged are worth more rows, though these then come from L3.
    const bool staged = problem.taps() > 1 || problem.h.stride > 1 || problem.w.stride > 1;
    blocks.block_rows = even_blocks(rows, staged ? 192 : 96, kernels.dot_rows);
    blocks.pass_rows = even_blocks(blocks.block_rows, 96, kernels.dot_rows);
    blocks.block_columns = even_blocks(columns, 192, kernels.dot_columns);
    blocks.stage_columns = even_blocks(blocks.block_columns, 64, 2 * kernels.dot_columns);
    const int64_t tiles = problem.groups * ceil_div(rows, blocks.block_rows) * ceil_div(columns, blocks.block_columns);
    blocks.splits = std::clamp(wanted_tasks / std::max<int64_t>(tiles, 1), int64_t{1}, blocks.chunks);
    return blocks;
}

// Rows as many as 264 and columns as many as 256, so that most layers read whole pixels, in the order of memory
// (reading halves of them costs 10 %); for 192 pixels at a time that is 200 KiB of each operand's panels.
template <class T>
GradWeightChannelBlocks plan_grad_weight_channel_blocks(const ConvProblem& problem, const KernelSet<T>& kernels) {
    constexpr int64_t wanted_parts = 16;  // each adds all weights once more
    GradWeightChannelBlocks blocks;
    const int64_t rows = problem.group_out(), columns = problem.group_in();
    blocks.pixels = problem.batch * problem.out_pixels();
    const int64_t pixels = std::max<int64_t>(blocks.pixels, 1), most = 768 / static_cast<int64_t>(sizeof(T));
    blocks.chunk_pixels = ceil_div(pixels, ceil_div(pixels, most));
    blocks.chunks = ceil_div(pixels, blocks.chunk_pixels);
    blocks.block_rows = even_blocks(rows, 264, kernels.mr);
    blocks.block_columns = even_blocks(columns, 256, kernels.nr);
    const int64_t tiles = problem.groups * ceil_div(rows, blocks.block_rows) * ceil_div(columns, blocks.block_columns);
    blocks.splits = std::clamp(wanted_parts / std::max<int64_t>(tiles, 1), int64_t{1}, blocks.chunks);
    return blocks;
}

template <class T>
void describe_gemm(PassPlan& plan, const ConvProblem& problem, bool forward, const KernelSet<T>& kernels, int threads) {
    const int64_t item = sizeof(T);
    // The strided gradient runs once per residue class; the plan shown is that of the class with the most taps.
    AxisTable h, w;
    if (forward) {
        h = forward_table(problem.h);
        w = forward_table(problem.w);
    } else {
        h = densest_class(problem.h);
        w = densest_class(problem.w);
    }
    const int64_t channels = forward ? problem.group_in() : problem.group_out();
    const int64_t rows = forward ? problem.group_out() : problem.group_in();
    const int64_t taps = static_cast<int64_t>(h.taps.size() * w.taps.size());
    const int64_t pixels = problem.batch * h.positions * w.positions;
    const GemmBlocks blocks = plan_gemm_blocks(problem.channels_last, pixels, problem.groups, channels, rows, taps,
                                               item, kernels.mr, kernels.nr);
    const int64_t pixel_width = blocks.pixels_in_rows ? kernels.mr : kernels.nr;
    const PassScratch scratch = gemm_scratch(blocks, problem.groups, channels, rows, taps, kernels);
    plan.algorithm = "direct";
    plan.tile = blocks.pixels_in_rows
                    ? std::to_string(kernels.mr) + " pixels x " + std::to_string(kernels.nr) + " channels"
                    : std::to_string(kernels.mr) + " channels x " + std::to_string(kernels.nr) + " pixels";
    plan.block = std::to_string(std::min(blocks.block_panels * pixel_width, pixels)) + " pixels x " +
                 std::to_string(std::min(blocks.block_rows, rows)) + " channels, sums of " +
                 std::to_string(blocks.chunk_channels) + " channels x " + std::to_string(taps) + " taps";
    plan.tasks = problem.groups * ceil_div(pixels, blocks.block_panels * pixel_width) *
                 ceil_div(std::max<int64_t>(rows, 1), blocks.block_rows);
    plan.threads = std::min<int64_t>({parallel_width(plan.flops), threads, std::max<int64_t>(plan.tasks, 1)});
    plan.scratch_bytes = scratch.shared_bytes + plan.threads * scratch.worker_bytes;
    plan.reason = blocks.pixels_in_rows ? "implicit GEMM, vectors over channels because the layout is NHWC"
                                        : "implicit GEMM, vectors over pixels because the layout is NCHW";
    if (blocks.by_rows)
        plan.reason += "; fewer pixels than channels, so a task owns channels and packs their weights for itself";
    const int64_t classes = std::min(problem.h.stride, problem.h.input) * std::min(problem.w.stride, problem.w.input);
    if (!forward && classes > 1)
        plan.reason += "; the stride makes " + std::to_string(classes) +
                       " dense residue classes, of which the one with most taps is shown";
    const bool skips = forward ? border_of(problem, h, w).skips : h.reads_outside() || w.reads_outside();
    if (skips) plan.reason += "; plain loops if a weight is inf or NaN, which the border must not multiply";
}

template <class T>
void describe_gemm_grad_weight(PassPlan& plan, const ConvProblem& problem, const KernelSet<T>& kernels, int threads) {
    const int64_t rows = problem.group_out(), columns = problem.group_in() * problem.taps();
    if (grad_weight_by_channels(problem)) {
        const GradWeightChannelBlocks blocks = plan_grad_weight_channel_blocks(problem, kernels);
        const PassScratch scratch = grad_weight_channels_scratch(blocks, problem.groups * rows * columns, kernels);
        plan.algorithm = "direct";
        plan.tile = std::to_string(kernels.mr) + " x " + std::to_string(kernels.nr) + " weights";
        plan.block = std::to_string(std::min(blocks.block_rows, rows)) + " output channels x " +
                     std::to_string(std::min(blocks.block_columns, columns)) + " input channels, sums of " +
                     std::to_string(blocks.chunk_pixels) + " pixels, " + std::to_string(blocks.splits) +
                     (blocks.splits == 1 ? " part" : " parts");
        plan.tasks = problem.groups * ceil_div(rows, blocks.block_rows) *
                     ceil_div(std::max<int64_t>(columns, 1), blocks.block_columns) * blocks.splits;
        plan.threads = std::min<int64_t>({parallel_width(plan.flops), threads, plan.tasks});
        plan.scratch_bytes = scratch.shared_bytes + plan.threads * scratch.worker_bytes;
        plan.reason = "rank-1 updates pixel by pixel, vectors over channels because the layout is NHWC";
        return;
    }
    const GradWeightBlocks blocks = plan_grad_weight_blocks(problem, kernels);
    const PassScratch scratch = grad_weight_scratch<T>(blocks, problem.groups * rows * columns);
    plan.algorithm = "direct";
    plan.tile = std::to_string(kernels.dot_rows) + " x " + std::to_string(kernels.dot_columns) + " weights";
    plan.block = std::to_string(std::min(blocks.block_rows, rows)) + " output channels x " +
                 std::to_string(std::min(blocks.block_columns, columns)) + " (input channel, tap) pairs, sums of " +
                 std::to_string(blocks.chunk_pixels) + " pixels, " + std::to_string(blocks.splits) +
                 (blocks.splits == 1 ? " part" : " parts");
    plan.tasks = problem.groups * ceil_div(rows, blocks.block_rows) *
                 ceil_div(std::max<int64_t>(columns, 1), blocks.block_columns) * blocks.splits;
    plan.threads = std::min<int64_t>({parallel_width(plan.flops), threads, plan.tasks});
    plan.scratch_bytes = scratch.shared_bytes + plan.threads * scratch.worker_bytes;
    plan.reason = "dot products over the pixels of the batch";
    plan.reason += blocks.splits > 1
                       ? "; too few weights for all tasks, so the pixels are split and the parts added in order"
                       : "; enough weights to share out, so every sum is taken in one piece";
}

template GradWeightBlocks plan_grad_weight_blocks(const ConvProblem&, const KernelSet<float>&);
template GradWeightBlocks plan_grad_weight_blocks(const ConvProblem&, const KernelSet<double>&);
template GradWeightChannelBlocks plan_grad_weight_channel_blocks(const ConvProblem&, const KernelSet<float>&);
template GradWeightChannelBlocks plan_grad_weight_channel_blocks(const ConvProblem&, const KernelSet<double>&);
template void describe_gemm(PassPlan&, const ConvProblem&, bool, const KernelSet<float>&, int);
template void describe_gemm(PassPlan&, const ConvProblem&, bool, const KernelSet<double>&, int);
template void describe_gemm_grad_weight(PassPlan&, const ConvProblem&, const KernelSet<float>&, int);
template void describe_gemm_grad_weight(PassPlan&, const ConvProblem&, const KernelSet<double>&, int);

}  // namespace convx
