#include "cpu/conv2d/axis_table.h"

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

}  // namespace convx
