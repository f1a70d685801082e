// Max-pooling by windows that are wide where a row has few of them (global pooling, point clouds, text): one window
// after the other, with vectors along its rows. Vectors over the windows of a row would be mostly empty.
#include <limits>

#include "cpu/max_pool2d/driver.h"
#include "cpu/max_pool2d/windows.h"

namespace convx {

template <class T>
class PoolWindowRows {
public:
    static constexpr const char* name = "window-rows";

    static Verdict supports(const PoolForward<T>& pass, const KernelSet<T>&) {
        const Axis& w = pass.problem.w;
        if (w.dilation > 1 || (pass.input.stride[3] != 1 && w.input > 1)) return {"needs windows of adjacent columns"};
        return {};
    }
    // The vectors that are compared: in place of a window one reduction at its end, about 8 of them.
    static bool suits(const PoolForward<T>& pass, const KernelSet<T>& kernels) {
        const Axis &h = pass.problem.h, &w = pass.problem.w;
        const int64_t lanes = kernels.lanes, planes_vectors = ceil_div(w.output(), lanes);
        const int64_t own =
            is_one_row(pass) ? ceil_div(h.kernel * w.kernel, lanes) : h.kernel * ceil_div(w.kernel, lanes);
        const int64_t by_planes = std::min(h.kernel * w.kernel, h.stride * (w.kernel + 1) + h.kernel) * planes_vectors;
        return w.output() * (2 * own + 8) < by_planes;
    }

    PoolWindowRows(const PoolForward<T>& pass, const KernelSet<T>& kernels)
        : pass_(pass), kernels_(kernels),
          units_(problem_.batch * problem_.channels * problem_.out_h(), problem_.out_w() * problem_.taps()) {}

    TaskPlan tasks() const { return pool_tasks(problem_, units_); }
    void describe(PassPlan& plan) const {
        plan.tile = std::to_string(kernels_.lanes) + " taps";
        plan.block = std::to_string(units_.step) + " rows of windows";
        plan.reason = "vectors over the taps of a window, because a row has few windows";
    }
    Outcome run() const {
        const int64_t height = problem_.out_h();
        run_units(tasks(), units_, [&](int64_t begin, int64_t end, ScratchParts) {
            for (int64_t unit = begin; unit < end; ++unit) {
                const int64_t plane = unit / height;
                run_row(plane / problem_.channels, plane % problem_.channels, unit % height);
            }
            return true;
        });
        return Outcome::done;
    }

private:
    // The window spans the rows of a dense plane, which are one row then.
    static bool is_one_row(const PoolForward<T>& pass) {
        const Axis &h = pass.problem.h, &w = pass.problem.w;
        return h.dilation == 1 && w.kernel >= w.input && pass.input.stride[2] == w.input;
    }

    void run_row(int64_t n, int64_t c, int64_t p) const {
        const WindowRun& rows = run_of(row_runs_, p);
        for (const WindowRun& columns : column_runs_)
            for (int64_t q = columns.begin; q < columns.end; ++q) run_window(n, c, p, q, rows, columns);
    }

    void run_window(int64_t n, int64_t c, int64_t p, int64_t q, const WindowRun& rows, const WindowRun& columns) const {
        PoolWindowBest<T> best{-std::numeric_limits<T>::infinity(), 0};
        int64_t code = no_gradient_code, index = no_gradient_index;
        if (!rows.is_empty() && !columns.is_empty()) {
            const int64_t h = h_.position(p, rows.tap_begin), w = w_.position(q, columns.tap_begin);
            PoolWindowArgs<T> args{pass_.input.at(n, c, h, w), h_.dilation * pass_.input.stride[2], rows.count(),
                                   columns.count(), pass_.codes.data || pass_.indices.data};
            if (args.row_step == args.columns) args = {args.source, 0, 1, args.rows * args.columns, args.wants_place};
            best = kernels_.pool_window(args);
            const int64_t r = best.place / columns.count(), s = best.place % columns.count();
            code = (rows.tap_begin + r) * w_.kernel + columns.tap_begin + s;
            index = (h + r * h_.dilation) * w_.input + w + s;
        }
        *pass_.output.at(n, c, p, q) = best.value;
        if (pass_.codes.data) *pass_.codes.at(n, c, p, q) = static_cast<uint8_t>(code);
        if (pass_.indices.data) *pass_.indices.at(n, c, p, q) = index;
    }

    const PoolForward<T>& pass_;
    const PoolProblem& problem_ = pass_.problem;
    const Axis &h_ = problem_.h, &w_ = problem_.w;
    const KernelSet<T>& kernels_;
    const std::vector<WindowRun> row_runs_ = window_runs(h_), column_runs_ = window_runs(w_);
    const PoolUnits units_;
};

template const PoolMethod<PoolForward<float>>& pool_method<PoolWindowRows, PoolForward<float>>();
template const PoolMethod<PoolForward<double>>& pool_method<PoolWindowRows, PoolForward<double>>();

}  // namespace convx
