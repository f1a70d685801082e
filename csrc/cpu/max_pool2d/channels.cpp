// Max-pooling of adjacent channels. A block is pixels x channels, a stream is the pixel under one tap, nothing is
// copied, and windows at the border leave out the taps that they lack.
#include "cpu/max_pool2d/nest.h"

namespace convx {

namespace {

template <class T>
class ChannelsNest : PoolNest<T> {
    using Base = PoolNest<T>;
    using Base::codes_, Base::column_runs_, Base::direct_columns_, Base::group_, Base::h_, Base::index_cells_,
        Base::index_ramp_, Base::indices_, Base::input_, Base::kernel_writes_indices_, Base::output_, Base::problem_,
        Base::row_runs_, Base::w_;

public:
    ChannelsNest(const PoolProblem& problem, const TensorView<const T>& input, const PoolOutputs<T>& outputs)
        : Base(problem, input, outputs, problem.channels) {
        if (kernel_writes_indices_)
            index_ramp_.resize(static_cast<size_t>(group_ + widest_vector));
        else if (indices_.data)
            index_cells_ = std::max<int64_t>(4096, group_);
    }

    struct Scratch {
        Scratch(ScratchParts parts, const ChannelsNest& nest)
            : rows_of_taps(parts.take<const T*>(nest.h_.kernel)), results(nest.take_results(parts)),
              bytes(parts.bytes()) {}
        const T** rows_of_taps;
        typename Base::Results results;
        int64_t bytes;
    };

    void run() const {
        const int64_t rows_per_image = problem_.out_h();
        const int64_t rows = problem_.batch * rows_per_image;
        const int64_t task_rows = std::max<int64_t>(1, pool_task_elements / (w_.input * group_ * h_.stride));
        run_pool_tasks(*this, pool_width(problem_, sizeof(T)), ceil_div(rows, task_rows),
                       [&](int64_t task, const Scratch& scratch) {
                           const int64_t end = std::min(rows, (task + 1) * task_rows);
                           for (int64_t row = task * task_rows; row < end; ++row)
                               run_row(row / rows_per_image, row % rows_per_image, scratch);
                       });
    }

private:
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
                PoolMax<T> job = this->job_of(rows, columns, direct_columns_, scratch.rows_of_taps);
                for (int64_t r = rows.tap_begin; r < rows.tap_end; ++r)
                    scratch.rows_of_taps[r] = input_.at(n, 0, h_.position(p, r), w_.position(q, 0));
                job.value_step = step;
                job.rows = dense ? 1 : pixels;
                job.columns = dense ? pixels * group_ : group_;
                this->emit(job, {n, 0, p, q, 3, 1, group_}, scratch.results);
            }
    }
};

}  // namespace

template <class T>
void max_pool2d_channels(const PoolProblem& problem, const TensorView<const T>& input, const PoolOutputs<T>& outputs) {
    ChannelsNest<T>(problem, input, outputs).run();
}

template void max_pool2d_channels(const PoolProblem&, const TensorView<const float>&, const PoolOutputs<float>&);
template void max_pool2d_channels(const PoolProblem&, const TensorView<const double>&, const PoolOutputs<double>&);

}  // namespace convx
