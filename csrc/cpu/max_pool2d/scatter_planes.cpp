// The gradient of max-pooling as a scatter in row-major order of the windows, four dense planes side by side: indices
// and codes are checked on the way.
#include "cpu/max_pool2d/driver.h"
#include "cpu/max_pool2d/gather.h"

namespace convx {

// The indices behind the codes of dense planes. Window i under code c points to origin[i] + offsets[kind[i]][c]; a kind
// are the windows with the same taps inside the image. One loop over all windows: loops over the kinds of a row of 7
// are so short that their ends cost 2 ns a window.
class CodeIndices {
public:
    static constexpr int32_t most_cells = 1 << 28;  // of a padded plane that this is for
    static constexpr int32_t nowhere = -2 * most_cells, illegal = -6 * most_cells;  // less than this far from an origin

    CodeIndices() = default;
    explicit CodeIndices(const PoolProblem& problem) {
        const std::vector<WindowRun> rows = window_runs(problem.h), columns = window_runs(problem.w);
        const int64_t taps_w = problem.w.kernel, input_w = problem.w.input;
        windows_.resize(static_cast<size_t>(problem.out_h() * problem.out_w()));
        for (const WindowRun& row : rows)
            for (const WindowRun& column : columns) {
                const int32_t kind = static_cast<int32_t>(offsets_.size());
                offsets_.resize(offsets_.size() + 256, illegal);
                int32_t* const to = offsets_.data() + kind;
                to[no_gradient_code] = nowhere;
                for (int64_t r = row.tap_begin; r < row.tap_end; ++r)
                    for (int64_t s = column.tap_begin; s < column.tap_end; ++s)
                        to[r * taps_w + s] =
                            static_cast<int32_t>(r * problem.h.dilation * input_w + s * problem.w.dilation);
                for (int64_t p = row.begin; p < row.end; ++p)
                    for (int64_t q = column.begin; q < column.end; ++q)
                        windows_[static_cast<size_t>(p * problem.out_w() + q)] = {
                            static_cast<int32_t>(problem.h.position(p, 0) * input_w + problem.w.position(q, 0)), kind};
            }
    }

    void find(const uint8_t* codes, int64_t first, int64_t count, int32_t* to) const {
        const Window* const windows = windows_.data() + first;
        const int32_t* const offsets = offsets_.data();
        for (int64_t i = 0; i < count; ++i) to[i] = windows[i].origin + offsets[windows[i].kind + codes[i]];
    }

private:
    struct Window {
        int32_t origin, kind;  // kind: the first of its offsets
    };
    std::vector<Window> windows_;
    std::vector<int32_t> offsets_;
};

// Neighbouring windows often chose the same cell, and then one sum waits 10 cycles for the other: so four planes take
// turns.
constexpr int64_t planes_at_once = 4;

template <class T>
class PoolScatterPlanes {
    static constexpr int64_t block_windows = 512;  // that are looked up at once: a quarter of L1 for four planes

public:
    static constexpr const char* name = "scatter-planes";

    static Verdict supports(const PoolBackward<T>& pass, const KernelSet<T>&) {
        const PoolProblem& problem = pass.problem;
        if (!plane_is_dense(pass.grad_output) || !plane_is_dense(pass.indices) || !plane_is_dense(pass.codes) ||
            !plane_is_dense(pass.grad_input))
            return {"needs dense planes"};
        if (problem.covered_cells() >= CodeIndices::most_cells) return {"needs planes of less than 2^28 cells"};
        if (pass.indices.data && (has_empty_window(problem.h) || has_empty_window(problem.w)))
            return {"needs a tap of every window inside the image"};
        return {};
    }
    // Four threads, in us: 832 planes of 14x14 under 3x3 with stride 2 take 370 by the gather of narrow planes, 216 so;
    // 480 of 14x14 with stride 1 take 455 and 580. Windows of four columns and more have no gather of their own: 280
    // planes of 37x33 under 4x6 with stride 2 take 650 and 80.
    static bool suits(const PoolBackward<T>& pass, const KernelSet<T>& kernels) {
        const PoolProblem& problem = pass.problem;
        const int64_t planes = problem.batch * problem.channels, cells = problem.h.input * problem.w.input;
        if (planes < planes_at_once || (planes < planes_at_once * num_threads() && cells > memory_bound_task_elements))
            return false;
        if (pass.indices.data) return true;
        const bool strided = problem.h.stride * problem.w.stride > 1;
        const bool large = problem.h.kernel > 3 || problem.w.kernel > 3;
        return !has_channel_vectors(pass, kernels) &&
               (prefers_scatter(pass, kernels) ||
                (strided ? large || (windows_overlap(problem) && cells <= 2048) || gathers_narrow_planes(pass, kernels)
                         : cells <= 64));
    }

    PoolScatterPlanes(const PoolBackward<T>& pass, const KernelSet<T>&) : pass_(pass) {
        if (pass.codes.data) code_indices_ = CodeIndices(problem_);
    }

    TaskPlan tasks() const { return pool_tasks<Scratch>(problem_, units_, *this); }
    void describe(PassPlan& plan) const {
        plan.tile = std::to_string(planes_at_once) + " planes";
        plan.block = std::to_string(units_.step * planes_at_once) + " planes";
        plan.reason = "every window adds to the cell that it selected, in row-major order";
    }
    Outcome run() const {
        const int64_t planes = problem_.batch * problem_.channels;
        const bool legal = run_units<Scratch>(*this, units_, [&](int64_t begin, int64_t end, const Scratch& scratch) {
            const int64_t behind = std::min(planes, end * planes_at_once);
            int64_t plane = begin * planes_at_once;
            bool all = true;
            for (; plane + planes_at_once <= behind; plane += planes_at_once)
                all &= add<planes_at_once>(plane, scratch.indices);
            for (; plane < behind; ++plane) all &= add<1>(plane, scratch.indices);
            return all;
        });
        return legal ? Outcome::done : Outcome::illegal;
    }

private:
    struct Scratch {
        Scratch(ScratchParts& parts, const PoolScatterPlanes& driver)
            : indices(parts.take<int32_t>(driver.pass_.codes.data ? planes_at_once * block_windows : 0)) {}
        int32_t* indices;
    };

    // Inlined in the lambda of a task it lacks registers (2 %).
    template <int count>
    __attribute__((noinline)) bool add(int64_t first, int32_t* scratch) const {
        const PlaneLanes<const T> grads(pass_.grad_output, first, count, count);
        const PlaneLanes<T> cells(pass_.grad_input, first, count, count);
        for (int k = 0; k < count; ++k) std::fill_n(cells.plane[k], cells_, T(0));
        if (pass_.indices.data) {
            const PlaneLanes<const int64_t> indices(pass_.indices, first, count, count);
            return add_windows<count>(0, windows_, grads.plane, indices.plane, cells.plane);
        }
        // Looked up ahead: an addition whose cell is known late holds up all that follow (2.9 ns a window, now 2.3).
        const PlaneLanes<const uint8_t> codes(pass_.codes, first, count, count);
        const int32_t* indices[count];
        bool legal = true;
        for (int64_t i = 0; i < windows_; i += block_windows) {
            const int64_t windows = std::min(block_windows, windows_ - i);
            for (int k = 0; k < count; ++k) {
                code_indices_.find(codes.plane[k] + i, i, windows, scratch + k * block_windows);
                indices[k] = scratch + k * block_windows;
            }
            legal &= add_windows<count>(i, windows, grads.plane, indices, cells.plane);
        }
        return legal;
    }

    template <int count, class Index>
    bool add_windows(int64_t first, int64_t windows, const T* const* all_grads, const Index* const* all_indices,
                     T* const* all_cells) const {
        const T* grads[count];
        const Index* indices[count];
        T* cells[count];
        for (int k = 0; k < count; ++k) {
            grads[k] = all_grads[k] + first;
            indices[k] = all_indices[k];
            cells[k] = all_cells[k];
        }
        const uint64_t size = static_cast<uint64_t>(cells_);
        bool legal = true;
        for (int64_t i = 0; i < windows; ++i)
#pragma GCC unroll 4
            for (int k = 0; k < count; ++k) {
                const int64_t index = indices[k][i];
                if (static_cast<uint64_t>(index) < size)
                    cells[k][index] += grads[k][i];
                else if constexpr (std::is_same_v<Index, int64_t>)
                    legal = false;
                else
                    legal &= index > 2 * CodeIndices::nowhere;
            }
        return legal;
    }

    const PoolBackward<T> pass_;
    const PoolProblem& problem_ = pass_.problem;
    const int64_t windows_ = problem_.out_h() * problem_.out_w(), cells_ = problem_.h.input * problem_.w.input;
    const PoolUnits units_{ceil_div(problem_.batch * problem_.channels, planes_at_once), cells_ * planes_at_once};
    CodeIndices code_indices_;
};

template const PoolMethod<PoolBackward<float>>& pool_method<PoolScatterPlanes, PoolBackward<float>>();
template const PoolMethod<PoolBackward<double>>& pool_method<PoolScatterPlanes, PoolBackward<double>>();

}  // namespace convx
