// The gradient of max-pooling as a scatter in row-major order of the windows: any strides, by indices or codes. A task
// owns some rows of a plane (or of an image, where channels are adjacent), and adds what falls into them.
#include <limits>

#include "cpu/max_pool2d/argmax_codes.h"
#include "cpu/max_pool2d/driver.h"
#include "cpu/max_pool2d/windows.h"

namespace convx {

template <class T>
class PoolScatter {
public:
    static constexpr const char* name = "scatter";
    static Verdict supports(const PoolBackward<T>&, const KernelSet<T>&) { return {}; }
    static bool suits(const PoolBackward<T>&, const KernelSet<T>&) { return true; }

    PoolScatter(const PoolBackward<T>& pass, const KernelSet<T>&) : pass_(pass) {
        const int64_t columns = w_.kernel;
        for (int64_t code = 0; pass.codes.data && code < problem_.taps(); ++code)
            offsets_[static_cast<size_t>(code)] =
                code / columns * h_.dilation * w_.input + code % columns * w_.dilation;
        offsets_[no_gradient_code] = std::numeric_limits<int64_t>::min() / 2;
    }

    TaskPlan tasks() const { return pool_tasks(problem_, units_of(true)); }
    void describe(PassPlan& plan) const {
        plan.tile = "1 window";
        plan.block = std::to_string(block_rows(true)) + " rows of cells";
        plan.reason = "every window adds to the cell that it selected, in row-major order";
    }
    Outcome run() const {
        bool local = true;  // every cell lies in a row that its window covers
        if (pass_.codes.data) {
            if (!codes_are_legal(problem_, pass_.codes)) return Outcome::illegal;
        } else {
            // Matters where the rows of a plane (or image) are more than one task.
            const bool cuts = h_.input * w_.input * channels_ > memory_bound_task_elements;
            const Indices found = inspect_indices(problem_, pass_.indices, cuts);
            if (found == Indices::illegal) return Outcome::illegal;
            local = found == Indices::local;
        }
        const int64_t block = block_rows(local), blocks = ceil_div(h_.input, block);
        const PoolUnits units = units_of(local);
        run_units(pool_tasks(problem_, units), units, [&](int64_t begin, int64_t end, ScratchParts) {
            for (int64_t unit = begin; unit < end; ++unit) {
                const int64_t first = unit / blocks * channels_, row = unit % blocks * block;
                const Rows rows{first / problem_.channels, first % problem_.channels, row,
                                std::min(h_.input, row + block)};
                if (pass_.codes.data)
                    add(rows, local, pass_.codes,
                        [&](int64_t origin, uint8_t code) { return origin + offsets_[code]; });
                else
                    add(rows, local, pass_.indices, [&](int64_t, int64_t index) { return index - row * w_.input; });
            }
            return true;
        });
        return Outcome::done;
    }

private:
    // Rows of cells of channels_ channels.
    struct Rows {
        int64_t n, c, begin, end;
    };

    // Rows of one unit: all of them where an index may point far from its window.
    int64_t block_rows(bool local) const {
        return local ? std::clamp<int64_t>(memory_bound_task_elements / (w_.input * channels_), 1, h_.input) : h_.input;
    }
    PoolUnits units_of(bool local) const {
        const int64_t block = block_rows(local);
        return {problem_.batch * problem_.channels / channels_ * ceil_div(h_.input, block),
                w_.input * channels_ * block};
    }

    // index_of(index of the window's origin, argmax), both from the first of these rows. Inlined, the loop lacks
    // registers and takes 1.5 times as long.
    template <class Argmax, class IndexOf>
    __attribute__((noinline)) void add(const Rows& rows, bool local, const TensorView<const Argmax>& argmax,
                                       const IndexOf& index_of) const {
        const TensorView<const T>& grad_output = pass_.grad_output;
        const int64_t least = std::max<int64_t>(0, rows.begin + h_.pad_before - h_.extent() + 1);
        const int64_t p_begin = local ? ceil_div(least, h_.stride) : 0, out_h = problem_.out_h();
        const int64_t p_end = local ? std::min(out_h, (rows.end - 1 + h_.pad_before) / h_.stride + 1) : out_h;
        const int64_t cells = (rows.end - rows.begin) * w_.input, columns = problem_.out_w();
        const int64_t channels = channels_, argmax_step = argmax.stride[3], grad_step = grad_output.stride[3];
        const int64_t argmax_channel = argmax.stride[1], grad_channel = grad_output.stride[1], stride = w_.stride;
        T* const block = grad_input_.at(rows.n, rows.c, rows.begin, 0);
        std::fill_n(block, cells * channels, T(0));
        for (int64_t p = p_begin; p < p_end; ++p) {
            int64_t origin = (h_.position(p, 0) - rows.begin) * w_.input + w_.position(0, 0);
            const auto add = [=](int64_t at, Argmax selected, T grad, int64_t c) {
                const int64_t index = index_of(at, selected);
                if (static_cast<uint64_t>(index) < static_cast<uint64_t>(cells)) block[index * channels + c] += grad;
            };
            const Argmax* selected = argmax.at(rows.n, rows.c, p, 0);
            const T* grad = grad_output.at(rows.n, rows.c, p, 0);
            if (channels == 1)
                for (int64_t q = 0; q < columns; ++q, origin += stride)
                    add(origin, selected[q * argmax_step], grad[q * grad_step], 0);
            else
                for (int64_t q = 0; q < columns; ++q, origin += stride, selected += argmax_step, grad += grad_step)
                    for (int64_t c = 0; c < channels; ++c)
                        add(origin, selected[c * argmax_channel], grad[c * grad_channel], c);
        }
    }

    const PoolBackward<T> pass_;
    const PoolProblem& problem_ = pass_.problem;
    const Axis &h_ = problem_.h, &w_ = problem_.w;
    const TensorView<T>& grad_input_ = pass_.grad_input;
    // Channels that a task takes together: all of them, where they are adjacent.
    const int64_t channels_ = grad_input_.stride[1] == 1 ? problem_.channels : 1;
    std::array<int64_t, 256> offsets_{};  // index under a code, less that of the window's origin
};

template const PoolMethod<PoolBackward<float>>& pool_method<PoolScatter, PoolBackward<float>>();
template const PoolMethod<PoolBackward<double>>& pool_method<PoolScatter, PoolBackward<double>>();

}  // namespace convx
