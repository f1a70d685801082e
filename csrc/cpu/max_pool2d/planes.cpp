// Max-pooling of planes. A block is rows x columns of one (n, c) plane. Its input rows are staged first: padded with
// -inf, and split by the phase of the column modulo the stride, so that one tap of neighbouring windows reads
// neighbouring elements. Rows that can be read like that as they lie are not staged; nor are those of windows of two
// columns at stride 2, whose taps the kernel takes apart itself. A column may be a group of adjacent channels: NHWC
// with fewer channels than a vector, or with windows that are better taken apart.
//
// Windows that overlap in rows are taken apart where that pays: first the best of each input row under the window's
// columns, then the best of R of those. That keeps the row-major order of ties and NaNs and takes S - 1 + R - 1
// comparisons instead of R * S - 1.
#include <cstdlib>

#include "cpu/max_pool2d/max_blocks.h"

namespace convx {

namespace {

constexpr int64_t l1_bytes = 24 << 10, l2_bytes = 128 << 10;  // for the rows of a block
constexpr int64_t block_elements = 512;                       // of one row of a block, unless groups are large
constexpr int64_t block_cells = int64_t{1} << 14;

int64_t whole_vectors(int64_t n) { return round_up(n, widest_vector); }

}  // namespace

template <class T>
class PoolPlanes : MaxBlocks<T> {
    using Base = MaxBlocks<T>;
    using Base::code_cells_, Base::codes_, Base::column_runs_, Base::direct_columns_, Base::group_, Base::h_,
        Base::index_cells_, Base::index_ramp_, Base::indices_, Base::input_, Base::kernel_writes_indices_,
        Base::kernels_, Base::output_, Base::output_cells_, Base::problem_, Base::row_runs_, Base::tap_codes_, Base::w_;

public:
    static constexpr const char* name = "planes";
    static Verdict supports(const PoolForward<T>&, const KernelSet<T>&) { return {}; }
    static bool suits(const PoolForward<T>&, const KernelSet<T>&) { return true; }

    PoolPlanes(const PoolForward<T>& pass, const KernelSet<T>& kernels) : PoolPlanes(pass, kernels, group_of(pass)) {}

    TaskPlan tasks() const { return pool_tasks<Scratch>(problem_, units_, *this); }
    void describe(PassPlan& plan) const {
        plan.tile = std::to_string(kernels_.lanes) + (group_ == 1 ? " columns" : " columns x channels");
        plan.block = std::to_string(block_rows_) + " x " + std::to_string(block_columns_) + " windows";
        plan.reason =
            separable_ ? "the best of each row, then of the rows of a window" : "vectors over the columns of a plane";
    }
    Outcome run() const;

private:
    // Adjacent channels that are the elements of one column.
    static int64_t group_of(const PoolForward<T>& pass) {
        const bool adjacent = channels_are_adjacent(pass.input, pass.output, pass.codes);
        return adjacent ? std::min<int64_t>(pass.problem.channels, 32) : 1;
    }
    PoolPlanes(const PoolForward<T>& pass, const KernelSet<T>& kernels, int64_t group)
        : Base(whole_groups(pass, group), kernels, group), pass_(pass) {
        plan();
    }
    static PoolForward<T> channels_of(PoolForward<T> pass, int64_t begin, int64_t end) {
        const auto cut = [&](auto& view) {
            view.data += view.data ? begin * view.stride[1] : 0;
            view.shape[1] = end - begin;
        };
        cut(pass.input);
        cut(pass.output);
        cut(pass.indices);
        cut(pass.codes);
        pass.problem.channels = end - begin;
        return pass;
    }
    static PoolForward<T> whole_groups(const PoolForward<T>& pass, int64_t group) {
        if (group == 1 && !pass.indices.data && rows_are_tiled(pass.problem.h) &&
            planes_are_stacked(pass.input, pass.output, pass.codes))
            return {stack_planes(pass.problem),
                    stack_planes(pass.input),
                    stack_planes(pass.output),
                    {},
                    stack_planes(pass.codes)};
        return group == 1 ? pass : channels_of(pass, 0, pass.problem.channels / group * group);
    }

    // What one worker works with; a part that the problem does not need is empty.
    struct Scratch {
        Scratch(ScratchParts& parts, const PoolPlanes& driver)
            : rows_of_taps(parts.take<const T*>(driver.h_.kernel)),
              staged(parts.take<T>(driver.slots_ * driver.staged_row_)),
              ranked(parts.take<T>(driver.slots_ * driver.ranked_row_)), results(driver.take_results(parts)) {}
        const T** rows_of_taps;
        T* staged;
        T* ranked;
        typename Base::Results results;
    };

    void plan();
    void plan_rows(bool separable);
    void run_block(int64_t n, int64_t c, int64_t p_begin, int64_t p_end, int64_t q_begin, const Scratch& scratch) const;
    void stage(int64_t n, int64_t c, int64_t h_begin, int64_t slots, int64_t w_begin, T* staged) const;
    bool can_read(const T* end) const { return end <= input_end_; }

    const PoolForward<T>& pass_;
    RowBlocks blocks_{};
    PoolUnits units_{0, 1};
    bool direct_ = false;  // rows are streams as they lie
    bool pairs_ = false;   // and two of them each
    bool separable_ = false;
    int64_t block_rows_ = 1, block_columns_ = 1;
    int64_t slots_ = 0;            // input rows of a block
    int64_t slot_step_ = 1;        // input rows from one slot to the next
    std::vector<int64_t> phases_;  // modulo the stride, of the columns that taps read
    int64_t phase_columns_ = 0, phase_width_ = 0, staged_row_ = 0, ranked_row_ = 0;
    std::vector<int64_t> staged_columns_;  // per s: where its values begin in a staged row
    std::vector<T> first_columns_;         // per column: code of the first s inside the image, unless 0 for all
    const T* input_end_ = nullptr;         // behind the last element in memory
};

// How planes are cut and staged: by the problem, the strides and the vector length.
template <class T>
void PoolPlanes<T>::plan() {
    const int64_t columns = problem_.out_w(), lanes = kernels_.lanes;
    const bool inside = column_runs_.size() == 1 && column_runs_[0].count() == w_.kernel;
    pairs_ = inside && group_ == 1 && w_.stride == 2 && w_.kernel == 2 && w_.dilation == 1 && input_.stride[3] == 1;
    direct_ = pairs_ || (inside && w_.stride == 1 && are_adjacent(input_, 2, group_));
    input_end_ = end_of(input_);

    const int64_t limit = std::max<int64_t>(16, block_elements / group_);
    block_columns_ = ceil_div(columns, ceil_div(columns, limit));
    if (group_ == 1) block_columns_ = std::min(columns, whole_vectors(block_columns_));

    phases_.reserve(static_cast<size_t>(w_.kernel));
    staged_columns_.reserve(static_cast<size_t>(w_.kernel));
    for (int64_t s = 0; s < w_.kernel; ++s) {
        const int64_t phase = s * w_.dilation % w_.stride;
        if (std::find(phases_.begin(), phases_.end(), phase) == phases_.end()) phases_.push_back(phase);
    }
    if (w_.stride == 2) phases_ = {0, 1};  // staged at once, whether read or not
    phase_columns_ = (w_.extent() - 1) / w_.stride + block_columns_;
    phase_width_ = whole_vectors(phase_columns_ * group_ + 2 * lanes);
    for (int64_t s = 0; s < w_.kernel; ++s) {
        const auto phase = std::find(phases_.begin(), phases_.end(), s * w_.dilation % w_.stride);
        staged_columns_.push_back((phase - phases_.begin()) * phase_width_ + s * w_.dilation / w_.stride * group_);
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
    const int64_t groups = problem_.channels / group_;
    blocks_ = {groups, ceil_div(problem_.out_h(), block_rows_),
               std::abs(input_.stride[1]) < std::abs(input_.stride[3])};
    units_ = {problem_.batch * groups * blocks_.blocks, w_.input * group_ * block_rows_ * h_.stride};
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
void PoolPlanes<T>::plan_rows(bool separable) {
    const bool codes = indices_.data || codes_.data;
    const int64_t block = std::max<int64_t>(block_columns_ * group_, kernels_.lanes);
    const bool stages = !direct_ || block > block_columns_ * group_;
    staged_row_ = stages ? static_cast<int64_t>(phases_.size()) * phase_width_ : 0;
    ranked_row_ = separable ? (codes ? 2 : 1) * whole_vectors(block) : 0;
    int64_t slots = std::max<int64_t>(1, memory_bound_task_elements / (w_.input * group_));
    if (const int64_t bytes = (staged_row_ + ranked_row_) * int64_t{sizeof(T)})
        slots = std::max(l1_bytes / bytes, std::min(l2_bytes / bytes, h_.extent() + 7 * h_.stride));
    block_rows_ = h_.stride > h_.extent() ? 1 : std::max<int64_t>(1, (slots - h_.extent()) / h_.stride + 1);
    block_rows_ = std::min({block_rows_, problem_.out_h(), std::max<int64_t>(1, block_cells / block)});
    slots_ = block_rows_ == 1 ? h_.kernel : (block_rows_ - 1) * h_.stride + h_.extent();
    slot_step_ = block_rows_ == 1 ? h_.dilation : 1;
}

template <class T>
Outcome PoolPlanes<T>::run() const {
    const int64_t columns = problem_.out_w();
    run_units<Scratch>(*this, units_, [&](int64_t begin, int64_t end, const Scratch& scratch) {
        RowBlockCounter at(blocks_, begin);
        for (int64_t unit = begin; unit < end; ++unit, at.next()) {
            const int64_t p = at.block * block_rows_;
            // The last block of a row overlaps its neighbour, so that all are equally wide.
            for (int64_t q = 0; q < columns; q += block_columns_)
                run_block(at.n, at.group * group_, p, std::min(problem_.out_h(), p + block_rows_),
                          std::min(q, columns - block_columns_), scratch);
        }
        return true;
    });
    const int64_t channels = pass_.problem.channels, whole = channels / group_ * group_;
    return whole < channels ? PoolPlanes(channels_of(pass_, whole, channels), kernels_).run() : Outcome::done;
}

// Stages `slots` rows from h_begin on: lane l of a phase holds column w_begin + phase + l * stride.
template <class T>
void PoolPlanes<T>::stage(int64_t n, int64_t c, int64_t h_begin, int64_t slots, int64_t w_begin, T* staged) const {
    PoolStageArgs<T> args[2];
    for (size_t i = 0; i < phases_.size(); ++i) {
        PoolStageArgs<T>& own = args[i % 2];
        const int64_t first = w_begin + phases_[i];
        const int64_t skipped = first < 0 ? std::min(ceil_div(-first, w_.stride), phase_columns_) : 0;
        const int64_t column = first + skipped * w_.stride;
        const int64_t inside = column < w_.input ? (w_.input - 1 - column) / w_.stride + 1 : 0;
        own.staged = staged + static_cast<int64_t>(i) * phase_width_;
        own.staged_step = staged_row_;
        own.source = input_.at(n, c, h_begin, column);
        own.source_step = slot_step_ * input_.stride[2];
        own.rows = slots;
        own.before = skipped * group_;
        own.pixels = std::min(inside, phase_columns_ - skipped);
        own.after = (phase_columns_ - skipped - own.pixels) * group_;
        own.group = group_;
        own.pixel_step = w_.stride * input_.stride[3];
        own.fill = -std::numeric_limits<T>::infinity();
        own.beyond = can_read(own.source + std::max<int64_t>(0, (slots - 1) * own.source_step) +
                              std::max<int64_t>(0, (own.pixels - 1) * own.pixel_step) + group_ + 2 * kernels_.lanes);
        const bool both = w_.stride == 2 && group_ == 1 && input_.stride[3] == 1;
        if (!both)
            kernels_.pool_stage(own);
        else if (i == 1)
            args[0].source < own.source ? kernels_.pool_stage_pairs(args[0], own)
                                        : kernels_.pool_stage_pairs(own, args[0]);
    }
}

template <class T>
void PoolPlanes<T>::run_block(int64_t n, int64_t c, int64_t p_begin, int64_t p_end, int64_t q_begin,
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
        PoolMaxArgs<T> args = this->args_of({0, 0, 0, 1}, all_columns, columns, scratch.rows_of_taps);
        scratch.rows_of_taps[0] = source;
        args.first_codes = first_codes;
        args.value_step = source_row;
        args.rows = slots;
        args.columns =
            std::max<int64_t>(block_columns_ * group_, kernels_.lanes);  // a ranked row has room for a vector
        args.output = scratch.ranked;
        args.output_step = args.code_step = ranked_row_;
        if (indices_.data || codes_.data) args.code_lanes = scratch.ranked + ranked_row_ / 2;
        kernels_.pool_max(args);
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
        PoolMaxArgs<T> args = this->args_of(run, all_columns, columns, scratch.rows_of_taps);
        for (int64_t r = run.tap_begin; r < run.tap_end; ++r)
            scratch.rows_of_taps[r] =
                source + (block_rows_ == 1 ? r - run.tap_begin : h_.position(p, r) - h_begin) * source_row;
        args.pairs = pairs_ && !staged;
        args.column_step = args.pairs ? 2 : 1;
        if (separable_) {
            args.tap_columns = 1;
            args.offsets = &zero;
            args.rank_offset = indices_.data || codes_.data ? ranked_row_ / 2 : 0;
        } else {
            args.first_codes = first_codes;
        }
        args.value_step = h_.stride * source_row;
        args.rows = end - p;
        args.columns = block_columns_ * group_;
        this->emit(args, {n, c, p, q_begin, 2, block_columns_, group_}, scratch.results);
    }
    for (const WindowRun& run : column_runs_) {
        if (!run.is_empty()) continue;
        for (int64_t p = p_begin; p < p_end; ++p)
            for (int64_t q = run.begin; q < run.end; ++q) this->write_empty(n, c, p, q);
    }
}

template const PoolMethod<PoolForward<float>>& pool_method<PoolPlanes, PoolForward<float>>();
template const PoolMethod<PoolForward<double>>& pool_method<PoolPlanes, PoolForward<double>>();

}  // namespace convx
