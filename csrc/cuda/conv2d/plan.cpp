#include "cuda/conv2d/plan.h"

#include <algorithm>

#include "common/check.h"
#include "common/rounding.h"

namespace convx::cuda {

namespace {

// Blocks that fill a large GPU: two for each of an H100's 132 multiprocessors. A constant, since the number of parts
// decides the order of a sum.
constexpr int64_t enough_blocks = 264;
constexpr int64_t most_positions = int64_t{1} << 30;
// A shorter part of a sum costs more by its partial sums' way through memory than by its multiplications.
constexpr int64_t least_steps = 16;

// A tile of a GEMM has 64 columns: with fewer than 16 channels three quarters of it would be empty.
bool has_few_channels(const ConvProblem& problem) {
    constexpr int64_t few = 16;
    const bool one_to_one = problem.in_channels == 1 && problem.out_channels == 1;
    return problem.in_channels > 0 &&
           (one_to_one || (problem.groups > 1 && problem.group_in() < few && problem.group_out() < few));
}

int64_t weights_of(const ConvProblem& problem) { return element_count(problem.weight_shape()); }

// Split-K: a sum of `steps` in about `wanted` parts, each of `sums` numbers, by plan.blocks blocks.
void split(ConvPlan& plan, const ConvProblem& problem, int64_t steps, int64_t wanted, int64_t sums) {
    plan.steps_of_part = ceil_div(steps, wanted);
    plan.parts = ceil_div(steps, plan.steps_of_part);
    plan.blocks *= plan.parts;
    plan.partial_bytes = workspace_part(plan.parts * sums * sum_size(problem.dtype));
}
std::string split_text(const ConvPlan& plan, int64_t pixels) {
    return " over " + std::to_string(pixels) + " pixels in " + std::to_string(plan.parts) +
           (plan.parts == 1 ? " part" : " parts, added in order");
}

void plan_grad_bias(ConvPlan& plan, const ConvProblem& problem) {
    const int64_t pixels = std::max<int64_t>(problem.batch * problem.out_pixels(), 1);
    plan.blocks = ceil_div(problem.out_channels, 32);
    const int64_t wanted = std::clamp<int64_t>(2 * enough_blocks / plan.blocks, ceil_div(pixels, most_positions),
                                               std::max<int64_t>(ceil_div(pixels, 1024), 1));
    split(plan, problem, pixels, wanted, problem.out_channels);
    plan.reason = "sums" + split_text(plan, pixels);
}

void plan_direct_grad_weight(ConvPlan& plan, const ConvProblem& problem) {
    const int64_t pixels = std::max<int64_t>(plan.images * problem.out_pixels(), 1);
    plan.blocks =
        ceil_div(problem.out_channels, direct_channels) * ceil_div(problem.group_in() * problem.taps(), direct_taps);
    const int64_t wanted =
        std::clamp<int64_t>(4 * enough_blocks / plan.blocks, 1, std::max<int64_t>(pixels / (32 * direct_lanes), 1));
    split(plan, problem, pixels, wanted, weights_of(problem));
    plan.reason += "the sum" + split_text(plan, pixels);
}

void plan_gemm_grad_weight(ConvPlan& plan, const ConvProblem& problem) {
    const int64_t rows = problem.group_out(), columns = problem.group_in() * problem.taps();
    plan.large = rows > 64 && columns > 64;
    const TileSize tile = tile_size(problem.dtype, plan.large);
    plan.blocks = ceil_div(rows, tile.rows) * ceil_div(columns, tile.columns) * problem.groups;
    const int64_t pixels = plan.images * problem.out_pixels();
    const int64_t steps = ceil_div(std::max<int64_t>(pixels, 1), tile.depth);
    const int64_t wanted =
        std::clamp<int64_t>(enough_blocks / std::max<int64_t>(plan.blocks, 1), 1, ceil_div(steps, least_steps));
    split(plan, problem, steps, wanted, weights_of(problem));
    plan.reason = "the sum" + split_text(plan, pixels);
}

// A window sum as a plan sees it; the adjoint writes the padded image.
struct Windows {
    Windows(const ConvProblem& problem, bool adjoint)
        : h(problem.h.unfolded()), w(problem.w.unfolded()),
          channels(adjoint ? problem.group_out() : problem.group_in()),
          columns(adjoint ? problem.group_in() : problem.group_out()),
          pixels(adjoint ? h.input * w.input : problem.out_pixels()), phases(adjoint ? h.phases() * w.phases() : 1),
          pixels_of_phase(adjoint ? ceil_div(h.input, h.stride) * ceil_div(w.input, w.stride) : pixels) {}

    const Axis h, w;
    const int64_t channels, columns;  // of a group: of the source, of the result
    const int64_t pixels, phases, pixels_of_phase;
};

void plan_direct_sum(ConvPlan& plan, const ConvProblem& problem, const Windows& windows) {
    plan.blocks = ceil_div(plan.images * windows.pixels * windows.columns * problem.groups, 4 * 256);
    plan.panel_bytes = workspace_part(weights_of(problem) * item_size(problem.dtype));
    plan.reason += "four rows a thread";
}

void plan_window_gemm(ConvPlan& plan, const ConvProblem& problem, const Windows& windows) {
    const auto blocks = [&](bool large) {
        const TileSize tile = tile_size(problem.dtype, large);
        return ceil_div(plan.images * windows.pixels_of_phase, tile.rows) * ceil_div(windows.columns, tile.columns) *
               problem.groups;
    };
    plan.large = windows.columns > 64 && blocks(true) >= enough_blocks / 2;
    plan.blocks = blocks(plan.large);
    const TileSize tile = tile_size(problem.dtype, plan.large);
    const int64_t depth = windows.channels * problem.taps();  // of a phase: at most this
    plan.panel_bytes = workspace_part(problem.groups * round_up(windows.columns, tile.columns) *
                                      round_up(depth, tile.depth) * item_size(problem.dtype));
    plan.reason = std::to_string(plan.blocks) + " blocks" +
                  (windows.phases > 1 ? " for each of " + std::to_string(windows.phases) + " phases" : "");
}

void plan_window_sum(ConvPlan& plan, const ConvProblem& problem, const Windows& windows, bool folded) {
    if (plan.method == ConvMethod::direct)
        plan_direct_sum(plan, problem, windows);
    else
        plan_window_gemm(plan, problem, windows);
    if (!folded) return;
    plan.unfolded_bytes = workspace_part(plan.images * problem.in_channels * windows.pixels * sum_size(problem.dtype));
    plan.reason += "; the gradient of the padded images is folded afterwards";
}

void plan_grad_weight(ConvPlan& plan, const ConvProblem& problem) {
    if (plan.method == ConvMethod::direct)
        plan_direct_grad_weight(plan, problem);
    else
        plan_gemm_grad_weight(plan, problem);
    if (plan.images < problem.batch) plan.carried_bytes = workspace_part(weights_of(problem) * sum_size(problem.dtype));
}

}  // namespace

ConvPlan plan_conv2d(const ConvProblem& problem, ConvPass pass, Precision precision) {
    const bool adjoint = pass == ConvPass::grad_input;
    const Windows windows(problem, adjoint);
    const int64_t positions = std::max(problem.out_pixels(), adjoint ? windows.pixels : int64_t{1});
    if (positions > most_positions)
        throw ShapeError("conv2d: an image with " + std::to_string(positions) + " window positions, expected at most " +
                         std::to_string(most_positions) + " on CUDA");
    ConvPlan plan;
    plan.images = std::max<int64_t>(1, std::min(problem.batch, most_positions / positions));
    if (problem.dtype == DType::float32) plan.precision = precision;
    if (pass == ConvPass::grad_bias) {
        plan_grad_bias(plan, problem);
        return plan;
    }
    if (has_few_channels(problem)) {
        plan.method = ConvMethod::direct;
        plan.precision = Precision::ieee;
        plan.reason = std::to_string(problem.group_in()) + " channels in and " + std::to_string(problem.group_out()) +
                      " out of a group: direct, ";
    }
    if (pass == ConvPass::grad_weight)
        plan_grad_weight(plan, problem);
    else
        plan_window_sum(plan, problem, windows, adjoint && (problem.h.folds() || problem.w.folds()));
    return plan;
}

}  // namespace convx::cuda
