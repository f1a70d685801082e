// Weight gradient of convolutions with few channels a group:
//
//   grad_weight[k, c, r, s] = sum over n, p, q of grad_output[n, k, p, q] * input[n, c, h(r, p), w(s, q)]
//
// Vectors run over the columns q, one sum a lane. A task owns a few groups and a contiguous part of the rows (n, p);
// block by block it stages the input (and grad_output, unless its columns are adjacent in memory) and adds to its sums.
// At the end lanes and parts are added in order. The parts follow from the problem alone.
#include <algorithm>

#include "common/rounding.h"
#include "cpu/conv2d/grouped_staged.h"
#include "cpu/runtime/split_sum.h"

namespace convx {

namespace {

GroupedBlocks plan_blocks(const GroupedSizes& sizes, const StagedAxis& h, int64_t batch, int64_t groups,
                          int64_t item_bytes, bool channels_inside, bool through_scratch) {
    GroupedBlocks blocks = staged_blocks(sizes, h, groups, item_bytes, channels_inside, through_scratch);
    blocks.splits =
        std::clamp(grouped_wanted_tasks / groups, int64_t{1}, std::max<int64_t>(batch * sizes.positions_h, 1));
    const int64_t units = ceil_div(groups, blocks.stage_groups);
    const int64_t unit_flops = std::max<int64_t>(sizes.flops * batch * blocks.stage_groups / blocks.splits, 1);
    blocks.task_units =
        std::clamp(grouped_task_flops / unit_flops, int64_t{1}, std::max<int64_t>(units / grouped_wanted_tasks, 1));
    return blocks;
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
class GroupedStagedSumDriver {
public:
    GroupedStagedSumDriver(const PixelSum<T>& sum, const KernelSet<T>& kernels)
        : problem_(*sum.problem), kernels_(kernels), h_(staged_axis(problem_.h, true)),
          w_(staged_axis(problem_.w, true)), grad_h_(plain_axis(problem_.out_h())),
          grad_w_(plain_axis(problem_.out_w())), grad_(sum.grad_output), pad_(sum.pad()),
          input_stage_(h_, w_, sum.input, pad_, kernels), grad_stage_(grad_h_, grad_w_, sum.grad_output, T(0), kernels),
          sizes_(grouped_sizes(h_, w_, problem_.group_in(), problem_.group_out())),
          blocks_(plan_blocks(sizes_, h_, problem_.batch, problem_.groups, sizeof(T),
                              Stage<T>::channels_adjacent(sum.input) || Stage<T>::channels_adjacent(sum.grad_output),
                              sum.grad_output.stride[3] != 1)),
          plane_(blocks_.staged_rows * sizes_.source_pitch), weights_(sum.weights()) {
        for (int64_t c = 0; c < sizes_.channels; ++c)
            for (const StagedAxis::Tap& r : h_.classes[0].taps)
                for (const StagedAxis::Tap& s : w_.classes[0].taps)
                    offsets_.push_back(c * plane_ + r.offset * sizes_.source_pitch + input_stage_.row().at(s.offset));
    }

    const GroupedBlocks& blocks() const { return blocks_; }

    TaskPlan tasks() const {
        return {group_tasks() * blocks_.splits, problem_.flops(), SplitSum<T>::bytes(blocks_.splits, weights_),
                Scratch<T>(ScratchParts(), blocks_, sizes_, kernels_.lanes).bytes};
    }

    void run(T* grad_weight) const {
        const int64_t group_tasks = this->group_tasks();
        const TaskPlan plan = tasks();
        const TaskRunner runner(plan);
        const SplitSum<T> sums(grad_weight, runner.shared(), blocks_.splits, weights_);
        runner.run(plan.tasks, [&](int64_t task, ScratchParts parts) {
            const Scratch<T> own(parts, blocks_, sizes_, kernels_.lanes);
            const int64_t split = task / group_tasks;
            const int64_t first = task % group_tasks * blocks_.task_units * blocks_.stage_groups;
            const int64_t last = std::min(problem_.groups, first + blocks_.task_units * blocks_.stage_groups);
            for (int64_t group = first; group < last; group += blocks_.stage_groups)
                run_groups(group, std::min(blocks_.stage_groups, last - group), split, sums.part(split), own);
        });
        sums.add();
    }

private:
    int64_t group_tasks() const { return ceil_div(problem_.groups, blocks_.stage_groups * blocks_.task_units); }

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

struct GroupedStagedSumMethod : SumMethod<GroupedStagedSumDriver> {
    static constexpr const char* name = "grouped-staged";

    static Verdict supports(const ConvProblem& problem, ConvPass) { return supports_groups(problem); }
    static bool suits(const ConvProblem& problem, ConvPass, const Kernels&) { return has_few_channels(problem); }

    template <class T>
    static void describe(const PixelSum<T>& sum, const GroupedStagedSumDriver<T>& driver, const KernelSet<T>& kernels,
                         PassPlan& text) {
        const GroupedBlocks& blocks = driver.blocks();
        text.tile = std::to_string(std::min(sum.problem->group_out(), grouped_panel)) + " output channels x " +
                    std::to_string(kernels.lanes) + " pixels";
        text.block =
            rows_of_groups(blocks) + ", " + std::to_string(blocks.splits) + (blocks.splits == 1 ? " part" : " parts");
        text.reason = "few weights a group: sums over vectors of pixels stay in registers";
        if (blocks.splits > 1) text.reason += "; too few groups for all tasks, so the rows are split";
    }
};

template const Method<PixelSum<float>>& method_row<GroupedStagedSumMethod, PixelSum<float>>();
template const Method<PixelSum<double>>& method_row<GroupedStagedSumMethod, PixelSum<double>>();

}  // namespace convx
