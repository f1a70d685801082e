// The gradient of max-pooling by codes where channels are adjacent: a row of cells is summed phase by phase, pixels x
// channels at a time, from gradients and codes where they lie.
#include "cpu/max_pool2d/argmax_codes.h"
#include "cpu/max_pool2d/gather.h"

namespace convx {

template <class T>
class PoolGatherChannels : Gather<T> {
    using Base = Gather<T>;
    using Base::codes_, Base::grad_input_, Base::grad_output_, Base::h_, Base::kernels_, Base::problem_, Base::w_;

public:
    static constexpr const char* name = "gather-channels";

    static Verdict supports(const PoolBackward<T>& pass, const KernelSet<T>& kernels) {
        if (const Verdict verdict = Base::supports(pass, kernels); !verdict) return verdict;
        if (!has_channel_vectors(pass, kernels) || pass.grad_output.stride[3] != pass.codes.stride[3])
            return {"needs a vector of adjacent channels"};
        return {};
    }
    static bool suits(const PoolBackward<T>& pass, const KernelSet<T>& kernels) {
        return !prefers_scatter(pass, kernels);
    }

    PoolGatherChannels(const PoolBackward<T>& pass, const KernelSet<T>& kernels) : Base(pass, kernels) {
        this->set_offsets(grad_output_.stride[3]);
        if (this->streams() && grad_input_.stride[3] == problem_.channels) slab_ = problem_.w.input * problem_.channels;
    }

    TaskPlan tasks() const { return pool_tasks<Scratch>(problem_, units_, *this); }
    void describe(PassPlan& plan) const {
        plan.tile = std::to_string(kernels_.lanes) + " channels";
        plan.block = std::to_string(units_.step) + " rows of cells";
        plan.reason = "every cell sums the windows that selected it, in row-major order";
    }
    Outcome run() const {
        if (!codes_are_legal(problem_, codes_)) return Outcome::illegal;
        run_units<Scratch>(*this, units_, [&](int64_t begin, int64_t end, const Scratch& scratch) {
            for (int64_t row = begin; row < end; ++row)
                run_row(row / problem_.h.input, row % problem_.h.input, scratch);
            return true;
        });
        return Outcome::done;
    }

private:
    struct Scratch {
        Scratch(ScratchParts& parts, const PoolGatherChannels& driver)
            : tap_rows(parts, driver), slab(parts.take<T>(driver.slab_)) {}
        typename Base::TapRows tap_rows;
        T* slab;
    };

    // Inlined in the lambda of a task it lacks registers: 6 to 15 % at 4 x 64 x 56 x 56, 3x3 with stride 2.
    __attribute__((noinline)) void run_row(int64_t n, int64_t row, const Scratch& scratch) const {
        const int64_t channels = problem_.channels, stride = problem_.w.stride;
        const int64_t i = row / problem_.h.stride;
        const WindowRun& rows = run_of(h_.list[static_cast<size_t>(row % problem_.h.stride)].runs, i);
        PoolSumArgs<T> args;
        args.grad_step = grad_output_.stride[3];
        args.code_step = codes_.stride[3];
        args.output_step = stride * grad_input_.stride[3];
        const bool dense = args.grad_step == channels && args.code_step == channels && args.output_step == channels;
        for (const Phase& w : w_.list)
            for (const WindowRun& columns : w.runs) {
                this->set_rows({grad_output_.at(n, 0, i, columns.begin), codes_.at(n, 0, i, columns.begin),
                                grad_output_.stride[2], codes_.stride[2]},
                               rows.tap_begin, rows.tap_end, scratch.tap_rows);
                this->set_taps(args, rows.tap_begin, rows.tap_end, columns.tap_begin, columns.tap_end,
                               scratch.tap_rows);
                const int64_t pixels = columns.end - columns.begin;
                args.rows = dense ? 1 : pixels;
                args.columns = dense ? pixels * channels : channels;
                const int64_t column = w.first + columns.begin * stride;
                args.output = slab_ ? scratch.slab + column * channels : grad_input_.at(n, 0, row, column);
                kernels_.pool_sum(args);
            }
        if (slab_) copy_around_caches(kernels_, grad_input_.at(n, 0, row, 0), scratch.slab, slab_);
    }

    // Rows of cells of all images.
    const PoolUnits units_{problem_.batch * problem_.h.input, problem_.w.input * problem_.channels};
    int64_t slab_ = 0;  // elements of a row that goes around the caches, 0 if none does
};

template const PoolMethod<PoolBackward<float>>& pool_method<PoolGatherChannels, PoolBackward<float>>();
template const PoolMethod<PoolBackward<double>>& pool_method<PoolGatherChannels, PoolBackward<double>>();

}  // namespace convx
