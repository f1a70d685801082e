// The direct convolution as a method: which of its drivers runs, and in what blocks.
#include <algorithm>

#include "common/rounding.h"
#include "cpu/conv2d/direct.h"
#include "cpu/conv2d/even_blocks.h"
#include "cpu/conv2d/method_row.h"
#include "cpu/conv2d/reference.h"

namespace convx {

namespace {

// Channels that are summed over, up to which forward and the weight gradient gain from not packing taps (an implicit
// GEMM packs them once for all rows), and rows up to which they are too few to pay for the packing. At 56x56 and 3x3
// both methods are equal at 12 to 16.
constexpr int64_t few_channels = 8;
constexpr int64_t few_rows = 16;
// The same for small planes: as many weights as stay in L2 beside them.
constexpr int64_t few_weights = 32 * 1024;

// Depth of the sums in registers: enough that their way to memory and back does not count.
constexpr int64_t target_depth = 256;
// Staged lines of a band, in L2 (512 KiB and more) beside the sums and the weights.
constexpr int64_t band_bytes = 96 * 1024;
// Weight gradient: positions of a band, and grad_output beside it in L2.
constexpr int64_t run_positions = 1536;
constexpr int64_t grad_bytes = 96 * 1024;
constexpr int64_t most_splits = 32;
// A band is no more than this part of an image, so that one image already makes work for some threads,
// unless it is small: a band has this many flops (20 us) if the image does.
constexpr int64_t bands_of_image = 8;
constexpr int64_t band_flops = 1'000'000;

// Cycles of a tap: loads (2 a cycle, every second vector crosses a line and counts twice, one
// for the offset) or FMA (2 a cycle, 4 late).
double tile_cycles(int64_t rows, int64_t vecs) {
    return std::max({(1.5 * static_cast<double>(vecs) + static_cast<double>(rows) + 1) / 2,
                     static_cast<double>(rows * vecs) / 2, 4.0});
}

// Cycles of a run of `count` positions, per tap; `fixed` is what a tile costs beside its taps.
double run_cycles(int64_t rows, int64_t count, int64_t lanes, int64_t limit, double fixed) {
    const int64_t vecs = std::min<int64_t>(limit / rows, 8), vectors = ceil_div(count, lanes);
    double cycles = static_cast<double>(vectors / vecs) * (tile_cycles(rows, vecs) + fixed);
    if (vectors % vecs > 0) cycles += tile_cycles(rows, vectors % vecs) + fixed;
    return cycles;
}

int64_t most_taps(const PhasedAxis& axis) {
    size_t most = 1;
    for (const PhasedAxis::Class& one : axis.classes) most = std::max(most, one.taps.size());
    return static_cast<int64_t>(most);
}

// Cycles of a band per tap with vectors over rows, of which a tile has one or two; as above, and 5 for each vector that
// is transposed behind the tiles.
double vector_rows_cycles(int64_t rows, int64_t pixels, int lanes, int mr, int nr, bool transposes, double depth) {
    const int64_t tiles = ceil_div(pixels, mr), pixels_of_tile = ceil_div(pixels, tiles);
    double cycles = 0;
    for (int64_t row = 0; row < rows; row += nr) {
        const int64_t vecs = ceil_div(std::min<int64_t>(rows - row, nr), lanes);
        const double tile =
            static_cast<double>(std::max({pixels_of_tile * vecs, pixels_of_tile + vecs, int64_t{8}})) / 2;
        cycles += static_cast<double>(tiles) * (tile + 25 / depth);
        if (transposes) cycles += 5 / depth * static_cast<double>(vecs * pixels);
    }
    return cycles;
}

std::string describe_band(const PlaneLayout& layout, int64_t lines) {
    return std::to_string(std::min(lines, layout.h.positions())) + " lines of " + std::to_string(layout.w.positions());
}

DirectBlocks plan_blocks(const PlaneLayout& layout, bool channels_last, int64_t rows, int64_t channels,
                         int64_t item_bytes, int lanes, int mr, int limit) {
    DirectBlocks blocks;
    const int64_t taps = most_taps(layout.h) * most_taps(layout.w);
    blocks.chunk_channels = even_part(channels, std::clamp(target_depth / taps, int64_t{1}, channels));

    if (blocks.chunk_channels > 16) blocks.chunk_channels = blocks.chunk_channels / 16 * 16;  // whole vectors
    // Fewer channels at a time where a band would stage more lines beyond its own than a quarter; but whole cache lines
    // of adjacent channels.
    const auto fitting = [&] {
        return band_bytes / (blocks.chunk_channels * layout.planes() * layout.pitch * item_bytes) - layout.reach;
    };
    while (blocks.chunk_channels > (channels_last ? 64 / item_bytes : 1) &&
           fitting() < std::min(4 * layout.reach, layout.h.positions()))
        blocks.chunk_channels = even_part(channels, blocks.chunk_channels / 2);
    const int64_t fit = std::max(fitting(), layout.reach / 2 + 1);
    const int64_t lines = layout.h.positions(), line_flops = 2 * rows * channels * taps * layout.w.positions();
    blocks.band_lines =
        even_part(lines, std::min(fit, std::max(ceil_div(lines, bands_of_image), ceil_div(band_flops, line_flops))));

    const double depth = static_cast<double>(blocks.chunk_channels * taps);
    const int64_t positions = layout.w.positions();
    double best = 0;
    for (int64_t most_rows = 1; most_rows <= std::min<int64_t>(rows, mr); ++most_rows) {
        const int64_t tile_rows = even_part(rows, most_rows);
        const int64_t last_rows = rows - (ceil_div(rows, tile_rows) - 1) * tile_rows;
        for (const bool whole_band : {false, true}) {
            // Cycles: 20 a tile, 4 a vector that is written to dest apart, 12 if it is transposed.
            const auto cycles = [&](int64_t r) {
                const int64_t band = blocks.band_lines;
                const double fixed = 20 / depth;
                const double apart =
                    (channels_last ? 12 : 4) / depth * static_cast<double>(r * band * ceil_div(positions, lanes));
                if (!whole_band)
                    return static_cast<double>(band) * run_cycles(r, positions, lanes, limit, fixed) +
                           (channels_last ? apart : 0);
                return run_cycles(r, (band - 1) * layout.pitch + positions, lanes, limit, fixed) + apart;
            };
            const double total =
                static_cast<double>(ceil_div(rows, tile_rows) - 1) * cycles(tile_rows) + cycles(last_rows);
            if (best > 0 && total >= best) continue;
            best = total;
            blocks.tile_rows = tile_rows;
            blocks.whole_band = whole_band;
        }
    }

    // Vectors over rows take all channels at once.
    const int64_t nr = limit / mr * lanes;
    const int64_t all_fit = band_bytes / (channels * layout.planes() * layout.pitch * item_bytes) - layout.reach;
    const int64_t band_lines = even_part(lines, std::min(all_fit, blocks.band_lines));
    const double vector_rows = static_cast<double>(ceil_div(lines, band_lines)) /
                               static_cast<double>(ceil_div(lines, blocks.band_lines)) *
                               vector_rows_cycles(rows, band_lines * positions, lanes, mr, static_cast<int>(nr),
                                                  !channels_last, static_cast<double>(channels * taps));
    if (all_fit >= std::min(layout.reach, lines) && all_fit > 0 && vector_rows < best) {
        blocks = {};
        blocks.vectors_of_rows = true;
        blocks.chunk_channels = channels;
        blocks.band_lines = band_lines;
    }
    return blocks;
}

DirectSumBlocks plan_sum_blocks(const PlaneLayout& layout, int64_t batch, int64_t rows, int64_t channels,
                                int64_t item_bytes, int lanes, int mr, int limit) {
    DirectSumBlocks blocks;
    const int64_t columns = channels * most_taps(layout.h) * most_taps(layout.w);
    double best = 0;
    for (int64_t most_rows = 1; most_rows <= std::min<int64_t>(rows, 5); ++most_rows) {
        const int64_t tile_rows = even_part(rows, most_rows);
        const int64_t most_columns = std::max<int64_t>(1, std::min<int64_t>(limit / tile_rows, 10 - tile_rows));
        const int64_t tile_taps = even_part(columns, most_columns);
        // Loads: one a row, one and a half a tap.
        const double cycles = tile_cycles(tile_rows, tile_taps) *
                              static_cast<double>(ceil_div(rows, tile_rows) * ceil_div(columns, tile_taps));
        if (best > 0 && cycles >= best) continue;
        best = cycles;
        blocks.tile_rows = tile_rows;
        blocks.tile_taps = tile_taps;
    }
    // Long runs, since the lanes of every tile are added up behind them; then the rows that fit in L2 beside the
    // planes.
    const int64_t line_bytes = layout.pitch * item_bytes;
    const int64_t fit = band_bytes / (channels * layout.planes() * line_bytes) - layout.reach;
    const int64_t wanted = std::max(ceil_div(run_positions, layout.pitch), 4 * layout.reach);
    blocks.band_lines = even_part(layout.h.positions(), std::min(wanted, std::max(fit, layout.reach / 2 + 1)));
    blocks.block_rows = std::clamp(grad_bytes / (blocks.band_lines * line_bytes) / blocks.tile_rows * blocks.tile_rows,
                                   blocks.tile_rows, round_up(rows, blocks.tile_rows));
    const int64_t bands = batch * ceil_div(layout.h.positions(), blocks.band_lines);
    blocks.splits = std::min<int64_t>(bands, most_splits);

    // The dots take the lanes between lines along, wait for loads (a quarter), and need 30 cycles a tile for the sums
    // across lanes. Vectors over rows: chunks of 128 to 512 pixels, beside which a tile's own 25 cycles count little.
    // The choice fixes the order of sums, so it may not look at the layout.
    const int64_t positions = layout.w.positions(), lines = layout.h.positions();
    const double run = static_cast<double>(blocks.band_lines * layout.pitch) / lanes;
    const double dots =
        best / lanes * (1.25 + 5 / run) * static_cast<double>(layout.pitch) / static_cast<double>(positions);
    DirectSumBlocks other;
    other.vectors_of_rows = true;
    other.band_lines =
        even_part(lines, std::min(ceil_div(int64_t{512}, positions), std::max(fit, layout.reach / 2 + 1)));
    if (other.band_lines == lines) other.images = std::clamp(128 / (lines * positions), int64_t{1}, batch);
    const int64_t pixels = other.images * other.band_lines * positions;
    const double vector_rows =
        vector_rows_cycles(rows, columns, lanes, mr, limit / mr * lanes, false, static_cast<double>(pixels)) +
        0.25 * static_cast<double>(rows);
    if (vector_rows >= dots) return blocks;
    other.splits = std::min(ceil_div(batch, other.images) * ceil_div(lines, other.band_lines), most_splits);
    return other;
}

}  // namespace

struct DirectMethod {
    static constexpr const char* name = "direct-spatial";
    static constexpr Traits traits{};

    struct Plan {
        PlaneLayout layout;
        DirectBlocks blocks;
        TaskPlan task_plan;

        const TaskPlan& tasks() const { return task_plan; }
    };

    struct SumPlan {
        PlaneLayout layout;
        DirectSumBlocks blocks;
        TaskPlan task_plan;

        const TaskPlan& tasks() const { return task_plan; }
    };

    static Verdict supports(const ConvProblem& problem, ConvPass) {
        if (problem.groups != 1) return {"needs one group"};
        if (problem.in_channels == 0) return {"needs an input channel"};
        // Whole lines are staged: a few MiB at most.
        const int64_t line = item_size(problem.dtype) * problem.in_channels * problem.w.padded();
        if (line * problem.h.extent() > int64_t{4} << 20) return {"needs lines of a window that fit in 4 MiB"};
        return {};
    }

    static bool suits(const ConvProblem& problem, ConvPass pass, const Kernels&) {
        // A photo through one filter is a depthwise convolution of one channel: 0.37 ms for 1080 x 1920, 3x3, against
        // 0.60. Below 4 taps an implicit GEMM packs as little as this would stage.
        if ((problem.in_channels == 1 && problem.out_channels == 1) || problem.taps() < 4) return false;
        const int64_t rows = pass == ConvPass::grad_input ? problem.in_channels : problem.out_channels;
        const int64_t channels = pass == ConvPass::grad_input ? problem.out_channels : problem.in_channels;
        // Small planes with lines of less than two vectors: vectors over rows lose nothing between the lines.
        const bool short_lines = rows >= few_rows && channels <= 4 * few_channels &&
                                 rows * channels * problem.taps() <= few_weights && problem.out_w() < 16 &&
                                 problem.w.input < 16;
        return channels <= few_channels || short_lines || (rows <= few_rows && pass != ConvPass::grad_weight);
    }

    template <class T>
    static Plan plan(const WindowSum<T>& sum, const KernelSet<T>& kernels) {
        const ConvProblem& problem = *sum.problem;
        Plan plan{sum.forward() ? PlaneLayout(phases_of_forward(problem.h), phases_of_forward(problem.w))
                                : PlaneLayout(phases_of_adjoint(problem.h), phases_of_adjoint(problem.w)),
                  {},
                  {}};
        plan.blocks = plan_blocks(plan.layout, problem.channels_last, sum.rows, sum.channels, sizeof(T), kernels.lanes,
                                  kernels.mr, kernels.few_channels_limit);
        plan.task_plan = plan.blocks.vectors_of_rows ? direct_channels_tasks(sum, plan.layout, plan.blocks, kernels)
                                                     : direct_spatial_tasks(sum, plan.layout, plan.blocks, kernels);
        return plan;
    }

    template <class T>
    static bool run(const WindowSum<T>& sum, const Plan& plan, const KernelSet<T>& kernels) {
        if (plan.blocks.vectors_of_rows)
            return run_direct_channels(sum, plan.layout, plan.blocks, plan.task_plan, kernels);
        return run_direct_spatial(sum, plan.layout, plan.blocks, plan.task_plan, kernels);
    }

    template <class T>
    static void describe(const WindowSum<T>& sum, const Plan& plan, const KernelSet<T>& kernels, PassPlan& text) {
        const DirectBlocks& blocks = plan.blocks;
        const int64_t vecs = std::min<int64_t>(kernels.few_channels_limit / blocks.tile_rows, 8);
        text.tile =
            blocks.vectors_of_rows
                ? std::to_string(kernels.mr) + " pixels x " + std::to_string(kernels.nr) + " channels"
                : std::to_string(blocks.tile_rows) + " channels x " + std::to_string(vecs * kernels.lanes) + " pixels";
        text.block = describe_band(plan.layout, blocks.band_lines) + " pixels, sums of " +
                     std::to_string(blocks.chunk_channels) + " channels x " +
                     std::to_string(most_taps(plan.layout.h) * most_taps(plan.layout.w)) + " taps";
        text.reason = sum.forward() ? "few channels in: packing every tap would cost more than staging whole lines"
                                    : "few channels in: vectors over pixels, tiles as wide as the few rows allow";
        if (blocks.vectors_of_rows)
            text.reason = "few channels or short lines: vectors over the channels written, staged pixels are broadcast";
    }

    template <class T>
    static SumPlan plan(const PixelSum<T>& sum, const KernelSet<T>& kernels) {
        const ConvProblem& problem = *sum.problem;
        SumPlan plan{PlaneLayout(phases_of_forward(problem.h), phases_of_forward(problem.w)), {}, {}};
        plan.blocks = plan_sum_blocks(plan.layout, problem.batch, problem.out_channels, problem.in_channels, sizeof(T),
                                      kernels.lanes, kernels.mr, kernels.few_channels_limit);
        plan.task_plan = plan.blocks.vectors_of_rows ? direct_channels_tasks(sum, plan.layout, plan.blocks, kernels)
                                                     : direct_spatial_tasks(sum, plan.layout, plan.blocks, kernels);
        return plan;
    }

    // A NaN may come from an infinity that met one of the zeros between the lines or over the border.
    template <class T>
    static bool run(const PixelSum<T>& sum, const SumPlan& plan, const KernelSet<T>& kernels) {
        if (plan.blocks.vectors_of_rows)
            run_direct_channels(sum, plan.layout, plan.blocks, plan.task_plan, kernels);
        else
            run_direct_spatial(sum, plan.layout, plan.blocks, plan.task_plan, kernels);
        return !has_nan(sum.grad_weight.data, sum.weights());
    }

    template <class T>
    static void describe(const PixelSum<T>& sum, const SumPlan& plan, const KernelSet<T>& kernels, PassPlan& text) {
        const DirectSumBlocks& blocks = plan.blocks;
        const bool channels = blocks.vectors_of_rows;
        text.tile = std::to_string(channels ? kernels.nr : blocks.tile_rows) + " x " +
                    std::to_string(channels ? kernels.mr : blocks.tile_taps) + " weights";
        text.block =
            std::to_string(std::min<int64_t>(channels ? kernels.nr : blocks.block_rows, sum.problem->out_channels)) +
            " output channels, sums of " + (blocks.images > 1 ? std::to_string(blocks.images) + " images of " : "") +
            describe_band(plan.layout, blocks.band_lines) + " pixels, " + std::to_string(blocks.splits) +
            (blocks.splits == 1 ? " part" : " parts");
        text.reason = "few channels in: vectors over ";
        text.reason += channels ? "output channels" : "pixels";
        text.reason +=
            ", so that neither operand is packed by taps; bands of lines are shared out and their sums added in order";
    }
};

template const Method<WindowSum<float>>& method_row<DirectMethod, WindowSum<float>>();
template const Method<WindowSum<double>>& method_row<DirectMethod, WindowSum<double>>();
template const Method<PixelSum<float>>& method_row<DirectMethod, PixelSum<float>>();
template const Method<PixelSum<double>>& method_row<DirectMethod, PixelSum<double>>();

}  // namespace convx
