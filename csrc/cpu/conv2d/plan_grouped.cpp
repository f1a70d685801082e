// The blocks of the grouped passes, and their description.
#include <algorithm>

#include "common/rounding.h"
#include "cpu/conv2d/grouped_channels.h"
#include "cpu/conv2d/grouped_pixels.h"
#include "cpu/conv2d/plan.h"
#include "cpu/conv2d/staging.h"

namespace convx {

namespace {

// One group's staged rows in a 32 KiB L1 beside what streams through; sixteen channels' in L2.
constexpr int64_t staged_bytes_of_group = 20 * 1024;
constexpr int64_t staged_bytes_of_block = 192 * 1024;
// A line of floats: fewer channels would read lines of channels-last memory several times.
constexpr int64_t adjacent_channels = 16;
// About 20 us of work.
constexpr int64_t task_flops = 1'000'000;
constexpr int64_t wanted_tasks = 48;

GroupedBlocks blocks_of_stage(const GroupedSizes& sizes, const StagedAxis& h, int64_t groups, int64_t item_bytes,
                              bool channels_inside, bool through_scratch) {
    GroupedBlocks blocks;
    blocks.through_scratch = through_scratch;
    if (channels_inside)
        blocks.stage_groups = std::min(groups, ceil_div(adjacent_channels, std::max(sizes.channels, sizes.rows)));
    const int64_t row_bytes = blocks.stage_groups * sizes.channels * sizes.source_pitch * item_bytes;
    // Neighbouring blocks stage their common rows twice. Where a block in L1 would have fewer new rows than twice a
    // window, L2 it is: a 9x1 window over a photo staged every row nine times (2.7 to 4.0 ms on four threads, now 1.3
    // to 1.5).
    const bool fits_l1 = 3 * h.reach(1) * row_bytes <= staged_bytes_of_group;
    const int64_t target = channels_inside || !fits_l1 ? staged_bytes_of_block : staged_bytes_of_group;
    int64_t rows = std::max<int64_t>(sizes.positions_h, 1);
    if (h.reach(rows) * row_bytes > target) {
        const int64_t beyond = h.reach(1) - h.advance;  // rows that neighbouring blocks share
        rows = std::clamp((target / row_bytes - beyond) / h.advance, int64_t{1}, rows);
        rows = ceil_div(sizes.positions_h, ceil_div(sizes.positions_h, rows));
    }
    blocks.block_rows = rows;
    blocks.staged_rows = h.reach(rows);
    blocks.staged_elements = blocks.stage_groups * sizes.channels * blocks.staged_rows * sizes.source_pitch;
    return blocks;
}

int64_t most_taps(const StagedAxis& axis) {
    size_t most = 0;
    for (const StagedAxis::Class& of : axis.classes) most = std::max(most, of.taps.size());
    return static_cast<int64_t>(most);
}

int64_t pairs(const StagedAxis& axis) {
    int64_t count = 0;
    for (const StagedAxis::Class& of : axis.classes) count += of.positions * static_cast<int64_t>(of.taps.size());
    return count;
}

std::string block_text(const GroupedBlocks& blocks) {
    return std::to_string(blocks.block_rows) + " rows of " + std::to_string(blocks.stage_groups) +
           (blocks.stage_groups == 1 ? " group" : " groups");
}

bool has_borders(const Axis& axis) {
    return axis.mode != PaddingMode::zeros && axis.mode != PaddingMode::constant &&
           (axis.pad_before > 0 || axis.pad_after > 0);
}

}  // namespace

bool grouped_can_run(const ConvProblem& problem, ConvPass pass) {
    const int64_t channels = problem.group_in(), rows = problem.group_out();
    const bool few = channels == 1 && rows == 1 ? true : problem.groups > 1 && channels < 64 && rows < 64;
    if (!few || channels == 0 || rows == 0) return false;
    // Borders that mirror or wrap have to be folded by their adjoint.
    if (pass == ConvPass::grad_input && (has_borders(problem.h) || has_borders(problem.w))) return false;
    // A window that is larger than L2 would have to be staged again for every row.
    const int64_t places = problem.h.extent() * (problem.w.padded() + problem.w.stride);
    return std::max(channels, rows) * places <= 128 * 1024 && problem.taps() <= 4096;
}

bool grouped_takes_channels(ConvPass pass, int64_t rows, int lanes) {
    // With one vector the tile of the forward pass is bound by its loads (9 for 8 FMA), that over pixels is not.
    return rows >= lanes + (pass == ConvPass::grad_weight ? 0 : 1) && 3 * rows >= 2 * round_up(rows, lanes);
}

GroupedSizes grouped_sizes(const StagedAxis& h, const StagedAxis& w, int64_t channels, int64_t rows) {
    GroupedSizes sizes;
    sizes.channels = channels;
    sizes.rows = rows;
    sizes.taps = most_taps(h) * most_taps(w);
    sizes.source_pitch = StagedRow(w).pitch;
    sizes.dest_pitch = w.most_positions();
    sizes.classes_w = static_cast<int64_t>(w.classes.size());
    sizes.positions_h = h.most_positions();
    sizes.flops = 2 * channels * rows * pairs(h) * pairs(w);
    return sizes;
}

GroupedBlocks plan_grouped_blocks(const GroupedSizes& sizes, const StagedAxis& h, int64_t batch, int64_t groups,
                                  int64_t item_bytes, bool channels_inside, bool through_scratch) {
    GroupedBlocks blocks = blocks_of_stage(sizes, h, groups, item_bytes, channels_inside, through_scratch);
    const int64_t row_blocks = ceil_div(sizes.positions_h, blocks.block_rows);
    const int64_t units = batch * ceil_div(groups, blocks.stage_groups) * row_blocks;
    const int64_t unit_flops = std::max<int64_t>(sizes.flops * blocks.stage_groups / row_blocks, 1);
    blocks.task_units = std::clamp(task_flops / unit_flops, int64_t{1}, std::max<int64_t>(units / wanted_tasks, 1));
    return blocks;
}

GroupedBlocks plan_grouped_grad_weight_blocks(const GroupedSizes& sizes, const StagedAxis& h, int64_t batch,
                                              int64_t groups, int64_t item_bytes, bool channels_inside,
                                              bool through_scratch) {
    GroupedBlocks blocks = blocks_of_stage(sizes, h, groups, item_bytes, channels_inside, through_scratch);
    blocks.splits = std::clamp(wanted_tasks / groups, int64_t{1}, std::max<int64_t>(batch * sizes.positions_h, 1));
    const int64_t units = ceil_div(groups, blocks.stage_groups);
    const int64_t unit_flops = std::max<int64_t>(sizes.flops * batch * blocks.stage_groups / blocks.splits, 1);
    blocks.task_units = std::clamp(task_flops / unit_flops, int64_t{1}, std::max<int64_t>(units / wanted_tasks, 1));
    return blocks;
}

template <class T>
void describe_grouped(PassPlan& plan, const ConvProblem& problem, bool forward, const KernelSet<T>& kernels,
                      int threads) {
    const StagedAxis h = forward ? staged_forward(problem.h) : staged_adjoint(problem.h);
    const StagedAxis w = forward ? staged_forward(problem.w) : staged_adjoint(problem.w);
    const GroupedSizes sizes = forward ? grouped_sizes(h, w, problem.group_in(), problem.group_out())
                                       : grouped_sizes(h, w, problem.group_out(), problem.group_in());
    // Dense arrays in the problem's layout.
    const bool channels_inside = problem.channels_last && problem.in_channels > 1;
    const GroupedBlocks blocks = plan_grouped_blocks(sizes, h, problem.batch, problem.groups, sizeof(T),
                                                     channels_inside, channels_inside || sizes.classes_w > 1);
    const ConvPass pass = forward ? ConvPass::forward : ConvPass::grad_input;
    if (grouped_takes_channels(pass, sizes.rows, kernels.lanes))
        return describe_grouped_channels(plan, problem, forward, kernels, threads);
    const bool depthwise = sizes.channels == 1 && sizes.rows == 1;
    if (!depthwise && !channels_inside) return describe_grouped_pixels(plan, problem, forward, kernels, threads);
    const std::string lanes = std::to_string(kernels.lanes);
    const std::string sums = "sums of " + std::to_string(sizes.channels) +
                             (sizes.channels == 1 ? " channel x " : " channels x ") + std::to_string(sizes.taps) +
                             " taps";
    plan.algorithm = depthwise ? "depthwise" : "grouped";
    int64_t shared_bytes = 0, worker_bytes = 0;
    if (depthwise && channels_inside) {
        const int64_t columns = w.most_positions(), rows = problem.batch * sizes.positions_h;
        const int64_t task_rows = depthwise_task_rows(2 * problem.taps() * columns * problem.groups, rows);
        plan.tile = std::to_string(depthwise_pixels) + " pixels x " + std::to_string(2 * kernels.lanes) + " channels";
        plan.block = std::to_string(task_rows) + " rows of all channels, " + sums;
        plan.tasks = ceil_div(rows, task_rows);
        shared_bytes = depthwise_pixels_scratch(h, w, problem.groups, problem.dtype);
        plan.reason = "one channel a group, vectors over channels because the layout is NHWC";
    } else if (depthwise_planes_can_run(problem, pass)) {
        describe_depthwise_planes(plan, problem, forward, kernels);
        shared_bytes = plan.scratch_bytes;
    } else {
        const int64_t panel = std::min(sizes.rows, grouped_panel);
        const int64_t units = problem.batch * ceil_div(problem.groups, blocks.stage_groups) *
                              ceil_div(sizes.positions_h, blocks.block_rows);
        plan.tile = std::to_string(panel) + (panel == 1 ? " channel x " : " channels x ") + lanes + " pixels";
        plan.block = block_text(blocks) + ", " + sums;
        plan.tasks = ceil_div(units, blocks.task_units);
        worker_bytes = grouped_scratch(blocks, sizes, kernels);
        plan.reason = depthwise ? "one channel a group, any window: vectors over pixels of staged rows"
                                : "too few channels a group for the GEMM's tiles: vectors over pixels of staged rows";
    }
    plan.tasks = std::max<int64_t>(plan.tasks, 1);
    const int64_t elements = plan.bytes / static_cast<int64_t>(sizeof(T)) - problem.out_channels * problem.taps();
    const bool direct = depthwise && worker_bytes == 0;
    const int64_t work = direct ? depthwise_work(plan.flops, elements) : plan.flops;
    plan.threads = std::min<int64_t>({parallel_width(work), threads, plan.tasks});
    plan.scratch_bytes = shared_bytes + plan.threads * worker_bytes;
    if (!forward && h.classes.size() * w.classes.size() > 1)
        plan.reason += "; the stride makes " + std::to_string(h.classes.size() * w.classes.size()) +
                       " classes of pixels with taps of their own";
}

template <class T>
void describe_grouped_grad_weight(PassPlan& plan, const ConvProblem& problem, const KernelSet<T>& kernels,
                                  int threads) {
    if (depthwise_over_channels(problem)) return describe_depthwise_pixels_grad_weight(plan, problem, kernels, threads);
    if (depthwise_planes_can_run(problem, ConvPass::grad_weight))
        return describe_depthwise_grad_weight(plan, problem, kernels, threads);
    if (grouped_takes_channels(ConvPass::grad_weight, problem.group_out(), kernels.lanes))
        return describe_grouped_channel_sums(plan, problem, kernels, threads);
    const StagedAxis h = staged_forward(problem.h), w = staged_forward(problem.w);
    const GroupedSizes sizes = grouped_sizes(h, w, problem.group_in(), problem.group_out());
    const bool channels_inside = problem.channels_last && problem.in_channels > 1;
    const GroupedBlocks blocks = plan_grouped_grad_weight_blocks(sizes, h, problem.batch, problem.groups, sizeof(T),
                                                                 channels_inside, channels_inside);
    const PassScratch scratch =
        grouped_grad_weight_scratch(blocks, sizes, problem.groups * sizes.rows * sizes.channels * sizes.taps, kernels);
    const bool depthwise = sizes.channels == 1 && sizes.rows == 1;
    plan.algorithm = depthwise ? "depthwise" : "grouped";
    plan.tile = std::to_string(std::min(sizes.rows, grouped_panel)) + " output channels x " +
                std::to_string(kernels.lanes) + " pixels";
    plan.block = block_text(blocks) + ", " + std::to_string(blocks.splits) + (blocks.splits == 1 ? " part" : " parts");
    plan.tasks = ceil_div(problem.groups, blocks.stage_groups * blocks.task_units) * blocks.splits;
    plan.threads = std::min<int64_t>({parallel_width(plan.flops), threads, plan.tasks});
    plan.scratch_bytes = scratch.shared_bytes + plan.threads * scratch.worker_bytes;
    plan.reason = "few weights a group: sums over vectors of pixels stay in registers";
    if (blocks.splits > 1) plan.reason += "; too few groups for all tasks, so the rows are split";
}

template void describe_grouped(PassPlan&, const ConvProblem&, bool, const KernelSet<float>&, int);
template void describe_grouped(PassPlan&, const ConvProblem&, bool, const KernelSet<double>&, int);
template void describe_grouped_grad_weight(PassPlan&, const ConvProblem&, const KernelSet<float>&, int);
template void describe_grouped_grad_weight(PassPlan&, const ConvProblem&, const KernelSet<double>&, int);

}  // namespace convx
