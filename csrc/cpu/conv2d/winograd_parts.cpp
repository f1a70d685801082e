#include "cpu/conv2d/winograd_parts.h"

#include <algorithm>

#include "common/rounding.h"

namespace convx {

Verdict supports_winograd(const ConvProblem& problem, ConvPass) {
    const auto fits = [](const Axis& axis) { return axis.kernel == 3 && axis.stride == 1 && axis.dilation == 1; };
    if (!fits(problem.h) || !fits(problem.w)) return {"needs a window of 3 x 3 without stride and dilation"};
    return {};
}

bool has_few_tiles(const ConvProblem& problem, ConvPass pass) {
    const bool forward = pass == ConvPass::forward;
    const int64_t height = forward ? problem.out_h() : problem.h.input;
    const int64_t width = forward ? problem.out_w() : problem.w.input;
    return problem.groups == 1 && ceil_div(height, winograd_outputs) * ceil_div(width, winograd_outputs) <= 16;
}

std::vector<int64_t> winograd_read_order(const AxisTable& table, bool mirrored, int64_t count) {
    std::vector<int64_t> order(static_cast<size_t>(count), AxisTable::outside);
    for (int64_t p = 0; p < std::min(table.positions + 2, count); ++p) {
        const int64_t position = std::min(p, table.positions - 1);
        order[static_cast<size_t>(p)] = table.at(mirrored ? 2 - (p - position) : p - position, position);
    }
    return order;
}

template <class T>
void transform_weight_panel(const ImplicitGemm<T>& gemm, bool mirrored, const KernelSet<T>& kernels, int64_t width,
                            const WeightPart& part, T* taps, T* dest, int64_t dest_frequency) {
    const int64_t channels = part.channels;
    const int rows = static_cast<int>(std::min(width, gemm.rows - part.first_row));
    const T* source = gemm.weight + part.group * gemm.weight_group + part.first_row * gemm.weight_row +
                      part.first_channel * gemm.weight_channel;
    if (rows < width) std::fill(taps, taps + channels * 9 * width, T(0));
    const bool dense_taps = gemm.weight_h == 3 && gemm.weight_w == 1;
    const T* row[64];
    if (dense_taps && gemm.weight_channel == 9) {
        for (int i = 0; i < rows; ++i) row[i] = source + i * gemm.weight_row;
        kernels.pack_transposed(taps, width, row, rows, channels * 9);
    } else if (dense_taps) {
        for (int64_t c = 0; c < channels; ++c) {
            for (int i = 0; i < rows; ++i) row[i] = source + i * gemm.weight_row + c * gemm.weight_channel;
            // A few lines on a page of their own, which no hardware prefetcher foresees.
            for (int i = 0; i < rows; i += 2) __builtin_prefetch(row[i] + 8 * gemm.weight_channel);
            kernels.pack_transposed(taps + c * 9 * width, width, row, rows, 9);
        }
    } else {
        const LaneRun run{0, rows, 0};
        for (int64_t tap = 0; tap < 9; ++tap)
            kernels.pack_lanes(taps + tap * width, 9 * width,
                               source + tap / 3 * gemm.weight_h + tap % 3 * gemm.weight_w, gemm.weight_channel,
                               channels, &run, 1, rows, gemm.weight_row, T(0));
    }
    WinogradWeights<T> job{taps, 9 * width, {}, channels, dest, dest_frequency};
    for (int64_t tap = 0; tap < 9; ++tap) job.tap[tap] = (mirrored ? 8 - tap : tap) * width;
    if (width == kernels.mr)
        kernels.winograd_weights(job);
    else
        kernels.winograd_wide_weights(job);
}

template void transform_weight_panel(const ImplicitGemm<float>&, bool, const KernelSet<float>&, int64_t,
                                     const WeightPart&, float*, float*, int64_t);
template void transform_weight_panel(const ImplicitGemm<double>&, bool, const KernelSet<double>&, int64_t,
                                     const WeightPart&, double*, double*, int64_t);

}  // namespace convx
