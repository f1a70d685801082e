// Max-pooling, forward: two loop nests over one kernel (kernels/max_pool2d.inl.h).
//
//  - channels: the channels of a pixel are adjacent (NHWC) and at least a vector. A block is pixels x channels, a
//  stream
//    is the pixel under one tap, nothing is copied, and windows at the border leave out the taps that they lack.
//  - planes: everything else. A block is rows x columns of one (n, c) plane. Its input rows are staged first: padded
//  with
//    -inf, and split by the residue of the column modulo the stride, so that one tap of neighbouring windows reads
//    neighbouring elements. Rows that can be read like that as they lie are not staged; nor are those of windows of two
//    columns at stride 2, whose taps the kernel takes apart itself. A column may be a group of adjacent channels: NHWC
//    with fewer channels than a vector, or with windows that are better taken apart.
//
// Windows that overlap in rows are taken apart where that pays: first the best of each input row under the window's
// columns, then the best of R of those. That keeps the row-major order of ties and NaNs and takes S - 1 + R - 1
// comparisons instead of R * S - 1.
#include "cpu/max_pool2d.h"

#include <cstdlib>
#include <limits>

#include "common/rounding.h"
#include "cpu/memory_bound.h"
#include "cpu/pool_axis.h"
#include "cpu/registry.h"
#include "cpu/scratch_parts.h"
#include "cpu/thread_pool.h"
#include "cpu/workspace.h"

namespace convx {

namespace {

constexpr int64_t task_elements = int64_t{1} << 15;           // input elements of one task
constexpr int64_t l1_bytes = 24 << 10, l2_bytes = 128 << 10;  // for the rows of a block
constexpr int64_t block_elements = 512;                       // of one row of a block, unless groups are large
constexpr int64_t block_cells = int64_t{1} << 14;
constexpr int64_t widest_vector = 16;

int64_t whole_vectors(int64_t n) { return round_up(n, widest_vector); }

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

template <class T>
class Forward {
public:
    // `group` channels are the elements of one column.
    Forward(const PoolProblem& problem, const TensorView<const T>& input, const TensorView<T>& output,
            const TensorView<int64_t>& indices, const TensorView<uint8_t>& codes, int64_t group)
        : problem_(problem), group_(group), input_(input), output_(output), indices_(indices), codes_(codes) {
        for (int64_t r = 0; r < h_.kernel; ++r)
            for (int64_t s = 0; s < w_.kernel; ++s) {
                tap_codes_.push_back(static_cast<T>(r * w_.kernel + s));
                index_offsets_.push_back(r * h_.dilation * w_.input + s * w_.dilation);
            }
        for (int64_t s = 0; s < w_.kernel; ++s) direct_columns_.push_back(s * w_.dilation * input_.stride[3]);
    }

    void run_channels();
    void run_planes();

private:
    // What one worker works with; a part that the problem does not need is empty.
    struct Scratch {
        Scratch(ScratchParts parts, const Forward& f)
            : rows_of_taps(parts.take<const T*>(f.h_.kernel)), staged(parts.take<T>(f.slots_ * f.staged_row_)),
              ranked(parts.take<T>(f.slots_ * f.ranked_row_)), output(parts.take<T>(f.output_cells_)),
              code_bytes(parts.take<uint8_t>(f.code_cells_)), code_lanes(parts.take<T>(f.index_cells_)),
              bytes(parts.bytes()) {}
        const T** rows_of_taps;
        T* staged;
        T* ranked;
        T* output;  // results on their way
        uint8_t* code_bytes;
        T* code_lanes;
        int64_t bytes;
    };

    template <class Body>
    void run_tasks(int64_t tasks, const Body& body) {
        const int64_t compared = (input_.size() + output_.size() * problem_.taps()) * int64_t{sizeof(T)};
        const int width = compared < parallel_bytes ? 1 : num_threads();
        const int64_t worker_bytes = Scratch(ScratchParts(), *this).bytes;
        const Workspace workspace(static_cast<size_t>(worker_bytes * width));
        parallel_for(tasks, width, [&](int64_t task, int worker) {
            body(task, Scratch(ScratchParts(static_cast<char*>(workspace.data()) + worker * worker_bytes), *this));
        });
    }

    PoolMax<T> job_of(const WindowRun& rows, const WindowRun& columns, const std::vector<int64_t>& offsets,
                      const Scratch& scratch) const;
    void emit(PoolMax<T>& job, const Place& to, const Scratch& scratch) const;
    template <class U>
    void scatter(const U* from, const TensorView<U>& view, const PoolMax<T>& job, const Place& to) const;
    void write_indices(const T* chosen, const PoolMax<T>& job, const Place& to) const;
    void write_empty(int64_t n, int64_t c, int64_t p, int64_t q) const;

    void channels_row(int64_t n, int64_t p, const Scratch& scratch) const;

    void plan_planes();
    void plan_rows(bool separable);
    void plane_block(int64_t n, int64_t c, int64_t p_begin, int64_t p_end, int64_t q_begin,
                     const Scratch& scratch) const;
    void stage(int64_t n, int64_t c, int64_t h_begin, int64_t slots, int64_t w_begin, T* staged) const;
    bool can_read(const T* end) const { return end <= input_end_; }

    const PoolProblem& problem_;
    const int64_t group_;
    const Axis &h_ = problem_.h, &w_ = problem_.w;
    const TensorView<const T> input_;
    const TensorView<T> output_;
    const TensorView<int64_t> indices_;
    const TensorView<uint8_t> codes_;
    const KernelSet<T>& kernels_ = kernel_set<T>(active_kernels());
    const std::vector<WindowRun> row_runs_ = window_runs(h_), column_runs_ = window_runs(w_);
    std::vector<T> tap_codes_;             // 0, 1, ..., R * S - 1
    std::vector<int64_t> index_offsets_;   // index under a tap less that of the window's origin
    std::vector<int64_t> direct_columns_;  // per s: where its values begin in a row as it is
    int64_t output_cells_ = 0, code_cells_ = 0, index_cells_ = 0;

    // Planes only.
    bool direct_ = false;  // rows are streams as they lie
    bool pairs_ = false;   // and two of them each
    bool separable_ = false;
    int64_t block_rows_ = 1, block_columns_ = 1;
    int64_t slots_ = 0;              // input rows of a block
    int64_t slot_step_ = 1;          // input rows from one slot to the next
    std::vector<int64_t> residues_;  // modulo the stride, of the columns that taps read
    int64_t residue_columns_ = 0, residue_width_ = 0, staged_row_ = 0, ranked_row_ = 0;
    std::vector<int64_t> staged_columns_;  // per s: where its values begin in a staged row
    std::vector<T> first_columns_;         // per column: the first s inside the image, if that is not 0 for all
    const T* input_end_ = nullptr;         // behind the last element in memory
};

// A job over these taps, whose rows are yet to be filled in.
template <class T>
PoolMax<T> Forward<T>::job_of(const WindowRun& rows, const WindowRun& columns, const std::vector<int64_t>& offsets,
                              const Scratch& scratch) const {
    PoolMax<T> job;
    job.tap_rows = static_cast<int>(rows.count());
    job.tap_columns = static_cast<int>(columns.count());
    job.pairs = false;
    job.first_codes = nullptr;
    job.rank_offset = 0;
    job.code_bytes = nullptr;
    job.code_lanes = nullptr;
    job.rows_of_taps = scratch.rows_of_taps + rows.tap_begin;
    job.offsets = offsets.data() + columns.tap_begin;
    job.codes = tap_codes_.data() + rows.tap_begin * w_.kernel + columns.tap_begin;
    job.code_row = w_.kernel;
    return job;
}

// Runs the kernel on a job that lacks its outputs, and brings these to where they belong.
template <class T>
void Forward<T>::emit(PoolMax<T>& job, const Place& to, const Scratch& scratch) const {
    job.output = output_cells_ ? scratch.output : corner(output_, to);
    job.output_step = output_cells_ ? job.columns : output_.stride[to.row_axis];
    job.code_bytes = !codes_.data ? nullptr : code_cells_ ? scratch.code_bytes : corner(codes_, to);
    job.code_lanes = index_cells_ ? scratch.code_lanes : nullptr;
    job.code_step = code_cells_ || index_cells_ ? job.columns : codes_.stride[to.row_axis];
    kernels_.pool_max(job);
    if (output_cells_) scatter(scratch.output, output_, job, to);
    if (code_cells_) scatter(scratch.code_bytes, codes_, job, to);
    if (index_cells_) write_indices(scratch.code_lanes, job, to);
}

template <class T>
template <class U>
void Forward<T>::scatter(const U* from, const TensorView<U>& view, const PoolMax<T>& job, const Place& to) const {
    for (int64_t row = 0; row < job.rows; ++row)
        for (int64_t pixel = 0; pixel < to.pixels; ++pixel) {
            U* at = corner(view, to) + row * view.stride[to.row_axis] + pixel * view.stride[3];
            for (int64_t c = 0; c < to.group; ++c) at[c * view.stride[1]] = *from++;
        }
}

template <class T>
void Forward<T>::write_indices(const T* chosen, const PoolMax<T>& job, const Place& to) const {
    const auto offset = [&](T tap) { return index_offsets_[static_cast<size_t>(static_cast<int32_t>(tap))]; };
    const int64_t row_step = to.row_axis == 2 ? h_.stride * w_.input : w_.stride;
    int64_t origin = h_.position(to.p, 0) * w_.input + w_.position(to.q, 0);
    for (int64_t row = 0; row < job.rows; ++row, origin += row_step) {
        int64_t* at = corner(indices_, to) + row * indices_.stride[to.row_axis];
        if (to.group == 1) {
            for (int64_t pixel = 0; pixel < to.pixels; ++pixel)
                at[pixel * indices_.stride[3]] = origin + pixel * w_.stride + offset(*chosen++);
            continue;
        }
        for (int64_t pixel = 0; pixel < to.pixels; ++pixel)
            for (int64_t c = 0; c < to.group; ++c)
                at[pixel * indices_.stride[3] + c * indices_.stride[1]] =
                    origin + pixel * w_.stride + offset(*chosen++);
    }
}

// For a window without a tap inside the image, all channels of a group.
template <class T>
void Forward<T>::write_empty(int64_t n, int64_t c_begin, int64_t p, int64_t q) const {
    for (int64_t c = c_begin; c < c_begin + group_; ++c) {
        *output_.at(n, c, p, q) = -std::numeric_limits<T>::infinity();
        if (indices_.data) *indices_.at(n, c, p, q) = no_gradient_index;
        if (codes_.data) *codes_.at(n, c, p, q) = no_gradient_code;
    }
}

template <class T>
void Forward<T>::run_channels() {
    if (indices_.data) index_cells_ = std::max<int64_t>(4096, group_);
    const int64_t rows_per_image = problem_.out_h();
    const int64_t rows = problem_.batch * rows_per_image;
    const int64_t task_rows = std::max<int64_t>(1, task_elements / (w_.input * group_ * h_.stride));
    run_tasks(ceil_div(rows, task_rows), [&](int64_t task, const Scratch& scratch) {
        for (int64_t row = task * task_rows; row < std::min(rows, (task + 1) * task_rows); ++row)
            channels_row(row / rows_per_image, row % rows_per_image, scratch);
    });
}

template <class T>
void Forward<T>::channels_row(int64_t n, int64_t p, const Scratch& scratch) const {
    const WindowRun& rows = run_of(row_runs_, p);
    const int64_t step = w_.stride * input_.stride[3];
    const bool dense = step == group_ && output_.stride[3] == group_ && (!codes_.data || codes_.stride[3] == group_);
    const int64_t most = index_cells_ ? index_cells_ / group_ : problem_.out_w();
    for (const WindowRun& columns : column_runs_)
        for (int64_t q = columns.begin; q < columns.end; q += most) {
            const int64_t pixels = std::min(most, columns.end - q);
            if (rows.is_empty() || columns.is_empty()) {
                for (int64_t pixel = 0; pixel < pixels; ++pixel) write_empty(n, 0, p, q + pixel);
                continue;
            }
            PoolMax<T> job = job_of(rows, columns, direct_columns_, scratch);
            for (int64_t r = rows.tap_begin; r < rows.tap_end; ++r)
                scratch.rows_of_taps[r] = input_.at(n, 0, h_.position(p, r), w_.position(q, 0));
            job.value_step = step;
            job.rows = pixels;
            job.columns = group_;
            if (dense && !index_cells_) {
                job.columns *= job.rows;
                job.rows = 1;
            }
            emit(job, {n, 0, p, q, 3, 1, group_}, scratch);
        }
}

// How planes are cut and staged: by the problem, the strides and the vector length.
template <class T>
void Forward<T>::plan_planes() {
    const int64_t columns = problem_.out_w(), lanes = kernels_.lanes;
    const bool inside = column_runs_.size() == 1 && column_runs_[0].count() == w_.kernel;
    pairs_ = inside && group_ == 1 && w_.stride == 2 && w_.kernel == 2 && w_.dilation == 1 && input_.stride[3] == 1;
    direct_ = pairs_ || (inside && w_.stride == 1 && are_adjacent(input_, 2, group_));
    input_end_ = input_.data + 1;
    for (size_t axis = 0; axis < 4; ++axis)
        input_end_ += std::max<int64_t>(0, input_.stride[axis]) * (input_.shape[axis] - 1);

    const int64_t limit = std::max<int64_t>(16, block_elements / group_);
    block_columns_ = ceil_div(columns, ceil_div(columns, limit));
    if (group_ == 1) block_columns_ = std::min(columns, whole_vectors(block_columns_));

    for (int64_t s = 0; s < w_.kernel; ++s) {
        const int64_t residue = s * w_.dilation % w_.stride;
        if (std::find(residues_.begin(), residues_.end(), residue) == residues_.end()) residues_.push_back(residue);
    }
    if (w_.stride == 2) residues_ = {0, 1};  // staged at once, whether read or not
    residue_columns_ = (w_.extent() - 1) / w_.stride + block_columns_;
    residue_width_ = whole_vectors(residue_columns_ * group_ + 2 * lanes);
    for (int64_t s = 0; s < w_.kernel; ++s) {
        const auto residue = std::find(residues_.begin(), residues_.end(), s * w_.dilation % w_.stride);
        staged_columns_.push_back((residue - residues_.begin()) * residue_width_ +
                                  s * w_.dilation / w_.stride * group_);
    }
    if (column_runs_[0].tap_begin > 0) {
        first_columns_.resize(static_cast<size_t>(columns * group_ + widest_vector));
        for (const WindowRun& run : column_runs_)
            std::fill(first_columns_.begin() + run.begin * group_, first_columns_.begin() + run.end * group_,
                      static_cast<T>(run.tap_begin));
    }

    if (!pairs_ && w_.kernel > 1 && h_.kernel > 1) {
        plan_rows(true);
        separable_ = slots_ * (w_.kernel + 1) + block_rows_ * (h_.kernel + 1) < block_rows_ * problem_.taps();
        if (const char* e = getenv("SEP")) separable_ = atoi(e);
    }
    if (!separable_) plan_rows(false);
    const int64_t cells = block_rows_ * block_columns_ * group_;
    if (!are_adjacent(output_, block_columns_, group_)) output_cells_ = cells;
    if (codes_.data && !are_adjacent(codes_, block_columns_, group_)) code_cells_ = cells;
    if (indices_.data) index_cells_ = cells;
}

// As many rows as stay in L1; more, where overlapping windows would have most of them staged twice; one at a time, with
// its taps alone, where rows are far apart.
template <class T>
void Forward<T>::plan_rows(bool separable) {
    const bool codes = indices_.data || codes_.data;
    const int64_t block = std::max<int64_t>(block_columns_ * group_, kernels_.lanes);
    const bool stages = !direct_ || block > block_columns_ * group_;
    staged_row_ = stages ? static_cast<int64_t>(residues_.size()) * residue_width_ : 0;
    ranked_row_ = separable ? (codes ? 2 : 1) * whole_vectors(block) : 0;
    int64_t slots = std::max<int64_t>(1, task_elements / (w_.input * group_));
    if (const int64_t bytes = (staged_row_ + ranked_row_) * int64_t{sizeof(T)})
        slots = std::max(l1_bytes / bytes, std::min(l2_bytes / bytes, h_.extent() + 7 * h_.stride));
    block_rows_ = h_.stride > h_.extent() ? 1 : std::max<int64_t>(1, (slots - h_.extent()) / h_.stride + 1);
    block_rows_ = std::min({block_rows_, problem_.out_h(), std::max<int64_t>(1, block_cells / block)});
    slots_ = block_rows_ == 1 ? h_.kernel : (block_rows_ - 1) * h_.stride + h_.extent();
    slot_step_ = block_rows_ == 1 ? h_.dilation : 1;
}

template <class T>
void Forward<T>::run_planes() {
    plan_planes();
    const int64_t groups = problem_.channels / group_, rows = problem_.out_h(), columns = problem_.out_w();
    const int64_t blocks = ceil_div(rows, block_rows_);
    const int64_t units = problem_.batch * groups * blocks;
    const int64_t task_units = std::max<int64_t>(1, task_elements / (w_.input * group_ * block_rows_ * h_.stride));
    // Where channels lie closer than pixels, they take turns within a block of rows: its lines are in cache then.
    const bool channels_inside = std::abs(input_.stride[1]) < std::abs(input_.stride[3]);
    run_tasks(ceil_div(units, task_units), [&](int64_t task, const Scratch& scratch) {
        const int64_t end = std::min(units, (task + 1) * task_units);
        BlockCounter at(task * task_units, groups, blocks, channels_inside);
        for (int64_t unit = task * task_units; unit < end; ++unit, at.next()) {
            const int64_t p = at.block * block_rows_;
            // The last block of a row overlaps its neighbour, so that all are equally wide.
            for (int64_t q = 0; q < columns; q += block_columns_)
                plane_block(at.n, at.group * group_, p, std::min(rows, p + block_rows_),
                            std::min(q, columns - block_columns_), scratch);
        }
    });
}

// Stages `slots` rows from h_begin on: lane l of a residue holds column w_begin + residue + l * stride.
template <class T>
void Forward<T>::stage(int64_t n, int64_t c, int64_t h_begin, int64_t slots, int64_t w_begin, T* staged) const {
    PoolStage<T> jobs[2];
    for (size_t i = 0; i < residues_.size(); ++i) {
        PoolStage<T>& job = jobs[i % 2];
        const int64_t first = w_begin + residues_[i];
        const int64_t skipped = first < 0 ? std::min(ceil_div(-first, w_.stride), residue_columns_) : 0;
        const int64_t column = first + skipped * w_.stride;
        const int64_t inside = column < w_.input ? (w_.input - 1 - column) / w_.stride + 1 : 0;
        job.staged = staged + static_cast<int64_t>(i) * residue_width_;
        job.staged_step = staged_row_;
        job.source = input_.at(n, c, h_begin, column);
        job.source_step = slot_step_ * input_.stride[2];
        job.rows = slots;
        job.before = skipped * group_;
        job.pixels = std::min(inside, residue_columns_ - skipped);
        job.after = (residue_columns_ - skipped - job.pixels) * group_;
        job.group = group_;
        job.pixel_step = w_.stride * input_.stride[3];
        job.fill = -std::numeric_limits<T>::infinity();
        job.beyond = can_read(job.source + std::max<int64_t>(0, (slots - 1) * job.source_step) +
                              std::max<int64_t>(0, (job.pixels - 1) * job.pixel_step) + group_ + 2 * kernels_.lanes);
        const bool both = w_.stride == 2 && group_ == 1 && input_.stride[3] == 1;
        if (!both)
            kernels_.pool_stage(job);
        else if (i == 1)
            jobs[0].source < job.source ? kernels_.pool_stage_pairs(jobs[0], job)
                                        : kernels_.pool_stage_pairs(job, jobs[0]);
    }
}

template <class T>
void Forward<T>::plane_block(int64_t n, int64_t c, int64_t p_begin, int64_t p_end, int64_t q_begin,
                             const Scratch& scratch) const {
    // The input rows that the windows read.
    int64_t h_begin = std::max<int64_t>(0, h_.position(p_begin, 0));
    int64_t slots = std::min(h_.input - 1, h_.position(p_end - 1, h_.kernel - 1)) - h_begin + 1;
    if (block_rows_ == 1) {
        const WindowRun& run = run_of(row_runs_, p_begin);
        h_begin = h_.position(p_begin, run.tap_begin);
        slots = run.count();
    }
    slots = std::max<int64_t>(0, slots);
    const WindowRun all_columns{0, 0, 0, w_.kernel};
    const int64_t zero = 0;

    const int64_t w_begin = w_.position(q_begin, 0);
    const T* source = input_.at(n, c, h_begin, w_begin);
    int64_t source_row = slot_step_ * input_.stride[2];
    const T* last = source + std::max<int64_t>(0, (slots - 1) * source_row) + (w_.extent() - 1) * group_;
    const bool staged = staged_row_ && !(direct_ && can_read(last + (pairs_ ? 2 : 1) * kernels_.lanes));
    if (staged) {
        stage(n, c, h_begin, slots, w_begin, scratch.staged);
        source = scratch.staged;
        source_row = staged_row_;
    }
    const std::vector<int64_t>& columns = staged ? staged_columns_ : direct_columns_;
    const T* const first_codes = first_columns_.empty() ? nullptr : first_columns_.data() + q_begin * group_;
    if (separable_) {
        PoolMax<T> job = job_of({0, 0, 0, 1}, all_columns, columns, scratch);
        scratch.rows_of_taps[0] = source;
        job.first_codes = first_codes;
        job.value_step = source_row;
        job.rows = slots;
        job.columns = std::max<int64_t>(block_columns_ * group_, kernels_.lanes);  // a ranked row has room for a vector
        job.output = scratch.ranked;
        job.output_step = job.code_step = ranked_row_;
        if (indices_.data || codes_.data) job.code_lanes = scratch.ranked + ranked_row_ / 2;
        kernels_.pool_max(job);
        source = scratch.ranked;
        source_row = ranked_row_;
    }
    for (const WindowRun& run : row_runs_) {
        const int64_t p = std::max(p_begin, run.begin), end = std::min(p_end, run.end);
        if (p >= end) continue;
        if (run.is_empty()) {
            for (int64_t row = p; row < end; ++row)
                for (int64_t q = q_begin; q < q_begin + block_columns_; ++q) write_empty(n, c, row, q);
            continue;
        }
        PoolMax<T> job = job_of(run, all_columns, columns, scratch);
        for (int64_t r = run.tap_begin; r < run.tap_end; ++r)
            scratch.rows_of_taps[r] =
                source + (block_rows_ == 1 ? r - run.tap_begin : h_.position(p, r) - h_begin) * source_row;
        job.pairs = pairs_ && !staged;
        if (separable_) {
            job.tap_columns = 1;
            job.offsets = &zero;
            job.rank_offset = indices_.data || codes_.data ? ranked_row_ / 2 : 0;
        } else {
            job.first_codes = first_codes;
        }
        job.value_step = h_.stride * source_row;
        job.rows = end - p;
        job.columns = block_columns_ * group_;
        emit(job, {n, c, p, q_begin, 2, block_columns_, group_}, scratch);
    }
    for (const WindowRun& run : column_runs_) {
        if (!run.is_empty()) continue;
        for (int64_t p = p_begin; p < p_end; ++p)
            for (int64_t q = run.begin; q < run.end; ++q) write_empty(n, c, p, q);
    }
}

}  // namespace

template <class T>
void max_pool2d(const PoolProblem& problem, TensorView<const T> input, TensorView<T> output,
                TensorView<int64_t> indices, TensorView<uint8_t> codes) {
    if (output.size() == 0) return;
    const Axis &h = problem.h, &w = problem.w;
    const int64_t channels = problem.channels;
    const bool adjacent = input.stride[1] == 1 && output.stride[1] == 1 && (!codes.data || codes.stride[1] == 1);
    const bool vectors = adjacent && channels >= kernel_set<T>(active_kernels()).lanes;
    // Taken apart, windows of many channels pay for being staged as well.
    const bool large = h.kernel > h.stride && h.stride * (w.kernel + 2) + h.kernel + 1 < problem.taps() / 2;
    if (vectors && !large) return Forward<T>(problem, input, output, indices, codes, channels).run_channels();

    const int64_t group = adjacent ? std::min<int64_t>(channels, 32) : 1;
    if (group == 1 && !indices.data && rows_are_tiled(h) && planes_are_stacked(input) && planes_are_stacked(output) &&
        (!codes.data || planes_are_stacked(codes))) {
        const PoolProblem tall = stack_planes(problem);
        return Forward<T>(tall, stack_planes(input), stack_planes(output), {}, stack_planes(codes), 1).run_planes();
    }
    const auto run = [&](int64_t first, int64_t count, int64_t size) {
        const auto part = [&](auto view) {
            view.data += view.data ? first * view.stride[1] : 0;
            view.shape[1] = count;
            return view;
        };
        PoolProblem some = problem;
        some.channels = count;
        Forward<T>(some, part(input), part(output), part(indices), part(codes), size).run_planes();
    };
    const int64_t rest = channels % group;
    run(0, channels - rest, group);
    if (rest) run(channels - rest, rest, rest);
}

template void max_pool2d(const PoolProblem&, TensorView<const float>, TensorView<float>, TensorView<int64_t>,
                         TensorView<uint8_t>);
template void max_pool2d(const PoolProblem&, TensorView<const double>, TensorView<double>, TensorView<int64_t>,
                         TensorView<uint8_t>);

}  // namespace convx
