// Weight gradient of depthwise convolutions over planes:
//
//   grad_weight[c, r, s] = sum over n, p, q of grad_output[n, c, p, q] * input[n, c, p * stride + r - pad, ...]
//
// A task owns some channels and a contiguous part of the rows (n, p), and goes through it block by block: straight in
// the arrays where their columns are adjacent, else in copies of a block that have them so. Each sum keeps a vector of
// lanes; at the end lanes and parts are added in order. Blocks and parts follow from the problem alone.
#include <algorithm>

#include "common/rounding.h"
#include "cpu/conv2d/depthwise.h"
#include "cpu/conv2d/padded_tile.h"
#include "cpu/runtime/split_sum.h"

namespace convx {

namespace {

// Channels that are copied together: a line of floats, where channels are adjacent.
constexpr int64_t gathered_channels = 16;

int64_t source_rows(const ConvProblem& problem, int64_t rows) {
    return std::min(problem.h.input, (rows - 1) * problem.h.stride + problem.h.kernel);
}

struct Blocks {
    int64_t block_rows = 1;     // rows of the gradient summed in one go
    int64_t task_channels = 1;  // of one task
    int64_t splits = 1;         // parts of the rows of the batch, added in order at the end
};

Blocks plan_blocks(const ConvProblem& problem) {
    Blocks blocks;
    const int64_t rows = problem.out_h(), channels = problem.groups, stride = problem.h.stride;
    const int64_t row_bytes = item_size(problem.dtype) * (stride * problem.w.input + problem.out_w());
    const int64_t fit = std::max<int64_t>(depthwise_rows_bytes / row_bytes, 4);
    blocks.block_rows = std::min(rows, round_up(ceil_div(rows, ceil_div(rows, fit)), 4));
    blocks.splits = std::clamp(grouped_wanted_tasks / channels, int64_t{1}, std::max<int64_t>(problem.batch * rows, 1));
    const int64_t channel_flops = std::max<int64_t>(problem.flops() / channels / blocks.splits, 1);
    blocks.task_channels = std::clamp(grouped_task_flops / channel_flops, int64_t{1},
                                      std::max<int64_t>(channels / grouped_wanted_tasks, 1));
    return blocks;
}

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const ConvProblem& problem, const Blocks& blocks, bool gathers, int64_t lanes)
        : zero_line(parts.take<T>(problem.w.input + 2 * masked_elements)),
          sums(parts.take<T>(std::min(blocks.task_channels, problem.groups) * problem.taps() * lanes)) {
        if (gathers) {
            source =
                parts.take<T>(gathered_channels * (source_rows(problem, blocks.block_rows) * problem.w.input + lanes));
            grad = parts.take<T>(gathered_channels * (blocks.block_rows * problem.out_w() + lanes));
        }
        bytes = parts.bytes();
    }
    T *zero_line, *sums;                   // sums: [channel][tap][lane]
    T *source = nullptr, *grad = nullptr;  // [channel][row][column]
    int64_t bytes;

    T* zeros() const { return zero_line + masked_elements; }
};

template <class T>
class DepthwisePlanesSumDriver {
public:
    DepthwisePlanesSumDriver(const PixelSum<T>& sum, const KernelSet<T>& kernels)
        : problem_(*sum.problem), kernels_(kernels), blocks_(plan_blocks(problem_)), grad_(sum.grad_output),
          input_(sum.input), gathers_(grad_.stride[3] != 1 || input_.stride[3] != 1),
          input_layout_(plain_layout(problem_.h.input, problem_.w.input)),
          grad_layout_(plain_layout(problem_.out_h(), problem_.out_w())),
          input_tile_(input_layout_, strides_of(input_.stride), T(0), kernels),
          grad_tile_(grad_layout_, strides_of(grad_.stride), T(0), kernels) {}

    const Blocks& blocks() const { return blocks_; }

    TaskPlan tasks() const {
        return {ceil_div(problem_.groups, blocks_.task_channels) * blocks_.splits,
                depthwise_work(problem_.flops(), input_.size() + grad_.size()),
                SplitSum<T>::bytes(blocks_.splits, problem_.groups * problem_.taps()),
                Scratch<T>(ScratchParts(), problem_, blocks_, gathers_, kernels_.lanes).bytes};
    }

    void run(T* grad_weight) const {
        const int64_t weights = problem_.groups * problem_.taps(), all_rows = problem_.batch * problem_.out_h();
        const int64_t channel_tasks = ceil_div(problem_.groups, blocks_.task_channels);
        const TaskPlan plan = tasks();
        const TaskRunner runner(plan);
        const SplitSum<T> parts(grad_weight, runner.shared(), blocks_.splits, weights);
        runner.run(plan.tasks, [&](int64_t task, ScratchParts scratch_parts) {
            const Scratch<T> own(scratch_parts, problem_, blocks_, gathers_, kernels_.lanes);
            std::fill_n(own.zeros(), problem_.w.input, T(0));
            const int64_t split = task / channel_tasks, first = task % channel_tasks * blocks_.task_channels;
            const int64_t channels = std::min(blocks_.task_channels, problem_.groups - first);
            const int64_t sums = channels * problem_.taps();
            std::fill_n(own.sums, sums * kernels_.lanes, T(0));
            add_rows(first, channels, split * all_rows / blocks_.splits, (split + 1) * all_rows / blocks_.splits, own);
            add_lanes(own.sums, sums, parts.part(split) + first * problem_.taps());
        });
        parts.add();
    }

private:
    void add_rows(int64_t first_channel, int64_t channels, int64_t row, int64_t last, const Scratch<T>& scratch) const {
        const int64_t at_once = gathers_ ? gathered_channels : channels, image_rows = problem_.out_h();
        while (row < last) {
            const int64_t n = row / image_rows, p = row % image_rows;
            const int64_t rows = std::min({blocks_.block_rows, image_rows - p, last - row});
            for (int64_t c = 0; c < channels; c += at_once)
                add_block(n, first_channel + c, std::min(at_once, channels - c), p, rows, scratch,
                          scratch.sums + c * problem_.taps() * kernels_.lanes);
            row += rows;
        }
    }

    void add_block(int64_t n, int64_t channel, int64_t channels, int64_t p, int64_t rows, const Scratch<T>& scratch,
                   T* sums) const {
        DepthwiseGradWeight<T> job;
        job.planes = channels;
        job.height = problem_.h.input;
        job.width = problem_.w.input;
        job.pad_top = problem_.h.pad_before;
        job.pad_left = problem_.w.pad_before;
        job.zeros = scratch.zeros();
        job.first_row = p;
        job.rows = rows;
        job.columns = problem_.out_w();
        job.sums = sums;
        job.source = input_.at(n, channel, 0, 0);
        job.source_plane = input_.stride[1];
        job.source_row = input_.stride[2];
        job.grad = grad_.at(n, channel, 0, 0);
        job.grad_plane = grad_.stride[1];
        job.grad_row = grad_.stride[2];
        if (gathers_) gather(n, channel, job, scratch);
        kernels_.depthwise_grad_weight(static_cast<int>(problem_.h.kernel), static_cast<int>(problem_.h.stride), job);
    }

    // Copies of what the job reads.
    void gather(int64_t n, int64_t channel, DepthwiseGradWeight<T>& job, const Scratch<T>& scratch) const {
        const Axis& h = problem_.h;
        const int64_t first = std::clamp<int64_t>(job.first_row * h.stride - h.pad_before, 0, h.input);
        const int64_t last =
            std::clamp<int64_t>(h.position(job.first_row + job.rows - 1, h.kernel - 1) + 1, first, h.input);
        job.source_row = job.width;
        job.source_plane = input_layout_.plane_size(last - first, kernels_.lanes);
        job.source = scratch.source - first * job.width;
        job.grad_row = job.columns;
        job.grad_plane = grad_layout_.plane_size(job.rows, kernels_.lanes);
        job.grad = scratch.grad - job.first_row * job.columns;
        input_tile_.copy(scratch.source, job.source_plane, input_.at(n, channel, 0, 0), job.planes, first,
                         last - first);
        grad_tile_.copy(scratch.grad, job.grad_plane, grad_.at(n, channel, 0, 0), job.planes, job.first_row, job.rows);
    }

    void add_lanes(const T* sums, int64_t count, T* to) const {
        if (kernels_.lanes == 16) return add_lanes_of<16>(sums, count, to);
        if (kernels_.lanes == 8) return add_lanes_of<8>(sums, count, to);
        if (kernels_.lanes == 4) return add_lanes_of<4>(sums, count, to);
        add_lanes_of<2>(sums, count, to);
    }

    template <int lanes>
    static void add_lanes_of(const T* sums, int64_t count, T* to) {
        for (int64_t i = 0; i < count; ++i) to[i] = sum_lanes<lanes, 1>(sums + i * lanes);
    }

    // The lanes in pairs, pairs of pairs, ...: shorter chains than one after the other.
    template <int lanes, int width>
    static T sum_lanes(const T* lane) {
        if constexpr (width == lanes)
            return *lane;
        else
            return sum_lanes<lanes, 2 * width>(lane) + sum_lanes<lanes, 2 * width>(lane + width);
    }

    const ConvProblem& problem_;
    const KernelSet<T>& kernels_;
    const Blocks blocks_;
    const TensorView<const T> grad_, input_;
    const bool gathers_;
    const PlaneLayout input_layout_, grad_layout_;
    const PaddedTile<T> input_tile_, grad_tile_;
};

}  // namespace

struct DepthwisePlanesSumMethod : SumMethod<DepthwisePlanesSumDriver> {
    static constexpr const char* name = "depthwise";

    static Verdict supports(const ConvProblem& problem, ConvPass) {
        if (!depthwise_planes_take(problem)) return {"needs one channel a group and 3 x 3 or 5 x 5 with stride 1 or 2"};
        return supports_groups(problem);
    }
    static bool suits(const ConvProblem&, ConvPass, const Kernels&) { return true; }

    template <class T>
    static void describe(const PixelSum<T>& sum, const DepthwisePlanesSumDriver<T>& driver, const KernelSet<T>& kernels,
                         PassPlan& text) {
        const Blocks& blocks = driver.blocks();
        text.tile = std::to_string(std::min<int64_t>(sum.problem->taps(), 10)) + " taps x " +
                    std::to_string(kernels.lanes) + " pixels";
        text.block = std::to_string(blocks.block_rows) + " rows of one plane, " + std::to_string(blocks.splits) +
                     (blocks.splits == 1 ? " part" : " parts");
        text.reason = "one channel a group: sums over vectors of pixels stay in registers";
        if (blocks.splits > 1) text.reason += "; too few channels for all tasks, so the rows are split";
    }
};

template const Method<PixelSum<float>>& method_row<DepthwisePlanesSumMethod, PixelSum<float>>();
template const Method<PixelSum<double>>& method_row<DepthwisePlanesSumMethod, PixelSum<double>>();

}  // namespace convx
