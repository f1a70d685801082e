// The blocks of the depthwise passes over planes, and their description.
#include <algorithm>

#include "common/rounding.h"
#include "cpu/conv2d/depthwise.h"
#include "cpu/conv2d/plan.h"

namespace convx {

namespace {

// Rows of a plane that strips of columns go down: 8 KiB run ahead of memory better than all that a 32 KiB L1 holds.
constexpr int64_t rows_bytes = 8 * 1024;
// About 20 us of work.
constexpr int64_t task_flops = 1'000'000;
constexpr int64_t wanted_tasks = 48;
// Of the weight gradient over channels: what a task reads of a pixel, and of the gradient before the next row of the
// window goes over it.
constexpr int64_t task_channel_bytes = 512;
constexpr int64_t stretch_bytes = 8 * 1024;

}  // namespace

bool depthwise_planes_can_run(const ConvProblem& problem, ConvPass) {
    const auto fits = [&](const Axis& axis) {
        return axis.stride <= 2 && axis.dilation == 1 && axis.pad_before < axis.kernel &&
               (axis.mode == PaddingMode::zeros || (axis.pad_before == 0 && axis.pad_after == 0));
    };
    const int64_t kernel = problem.h.kernel;
    return problem.group_in() == 1 && problem.group_out() == 1 && fits(problem.h) && fits(problem.w) &&
           problem.w.kernel == kernel && (kernel == 3 || kernel == 5) && problem.w.stride == problem.h.stride;
}

DepthwiseBlocks plan_depthwise_blocks(int64_t kernel, int64_t stride, int64_t planes, int64_t rows, int64_t columns,
                                      int64_t source_columns, int64_t item_bytes) {
    DepthwiseBlocks blocks;
    const int64_t fit = std::max<int64_t>((rows_bytes / (source_columns * item_bytes) - kernel) / stride, 4);
    const int64_t wanted = std::max(ceil_div(wanted_tasks, std::max<int64_t>(planes, 1)), ceil_div(rows, fit));
    const int64_t parts = std::clamp(wanted, int64_t{1}, std::max<int64_t>(ceil_div(rows, 4), 1));
    blocks.block_rows = std::min(round_up(ceil_div(rows, parts), 4), std::max<int64_t>(rows, 1));
    const int64_t units = planes * ceil_div(rows, blocks.block_rows);
    const int64_t unit_flops = std::max<int64_t>(2 * kernel * kernel * columns * blocks.block_rows, 1);
    blocks.task_units = std::clamp(task_flops / unit_flops, int64_t{1}, std::max<int64_t>(units / wanted_tasks, 1));
    return blocks;
}

int64_t depthwise_task_rows(int64_t row_flops, int64_t rows) {
    return std::clamp(task_flops / std::max<int64_t>(row_flops, 1), int64_t{1},
                      std::max<int64_t>(rows / wanted_tasks, 1));
}

bool depthwise_over_channels(const ConvProblem& problem) {
    return problem.channels_last && problem.groups > 1 && problem.group_in() == 1 && problem.group_out() == 1;
}

DepthwiseGradWeightBlocks plan_depthwise_grad_weight(const ConvProblem& problem) {
    DepthwiseGradWeightBlocks blocks;
    const int64_t rows = problem.out_h(), channels = problem.groups, stride = problem.h.stride;
    const int64_t row_bytes = item_size(problem.dtype) * (stride * problem.w.input + problem.out_w());
    const int64_t fit = std::max<int64_t>(rows_bytes / row_bytes, 4);
    blocks.block_rows = std::min(rows, round_up(ceil_div(rows, ceil_div(rows, fit)), 4));
    blocks.splits = std::clamp(wanted_tasks / channels, int64_t{1}, std::max<int64_t>(problem.batch * rows, 1));
    const int64_t channel_flops = std::max<int64_t>(problem.flops() / channels / blocks.splits, 1);
    blocks.task_channels =
        std::clamp(task_flops / channel_flops, int64_t{1}, std::max<int64_t>(channels / wanted_tasks, 1));
    return blocks;
}

DepthwisePixelsGradWeightBlocks plan_depthwise_pixels_grad_weight(const ConvProblem& problem) {
    DepthwisePixelsGradWeightBlocks blocks;
    const int64_t item_bytes = item_size(problem.dtype), rows = problem.batch * problem.out_h();
    const int64_t most = task_channel_bytes / item_bytes;
    // Whole cache lines.
    blocks.task_channels =
        std::min(problem.groups, round_up(ceil_div(problem.groups, ceil_div(problem.groups, most)), 64 / item_bytes));
    const int64_t channel_tasks = ceil_div(problem.groups, blocks.task_channels);
    const int64_t wanted =
        std::min(ceil_div(wanted_tasks, channel_tasks), problem.flops() / channel_tasks / task_flops);
    blocks.splits = std::clamp(wanted, int64_t{1}, std::max<int64_t>(rows, 1));
    blocks.stretch = std::max<int64_t>(stretch_bytes / (blocks.task_channels * item_bytes), 1);
    return blocks;
}

template <class T>
void describe_depthwise_planes(PassPlan& plan, const ConvProblem& problem, bool forward, const KernelSet<T>& kernels) {
    const int64_t planes = problem.batch * problem.in_channels, kernel = problem.w.kernel;
    const int64_t rows = forward ? problem.out_h() : problem.h.input;
    const int64_t columns = forward ? problem.out_w() : problem.w.input;
    const int64_t source_columns = forward ? problem.w.input : problem.out_w();
    const DepthwiseBlocks blocks =
        plan_depthwise_blocks(kernel, forward ? problem.w.stride : 1, planes, rows, columns, source_columns, sizeof(T));
    plan.tile = "2 x " + std::to_string(kernels.lanes) + " pixels";
    plan.block = std::to_string(blocks.block_rows) + " rows of one plane, sums of 1 channel x " +
                 std::to_string(problem.taps()) + " taps";
    plan.tasks = ceil_div(planes * ceil_div(rows, blocks.block_rows), blocks.task_units);
    plan.scratch_bytes = depthwise_planes_scratch(source_columns, sizeof(T));
    plan.reason = "one channel a group, vectors over pixels because the layout is NCHW";
}

template <class T>
void describe_depthwise_grad_weight(PassPlan& plan, const ConvProblem& problem, const KernelSet<T>& kernels,
                                    int threads) {
    const DepthwiseGradWeightBlocks blocks = plan_depthwise_grad_weight(problem);
    const PassScratch scratch = depthwise_grad_weight_scratch(problem, blocks, false, kernels);
    const int64_t elements = plan.bytes / static_cast<int64_t>(sizeof(T)) - problem.out_channels * problem.taps();
    plan.algorithm = "depthwise";
    plan.tile =
        std::to_string(std::min<int64_t>(problem.taps(), 10)) + " taps x " + std::to_string(kernels.lanes) + " pixels";
    plan.block = std::to_string(blocks.block_rows) + " rows of one plane, " + std::to_string(blocks.splits) +
                 (blocks.splits == 1 ? " part" : " parts");
    plan.tasks = ceil_div(problem.groups, blocks.task_channels) * blocks.splits;
    plan.threads = std::min<int64_t>({parallel_width(depthwise_work(plan.flops, elements)), threads, plan.tasks});
    plan.scratch_bytes = scratch.shared_bytes + plan.threads * scratch.worker_bytes;
    plan.reason = "one channel a group: sums over vectors of pixels stay in registers";
    if (blocks.splits > 1) plan.reason += "; too few channels for all tasks, so the rows are split";
}

template <class T>
void describe_depthwise_pixels_grad_weight(PassPlan& plan, const ConvProblem& problem, const KernelSet<T>& kernels,
                                           int threads) {
    const DepthwisePixelsGradWeightBlocks blocks = plan_depthwise_pixels_grad_weight(problem);
    const PassScratch scratch = depthwise_pixels_grad_weight_scratch<T>(problem, blocks, false, false);
    const int64_t elements = plan.bytes / static_cast<int64_t>(sizeof(T)) - problem.out_channels * problem.taps();
    plan.algorithm = "depthwise";
    plan.tile = std::to_string(std::min<int64_t>(problem.w.kernel, 3)) + " taps x " +
                std::to_string(4 * kernels.lanes) + " channels";
    plan.block = std::to_string(blocks.task_channels) + " channels, " + std::to_string(blocks.splits) +
                 (blocks.splits == 1 ? " part" : " parts") + " of the rows";
    plan.tasks = ceil_div(problem.groups, blocks.task_channels) * blocks.splits;
    plan.threads = std::min<int64_t>({parallel_width(depthwise_work(plan.flops, elements)), threads, plan.tasks});
    plan.scratch_bytes = scratch.shared_bytes + plan.threads * scratch.worker_bytes;
    plan.reason = "one channel a group, vectors over channels because the layout is NHWC";
}

template void describe_depthwise_planes(PassPlan&, const ConvProblem&, bool, const KernelSet<float>&);
template void describe_depthwise_planes(PassPlan&, const ConvProblem&, bool, const KernelSet<double>&);
template void describe_depthwise_grad_weight(PassPlan&, const ConvProblem&, const KernelSet<float>&, int);
template void describe_depthwise_grad_weight(PassPlan&, const ConvProblem&, const KernelSet<double>&, int);
template void describe_depthwise_pixels_grad_weight(PassPlan&, const ConvProblem&, const KernelSet<float>&, int);
template void describe_depthwise_pixels_grad_weight(PassPlan&, const ConvProblem&, const KernelSet<double>&, int);

}  // namespace convx
