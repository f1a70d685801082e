// The padded tile: the source of some rows copied with its halo, borders written out, so that every tap of every
// position is one constant distance away. Stride, dilation, padding and memory layout end here.
//
// As planes (PaddedTile): a stride splits each axis into phases (every stride-th cell belongs to one), each a plane of
// its own; in its plane a tap moves by whole cells whatever stride and dilation are. Rows of a plane are `pitch` apart
// and lie so close that the border behind one row is the border before the next: a position is i * pitch + j, all rows
// of a row block are one run of positions, and what a vector computes between the rows is dropped.
#pragma once

#include <vector>

#include "cpu/conv2d/axis_map.h"
#include "cpu/kernels/kernel_set.h"

namespace convx {

// Software prefetch of what is copied next while the present row block is computed: the copy alone waits for memory a
// third of its time, in pieces too short for the hardware's prefetcher. Rows of `width` adjacent elements, `lines` of
// each of `channels`, in equal shares.
template <class T>
class Prefetch {
public:
    Prefetch() = default;
    Prefetch(const T* source, int64_t channels, int64_t channel_stride, int64_t lines, int64_t line_stride,
             int64_t width, int64_t shares)
        : source_(reinterpret_cast<const char*>(source)), channel_stride_(channel_stride * item),
          line_stride_(line_stride * item), lines_(lines), row_(width * item / line + 1),
          left_(channels * lines * row_), share_(left_ / (shares > 0 ? shares : 1) + 1) {}

    explicit operator bool() const { return left_ > 0; }

    void next() {
        for (int64_t i = 0; i < share_ && left_ > 0; ++i, --left_) {
            __builtin_prefetch(source_ + at_line_ * line_stride_ + at_ * line);
            if (++at_ < row_) continue;
            at_ = 0;
            if (++at_line_ < lines_) continue;
            at_line_ = 0;
            source_ += channel_stride_;
        }
    }

private:
    static constexpr int64_t item = sizeof(T), line = 64;
    const char* source_ = nullptr;
    int64_t channel_stride_ = 0, line_stride_ = 0, lines_ = 0;
    int64_t row_ = 0;  // cache lines of a row
    int64_t left_ = 0, share_ = 0;
    int64_t at_ = 0, at_line_ = 0;
};

struct PlaneLayout {
    PlaneLayout(PhasedAxis rows, PhasedAxis columns);

    PhasedAxis h, w;
    int64_t pitch;  // from row to row
    int64_t width;  // written for each row, pitch or more
    int64_t reach;  // rows that a row block needs beyond its own

    int64_t planes() const { return h.phases * w.phases; }
    int64_t all_taps() const { return h.all_taps() * w.all_taps(); }
    int64_t row_step() const { return h.advance * pitch; }  // from position to position
    int64_t rows_of(int64_t positions) const { return (positions - 1) * h.advance + 1 + reach; }  // that they read
    // One plane for a row block; vectors of `lanes` may read past its end.
    int64_t plane_size(int64_t positions, int64_t lanes) const {
        return rows_of(positions) * pitch + (width - w.positions()) + lanes;
    }
    // What all taps of a class read, row-major, and so for `channels` channels: distances from a position.
    std::vector<int32_t> offsets(size_t class_h, size_t class_w, int64_t channels, int64_t plane) const;
};

// Pixels as they are, without borders.
inline PlaneLayout plain_layout(int64_t height, int64_t width) {
    return {phases_of_forward(Axis{height}), phases_of_forward(Axis{width})};
}

// Fills the planes of a row block.
template <class T>
class PaddedTile {
public:
    PaddedTile(const PlaneLayout& layout, const Strides& source_stride, T pad, const KernelSet<T>& kernels);

    // [channel][phase of h][phase of w][plane], for the positions [first, first + count) of a row block.
    void copy(T* planes, int64_t plane, const T* source, int64_t channels, int64_t first, int64_t count) const;

    // What copy() with these arguments will read, in `shares` shares; nothing where columns are not adjacent.
    Prefetch<T> prefetch(const T* source, int64_t channels, int64_t first, int64_t count, int64_t shares) const;

private:
    void fill_border(T* to, int64_t plane, int64_t channels, int64_t lines) const;
    void copy_rows(T* to, int64_t plane, const T* source, int64_t channels, int64_t lines) const;
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
