// The blocks of Winograd's method, and their description.
#include <algorithm>

#include "common/rounding.h"
#include "cpu/conv2d/axis_table.h"
#include "cpu/conv2d/plan.h"

namespace convx {

namespace {

// Partial sums of 64 to 128 channels keep the rounding error of a sum of 512 near that of 128.
constexpr int64_t chunk_target = 128;
constexpr int64_t own_input_bytes = 320 * 1024;
constexpr int64_t product_bytes = 160 * 1024;
constexpr int64_t own_weight_bytes = 448 * 1024;
constexpr int64_t shared_weight_bytes = 6 * 1024 * 1024;
constexpr int64_t few_tiles = 256;
// Transformed inputs and gradients of one block of tiles: in the last-level cache.
constexpr int64_t operand_bytes = 8 * 1024 * 1024;
// Enough for 4 threads to end at about the same time; more would only cut the blocks small.
constexpr int64_t wanted_tasks = 16;

}  // namespace

bool supports_winograd(const ConvProblem& problem, ConvPass pass) {
    const auto fits = [](const Axis& axis) { return axis.kernel == 3 && axis.stride == 1 && axis.dilation == 1; };
    return pass != ConvPass::grad_bias && fits(problem.h) && fits(problem.w);
}

// Against the direct method on Zen 3, one thread: 2.3 to 3.3 times as fast at 28 x 28 and above, 1.9 to 3 at 14 x 14;
// at 7 x 7 with 512 channels 2.5 times for a batch of 8, 1.3 for a single image, whose few tiles hardly pay for the
// transformed weights; weight gradients 1.9 times for one image of 7 x 7, 2.2 of 14 x 14. Planes that fill few of their
// tiles' outputs, or few channels, lose the gain.
bool prefers_winograd(const ConvProblem& problem, ConvPass pass) {
    const bool forward = pass != ConvPass::grad_input;
    const int64_t height = forward ? problem.out_h() : problem.h.input;
    const int64_t width = forward ? problem.out_w() : problem.w.input;
    const int64_t tile_pixels = round_up(height, winograd_outputs) * round_up(width, winograd_outputs);
    // In groups of few channels the direct sums are faster, on 4 threads up to 5 times, since each group is a task.
    if (pass == ConvPass::grad_weight && grouped_can_run(problem, pass)) return false;
    return std::min(problem.group_in(), problem.group_out()) >= 16 && height * width >= 49 &&
           5 * tile_pixels <= 9 * height * width;
}

WinogradBlocks plan_winograd_blocks(int64_t tiles, int64_t groups, int64_t channels, int64_t rows, int64_t item_bytes,
                                    int mr, int nr) {
    WinogradBlocks blocks;
    channels = std::max<int64_t>(channels, 1);
    rows = std::max<int64_t>(rows, 1);
    blocks.chunk_channels = ceil_div(channels, ceil_div(channels, chunk_target));
    const int64_t panels = std::max<int64_t>(ceil_div(tiles, nr), 1);
    const int64_t frequency_bytes = winograd_frequencies * item_bytes;
    const int64_t weight_bytes = groups * rows * channels * frequency_bytes;
    // Few tiles make few tasks, or leave the transformed weights used so seldom that they had better stay in L2.
    const int64_t tile_tasks = groups * panels;
    blocks.shares_inputs = weight_bytes > 4 * shared_weight_bytes ||
                           (tiles <= few_tiles && (weight_bytes > shared_weight_bytes || tile_tasks < wanted_tasks));
    if (blocks.shares_inputs) {
        blocks.block_panels = std::min(ceil_div(few_tiles, static_cast<int64_t>(nr)), panels);
        const int64_t fit = own_weight_bytes / (frequency_bytes * blocks.chunk_channels * mr);
        blocks.block_rows = std::clamp<int64_t>(ceil_div(rows, mr) / wanted_tasks, 1, std::max<int64_t>(fit, 1)) * mr;
    } else {
        const int64_t fit = own_input_bytes / (frequency_bytes * channels * nr);
        blocks.block_panels = std::clamp<int64_t>(tile_tasks / wanted_tasks, 1, std::max<int64_t>(fit, 1));
        const int64_t rows_fit = product_bytes / (frequency_bytes * blocks.block_panels * nr * mr);
        blocks.block_rows = std::min(std::max<int64_t>(rows_fit, 1) * mr, round_up(rows, mr));
    }
    return blocks;
}

bool winograd_by_channels(int64_t groups, int64_t height, int64_t width) {
    return groups == 1 && ceil_div(height, winograd_outputs) * ceil_div(width, winograd_outputs) <= 16;
}

int64_t winograd_chunk_channels(int64_t channels, int lanes) {
    constexpr int64_t target = 64;  // with 16 rows 144 KiB of transformed weights
    channels = std::max<int64_t>(channels, 1);
    return round_up(ceil_div(channels, ceil_div(channels, target)), lanes);
}

WinogradChannelBlocks plan_winograd_channel_blocks(int64_t batch, int64_t height, int64_t width, int64_t channels,
                                                   int64_t rows, int lanes, int nr) {
    WinogradChannelBlocks blocks;
    blocks.chunk_channels = winograd_chunk_channels(channels, lanes);
    blocks.chunks = ceil_div(std::max<int64_t>(channels, 1), blocks.chunk_channels);
    blocks.tiles = std::max<int64_t>(ceil_div(height, winograd_outputs) * ceil_div(width, winograd_outputs), 1);
    blocks.block_images = std::clamp<int64_t>(few_tiles / blocks.tiles, 1, std::max<int64_t>(batch, 1));
    blocks.block_panels = ceil_div(rows, nr) >= wanted_tasks * winograd_most_panels ? winograd_most_panels : 1;
    blocks.source_pixels = (height + 2) * (width + 2);
    blocks.dest_pixels = height * width;
    return blocks;
}

WinogradGradWeightBlocks plan_winograd_grad_weight_blocks(int64_t tiles, int64_t groups, int64_t rows, int64_t columns,
                                                          int64_t item_bytes, int mr, int nr) {
    WinogradGradWeightBlocks blocks;
    tiles = std::max<int64_t>(tiles, 1);
    const int64_t tile_bytes = winograd_frequencies * item_bytes * (round_up(rows, mr) + round_up(columns, nr));
    const int64_t fit = std::clamp<int64_t>(operand_bytes / tile_bytes, 64, 512);
    blocks.blocks = ceil_div(tiles, fit);
    blocks.block_tiles = ceil_div(tiles, blocks.blocks);
    blocks.chunk_tiles = ceil_div(blocks.block_tiles, ceil_div(blocks.block_tiles, chunk_target));
    // Products of one task in L2: 24 x 64 floats of every frequency, or fewer to make enough tasks.
    blocks.block_rows = std::min(std::max<int64_t>(24 / mr, 1) * mr, round_up(rows, mr));
    blocks.block_columns = std::min<int64_t>(round_up(64, nr), round_up(columns, nr));
    const auto tasks = [&] {
        return groups * ceil_div(rows, blocks.block_rows) * ceil_div(columns, blocks.block_columns);
    };
    if (tasks() < wanted_tasks) blocks.block_columns = std::min<int64_t>(round_up(32, nr), blocks.block_columns);
    if (tasks() < wanted_tasks) blocks.block_rows = std::min<int64_t>(round_up(12, mr), blocks.block_rows);
    return blocks;
}

template <class T>
void describe_winograd(PassPlan& plan, const ConvProblem& problem, bool forward, const KernelSet<T>& kernels,
                       int threads) {
    const int64_t channels = forward ? problem.group_in() : problem.group_out();
    const int64_t rows = forward ? problem.group_out() : problem.group_in();
    const int64_t height = forward ? problem.out_h() : problem.h.input;
    const int64_t width = forward ? problem.out_w() : problem.w.input;
    if (winograd_by_channels(problem.groups, height, width)) {
        const WinogradChannelBlocks blocks =
            plan_winograd_channel_blocks(problem.batch, height, width, channels, rows, kernels.lanes, kernels.nr);
        const PassScratch scratch = winograd_channels_scratch(blocks, kernels);
        plan.algorithm = "winograd";
        plan.tile = "4 x 4 and 3 x 3 outputs, " + std::to_string(kernels.mr) + " tiles of a frequency x " +
                    std::to_string(kernels.nr) + " channels";
        plan.block = std::to_string(blocks.block_images * blocks.tiles) + " tiles x " +
                     std::to_string(std::min(blocks.block_panels * kernels.nr, rows)) + " channels, sums of " +
                     std::to_string(blocks.chunk_channels) + " channels";
        const int64_t together = ceil_div(std::max<int64_t>(rows, 1), blocks.block_panels * kernels.nr);
        plan.tasks = problem.groups * ceil_div(problem.batch, blocks.block_images) * together;
        plan.threads = std::min<int64_t>({parallel_width(plan.flops), threads, together});
        plan.scratch_bytes = scratch.shared_bytes + plan.threads * scratch.worker_bytes;
        plan.reason =
            "F(4x4, 3x3): 36 multiplications for 16 outputs instead of 144; few tiles, so vectors over "
            "channels, and a task makes the transformed weights that it needs in L2; images with inf, NaN or "
            "an overflow by the direct method";
        return;
    }
    const int64_t tiles = problem.batch * ceil_div(height, winograd_outputs) * ceil_div(width, winograd_outputs);
    const WinogradBlocks blocks =
        plan_winograd_blocks(tiles, problem.groups, channels, rows, sizeof(T), kernels.mr, kernels.nr);
    const PassScratch scratch = winograd_scratch(blocks, problem.groups, channels, rows, kernels);
    const int64_t tile_blocks = ceil_div(std::max<int64_t>(tiles, 1), blocks.block_panels * kernels.nr);
    plan.algorithm = "winograd";
    plan.tile = "4 x 4 outputs, " + std::to_string(kernels.mr) + " channels x " + std::to_string(kernels.nr) +
                " tiles of a frequency";
    plan.block = std::to_string(blocks.block_panels * kernels.nr) + " tiles x " +
                 std::to_string(std::min(blocks.block_rows, rows)) + " channels, sums of " +
                 std::to_string(blocks.chunk_channels) + " channels";
    const int64_t row_blocks = ceil_div(std::max<int64_t>(rows, 1), blocks.block_rows);
    const int64_t together = blocks.shares_inputs ? row_blocks : problem.groups * tile_blocks;
    plan.tasks = problem.groups * tile_blocks * (blocks.shares_inputs ? row_blocks : 1);
    plan.threads = std::min<int64_t>({parallel_width(plan.flops), threads, together});
    plan.scratch_bytes = scratch.shared_bytes + plan.threads * scratch.worker_bytes;
    plan.reason = "F(4x4, 3x3): 36 multiplications for 16 outputs instead of 144; ";
    plan.reason += blocks.shares_inputs ? "a task makes the transformed weights that it needs in L2"
                                        : "a task keeps the transformed inputs in L2";
    plan.reason += "; images with inf, NaN or an overflow by the direct method";
}

template <class T>
void describe_winograd_grad_weight(PassPlan& plan, const ConvProblem& problem, const KernelSet<T>& kernels,
                                   int threads) {
    const int64_t rows = problem.group_out(), columns = problem.group_in();
    const int64_t tiles =
        problem.batch * ceil_div(problem.out_h(), winograd_outputs) * ceil_div(problem.out_w(), winograd_outputs);
    const WinogradGradWeightBlocks blocks =
        plan_winograd_grad_weight_blocks(tiles, problem.groups, rows, columns, sizeof(T), kernels.mr, kernels.nr);
    const PassScratch scratch = winograd_grad_weight_scratch(blocks, problem.groups, rows, columns, kernels);
    plan.algorithm = "winograd";
    plan.tile = "4 x 4 gradients, " + std::to_string(kernels.mr) + " x " + std::to_string(kernels.nr) +
                " weights of a frequency";
    plan.block = std::to_string(std::min(blocks.block_rows, rows)) + " output channels x " +
                 std::to_string(std::min(blocks.block_columns, columns)) + " input channels, sums of " +
                 std::to_string(blocks.chunk_tiles) + " tiles";
    const int64_t together = ceil_div(std::max<int64_t>(rows, 1), blocks.block_rows) *
                             ceil_div(std::max<int64_t>(columns, 1), blocks.block_columns);
    plan.tasks = problem.groups * blocks.blocks * together;
    plan.threads = std::min<int64_t>({parallel_width(plan.flops), threads, together});
    plan.scratch_bytes = scratch.shared_bytes + plan.threads * scratch.worker_bytes;
    plan.reason = "F(3x3, 4x4): 36 multiplications for 16 gradients instead of 144; " +
                  std::to_string(blocks.block_tiles) + " tiles at a time are transformed for all channels";
    plan.reason += "; by the direct method where the result is inf or NaN";
}

template void describe_winograd(PassPlan&, const ConvProblem&, bool, const KernelSet<float>&, int);
template void describe_winograd_grad_weight(PassPlan&, const ConvProblem&, const KernelSet<float>&, int);
template void describe_winograd_grad_weight(PassPlan&, const ConvProblem&, const KernelSet<double>&, int);
template void describe_winograd(PassPlan&, const ConvProblem&, bool, const KernelSet<double>&, int);

}  // namespace convx
