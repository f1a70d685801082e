#include "cpu/conv2d/staging.h"

#include <algorithm>

namespace convx {

int64_t StagedAxis::most_positions() const {
    int64_t most = 0;
    for (const Class& of : classes) most = std::max(most, of.positions);
    return most;
}

int64_t StagedAxis::reach(int64_t count) const {
    int64_t furthest = 0;
    for (const Class& of : classes)
        for (const Tap& tap : of.taps) furthest = std::max(furthest, tap.offset);
    return std::min((count - 1) * advance + furthest + 1, places());
}

namespace {

void mark_used(StagedAxis& axis) {
    axis.used.assign(axis.source.size(), false);
    for (const StagedAxis::Class& of : axis.classes)
        for (const StagedAxis::Tap& tap : of.taps)
            for (int64_t i = 0; i < of.positions; ++i)
                axis.used[static_cast<size_t>(i * axis.advance + tap.offset)] = true;
}

StagedAxis staged_forward(const Axis& axis) {
    StagedAxis staged;
    staged.advance = axis.stride;
    StagedAxis::Class all{0, 1, axis.output(), {}};
    for (int64_t k = 0; k < axis.kernel; ++k) all.taps.push_back({k, k * axis.dilation});
    staged.classes.push_back(all);
    Axis cells = axis;
    cells.kernel = cells.stride = cells.dilation = 1;
    const AxisTable shown = forward_table(cells);
    staged.source.assign(shown.index.begin(), shown.index.end());
    staged.source.resize(static_cast<size_t>((all.positions - 1) * axis.stride + axis.extent()));
    mark_used(staged);
    return staged;
}

StagedAxis staged_adjoint(const Axis& axis) {
    StagedAxis staged;
    const int64_t outputs = axis.output();
    int64_t low = outputs, high = -1;  // outputs that some input would read
    for (int64_t residue = 0; residue < std::min(axis.stride, axis.input); ++residue) {
        StagedAxis::Class of{residue, axis.stride, (axis.input - residue - 1) / axis.stride + 1, {}};
        for (int64_t k = axis.kernel - 1; k >= 0; --k) {
            const int64_t distance = residue + axis.pad_before - k * axis.dilation;
            if (distance % axis.stride != 0) continue;
            of.taps.push_back({k, distance / axis.stride});
            low = std::min(low, distance / axis.stride);
            high = std::max(high, distance / axis.stride + of.positions - 1);
        }
        staged.classes.push_back(of);
    }
    for (StagedAxis::Class& of : staged.classes)
        for (StagedAxis::Tap& tap : of.taps) tap.offset -= low;
    for (int64_t output = low; output <= high; ++output)
        staged.source.push_back(output >= 0 && output < outputs ? output : AxisTable::outside);
    mark_used(staged);
    return staged;
}

}  // namespace

StagedAxis staged_axis(const Axis& axis, bool forward) { return forward ? staged_forward(axis) : staged_adjoint(axis); }

StagedAxis plain_axis(int64_t positions) {
    Axis axis;
    axis.input = positions;
    return staged_forward(axis);
}

template <class T>
Stage<T>::Stage(const StagedAxis& h, const StagedAxis& w, TensorView<const T> source, T pad,
                const KernelSet<T>& kernels)
    : h_(h), source_(source), pad_(pad), kernels_(kernels), row_(w), transposed_(channels_adjacent(source)),
      columns_(static_cast<size_t>(row_.pitch), AxisTable::outside) {
    for (int64_t x = 0; x < w.places(); ++x)
        if (w.used[static_cast<size_t>(x)])
            columns_[static_cast<size_t>(row_.at(x))] = w.source[static_cast<size_t>(x)];
    // The longest run of adjacent columns: all but the borders.
    for (int64_t x = 0; x < w.places();) {
        const int64_t first = w.source[static_cast<size_t>(x)];
        int64_t stop = x + 1;
        while (stop < w.places() && first != AxisTable::outside &&
               w.source[static_cast<size_t>(stop)] == first + stop - x)
            ++stop;
        if (first != AxisTable::outside && stop - x > inner_count_) {
            inner_ = x;
            inner_source_ = first;
            inner_count_ = stop - x;
        }
        x = stop;
    }
    for (int64_t x = 0; x < row_.residues * row_.residue_pitch; ++x)
        if (x < inner_ || x >= inner_ + inner_count_) edges_.push_back(row_.at(x));
}

template <class T>
bool Stage<T>::channels_adjacent(const TensorView<const T>& source) {
    return source.shape[1] > 1 && source.stride[1] == 1 && source.stride[3] != 1;
}

template <class T>
void Stage<T>::fill(T* staged, int64_t plane, int64_t n, int64_t first_channel, int64_t channels, int64_t first_row,
                    int64_t rows, const T* pads) const {
    if (transposed_) {
        for (int64_t y = 0; y < rows; ++y) {
            const size_t place = static_cast<size_t>(first_row + y);
            if (!h_.used[place]) continue;
            const int64_t row = h_.source[place];
            if (row != AxisTable::outside) {
                fill_row_transposed(staged + y * row_.pitch, plane, source_.at(n, first_channel, row, 0), channels,
                                    pads);
                continue;
            }
            for (int64_t c = 0; c < channels; ++c) std::fill_n(staged + c * plane + y * row_.pitch, row_.pitch, pad_);
        }
        return;
    }
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t y = 0; y < rows; ++y) {
            const size_t place = static_cast<size_t>(first_row + y);
            if (!h_.used[place]) continue;
            T* to = staged + c * plane + y * row_.pitch;
            const int64_t row = h_.source[place];
            if (row == AxisTable::outside)
                std::fill_n(to, row_.pitch, pad_);
            else
                fill_row(to, source_.at(n, first_channel + c, row, 0));
        }
}

template <class T>
void Stage<T>::fill_row(T* staged, const T* source) const {
    const int64_t step = source_.stride[3];
    const auto place_edge = [&](int64_t x) {
        const int64_t column = columns_[static_cast<size_t>(x)];
        staged[x] = column == AxisTable::outside ? pad_ : source[column * step];
    };
    if (step != 1 || row_.residues > 2) {
        for (int64_t x = 0; x < row_.pitch; ++x) place_edge(x);
        return;
    }
    const T* inner = source + inner_source_;
    if (row_.residues == 1)
        std::copy_n(inner, inner_count_, staged + inner_);
    else
        kernels_.split_row(staged + row_.at(inner_), staged + row_.at(inner_ + 1), inner, inner_count_);
    for (const int64_t x : edges_) place_edge(x);
}

template <class T>
void Stage<T>::fill_row_transposed(T* staged, int64_t plane, const T* source, int64_t channels, const T* pads) const {
    constexpr int64_t at_once = 16;
    const T* pixels[at_once];
    for (int64_t x = 0; x < row_.pitch; x += at_once) {
        const int64_t count = std::min(at_once, row_.pitch - x);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t column = columns_[static_cast<size_t>(x + i)];
            pixels[i] = column == AxisTable::outside ? pads : source + column * source_.stride[3];
        }
        kernels_.pack_transposed(staged + x, plane, pixels, static_cast<int>(count), channels);
    }
}

template class Stage<float>;
template class Stage<double>;

}  // namespace convx
