#include "cuda/conv2d/plan.h"

#include <algorithm>

#include "common/check.h"
#include "common/rounding.h"

namespace convx::cuda {

namespace {

// Blocks that keep a large GPU busy: two for each of an H100's 132 multiprocessors. A constant, since the number of
// parts is part of a sum's order.
constexpr int64_t enough_blocks = 264;
constexpr int64_t most_positions = int64_t{1} << 30;
// A part shorter than this costs more in its sums' way through memory than its multiplications.
constexpr int64_t least_steps = 16;

// A tile of a GEMM has 64 columns: with fewer than 16 channels three quarters of it would be empty.
bool has_few_channels(const ConvProblem& problem) {
    constexpr int64_t few = 16;
    const bool one_to_one = problem.in_channels == 1 && problem.out_channels == 1;
    return problem.in_channels > 0 &&
           (one_to_one || (problem.groups > 1 && problem.group_in() < few && problem.group_out() < few));
}

}  // namespace

ConvPlan plan_conv2d(const ConvProblem& problem, ConvPass pass, Precision precision) {
    ConvPlan plan;
    plan.precision = problem.dtype == DType::float32 ? precision : Precision::ieee;
    const int64_t item = item_size(problem.dtype), groups = problem.groups;
    const Axis h = problem.h.unfolded(), w = problem.w.unfolded();
    const bool folded = pass == ConvPass::grad_input && (problem.h.folds() || problem.w.folds());
    const int64_t positions =
        std::max(problem.out_pixels(), pass == ConvPass::grad_input ? h.input * w.input : int64_t{1});
    if (positions > most_positions)
        throw ShapeError("conv2d: an image with " + std::to_string(positions) + " window positions, expected at most " +
                         std::to_string(most_positions) + " on CUDA");
    plan.images = std::max<int64_t>(1, std::min(problem.batch, most_positions / positions));

    const int64_t sum_bytes = problem.dtype == DType::float64 ? 8 : 4;
    if (pass == ConvPass::grad_bias) {
        const int64_t pixels = std::max<int64_t>(problem.batch * problem.out_pixels(), 1);
        const int64_t tiles = ceil_div(problem.out_channels, 32);
        const int64_t wanted = std::clamp<int64_t>(2 * enough_blocks / tiles, ceil_div(pixels, most_positions),
                                                   std::max<int64_t>(ceil_div(pixels, 1024), 1));
        plan.steps_of_part = ceil_div(pixels, wanted);
        plan.parts = ceil_div(pixels, plan.steps_of_part);
        plan.blocks = plan.parts * tiles;
        plan.partial_bytes = workspace_part(plan.parts * problem.out_channels * sum_bytes);
        plan.reason = "sums over " + std::to_string(pixels) + " pixels in " + std::to_string(plan.parts) +
                      (plan.parts == 1 ? " part" : " parts, added in order");
        return plan;
    }

    if (has_few_channels(problem)) {
        plan.method = ConvMethod::direct;
        plan.precision = Precision::ieee;
        const std::string few = std::to_string(problem.group_in()) + " channels in and " +
                                std::to_string(problem.group_out()) + " out of a group: direct, ";
        const int64_t weights = problem.out_channels * problem.group_in() * problem.taps();
        if (pass != ConvPass::grad_weight) {
            const bool adjoint = pass == ConvPass::grad_input;
            const int64_t pixels = plan.images * (adjoint ? h.input * w.input : problem.out_pixels());
            plan.blocks = ceil_div(pixels * (adjoint ? problem.in_channels : problem.out_channels), 4 * 256);
            plan.panel_bytes = workspace_part(weights * item);
            if (folded)
                plan.unfolded_bytes = workspace_part(plan.images * problem.in_channels * h.input * w.input * sum_bytes);
            plan.reason =
                few + "four rows a thread" + (folded ? "; the gradient of the padded images is folded afterwards" : "");
            return plan;
        }
        const int64_t pixels = std::max<int64_t>(plan.images * problem.out_pixels(), 1);
        const int64_t tiles = ceil_div(problem.out_channels, direct_channels) *
                              ceil_div(problem.group_in() * problem.taps(), direct_taps);
        const int64_t wanted =
            std::clamp<int64_t>(4 * enough_blocks / tiles, 1, std::max<int64_t>(pixels / (32 * direct_lanes), 1));
        plan.steps_of_part = ceil_div(pixels, wanted);
        plan.parts = ceil_div(pixels, plan.steps_of_part);
        plan.blocks = plan.parts * tiles;
        plan.partial_bytes = workspace_part(plan.parts * weights * sum_bytes);
        if (plan.images < problem.batch) plan.carried_bytes = workspace_part(weights * sum_bytes);
        plan.reason = few + "the sum over " + std::to_string(pixels) + " pixels in " + std::to_string(plan.parts) +
                      (plan.parts == 1 ? " part" : " parts, added in order");
        return plan;
    }

    const auto count_blocks = [&](int64_t rows, int64_t columns) {
        const TileSize tile = tile_size(problem.dtype, plan.precision, plan.large);
        return ceil_div(rows, tile.rows) * ceil_div(columns, tile.columns) * groups;
    };
    int64_t rows, columns;
    if (pass == ConvPass::grad_weight) {
        rows = problem.group_out();
        columns = problem.group_in() * problem.taps();
        plan.large = rows > 64 && columns > 64;
        plan.blocks = count_blocks(rows, columns);
        const TileSize tile = tile_size(problem.dtype, plan.precision, plan.large);
        const int64_t steps = ceil_div(std::max<int64_t>(plan.images * problem.out_pixels(), 1), tile.depth);
        const int64_t wanted =
            std::clamp<int64_t>(enough_blocks / std::max<int64_t>(plan.blocks, 1), 1, ceil_div(steps, least_steps));
        plan.steps_of_part = ceil_div(steps, wanted);
        plan.parts = ceil_div(steps, plan.steps_of_part);
        plan.blocks *= plan.parts;
        plan.partial_bytes = workspace_part(plan.parts * problem.out_channels * columns * sum_bytes);
        if (plan.images < problem.batch)
            plan.carried_bytes = workspace_part(problem.out_channels * columns * sum_bytes);
        plan.reason = "the sum over " + std::to_string(plan.images * problem.out_pixels()) + " pixels in " +
                      std::to_string(plan.parts) + (plan.parts == 1 ? " part" : " parts, added in order");
        return plan;
    }
    const bool adjoint = pass == ConvPass::grad_input;
    const int64_t channels = adjoint ? problem.group_out() : problem.group_in();
    columns = adjoint ? problem.group_in() : problem.group_out();
    rows = plan.images * (adjoint ? ceil_div(h.input, h.stride) * ceil_div(w.input, w.stride) : problem.out_pixels());
    plan.large = true;
    plan.large = columns > 64 && count_blocks(rows, columns) >= enough_blocks / 2;
    plan.blocks = count_blocks(rows, columns);
    const TileSize tile = tile_size(problem.dtype, plan.precision, plan.large);
    const int64_t depth = channels * problem.taps();  // of a phase: at most this
    plan.panel_bytes = workspace_part(groups * ceil_div(columns, tile.columns) * tile.columns *
                                      ceil_div(depth, tile.depth) * tile.depth * item);
    if (folded) plan.unfolded_bytes = workspace_part(plan.images * problem.in_channels * h.input * w.input * sum_bytes);
    const int64_t phases = adjoint ? h.phases() * w.phases() : 1;
    plan.reason = std::to_string(plan.blocks) + " blocks" +
                  (phases > 1 ? " for each of " + std::to_string(phases) + " phases" : "") +
                  (folded ? "; the gradient of the padded images is folded afterwards" : "");
    return plan;
}

}  // namespace convx::cuda
