#include "cpu/conv2d/staged_planes.h"

#include <algorithm>

namespace convx {

int64_t PhasedAxis::reach() const {
    int64_t most = 0;
    for (const Class& one : classes)
        for (const Tap& tap : one.taps) most = std::max(most, tap.offset);
    return most;
}

int64_t PhasedAxis::all_taps() const {
    size_t count = 0;
    for (const Class& one : classes) count += one.taps.size();
    return static_cast<int64_t>(count);
}

PhasedAxis phases_of_forward(const Axis& axis) {
    const AxisTable table = forward_table(axis);
    PhasedAxis staged;
    staged.step = axis.stride;
    staged.classes.push_back({0, 1, table.positions, {}});
    std::vector<int64_t> residues;  // those that a tap falls on
    for (const AxisTable::Tap& tap : table.taps) {
        const int64_t distance = tap.kernel_index * axis.dilation;
        const auto found = std::find(residues.begin(), residues.end(), distance % axis.stride);
        const int64_t phase = found - residues.begin();
        if (found == residues.end()) residues.push_back(distance % axis.stride);
        staged.classes[0].taps.push_back({tap.kernel_index, phase, distance / axis.stride});
    }
    staged.phases = static_cast<int64_t>(residues.size());
    staged.cells = staged.reach() + table.positions;
    staged.source.assign(static_cast<size_t>(staged.phases * staged.cells), AxisTable::outside);
    for (size_t t = 0; t < table.taps.size(); ++t) {
        const PhasedAxis::Tap& tap = staged.classes[0].taps[t];
        for (int64_t i = 0; i < table.positions; ++i)
            staged.source[static_cast<size_t>(tap.phase * staged.cells + i + tap.offset)] =
                table.at(static_cast<int64_t>(t), i);
    }
    return staged;
}

PhasedAxis phases_of_adjoint(const Axis& axis) {
    PhasedAxis staged;
    const PhaseTables tables(axis, false);
    int64_t least = 0, outputs = axis.output();
    for (size_t residue = 0; residue < tables.size(); ++residue) {
        const AxisTable& table = tables[residue];
        PhasedAxis::Class one{static_cast<int64_t>(residue), axis.stride, table.positions, {}};
        for (size_t t = 0; t < table.taps.size(); ++t) {
            const AxisTable::Tap& tap = table.taps[t];
            if (tap.begin == tap.end) continue;  // finds nothing but the border
            one.taps.push_back({tap.kernel_index, 0, table.at(static_cast<int64_t>(t), tap.begin) - tap.begin});
            least = std::min(least, one.taps.back().offset);
        }
        staged.classes.push_back(std::move(one));
    }
    for (PhasedAxis::Class& one : staged.classes)
        for (PhasedAxis::Tap& tap : one.taps) tap.offset -= least;
    staged.cells = staged.reach() + staged.positions();
    for (int64_t cell = 0; cell < staged.cells; ++cell) {
        const int64_t source = cell + least;
        staged.source.push_back(source >= 0 && source < outputs ? source : AxisTable::outside);
    }
    return staged;
}

PlaneLayout::PlaneLayout(PhasedAxis lines, PhasedAxis columns)
    : h(std::move(lines)), w(std::move(columns)), reach(h.reach()) {
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
Stager<T>::Stager(const PlaneLayout& layout, const Strides& source_stride, T pad, const KernelSet<T>& kernels)
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
void Stager<T>::stage(T* planes, int64_t plane, const T* source, int64_t channels, int64_t first_line,
                      int64_t lines) const {
    const PhasedAxis& h = layout_.h;
    const int64_t all_lines = lines + layout_.reach;
    for (int64_t phase = 0; phase < h.phases; ++phase) {
        T* to = planes + phase * layout_.w.phases * plane;
        for (int64_t line = 0; line < all_lines;) {
            // Lines that are evenly spaced in the source go together.
            const int64_t row = h.at(phase, first_line + line);
            int64_t count = 1;
            while (line + count < all_lines) {
                const int64_t next = h.at(phase, first_line + line + count);
                if (row == AxisTable::outside ? next != row : next != row + count * h.step) break;
                ++count;
            }
            if (row == AxisTable::outside)
                stage_border(to + line * layout_.pitch, plane, channels, count);
            else
                stage_lines(to + line * layout_.pitch, plane, source + row * stride_.h, channels, count);
            line += count;
        }
    }
    // Read by the last vectors, and dropped: numbers, since denormal leftovers would be slow.
    T* rest = planes + (all_lines - 1) * layout_.pitch + layout_.width;
    for (int64_t i = 0; i < channels * layout_.planes(); ++i, rest += plane)
        std::fill_n(rest, layout_.pitch - layout_.w.positions() + kernels_.lanes, T(0));
}

template <class T>
ReadAhead<T> Stager<T>::read_ahead(const T* source, int64_t channels, int64_t first_line, int64_t lines,
                                   int64_t shares) const {
    if (stride_.w != 1) return {};
    int64_t first = INT64_MAX, last = -1, width = 0;
    for (int64_t phase = 0; phase < layout_.h.phases; ++phase)
        for (int64_t line = first_line; line < first_line + lines + layout_.reach; ++line) {
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
void Stager<T>::stage_border(T* to, int64_t plane, int64_t channels, int64_t lines) const {
    for (int64_t c = 0; c < channels; ++c, to += layout_.planes() * plane)
        for (int64_t phase = 0; phase < layout_.w.phases; ++phase)
            std::fill_n(to + phase * plane, (lines - 1) * layout_.pitch + layout_.width, pad_);
}

template <class T>
void Stager<T>::stage_lines(T* to, int64_t plane, const T* source, int64_t channels, int64_t lines) const {
    const int64_t step = layout_.w.step * stride_.w, line_step = layout_.h.step * stride_.h;
    const int64_t channel_step = layout_.planes() * plane;
    // All lines of a channel before the next channel: one stretch of memory at a time. Where channels are adjacent,
    // they are transposed instead.
    if (stride_.c == 1 && step != 1 && channels >= kernels_.lanes) {
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
void Stager<T>::split_lines(T* to, int64_t plane, const T* source, int64_t lines) const {
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
void Stager<T>::transpose_line(T* to, int64_t channel_step, const T* source, int64_t channels, int64_t phase) const {
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

template class Stager<float>;
template class Stager<double>;

}  // namespace convx
