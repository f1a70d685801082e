// Weight gradient of convolutions with few channels a group:
//
//   grad_weight[k, c, r, s] = sum over n, p, q of grad_output[n, k, p, q] * input[n, c, h(r, p), w(s, q)]
//
// Vectors run over the columns q, one sum a lane. A task owns a few groups and a contiguous part of the rows (n, p);
// block by block it stages the input (and grad_output, unless its columns are adjacent in memory) and adds to its sums.
// At the end lanes and parts are added in order. The parts follow from the problem alone.
#include <algorithm>
#include <cmath>

#include "common/rounding.h"
#include "cpu/conv2d/depthwise.h"
#include "cpu/conv2d/grouped_channels.h"
#include "cpu/conv2d/methods.h"
#include "cpu/conv2d/plain.h"
#include "cpu/conv2d/plan.h"
#include "cpu/conv2d/staging.h"
#include "cpu/registry.h"
#include "cpu/scratch_parts.h"
#include "cpu/thread_pool.h"
#include "cpu/workspace.h"

namespace convx {

namespace {

// grad_output as a source that is staged without borders.
StagedAxis plain_axis(int64_t positions) {
    Axis axis;
    axis.input = positions;
    return staged_forward(axis);
}

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const GroupedBlocks& blocks, const GroupedSizes& sizes, int64_t lanes)
        : staged(parts.take<T>(blocks.staged_elements + lanes)),
          grad(parts.take<T>(blocks.through_scratch
                                 ? blocks.stage_groups * sizes.rows * blocks.block_rows * sizes.dest_pitch + lanes
                                 : 0)),
          pads(parts.take<T>(blocks.stage_groups * std::max(sizes.channels, sizes.rows))),
          sums(parts.take<T>(blocks.stage_groups * sizes.rows * sizes.channels * sizes.taps * lanes)),
          bytes(parts.bytes()) {}
    T* staged;  // [channel][place row][place]
    T* grad;    // [channel][row][column], where grad_output has no vectors of columns
    T* pads;
    T* sums;  // [channel of the result][channel, tap][lane]
    int64_t bytes;
};

template <class T>
class Nest {
public:
    Nest(const ConvProblem& problem, const Border& border, TensorView<const T> grad_output, TensorView<const T> input,
         const KernelSet<T>& kernels)
        : problem_(problem), kernels_(kernels), h_(staged_forward(problem.h)), w_(staged_forward(problem.w)),
          grad_h_(plain_axis(problem.out_h())), grad_w_(plain_axis(problem.out_w())), grad_(grad_output),
          pad_(static_cast<T>(border.value)), input_stage_(h_, w_, input, pad_, kernels),
          grad_stage_(grad_h_, grad_w_, grad_output, T(0), kernels),
          sizes_(grouped_sizes(h_, w_, problem.group_in(), problem.group_out())),
          blocks_(plan_grouped_grad_weight_blocks(
              sizes_, h_, problem.batch, problem.groups, sizeof(T),
              Stage<T>::channels_adjacent(input) || Stage<T>::channels_adjacent(grad_output),
              grad_output.stride[3] != 1)),
          plane_(blocks_.staged_rows * sizes_.source_pitch),
          weights_(problem.groups * sizes_.rows * sizes_.channels * sizes_.taps) {
        for (int64_t c = 0; c < sizes_.channels; ++c)
            for (const StagedAxis::Tap& r : h_.classes[0].taps)
                for (const StagedAxis::Tap& s : w_.classes[0].taps)
                    offsets_.push_back(c * plane_ + r.offset * sizes_.source_pitch + input_stage_.row().at(s.offset));
    }

    void run(T* grad_weight) const {
        const int64_t group_tasks = ceil_div(problem_.groups, blocks_.stage_groups * blocks_.task_units);
        const int64_t tasks = group_tasks * blocks_.splits;
        const int width = static_cast<int>(std::min<int64_t>({parallel_width(problem_.flops()), num_threads(), tasks}));
        const PassScratch scratch = grouped_grad_weight_scratch(blocks_, sizes_, weights_, kernels_);
        const Workspace workspace(static_cast<size_t>(scratch.shared_bytes + width * scratch.worker_bytes));
        T* partial = blocks_.splits == 1 ? grad_weight : static_cast<T*>(workspace.data());
        char* workers = static_cast<char*>(workspace.data()) + scratch.shared_bytes;
        parallel_for(tasks, width, [&](int64_t task, int worker) {
            const Scratch<T> own(ScratchParts(workers + worker * scratch.worker_bytes), blocks_, sizes_,
                                 kernels_.lanes);
            const int64_t split = task / group_tasks;
            const int64_t first = task % group_tasks * blocks_.task_units * blocks_.stage_groups;
            const int64_t last = std::min(problem_.groups, first + blocks_.task_units * blocks_.stage_groups);
            for (int64_t group = first; group < last; group += blocks_.stage_groups)
                run_groups(group, std::min(blocks_.stage_groups, last - group), split, partial + split * weights_, own);
        });
        if (blocks_.splits > 1) add_parts(partial, grad_weight);
    }

private:
    void run_groups(int64_t first_group, int64_t groups, int64_t split, T* partial, const Scratch<T>& scratch) const {
        const int64_t of_group = sizes_.rows * sizes_.channels * sizes_.taps;
        std::fill_n(scratch.sums, groups * of_group * kernels_.lanes, T(0));
        const int64_t all_rows = problem_.batch * sizes_.positions_h;
        const int64_t last = (split + 1) * all_rows / blocks_.splits;
        for (int64_t row = split * all_rows / blocks_.splits; row < last;) {
            const int64_t n = row / sizes_.positions_h, p = row % sizes_.positions_h;
            const int64_t rows = std::min({blocks_.block_rows, sizes_.positions_h - p, last - row});
            add_block(n, first_group, groups, p, rows, scratch);
            row += rows;
        }
        // The lanes in pairs, pairs of pairs, ...: shorter chains than one after the other.
        T* to = partial + first_group * of_group;
        for (int64_t i = 0; i < groups * of_group; ++i) {
            T* lanes = scratch.sums + i * kernels_.lanes;
            for (int64_t width = kernels_.lanes / 2; width > 0; width /= 2)
                for (int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
            to[i] = lanes[0];
        }
    }

    void add_block(int64_t n, int64_t first_group, int64_t groups, int64_t p, int64_t rows,
                   const Scratch<T>& scratch) const {
        const int64_t channels = groups * sizes_.channels, first_place = p * h_.advance;
        std::fill_n(scratch.pads, channels, pad_);
        input_stage_.fill(scratch.staged, plane_, n, first_group * sizes_.channels, channels, first_place,
                          std::min(h_.reach(rows), h_.places() - first_place), scratch.pads);
        GroupedGradWeight<T> job;
        job.grad = grad_.at(n, first_group * sizes_.rows, p, 0);
        job.grad_channel = grad_.stride[1];
        job.grad_row = grad_.stride[2];
        if (blocks_.through_scratch) {
            job.grad = scratch.grad;
            job.grad_channel = blocks_.block_rows * sizes_.dest_pitch;
            job.grad_row = sizes_.dest_pitch;
            grad_stage_.fill(scratch.grad, job.grad_channel, n, first_group * sizes_.rows, groups * sizes_.rows, p,
                             rows, scratch.pads);
        }
        job.source_row = h_.advance * sizes_.source_pitch;
        job.offsets = offsets_.data();
        job.taps = sizes_.channels * sizes_.taps;
        job.channels = sizes_.rows;
        job.rows = rows;
        job.columns = problem_.out_w();
        for (int64_t group = 0; group < groups; ++group) {
            job.source = scratch.staged + group * sizes_.channels * plane_;
            job.sums = scratch.sums + group * job.channels * job.taps * kernels_.lanes;
            kernels_.grouped_grad_weight(job);
            job.grad += job.channels * job.grad_channel;
        }
    }

    void add_parts(const T* partial, T* grad_weight) const {
        for (int64_t i = 0; i < weights_; ++i) {
            T sum = partial[i];
            for (int64_t split = 1; split < blocks_.splits; ++split) sum += partial[split * weights_ + i];
            grad_weight[i] = sum;
        }
    }

    const ConvProblem& problem_;
    const KernelSet<T>& kernels_;
    const StagedAxis h_, w_, grad_h_, grad_w_;
    const TensorView<const T> grad_;
    const T pad_;
    const Stage<T> input_stage_, grad_stage_;
    const GroupedSizes sizes_;
    const GroupedBlocks blocks_;
    const int64_t plane_;    // elements of a staged channel
    const int64_t weights_;  // of all groups
    std::vector<int64_t> offsets_;
};

}  // namespace

template <class T>
PassScratch grouped_grad_weight_scratch(const GroupedBlocks& blocks, const GroupedSizes& sizes, int64_t weights,
                                        const KernelSet<T>& kernels) {
    const int64_t partial = blocks.splits == 1 ? 0 : blocks.splits * weights * static_cast<int64_t>(sizeof(T));
    return {cache_lines(partial), Scratch<T>(ScratchParts(), blocks, sizes, kernels.lanes).bytes};
}

template <class T>
void grouped_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                         TensorView<T> grad_weight) {
    const Border border = border_of(problem, forward_table(problem.h), forward_table(problem.w));
    if (border.mixed) return plain_grad_weight(problem, grad_output, input, grad_weight);
    const KernelSet<T>& kernels = kernel_set<T>(active_kernels());
    if (depthwise_over_channels(problem))
        depthwise_pixels_grad_weight(problem, border, grad_output, input, grad_weight.data, kernels);
    else if (depthwise_planes_can_run(problem, ConvPass::grad_weight))
        depthwise_grad_weight(problem, grad_output, input, grad_weight.data, kernels);
    else if (grouped_takes_channels(ConvPass::grad_weight, problem.group_out(), kernels.lanes))
        grouped_channels_grad_weight(problem, static_cast<T>(border.value), grad_output, input, grad_weight.data,
                                     kernels);
    else
        Nest<T>(problem, border, grad_output, input, kernels).run(grad_weight.data);
    // An infinite or NaN gradient over the border has become 0 * inf = NaN, where it should have added nothing.
    if (border.skips &&
        std::any_of(grad_weight.data, grad_weight.data + grad_weight.size(), [](T value) { return std::isnan(value); }))
        plain_grad_weight(problem, grad_output, input, grad_weight);
}

template PassScratch grouped_grad_weight_scratch(const GroupedBlocks&, const GroupedSizes&, int64_t,
                                                 const KernelSet<float>&);
template PassScratch grouped_grad_weight_scratch(const GroupedBlocks&, const GroupedSizes&, int64_t,
                                                 const KernelSet<double>&);
template void grouped_grad_weight(const ConvProblem&, TensorView<const float>, TensorView<const float>,
                                  TensorView<float>);
template void grouped_grad_weight(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                                  TensorView<double>);

}  // namespace convx
