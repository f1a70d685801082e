// Max-pooling of adjacent channels. A block is pixels x channels, a stream is the pixel under one tap, nothing is
// copied, and windows at the border leave out the taps that they lack.
#include "cpu/max_pool2d/max_blocks.h"

namespace convx {

template <class T>
class PoolChannels : MaxBlocks<T> {
    using Base = MaxBlocks<T>;
    using Base::codes_, Base::column_runs_, Base::direct_columns_, Base::group_, Base::h_, Base::index_cells_,
        Base::index_ramp_, Base::indices_, Base::input_, Base::kernel_writes_indices_, Base::output_, Base::problem_,
        Base::row_runs_, Base::w_;

public:
    static constexpr const char* name = "channels";

    static Verdict supports(const PoolForward<T>& pass, const KernelSet<T>& kernels) {
        if (!channels_are_adjacent(pass.input, pass.output, pass.codes) || pass.problem.channels < kernels.lanes)
            return {"needs a vector of adjacent channels"};
        return {};
    }
    // Large windows that overlap in rows pay for a padded tile: planes.cpp separates their rows from their columns.
    static bool suits(const PoolForward<T>& pass, const KernelSet<T>&) {
        const Axis &h = pass.problem.h, &w = pass.problem.w;
        return h.kernel <= h.stride || h.stride * (w.kernel + 2) + h.kernel + 1 >= pass.problem.taps() / 2;
    }

    PoolChannels(const PoolForward<T>& pass, const KernelSet<T>& kernels) : Base(pass, kernels, pass.problem.channels) {
        if (kernel_writes_indices_)
            index_ramp_.resize(static_cast<size_t>(group_ + widest_vector));
        else if (indices_.data)
            index_cells_ = std::max<int64_t>(4096, group_);
    }

    TaskPlan tasks() const { return pool_tasks<Scratch>(problem_, units_, *this); }
    void describe(PassPlan& plan) const {
        plan.tile = std::to_string(this->kernels_.lanes) + " channels";
        plan.block = std::to_string(units_.step) + " rows of windows";
        plan.reason = "vectors over channels, which are adjacent";
    }
    Outcome run() const {
        run_units<Scratch>(*this, units_, [&](int64_t begin, int64_t end, const Scratch& scratch) {
            for (int64_t row = begin; row < end; ++row)
                run_row(row / problem_.out_h(), row % problem_.out_h(), scratch);
            return true;
        });
        return Outcome::done;
    }

private:
    struct Scratch {
        Scratch(ScratchParts& parts, const PoolChannels& driver)
            : rows_of_taps(parts.take<const T*>(driver.h_.kernel)), results(driver.take_results(parts)) {}
        const T** rows_of_taps;
        typename Base::Results results;
    };

    void run_row(int64_t n, int64_t p, const Scratch& scratch) const {
        const WindowRun& rows = run_of(row_runs_, p);
        const int64_t step = w_.stride * input_.stride[3];
        const bool dense = step == group_ && output_.stride[3] == group_ && !indices_.data &&
                           (!codes_.data || codes_.stride[3] == group_);
        const int64_t most = index_cells_ ? index_cells_ / group_ : problem_.out_w();
        for (const WindowRun& columns : column_runs_)
            for (int64_t q = columns.begin; q < columns.end; q += most) {
                const int64_t pixels = std::min(most, columns.end - q);
                if (rows.is_empty() || columns.is_empty()) {
                    for (int64_t pixel = 0; pixel < pixels; ++pixel) this->write_empty(n, 0, p, q + pixel);
                    continue;
                }
                PoolMaxArgs<T> args = this->args_of(rows, columns, direct_columns_, scratch.rows_of_taps);
                for (int64_t r = rows.tap_begin; r < rows.tap_end; ++r)
                    scratch.rows_of_taps[r] = input_.at(n, 0, h_.position(p, r), w_.position(q, 0));
                args.value_step = step;
                args.rows = dense ? 1 : pixels;
                args.columns = dense ? pixels * group_ : group_;
                this->emit(args, {n, 0, p, q, 3, 1, group_}, scratch.results);
            }
    }

    // Rows of windows of all images.
    const PoolUnits units_{problem_.batch * problem_.out_h(), w_.input * group_ * h_.stride};
};

template const PoolMethod<PoolForward<float>>& pool_method<PoolChannels, PoolForward<float>>();
template const PoolMethod<PoolForward<double>>& pool_method<PoolChannels, PoolForward<double>>();

}  // namespace convx
