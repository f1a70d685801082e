// An input axis of max-pooling as its gradient sees it: cells by their phase modulo the stride, because those of one
// phase have the same taps, and a tap's windows over neighbours of a phase are neighbours.
#pragma once

#include <algorithm>
#include <vector>

#include "common/rounding.h"
#include "cpu/max_pool2d/windows.h"

namespace convx {

// One phase of an input axis modulo the stride: cells first + j * stride for j < count. Taps are numbered through all
// phases of an axis, in ascending order of the windows within each.
struct Phase {
    int64_t first, count;
    int64_t tap_begin, tap_end;
    std::vector<WindowRun> runs;  // cells j by the taps whose windows exist
};

struct Phases {
    explicit Phases(const Axis& axis);

    // True if every window that a tap names exists.
    bool are_inside() const {
        return std::all_of(list.begin(), list.end(), [](const Phase& phase) {
            return phase.runs.size() == 1 && phase.runs[0].count() == phase.tap_end - phase.tap_begin;
        });
    }

    std::vector<Phase> list;
    std::vector<int64_t> taps;     // the kernel row or column
    std::vector<int64_t> windows;  // of cell j, less j
    int64_t least = 0, most = 0;   // of the windows
};

inline Phases::Phases(const Axis& axis) {
    const auto count_of = [](const std::vector<int64_t>& v) { return static_cast<int64_t>(v.size()); };
    const int64_t outputs = axis.output();
    for (int64_t first = 0; first < axis.phases(); ++first) {
        Phase phase{first, axis.phase_cells(first), count_of(taps), 0, {}};
        for (int64_t tap = axis.kernel - 1; tap >= 0; --tap) {
            if (!axis.reaches(first, tap)) continue;
            taps.push_back(tap);
            windows.push_back(axis.first_window(first, tap));
        }
        phase.tap_end = count_of(taps);
        for (int64_t j = 0; j < phase.count; ++j) {
            int64_t begin = phase.tap_begin, end = phase.tap_end;
            while (begin < end && j + windows[static_cast<size_t>(begin)] < 0) ++begin;
            while (begin < end && j + windows[static_cast<size_t>(end - 1)] >= outputs) --end;
            append_to(phase.runs, j, begin, end);
            // Between the borders every window exists: planes may be stacked to some ten thousand rows.
            if (begin == end || begin > phase.tap_begin || end < phase.tap_end) continue;
            const int64_t inside = std::min(phase.count, outputs - windows[static_cast<size_t>(end - 1)]);
            if (inside <= j + 1) continue;
            phase.runs.back().end = inside;
            j = inside - 1;
        }
        list.push_back(phase);
    }
    if (windows.empty()) return;
    least = *std::min_element(windows.begin(), windows.end());
    most = *std::max_element(windows.begin(), windows.end());
}

}  // namespace convx
