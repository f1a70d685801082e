// Weight gradient of groups of enough channels for vectors of them:
//
//   grad_weight[k, c, r, s] = sum over n, p, q of grad_output[n, k, p, q] * input[n, c, h(r, p), w(s, q)]
//
// Vectors run over the output channels k, pixels of the input are broadcast. A task owns a group and a contiguous part
// of the chunks (a few small images, or a band of lines of a large one): it stages the input as planes with their
// border written out, transposes grad_output to [pixel][channel], and adds the sums of the chunk to its own. The parts
// are added in order at the end. All cuts follow from the problem.
#include <algorithm>

#include "common/rounding.h"
#include "cpu/conv2d/grouped.h"
#include "cpu/runtime/split_sum.h"

namespace convx {

namespace {

// In L2 (512 KiB) beside the sums of a group.
constexpr int64_t staged_bytes = 128 * 1024;
// Pixels of the weight gradient that are summed in registers in one go: 28 KiB for two vectors, most of L1; fewer would
// add to the sums more often, which costs as much as 3 pixels.
constexpr int64_t chunk_pixels = 448;

struct Blocks {
    int64_t band_lines = 1;  // lines of the output, or
    int64_t images = 1;      // whole images, that are summed in registers in one go
    int64_t chunks = 1;      // of the batch
    int64_t splits = 1;      // parts of the chunks, added in order at the end
};

Blocks plan_blocks(const GroupedPlanes& planes, int64_t batch, int64_t groups, int64_t channels, int64_t item_bytes,
                   int lanes) {
    Blocks blocks;
    const PlaneLayout& layout = planes.layout;
    const int64_t lines = std::max<int64_t>(layout.h.positions(), 1);
    const int64_t pixels = lines * std::max<int64_t>(layout.w.positions(), 1);
    const int64_t image_bytes = channels * planes.plane_size(lines, lanes) * item_bytes;
    const int64_t parts = std::max(ceil_div(pixels, chunk_pixels), ceil_div(image_bytes, staged_bytes));
    if (parts > 1) {
        blocks.band_lines = ceil_div(lines, parts);
        blocks.chunks = batch * ceil_div(lines, blocks.band_lines);
    } else {
        blocks.band_lines = lines;
        const int64_t most = std::max<int64_t>(std::min(chunk_pixels / pixels, staged_bytes / image_bytes), 1);
        blocks.images = ceil_div(batch, ceil_div(batch, most));
        blocks.chunks = ceil_div(batch, blocks.images);
    }
    blocks.splits = std::clamp(grouped_wanted_tasks / groups, int64_t{1}, std::max<int64_t>(blocks.chunks, 1));
    return blocks;
}

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const GroupedPlanes& planes, const Blocks& blocks, int64_t channels, int64_t rows,
            int64_t columns, int lanes)
        : plane(planes.plane_size(blocks.band_lines, lanes)), pixels(blocks.images * blocks.band_lines * columns),
          staged(parts.take<T>(blocks.images * channels * plane)), grad(parts.take<T>(pixels * round_up(rows, lanes))),
          sums(parts.take<T>(channels * planes.kernel_taps * round_up(rows, lanes))),
          starts(parts.take<const T*>(channels * planes.kernel_taps)), bytes(parts.bytes()) {}
    int64_t plane;     // elements of a plane
    int64_t pixels;    // of grad_output, at most
    T* staged;         // [image][channel][plane]
    T* grad;           // [vectors of rows][pixel][row]
    T* sums;           // [vectors of rows][channel, tap][row]
    const T** starts;  // of each channel and tap
    int64_t bytes;
};

template <class T>
class GroupedChannelsSumDriver {
public:
    GroupedChannelsSumDriver(const PixelSum<T>& sum, const KernelSet<T>& kernels)
        : problem_(*sum.problem), kernels_(kernels), grad_(sum.grad_output), input_(sum.input), planes_(problem_, true),
          channels_(problem_.group_in()), rows_(problem_.group_out()), lanes_(kernels.lanes),
          padded_rows_(round_up(rows_, lanes_)), taps_(channels_ * problem_.taps()), columns_(problem_.out_w()),
          blocks_(plan_blocks(planes_, problem_.batch, problem_.groups, channels_, sizeof(T), kernels.lanes)),
          stager_(planes_.layout, strides_of(sum.input.stride), sum.pad(), kernels),
          bands_(ceil_div(problem_.out_h(), blocks_.band_lines)),
          offsets_(planes_.layout.offsets(0, 0, channels_, planes_.plane_size(blocks_.band_lines, lanes_))) {}

    const Blocks& blocks() const { return blocks_; }

    TaskPlan tasks() const {
        return {problem_.groups * blocks_.splits, problem_.flops(),
                SplitSum<T>::bytes(blocks_.splits, problem_.groups * rows_ * taps_),
                Scratch<T>(ScratchParts(), planes_, blocks_, channels_, rows_, columns_, kernels_.lanes).bytes};
    }

    void run(T* grad_weight) const {
        const TaskPlan plan = tasks();
        const TaskRunner runner(plan);
        const SplitSum<T> sums(grad_weight, runner.shared(), blocks_.splits, problem_.groups * rows_ * taps_);
        runner.run(plan.tasks, [&](int64_t task, ScratchParts parts) {
            const Scratch<T> scratch(parts, planes_, blocks_, channels_, rows_, columns_, kernels_.lanes);
            const int64_t group = task / blocks_.splits, split = task % blocks_.splits;
            std::fill_n(scratch.sums, taps_ * padded_rows_, T(0));
            const int64_t last = (split + 1) * blocks_.chunks / blocks_.splits;
            for (int64_t chunk = split * blocks_.chunks / blocks_.splits; chunk < last; ++chunk)
                add_chunk(group, chunk, scratch);
            store_sums(sums.part(split) + group * rows_ * taps_, scratch);
        });
        sums.add();
    }

private:
    void add_chunk(int64_t group, int64_t chunk, const Scratch<T>& scratch) const {
        const int64_t n = chunk / bands_ * blocks_.images, line = chunk % bands_ * blocks_.band_lines;
        const int64_t images = std::min(blocks_.images, problem_.batch - n);
        const int64_t lines = std::min(blocks_.band_lines, problem_.out_h() - line);
        GroupedChannelSums<T> job{};
        job.source = scratch.staged;
        job.source_image = channels_ * scratch.plane;
        job.source_row = planes_.advance_h * planes_.layout.pitch;
        job.source_step = planes_.advance_w;
        job.images = images;
        job.rows = lines;
        job.columns = columns_;
        for (int64_t i = 0; i < images; ++i)
            stager_.stage(scratch.staged + i * job.source_image, scratch.plane,
                          input_.at(n + i, group * channels_, 0, 0), channels_, line * planes_.advance_h,
                          planes_.band(lines));
        const int64_t row_blocks = ceil_div(padded_rows_, 2 * lanes_);
        const int64_t tile = grouped_channel_pixels(2, kernels_.few_channels_limit);
        ReadAhead<T> ahead = ahead_of(group, chunk + 1, row_blocks * ceil_div(taps_, tile));
        for (int64_t row = 0; row < padded_rows_; row += 2 * lanes_) {
            job.vecs = padded_rows_ - row > lanes_ ? 2 : 1;
            const int64_t width = job.vecs * lanes_;
            T* grad = scratch.grad + row * scratch.pixels;
            for (int64_t i = 0; i < images; ++i)
                pack_grad(grad + i * lines * columns_ * width, width, grad_.at(n + i, group * rows_ + row, line, 0),
                          std::min(width, rows_ - row), lines);
            job.grad = grad;
            const int64_t piece = grouped_channel_pixels(job.vecs, kernels_.few_channels_limit);
            for (int64_t tap = 0; tap < taps_; tap += piece) {
                ahead.next();
                job.offsets = offsets_.data() + tap;
                job.taps = std::min(piece, taps_ - tap);
                job.sums = scratch.sums + row * taps_ + tap * width;
                kernels_.grouped_channel_sums(job);
            }
        }
    }

    // What the next chunk stages first.
    ReadAhead<T> ahead_of(int64_t group, int64_t chunk, int64_t shares) const {
        if (chunk >= blocks_.chunks) return {};
        const int64_t n = chunk / bands_ * blocks_.images, line = chunk % bands_ * blocks_.band_lines;
        const int64_t lines = std::min(blocks_.band_lines, problem_.out_h() - line);
        return stager_.read_ahead(input_.at(n, group * channels_, 0, 0), channels_, line * planes_.advance_h,
                                  planes_.band(lines), shares);
    }

    // [line][column][channel], with zeros for channels that there are not.
    void pack_grad(T* to, int64_t width, const T* from, int64_t channels, int64_t lines) const {
        const auto [of_image, of_channel, of_row, of_column] = grad_.stride;
        (void)of_image;
        int64_t columns = columns_;
        if (of_row == columns * of_column) {
            columns *= lines;
            lines = 1;
        }
        if (channels < width) std::fill_n(to, lines * columns * width, T(0));
        const LaneRun all{0, static_cast<int32_t>(channels), 0};
        for (int64_t line = 0; line < lines; ++line, to += columns * width, from += of_row) {
            if (of_column == 1) {
                const T* row[64];
                for (int64_t k = 0; k < channels; ++k) row[k] = from + k * of_channel;
                kernels_.pack_transposed(to, width, row, static_cast<int>(channels), columns);
            } else {
                kernels_.pack_lanes(to, width, from, of_column, columns, &all, 1, static_cast<int>(channels),
                                    of_channel, T(0));
            }
        }
    }

    void store_sums(T* to, const Scratch<T>& scratch) const {
        for (int64_t row = 0; row < padded_rows_; row += 2 * lanes_) {
            const int64_t width = std::min(2 * lanes_, padded_rows_ - row);
            for (int64_t t = 0; t < taps_; ++t) scratch.starts[t] = scratch.sums + row * taps_ + t * width;
            kernels_.pack_transposed(to + row * taps_, taps_, scratch.starts, static_cast<int>(taps_),
                                     std::min(width, rows_ - row));
        }
    }

    const ConvProblem& problem_;
    const KernelSet<T>& kernels_;
    const TensorView<const T> grad_, input_;
    const GroupedPlanes planes_;
    const int64_t channels_, rows_;
    const int64_t lanes_, padded_rows_;
    const int64_t taps_;  // of all channels of a group
    const int64_t columns_;
    const Blocks blocks_;
    const Stager<T> stager_;
    const int64_t bands_;
    const std::vector<int32_t> offsets_;
};

}  // namespace

struct GroupedChannelsSumMethod : SumMethod<GroupedChannelsSumDriver> {
    static constexpr const char* name = "grouped-channels";

    static Verdict supports(const ConvProblem& problem, ConvPass) { return supports_groups(problem); }
    static bool suits(const ConvProblem& problem, ConvPass pass, const Kernels& kernels) {
        return has_few_channels(problem) && fills_vectors(pass, problem.group_out(), lanes_of(kernels, problem.dtype));
    }

    template <class T>
    static void describe(const PixelSum<T>& sum, const GroupedChannelsSumDriver<T>& driver, const KernelSet<T>& kernels,
                         PassPlan& text) {
        const Blocks& blocks = driver.blocks();
        const int vecs = sum.problem->group_out() > kernels.lanes ? 2 : 1;
        text.tile = std::to_string(vecs * kernels.lanes) + " output channels x " +
                    std::to_string(grouped_channel_pixels(vecs, kernels.few_channels_limit)) +
                    " (input channel, tap) pairs";
        text.block = (blocks.images > 1 ? std::to_string(blocks.images) + " images of one group"
                                        : lines_of_a_group(blocks.band_lines)) +
                     ", " + std::to_string(blocks.splits) + (blocks.splits == 1 ? " part" : " parts");
        text.reason = "few weights a group: vectors over output channels, pixels of staged planes are broadcast";
        if (blocks.splits > 1) text.reason += "; too few groups for all tasks, so the pixels are split";
    }
};

template const Method<PixelSum<float>>& method_row<GroupedChannelsSumMethod, PixelSum<float>>();
template const Method<PixelSum<double>>& method_row<GroupedChannelsSumMethod, PixelSum<double>>();

}  // namespace convx
