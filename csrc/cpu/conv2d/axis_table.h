// Which source index every tap reads at every position of one spatial axis: the one place where stride, dilation,
// padding and padding modes turn into addresses. The loop nests see tables and never ask for the options again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/problem.h"
#include "common/small_vector.h"

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
// strided gradient multiplies no zeros. Borders other than zeros are folded by the caller (grad_input.cpp).
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

// What the forward pass of a problem finds outside the image.
struct Border {
    bool skips;    // some taps have to be left out ("zeros")
    bool mixed;    // some taps are left out and others read a padding value other than zero
    double value;  // what the other taps outside read
};
Border forward_border(const ConvProblem& problem);

}  // namespace convx
