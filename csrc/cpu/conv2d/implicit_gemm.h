// One phase of a window sum as a dense sum, which implicit-gemm and Winograd's methods compute, and its packed weights.
#pragma once

#include "cpu/conv2d/conv2d.h"
#include "cpu/conv2d/window_sum.h"
#include "cpu/runtime/run_tasks.h"

namespace convx {

// One phase of a window sum (all of it without a stride): positions are adjacent, and all have the same taps.
template <class T>
struct ImplicitGemm {
    int64_t batch, groups;
    int64_t channels;  // reduction channels of a group
    int64_t rows;      // output channels of a group
    const AxisTable* h;
    const AxisTable* w;

    const T* source;
    Strides source_stride;
    T pad;  // what taps outside the source read

    const T* weight;
    int64_t weight_group, weight_row, weight_channel;  // strides
    int64_t weight_h, weight_w;                        // strides of the kernel indices
    const T* packed_weight;                            // as the method has packed it, or null

    T* dest;
    Strides dest_stride;
    const T* bias;  // groups * rows values with stride bias_stride, or null
    int64_t bias_stride;
    bool relu;

    int64_t pixels() const { return batch * h->positions * w->positions; }
    int64_t taps() const { return static_cast<int64_t>(h->taps.size() * w->taps.size()); }
    int64_t flops() const { return 2 * groups * rows * channels * taps() * pixels(); }
};

template <class T>
ImplicitGemm<T> phase_of(const WindowSum<T>& sum, const PhaseTables& h, const PhaseTables& w, size_t i, size_t j) {
    const Strides to = strides_of(sum.dest.stride);
    const auto step = [&](const Axis& axis) { return sum.forward() ? 1 : axis.stride; };
    ImplicitGemm<T> gemm{};
    gemm.batch = sum.batch;
    gemm.groups = sum.groups;
    gemm.channels = sum.channels;
    gemm.rows = sum.rows;
    gemm.h = &h[i];
    gemm.w = &w[j];
    gemm.source = sum.source.data;
    gemm.source_stride = strides_of(sum.source.stride);
    gemm.pad = sum.pad();
    gemm.weight = sum.weight;
    gemm.weight_group = sum.weight_group;
    gemm.weight_row = sum.weight_row;
    gemm.weight_channel = sum.weight_channel;
    gemm.weight_h = sum.weight_h;
    gemm.weight_w = sum.weight_w;
    gemm.packed_weight = sum.packed ? sum.packed->weights() : nullptr;
    gemm.dest = sum.dest.at(0, 0, static_cast<int64_t>(i), static_cast<int64_t>(j));
    gemm.dest_stride = {to.n, to.c, step(sum.problem->h) * to.h, step(sum.problem->w) * to.w};
    gemm.bias = sum.bias;
    gemm.bias_stride = sum.bias_stride;
    gemm.relu = sum.relu;
    return gemm;
}

// Some rows of one group and some reduction channels of them.
struct WeightPart {
    int64_t group, first_row, first_channel, channels;
};

// A panel of `width` rows (those that there are not: zeros) in all taps, to dest[channel][tap][width].
template <class T>
void pack_weight_panel(const ImplicitGemm<T>& gemm, const WeightPart& part, int64_t width, const KernelSet<T>& kernels,
                       T* dest) {
    const int64_t channels = part.channels, taps = gemm.taps();
    const int rows = static_cast<int>(std::min(width, gemm.rows - part.first_row));
    const T* source = gemm.weight + part.group * gemm.weight_group + part.first_row * gemm.weight_row +
                      part.first_channel * gemm.weight_channel;
    const auto columns = static_cast<int64_t>(gemm.w->taps.size());
    const auto tap_offset = [&](int64_t tap) {
        return gemm.h->taps[static_cast<size_t>(tap / columns)].kernel_index * gemm.weight_h +
               gemm.w->taps[static_cast<size_t>(tap % columns)].kernel_index * gemm.weight_w;
    };
    bool dense_taps = true;
    for (int64_t tap = 0; tap < taps; ++tap) dense_taps &= tap_offset(tap) == tap;
    const T* row[64];
    // Lanes that no row fills are multiplied too (their sums are dropped): denormal leftovers would be slow.
    if (rows < width) std::fill(dest, dest + channels * taps * width, T(0));
    if (dense_taps && gemm.weight_channel == taps) {
        for (int i = 0; i < rows; ++i) row[i] = source + i * gemm.weight_row;
        kernels.pack_transposed(dest, width, row, rows, channels * taps);
    } else if (dense_taps && taps > 1) {
        for (int64_t c = 0; c < channels; ++c) {
            for (int i = 0; i < rows; ++i) row[i] = source + i * gemm.weight_row + c * gemm.weight_channel;
            // A few lines on a page of their own, which no hardware prefetcher foresees.
            for (int i = 0; i < rows; i += 2) __builtin_prefetch(row[i] + 8 * gemm.weight_channel);
            kernels.pack_transposed(dest + c * taps * width, width, row, rows, taps);
        }
    } else {
        const LaneRun run{0, rows, 0};
        for (int64_t tap = 0; tap < taps; ++tap)
            kernels.pack_lanes(dest + tap * width, taps * width, source + tap_offset(tap), gemm.weight_channel,
                               channels, &run, 1, rows, gemm.weight_row, T(0));
    }
}

// What the taps read of the pixels of one panel: [tap][pixel].
template <class T>
struct PixelPanel {
    const ImplicitGemm<T>& gemm;
    int64_t width;
    const T* pad;  // a row of pad values
    LaneRun* runs;
    int32_t* run_count;  // [tap]

    // Pixels [first, first + count) of the batch.
    void find_runs(int64_t first, int64_t count) const {
        const int64_t taps = gemm.taps(), columns = static_cast<int64_t>(gemm.w->taps.size());
        std::fill(run_count, run_count + taps, 0);
        for_each_segment(gemm.h->positions, gemm.w->positions, first, count, [&](const PixelSegment& segment) {
            for (int64_t tap = 0; tap < taps; ++tap)
                run_count[tap] = append_runs(*gemm.h, *gemm.w, tap / columns, tap % columns, gemm.source_stride,
                                             segment, runs + tap * width, run_count[tap]);
        });
    }

    // Where the pixels that a tap reads stand, as seen from `source`.
    void find_rows(int64_t tap, const T* source, const T** rows) const {
        std::fill(rows, rows + width, pad);
        const int64_t step = gemm.w->step * gemm.source_stride.w;
        for (const LaneRun* run = runs + tap * width; run < runs + tap * width + run_count[tap]; ++run)
            for (int i = 0; i < run->count; ++i) rows[run->lane + i] = source + run->offset + i * step;
    }

    // Channels [first, first + count) of a group, to dest[channel][tap][pixel].
    void pack(int64_t group, int64_t first, int64_t count, const KernelSet<T>& kernels, T* dest) const {
        const int64_t taps = gemm.taps(), step = gemm.w->step * gemm.source_stride.w;
        const T* source = gemm.source + (group * gemm.channels + first) * gemm.source_stride.c;
        for (int64_t tap = 0; tap < taps; ++tap, dest += width) {
            if (gemm.source_stride.c != 1 || step == 1) {
                kernels.pack_lanes(dest, taps * width, source, gemm.source_stride.c, count, runs + tap * width,
                                   run_count[tap], static_cast<int>(width), step, gemm.pad);
                continue;
            }
            const T* row[64];
            find_rows(tap, source, row);
            kernels.pack_transposed(dest, taps * width, row, static_cast<int>(width), count);
        }
    }
};

// Where the pixels of a panel go: at dest + offset, evenly spaced, if `direct`.
struct PanelDest {
    int64_t offset;
    bool direct;
};

// Pixels that are evenly spaced in dest, in the direction in which a tile can store them, need no scatter.
template <class T>
PanelDest find_dest(const ImplicitGemm<T>& gemm, int64_t first, int64_t count, bool pixels_in_rows) {
    const Strides& to = gemm.dest_stride;
    const int64_t rows = gemm.h->positions, columns = gemm.w->positions;
    const auto [n, i, j] = place_of(rows, columns, first);
    const bool even = j + count <= columns || (i * columns + j + count <= rows * columns && to.h == columns * to.w);
    const bool storable = (pixels_in_rows ? to.c : to.w) == 1;
    return {n * to.n + i * to.h + j * to.w, even && storable};
}

// visit(lane, count, offset in dest) for the evenly spaced parts of a panel: one an image where the rows of dest follow
// each other, else one a row.
template <class T, class Visit>
void for_each_run_of_dest(const ImplicitGemm<T>& gemm, int64_t first, int64_t count, const Visit& visit) {
    const Strides& to = gemm.dest_stride;
    const bool flat = to.h == gemm.w->positions * to.w;
    const int64_t rows = flat ? 1 : gemm.h->positions;
    const int64_t columns = flat ? gemm.h->positions * gemm.w->positions : gemm.w->positions;
    for_each_segment(rows, columns, first, count,
                     [&](const PixelSegment& s) { visit(s.lane, s.count, s.n * to.n + s.i * to.h + s.j * to.w); });
}

// The epilogue (micro_kernel.inl.h) for pixels that a tile cannot store itself.
template <class T>
void scatter(const T* tile, int64_t tile_step, T* c, int64_t step, int64_t count, bool accumulate, const T* bias,
             bool relu) {
    if (tile_step == 1 && step == 1) {  // the common case, for the compiler's vectors
        if (accumulate)
            for (int64_t i = 0; i < count; ++i) c[i] = c[i] + tile[i];
        else
            for (int64_t i = 0; i < count; ++i) c[i] = tile[i];
    } else {
        for (int64_t i = 0; i < count; ++i)
            c[i * step] = accumulate ? c[i * step] + tile[i * tile_step] : tile[i * tile_step];
    }
    if (bias)
        for (int64_t i = 0; i < count; ++i) c[i * step] += *bias;
    if (relu)
        for (int64_t i = 0; i < count; ++i) c[i * step] = c[i * step] <= T(0) ? T(0) : c[i * step];
}

}  // namespace convx
