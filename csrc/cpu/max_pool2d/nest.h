// What the two nests of max-pooling share that read values where they lie: one kernel job at a time, and the way of its
// results.
#pragma once

#include <limits>

#include "common/rounding.h"
#include "cpu/max_pool2d/methods.h"
#include "cpu/max_pool2d/pool_axis.h"
#include "cpu/memory_bound.h"
#include "cpu/runtime/registry.h"
#include "cpu/runtime/scratch_parts.h"
#include "cpu/runtime/thread_pool.h"
#include "cpu/runtime/workspace.h"

namespace convx {

constexpr int64_t pool_task_elements = int64_t{1} << 15;  // input elements of one task
constexpr int64_t widest_vector = 16;

// Where a block of results goes: the cell of its corner, the axis of its rows, and what its columns are.
struct Place {
    int64_t n, c, p, q;
    int row_axis;
    int64_t pixels, group;
};

template <class U>
U* corner(const TensorView<U>& view, const Place& to) {
    return view.at(to.n, to.c, to.p, to.q);
}

// True if the columns of a row are adjacent in `view`.
template <class U>
bool are_adjacent(const TensorView<U>& view, int64_t pixels, int64_t group) {
    return (group == 1 || view.stride[1] == 1) && (pixels == 1 || view.stride[3] == group);
}

// Threads for the work of an operation that compares every tap of every window once.
inline int pool_width(const PoolProblem& problem, int64_t item_bytes) {
    const auto elements = [](const std::array<int64_t, 4>& s) { return s[0] * s[1] * s[2] * s[3]; };
    const int64_t compared = elements(problem.input_shape()) + elements(problem.output_shape()) * problem.taps();
    return compared * item_bytes < parallel_bytes ? 1 : num_threads();
}

// Calls body(task, scratch) for all tasks, with a Scratch(parts, nest) for each worker.
template <class Nest, class Body>
void run_pool_tasks(const Nest& nest, int width, int64_t tasks, const Body& body) {
    using Scratch = typename Nest::Scratch;
    const int64_t worker_bytes = Scratch(ScratchParts(), nest).bytes;
    const Workspace workspace(static_cast<size_t>(worker_bytes * width));
    parallel_for(tasks, width, [&](int64_t task, int worker) {
        body(task, Scratch(ScratchParts(static_cast<char*>(workspace.data()) + worker * worker_bytes), nest));
    });
}

template <class T>
class PoolNest {
protected:
    // `group` channels are the elements of one column.
    PoolNest(const PoolProblem& problem, const TensorView<const T>& input, const PoolOutputs<T>& outputs, int64_t group)
        : problem_(problem), group_(group), input_(input), output_(outputs.values), indices_(outputs.indices),
          codes_(outputs.codes) {
        // Numbers of this size are exact in a float, and in sums of three an int32.
        const int64_t farthest = (h_.extent() - 1) * w_.input + w_.extent() - 1 + problem.out_w() * w_.stride;
        kernel_writes_indices_ =
            indices_.data && farthest < int64_t{1} << 24 && are_adjacent(indices_, problem.out_w(), group);
        for (int64_t r = 0; r < h_.kernel; ++r)
            for (int64_t s = 0; s < w_.kernel; ++s) {
                index_offsets_.push_back(r * h_.dilation * w_.input + s * w_.dilation);
                tap_codes_.push_back(
                    static_cast<T>(kernel_writes_indices_ ? index_offsets_.back() : r * w_.kernel + s));
            }
        for (int64_t s = 0; s < w_.kernel; ++s) direct_columns_.push_back(s * w_.dilation * input_.stride[3]);
    }

    // Results on their way, of a worker; null where they need none.
    struct Results {
        T* output;
        uint8_t* code_bytes;
        T* code_lanes;
    };
    Results take_results(ScratchParts& parts) const {
        return {parts.take<T>(output_cells_), parts.take<uint8_t>(code_cells_), parts.take<T>(index_cells_)};
    }

    // A job over these taps, whose rows are yet to be filled in.
    PoolMax<T> job_of(const WindowRun& rows, const WindowRun& columns, const std::vector<int64_t>& offsets,
                      const T* const* rows_of_taps) const;

    // Runs the kernel on a job that lacks its outputs, and brings these to where they belong.
    void emit(PoolMax<T>& job, const Place& to, const Results& results) const;

    // For a window without a tap inside the image, all channels of a group.
    void write_empty(int64_t n, int64_t c_begin, int64_t p, int64_t q) const;

    const PoolProblem& problem_;
    const int64_t group_;
    const Axis &h_ = problem_.h, &w_ = problem_.w;
    const TensorView<const T> input_;
    const TensorView<T> output_;
    const TensorView<int64_t> indices_;
    const TensorView<uint8_t> codes_;
    const KernelSet<T>& kernels_ = kernel_set<T>(active_kernels());
    const std::vector<WindowRun> row_runs_ = window_runs(h_), column_runs_ = window_runs(w_);
    bool kernel_writes_indices_;           // to where they belong, tap codes being offsets; else write_indices does
    std::vector<int64_t> index_offsets_;   // per tap: its index less that of the window's origin
    std::vector<T> tap_codes_;             // per tap: r * S + s, or its index offset
    std::vector<int32_t> index_ramp_;      // per column of a block: its index less that of the first column
    std::vector<int64_t> direct_columns_;  // per s: where its values begin in a row as it is
    int64_t output_cells_ = 0, code_cells_ = 0, index_cells_ = 0;

private:
    template <class U>
    void scatter(const U* from, const TensorView<U>& view, const PoolMax<T>& job, const Place& to) const;
    void write_indices(const T* chosen, const PoolMax<T>& job, const Place& to) const;
};

template <class T>
PoolMax<T> PoolNest<T>::job_of(const WindowRun& rows, const WindowRun& columns, const std::vector<int64_t>& offsets,
                               const T* const* rows_of_taps) const {
    PoolMax<T> job{};
    job.tap_rows = static_cast<int>(rows.count());
    job.tap_columns = static_cast<int>(columns.count());
    job.column_step = 1;
    job.rows_of_taps = rows_of_taps + rows.tap_begin;
    job.offsets = offsets.data() + columns.tap_begin;
    job.codes = tap_codes_.data() + rows.tap_begin * w_.kernel + columns.tap_begin;
    job.code_row = w_.kernel;
    return job;
}

template <class T>
void PoolNest<T>::emit(PoolMax<T>& job, const Place& to, const Results& results) const {
    job.output = output_cells_ ? results.output : corner(output_, to);
    job.output_step = output_cells_ ? job.columns : output_.stride[to.row_axis];
    job.code_step = job.columns;
    if (codes_.data) {
        job.code_bytes = code_cells_ ? results.code_bytes : corner(codes_, to);
        if (!code_cells_) job.code_step = codes_.stride[to.row_axis];
    }
    if (kernel_writes_indices_) {
        job.indices = corner(indices_, to);
        job.code_step = indices_.stride[to.row_axis];
        job.index_origin = h_.position(to.p, 0) * w_.input + w_.position(to.q, 0);
        job.index_row = to.row_axis == 2 ? h_.stride * w_.input : w_.stride;
        job.index_ramp = index_ramp_.data();
    } else if (indices_.data) {
        job.code_lanes = results.code_lanes;
    }
    kernels_.pool_max(job);
    if (output_cells_) scatter(results.output, output_, job, to);
    if (code_cells_) scatter(results.code_bytes, codes_, job, to);
    if (job.code_lanes) write_indices(results.code_lanes, job, to);
}

template <class T>
template <class U>
void PoolNest<T>::scatter(const U* from, const TensorView<U>& view, const PoolMax<T>& job, const Place& to) const {
    for (int64_t row = 0; row < job.rows; ++row)
        for (int64_t pixel = 0; pixel < to.pixels; ++pixel) {
            U* at = corner(view, to) + row * view.stride[to.row_axis] + pixel * view.stride[3];
            for (int64_t c = 0; c < to.group; ++c) at[c * view.stride[1]] = *from++;
        }
}

template <class T>
void PoolNest<T>::write_indices(const T* chosen, const PoolMax<T>& job, const Place& to) const {
    const int64_t row_step = to.row_axis == 2 ? h_.stride * w_.input : w_.stride;
    int64_t origin = h_.position(to.p, 0) * w_.input + w_.position(to.q, 0);
    for (int64_t row = 0; row < job.rows; ++row, origin += row_step) {
        int64_t* at = corner(indices_, to) + row * indices_.stride[to.row_axis];
        for (int64_t pixel = 0; pixel < to.pixels; ++pixel)
            for (int64_t c = 0; c < to.group; ++c)
                at[pixel * indices_.stride[3] + c * indices_.stride[1]] =
                    origin + pixel * w_.stride + index_offsets_[static_cast<size_t>(*chosen++)];
    }
}

template <class T>
void PoolNest<T>::write_empty(int64_t n, int64_t c_begin, int64_t p, int64_t q) const {
    for (int64_t c = c_begin; c < c_begin + group_; ++c) {
        *output_.at(n, c, p, q) = -std::numeric_limits<T>::infinity();
        if (indices_.data) *indices_.at(n, c, p, q) = no_gradient_index;
        if (codes_.data) *codes_.at(n, c, p, q) = no_gradient_code;
    }
}

}  // namespace convx
