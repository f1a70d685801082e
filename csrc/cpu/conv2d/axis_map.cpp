#include "cpu/conv2d/axis_map.h"

#include <algorithm>

namespace convx {

namespace {

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
int64_t ceil_div_signed(int64_t a, int64_t b) { return -floor_div(-a, b); }

int64_t bordered(int64_t position, int64_t size, PaddingMode mode) {
    if (position >= 0 && position < size) return position;
    switch (mode) {
        case PaddingMode::zeros:
        case PaddingMode::constant:
            return AxisTable::outside;
        case PaddingMode::replicate:
            return position < 0 ? 0 : size - 1;
        case PaddingMode::circular:
            return position - floor_div(position, size) * size;
        case PaddingMode::reflect:
            return position < 0 ? -position : 2 * (size - 1) - position;
    }
    return AxisTable::outside;
}

}  // namespace

bool AxisTable::reads_outside() const { return std::find(index.begin(), index.end(), outside) != index.end(); }

AxisTable forward_table(const Axis& axis) {
    AxisTable table;
    table.positions = axis.output();
    table.step = axis.stride;
    table.index.reserve(static_cast<size_t>(axis.kernel * table.positions));
    for (int64_t k = 0; k < axis.kernel; ++k) {
        const int64_t first = axis.position(0, k);
        const int64_t begin = std::clamp(ceil_div_signed(-first, axis.stride), int64_t{0}, table.positions);
        const int64_t end = std::clamp(ceil_div_signed(axis.input - first, axis.stride), begin, table.positions);
        table.taps.push_back({k, begin, end});
        for (int64_t o = 0; o < table.positions; ++o)
            table.index.push_back(bordered(axis.position(o, k), axis.input, axis.mode));
    }
    return table;
}

AxisTable adjoint_table(const Axis& axis, int64_t residue) {
    AxisTable table;
    table.positions = axis.phase_cells(residue);
    const int64_t outputs = axis.output();
    for (int64_t k = 0; k < axis.kernel; ++k) {
        if (!axis.reaches(residue, k)) continue;
        const int64_t first = axis.first_window(residue, k);
        const int64_t begin = std::clamp(-first, int64_t{0}, table.positions);
        const int64_t end = std::clamp(outputs - first, begin, table.positions);
        table.taps.push_back({k, begin, end});
        for (int64_t i = 0; i < table.positions; ++i)
            table.index.push_back(i >= begin && i < end ? first + i : AxisTable::outside);
    }
    return table;
}

PhaseTables::PhaseTables(const Axis& axis, bool forward)
    : first_(forward ? forward_table(axis) : adjoint_table(axis, 0)) {
    for (int64_t residue = 1; !forward && residue < axis.phases(); ++residue)
        others_.push_back(adjoint_table(axis, residue));
}

size_t PhaseTables::densest() const {
    size_t best = 0;
    for (size_t i = 1; i < size(); ++i)
        if ((*this)[i].taps.size() > (*this)[best].taps.size()) best = i;
    return best;
}

bool PhaseTables::has_empty() const {
    for (size_t i = 0; i < size(); ++i)
        if ((*this)[i].taps.empty()) return true;
    return false;
}

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
    PhasedAxis phased;
    phased.step = axis.stride;
    phased.classes.push_back({0, 1, table.positions, {}});
    std::vector<int64_t> residues;  // those that a tap falls on
    for (const AxisTable::Tap& tap : table.taps) {
        const int64_t distance = tap.kernel_index * axis.dilation;
        const auto found = std::find(residues.begin(), residues.end(), distance % axis.stride);
        const int64_t phase = found - residues.begin();
        if (found == residues.end()) residues.push_back(distance % axis.stride);
        phased.classes[0].taps.push_back({tap.kernel_index, phase, distance / axis.stride});
    }
    phased.phases = static_cast<int64_t>(residues.size());
    phased.cells = phased.reach() + table.positions;
    phased.source.assign(static_cast<size_t>(phased.phases * phased.cells), AxisTable::outside);
    for (size_t t = 0; t < table.taps.size(); ++t) {
        const PhasedAxis::Tap& tap = phased.classes[0].taps[t];
        for (int64_t i = 0; i < table.positions; ++i)
            phased.source[static_cast<size_t>(tap.phase * phased.cells + i + tap.offset)] =
                table.at(static_cast<int64_t>(t), i);
    }
    return phased;
}

PhasedAxis pixels_of_forward(const Axis& axis) {
    if (axis.kernel < axis.stride) return phases_of_forward(axis);
    Axis cells = axis;
    cells.stride = 1;
    PhasedAxis pixels = phases_of_forward(cells);
    pixels.advance = axis.stride;
    pixels.classes[0].positions = axis.output();
    return pixels;
}

PhasedAxis phases_of_adjoint(const Axis& axis) {
    PhasedAxis phased;
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
        phased.classes.push_back(std::move(one));
    }
    for (PhasedAxis::Class& one : phased.classes)
        for (PhasedAxis::Tap& tap : one.taps) tap.offset -= least;
    phased.cells = phased.reach() + phased.positions();
    for (int64_t cell = 0; cell < phased.cells; ++cell) {
        const int64_t source = cell + least;
        phased.source.push_back(source >= 0 && source < outputs ? source : AxisTable::outside);
    }
    return phased;
}

PhasedAxis by_offset(PhasedAxis axis) {
    for (PhasedAxis::Class& one : axis.classes)
        std::sort(one.taps.begin(), one.taps.end(),
                  [](const PhasedAxis::Tap& a, const PhasedAxis::Tap& b) { return a.offset < b.offset; });
    return axis;
}

Border forward_border(const ConvProblem& problem) {
    // The first tap of the first window, or the last one of the last window.
    const auto finds_in = [](const Axis& axis, PaddingMode mode) {
        const int64_t windows = axis.output();
        return axis.mode == mode && windows > 0 &&
               (axis.pad_before > 0 || axis.position(windows - 1, axis.kernel - 1) >= axis.input);
    };
    const auto finds = [&](PaddingMode mode) { return finds_in(problem.h, mode) || finds_in(problem.w, mode); };
    Border border;
    border.skips = finds(PaddingMode::zeros);
    border.value = finds(PaddingMode::constant) ? problem.padding_value : 0.0;
    border.mixed = border.skips && border.value != 0.0;
    return border;
}

Border grad_input_border(const ConvProblem& problem) {
    // Inputs at the edge lie under taps of windows that do not exist.
    const auto reads_outside = [](const Axis& axis) { return axis.extent() > 1 || axis.pad_before > 0; };
    return {reads_outside(problem.h) || reads_outside(problem.w), false, 0.0};
}

}  // namespace convx
