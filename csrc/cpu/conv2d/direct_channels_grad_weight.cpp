// Weight gradient with vectors over output channels, of any number of groups:
//
//   sums[(c, r, s)][k] = sum over pixels d of tile[(c, r, s) + place of d] * grad_output[d][k]
//
// Pixels are broadcast from a padded tile, and grad_output stands beside it with its channels adjacent: transposed in
// NCHW, 0.3 cycles an element, against taps / 16 cycles of FMA. No lane is lost between short rows, and no tile ends
// with a sum across lanes.
//
// Work: a task owns a group and some of the chunks of the batch, row blocks of an image or several small images. Pixels
// run in ascending order, chunks too, and the tasks' sums are added in order at the end (split-K). All cuts follow from
// the problem.
#include <algorithm>

#include "common/rounding.h"
#include "cpu/conv2d/direct.h"
#include "cpu/runtime/split_sum.h"

namespace convx {

namespace {

// The padded tile of a chunk, in L2 beside grad_output and the sums.
constexpr int64_t tile_bytes = 96 * 1024;
// Pixels of a chunk: enough that the 25 cycles of a tile beside its products count little, few enough that grad_output
// stays in L1 (512 pixels of 16 channels are 32 KiB).
constexpr int64_t most_pixels = 512, least_pixels = 128;
constexpr int64_t most_splits = 32;

struct Blocks {
    int64_t rows = 1;    // of the output, or
    int64_t images = 1;  // whole ones, in a chunk
    int64_t chunks = 1;  // of the batch
    int64_t splits = 1;  // split-K
};

Blocks plan_blocks(const PlaneLayout& layout, int64_t batch, int64_t groups, int64_t channels, int64_t item_bytes) {
    Blocks blocks;
    const int64_t height = layout.h.positions(), width = layout.w.positions();
    const int64_t row_bytes = channels * layout.planes() * layout.row_step() * item_bytes;
    const int64_t reach = layout.reach / layout.h.advance;
    const int64_t fit = std::max(tile_bytes / row_bytes - reach, reach / 2 + 1);
    blocks.rows = even_part(height, std::min(ceil_div(most_pixels, width), fit));
    if (blocks.rows == height) blocks.images = std::clamp(least_pixels / (height * width), int64_t{1}, batch);
    blocks.chunks = ceil_div(batch, blocks.images) * ceil_div(height, blocks.rows);
    blocks.splits = std::min(blocks.chunks, std::max<int64_t>(most_splits / groups, 1));
    return blocks;
}

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, int64_t tile, int64_t grad_size, int64_t columns, int64_t sums_size)
        : planes(parts.take<T>(tile)), grad(parts.take<T>(grad_size)), sums(parts.take<T>(sums_size)),
          columns_at(parts.take<const T*>(columns)), bytes(parts.bytes()) {}
    T* planes;             // [image][channel][plane]
    T* grad;               // [pixel][output channel of a panel]
    T* sums;               // [panel][channel, tap][output channel], where they are not shared
    const T** columns_at;  // of each channel and tap
    int64_t bytes;
};

template <class T>
class DirectChannelsSumDriver {
public:
    DirectChannelsSumDriver(const PixelSum<T>& sum, const KernelSet<T>& kernels)
        : problem_(*sum.problem), grad_(sum.grad_output), input_(sum.input), kernels_(kernels), nr_(kernels.nr),
          layout_(phases_of_forward(problem_.h), phases_of_forward(problem_.w)), channels_(problem_.group_in()),
          rows_(problem_.group_out()), columns_(channels_ * problem_.taps()), panels_(ceil_div(rows_, nr_)),
          blocks_(plan_blocks(layout_, problem_.batch, problem_.groups, channels_, sizeof(T))),
          padded_tile_(layout_, strides_of(sum.input.stride), sum.pad(), kernels),
          plane_(layout_.plane_size(blocks_.rows, kernels.lanes)), image_(channels_ * layout_.planes() * plane_),
          taps_(layout_.offsets(0, 0, channels_, plane_)) {
        for (int64_t n = 0; n < blocks_.images; ++n)
            for (int64_t row = 0; row < blocks_.rows; ++row)
                for (int64_t j = 0; j < layout_.w.positions(); ++j)
                    places_.push_back(
                        static_cast<int32_t>(n * image_ + row * layout_.row_step() + j * layout_.w.advance));
    }

    const Blocks& blocks() const { return blocks_; }

    TaskPlan tasks() const {
        return {problem_.groups * blocks_.splits, problem_.flops(),
                SplitSum<T>::bytes(blocks_.splits, problem_.groups * group_sums()), scratch(ScratchParts()).bytes};
    }

    void run(T* grad_weight) const {
        const TaskPlan plan = tasks();
        const TaskRunner runner(plan);
        T* const first = static_cast<T*>(runner.shared());
        const SplitSum<T> sums(first, first, blocks_.splits, problem_.groups * group_sums());
        runner.run(plan.tasks, [&](int64_t task, ScratchParts parts) {
            const Scratch<T> own = scratch(parts);
            const int64_t group = task / blocks_.splits, split = task % blocks_.splits;
            T* const to = blocks_.splits == 1 ? own.sums : sums.part(split) + group * group_sums();
            std::fill_n(to, group_sums(), T(0));
            const int64_t last = (split + 1) * blocks_.chunks / blocks_.splits;
            for (int64_t chunk = split * blocks_.chunks / blocks_.splits; chunk < last; ++chunk)
                add_chunk(group, chunk, own, to);
            if (blocks_.splits == 1) store(grad_weight + group * rows_ * columns_, to, own);
        });
        if (blocks_.splits == 1) return;
        sums.add();
        runner.run(problem_.groups, [&](int64_t group, ScratchParts parts) {
            store(grad_weight + group * rows_ * columns_, first + group * group_sums(), scratch(parts));
        });
    }

private:
    struct Chunk {
        int64_t n, images, first, rows;
    };

    int64_t group_sums() const { return panels_ * columns_ * nr_; }
    Scratch<T> scratch(ScratchParts parts) const {
        return {parts, blocks_.images * image_, static_cast<int64_t>(places_.size()) * nr_, columns_,
                blocks_.splits == 1 ? group_sums() : 0};
    }

    Chunk chunk_of(int64_t chunk) const {
        const int64_t height = layout_.h.positions(), row_blocks = ceil_div(height, blocks_.rows);
        const int64_t n = chunk / row_blocks * blocks_.images, first = chunk % row_blocks * blocks_.rows;
        return {n, std::min(blocks_.images, problem_.batch - n), first, std::min(blocks_.rows, height - first)};
    }

    void add_chunk(int64_t group, int64_t index, const Scratch<T>& scratch, T* sums) const {
        const Chunk chunk = chunk_of(index);
        for (int64_t i = 0; i < chunk.images; ++i)
            padded_tile_.copy(scratch.planes + i * image_, plane_, input_.at(chunk.n + i, group * channels_, 0, 0),
                              channels_, chunk.first, chunk.rows);
        const int64_t tiles = ceil_div(columns_, kernels_.mr);
        Prefetch<T> ahead;
        if (index + 1 < blocks_.chunks) {
            const Chunk next = chunk_of(index + 1);
            ahead = padded_tile_.prefetch(input_.at(next.n, group * channels_, 0, 0), channels_, next.first, next.rows,
                                          panels_ * tiles);
        }
        for (int64_t column = 0; column < columns_; ++column)
            scratch.columns_at[column] = scratch.planes + taps_[static_cast<size_t>(column)];
        const int64_t pixels = chunk.images * chunk.rows * layout_.w.positions();
        for (int64_t panel = 0; panel < panels_; ++panel, sums += columns_ * nr_) {
            const int width = static_cast<int>(std::min(nr_, rows_ - panel * nr_));
            pack_grad(scratch.grad, chunk, group * rows_ + panel * nr_, width);
            for (int64_t tile = 0, first = 0; tile < tiles; ++tile) {
                const int64_t stop = (tile + 1) * columns_ / tiles;
                ahead.next();
                kernels_.gemm_tile_pixels(static_cast<int>(stop - first), width, pixels,
                                          {scratch.columns_at + first, places_.data()}, scratch.grad,
                                          {sums + first * nr_, nr_, true});
                first = stop;
            }
        }
    }

    // [pixel][output channel of a panel]
    void pack_grad(T* to, const Chunk& chunk, int64_t first_channel, int width) const {
        const Strides from = strides_of(grad_.stride);
        const int64_t columns = layout_.w.positions();
        // Lanes that no channel fills are multiplied too: numbers, since denormal leftovers would be slow.
        if (width < nr_) std::fill_n(to, chunk.images * chunk.rows * columns * nr_, T(0));
        const bool flat = from.h == columns * from.w;
        const int64_t runs = flat ? 1 : chunk.rows, run = flat ? chunk.rows * columns : columns;
        const T* row[64];
        for (int64_t i = 0; i < chunk.images; ++i)
            for (int64_t line = 0; line < runs; ++line, to += run * nr_) {
                const T* source = grad_.at(chunk.n + i, first_channel, chunk.first + line, 0);
                if (from.w == 1) {
                    for (int k = 0; k < width; ++k) row[k] = source + k * from.c;
                    kernels_.pack_transposed(to, nr_, row, width, run);
                } else {
                    const LaneRun whole{0, width, 0};
                    kernels_.pack_lanes(to, nr_, source, from.w, run, &whole, 1, width, from.c, T(0));
                }
            }
    }

    // [output channel][channel, tap] out of [panel][channel, tap][output channel].
    void store(T* to, const T* sums, const Scratch<T>& scratch) const {
        for (int64_t panel = 0; panel < panels_; ++panel) {
            for (int64_t column = 0; column < columns_; ++column)
                scratch.columns_at[column] = sums + (panel * columns_ + column) * nr_;
            kernels_.pack_transposed(to + panel * nr_ * columns_, columns_, scratch.columns_at,
                                     static_cast<int>(columns_), std::min(nr_, rows_ - panel * nr_));
        }
    }

    const ConvProblem& problem_;
    const TensorView<const T> grad_, input_;
    const KernelSet<T>& kernels_;
    const int64_t nr_;
    const PlaneLayout layout_;
    const int64_t channels_, rows_;  // of a group
    const int64_t columns_;          // channels and taps of a group
    const int64_t panels_;
    const Blocks blocks_;
    const PaddedTile<T> padded_tile_;
    const int64_t plane_, image_;       // elements of a plane, and of all planes of an image
    const std::vector<int32_t> taps_;   // from a pixel's place
    SmallVector<int32_t, 256> places_;  // of the pixels of a chunk
};

}  // namespace

struct DirectChannelsSumMethod : SumMethod<DirectChannelsSumDriver> {
    static constexpr const char* name = "direct-channels";

    static Verdict supports(const ConvProblem& problem, ConvPass) { return supports_groups(problem); }
    static Work work(const WorkSizes& sizes) {
        Work work = sizes.common();
        const double pixels = sizes.h.dest * sizes.w.dest;
        const TileGrid grid(sizes.channels * sizes.taps, sizes.tile.mr, sizes.vectors(sizes.rows),
                            sizes.tile.nr_vectors);
        work[WorkKind::cycles] = sizes.groups * pixels * grid.cycles;
        work[WorkKind::tiles] = sizes.groups * grid.tiles * std::ceil(pixels / most_pixels);
        sizes.add_padded_tile(work);
        sizes.add_result(work, true);
        return work;
    }

    template <class T>
    static void describe(const PixelSum<T>& sum, const DirectChannelsSumDriver<T>& driver, const KernelSet<T>& kernels,
                         PassPlan& text) {
        const Blocks& blocks = driver.blocks();
        text.tile = std::to_string(std::min<int64_t>(kernels.nr, sum.problem->group_out())) + " output channels x " +
                    std::to_string(kernels.mr) + " (input channel, tap) pairs";
        text.block = (blocks.images > 1 ? std::to_string(blocks.images) + " images of one group"
                                        : lines_of_a_group(blocks.rows)) +
                     ", " + std::to_string(blocks.splits) + (blocks.splits == 1 ? " part" : " parts");
        text.reason = "few channels: vectors over output channels, pixels of a padded tile are broadcast";
        if (blocks.splits > 1) text.reason += "; too few groups for all tasks, so the pixels are split";
    }
};

template const Method<PixelSum<float>>& method_row<DirectChannelsSumMethod, PixelSum<float>>();
template const Method<PixelSum<double>>& method_row<DirectChannelsSumMethod, PixelSum<double>>();

}  // namespace convx
