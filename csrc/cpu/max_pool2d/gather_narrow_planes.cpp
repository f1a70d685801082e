// The gradient of max-pooling of narrow dense planes by codes, a vector of planes in lanes like narrow_planes.cpp.
// Codes become numbers on the way, so that a tap is a comparison, a mask and an addition, and are checked there.
#include "cpu/max_pool2d/gather.h"

namespace convx {

template <class T>
class PoolGatherNarrowPlanes {
public:
    static constexpr const char* name = "gather-narrow-planes";

    static Verdict supports(const PoolBackward<T>& pass, const KernelSet<T>&) {
        if (!pass.codes.data) return {"needs codes"};
        if (!plane_is_dense(pass.grad_output) || !plane_is_dense(pass.codes) || !plane_is_dense(pass.grad_input))
            return {"needs dense planes"};
        return {};
    }
    static bool suits(const PoolBackward<T>& pass, const KernelSet<T>& kernels) {
        return !prefers_scatter(pass, kernels) && gathers_narrow_planes(pass, kernels);
    }

    PoolGatherNarrowPlanes(const PoolBackward<T>& pass, const KernelSet<T>& kernels) : pass_(pass), kernels_(kernels) {
        list_sums();
        list_checks();
    }

    TaskPlan tasks() const { return pool_tasks<Scratch>(problem_, units_, *this); }
    void describe(PassPlan& plan) const {
        plan.tile = std::to_string(lanes_) + " planes";
        plan.block = std::to_string(units_.step * lanes_) + " planes";
        plan.reason =
            "every cell sums the windows that selected it, in row-major order; planes are transposed into lanes";
    }
    Outcome run() const {
        const int64_t planes = problem_.batch * problem_.channels;
        const bool legal = run_units<Scratch>(*this, units_, [&](int64_t begin, int64_t end, const Scratch& scratch) {
            bool all = true;
            for (int64_t unit = begin; unit < end; ++unit)
                all &= run_planes(unit * lanes_, static_cast<int>(std::min(lanes_, planes - unit * lanes_)), scratch);
            return all;
        });
        return legal ? Outcome::done : Outcome::illegal;
    }

private:
    struct Scratch {
        Scratch(ScratchParts& parts, const PoolGatherNarrowPlanes& driver)
            : grads(parts.take<T>(driver.lanes_of(driver.windows_))),
              codes(parts.take<T>(driver.lanes_of(driver.windows_))),
              sums(parts.take<T>(driver.lanes_of(driver.cells_))) {}
        T *grads, *codes, *sums;
    };

    // The arguments are the same for all planes but for where scratch lies.
    struct SumArgs : PoolLaneSumArgs<T> {
        int64_t to;
    };
    struct CheckArgs : PoolLaneCheckArgs<T> {
        int64_t from;
    };

    int64_t lanes_of(int64_t cells) const { return (cells + lanes_) * lanes_; }  // packed in whole vectors

    bool run_planes(int64_t first, int count, const Scratch& scratch) const {
        const int lanes = static_cast<int>(lanes_);
        const PlaneLanes<const T> grads(pass_.grad_output, first, count, lanes);
        const PlaneLanes<const uint8_t> codes(pass_.codes, first, count, lanes);
        const PlaneLanes<T> outputs(pass_.grad_input, first, count, lanes);
        kernels_.pool_pack(scratch.grads, grads.plane, windows_, lanes_ * windows_);
        kernels_.pool_pack_codes(scratch.codes, codes.plane, windows_);
        bool legal = true;
        for (CheckArgs args : checks_) {
            args.codes = scratch.codes + args.from;
            legal = kernels_.pool_check_lanes(args) && legal;
        }
        for (SumArgs args : sums_) {
            args.grads = scratch.grads;
            args.codes = scratch.codes;
            args.output = scratch.sums + args.to;
            kernels_.pool_sum_lanes(args);
        }
        PoolUnpackArgs<T> args{};
        args.values = scratch.sums;
        args.count = cells_;
        args.planes = count;
        args.ahead = lanes_ * cells_;
        args.outputs = outputs.plane;
        kernels_.pool_unpack(args);
        return legal;
    }

    void list_sums() {
        const int64_t window_row = problem_.out_w() * lanes_;
        const int64_t cell_row = problem_.w.input * lanes_;
        for (const Phase& h : h_.list)
            for (const WindowRun& rows : h.runs)
                for (const Phase& w : w_.list)
                    for (const WindowRun& columns : w.runs) {
                        const size_t first = offsets_.size();
                        const int64_t window = rows.begin * window_row + columns.begin * lanes_;
                        for (int64_t r = rows.tap_begin; r < rows.tap_end; ++r)
                            for (int64_t s = columns.tap_begin; s < columns.tap_end; ++s) {
                                const size_t i = static_cast<size_t>(r), j = static_cast<size_t>(s);
                                offsets_.push_back(window + h_.windows[i] * window_row + w_.windows[j] * lanes_);
                                wanted_.push_back(static_cast<T>(h_.taps[i] * problem_.w.kernel + w_.taps[j]));
                            }
                        SumArgs args{};
                        args.taps = static_cast<int>(offsets_.size() - first);
                        args.rows = rows.end - rows.begin;
                        args.columns = columns.end - columns.begin;
                        args.row_step = window_row;
                        args.to = (h.first + rows.begin * problem_.h.stride) * cell_row +
                                  (w.first + columns.begin * problem_.w.stride) * lanes_;
                        args.output_row = problem_.h.stride * cell_row;
                        args.output_step = problem_.w.stride * lanes_;
                        sums_.push_back(args);
                    }
        size_t first = 0;
        for (SumArgs& args : sums_) {
            args.offsets = offsets_.data() + first;
            args.wanted = wanted_.data() + first;
            first += static_cast<size_t>(args.taps);
        }
    }

    void list_checks() {
        const int64_t window_row = problem_.out_w() * lanes_;
        for (const WindowRun& rows : window_runs(problem_.h))
            for (const WindowRun& columns : window_runs(problem_.w)) {
                for (int64_t r = rows.tap_begin; r < rows.tap_end; ++r)
                    for (int64_t s = columns.tap_begin; s < columns.tap_end; ++s)
                        legal_.push_back(static_cast<T>(r * problem_.w.kernel + s));
                CheckArgs args{};
                args.from = rows.begin * window_row + columns.begin * lanes_;
                args.rows = rows.end - rows.begin;
                args.columns = columns.end - columns.begin;
                args.row_step = window_row;
                args.taps = static_cast<int>(rows.count() * columns.count());
                args.all_taps = args.taps == problem_.taps();
                checks_.push_back(args);
            }
        size_t first = 0;
        for (CheckArgs& args : checks_) {
            args.legal = legal_.data() + first;
            first += static_cast<size_t>(args.taps);
        }
    }

    const PoolBackward<T> pass_;
    const PoolProblem& problem_ = pass_.problem;
    const KernelSet<T>& kernels_;
    const int64_t lanes_ = kernels_.lanes;
    const Phases h_{problem_.h}, w_{problem_.w};
    const int64_t windows_ = problem_.out_h() * problem_.out_w(), cells_ = problem_.h.input * problem_.w.input;
    const PoolUnits units_{ceil_div(problem_.batch * problem_.channels, lanes_), cells_ * lanes_};
    std::vector<SumArgs> sums_;
    std::vector<int64_t> offsets_;  // per tap of each of sums_
    std::vector<T> wanted_;
    std::vector<CheckArgs> checks_;
    std::vector<T> legal_;  // per tap of each of checks_
};

template const PoolMethod<PoolBackward<float>>& pool_method<PoolGatherNarrowPlanes, PoolBackward<float>>();
template const PoolMethod<PoolBackward<double>>& pool_method<PoolGatherNarrowPlanes, PoolBackward<double>>();

}  // namespace convx
