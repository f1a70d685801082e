#include "cpu/conv2d/grouped.h"

#include <algorithm>

#include "common/rounding.h"

namespace convx {

namespace {

PlaneLayout layout_of(const ConvProblem& problem, bool forward) {
    if (!forward) return {phases_of_adjoint(problem.h), phases_of_adjoint(problem.w)};
    Axis h = problem.h, w = problem.w;
    h.stride = w.stride = 1;
    PlaneLayout layout(phases_of_forward(h), phases_of_forward(w));
    layout.h.classes[0].positions = problem.out_h();
    layout.w.classes[0].positions = problem.out_w();
    return layout;
}

}  // namespace

Verdict supports_groups(const ConvProblem& problem) {
    const int64_t channels = problem.group_in(), rows = problem.group_out();
    if (channels == 0 || rows == 0) return {"needs a channel"};
    // A window that is larger than L2 would have to be staged again for every row.
    const int64_t places = problem.h.extent() * (problem.w.padded() + problem.w.stride);
    if (std::max(channels, rows) * places > 128 * 1024 || problem.taps() > 4096)
        return {"needs lines of a window that fit in L2"};
    return {};
}

bool has_few_channels(const ConvProblem& problem) {
    return is_depthwise(problem) || (problem.groups > 1 && problem.group_in() < 64 && problem.group_out() < 64);
}

bool fills_vectors(ConvPass pass, int64_t rows, int lanes) {
    // With one vector the tile of the forward pass is bound by its loads (9 for 8 FMA), that over pixels is not.
    return rows >= lanes + (pass == ConvPass::grad_weight ? 0 : 1) && 3 * rows >= 2 * round_up(rows, lanes);
}

GroupedPlanes::GroupedPlanes(const ConvProblem& problem, bool forward)
    : layout(layout_of(problem, forward)), advance_h(forward ? problem.h.stride : 1),
      advance_w(forward ? problem.w.stride : 1), taps(layout.all_taps()), kernel_w(problem.w.kernel),
      kernel_taps(problem.taps()) {}

std::string lines_of_a_group(int64_t lines) {
    return std::to_string(lines) + (lines == 1 ? " line of one group" : " lines of one group");
}

std::string sums_of(int64_t channels, const PlaneLayout& layout) {
    const auto most = [](const PhasedAxis& axis) {
        size_t count = 0;
        for (const PhasedAxis::Class& one : axis.classes) count = std::max(count, one.taps.size());
        return count;
    };
    return ", sums of " + std::to_string(channels) + " channels x " + std::to_string(most(layout.h) * most(layout.w)) +
           " taps";
}

std::string phases_note(size_t phases) {
    if (phases == 1) return "";
    return "; the stride makes " + std::to_string(phases) + " phases of pixels with taps of their own";
}

}  // namespace convx
