// Weight gradient of depthwise convolutions in NHWC, any window:
//
//   grad_weight[c, r, s] = sum over n, p, q of grad_output[n, p, q, c] * input[n, h(r, p), w(s, q), c]
//
// Vectors run over channels, straight in the arrays where channels are adjacent, else in copies of single rows that
// have them so. A task owns some channels and a contiguous part of the rows (n, p). It adds stretch by stretch of
// pixels to its sums, one a channel and tap; at the end the parts are added in order. Stretches and parts follow from
// the problem alone.
#include <algorithm>

#include "common/rounding.h"
#include "cpu/conv2d/depthwise.h"
#include "cpu/runtime/split_sum.h"

namespace convx {

namespace {

// What a task reads of a pixel, and of the gradient before the next row of the window goes over it.
constexpr int64_t task_channel_bytes = 512;
constexpr int64_t stretch_bytes = 8 * 1024;

struct Blocks {
    int64_t stretch = 1;        // pixels of a row that all rows of the window go over in turn
    int64_t task_channels = 1;  // of one task
    int64_t splits = 1;         // parts of the rows of the batch, added in order at the end
};

Blocks plan_blocks(const ConvProblem& problem) {
    Blocks blocks;
    const int64_t item_bytes = item_size(problem.dtype), rows = problem.batch * problem.out_h();
    const int64_t most = task_channel_bytes / item_bytes;
    // Whole cache lines.
    blocks.task_channels =
        std::min(problem.groups, round_up(ceil_div(problem.groups, ceil_div(problem.groups, most)), 64 / item_bytes));
    const int64_t channel_tasks = ceil_div(problem.groups, blocks.task_channels);
    const int64_t wanted =
        std::min(ceil_div(grouped_wanted_tasks, channel_tasks), problem.flops() / channel_tasks / grouped_task_flops);
    blocks.splits = std::clamp(wanted, int64_t{1}, std::max<int64_t>(rows, 1));
    blocks.stretch = std::max<int64_t>(stretch_bytes / (blocks.task_channels * item_bytes), 1);
    return blocks;
}

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const ConvProblem& problem, int64_t channels, bool copies_source, bool copies_grad)
        : sums(parts.take<T>(problem.taps() * channels)), border(parts.take<T>(channels)) {
        if (copies_source) source = parts.take<T>(problem.w.input * channels);
        if (copies_grad) grad = parts.take<T>(problem.out_w() * channels);
        bytes = parts.bytes();
    }
    T *sums, *border;                      // [tap][channel]; border values
    T *source = nullptr, *grad = nullptr;  // [column][channel]
    int64_t bytes;
};

// Pixels of a row with adjacent channels.
template <class T>
struct PixelRow {
    const T* data;
    int64_t pixel;
    const T* at(int64_t column) const { return data + column * pixel; }
};

template <class T>
class DepthwisePixelsSumDriver {
public:
    DepthwisePixelsSumDriver(const PixelSum<T>& sum, const KernelSet<T>& kernels)
        : problem_(*sum.problem), kernels_(kernels), blocks_(plan_blocks(problem_)), grad_(sum.grad_output),
          input_(sum.input), h_(forward_table(problem_.h)), w_(forward_table(problem_.w)), border_(sum.border),
          copies_source_(input_.stride[1] != 1), copies_grad_(grad_.stride[1] != 1), first_inside_(0),
          last_inside_(problem_.out_w()) {
        for (const AxisTable::Tap& tap : w_.taps) {
            first_inside_ = std::max(first_inside_, tap.begin);
            last_inside_ = std::min(last_inside_, tap.end);
        }
        last_inside_ = std::max(first_inside_, last_inside_);
    }

    const Blocks& blocks() const { return blocks_; }

    TaskPlan tasks() const {
        const int64_t weights = problem_.groups * problem_.taps();
        return {ceil_div(problem_.groups, blocks_.task_channels) * blocks_.splits,
                depthwise_work(problem_.flops(), input_.size() + grad_.size()),
                cache_lines(blocks_.splits * weights * int64_t{sizeof(T)}),
                Scratch<T>(ScratchParts(), problem_, blocks_.task_channels, copies_source_, copies_grad_).bytes};
    }

    void run(T* grad_weight) const {
        const int64_t channels = problem_.groups, weights = channels * problem_.taps();
        const int64_t channel_tasks = ceil_div(channels, blocks_.task_channels);
        const int64_t all_rows = problem_.batch * problem_.out_h();
        const TaskPlan plan = tasks();
        const TaskRunner runner(plan);
        T* const all = static_cast<T*>(runner.shared());  // [tap][channel]
        const SplitSum<T> sums(all, all, blocks_.splits, weights);
        runner.run(plan.tasks, [&](int64_t task, ScratchParts parts) {
            const Scratch<T> own(parts, problem_, blocks_.task_channels, copies_source_, copies_grad_);
            const int64_t split = task / channel_tasks, first = task % channel_tasks * blocks_.task_channels;
            const int64_t count = std::min(blocks_.task_channels, channels - first);
            std::fill_n(own.sums, problem_.taps() * count, T(0));
            std::fill_n(own.border, count, static_cast<T>(border_.value));
            const int64_t last = (split + 1) * all_rows / blocks_.splits;
            for (int64_t row = split * all_rows / blocks_.splits; row < last; ++row)
                add_row(row / problem_.out_h(), row % problem_.out_h(), first, count, own);
            for (int64_t tap = 0; tap < problem_.taps(); ++tap)
                std::copy_n(own.sums + tap * count, count, sums.part(split) + tap * channels + first);
        });
        sums.add();
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t tap = 0; tap < problem_.taps(); ++tap) *grad_weight++ = all[tap * channels + c];
    }

private:
    void add_row(int64_t n, int64_t p, int64_t first, int64_t count, const Scratch<T>& scratch) const {
        const PixelRow<T> grad = pixel_row(grad_, copies_grad_, n, first, count, p, scratch.grad);
        const auto add_stretch = [&](const PixelRow<T>& source, size_t r, int64_t q) {
            add_pixels(source, grad, r, q, std::min(problem_.out_w(), q + blocks_.stretch), count, scratch);
        };
        if (copies_source_) {
            for (size_t r = 0; r < h_.taps.size(); ++r) {
                const PixelRow<T> source = source_row(n, r, p, first, count, scratch);
                for (int64_t q = 0; q < problem_.out_w(); q += blocks_.stretch) add_stretch(source, r, q);
            }
            return;
        }
        // Stretch by stretch, so that the gradient's lines are still in L1 when the next row of the window wants them.
        for (int64_t q = 0; q < problem_.out_w(); q += blocks_.stretch)
            for (size_t r = 0; r < h_.taps.size(); ++r) add_stretch(source_row(n, r, p, first, count, scratch), r, q);
    }

    // The row that tap `r` reads; no pixels where that is outside.
    PixelRow<T> source_row(int64_t n, size_t r, int64_t p, int64_t first, int64_t count,
                           const Scratch<T>& scratch) const {
        const int64_t row = h_.at(static_cast<int64_t>(r), p);
        if (row == AxisTable::outside) return {nullptr, 0};
        return pixel_row(input_, copies_source_, n, first, count, row, scratch.source);
    }

    static PixelRow<T> pixel_row(const TensorView<const T>& view, bool copies, int64_t n, int64_t first, int64_t count,
                                 int64_t row, T* scratch) {
        const T* from = view.at(n, first, row, 0);
        if (!copies) return {from, view.stride[3]};
        for (int64_t c = 0; c < count; ++c, from += view.stride[1])
            for (int64_t column = 0; column < view.shape[3]; ++column)
                scratch[column * count + c] = from[column * view.stride[3]];
        return {scratch, count};
    }

    // Adds what the pixels [begin, end) of a row give to the weights of row `r` of the window.
    void add_pixels(const PixelRow<T>& source, const PixelRow<T>& grad, size_t r, int64_t begin, int64_t end,
                    int64_t count, const Scratch<T>& scratch) const {
        if (!source.data && border_.skips) return;
        DepthwisePixelProducts<T> job;
        job.source_pixel = source.pixel * w_.step;
        job.grad_pixel = grad.pixel;
        job.channels = count;
        job.sums_tap = count;
        T* const sums = scratch.sums + static_cast<int64_t>(r) * problem_.w.kernel * count;
        SmallVector<const T*, 8> room;
        room.reserve(w_.taps.size());
        const T** const sources = room.data();
        for (int64_t q = begin; q < end;) {
            const bool inside = source.data && q >= first_inside_ && q < last_inside_;
            job.pixels = inside ? std::min(end, last_inside_) - q : 1;
            job.grad = grad.at(q);
            job.sources = sources;
            job.sums = sums;
            job.taps = 0;
            // At the border the taps that read something follow each other.
            for (int64_t s = 0; s < problem_.w.kernel; ++s) {
                const int64_t column = source.data ? w_.at(s, q) : AxisTable::outside;
                if (column == AxisTable::outside && border_.skips) continue;
                if (job.taps == 0) job.sums = sums + s * count;
                sources[job.taps++] = column == AxisTable::outside ? scratch.border : source.at(column);
            }
            kernels_.depthwise_pixel_products(job);
            q += job.pixels;
        }
    }

    const ConvProblem& problem_;
    const KernelSet<T>& kernels_;
    const Blocks blocks_;
    const TensorView<const T> grad_, input_;
    const AxisTable h_, w_;
    const Border border_;
    const bool copies_source_, copies_grad_;
    int64_t first_inside_, last_inside_;  // columns that read nothing outside the image
};

}  // namespace

struct DepthwisePixelsSumMethod : SumMethod<DepthwisePixelsSumDriver> {
    static constexpr const char* name = "depthwise-pixels";
    static constexpr Traits traits{Algorithm::direct, false, false};

    static Verdict supports(const ConvProblem& problem, ConvPass) {
        if (!is_depthwise(problem)) return {"needs one channel a group"};
        return supports_groups(problem);
    }
    static bool suits(const ConvProblem& problem, ConvPass, const Kernels&) {
        return problem.channels_last && problem.groups > 1;
    }

    template <class T>
    static void describe(const PixelSum<T>& sum, const DepthwisePixelsSumDriver<T>& driver, const KernelSet<T>& kernels,
                         PassPlan& text) {
        const Blocks& blocks = driver.blocks();
        text.tile = std::to_string(std::min<int64_t>(sum.problem->w.kernel, 3)) + " taps x " +
                    std::to_string(4 * kernels.lanes) + " channels";
        text.block = std::to_string(blocks.task_channels) + " channels, " + std::to_string(blocks.splits) +
                     (blocks.splits == 1 ? " part" : " parts") + " of the rows";
        text.reason = "one channel a group, vectors over channels because the layout is NHWC";
    }
};

template const Method<PixelSum<float>>& method_row<DepthwisePixelsSumMethod, PixelSum<float>>();
template const Method<PixelSum<double>>& method_row<DepthwisePixelsSumMethod, PixelSum<double>>();

}  // namespace convx
