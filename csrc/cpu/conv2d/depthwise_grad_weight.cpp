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
#include "cpu/conv2d/plan.h"
#include "cpu/conv2d/staging.h"
#include "cpu/scratch_parts.h"
#include "cpu/thread_pool.h"
#include "cpu/workspace.h"

namespace convx {

namespace {

// Rows as they are, without borders.
StagedAxis plain_axis(int64_t positions) {
    Axis axis;
    axis.input = positions;
    return staged_forward(axis);
}

// Channels that are copied together: a line of floats, where channels are adjacent.
constexpr int64_t gathered_channels = 16;

int64_t source_rows(const ConvProblem& problem, int64_t rows) {
    return std::min(problem.h.input, (rows - 1) * problem.h.stride + problem.h.kernel);
}

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const ConvProblem& problem, const DepthwiseGradWeightBlocks& blocks, bool gathers,
            int64_t lanes)
        : zero_line(parts.take<T>(problem.w.input + 2 * masked_elements)),
          sums(parts.take<T>(std::min(blocks.task_channels, problem.groups) * problem.taps() * lanes)) {
        if (gathers) {
            source = parts.take<T>(gathered_channels * source_rows(problem, blocks.block_rows) * problem.w.input);
            grad = parts.take<T>(gathered_channels * blocks.block_rows * problem.out_w());
        }
        bytes = parts.bytes();
    }
    T *zero_line, *sums;                   // sums: [channel][tap][lane]
    T *source = nullptr, *grad = nullptr;  // [channel][row][column]
    int64_t bytes;

    T* zeros() const { return zero_line + masked_elements; }
};

template <class T>
class Nest {
public:
    Nest(const ConvProblem& problem, TensorView<const T> grad, TensorView<const T> input, const KernelSet<T>& kernels)
        : problem_(problem), kernels_(kernels), blocks_(plan_depthwise_grad_weight(problem)), grad_(grad),
          input_(input), gathers_(grad.stride[3] != 1 || input.stride[3] != 1), input_h_(plain_axis(problem.h.input)),
          input_w_(plain_axis(problem.w.input)), grad_h_(plain_axis(problem.out_h())),
          grad_w_(plain_axis(problem.out_w())), input_stage_(input_h_, input_w_, input, T(0), kernels),
          grad_stage_(grad_h_, grad_w_, grad, T(0), kernels) {}

    void run(T* grad_weight) const {
        const int64_t weights = problem_.groups * problem_.taps();
        const int64_t channel_tasks = ceil_div(problem_.groups, blocks_.task_channels);
        const int64_t tasks = channel_tasks * blocks_.splits, all_rows = problem_.batch * problem_.out_h();
        const int64_t work = depthwise_work(problem_.flops(), input_.size() + grad_.size());
        const int width = static_cast<int>(std::min<int64_t>({parallel_width(work), num_threads(), tasks}));
        const PassScratch scratch = depthwise_grad_weight_scratch(problem_, blocks_, gathers_, kernels_);
        const Workspace workspace(static_cast<size_t>(scratch.shared_bytes + width * scratch.worker_bytes));
        T* partial = blocks_.splits == 1 ? grad_weight : static_cast<T*>(workspace.data());
        char* workers = static_cast<char*>(workspace.data()) + scratch.shared_bytes;
        parallel_for(tasks, width, [&](int64_t task, int worker) {
            const Scratch<T> own(ScratchParts(workers + worker * scratch.worker_bytes), problem_, blocks_, gathers_,
                                 kernels_.lanes);
            std::fill_n(own.zeros(), problem_.w.input, T(0));
            const int64_t split = task / channel_tasks, first = task % channel_tasks * blocks_.task_channels;
            const int64_t channels = std::min(blocks_.task_channels, problem_.groups - first);
            const int64_t sums = channels * problem_.taps();
            std::fill_n(own.sums, sums * kernels_.lanes, T(0));
            add_rows(first, channels, split * all_rows / blocks_.splits, (split + 1) * all_rows / blocks_.splits, own);
            add_lanes(own.sums, sums, partial + split * weights + first * problem_.taps());
        });
        if (blocks_.splits == 1) return;
        for (int64_t i = 0; i < weights; ++i) {
            T sum = partial[i];
            for (int64_t split = 1; split < blocks_.splits; ++split) sum += partial[split * weights + i];
            grad_weight[i] = sum;
        }
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
        const T pads[gathered_channels] = {};
        const Axis& h = problem_.h;
        const int64_t first = std::clamp<int64_t>(job.first_row * h.stride - h.pad_before, 0, h.input);
        const int64_t last =
            std::clamp<int64_t>(h.position(job.first_row + job.rows - 1, h.kernel - 1) + 1, first, h.input);
        job.source_row = job.width;
        job.source_plane = (last - first) * job.width;
        job.source = scratch.source - first * job.width;
        job.grad_row = job.columns;
        job.grad_plane = job.rows * job.columns;
        job.grad = scratch.grad - job.first_row * job.columns;
        input_stage_.fill(scratch.source, job.source_plane, n, channel, job.planes, first, last - first, pads);
        grad_stage_.fill(scratch.grad, job.grad_plane, n, channel, job.planes, job.first_row, job.rows, pads);
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
    const DepthwiseGradWeightBlocks blocks_;
    const TensorView<const T> grad_, input_;
    const bool gathers_;
    const StagedAxis input_h_, input_w_, grad_h_, grad_w_;
    const Stage<T> input_stage_, grad_stage_;
};

}  // namespace

template <class T>
PassScratch depthwise_grad_weight_scratch(const ConvProblem& problem, const DepthwiseGradWeightBlocks& blocks,
                                          bool gathers, const KernelSet<T>& kernels) {
    const int64_t partial =
        blocks.splits == 1 ? 0 : blocks.splits * problem.groups * problem.taps() * static_cast<int64_t>(sizeof(T));
    return {cache_lines(partial), Scratch<T>(ScratchParts(), problem, blocks, gathers, kernels.lanes).bytes};
}

template <class T>
void depthwise_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                           T* grad_weight, const KernelSet<T>& kernels) {
    Nest<T>(problem, grad_output, input, kernels).run(grad_weight);
}

template PassScratch depthwise_grad_weight_scratch(const ConvProblem&, const DepthwiseGradWeightBlocks&, bool,
                                                   const KernelSet<float>&);
template PassScratch depthwise_grad_weight_scratch(const ConvProblem&, const DepthwiseGradWeightBlocks&, bool,
                                                   const KernelSet<double>&);
template void depthwise_grad_weight(const ConvProblem&, TensorView<const float>, TensorView<const float>, float*,
                                    const KernelSet<float>&);
template void depthwise_grad_weight(const ConvProblem&, TensorView<const double>, TensorView<const double>, double*,
                                    const KernelSet<double>&);

}  // namespace convx
