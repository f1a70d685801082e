// What the methods for groups of few channels have in common. From 64 channels a group on the implicit GEMM fills its
// tiles; below it packs every pixel 9 times for few rows: 0.5 times as fast with 16 and 32 channels.
#pragma once

#include <string>

#include "cpu/conv2d/method_row.h"
#include "cpu/conv2d/reference.h"
#include "cpu/conv2d/staged_planes.h"

namespace convx {

// Windows that fit L2, and no borders that their adjoint would have to fold.
Verdict supports_groups(const ConvProblem& problem);
// Fewer than 64 channels a group, or one channel in all.
bool has_few_channels(const ConvProblem& problem);
inline bool is_depthwise(const ConvProblem& problem) { return problem.group_in() == 1 && problem.group_out() == 1; }
// Whether vectors run over the `rows` channels of the result (grouped_channels.cpp) instead of over pixels.
bool fills_vectors(ConvPass pass, int64_t rows, int lanes);

inline int lanes_of(const Kernels& kernels, DType dtype) {
    return dtype == DType::float32 ? kernels.f32.lanes : kernels.f64.lanes;
}

// About 20 us of work.
constexpr int64_t grouped_task_flops = 1'000'000;
constexpr int64_t grouped_wanted_tasks = 48;

// Planes that the kernels of grouped_channels.cpp read: a stride takes no rows apart, since single pixels are
// broadcast.
struct GroupedPlanes {
    GroupedPlanes(const ConvProblem& problem, bool forward);

    PlaneLayout layout;
    int64_t advance_h, advance_w;  // lines and columns from one position to the next
    int64_t taps;                  // of all phases
    int64_t kernel_w, kernel_taps;

    int64_t band(int64_t lines) const { return (lines - 1) * advance_h + 1; }  // staged for so many positions
    // Elements of a plane for a band, and those that the last vectors may touch.
    int64_t plane_size(int64_t lines, int64_t lanes) const { return layout.plane_size(band(lines), lanes); }
};

// Forward and grad_input by drivers that multiply the border of zeros.
template <template <class> class Driver>
struct GroupedMethod : DriverMethod<Driver> {
    static constexpr Traits traits{};

    static Verdict supports(const ConvProblem& problem, ConvPass) { return supports_groups(problem); }

    template <class T>
    static bool run(const WindowSum<T>& sum, const Driver<T>& driver, const KernelSet<T>&) {
        if (sum.border.skips && !all_finite(sum.weight_view)) return false;
        driver.run();
        return true;
    }
};

// For explanations.
std::string lines_of_a_group(int64_t lines);
std::string sums_of(int64_t channels, const PlaneLayout& layout);
std::string phases_note(size_t phases);

}  // namespace convx
