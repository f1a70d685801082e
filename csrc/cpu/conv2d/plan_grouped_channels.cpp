// The blocks of grouped_pixels.cpp, grouped_channels.cpp and grouped_channels_grad_weight.cpp.
#include <algorithm>
#include <string>

#include "common/rounding.h"
#include "cpu/conv2d/grouped_channels.h"
#include "cpu/conv2d/grouped_pixels.h"

namespace convx {

namespace {

// In L2 (512 KiB) beside the weights of a group: 64 channels x 9 taps x 64 are 144 KiB.
constexpr int64_t staged_bytes = 128 * 1024;
constexpr int64_t result_bytes = 128 * 1024;
// Pixels of the weight gradient that are summed in registers in one go: 28 KiB for two vectors, most of L1; fewer would
// add to the sums more often, which costs as much as 3 pixels.
constexpr int64_t chunk_pixels = 448;
constexpr int64_t task_flops = 1'000'000;
constexpr int64_t wanted_tasks = 48;

PlaneLayout layout_of(const ConvProblem& problem, bool forward) {
    if (!forward) return {phases_of_adjoint(problem.h), phases_of_adjoint(problem.w)};
    Axis h = problem.h, w = problem.w;
    h.stride = w.stride = 1;
    PlaneLayout layout(phases_of_forward(h), phases_of_forward(w));
    layout.h.classes[0].positions = problem.out_h();
    layout.w.classes[0].positions = problem.out_w();
    return layout;
}

int64_t all_taps(const PhasedAxis& axis) {
    size_t count = 0;
    for (const PhasedAxis::Class& one : axis.classes) count += one.taps.size();
    return static_cast<int64_t>(count);
}

}  // namespace

GroupedPlanes::GroupedPlanes(const ConvProblem& problem, bool forward)
    : layout(layout_of(problem, forward)), advance_h(forward ? problem.h.stride : 1),
      advance_w(forward ? problem.w.stride : 1), taps(all_taps(layout.h) * all_taps(layout.w)),
      kernel_w(problem.w.kernel), kernel_taps(problem.taps()) {}

GroupedChannelsBlocks plan_grouped_channels(const GroupedPlanes& planes, int64_t batch, int64_t groups,
                                            int64_t channels, int64_t rows, int64_t dest_columns, int64_t item_bytes,
                                            int lanes) {
    GroupedChannelsBlocks blocks;
    const PlaneLayout& layout = planes.layout;
    const int64_t lines = std::max<int64_t>(layout.h.positions(), 1), step = layout.h.classes[0].step;
    const int64_t line_bytes = channels * planes.advance_h * layout.pitch * item_bytes;
    const int64_t result_line_bytes = step * dest_columns * 2 * lanes * item_bytes;
    const int64_t fit = std::min(staged_bytes / std::max<int64_t>(line_bytes, 1) - layout.reach / planes.advance_h,
                                 result_bytes / std::max<int64_t>(result_line_bytes, 1));
    // Enough units, unless they would stage too many lines twice.
    const int64_t wanted = ceil_div(lines, ceil_div(wanted_tasks, std::max<int64_t>(batch * groups, 1)));
    const int64_t most = std::clamp(std::min(fit, std::max(wanted, 4 * layout.reach)), int64_t{1}, lines);
    blocks.band_lines = ceil_div(lines, ceil_div(lines, most));
    blocks.dest_rows = blocks.band_lines * step;
    const int64_t units = batch * groups * ceil_div(lines, blocks.band_lines);
    const int64_t unit_flops =
        2 * channels * rows * planes.taps * blocks.band_lines * std::max<int64_t>(layout.w.positions(), 1);
    blocks.task_units = std::clamp(task_flops / std::max<int64_t>(unit_flops, 1), int64_t{1},
                                   std::max<int64_t>(units / wanted_tasks, 1));
    return blocks;
}

PlaneLayout grouped_pixels_layout(const ConvProblem& problem, bool forward) {
    if (forward) return {phases_of_forward(problem.h), phases_of_forward(problem.w)};
    PlaneLayout layout(phases_of_adjoint(problem.h), phases_of_adjoint(problem.w));
    // The order of the sums in grouped.cpp.
    for (PhasedAxis* axis : {&layout.h, &layout.w})
        for (PhasedAxis::Class& one : axis->classes)
            std::sort(one.taps.begin(), one.taps.end(),
                      [](const PhasedAxis::Tap& a, const PhasedAxis::Tap& b) { return a.offset < b.offset; });
    return layout;
}

GroupedPixelsBlocks plan_grouped_pixels(const PlaneLayout& layout, int64_t batch, int64_t groups, int64_t channels,
                                        int64_t rows, int64_t item_bytes) {
    GroupedPixelsBlocks blocks;
    blocks.tile_rows = ceil_div(rows, ceil_div(rows, grouped_panel));
    const int64_t lines = std::max<int64_t>(layout.h.positions(), 1);
    const int64_t line_bytes = channels * layout.planes() * layout.pitch * item_bytes;
    const int64_t fit = staged_bytes / 2 / std::max<int64_t>(line_bytes, 1) - layout.reach;
    const int64_t wanted = ceil_div(lines, ceil_div(wanted_tasks, std::max<int64_t>(batch * groups, 1)));
    const int64_t most = std::clamp(std::min(fit, std::max(wanted, 4 * layout.reach)), int64_t{1}, lines);
    blocks.band_lines = ceil_div(lines, ceil_div(lines, most));
    const int64_t units = batch * groups * ceil_div(lines, blocks.band_lines);
    const int64_t unit_flops = 2 * channels * rows * all_taps(layout.h) * all_taps(layout.w) * blocks.band_lines *
                               std::max<int64_t>(layout.w.positions(), 1);
    blocks.task_units = std::clamp(task_flops / std::max<int64_t>(unit_flops, 1), int64_t{1},
                                   std::max<int64_t>(units / wanted_tasks, 1));
    return blocks;
}

GroupedChannelSumsBlocks plan_grouped_channel_sums(const GroupedPlanes& planes, int64_t batch, int64_t groups,
                                                   int64_t channels, int64_t item_bytes, int lanes) {
    GroupedChannelSumsBlocks blocks;
    const PlaneLayout& layout = planes.layout;
    const int64_t lines = std::max<int64_t>(layout.h.positions(), 1);
    const int64_t pixels = lines * std::max<int64_t>(layout.w.positions(), 1);
    const int64_t image_bytes = channels * planes.plane_size(lines, lanes) * item_bytes;
    const int64_t parts = std::max(ceil_div(pixels, chunk_pixels), ceil_div(image_bytes, staged_bytes));
    if (parts > 1) {
        blocks.band_lines = ceil_div(lines, parts);
        blocks.chunks = batch * ceil_div(lines, blocks.band_lines);
    } else {
        blocks.band_lines = lines;
        const int64_t most = std::max<int64_t>(std::min(chunk_pixels / pixels, staged_bytes / image_bytes), 1);
        blocks.images = ceil_div(batch, ceil_div(batch, most));
        blocks.chunks = ceil_div(batch, blocks.images);
    }
    blocks.splits = std::clamp(wanted_tasks / groups, int64_t{1}, std::max<int64_t>(blocks.chunks, 1));
    return blocks;
}

namespace {

std::string band_text(int64_t lines, const char* of) {
    return std::to_string(lines) + (lines == 1 ? " line of " : " lines of ") + of;
}

std::string sums_text(int64_t channels, const PlaneLayout& layout) {
    const auto most = [](const PhasedAxis& axis) {
        size_t count = 0;
        for (const PhasedAxis::Class& one : axis.classes) count = std::max(count, one.taps.size());
        return count;
    };
    return ", sums of " + std::to_string(channels) + " channels x " + std::to_string(most(layout.h) * most(layout.w)) +
           " taps";
}

void settle(PassPlan& plan, int64_t units, int64_t task_units, const PassScratch& scratch, int threads) {
    plan.algorithm = "grouped";
    plan.tasks = std::max<int64_t>(ceil_div(units, task_units), 1);
    plan.threads = std::min<int64_t>({parallel_width(plan.flops), threads, plan.tasks});
    plan.scratch_bytes = scratch.shared_bytes + plan.threads * scratch.worker_bytes;
}

void add_classes(PassPlan& plan, const PlaneLayout& layout) {
    const size_t classes = layout.h.classes.size() * layout.w.classes.size();
    if (classes > 1)
        plan.reason += "; the stride makes " + std::to_string(classes) + " classes of pixels with taps of their own";
}

}  // namespace

template <class T>
void describe_grouped_channels(PassPlan& plan, const ConvProblem& problem, bool forward, const KernelSet<T>& kernels,
                               int threads) {
    const GroupedPlanes planes(problem, forward);
    const int64_t channels = forward ? problem.group_in() : problem.group_out();
    const int64_t rows = forward ? problem.group_out() : problem.group_in();
    const int64_t columns = forward ? problem.out_w() : problem.w.input;
    const GroupedChannelsBlocks blocks =
        plan_grouped_channels(planes, problem.batch, problem.groups, channels, rows, columns, sizeof(T), kernels.lanes);
    const int vecs = rows > kernels.lanes ? 2 : 1;
    plan.tile = std::to_string(grouped_channel_pixels(vecs, kernels.few_channels_limit)) + " pixels x " +
                std::to_string(vecs * kernels.lanes) + " channels";
    plan.block = band_text(blocks.dest_rows, "one group") + sums_text(channels, planes.layout);
    settle(plan, problem.batch * problem.groups * ceil_div(planes.layout.h.positions(), blocks.band_lines),
           blocks.task_units,
           grouped_channels_scratch(planes, blocks, problem.groups, channels, rows, columns, kernels), threads);
    plan.reason = "few channels a group, but enough for vectors of them: pixels of staged planes are broadcast";
    add_classes(plan, planes.layout);
}

template <class T>
void describe_grouped_pixels(PassPlan& plan, const ConvProblem& problem, bool forward, const KernelSet<T>& kernels,
                             int threads) {
    const PlaneLayout layout = grouped_pixels_layout(problem, forward);
    const int64_t channels = forward ? problem.group_in() : problem.group_out();
    const int64_t rows = forward ? problem.group_out() : problem.group_in();
    const GroupedPixelsBlocks blocks =
        plan_grouped_pixels(layout, problem.batch, problem.groups, channels, rows, sizeof(T));
    const int64_t vecs = std::min<int64_t>(kernels.few_channels_limit / blocks.tile_rows, 8);
    plan.tile = std::to_string(blocks.tile_rows) + (blocks.tile_rows == 1 ? " channel x " : " channels x ") +
                std::to_string(vecs * kernels.lanes) + " pixels";
    plan.block = band_text(blocks.band_lines * layout.h.classes[0].step, "one group") + sums_text(channels, layout);
    settle(plan, problem.batch * problem.groups * ceil_div(layout.h.positions(), blocks.band_lines), blocks.task_units,
           grouped_pixels_scratch(layout, blocks, problem.groups, channels, rows, kernels), threads);
    plan.reason = "too few channels a group for the GEMM's tiles: vectors over pixels of staged planes";
    add_classes(plan, layout);
}

template <class T>
void describe_grouped_channel_sums(PassPlan& plan, const ConvProblem& problem, const KernelSet<T>& kernels,
                                   int threads) {
    const GroupedPlanes planes(problem, true);
    const int64_t channels = problem.group_in(), rows = problem.group_out();
    const GroupedChannelSumsBlocks blocks =
        plan_grouped_channel_sums(planes, problem.batch, problem.groups, channels, sizeof(T), kernels.lanes);
    const int vecs = rows > kernels.lanes ? 2 : 1;
    plan.tile = std::to_string(vecs * kernels.lanes) + " output channels x " +
                std::to_string(grouped_channel_pixels(vecs, kernels.few_channels_limit)) +
                " (input channel, tap) pairs";
    plan.block = (blocks.images > 1 ? std::to_string(blocks.images) + " images of one group"
                                    : band_text(blocks.band_lines, "one group")) +
                 ", " + std::to_string(blocks.splits) + (blocks.splits == 1 ? " part" : " parts");
    settle(plan, problem.groups * blocks.splits, 1,
           grouped_channel_sums_scratch(planes, blocks, problem.groups, channels, rows, problem.out_w(), kernels),
           threads);
    plan.reason = "few weights a group: vectors over output channels, pixels of staged planes are broadcast";
    if (blocks.splits > 1) plan.reason += "; too few groups for all tasks, so the pixels are split";
}

template void describe_grouped_channels(PassPlan&, const ConvProblem&, bool, const KernelSet<float>&, int);
template void describe_grouped_channels(PassPlan&, const ConvProblem&, bool, const KernelSet<double>&, int);
template void describe_grouped_pixels(PassPlan&, const ConvProblem&, bool, const KernelSet<float>&, int);
template void describe_grouped_pixels(PassPlan&, const ConvProblem&, bool, const KernelSet<double>&, int);
template void describe_grouped_channel_sums(PassPlan&, const ConvProblem&, const KernelSet<float>&, int);
template void describe_grouped_channel_sums(PassPlan&, const ConvProblem&, const KernelSet<double>&, int);

}  // namespace convx
