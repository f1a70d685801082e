#include "cpu/conv2d/grad_weight_channels.h"

#include "common/rounding.h"
#include "cpu/conv2d/pixels.h"
#include "cpu/scratch_parts.h"
#include "cpu/thread_pool.h"
#include "cpu/workspace.h"

namespace convx {

namespace {

constexpr int64_t packed_pixels = 16;  // at a time, which stay in L1 while their channels are shared out to panels

template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const GradWeightChannelBlocks& blocks, const KernelSet<T>& kernels)
        : row_panel(blocks.chunk_pixels * kernels.mr + kernels.nr),
          column_panel(blocks.chunk_pixels * kernels.nr + kernels.nr),
          rows(parts.take<T>(ceil_div(blocks.block_rows, kernels.mr) * row_panel)),
          columns(parts.take<T>(ceil_div(blocks.block_columns, kernels.nr) * column_panel)),
          runs(parts.take<LaneRun>(blocks.chunk_pixels)), bytes(parts.bytes()) {}
    int64_t row_panel, column_panel;
    T* rows;     // grad_output: panels of [pixel][mr]
    T* columns;  // input: panels of [pixel][nr]
    LaneRun* runs;
    int64_t bytes;
};

template <class T>
class Nest {
public:
    Nest(const ConvProblem& problem, const AxisTable& h, const AxisTable& w, T pad, TensorView<const T> grad_output,
         TensorView<const T> input, const KernelSet<T>& kernels)
        : problem_(problem), h_(h), w_(w), pad_(pad), grad_(grad_output), input_(input), kernels_(kernels),
          rows_(problem.group_out()), columns_(problem.group_in()),
          blocks_(plan_grad_weight_channel_blocks(problem, kernels)) {}

    void run(T* grad_weight) {
        const int64_t row_blocks = ceil_div(rows_, blocks_.block_rows);
        const int64_t column_blocks = ceil_div(columns_, blocks_.block_columns);
        const int64_t tasks = problem_.groups * row_blocks * column_blocks * blocks_.splits;
        const int width = static_cast<int>(std::min<int64_t>({parallel_width(problem_.flops()), num_threads(), tasks}));
        const int64_t part = problem_.groups * rows_ * columns_;
        const PassScratch scratch = grad_weight_channels_scratch(blocks_, part, kernels_);
        const Workspace workspace(static_cast<size_t>(scratch.shared_bytes + width * scratch.worker_bytes));
        T* partial = blocks_.splits == 1 ? grad_weight : static_cast<T*>(workspace.data());
        char* workers = static_cast<char*>(workspace.data()) + scratch.shared_bytes;
        parallel_for(tasks, width, [&](int64_t task, int worker) {
            const int64_t row = task % row_blocks * blocks_.block_rows;
            const int64_t column = task / row_blocks % column_blocks * blocks_.block_columns;
            const int64_t split = task / row_blocks / column_blocks % blocks_.splits;
            const int64_t group = task / row_blocks / column_blocks / blocks_.splits;
            run_task(group, row, column, split, partial + split * part + group * rows_ * columns_,
                     Scratch<T>(ScratchParts(workers + worker * scratch.worker_bytes), blocks_, kernels_));
        });
        if (blocks_.splits == 1) return;
        parallel_for(problem_.groups * rows_, parallel_width(4 * part * blocks_.splits), [&](int64_t k, int) {
            T* to = grad_weight + k * columns_;
            std::copy_n(partial + k * columns_, columns_, to);
            for (int64_t split = 1; split < blocks_.splits; ++split) {
                const T* from = partial + split * part + k * columns_;
                for (int64_t column = 0; column < columns_; ++column) to[column] += from[column];
            }
        });
    }

private:
    void run_task(int64_t group, int64_t row, int64_t column, int64_t split, T* partial,
                  const Scratch<T>& scratch) const {
        const int64_t mr = kernels_.mr, nr = kernels_.nr;
        const int64_t rows = std::min(blocks_.block_rows, rows_ - row);
        const int64_t columns = std::min(blocks_.block_columns, columns_ - column);
        const int64_t begin = split * blocks_.chunks / blocks_.splits;
        for (int64_t chunk = begin; chunk < (split + 1) * blocks_.chunks / blocks_.splits; ++chunk) {
            const int64_t first = chunk * blocks_.chunk_pixels;
            const int64_t pixels = std::min(blocks_.chunk_pixels, blocks_.pixels - first);
            pack_rows(group * rows_ + row, rows, first, pixels, scratch);
            pack_columns(group * columns_ + column, columns, first, pixels, scratch);
            for (int64_t j = 0; j < columns; j += nr)
                for (int64_t i = 0; i < rows; i += mr)
                    kernels_.gemm_tile(
                        static_cast<int>(std::min(mr, rows - i)), static_cast<int>(std::min(nr, columns - j)), pixels,
                        scratch.rows + i / mr * scratch.row_panel, scratch.columns + j / nr * scratch.column_panel,
                        {partial + (row + i) * columns_ + column + j, columns_, chunk > begin});
        }
    }

    void pack_rows(int64_t channel, int64_t channels, int64_t first, int64_t pixels, const Scratch<T>& scratch) const {
        for_each_segment(h_.positions, w_.positions, first, pixels, [&](const PixelSegment& s) {
            pack(scratch.rows, scratch.row_panel, kernels_.mr, s.lane, grad_.at(s.n, channel, s.i, s.j),
                 grad_.stride[3], grad_.stride[1], s.count, channels);
        });
    }

    void pack_columns(int64_t channel, int64_t channels, int64_t first, int64_t pixels,
                      const Scratch<T>& scratch) const {
        const Strides strides{input_.stride[0], input_.stride[1], input_.stride[2], input_.stride[3]};
        int runs = 0;
        for_each_segment(h_.positions, w_.positions, first, pixels, [&](const PixelSegment& s) {
            runs = append_runs(h_, w_, 0, 0, strides, s, scratch.runs, runs);
        });
        int64_t packed = 0;
        for (int r = 0; r <= runs; ++r) {
            const int64_t next = r < runs ? scratch.runs[r].lane : pixels;
            for (int64_t c = 0; c < channels; c += kernels_.nr)
                std::fill(scratch.columns + c / kernels_.nr * scratch.column_panel + packed * kernels_.nr,
                          scratch.columns + c / kernels_.nr * scratch.column_panel + next * kernels_.nr, pad_);
            if (r == runs) break;
            pack(scratch.columns, scratch.column_panel, kernels_.nr, next,
                 input_.data + channel * strides.c + scratch.runs[r].offset, w_.step * strides.w, strides.c,
                 scratch.runs[r].count, channels);
            packed = next + scratch.runs[r].count;
        }
    }

    // `pixels` of a row of an image, to place `first` of the panels.
    void pack(T* panels, int64_t panel, int64_t width, int64_t first, const T* source, int64_t pixel_stride,
              int64_t channel_stride, int64_t pixels, int64_t channels) const {
        for (int64_t p = 0; p < pixels; p += packed_pixels) {
            const int64_t count = std::min(packed_pixels, pixels - p);
            T* to = panels + (first + p) * width;
            const T* from = source + p * pixel_stride;
            if (channel_stride == 1) {
                (width == kernels_.mr ? kernels_.pack_row_panels : kernels_.pack_column_panels)(
                    to, panel, from, pixel_stride, count, channels);
                continue;
            }
            for (int64_t c = 0; c < channels; c += width) {
                const LaneRun lanes{0, static_cast<int32_t>(std::min(width, channels - c)), 0};
                kernels_.pack_lanes(to + c / width * panel, width, from + c * channel_stride, pixel_stride, count,
                                    &lanes, 1, lanes.count, channel_stride, T(0));
            }
        }
    }

    const ConvProblem& problem_;
    const AxisTable &h_, &w_;
    const T pad_;
    const TensorView<const T> grad_, input_;
    const KernelSet<T>& kernels_;
    const int64_t rows_, columns_;
    const GradWeightChannelBlocks blocks_;
};

}  // namespace

template <class T>
PassScratch grad_weight_channels_scratch(const GradWeightChannelBlocks& blocks, int64_t weights,
                                         const KernelSet<T>& kernels) {
    const int64_t partial = blocks.splits == 1 ? 0 : blocks.splits * weights * static_cast<int64_t>(sizeof(T));
    return {cache_lines(partial), Scratch<T>(ScratchParts(), blocks, kernels).bytes};
}

template <class T>
void run_grad_weight_channels(const ConvProblem& problem, const AxisTable& h, const AxisTable& w, T pad,
                              TensorView<const T> grad_output, TensorView<const T> input, const KernelSet<T>& kernels,
                              T* grad_weight) {
    Nest<T>(problem, h, w, pad, grad_output, input, kernels).run(grad_weight);
}

template PassScratch grad_weight_channels_scratch(const GradWeightChannelBlocks&, int64_t, const KernelSet<float>&);
template PassScratch grad_weight_channels_scratch(const GradWeightChannelBlocks&, int64_t, const KernelSet<double>&);
template void run_grad_weight_channels(const ConvProblem&, const AxisTable&, const AxisTable&, float,
                                       TensorView<const float>, TensorView<const float>, const KernelSet<float>&,
                                       float*);
template void run_grad_weight_channels(const ConvProblem&, const AxisTable&, const AxisTable&, double,
                                       TensorView<const double>, TensorView<const double>, const KernelSet<double>&,
                                       double*);

}  // namespace convx
