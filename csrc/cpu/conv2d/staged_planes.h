// Where a direct convolution finds its source: a band of lines copied into small planes that have their border written
// out, so that every tap of every position is one constant distance away.
//
// A stride splits each axis into phases (every stride-th cell belongs to one), each a plane of its own; in its plane a
// tap moves by whole cells whatever stride and dilation are. Lines of a plane are `pitch` apart and lie so close that
// the border behind one line is the border before the next: a position is i * pitch + j, all lines of a band are one
// run of positions, and what a vector computes between the lines is dropped.
#pragma once

#include <vector>

#include "cpu/conv2d/axis_table.h"
#include "cpu/conv2d/pixels.h"
#include "cpu/conv2d/read_ahead.h"
#include "cpu/kernels/kernel_set.h"

namespace convx {

// One axis, cut into phases. The adjoint of a strided axis has several classes of destinations instead.
struct PhasedAxis {
    struct Tap {
        int64_t kernel_index, phase, offset;  // position i reads cell i + offset
    };
    struct Class {
        int64_t first, step, positions;  // position i is destination first + i * step
        std::vector<Tap> taps;
    };
    std::vector<Class> classes;
    int64_t phases = 1;
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

struct PlaneLayout {
    PlaneLayout(PhasedAxis lines, PhasedAxis columns);

    PhasedAxis h, w;
    int64_t pitch;  // from line to line
    int64_t width;  // written for each line, pitch or more
    int64_t reach;  // lines that a band needs beyond its own

    int64_t planes() const { return h.phases * w.phases; }
    int64_t all_taps() const { return h.all_taps() * w.all_taps(); }
    // One plane for a band of `lines` positions; vectors of `lanes` may read past its end.
    int64_t plane_size(int64_t lines, int64_t lanes) const {
        return (lines + reach) * pitch + (width - w.positions()) + lanes;
    }
    // What all taps of a class read, row-major, and so for `channels` channels: distances from a position.
    std::vector<int32_t> offsets(size_t class_h, size_t class_w, int64_t channels, int64_t plane) const;
};

// Fills the planes of a band.
template <class T>
class Stager {
public:
    Stager(const PlaneLayout& layout, const Strides& source_stride, T pad, const KernelSet<T>& kernels);

    // [channel][phase of h][phase of w][plane], for the positions [first_line, first_line + lines) of a band.
    void stage(T* planes, int64_t plane, const T* source, int64_t channels, int64_t first_line, int64_t lines) const;

    // What stage() with these arguments will read, in `shares` shares; nothing where columns are not adjacent.
    ReadAhead<T> read_ahead(const T* source, int64_t channels, int64_t first_line, int64_t lines, int64_t shares) const;

private:
    void stage_border(T* to, int64_t plane, int64_t channels, int64_t lines) const;
    void stage_lines(T* to, int64_t plane, const T* source, int64_t channels, int64_t lines) const;
    void split_lines(T* to, int64_t plane, const T* source, int64_t lines) const;
    void transpose_line(T* to, int64_t channel_step, const T* source, int64_t channels, int64_t phase) const;

    const PlaneLayout& layout_;
    const Strides stride_;
    const T pad_;
    const KernelSet<T>& kernels_;
    std::vector<std::vector<LaneRun>> runs_;  // of each phase of w
    int64_t even_phase_ = -1;                 // of the two phases of w, if they are the even and odd cells of one run
};

}  // namespace convx
