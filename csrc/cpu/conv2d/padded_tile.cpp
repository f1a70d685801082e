#include "cpu/conv2d/padded_tile.h"

#include <algorithm>

namespace convx {

PlaneLayout::PlaneLayout(PhasedAxis rows, PhasedAxis columns)
    : h(std::move(rows)), w(std::move(columns)), reach(h.reach()) {
    // Cells outside the source at both ends of every phase, which two lines can share.
    int64_t shared = w.cells;
    for (int64_t phase = 0; phase < w.phases; ++phase) {
        int64_t before = 0, behind = 0;
        while (before < w.cells && w.at(phase, before) == AxisTable::outside) ++before;
        while (behind < w.cells && w.at(phase, w.cells - 1 - behind) == AxisTable::outside) ++behind;
        shared = std::min({shared, before, behind});
    }
    pitch = std::max(w.cells - shared, w.positions());
    width = std::max(w.cells, pitch);
}

std::vector<int32_t> PlaneLayout::offsets(size_t class_h, size_t class_w, int64_t channels, int64_t plane) const {
    std::vector<int32_t> all;
    for (int64_t c = 0; c < channels; ++c)
        for (const PhasedAxis::Tap& r : h.classes[class_h].taps)
            for (const PhasedAxis::Tap& s : w.classes[class_w].taps)
                all.push_back(static_cast<int32_t>(((c * h.phases + r.phase) * w.phases + s.phase) * plane +
                                                   r.offset * pitch + s.offset));
    return all;
}

template <class T>
PaddedTile<T>::PaddedTile(const PlaneLayout& layout, const Strides& source_stride, T pad, const KernelSet<T>& kernels)
    : layout_(layout), stride_(source_stride), pad_(pad), kernels_(kernels) {
    const PhasedAxis& w = layout.w;
    for (int64_t phase = 0; phase < w.phases; ++phase) {
        std::vector<LaneRun> runs;
        for (int64_t cell = 0; cell < w.cells; ++cell) {
            const int64_t source = w.at(phase, cell);
            if (source == AxisTable::outside) continue;
            const bool goes_on = !runs.empty() && runs.back().lane + runs.back().count == cell &&
                                 source == w.at(phase, cell - 1) + w.step;
            if (goes_on)
                ++runs.back().count;
            else
                runs.push_back({static_cast<int32_t>(cell), 1, source * stride_.w});
        }
        runs_.push_back(std::move(runs));
    }
    if (w.phases != 2 || w.step != 2 || stride_.w != 1 || runs_[0].size() != 1 || runs_[1].size() != 1) return;
    const int64_t first = runs_[0][0].offset < runs_[1][0].offset ? 0 : 1;
    const LaneRun& even = runs_[static_cast<size_t>(first)][0];
    const LaneRun& odd = runs_[static_cast<size_t>(1 - first)][0];
    const bool one_run = odd.offset == even.offset + 1 && (even.count == odd.count || even.count == odd.count + 1);
    if (one_run) even_phase_ = first;
}

template <class T>
void PaddedTile<T>::copy(T* planes, int64_t plane, const T* source, int64_t channels, int64_t first,
                         int64_t count) const {
    const PhasedAxis& h = layout_.h;
    const int64_t first_line = first * h.advance, all_lines = layout_.rows_of(count);
    for (int64_t phase = 0; phase < h.phases; ++phase) {
        T* to = planes + phase * layout_.w.phases * plane;
        for (int64_t line = 0; line < all_lines;) {
            // Lines that are evenly spaced in the source go together.
            const int64_t row = h.at(phase, first_line + line);
            int64_t run = 1;
            while (line + run < all_lines) {
                const int64_t next = h.at(phase, first_line + line + run);
                if (row == AxisTable::outside ? next != row : next != row + run * h.step) break;
                ++run;
            }
            if (row == AxisTable::outside)
                fill_border(to + line * layout_.pitch, plane, channels, run);
            else
                copy_rows(to + line * layout_.pitch, plane, source + row * stride_.h, channels, run);
            line += run;
        }
    }
    // Read by the last vectors, and dropped: numbers, since denormal leftovers would be slow.
    T* rest = planes + (all_lines - 1) * layout_.pitch + layout_.width;
    for (int64_t i = 0; i < channels * layout_.planes(); ++i, rest += plane)
        std::fill_n(rest, layout_.pitch - layout_.w.positions() + kernels_.lanes, T(0));
}

template <class T>
Prefetch<T> PaddedTile<T>::prefetch(const T* source, int64_t channels, int64_t first_position, int64_t count,
                                    int64_t shares) const {
    if (stride_.w != 1) return {};
    const int64_t first_line = first_position * layout_.h.advance;
    int64_t first = INT64_MAX, last = -1, width = 0;
    for (int64_t phase = 0; phase < layout_.h.phases; ++phase)
        for (int64_t line = first_line; line < first_line + layout_.rows_of(count); ++line) {
            const int64_t row = layout_.h.at(phase, line);
            if (row == AxisTable::outside) continue;
            first = std::min(first, row);
            last = std::max(last, row);
        }
    if (last < 0) return {};
    width = *std::max_element(layout_.w.source.begin(), layout_.w.source.end()) + 1;
    return {source + first * stride_.h, channels, stride_.c, last - first + 1, stride_.h, width, shares};
}

template <class T>
void PaddedTile<T>::fill_border(T* to, int64_t plane, int64_t channels, int64_t lines) const {
    for (int64_t c = 0; c < channels; ++c, to += layout_.planes() * plane)
        for (int64_t phase = 0; phase < layout_.w.phases; ++phase)
            std::fill_n(to + phase * plane, (lines - 1) * layout_.pitch + layout_.width, pad_);
}

template <class T>
void PaddedTile<T>::copy_rows(T* to, int64_t plane, const T* source, int64_t channels, int64_t lines) const {
    const int64_t step = layout_.w.step * stride_.w, line_step = layout_.h.step * stride_.h;
    const int64_t channel_step = layout_.planes() * plane;
    // All lines of a channel before the next channel: one stretch of memory at a time. Where channels are adjacent,
    // they are transposed instead.
    if (stride_.c == 1 && step != 1 && 2 * channels >= kernels_.lanes) {
        for (int64_t line = 0; line < lines; ++line, to += layout_.pitch, source += line_step)
            for (int64_t phase = 0; phase < layout_.w.phases; ++phase)
                transpose_line(to + phase * plane, channel_step, source, channels, phase);
        return;
    }
    for (int64_t c = 0; c < channels && even_phase_ >= 0; ++c, to += channel_step, source += stride_.c)
        split_lines(to, plane, source, lines);
    for (int64_t c = 0; c < channels && even_phase_ < 0; ++c, to += channel_step, source += stride_.c)
        for (int64_t phase = 0; phase < layout_.w.phases; ++phase) {
            const std::vector<LaneRun>& runs = runs_[static_cast<size_t>(phase)];
            kernels_.pack_lanes(to + phase * plane, layout_.pitch, source, line_step, lines, runs.data(),
                                static_cast<int>(runs.size()), static_cast<int>(layout_.width), step, pad_);
        }
}

// Every line is read once for both phases.
template <class T>
void PaddedTile<T>::split_lines(T* to, int64_t plane, const T* source, int64_t lines) const {
    const LaneRun& even = runs_[static_cast<size_t>(even_phase_)][0];
    const LaneRun& odd = runs_[static_cast<size_t>(1 - even_phase_)][0];
    T* const even_line = to + even_phase_ * plane;
    T* const odd_line = to + (1 - even_phase_) * plane;
    const auto pad_around = [&](T* line, const LaneRun& run) {
        for (int64_t cell = 0; cell < run.lane; ++cell) line[cell] = pad_;
        for (int64_t cell = run.lane + run.count; cell < layout_.width; ++cell) line[cell] = pad_;
    };
    const int64_t line_step = layout_.h.step * stride_.h;
    for (int64_t line = 0; line < lines; ++line, source += line_step) {
        const int64_t at = line * layout_.pitch;
        kernels_.split_row(even_line + at + even.lane, odd_line + at + odd.lane, source + even.offset,
                           even.count + odd.count);
        pad_around(even_line + at, even);
        pad_around(odd_line + at, odd);
    }
}

template <class T>
void PaddedTile<T>::transpose_line(T* to, int64_t channel_step, const T* source, int64_t channels,
                                   int64_t phase) const {
    const int64_t step = layout_.w.step * stride_.w;
    int64_t filled = 0;
    const auto pad_until = [&](int64_t cell) {
        for (int64_t c = 0; c < channels && filled < cell; ++c)
            std::fill(to + c * channel_step + filled, to + c * channel_step + cell, pad_);
    };
    const T* pixel[64];
    for (const LaneRun& run : runs_[static_cast<size_t>(phase)]) {
        pad_until(run.lane);
        for (int64_t i = 0; i < run.count; i += 64) {
            const int64_t count = std::min<int64_t>(64, run.count - i);
            for (int64_t j = 0; j < count; ++j) pixel[j] = source + run.offset + (i + j) * step;
            kernels_.pack_transposed(to + run.lane + i, channel_step, pixel, static_cast<int>(count), channels);
        }
        filled = run.lane + run.count;
    }
    pad_until(layout_.width);
}

template class PaddedTile<float>;
template class PaddedTile<double>;

}  // namespace convx
