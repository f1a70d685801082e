#include "cpu/conv2d/cost.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace convx {

TileSizes::TileSizes(const Kernels& kernels, DType dtype) {
    const auto take = [this](const auto& set) {
        lanes = set.lanes;
        mr = set.mr;
        nr_vectors = static_cast<double>(set.nr / set.lanes);
        dot_rows = set.dot_rows;
        dot_columns = set.dot_columns;
        sums = set.tile_sums;
    };
    if (dtype == DType::float32)
        take(kernels.f32);
    else
        take(kernels.f64);
}

double step_cycles(double rows, double vectors) { return std::max({rows * vectors / 2, (rows + vectors) / 2, 4.0}); }

TileGrid::TileGrid(double rows, double most_rows, double vectors, double most_vectors) {
    const double row_tiles = std::ceil(rows / most_rows), vector_tiles = std::ceil(vectors / most_vectors);
    const double last_rows = rows - (row_tiles - 1) * most_rows;
    const double last_vectors = vectors - (vector_tiles - 1) * most_vectors;
    tiles = row_tiles * vector_tiles;
    if (tiles <= 0) {
        tiles = cycles = 0;
        return;
    }
    cycles = (row_tiles - 1) * (vector_tiles - 1) * step_cycles(most_rows, most_vectors) +
             (row_tiles - 1) * step_cycles(most_rows, last_vectors) +
             (vector_tiles - 1) * step_cycles(last_rows, most_vectors) + step_cycles(last_rows, last_vectors);
}

// Taps that a phase of the adjoint of stride s has: those k of which k * dilation leaves its remainder modulo s. Every
// gcd(s, dilation)-th phase has some, and these differ by one at most.
PhaseSizes::PhaseSizes(const Axis& axis, ConvPass pass) : size(1) {
    const double output = static_cast<double>(axis.output());
    if (pass != ConvPass::grad_input) {
        of[0] = {1, output, static_cast<double>(axis.kernel)};
        source = static_cast<double>(axis.padded());
        dest = output;
        return;
    }
    const int64_t phases = axis.stride / std::gcd(axis.stride, axis.dilation);
    const int64_t fewer = axis.kernel / phases, more = axis.kernel % phases;
    const double positions = std::ceil(static_cast<double>(axis.input) / static_cast<double>(axis.stride));
    size = 0;
    if (more > 0) of[size++] = {static_cast<double>(more), positions, static_cast<double>(fewer + 1)};
    if (fewer > 0) of[size++] = {static_cast<double>(phases - more), positions, static_cast<double>(fewer)};
    source = positions + static_cast<double>((axis.extent() - 1) / axis.stride);
    dest = static_cast<double>(axis.input);
}

WorkSizes::WorkSizes(const ConvProblem& of, ConvPass by, const Kernels& kernels)
    : problem(of), pass(by), tile(kernels, of.dtype), h(of.h, by), w(of.w, by), groups(static_cast<double>(of.groups)),
      channels(static_cast<double>(of.group_in())), rows(static_cast<double>(of.group_out())),
      taps(static_cast<double>(of.taps())), strided(of.h.stride > 1 || of.w.stride > 1),
      channels_last(of.channels_last) {
    if (pass == ConvPass::grad_input) std::swap(channels, rows);
    source_last = channels_last && groups * channels > 1;
    dest_last = channels_last && groups * rows > 1;
}

double WorkSizes::vectors(double elements) const { return std::ceil(elements / tile.lanes); }

namespace {

// An L2 of 512 KiB, beside what else stands there.
constexpr double l2_bytes = 384 * 1024;

}  // namespace

Work WorkSizes::common() const {
    Work work;
    const double item = static_cast<double>(item_size(problem.dtype)), packed = groups * rows * channels * taps;
    work[WorkKind::calls] = 1;
    work[WorkKind::lines] = item * (source() + dest()) / 64;
    work[WorkKind::weights] = packed;
    // Packed weights that L2 cannot keep are read again for each block of pixels.
    if (packed * item / groups > l2_bytes)
        work[WorkKind::spills] = packed * item / 64 * std::ceil(h.dest * w.dest / 256);
    return work;
}

void WorkSizes::add_padded_tile(Work& work) const {
    const bool across = source_last || (strided && pass != ConvPass::grad_input);
    work[across ? WorkKind::transposes : WorkKind::copies] += across ? source() : source() / tile.lanes;
    work[WorkKind::runs] += groups * channels * h.source;
}

void WorkSizes::add_result(Work& work, bool vectors_of_channels) const {
    const bool phases = h.of[0].count * w.of[0].count > 1 || h.size * w.size > 1;
    if (vectors_of_channels != dest_last)
        work[WorkKind::transposes] += dest();
    else if (phases)
        work[WorkKind::copies] += dest() / tile.lanes;
}

}  // namespace convx
