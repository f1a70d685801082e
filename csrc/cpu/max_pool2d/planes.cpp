// Max-pooling of planes. A block is rows x columns of one (n, c) plane. Its input rows are staged first: padded with
// -inf, and split by the residue of the column modulo the stride, so that one tap of neighbouring windows reads
// neighbouring elements. Rows that can be read like that as they lie are not staged; nor are those of windows of two
// columns at stride 2, whose taps the kernel takes apart itself. A column may be a group of adjacent channels: NHWC
// with fewer channels than a vector, or with windows that are better taken apart.
//
// Windows that overlap in rows are taken apart where that pays: first the best of each input row under the window's
// columns, then the best of R of those. That keeps the row-major order of ties and NaNs and takes S - 1 + R - 1
// comparisons instead of R * S - 1.
#include <cstdlib>

#include "cpu/max_pool2d/nest.h"

namespace convx {

namespace {

constexpr int64_t l1_bytes = 24 << 10, l2_bytes = 128 << 10;  // for the rows of a block
constexpr int64_t block_elements = 512;                       // of one row of a block, unless groups are large
constexpr int64_t block_cells = int64_t{1} << 14;

int64_t whole_vectors(int64_t n) { return round_up(n, widest_vector); }

template <class T>
class PlanesNest : PoolNest<T> {
    using Base = PoolNest<T>;
    using Base::code_cells_, Base::codes_, Base::column_runs_, Base::direct_columns_, Base::group_, Base::h_,
        Base::index_cells_, Base::index_ramp_, Base::indices_, Base::input_, Base::kernel_writes_indices_,
        Base::kernels_, Base::output_, Base::output_cells_, Base::problem_, Base::row_runs_, Base::tap_codes_, Base::w_;

public:
    PlanesNest(const PoolProblem& problem, const TensorView<const T>& input, const PoolOutputs<T>& outputs,
               int64_t group)
        : Base(problem, input, outputs, group) {
        plan();
    }

    // What one worker works with; a part that the problem does not need is empty.
    struct Scratch {
        Scratch(ScratchParts parts, const PlanesNest& nest)
            : rows_of_taps(parts.take<const T*>(nest.h_.kernel)), staged(parts.take<T>(nest.slots_ * nest.staged_row_)),
              ranked(parts.take<T>(nest.slots_ * nest.ranked_row_)), results(nest.take_results(parts)),
              bytes(parts.bytes()) {}
        const T** rows_of_taps;
        T* staged;
        T* ranked;
        typename Base::Results results;
        int64_t bytes;
    };

    void run() const;

private:
    void plan();
    void plan_rows(bool separable);
    void run_block(int64_t n, int64_t c, int64_t p_begin, int64_t p_end, int64_t q_begin, const Scratch& scratch) const;
    void stage(int64_t n, int64_t c, int64_t h_begin, int64_t slots, int64_t w_begin, T* staged) const;
    bool can_read(const T* end) const { return end <= input_end_; }

    bool direct_ = false;  // rows are streams as they lie
    bool pairs_ = false;   // and two of them each
    bool separable_ = false;
    int64_t block_rows_ = 1, block_columns_ = 1;
    int64_t slots_ = 0;              // input rows of a block
    int64_t slot_step_ = 1;          // input rows from one slot to the next
    std::vector<int64_t> residues_;  // modulo the stride, of the columns that taps read
    int64_t residue_columns_ = 0, residue_width_ = 0, staged_row_ = 0, ranked_row_ = 0;
    std::vector<int64_t> staged_columns_;  // per s: where its values begin in a staged row
    std::vector<T> first_columns_;         // per column: code of the first s inside the image, unless 0 for all
    const T* input_end_ = nullptr;         // behind the last element in memory
};

// How planes are cut and staged: by the problem, the strides and the vector length.
template <class T>
void PlanesNest<T>::plan() {
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
    if (std::any_of(column_runs_.begin(), column_runs_.end(), [](const WindowRun& run) { return run.tap_begin > 0; })) {
        first_columns_.resize(static_cast<size_t>(columns * group_ + widest_vector));
        for (const WindowRun& run : column_runs_)
            std::fill(first_columns_.begin() + run.begin * group_, first_columns_.begin() + run.end * group_,
                      tap_codes_[static_cast<size_t>(run.tap_begin)]);
    }

    if (!pairs_ && w_.kernel > 1 && h_.kernel > 1) {
        plan_rows(true);
        separable_ = slots_ * (w_.kernel + 1) + block_rows_ * (h_.kernel + 1) < block_rows_ * problem_.taps();
    }
    if (!separable_) plan_rows(false);
    const int64_t cells = block_rows_ * block_columns_ * group_;
    if (!are_adjacent(output_, block_columns_, group_)) output_cells_ = cells;
    if (codes_.data && !are_adjacent(codes_, block_columns_, group_)) code_cells_ = cells;
    if (indices_.data && !kernel_writes_indices_) index_cells_ = cells;
    for (int64_t i = 0; kernel_writes_indices_ && i < block_columns_ * group_ + widest_vector; ++i)
        index_ramp_.push_back(static_cast<int32_t>(i / group_ * w_.stride));
}

// As many rows as stay in L1; more, where overlapping windows would have most of them staged twice; one at a time, with
// its taps alone, where rows are far apart.
template <class T>
void PlanesNest<T>::plan_rows(bool separable) {
    const bool codes = indices_.data || codes_.data;
    const int64_t block = std::max<int64_t>(block_columns_ * group_, kernels_.lanes);
    const bool stages = !direct_ || block > block_columns_ * group_;
    staged_row_ = stages ? static_cast<int64_t>(residues_.size()) * residue_width_ : 0;
    ranked_row_ = separable ? (codes ? 2 : 1) * whole_vectors(block) : 0;
    int64_t slots = std::max<int64_t>(1, pool_task_elements / (w_.input * group_));
    if (const int64_t bytes = (staged_row_ + ranked_row_) * int64_t{sizeof(T)})
        slots = std::max(l1_bytes / bytes, std::min(l2_bytes / bytes, h_.extent() + 7 * h_.stride));
    block_rows_ = h_.stride > h_.extent() ? 1 : std::max<int64_t>(1, (slots - h_.extent()) / h_.stride + 1);
    block_rows_ = std::min({block_rows_, problem_.out_h(), std::max<int64_t>(1, block_cells / block)});
    slots_ = block_rows_ == 1 ? h_.kernel : (block_rows_ - 1) * h_.stride + h_.extent();
    slot_step_ = block_rows_ == 1 ? h_.dilation : 1;
}

template <class T>
void PlanesNest<T>::run() const {
    const int64_t groups = problem_.channels / group_, rows = problem_.out_h(), columns = problem_.out_w();
    const int64_t blocks = ceil_div(rows, block_rows_);
    const int64_t units = problem_.batch * groups * blocks;
    const int64_t task_units = std::max<int64_t>(1, pool_task_elements / (w_.input * group_ * block_rows_ * h_.stride));
    // Where channels lie closer than pixels, they take turns within a block of rows: its lines are in cache then.
    const bool channels_inside = std::abs(input_.stride[1]) < std::abs(input_.stride[3]);
    run_pool_tasks(*this, pool_width(problem_, sizeof(T)), ceil_div(units, task_units),
                   [&](int64_t task, const Scratch& scratch) {
                       const int64_t end = std::min(units, (task + 1) * task_units);
                       BlockCounter at(task * task_units, groups, blocks, channels_inside);
                       for (int64_t unit = task * task_units; unit < end; ++unit, at.next()) {
                           const int64_t p = at.block * block_rows_;
                           // The last block of a row overlaps its neighbour, so that all are equally wide.
                           for (int64_t q = 0; q < columns; q += block_columns_)
                               run_block(at.n, at.group * group_, p, std::min(rows, p + block_rows_),
                                         std::min(q, columns - block_columns_), scratch);
                       }
                   });
}

// Stages `slots` rows from h_begin on: lane l of a residue holds column w_begin + residue + l * stride.
template <class T>
void PlanesNest<T>::stage(int64_t n, int64_t c, int64_t h_begin, int64_t slots, int64_t w_begin, T* staged) const {
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
void PlanesNest<T>::run_block(int64_t n, int64_t c, int64_t p_begin, int64_t p_end, int64_t q_begin,
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
        PoolMax<T> job = this->job_of({0, 0, 0, 1}, all_columns, columns, scratch.rows_of_taps);
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
                for (int64_t q = q_begin; q < q_begin + block_columns_; ++q) this->write_empty(n, c, row, q);
            continue;
        }
        PoolMax<T> job = this->job_of(run, all_columns, columns, scratch.rows_of_taps);
        for (int64_t r = run.tap_begin; r < run.tap_end; ++r)
            scratch.rows_of_taps[r] =
                source + (block_rows_ == 1 ? r - run.tap_begin : h_.position(p, r) - h_begin) * source_row;
        job.pairs = pairs_ && !staged;
        job.column_step = job.pairs ? 2 : 1;
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
        this->emit(job, {n, c, p, q_begin, 2, block_columns_, group_}, scratch.results);
    }
    for (const WindowRun& run : column_runs_) {
        if (!run.is_empty()) continue;
        for (int64_t p = p_begin; p < p_end; ++p)
            for (int64_t q = run.begin; q < run.end; ++q) this->write_empty(n, c, p, q);
    }
}

}  // namespace

template <class T>
void max_pool2d_planes(const PoolProblem& problem, const TensorView<const T>& input, const PoolOutputs<T>& outputs,
                       int64_t group) {
    PlanesNest<T>(problem, input, outputs, group).run();
}

template void max_pool2d_planes(const PoolProblem&, const TensorView<const float>&, const PoolOutputs<float>&, int64_t);
template void max_pool2d_planes(const PoolProblem&, const TensorView<const double>&, const PoolOutputs<double>&,
                                int64_t);

}  // namespace convx
