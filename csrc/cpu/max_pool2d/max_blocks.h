// What the two drivers of max-pooling share that read values where they lie: the arguments of the kernel for a block of
// windows, and where its results go.
#pragma once

#include <limits>

#include "cpu/max_pool2d/driver.h"
#include "cpu/max_pool2d/windows.h"

namespace convx {

// A block of windows: the one in its corner, the axis of its rows, and what its columns are.
struct WindowBlock {
    int64_t n, c, p, q;
    int row_axis;
    int64_t pixels, group;
};

template <class U>
U* corner(const TensorView<U>& view, const WindowBlock& block) {
    return view.at(block.n, block.c, block.p, block.q);
}

// True if the columns of a row are adjacent in `view`.
template <class U>
bool are_adjacent(const TensorView<U>& view, int64_t pixels, int64_t group) {
    return (group == 1 || view.stride[1] == 1) && (pixels == 1 || view.stride[3] == group);
}

template <class T>
class MaxBlocks {
protected:
    // `group` channels are the elements of one column.
    MaxBlocks(const PoolForward<T>& pass, const KernelSet<T>& kernels, int64_t group)
        : problem_(pass.problem), group_(group), input_(pass.input), output_(pass.output), indices_(pass.indices),
          codes_(pass.codes), kernels_(kernels) {
        kernel_writes_indices_ =
            indices_.data && has_exact_offsets(problem_) && are_adjacent(indices_, problem_.out_w(), group);
        // Each vector once: growing them took a tenth of a call of a few windows.
        tap_codes_.reserve(static_cast<size_t>(problem_.taps()));
        direct_columns_.reserve(static_cast<size_t>(w_.kernel));
        if (indices_.data) index_offsets_.reserve(static_cast<size_t>(problem_.taps()));
        for (int64_t r = 0; r < h_.kernel; ++r)
            for (int64_t s = 0; s < w_.kernel; ++s) {
                if (indices_.data) index_offsets_.push_back(r * h_.dilation * w_.input + s * w_.dilation);
                tap_codes_.push_back(
                    static_cast<T>(kernel_writes_indices_ ? index_offsets_.back() : r * w_.kernel + s));
            }
        for (int64_t s = 0; s < w_.kernel; ++s) direct_columns_.push_back(s * w_.dilation * input_.stride[3]);
    }

    // Whether the offsets of indices in a row of windows are exact in a float, and in sums of three an int32.
    static bool has_exact_offsets(const PoolProblem& problem) {
        const Axis &h = problem.h, &w = problem.w;
        return (h.extent() - 1) * w.input + w.extent() - 1 + problem.out_w() * w.stride < int64_t{1} << 24;
    }

    // Results that the kernel does not write in place, of a worker; null where it writes all.
    struct Results {
        T* output;
        uint8_t* code_bytes;
        T* code_lanes;
    };
    Results take_results(ScratchParts& parts) const {
        return {parts.take<T>(output_cells_), parts.take<uint8_t>(code_cells_), parts.take<T>(index_cells_)};
    }

    // Arguments over these taps; the rows of taps are yet to be filled in.
    PoolMaxArgs<T> args_of(const WindowRun& rows, const WindowRun& columns, const std::vector<int64_t>& offsets,
                           const T* const* rows_of_taps) const {
        PoolMaxArgs<T> args{};
        args.tap_rows = static_cast<int>(rows.count());
        args.tap_columns = static_cast<int>(columns.count());
        args.column_step = 1;
        args.rows_of_taps = rows_of_taps + rows.tap_begin;
        args.offsets = offsets.data() + columns.tap_begin;
        args.codes = tap_codes_.data() + rows.tap_begin * w_.kernel + columns.tap_begin;
        args.code_row = w_.kernel;
        return args;
    }

    // Runs the kernel on arguments that lack their outputs, and copies the results that it has not written in place.
    void emit(PoolMaxArgs<T>& args, const WindowBlock& block, const Results& results) const;

    // For a window without a tap inside the image, all channels of a group.
    void write_empty(int64_t n, int64_t c_begin, int64_t p, int64_t q) const {
        for (int64_t c = c_begin; c < c_begin + group_; ++c) {
            *output_.at(n, c, p, q) = -std::numeric_limits<T>::infinity();
            if (indices_.data) *indices_.at(n, c, p, q) = no_gradient_index;
            if (codes_.data) *codes_.at(n, c, p, q) = no_gradient_code;
        }
    }

    const PoolProblem problem_;
    const int64_t group_;
    const Axis &h_ = problem_.h, &w_ = problem_.w;
    const TensorView<const T> input_;
    const TensorView<T> output_;
    const TensorView<int64_t> indices_;
    const TensorView<uint8_t> codes_;
    const KernelSet<T>& kernels_;
    const std::vector<WindowRun> row_runs_ = window_runs(h_), column_runs_ = window_runs(w_);
    bool kernel_writes_indices_;           // in place, tap codes being offsets; else write_indices does
    std::vector<int64_t> index_offsets_;   // per tap: its index less that of the window's origin
    std::vector<T> tap_codes_;             // per tap: r * S + s, or its index offset
    std::vector<int32_t> index_ramp_;      // per column of a block: its index less that of the first column
    std::vector<int64_t> direct_columns_;  // per s: where its values begin in a row as it is
    int64_t output_cells_ = 0, code_cells_ = 0, index_cells_ = 0;

private:
    template <class U>
    static void scatter(const U* from, const TensorView<U>& view, int64_t rows, const WindowBlock& block) {
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t pixel = 0; pixel < block.pixels; ++pixel) {
                U* to = corner(view, block) + row * view.stride[block.row_axis] + pixel * view.stride[3];
                for (int64_t c = 0; c < block.group; ++c) to[c * view.stride[1]] = *from++;
            }
    }
    void write_indices(const T* codes, int64_t rows, const WindowBlock& block) const {
        int64_t origin = h_.position(block.p, 0) * w_.input + w_.position(block.q, 0);
        for (int64_t row = 0; row < rows; ++row, origin += index_row(block)) {
            int64_t* to = corner(indices_, block) + row * indices_.stride[block.row_axis];
            for (int64_t pixel = 0; pixel < block.pixels; ++pixel)
                for (int64_t c = 0; c < block.group; ++c)
                    to[pixel * indices_.stride[3] + c * indices_.stride[1]] =
                        origin + pixel * w_.stride + index_offsets_[static_cast<size_t>(*codes++)];
        }
    }
    // From a window's index to that of the window in the next row.
    int64_t index_row(const WindowBlock& block) const { return block.row_axis == 2 ? h_.stride * w_.input : w_.stride; }
};

template <class T>
void MaxBlocks<T>::emit(PoolMaxArgs<T>& args, const WindowBlock& block, const Results& results) const {
    args.output = output_cells_ ? results.output : corner(output_, block);
    args.output_step = output_cells_ ? args.columns : output_.stride[block.row_axis];
    args.code_step = args.columns;
    if (codes_.data) {
        args.code_bytes = code_cells_ ? results.code_bytes : corner(codes_, block);
        if (!code_cells_) args.code_step = codes_.stride[block.row_axis];
    }
    if (kernel_writes_indices_) {
        args.indices = corner(indices_, block);
        args.code_step = indices_.stride[block.row_axis];
        args.index_origin = h_.position(block.p, 0) * w_.input + w_.position(block.q, 0);
        args.index_row = index_row(block);
        args.index_ramp = index_ramp_.data();
    } else if (indices_.data) {
        args.code_lanes = results.code_lanes;
    }
    kernels_.pool_max(args);
    if (output_cells_) scatter(results.output, output_, args.rows, block);
    if (code_cells_) scatter(results.code_bytes, codes_, args.rows, block);
    if (args.code_lanes) write_indices(results.code_lanes, args.rows, block);
}

}  // namespace convx
