// Weight gradient of convolutions with few channels a group:
//
//   grad_weight[k, c, r, s] = sum over n, p, q of grad_output[n, k, p, q] * input[n, c, h(r, p), w(s, q)]
//
// Vectors run over the columns q, one sum a lane. A task owns a few groups and a contiguous part of the rows (n, p);
// block by block it copies the input into a padded tile (and grad_output, unless its columns are adjacent in memory)
// and adds to its sums.
// At the end lanes and parts are added in order. The parts follow from the problem alone.
#include <algorithm>

#include "common/rounding.h"
#include "cpu/conv2d/direct.h"
#include "cpu/runtime/split_sum.h"

namespace convx {

namespace {

SpatialBlocks plan_blocks(const ConvProblem& problem, const PlaneLayout& layout, bool channels_inside) {
    SpatialBlocks blocks = spatial_blocks(layout, problem.groups, problem.group_in(), problem.group_out(),
                                          item_size(problem.dtype), channels_inside, tile_bytes_l1);
    // Lanes and parts are added at the end: no more parts than there is work for.
    const int64_t most = std::min(problem.batch * problem.out_h(), problem.flops() / task_flops);
    blocks.splits = std::clamp(wanted_tasks / problem.groups, int64_t{1}, std::max<int64_t>(most, 1));
    const int64_t units = ceil_div(problem.groups, blocks.groups);
    blocks.task_units = units_of_a_task(units, problem.flops() / problem.groups * blocks.groups / blocks.splits);
    return blocks;
}

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, int64_t tile, int64_t grad_size, int64_t sums_size)
        : planes(parts.take<T>(tile)), grad(parts.take<T>(grad_size)), sums(parts.take<T>(sums_size)),
          bytes(parts.bytes()) {}
    T* planes;  // [channel][plane]
    T* grad;    // [output channel][plane], where grad_output has no vectors of columns
    T* sums;    // [output channel][channel, tap][lane]
    int64_t bytes;
};

template <class T>
class DirectSpatialSumDriver {
public:
    DirectSpatialSumDriver(const PixelSum<T>& sum, const KernelSet<T>& kernels)
        : problem_(*sum.problem), kernels_(kernels), grad_(sum.grad_output), input_(sum.input),
          channels_(problem_.group_in()), rows_(problem_.group_out()), columns_(channels_ * problem_.taps()),
          layout_(spatial_layout(problem_, true)), grad_layout_(plain_layout(problem_.out_h(), problem_.out_w())),
          blocks_(plan_blocks(problem_, layout_, channels_adjacent(input_) || channels_adjacent(grad_))),
          tile_(layout_, strides_of(input_.stride), sum.pad(), kernels),
          grad_tile_(grad_layout_, strides_of(grad_.stride), T(0), kernels),
          plane_(layout_.plane_size(blocks_.rows, kernels.lanes)),
          grad_plane_(grad_.stride[3] == 1 ? 0 : grad_layout_.plane_size(blocks_.rows, kernels.lanes)) {
        for (const int32_t offset : layout_.offsets(0, 0, channels_, plane_)) offsets_.push_back(offset);
    }

    const SpatialBlocks& blocks() const { return blocks_; }

    TaskPlan tasks() const {
        return {group_tasks() * blocks_.splits, problem_.flops(), SplitSum<T>::bytes(blocks_.splits, weights()),
                scratch(ScratchParts()).bytes};
    }

    void run(T* grad_weight) const {
        const int64_t group_tasks = this->group_tasks();
        const TaskPlan plan = tasks();
        const TaskRunner runner(plan);
        const SplitSum<T> sums(grad_weight, runner.shared(), blocks_.splits, weights());
        runner.run(plan.tasks, [&](int64_t task, ScratchParts parts) {
            const Scratch<T> own = scratch(parts);
            const int64_t split = task / group_tasks;
            const int64_t first = task % group_tasks * blocks_.task_units * blocks_.groups;
            const int64_t last = std::min(problem_.groups, first + blocks_.task_units * blocks_.groups);
            for (int64_t group = first; group < last; group += blocks_.groups)
                run_groups(group, std::min(blocks_.groups, last - group), split, sums.part(split), own);
        });
        sums.add();
    }

private:
    int64_t group_tasks() const { return ceil_div(problem_.groups, blocks_.groups * blocks_.task_units); }
    int64_t weights() const { return problem_.groups * rows_ * columns_; }
    Scratch<T> scratch(ScratchParts parts) const {
        return {parts, blocks_.groups * channels_ * layout_.planes() * plane_, blocks_.groups * rows_ * grad_plane_,
                blocks_.groups * rows_ * columns_ * kernels_.lanes};
    }

    void run_groups(int64_t first_group, int64_t groups, int64_t split, T* partial, const Scratch<T>& scratch) const {
        std::fill_n(scratch.sums, groups * rows_ * columns_ * kernels_.lanes, T(0));
        const int64_t height = problem_.out_h(), all_rows = problem_.batch * height;
        const int64_t last = (split + 1) * all_rows / blocks_.splits;
        for (int64_t row = split * all_rows / blocks_.splits; row < last;) {
            const int64_t n = row / height, p = row % height;
            const int64_t rows = std::min({blocks_.rows, height - p, last - row});
            add_block(n, first_group, groups, p, rows, scratch);
            row += rows;
        }
        // The lanes in pairs, pairs of pairs, ...: shorter chains than one after the other.
        T* to = partial + first_group * rows_ * columns_;
        for (int64_t i = 0; i < groups * rows_ * columns_; ++i) {
            T* lanes = scratch.sums + i * kernels_.lanes;
            for (int64_t width = kernels_.lanes / 2; width > 0; width /= 2)
                for (int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
            to[i] = lanes[0];
        }
    }

    void add_block(int64_t n, int64_t first_group, int64_t groups, int64_t p, int64_t rows,
                   const Scratch<T>& scratch) const {
        tile_.copy(scratch.planes, plane_, input_.at(n, first_group * channels_, 0, 0), groups * channels_, p, rows);
        DirectGradWeightArgs<T> args;
        args.grad = grad_.at(n, first_group * rows_, p, 0);
        args.grad_channel = grad_.stride[1];
        args.grad_row = grad_.stride[2];
        if (grad_plane_ > 0) {
            grad_tile_.copy(scratch.grad, grad_plane_, grad_.at(n, first_group * rows_, 0, 0), groups * rows_, p, rows);
            args.grad = scratch.grad;
            args.grad_channel = grad_plane_;
            args.grad_row = grad_layout_.pitch;
        }
        args.source_row = layout_.row_step();
        args.offsets = offsets_.data();
        args.taps = columns_;
        args.channels = rows_;
        args.rows = rows;
        args.columns = problem_.out_w();
        for (int64_t group = 0; group < groups; ++group) {
            args.source = scratch.planes + group * channels_ * layout_.planes() * plane_;
            args.sums = scratch.sums + group * rows_ * columns_ * kernels_.lanes;
            kernels_.direct_grad_weight(args);
            args.grad += rows_ * args.grad_channel;
        }
    }

    const ConvProblem& problem_;
    const KernelSet<T>& kernels_;
    const TensorView<const T> grad_, input_;
    const int64_t channels_, rows_, columns_;  // of a group: columns are channels and taps
    const PlaneLayout layout_, grad_layout_;
    const SpatialBlocks blocks_;
    const PaddedTile<T> tile_, grad_tile_;
    const int64_t plane_, grad_plane_;  // elements of a plane
    std::vector<int64_t> offsets_;
};

}  // namespace

struct DirectSpatialSumMethod : SumMethod<DirectSpatialSumDriver> {
    static constexpr const char* name = "direct-spatial";

    static Verdict supports(const ConvProblem& problem, ConvPass) { return supports_groups(problem); }
    static Work work(const WorkSizes& sizes) {
        Work work = sizes.common();
        const TileGrid grid(sizes.rows, double(direct_panel), sizes.channels * sizes.taps, 3);
        work[WorkKind::cycles] = sizes.groups * sizes.h.dest * sizes.vectors(sizes.w.dest) * grid.cycles;
        work[WorkKind::tiles] = sizes.groups * sizes.h.dest * grid.tiles;
        sizes.add_padded_tile(work);
        sizes.add_result(work, false);
        return work;
    }

    template <class T>
    static void describe(const PixelSum<T>& sum, const DirectSpatialSumDriver<T>& driver, const KernelSet<T>& kernels,
                         PassPlan& text) {
        const SpatialBlocks& blocks = driver.blocks();
        text.tile = std::to_string(std::min(sum.problem->group_out(), direct_panel)) + " output channels x " +
                    std::to_string(kernels.lanes) + " pixels";
        text.block =
            rows_of_groups(blocks) + ", " + std::to_string(blocks.splits) + (blocks.splits == 1 ? " part" : " parts");
        text.reason = "few weights a group: sums over vectors of pixels stay in registers";
        if (blocks.splits > 1) text.reason += "; too few groups for all tasks, so the rows are split";
    }
};

template const Method<PixelSum<float>>& method_row<DirectSpatialSumMethod, PixelSum<float>>();
template const Method<PixelSum<double>>& method_row<DirectSpatialSumMethod, PixelSum<double>>();

}  // namespace convx
