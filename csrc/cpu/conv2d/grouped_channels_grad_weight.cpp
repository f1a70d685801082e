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
#include "cpu/conv2d/grouped_channels.h"
#include "cpu/scratch_parts.h"
#include "cpu/thread_pool.h"
#include "cpu/workspace.h"

namespace convx {

namespace {

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const GroupedPlanes& planes, const GroupedChannelSumsBlocks& blocks, int64_t channels,
            int64_t rows, int64_t columns, int lanes)
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
class Nest {
public:
    Nest(const ConvProblem& problem, T pad, TensorView<const T> grad_output, TensorView<const T> input,
         const KernelSet<T>& kernels)
        : problem_(problem), kernels_(kernels), grad_(grad_output), input_(input), planes_(problem, true),
          channels_(problem.group_in()), rows_(problem.group_out()), lanes_(kernels.lanes),
          padded_rows_(round_up(rows_, lanes_)), taps_(channels_ * problem.taps()), columns_(problem.out_w()),
          blocks_(
              plan_grouped_channel_sums(planes_, problem.batch, problem.groups, channels_, sizeof(T), kernels.lanes)),
          stager_(planes_.layout, {input.stride[0], input.stride[1], input.stride[2], input.stride[3]}, pad, kernels),
          bands_(ceil_div(problem.out_h(), blocks_.band_lines)),
          offsets_(planes_.layout.offsets(0, 0, channels_, planes_.plane_size(blocks_.band_lines, lanes_))) {}

    void run(T* grad_weight) const {
        const int64_t tasks = problem_.groups * blocks_.splits, weights = problem_.groups * rows_ * taps_;
        const int width = static_cast<int>(std::min<int64_t>({parallel_width(problem_.flops()), num_threads(), tasks}));
        const PassScratch size =
            grouped_channel_sums_scratch(planes_, blocks_, problem_.groups, channels_, rows_, columns_, kernels_);
        const Workspace workspace(static_cast<size_t>(size.shared_bytes + width * size.worker_bytes));
        T* partial = blocks_.splits == 1 ? grad_weight : static_cast<T*>(workspace.data());
        char* workers = static_cast<char*>(workspace.data()) + size.shared_bytes;
        parallel_for(tasks, width, [&](int64_t task, int worker) {
            const Scratch<T> scratch(ScratchParts(workers + worker * size.worker_bytes), planes_, blocks_, channels_,
                                     rows_, columns_, kernels_.lanes);
            const int64_t group = task / blocks_.splits, split = task % blocks_.splits;
            std::fill_n(scratch.sums, taps_ * padded_rows_, T(0));
            const int64_t last = (split + 1) * blocks_.chunks / blocks_.splits;
            for (int64_t chunk = split * blocks_.chunks / blocks_.splits; chunk < last; ++chunk)
                add_chunk(group, chunk, scratch);
            store_sums(partial + split * weights + group * rows_ * taps_, scratch);
        });
        if (blocks_.splits == 1) return;
        std::copy_n(partial, weights, grad_weight);
        for (int64_t split = 1; split < blocks_.splits; ++split)
            for (int64_t i = 0; i < weights; ++i) grad_weight[i] += partial[split * weights + i];
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
    const GroupedChannelSumsBlocks blocks_;
    const Stager<T> stager_;
    const int64_t bands_;
    const std::vector<int32_t> offsets_;
};

}  // namespace

template <class T>
PassScratch grouped_channel_sums_scratch(const GroupedPlanes& planes, const GroupedChannelSumsBlocks& blocks,
                                         int64_t groups, int64_t channels, int64_t rows, int64_t columns,
                                         const KernelSet<T>& kernels) {
    const int64_t weights = groups * rows * channels * planes.kernel_taps;
    const int64_t partial = blocks.splits == 1 ? 0 : blocks.splits * weights * static_cast<int64_t>(sizeof(T));
    return {cache_lines(partial),
            Scratch<T>(ScratchParts(), planes, blocks, channels, rows, columns, kernels.lanes).bytes};
}

template <class T>
void grouped_channels_grad_weight(const ConvProblem& problem, T pad, TensorView<const T> grad_output,
                                  TensorView<const T> input, T* grad_weight, const KernelSet<T>& kernels) {
    Nest<T>(problem, pad, grad_output, input, kernels).run(grad_weight);
}

template PassScratch grouped_channel_sums_scratch(const GroupedPlanes&, const GroupedChannelSumsBlocks&, int64_t,
                                                  int64_t, int64_t, int64_t, const KernelSet<float>&);
template PassScratch grouped_channel_sums_scratch(const GroupedPlanes&, const GroupedChannelSumsBlocks&, int64_t,
                                                  int64_t, int64_t, int64_t, const KernelSet<double>&);
template void grouped_channels_grad_weight(const ConvProblem&, float, TensorView<const float>, TensorView<const float>,
                                           float*, const KernelSet<float>&);
template void grouped_channels_grad_weight(const ConvProblem&, double, TensorView<const double>,
                                           TensorView<const double>, double*, const KernelSet<double>&);

}  // namespace convx
