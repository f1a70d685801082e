// Which source index every tap reads at every position of one spatial axis: the one place where stride, dilation,
// padding and padding modes turn into addresses. Drivers see tables and never ask for the options again.
//
//   AxisTable, PhaseTables  an index for each tap and position (implicit GEMM, Winograd, the reference)
//   PhasedAxis              the cells of a padded tile (padded_tile.h): every tap is a constant distance away
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/problem.h"
#include "common/small_vector.h"
#include "cpu/kernels/kernel_set.h"

namespace convx {

struct AxisTable {
    static constexpr int64_t outside = -1;

    struct Tap {
        int64_t kernel_index;  // r or s
        int64_t begin, end;    // positions that lie inside the source without a border rule
    };

    int64_t positions = 0;
    int64_t step = 1;  // source distance of adjacent positions in [begin, end)
    SmallVector<Tap, 8> taps;
    SmallVector<int64_t, 64> index;  // [tap][position], `outside` where nothing is read

    int64_t at(int64_t tap, int64_t position) const { return index[static_cast<size_t>(tap * positions + position)]; }
    bool reads_outside() const;
};

// Position o and tap k of the forward pass read input index o * stride + k * dilation - pad_before.
AxisTable forward_table(const Axis& axis);

// The adjoint: positions are the inputs of one residue class modulo the stride (residue, residue + stride, ...), and a
// tap reads the output whose window has the input under that tap. Classes keep only the taps that can hit them, so a
// strided gradient multiplies no zeros. Borders other than zeros are folded by the caller (conv2d.cpp).
AxisTable adjoint_table(const Axis& axis, int64_t residue);

// The tables of all phases of an axis: one in the forward pass, in the adjoint one for each residue that has an input.
// The first lies in place, since most axes have no other.
class PhaseTables {
public:
    PhaseTables(const Axis& axis, bool forward);

    size_t size() const { return 1 + others_.size(); }
    const AxisTable& operator[](size_t i) const { return i == 0 ? first_ : others_[i - 1]; }
    size_t densest() const;  // the index of the one with the most taps
    bool has_empty() const;  // whether one has no tap

private:
    AxisTable first_;
    std::vector<AxisTable> others_;
};

// One axis, cut into phases. The adjoint of a strided axis has several classes of destinations instead.
struct PhasedAxis {
    struct Tap {
        int64_t kernel_index, phase, offset;  // position i reads cell i * advance + offset
    };
    struct Class {
        int64_t first, step, positions;  // position i is destination first + i * step
        std::vector<Tap> taps;
    };
    std::vector<Class> classes;
    int64_t phases = 1;
    int64_t advance = 1;          // cells from one position to the next
    int64_t cells = 0;            // of each phase
    int64_t step = 1;             // source distance of adjacent cells
    std::vector<int64_t> source;  // [phase][cell], AxisTable::outside where nothing is read

    int64_t positions() const { return classes.front().positions; }  // the first class has the most
    int64_t reach() const;                                           // the largest offset
    int64_t all_taps() const;                                        // of all classes
    int64_t at(int64_t phase, int64_t cell) const {
        return cell < cells ? source[static_cast<size_t>(phase * cells + cell)] : AxisTable::outside;
    }
};

PhasedAxis phases_of_forward(const Axis& axis);
PhasedAxis phases_of_adjoint(const Axis& axis);  // borders of zeros
// Forward in one phase with an advance, for drivers that read single pixels: the copy takes no row apart. Where a
// stride jumps over cells they are left out, in phases.
PhasedAxis pixels_of_forward(const Axis& axis);
// With the taps of every class by ascending offset.
PhasedAxis by_offset(PhasedAxis axis);

// --- the pixels of a whole batch in one row: positions (n, i, j) flattened, and what they read ---

// Strides of a source or destination tensor in elements: image, channel, row, column.
struct Strides {
    int64_t n, c, h, w;
};
inline Strides strides_of(const std::array<int64_t, 4>& stride) { return {stride[0], stride[1], stride[2], stride[3]}; }

// Pixel `index` of them.
struct PixelPlace {
    int64_t n, i, j;
};
inline PixelPlace place_of(int64_t rows, int64_t columns, int64_t index) {
    return {index / columns / rows, index / columns % rows, index % columns};
}

// Part of one row of positions.
struct PixelSegment {
    int64_t n, i, j;
    int64_t lane, count;  // place in the panel
};

// Calls visit(PixelSegment) for every row that pixels [first, first + count) touch.
template <class Visit>
void for_each_segment(int64_t rows, int64_t columns, int64_t first, int64_t count, const Visit& visit) {
    int64_t row = first / columns;
    int64_t j = first % columns;
    for (int64_t lane = 0; lane < count; ++row, j = 0) {
        const int64_t length = std::min(columns - j, count - lane);
        visit(PixelSegment{row / rows, row % rows, j, lane, length});
        lane += length;
    }
}

// The runs that one tap reads for one segment, appended to `runs`. Inside the borders a segment is one run; at borders
// that mirror or wrap it is one run per pixel; what is outside gets none.
inline int append_runs(const AxisTable& h, const AxisTable& w, int64_t tap_h, int64_t tap_w, const Strides& source,
                       const PixelSegment& segment, LaneRun* runs, int run_count) {
    const int64_t row = h.at(tap_h, segment.i);
    if (row == AxisTable::outside) return run_count;
    const int64_t base = segment.n * source.n + row * source.h;
    const AxisTable::Tap& tap = w.taps[static_cast<size_t>(tap_w)];
    const auto append = [&](int64_t j, int64_t count) {
        const int64_t column = w.at(tap_w, j);
        if (column == AxisTable::outside) return;
        runs[run_count++] = {static_cast<int32_t>(segment.lane + j - segment.j), static_cast<int32_t>(count),
                             base + column * source.w};
    };
    const int64_t stop = segment.j + segment.count;
    int64_t j = segment.j;
    for (; j < std::min(tap.begin, stop); ++j) append(j, 1);
    const int64_t inner_stop = std::min(tap.end, stop);
    if (j < inner_stop) {
        append(j, inner_stop - j);
        j = inner_stop;
    }
    for (; j < stop; ++j) append(j, 1);
    return run_count;
}

// What a pass finds outside the image that it reads.
struct Border {
    bool skips;    // some taps have to be left out ("zeros")
    bool mixed;    // some taps are left out and others read a padding value other than zero
    double value;  // what the other taps outside read
};
Border forward_border(const ConvProblem& problem);
Border grad_input_border(const ConvProblem& problem);  // without borders that fold

}  // namespace convx
