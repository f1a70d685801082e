#include "cpu/conv2d/direct.h"

#include <algorithm>

#include "common/rounding.h"

namespace convx {

Verdict supports_groups(const ConvProblem& problem) {
    const int64_t channels = problem.group_in(), rows = problem.group_out();
    if (channels == 0 || rows == 0) return {"needs a channel"};
    // A window that is larger than L2 would have to be copied again for every row.
    const int64_t places = problem.h.extent() * (problem.w.padded() + problem.w.stride);
    if (std::max(channels, rows) * places > 128 * 1024 || problem.taps() > 4096)
        return {"needs rows of a window that fit in L2"};
    return {};
}

bool has_few_channels(const ConvProblem& problem) {
    return is_depthwise(problem) || (problem.groups > 1 && problem.group_in() < 64 && problem.group_out() < 64);
}

bool suits_direct(const ConvProblem& problem, ConvPass pass) {
    if (problem.groups > 1) return has_few_channels(problem);
    // Below 4 taps an implicit GEMM packs as little as this would copy.
    if (problem.taps() < 4) return is_depthwise(problem);
    int64_t rows = problem.out_channels, channels = problem.in_channels;
    if (pass == ConvPass::grad_input) std::swap(rows, channels);
    // Small planes with rows of less than two vectors, and as many weights as stay in L2 beside them.
    const bool short_rows = rows >= 16 && channels <= 32 && rows * channels * problem.taps() <= 32 * 1024 &&
                            problem.out_w() < 16 && problem.w.input < 16;
    return channels <= 8 || short_rows || (rows <= 16 && pass != ConvPass::grad_weight);
}

bool suits_channels(const ConvProblem& problem, ConvPass pass, const Kernels& kernels) {
    const int lanes = problem.dtype == DType::float32 ? kernels.f32.lanes : kernels.f64.lanes;
    const int64_t rows = pass == ConvPass::grad_input ? problem.group_in() : problem.group_out();
    const bool fills = rows >= lanes && 3 * rows >= 2 * round_up(rows, lanes);
    if (pass == ConvPass::grad_weight) return fills && suits_direct(problem, pass);
    // In NCHW the transposes of the result take more than full vectors gain, unless sums are deep or rows short.
    if (problem.groups == 1)
        return fills && suits_direct(problem, pass) &&
               (problem.channels_last || problem.in_channels * problem.taps() >= 100 || problem.out_w() < 16);
    // With one vector the tile is bound by its loads (9 for 8 FMA), that over pixels is not.
    return fills && rows > lanes && suits_direct(problem, pass);
}

int64_t unit_rows(const PlaneLayout& layout, int64_t images, int64_t row_flops) {
    const int64_t height = layout.h.positions();
    const int64_t wanted = ceil_div(height, ceil_div(grouped_wanted_tasks, std::max<int64_t>(images, 1)));
    return std::min(
        height, std::max({wanted, 4 * layout.reach, ceil_div(grouped_task_flops, std::max<int64_t>(row_flops, 1))}));
}

int64_t units_of_a_task(int64_t units, int64_t unit_flops) {
    return std::clamp(grouped_task_flops / std::max<int64_t>(unit_flops, 1), int64_t{1},
                      std::max<int64_t>(units / grouped_wanted_tasks, 1));
}

std::string lines_of_a_group(int64_t lines) {
    return std::to_string(lines) + (lines == 1 ? " line of one group" : " lines of one group");
}

int64_t most_taps(const PlaneLayout& layout) {
    const auto most = [](const PhasedAxis& axis) {
        size_t count = 0;
        for (const PhasedAxis::Class& one : axis.classes) count = std::max(count, one.taps.size());
        return static_cast<int64_t>(count);
    };
    return most(layout.h) * most(layout.w);
}

std::string sums_of(int64_t channels, const PlaneLayout& layout) {
    return ", sums of " + std::to_string(channels) + " channels x " + std::to_string(most_taps(layout)) + " taps";
}

std::string phases_note(size_t phases) {
    if (phases == 1) return "";
    return "; the stride makes " + std::to_string(phases) + " phases of pixels with taps of their own";
}

}  // namespace convx
