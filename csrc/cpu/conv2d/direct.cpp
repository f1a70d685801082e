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

int64_t unit_rows(const PlaneLayout& layout, int64_t images, int64_t row_flops) {
    const int64_t height = layout.h.positions();
    const int64_t wanted = ceil_div(height, ceil_div(wanted_tasks, std::max<int64_t>(images, 1)));
    return std::min(height,
                    std::max({wanted, 4 * layout.reach, ceil_div(task_flops, std::max<int64_t>(row_flops, 1))}));
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
