// Max-pooling of narrow dense planes. Rows of 7 or 14 elements are mostly tails and borders to vectors along them, so a
// vector of planes is transposed into lanes (one shuffle an element, in L1 and L2), pooled like adjacent channels,
// where windows at the border leave out the taps that they lack, and transposed back.
#include "cpu/max_pool2d/nest.h"

namespace convx {

namespace {

constexpr int64_t most_staged_bytes = 192 << 10;  // of a vector of planes, in L2 beside its results

template <class T>
class NarrowNest {
public:
    NarrowNest(const PoolProblem& problem, const TensorView<const T>& input, const PoolOutputs<T>& outputs)
        : problem_(problem), input_(input), outputs_(outputs) {
        for (int64_t r = 0; r < h_.kernel; ++r)
            for (int64_t s = 0; s < w_.kernel; ++s)
                tap_codes_.push_back(static_cast<T>(outputs.indices.data ? r * h_.dilation * w_.input + s * w_.dilation
                                                                         : r * w_.kernel + s));
        for (int64_t s = 0; s < w_.kernel; ++s) columns_of_taps_.push_back(s * w_.dilation * lanes_);
        if (!outputs.indices.data) return;
        for (int64_t p = 0; p < problem.out_h(); ++p)
            for (int64_t q = 0; q < problem.out_w(); ++q)
                origins_.push_back(static_cast<int32_t>(h_.position(p, 0) * w_.input + w_.position(q, 0)));
        origins_.resize(origins_.size() + widest_vector);
    }

    struct Scratch {
        Scratch(ScratchParts parts, const NarrowNest& nest)
            : rows_of_taps(parts.take<const T*>(nest.h_.kernel)),
              input(parts.take<T>((nest.h_.input * nest.w_.input + nest.lanes_) * nest.lanes_)),
              output(parts.take<T>(nest.cells_)), codes(parts.take<T>(nest.chooses_ ? nest.cells_ : 0)),
              bytes(parts.bytes()) {}
        const T** rows_of_taps;
        T *input, *output, *codes;
        int64_t bytes;
    };

    void run() const {
        const int64_t planes = problem_.batch * problem_.channels;
        const int64_t plane_elements = h_.input * w_.input;
        const int64_t task_planes = std::max<int64_t>(1, pool_task_elements / (plane_elements * lanes_)) * lanes_;
        run_pool_tasks(*this, pool_width(problem_, sizeof(T)), ceil_div(planes, task_planes),
                       [&](int64_t task, const Scratch& scratch) {
                           const int64_t end = std::min(planes, (task + 1) * task_planes);
                           for (int64_t plane = task * task_planes; plane < end; plane += lanes_)
                               run_planes(plane, static_cast<int>(std::min(lanes_, end - plane)), scratch);
                       });
    }

private:
    void run_planes(int64_t first, int count, const Scratch& scratch) const {
        const T* inputs[widest_vector];
        T* outputs[widest_vector];
        uint8_t* codes[widest_vector];
        int64_t* indices[widest_vector];
        int64_t n = first / problem_.channels, c = first % problem_.channels;
        for (int k = 0; k < lanes_; ++k) {
            inputs[k] = input_.at(n, c, 0, 0);
            outputs[k] = outputs_.values.at(n, c, 0, 0);
            if (outputs_.codes.data) codes[k] = outputs_.codes.at(n, c, 0, 0);
            if (outputs_.indices.data) indices[k] = outputs_.indices.at(n, c, 0, 0);
            if (k + 1 >= count) continue;  // lanes without a plane repeat the last one
            if (++c == problem_.channels) {
                c = 0;
                ++n;
            }
        }
        const int64_t columns = problem_.out_w();
        const int64_t plane = h_.input * w_.input;
        const bool numbers = kernels_.pool_pack(scratch.input, inputs, plane, lanes_ * plane);
        for (const WindowRun& rows : row_runs_)
            for (const WindowRun& run : column_runs_) pool(rows, run, numbers, scratch);
        PoolUnpack<T> job{};
        job.values = scratch.output;
        job.codes = scratch.codes;
        job.count = problem_.out_h() * columns;
        job.planes = count;
        job.ahead = lanes_ * job.count;
        job.outputs = outputs;
        job.code_bytes = outputs_.codes.data ? codes : nullptr;
        job.indices = outputs_.indices.data ? indices : nullptr;
        job.index_ramp = origins_.data();
        kernels_.pool_unpack(job);
    }

    void pool(const WindowRun& rows, const WindowRun& columns, bool numbers, const Scratch& scratch) const {
        const int64_t row = w_.input * lanes_, output_row = problem_.out_w() * lanes_;
        const int64_t to = rows.begin * output_row + columns.begin * lanes_;
        for (int64_t r = rows.tap_begin; r < rows.tap_end; ++r)
            scratch.rows_of_taps[r] =
                scratch.input + h_.position(rows.begin, r) * row + w_.position(columns.begin, 0) * lanes_;
        PoolMax<T> job{};
        job.tap_rows = static_cast<int>(rows.count());
        job.tap_columns = static_cast<int>(columns.count());
        job.rows_of_taps = scratch.rows_of_taps + rows.tap_begin;
        job.offsets = columns_of_taps_.data() + columns.tap_begin;
        job.codes = tap_codes_.data() + rows.tap_begin * w_.kernel + columns.tap_begin;
        job.code_row = w_.kernel;
        job.value_step = h_.stride * row;
        job.column_step = w_.stride;
        job.rows = rows.end - rows.begin;
        job.columns = (columns.end - columns.begin) * lanes_;
        job.output = scratch.output + to;
        job.output_step = job.code_step = output_row;
        job.code_lanes = chooses_ ? scratch.codes + to : nullptr;
        numbers ? kernels_.pool_max_numbers(job) : kernels_.pool_max(job);
    }

    const PoolProblem& problem_;
    const Axis &h_ = problem_.h, &w_ = problem_.w;
    const TensorView<const T> input_;
    const PoolOutputs<T> outputs_;
    const KernelSet<T>& kernels_ = kernel_set<T>(active_kernels());
    const int64_t lanes_ = kernels_.lanes;
    const std::vector<WindowRun> row_runs_ = window_runs(h_), column_runs_ = window_runs(w_);
    const bool chooses_ = outputs_.codes.data || outputs_.indices.data;
    const int64_t cells_ = (problem_.out_h() * problem_.out_w() + lanes_) * lanes_;
    std::vector<T> tap_codes_;              // per tap: r * S + s, or its index less that of the window's origin
    std::vector<int64_t> columns_of_taps_;  // per s: where its values begin in a row
    std::vector<int32_t> origins_;          // per cell of a plane, for indices
};

}  // namespace

template <class T>
bool max_pool2d_is_narrow(const PoolProblem& problem, const TensorView<const T>& input, const PoolOutputs<T>& outputs) {
    const int64_t lanes = kernel_set<T>(active_kernels()).lanes;
    const int64_t bytes = problem.h.input * problem.w.input * lanes * int64_t{sizeof(T)};
    // What the other nest takes apart in registers, it does faster unless a row is less than a vector or two.
    const bool pairs = problem.w.kernel == 2 && problem.w.stride == 2 && problem.w.dilation == 1;
    const bool exact = !outputs.indices.data || problem.covered_cells() < int64_t{1} << 24;  // as numbers of type T
    return problem.batch * problem.channels >= lanes && bytes <= most_staged_bytes && problem.taps() <= 16 && exact &&
           !(pairs && problem.w.input > 16) && plane_is_dense(input) && plane_is_dense(outputs.values) &&
           plane_is_dense(outputs.indices) && plane_is_dense(outputs.codes) && !has_empty_window(problem.h) &&
           !has_empty_window(problem.w);
}

template <class T>
void max_pool2d_narrow(const PoolProblem& problem, const TensorView<const T>& input, const PoolOutputs<T>& outputs) {
    NarrowNest<T>(problem, input, outputs).run();
}

template bool max_pool2d_is_narrow(const PoolProblem&, const TensorView<const float>&, const PoolOutputs<float>&);
template bool max_pool2d_is_narrow(const PoolProblem&, const TensorView<const double>&, const PoolOutputs<double>&);
template void max_pool2d_narrow(const PoolProblem&, const TensorView<const float>&, const PoolOutputs<float>&);
template void max_pool2d_narrow(const PoolProblem&, const TensorView<const double>&, const PoolOutputs<double>&);

}  // namespace convx
