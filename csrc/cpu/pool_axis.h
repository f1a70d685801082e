// One axis of a pooling problem, seen from its outputs and from its inputs.
#pragma once

#include <algorithm>
#include <vector>

#include "common/problem.h"

namespace convx {

// Outputs begin <= o < end, all of which have exactly the taps tap_begin <= k < tap_end inside the image.
struct WindowRun {
    int64_t begin, end;
    int64_t tap_begin, tap_end;

    bool is_empty() const { return tap_begin == tap_end; }
};

inline std::vector<WindowRun> window_runs(const Axis& axis) {
    std::vector<WindowRun> runs;
    const int64_t outputs = axis.output();
    for (int64_t o = 0; o < outputs; ++o) {
        const int64_t first = axis.position(o, 0);
        const int64_t room = axis.input - 1 - first;
        int64_t begin = first >= 0 ? 0 : (-first + axis.dilation - 1) / axis.dilation;
        int64_t end = room < 0 ? 0 : std::min(axis.kernel, room / axis.dilation + 1);
        if (begin >= end) begin = end = 0;
        if (!runs.empty() && runs.back().tap_begin == begin && runs.back().tap_end == end)
            runs.back().end = o + 1;
        else
            runs.push_back({o, o + 1, begin, end});
    }
    return runs;
}

// The run that output `o` belongs to.
inline const WindowRun& run_of(const std::vector<WindowRun>& runs, int64_t o) {
    return *std::find_if(runs.begin(), runs.end(), [&](const WindowRun& run) { return o < run.end; });
}

}  // namespace convx
