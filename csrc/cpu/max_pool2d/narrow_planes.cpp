// Max-pooling of narrow dense planes. Rows of 7 or 14 elements are mostly tails and borders to vectors along them, so a
// vector of planes is transposed into lanes (one shuffle an element, in L1 and L2), pooled like adjacent channels,
// where windows at the border leave out the taps that they lack, and transposed back.
#include "cpu/max_pool2d/max_blocks.h"

namespace convx {

template <class T>
class PoolNarrowPlanes : MaxBlocks<T> {
    using Base = MaxBlocks<T>;
    using Base::codes_, Base::column_runs_, Base::h_, Base::indices_, Base::input_, Base::kernels_, Base::output_,
        Base::problem_, Base::row_runs_, Base::w_;

public:
    static constexpr const char* name = "narrow-planes";

    static Verdict supports(const PoolForward<T>& pass, const KernelSet<T>&) {
        const PoolProblem& problem = pass.problem;
        if (!plane_is_dense(pass.input) || !plane_is_dense(pass.output) || !plane_is_dense(pass.indices) ||
            !plane_is_dense(pass.codes))
            return {"needs dense planes"};
        if (has_empty_window(problem.h) || has_empty_window(problem.w))
            return {"needs a tap of every window inside the image"};
        if (pass.indices.data && (!Base::has_exact_offsets(problem) || problem.covered_cells() >= int64_t{1} << 24))
            return {"needs indices that are exact in float32"};
        return {};
    }
    static bool suits(const PoolForward<T>& pass, const KernelSet<T>& kernels) {
        const PoolProblem& problem = pass.problem;
        // planes.cpp takes pairs of columns apart in registers, which is faster unless a row is less than two vectors.
        const bool pairs = problem.w.kernel == 2 && problem.w.stride == 2 && problem.w.dilation == 1;
        return vector_of_planes_fits(problem, kernels) && problem.taps() <= 16 && !(pairs && problem.w.input > 16);
    }

    PoolNarrowPlanes(const PoolForward<T>& pass, const KernelSet<T>& kernels) : Base(pass, kernels, 1) {
        for (int64_t s = 0; s < w_.kernel; ++s) columns_of_taps_.push_back(s * w_.dilation * lanes_);
        if (!indices_.data) return;
        for (int64_t p = 0; p < problem_.out_h(); ++p)
            for (int64_t q = 0; q < problem_.out_w(); ++q)
                origins_.push_back(static_cast<int32_t>(h_.position(p, 0) * w_.input + w_.position(q, 0)));
        origins_.resize(origins_.size() + widest_vector);
    }

    TaskPlan tasks() const { return pool_tasks<Scratch>(problem_, units_, *this); }
    void describe(PassPlan& plan) const {
        plan.tile = std::to_string(lanes_) + " planes";
        plan.block = std::to_string(units_.step * lanes_) + " planes";
        plan.reason = "vectors over planes, which are transposed into lanes";
    }
    Outcome run() const {
        const int64_t planes = problem_.batch * problem_.channels;
        run_units<Scratch>(*this, units_, [&](int64_t begin, int64_t end, const Scratch& scratch) {
            for (int64_t unit = begin; unit < end; ++unit)
                run_planes(unit * lanes_, static_cast<int>(std::min(lanes_, planes - unit * lanes_)), scratch);
            return true;
        });
        return Outcome::done;
    }

private:
    struct Scratch {
        Scratch(ScratchParts& parts, const PoolNarrowPlanes& driver)
            : rows_of_taps(parts.take<const T*>(driver.h_.kernel)),
              input(parts.take<T>((driver.plane_ + driver.lanes_) * driver.lanes_)),
              output(parts.take<T>(driver.cells_)), codes(parts.take<T>(driver.wants_codes_ ? driver.cells_ : 0)) {}
        const T** rows_of_taps;
        T *input, *output, *codes;
    };

    void run_planes(int64_t first, int count, const Scratch& scratch) const {
        const int lanes = static_cast<int>(lanes_);
        const PlaneLanes<const T> inputs(input_, first, count, lanes);
        const PlaneLanes<T> outputs(output_, first, count, lanes);
        const PlaneLanes<uint8_t> codes(codes_, first, count, lanes);
        const PlaneLanes<int64_t> indices(indices_, first, count, lanes);
        const bool numbers = kernels_.pool_pack(scratch.input, inputs.plane, plane_, lanes_ * plane_);
        for (const WindowRun& rows : row_runs_)
            for (const WindowRun& columns : column_runs_) pool(rows, columns, numbers, scratch);
        PoolUnpackArgs<T> args{};
        args.values = scratch.output;
        args.codes = scratch.codes;
        args.count = problem_.out_h() * problem_.out_w();
        args.planes = count;
        args.ahead = lanes_ * args.count;
        args.outputs = outputs.plane;
        args.code_bytes = codes_.data ? codes.plane : nullptr;
        args.indices = indices_.data ? indices.plane : nullptr;
        args.index_ramp = origins_.data();
        kernels_.pool_unpack(args);
    }

    void pool(const WindowRun& rows, const WindowRun& columns, bool numbers, const Scratch& scratch) const {
        const int64_t row = w_.input * lanes_, output_row = problem_.out_w() * lanes_;
        const int64_t to = rows.begin * output_row + columns.begin * lanes_;
        for (int64_t r = rows.tap_begin; r < rows.tap_end; ++r)
            scratch.rows_of_taps[r] =
                scratch.input + h_.position(rows.begin, r) * row + w_.position(columns.begin, 0) * lanes_;
        PoolMaxArgs<T> args = this->args_of(rows, columns, columns_of_taps_, scratch.rows_of_taps);
        args.value_step = h_.stride * row;
        args.column_step = w_.stride;
        args.rows = rows.end - rows.begin;
        args.columns = (columns.end - columns.begin) * lanes_;
        args.output = scratch.output + to;
        args.output_step = args.code_step = output_row;
        args.code_lanes = wants_codes_ ? scratch.codes + to : nullptr;
        numbers ? kernels_.pool_max_numbers(args) : kernels_.pool_max(args);
    }

    const int64_t lanes_ = kernels_.lanes, plane_ = h_.input * w_.input;
    const bool wants_codes_ = codes_.data || indices_.data;
    const int64_t cells_ = (problem_.out_h() * problem_.out_w() + lanes_) * lanes_;
    const PoolUnits units_{ceil_div(problem_.batch * problem_.channels, lanes_), plane_ * lanes_};
    std::vector<int64_t> columns_of_taps_;  // per s: where its values begin in a row
    std::vector<int32_t> origins_;          // per cell of a plane, for indices
};

template const PoolMethod<PoolForward<float>>& pool_method<PoolNarrowPlanes, PoolForward<float>>();
template const PoolMethod<PoolForward<double>>& pool_method<PoolNarrowPlanes, PoolForward<double>>();

}  // namespace convx
