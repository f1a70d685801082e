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
#include "cpu/conv2d/plan.h"
#include "cpu/scratch_parts.h"
#include "cpu/thread_pool.h"
#include "cpu/workspace.h"

namespace convx {

namespace {

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
class Nest {
public:
    Nest(const ConvProblem& problem, const Border& border, TensorView<const T> grad, TensorView<const T> input,
         const KernelSet<T>& kernels)
        : problem_(problem), kernels_(kernels), blocks_(plan_depthwise_pixels_grad_weight(problem)), grad_(grad),
          input_(input), h_(forward_table(problem.h)), w_(forward_table(problem.w)), border_(border),
          copies_source_(input.stride[1] != 1), copies_grad_(grad.stride[1] != 1), first_inside_(0),
          last_inside_(problem.out_w()) {
        for (const AxisTable::Tap& tap : w_.taps) {
            first_inside_ = std::max(first_inside_, tap.begin);
            last_inside_ = std::min(last_inside_, tap.end);
        }
        last_inside_ = std::max(first_inside_, last_inside_);
    }

    void run(T* grad_weight) const {
        const int64_t channels = problem_.groups, weights = channels * problem_.taps();
        const int64_t channel_tasks = ceil_div(channels, blocks_.task_channels);
        const int64_t tasks = channel_tasks * blocks_.splits, all_rows = problem_.batch * problem_.out_h();
        const int64_t work = depthwise_work(problem_.flops(), input_.size() + grad_.size());
        const int width = static_cast<int>(std::min<int64_t>({parallel_width(work), num_threads(), tasks}));
        const PassScratch scratch =
            depthwise_pixels_grad_weight_scratch<T>(problem_, blocks_, copies_source_, copies_grad_);
        const Workspace workspace(static_cast<size_t>(scratch.shared_bytes + width * scratch.worker_bytes));
        T* const partial = static_cast<T*>(workspace.data());  // [part][tap][channel]
        char* const workers = static_cast<char*>(workspace.data()) + scratch.shared_bytes;
        parallel_for(tasks, width, [&](int64_t task, int worker) {
            const Scratch<T> own(ScratchParts(workers + worker * scratch.worker_bytes), problem_, blocks_.task_channels,
                                 copies_source_, copies_grad_);
            const int64_t split = task / channel_tasks, first = task % channel_tasks * blocks_.task_channels;
            const int64_t count = std::min(blocks_.task_channels, channels - first);
            std::fill_n(own.sums, problem_.taps() * count, T(0));
            std::fill_n(own.border, count, static_cast<T>(border_.value));
            const int64_t last = (split + 1) * all_rows / blocks_.splits;
            for (int64_t row = split * all_rows / blocks_.splits; row < last; ++row)
                add_row(row / problem_.out_h(), row % problem_.out_h(), first, count, own);
            for (int64_t tap = 0; tap < problem_.taps(); ++tap)
                std::copy_n(own.sums + tap * count, count, partial + split * weights + tap * channels + first);
        });
        for (int64_t split = 1; split < blocks_.splits; ++split)
            for (int64_t i = 0; i < weights; ++i) partial[i] += partial[split * weights + i];
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t tap = 0; tap < problem_.taps(); ++tap) *grad_weight++ = partial[tap * channels + c];
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
    const DepthwisePixelsGradWeightBlocks blocks_;
    const TensorView<const T> grad_, input_;
    const AxisTable h_, w_;
    const Border border_;
    const bool copies_source_, copies_grad_;
    int64_t first_inside_, last_inside_;  // columns that read nothing outside the image
};

}  // namespace

template <class T>
PassScratch depthwise_pixels_grad_weight_scratch(const ConvProblem& problem,
                                                 const DepthwisePixelsGradWeightBlocks& blocks, bool copies_source,
                                                 bool copies_grad) {
    const int64_t partial = blocks.splits * problem.groups * problem.taps() * static_cast<int64_t>(sizeof(T));
    return {cache_lines(partial),
            Scratch<T>(ScratchParts(), problem, blocks.task_channels, copies_source, copies_grad).bytes};
}

template <class T>
void depthwise_pixels_grad_weight(const ConvProblem& problem, const Border& border, TensorView<const T> grad_output,
                                  TensorView<const T> input, T* grad_weight, const KernelSet<T>& kernels) {
    Nest<T>(problem, border, grad_output, input, kernels).run(grad_weight);
}

template PassScratch depthwise_pixels_grad_weight_scratch<float>(const ConvProblem&,
                                                                 const DepthwisePixelsGradWeightBlocks&, bool, bool);
template PassScratch depthwise_pixels_grad_weight_scratch<double>(const ConvProblem&,
                                                                  const DepthwisePixelsGradWeightBlocks&, bool, bool);
template void depthwise_pixels_grad_weight(const ConvProblem&, const Border&, TensorView<const float>,
                                           TensorView<const float>, float*, const KernelSet<float>&);
template void depthwise_pixels_grad_weight(const ConvProblem&, const Border&, TensorView<const double>,
                                           TensorView<const double>, double*, const KernelSet<double>&);

}  // namespace convx
