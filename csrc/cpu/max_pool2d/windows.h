// One axis of a pooling problem: which of its windows have which taps.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/problem.h"

namespace convx {

// Places begin <= i < end that have the same taps, tap_begin <= k < tap_end.
struct WindowRun {
    int64_t begin, end;
    int64_t tap_begin, tap_end;

    int64_t count() const { return tap_end - tap_begin; }
    bool is_empty() const { return tap_begin == tap_end; }
    bool has_tap(int64_t k) const { return tap_begin <= k && k < tap_end; }
};

// Puts place i, the one behind the last run, into a run.
inline void append_to(std::vector<WindowRun>& runs, int64_t i, int64_t tap_begin, int64_t tap_end) {
    if (!runs.empty() && runs.back().tap_begin == tap_begin && runs.back().tap_end == tap_end)
        runs.back().end = i + 1;
    else
        runs.push_back({i, i + 1, tap_begin, tap_end});
}

// The run that place i belongs to.
inline const WindowRun& run_of(const std::vector<WindowRun>& runs, int64_t i) {
    return *std::find_if(runs.begin(), runs.end(), [&](const WindowRun& run) { return i < run.end; });
}

// Where windows tile the rows of a plane (2x2 over an even height), dense planes are one tall plane: the same results
// from blocks of any height. Indices would change their meaning; codes do not.
inline bool rows_are_tiled(const Axis& h) {
    return h.pad_before == 0 && h.extent() <= h.stride && h.output() * h.stride == h.input;
}
template <class... U>
bool planes_are_stacked(const TensorView<U>&... views) {
    const auto is_stacked = [](const auto& view) {
        const auto [n, c, h, w] = view.shape;
        const int64_t plane = h * view.stride[2];
        return (c == 1 || view.stride[1] == plane) && (n == 1 || view.stride[0] == c * plane);
    };
    return (is_stacked(views) && ...);
}
template <class U>
TensorView<U> stack_planes(const TensorView<U>& view) {
    const auto [n, c, h, w] = view.shape;
    return {view.data, {1, 1, n * c * h, w}, {0, 0, view.stride[2], view.stride[3]}};
}
inline PoolProblem stack_planes(PoolProblem problem) {
    problem.h.input *= problem.batch * problem.channels;
    problem.h.ceil_mode = false;
    problem.h.pad_after = 0;
    problem.batch = problem.channels = 1;
    return problem;
}

// Row blocks of all planes of a batch, one behind the other; where channels lie closer than pixels, all groups of
// channels take turns within a block, whose cache lines they share.
struct RowBlocks {
    int64_t groups, blocks;
    bool groups_inside;
};

// Counts them from unit `first` on.
struct RowBlockCounter {
    RowBlockCounter(const RowBlocks& given, int64_t first) : all(given) {
        n = first / (all.groups * all.blocks);
        first %= all.groups * all.blocks;
        group = all.groups_inside ? first % all.groups : first / all.blocks;
        block = all.groups_inside ? first / all.groups : first % all.blocks;
    }
    void next() {
        int64_t& inner = all.groups_inside ? group : block;
        int64_t& outer = all.groups_inside ? block : group;
        if (++inner < (all.groups_inside ? all.groups : all.blocks)) return;
        inner = 0;
        if (++outer < (all.groups_inside ? all.blocks : all.groups)) return;
        outer = 0;
        ++n;
    }

    const RowBlocks all;
    int64_t n, group, block;
};

// The windows of an axis, by the taps that lie inside the image.
inline std::vector<WindowRun> window_runs(const Axis& axis) {
    std::vector<WindowRun> runs;
    const int64_t windows = axis.output();
    for (int64_t o = 0; o < windows; ++o) {
        const int64_t first = axis.position(o, 0);
        const int64_t room = axis.input - 1 - first;
        const int64_t begin = first >= 0 ? 0 : (-first + axis.dilation - 1) / axis.dilation;
        const int64_t end = room < 0 ? 0 : std::min(axis.kernel, room / axis.dilation + 1);
        if (begin < end)
            append_to(runs, o, begin, end);
        else
            append_to(runs, o, 0, 0);
    }
    return runs;
}

// Whether a window of the axis has no tap inside the image. Padding is less than a window's extent, so only windows
// whose taps jump over the image have none.
inline bool has_empty_window(const Axis& axis) {
    if (axis.dilation == 1) return false;
    const std::vector<WindowRun> runs = window_runs(axis);
    return std::any_of(runs.begin(), runs.end(), [](const WindowRun& run) { return run.is_empty(); });
}

inline bool windows_overlap(const PoolProblem& problem) {
    return problem.h.kernel > problem.h.stride || problem.w.kernel > problem.w.stride;
}

}  // namespace convx
