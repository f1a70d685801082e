// Max-pooling, forward: two loop nests over one kernel (kernels/max_pool2d.inl.h).
//
//  - channels: the channels of a pixel are adjacent (NHWC) and at least a vector. A block is pixels x channels, a stream
//    is the pixel under one tap, nothing is copied, and windows at the border leave out the taps that they lack.
//  - planes: everything else. A block is rows x columns of one (n, c) plane. Its input rows are staged first: padded with
//    -inf, and split by the residue of the column modulo the stride, so that one tap of neighbouring windows reads
//    neighbouring elements. Where rows can be read like that as they lie, nothing is staged.
//
// Windows that overlap in rows are taken apart where that pays: first the best of each input row under the window's
// columns, then the best of R of those. That keeps the row-major order of ties and NaNs and takes S - 1 + R - 1
// comparisons instead of R * S - 1.
#include "cpu/max_pool2d.h"

#include <cstdlib>
#include <limits>

#include "cpu/memory_bound.h"
#include "cpu/pool_axis.h"
#include "cpu/registry.h"
#include "cpu/scratch_parts.h"
#include "cpu/thread_pool.h"
#include "cpu/workspace.h"

namespace convx {

namespace {

constexpr int64_t task_elements = int64_t{1} << 15;  // input elements of one task
constexpr int64_t block_bytes = 24 << 10;            // staged and ranked rows of one block: L1
constexpr int64_t block_columns_limit = 512;
constexpr int64_t block_cells = int64_t{1} << 14;  // results of one block that do not go where they belong at once
constexpr int64_t widest_vector = 16;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t n) { return ceil_div(n, widest_vector) * widest_vector; }

// Where a block of results goes: the cell of its corner, and the axes that its rows and columns run along.
struct Place {
    int64_t n, c, p, q;
    int row_axis, column_axis;

    template <class U>
    U* in(const TensorView<U>& view) const {
        return view.at(n, c, p, q);
    }
};

template <class T>
class Forward {
public:
    Forward(const PoolProblem& problem, const TensorView<const T>& input, const TensorView<T>& output,
            const TensorView<int64_t>& indices, const TensorView<uint8_t>& codes)
        : problem_(problem), input_(input), output_(output), indices_(indices), codes_(codes) {
        for (int64_t r = 0; r < h_.kernel; ++r)
            for (int64_t s = 0; s < w_.kernel; ++s) {
                tap_codes_.push_back(static_cast<T>(r * w_.kernel + s));
                index_offsets_.push_back(r * h_.dilation * w_.input + s * w_.dilation);
            }
    }

    void run() {
        const bool adjacent_channels =
            input_.stride[1] == 1 && output_.stride[1] == 1 && (!codes_.data || codes_.stride[1] == 1);
        if (adjacent_channels && problem_.channels >= kernels_.lanes)
            run_channels();
        else
            run_planes();
    }

private:
    // What one worker works with; a part that the problem does not need is empty.
    struct Scratch {
        Scratch(ScratchParts parts, const Forward& f)
            : values(parts.take<const T*>(f.taps())),
              codes(parts.take<T>(f.taps())),
              staged(parts.take<T>(f.staged_ ? f.slots_ * f.staged_row_ : 0)),
              ranked(parts.take<T>(f.separable_ ? f.slots_ * f.ranked_row_ : 0)),
              output(parts.take<T>(f.output_cells_)),
              code_bytes(parts.take<uint8_t>(f.code_cells_)),
              code_lanes(parts.take<T>(f.index_cells_)),
              bytes(parts.bytes()) {}
        const T** values;  // one stream per tap
        T* codes;
        T* staged;
        T* ranked;
        T* output;  // results on their way
        uint8_t* code_bytes;
        T* code_lanes;
        int64_t bytes;
    };

    int64_t taps() const { return problem_.taps(); }

    template <class Body>
    void run_tasks(int64_t tasks, const Body& body) {
        const int64_t compared = (input_.size() + output_.size() * taps()) * static_cast<int64_t>(sizeof(T));
        const int width = compared < parallel_bytes ? 1 : num_threads();
        const int64_t worker_bytes = Scratch(ScratchParts(), *this).bytes;
        const Workspace workspace(static_cast<size_t>(worker_bytes * width));
        parallel_for(tasks, width, [&](int64_t task, int worker) {
            body(task, Scratch(ScratchParts(static_cast<char*>(workspace.data()) + worker * worker_bytes), *this));
        });
    }

    // Runs the kernel on a job that lacks its outputs, and brings these to where they belong.
    void emit(PoolMax<T>& job, void (*kernel)(const PoolMax<T>&), const Place& to, const Scratch& scratch) const {
        job.output = output_cells_ ? scratch.output : to.in(output_);
        job.output_step = output_cells_ ? job.columns : output_.stride[to.row_axis];
        job.code_bytes = !codes_.data ? nullptr : code_cells_ ? scratch.code_bytes : to.in(codes_);
        job.code_lanes = index_cells_ ? scratch.code_lanes : nullptr;
        job.code_step = code_cells_ || index_cells_ ? job.columns : codes_.stride[to.row_axis];
        kernel(job);
        if (output_cells_) scatter(scratch.output, output_, job, to);
        if (code_cells_) scatter(scratch.code_bytes, codes_, job, to);
        if (index_cells_) write_indices(scratch.code_lanes, job, to);
    }

    template <class U>
    static void scatter(const U* from, const TensorView<U>& view, const PoolMax<T>& job, const Place& to) {
        const int64_t step = view.stride[to.column_axis];
        for (int64_t row = 0; row < job.rows; ++row, from += job.columns) {
            U* at = to.in(view) + row * view.stride[to.row_axis];
            for (int64_t j = 0; j < job.columns; ++j) at[j * step] = from[j];
        }
    }

    void write_indices(const T* chosen, const PoolMax<T>& job, const Place& to) const {
        const bool planes = to.column_axis == 3;
        const int64_t row_step = planes ? h_.stride * w_.input : w_.stride;
        const int64_t column_step = planes ? w_.stride : 0;
        const int64_t step = indices_.stride[to.column_axis];
        int64_t origin = h_.position(to.p, 0) * w_.input + w_.position(to.q, 0);
        for (int64_t row = 0; row < job.rows; ++row, origin += row_step, chosen += job.columns) {
            int64_t* at = to.in(indices_) + row * indices_.stride[to.row_axis];
            for (int64_t j = 0; j < job.columns; ++j)
                at[j * step] = origin + j * column_step + index_offsets_[static_cast<size_t>(static_cast<int32_t>(chosen[j]))];
        }
    }

    // For a window without a tap inside the image.
    void write_empty(int64_t n, int64_t c, int64_t p, int64_t q) const {
        *output_.at(n, c, p, q) = -std::numeric_limits<T>::infinity();
        if (indices_.data) *indices_.at(n, c, p, q) = no_gradient_index;
        if (codes_.data) *codes_.at(n, c, p, q) = no_gradient_code;
    }

    void run_channels();
    void channels_row(int64_t n, int64_t p, const Scratch& scratch) const;

    void plan_planes();
    void run_planes();
    void plane_block(int64_t n, int64_t c, int64_t p_begin, int64_t p_end, int64_t q_begin, int64_t q_end,
                     const Scratch& scratch) const;

    const PoolProblem& problem_;
    const Axis &h_ = problem_.h, &w_ = problem_.w;
    const TensorView<const T> input_;
    const TensorView<T> output_;
    const TensorView<int64_t> indices_;
    const TensorView<uint8_t> codes_;
    const KernelSet<T>& kernels_ = kernel_set<T>(active_kernels());
    const std::vector<WindowRun> row_runs_ = window_runs(h_), column_runs_ = window_runs(w_);
    std::vector<T> tap_codes_;            // 0, 1, ..., R * S - 1
    std::vector<int64_t> index_offsets_;  // index under a tap less that of the window's origin
    int64_t output_cells_ = 0, code_cells_ = 0, index_cells_ = 0;

    // Planes only.
    bool staged_ = false, pairs_ = false, separable_ = false;
    int64_t block_rows_ = 1, block_columns_ = 1;
    int64_t slots_ = 0;      // input rows of a block
    int64_t slot_step_ = 1;  // input rows from one slot to the next
    int64_t phase_width_ = 0, staged_row_ = 0, ranked_row_ = 0;
    std::vector<int64_t> phases_;        // residues modulo the stride of the columns that taps read
    std::vector<int64_t> tap_columns_;   // per s: where its values begin in a staged row
    std::vector<T> first_columns_;       // per q: the first s inside the image, if that is not 0 for all
};

template <class T>
void Forward<T>::run_channels() {
    if (indices_.data) index_cells_ = std::max(block_cells, problem_.channels);
    const int64_t rows_per_image = problem_.out_h();
    const int64_t rows = problem_.batch * rows_per_image;
    const int64_t task_rows = std::max<int64_t>(1, task_elements / (w_.input * problem_.channels * h_.stride));
    run_tasks(ceil_div(rows, task_rows), [&](int64_t task, const Scratch& scratch) {
        for (int64_t row = task * task_rows; row < std::min(rows, (task + 1) * task_rows); ++row)
            channels_row(row / rows_per_image, row % rows_per_image, scratch);
    });
}

template <class T>
void Forward<T>::channels_row(int64_t n, int64_t p, const Scratch& scratch) const {
    const WindowRun& rows = run_of(row_runs_, p);
    const int64_t channels = problem_.channels;
    const int64_t step = w_.stride * input_.stride[3];
    const bool dense = step == channels && output_.stride[3] == channels && (!codes_.data || codes_.stride[3] == channels);
    const int64_t most = index_cells_ ? index_cells_ / channels : problem_.out_w();
    for (const WindowRun& columns : column_runs_) {
        if (rows.is_empty() || columns.is_empty()) {
            for (int64_t q = columns.begin; q < columns.end; ++q)
                for (int64_t c = 0; c < channels; ++c) write_empty(n, c, p, q);
            continue;
        }
        for (int64_t q = columns.begin; q < columns.end; q += most) {
            PoolMax<T> job{};
            job.values = scratch.values;
            job.codes = scratch.codes;
            for (int64_t r = rows.tap_begin; r < rows.tap_end; ++r)
                for (int64_t s = columns.tap_begin; s < columns.tap_end; ++s) {
                    scratch.values[job.taps] = input_.at(n, 0, h_.position(p, r), w_.position(q, s));
                    scratch.codes[job.taps++] = tap_codes_[static_cast<size_t>(r * w_.kernel + s)];
                }
            job.value_step = step;
            job.rows = std::min(most, columns.end - q);
            job.columns = channels;
            if (dense && !index_cells_) {
                job.columns *= job.rows;
                job.rows = 1;
            }
            emit(job, kernels_.pool_max, {n, 0, p, q, 3, 1}, scratch);
        }
    }
}

// How planes are cut and staged: by the problem, the strides and the vector length.
template <class T>
void Forward<T>::plan_planes() {
    const int64_t rows = problem_.out_h(), columns = problem_.out_w(), lanes = kernels_.lanes;
    const bool inside = column_runs_.size() == 1 && !column_runs_[0].is_empty() &&
                        column_runs_[0].tap_end - column_runs_[0].tap_begin == w_.kernel;
    const bool readable = inside && input_.stride[3] == 1 && columns >= lanes;
    pairs_ = readable && w_.kernel == 2 && w_.stride == 2 && w_.dilation == 1;
    staged_ = !pairs_ && !(readable && w_.stride == 1);
    const bool wants_codes = indices_.data || codes_.data;

    block_columns_ = std::min(columns, round_up(ceil_div(columns, ceil_div(columns, block_columns_limit))));
    const int64_t readable_columns = std::max(block_columns_, lanes);
    if (staged_) {
        for (int64_t s = 0; s < w_.kernel; ++s) {
            const int64_t phase = s * w_.dilation % w_.stride;
            const auto known = std::find(phases_.begin(), phases_.end(), phase);
            tap_columns_.push_back(known - phases_.begin());
            if (known == phases_.end()) phases_.push_back(phase);
        }
        phase_width_ = round_up((w_.extent() - 1) / w_.stride + readable_columns);
        staged_row_ = static_cast<int64_t>(phases_.size()) * phase_width_;
        for (int64_t s = 0; s < w_.kernel; ++s)
            tap_columns_[static_cast<size_t>(s)] =
                tap_columns_[static_cast<size_t>(s)] * phase_width_ + s * w_.dilation / w_.stride;
        if (column_runs_[0].tap_begin > 0) {
            first_columns_.resize(static_cast<size_t>(columns + widest_vector));
            for (const WindowRun& run : column_runs_)
                std::fill(first_columns_.begin() + run.begin, first_columns_.begin() + run.end, static_cast<T>(run.tap_begin));
        }
    } else {
        for (int64_t s = 0; s < w_.kernel; ++s) tap_columns_.push_back(s * w_.dilation);
    }

    // As many rows as fit; where rows are few or far apart, one at a time with its taps alone.
    const auto cut = [&](bool separable) {
        ranked_row_ = separable ? (wants_codes ? 2 : 1) * round_up(readable_columns) : 0;
        const int64_t slot_bytes = (staged_row_ + ranked_row_) * static_cast<int64_t>(sizeof(T));
        const int64_t fitting = slot_bytes ? block_bytes / slot_bytes : task_elements / w_.input;
        block_rows_ = h_.stride > h_.extent() ? 1 : std::max<int64_t>(1, (fitting - h_.extent()) / h_.stride + 1);
        block_rows_ = std::min({block_rows_, rows, std::max<int64_t>(1, block_cells / block_columns_)});
        slots_ = block_rows_ == 1 ? h_.kernel : (block_rows_ - 1) * h_.stride + h_.extent();
        slot_step_ = block_rows_ == 1 ? h_.dilation : 1;
    };
    if (!pairs_ && w_.kernel > 1 && h_.kernel > 1) {
        cut(true);
        const int64_t apart = slots_ * (w_.kernel + 1) + block_rows_ * (h_.kernel + 1);
        separable_ = apart < block_rows_ * taps();
        if (const char* e = getenv("SEP")) separable_ = atoi(e);
    }
    if (!separable_) cut(false);

    const int64_t cells = block_rows_ * block_columns_;
    if (output_.stride[3] != 1) output_cells_ = cells;
    if (codes_.data && codes_.stride[3] != 1) code_cells_ = cells;
    if (indices_.data) index_cells_ = cells;
}

template <class T>
void Forward<T>::run_planes() {
    plan_planes();
    const int64_t channels = problem_.channels, rows = problem_.out_h(), columns = problem_.out_w();
    const int64_t blocks = ceil_div(rows, block_rows_);
    const int64_t units = problem_.batch * channels * blocks;
    const int64_t task_units = std::max<int64_t>(1, task_elements / (w_.input * block_rows_ * h_.stride));
    // Where channels lie closer than pixels, they take turns within a block of rows: those lines are in cache then.
    const bool channels_inside = std::abs(input_.stride[1]) < std::abs(input_.stride[3]);
    run_tasks(ceil_div(units, task_units), [&](int64_t task, const Scratch& scratch) {
        for (int64_t unit = task * task_units; unit < std::min(units, (task + 1) * task_units); ++unit) {
            const int64_t n = unit / (channels * blocks), rest = unit % (channels * blocks);
            const int64_t c = channels_inside ? rest % channels : rest / blocks;
            const int64_t p = (channels_inside ? rest / channels : rest % blocks) * block_rows_;
            for (int64_t q = 0; q < columns; q += block_columns_)
                plane_block(n, c, p, std::min(rows, p + block_rows_), q, std::min(columns, q + block_columns_), scratch);
        }
    });
}

template <class T>
void Forward<T>::plane_block(int64_t n, int64_t c, int64_t p_begin, int64_t p_end, int64_t q_begin, int64_t q_end,
                             const Scratch& scratch) const {
    // The input rows that some tap reads.
    const WindowRun& first = run_of(row_runs_, p_begin);
    const WindowRun& last = run_of(row_runs_, p_end - 1);
    int64_t h_begin = h_.position(p_begin, first.tap_begin), h_last = h_.position(p_end - 1, last.tap_end - 1);
    if (block_rows_ > 1) {
        h_begin = std::max<int64_t>(0, h_.position(p_begin, 0));
        h_last = std::min(h_.input - 1, h_.position(p_end - 1, h_.kernel - 1));
    }
    const int64_t slots = std::max<int64_t>(0, (h_last - h_begin) / slot_step_ + 1);

    const T* source = input_.at(n, c, h_begin, w_.position(q_begin, 0));
    int64_t source_row = slot_step_ * input_.stride[2];
    if (staged_) {
        const int64_t w_begin = w_.position(q_begin, 0);
        for (size_t i = 0; i < phases_.size(); ++i) {
            // Lane l of a phase holds column w_begin + phase + l * stride.
            const int64_t w_first = w_begin + phases_[i];
            const int64_t skipped = w_first < 0 ? ceil_div(-w_first, w_.stride) : 0;
            const int64_t w_inside = w_first + skipped * w_.stride;
            const int64_t count = w_inside < w_.input ? (w_.input - 1 - w_inside) / w_.stride + 1 : 0;
            const LaneRun run{static_cast<int32_t>(skipped),
                              static_cast<int32_t>(std::max<int64_t>(0, std::min(count, phase_width_ - skipped))),
                              w_inside * input_.stride[3]};
            kernels_.pack_lanes(scratch.staged + static_cast<int64_t>(i) * phase_width_, staged_row_,
                                input_.at(n, c, h_begin, 0), source_row, slots, &run, run.count > 0,
                                static_cast<int>(phase_width_), w_.stride * input_.stride[3],
                                -std::numeric_limits<T>::infinity());
        }
        source = scratch.staged;
        source_row = staged_row_;
    }

    PoolMax<T> job{};
    job.values = scratch.values;
    job.columns = q_end - q_begin;
    if (!first_columns_.empty()) job.first_codes = first_columns_.data() + q_begin;
    if (separable_) {
        PoolMax<T> rows = job;
        rows.taps = static_cast<int>(w_.kernel);
        for (int64_t s = 0; s < w_.kernel; ++s) scratch.values[s] = source + tap_columns_[static_cast<size_t>(s)];
        rows.codes = tap_codes_.data();
        rows.value_step = source_row;
        rows.rows = slots;
        rows.columns = std::max<int64_t>(job.columns, kernels_.lanes);  // whole vectors: a ranked row has room for one
        rows.output = scratch.ranked;
        rows.output_step = rows.code_step = ranked_row_;
        if (indices_.data || codes_.data) {
            job.rank_offset = ranked_row_ / 2;
            rows.code_lanes = scratch.ranked + job.rank_offset;
        }
        kernels_.pool_max(rows);
        source = scratch.ranked;
        source_row = ranked_row_;
        job.first_codes = nullptr;
    }

    const bool by_rows = separable_ || pairs_;
    for (const WindowRun& run : row_runs_) {
        const int64_t p = std::max(p_begin, run.begin), end = std::min(p_end, run.end);
        if (p >= end) continue;
        if (run.is_empty()) {
            for (int64_t row = p; row < end; ++row)
                for (int64_t q = q_begin; q < q_end; ++q) write_empty(n, c, row, q);
            continue;
        }
        job.taps = 0;
        job.codes = scratch.codes;
        for (int64_t r = run.tap_begin; r < run.tap_end; ++r) {
            const T* row = source + (h_.position(p, r) - h_begin) / slot_step_ * source_row;
            for (int64_t s = 0; s < (by_rows ? 1 : w_.kernel); ++s) {
                scratch.values[job.taps] = row + (by_rows ? 0 : tap_columns_[static_cast<size_t>(s)]);
                scratch.codes[job.taps++] = tap_codes_[static_cast<size_t>(r * w_.kernel + s)];
            }
        }
        job.value_step = h_.stride * source_row;
        job.rows = end - p;
        emit(job, pairs_ ? kernels_.pool_max_pairs : kernels_.pool_max, {n, c, p, q_begin, 2, 3}, scratch);
    }
    for (const WindowRun& run : column_runs_) {
        if (!run.is_empty()) continue;
        for (int64_t p = p_begin; p < p_end; ++p)
            for (int64_t q = std::max(q_begin, run.begin); q < std::min(q_end, run.end); ++q) write_empty(n, c, p, q);
    }
}

}  // namespace

template <class T>
void max_pool2d(const PoolProblem& problem, TensorView<const T> input, TensorView<T> output,
                TensorView<int64_t> indices, TensorView<uint8_t> codes) {
    if (output.size() > 0) Forward<T>(problem, input, output, indices, codes).run();
}

template void max_pool2d(const PoolProblem&, TensorView<const float>, TensorView<float>, TensorView<int64_t>,
                         TensorView<uint8_t>);
template void max_pool2d(const PoolProblem&, TensorView<const double>, TensorView<double>, TensorView<int64_t>,
                         TensorView<uint8_t>);

}  // namespace convx
