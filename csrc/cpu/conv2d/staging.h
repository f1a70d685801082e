// The source of a grouped pass (grouped.cpp, grouped_grad_weight.cpp) as its kernels want it: rows of places, borders
// filled in, adjacent places for adjacent pixels. Stride, dilation, padding, memory layout end here.
//
// A place is a row or column that windows can reach: of the padded image in the forward pass, of the output and what
// would lie around it in the adjoint. Columns are stored residue by residue modulo the stride, so that a tap reads
// adjacent elements for adjacent pixels at any stride. Staging costs a pass over data in L1: about a fifth of the time
// of a 3x3 window, and it is what lets one kernel serve all layouts, strides and borders.
#pragma once

#include <cstdint>
#include <vector>

#include "common/problem.h"
#include "cpu/conv2d/axis_table.h"
#include "cpu/kernels/kernel_set.h"

namespace convx {

struct StagedAxis {
    struct Tap {
        int64_t kernel_index;  // r or s
        int64_t offset;        // in places, from the place of the position
    };
    // Pixels of the result that have the same taps.
    struct Class {
        int64_t first, step, positions;  // they lie at first, first + step, ...
        std::vector<Tap> taps;           // by ascending offset: the order of every sum
    };

    int64_t advance = 1;          // places from one position to the next
    std::vector<int64_t> source;  // [place]: source index, or AxisTable::outside
    std::vector<bool> used;       // [place]: whether a window reads it
    std::vector<Class> classes;

    int64_t places() const { return static_cast<int64_t>(source.size()); }
    int64_t most_positions() const;
    // Places that `count` positions read.
    int64_t reach(int64_t count) const;
};

// Forward: one phase; the places are those of the padded image. The adjoint: a phase for every residue of the input
// modulo the stride; the places are those of the output.
StagedAxis staged_axis(const Axis& axis, bool forward);
// Positions as they are, without borders.
StagedAxis plain_axis(int64_t positions);

// How the places of a row lie in memory.
struct StagedRow {
    explicit StagedRow(const StagedAxis& w)
        : residues(w.advance), residue_pitch((w.places() + w.advance - 1) / w.advance),
          pitch(residues * residue_pitch) {}
    int64_t at(int64_t place) const { return place % residues * residue_pitch + place / residues; }
    int64_t residues, residue_pitch, pitch;
};

template <class T>
class Stage {
public:
    Stage(const StagedAxis& h, const StagedAxis& w, TensorView<const T> source, T pad, const KernelSet<T>& kernels);

    // Channels are adjacent in memory: many are staged at once, through transposes.
    static bool channels_adjacent(const TensorView<const T>& source);

    const StagedRow& row() const { return row_; }

    // staged[c * plane + y * pitch + x] for `channels` channels and `rows` rows of places from first_row on. `pads`
    // holds `channels` values of the border.
    void fill(T* staged, int64_t plane, int64_t n, int64_t first_channel, int64_t channels, int64_t first_row,
              int64_t rows, const T* pads) const;

private:
    void fill_row(T* staged, const T* source) const;
    void fill_row_transposed(T* staged, int64_t plane, const T* source, int64_t channels, const T* pads) const;

    const StagedAxis& h_;
    const TensorView<const T> source_;
    const T pad_;
    const KernelSet<T>& kernels_;
    const StagedRow row_;
    const bool transposed_;
    std::vector<int64_t> columns_;  // [stored place]: source column or outside
    // The places from inner_ on show source columns inner_source_, inner_source_ + 1, ...; the edges are the others.
    int64_t inner_ = 0, inner_source_ = 0, inner_count_ = 0;
    std::vector<int64_t> edges_;  // stored places
};

}  // namespace convx
