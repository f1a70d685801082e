// Weight gradient for few input channels: direct sums over positions, with neither operand packed by taps.
//
//   grad_weight[k, (c, r, s)] = sum over n, i, j of grad_output[n, k, i, j] * plane[c, (r, s)][i * pitch + j]
//
// A task owns some of the bands of the batch. It stages the input lines of a band (staged_planes.h) and beside them
// grad_output with the same pitch and zeros between its lines, so that a band is one run of positions. Lanes of a
// vector are partial sums over positions; they are added up at the end of a band, bands in ascending order, and the
// tasks' sums in order at the end. All cuts follow from the problem.
#include <cmath>

#include "common/rounding.h"
#include "cpu/conv2d/few_channels.h"
#include "cpu/conv2d/methods.h"
#include "cpu/registry.h"
#include "cpu/scratch_parts.h"
#include "cpu/thread_pool.h"
#include "cpu/workspace.h"

namespace convx {

namespace {

Strides strides_of(const std::array<int64_t, 4>& stride) { return {stride[0], stride[1], stride[2], stride[3]}; }

int64_t band_length(const PlaneLayout& layout, int64_t lines, int64_t lanes) {
    return round_up(lines * layout.pitch, lanes);
}

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const PlaneLayout& layout, const FewChannelsGradWeightBlocks& blocks, int64_t channels,
            int lanes)
        : plane(layout.plane_size(blocks.band_lines, lanes)), length(band_length(layout, blocks.band_lines, lanes)),
          planes(parts.take<T>(channels * layout.planes() * plane)), grad(parts.take<T>(blocks.block_rows * length)),
          bytes(parts.bytes()) {}
    int64_t plane;   // elements of a plane
    int64_t length;  // of a row of grad_output
    T* planes;
    T* grad;
    int64_t bytes;
};

template <class T>
class Nest {
public:
    Nest(const FewChannelsGradWeight<T>& job, const PlaneLayout& layout, const FewChannelsGradWeightBlocks& blocks,
         const KernelSet<T>& kernels)
        : job_(job), kernels_(kernels), layout_(layout), blocks_(blocks), rows_(job.rows),
          grad_stride_(job.grad_stride), stager_(layout, job.input_stride, job.pad, kernels),
          offsets_(layout.offsets(0, 0, job.channels, layout.plane_size(blocks.band_lines, kernels.lanes))),
          columns_(static_cast<int64_t>(offsets_.size())) {}

    void run(T* grad_weight) const {
        const int64_t bands = ceil_div(layout_.h.positions(), blocks_.band_lines), all_bands = job_.batch * bands;
        const int64_t weights = rows_ * columns_;
        const PassScratch scratch = few_channels_grad_weight_scratch(layout_, blocks_, rows_, job_.channels, kernels_);
        const int width =
            static_cast<int>(std::min<int64_t>({parallel_width(job_.flops), num_threads(), blocks_.splits}));
        const Workspace workspace(static_cast<size_t>(scratch.shared_bytes + width * scratch.worker_bytes));
        T* partial = blocks_.splits == 1 ? grad_weight : static_cast<T*>(workspace.data());
        char* workers = static_cast<char*>(workspace.data()) + scratch.shared_bytes;
        parallel_for(blocks_.splits, width, [&](int64_t split, int worker) {
            const Scratch<T> own(ScratchParts(workers + worker * scratch.worker_bytes), layout_, blocks_, job_.channels,
                                 kernels_.lanes);
            T* sums = partial + split * weights;
            std::fill_n(sums, weights, T(0));
            const int64_t last = (split + 1) * all_bands / blocks_.splits;
            for (int64_t band = split * all_bands / blocks_.splits; band < last; ++band)
                add_band(band / bands, band % bands * blocks_.band_lines, own, sums);
        });
        if (partial != grad_weight) add_parts(partial, grad_weight, weights);
    }

private:
    void add_band(int64_t n, int64_t first_line, const Scratch<T>& scratch, T* sums) const {
        const int64_t lines = std::min(blocks_.band_lines, layout_.h.positions() - first_line);
        stager_.stage(scratch.planes, scratch.plane, job_.input + n * job_.input_stride.n, job_.channels, first_line,
                      lines);
        FewChannelsDots<T> job{};
        job.grad_stride = scratch.length;
        job.source = scratch.planes;
        job.count = band_length(layout_, lines, kernels_.lanes);
        job.sums_stride = columns_;
        for (int64_t block = 0; block < rows_; block += blocks_.block_rows) {
            const int64_t rows = std::min(blocks_.block_rows, rows_ - block);
            stage_grad(scratch, n, block, rows, first_line, lines);
            ReadAhead<T> ahead = ahead_of(n, first_line, block + blocks_.block_rows);
            for (int64_t row = 0; row < rows; row += blocks_.tile_rows) {
                job.grad = scratch.grad + row * scratch.length;
                job.rows = static_cast<int>(std::min(blocks_.tile_rows, rows - row));
                for (int64_t column = 0; column < columns_; column += blocks_.tile_taps) {
                    ahead.next();
                    job.offsets = offsets_.data() + column;
                    job.taps = static_cast<int>(std::min(blocks_.tile_taps, columns_ - column));
                    job.sums = sums + (block + row) * columns_ + column;
                    kernels_.few_channels_dots(job);
                }
            }
        }
    }

    // The gradient of the rows from `block` on, or of the first ones of the next band.
    ReadAhead<T> ahead_of(int64_t n, int64_t first_line, int64_t block) const {
        if (grad_stride_.w != 1) return {};
        if (block >= rows_) {
            block = 0;
            first_line += blocks_.band_lines;
            if (first_line >= layout_.h.positions()) {
                first_line = 0;
                if (++n == job_.batch) return {};
            }
        }
        const int64_t rows = std::min(blocks_.block_rows, rows_ - block);
        return {job_.grad + n * grad_stride_.n + block * grad_stride_.c + first_line * grad_stride_.h,
                rows,
                grad_stride_.c,
                std::min(blocks_.band_lines, layout_.h.positions() - first_line),
                grad_stride_.h,
                layout_.w.positions(),
                ceil_div(rows, blocks_.tile_rows) * ceil_div(columns_, blocks_.tile_taps)};
    }

    // [row][line * pitch + column], with zeros behind every line.
    void stage_grad(const Scratch<T>& scratch, int64_t n, int64_t first_row, int64_t rows, int64_t first_line,
                    int64_t lines) const {
        const int64_t count = layout_.w.positions(), pitch = layout_.pitch;
        const T* source = job_.grad + n * grad_stride_.n + first_row * grad_stride_.c + first_line * grad_stride_.h;
        T* to = scratch.grad;
        const int64_t rest = band_length(layout_, lines, kernels_.lanes) - lines * pitch;
        if (grad_stride_.c == 1 && grad_stride_.w != 1) {
            for (int64_t line = 0; line < lines; ++line)
                transpose_line(to + line * pitch, scratch.length, source + line * grad_stride_.h, rows);
            for (int64_t row = 0; row < rows; ++row, to += scratch.length) {
                for (int64_t line = 0; line < lines; ++line)
                    std::fill(to + line * pitch + count, to + (line + 1) * pitch, T(0));
                std::fill_n(to + lines * pitch, rest, T(0));
            }
            return;
        }
        // All lines of a row before the next row: one stretch of memory at a time.
        const LaneRun whole{0, static_cast<int32_t>(count), 0};
        for (int64_t row = 0; row < rows; ++row, to += scratch.length, source += grad_stride_.c) {
            kernels_.pack_lanes(to, pitch, source, grad_stride_.h, lines, &whole, 1, static_cast<int>(pitch),
                                grad_stride_.w, T(0));
            std::fill_n(to + lines * pitch, rest, T(0));
        }
    }

    void transpose_line(T* to, int64_t to_row, const T* source, int64_t rows) const {
        const T* pixel[64];
        for (int64_t j = 0; j < layout_.w.positions(); j += 64) {
            const int64_t count = std::min<int64_t>(64, layout_.w.positions() - j);
            for (int64_t i = 0; i < count; ++i) pixel[i] = source + (j + i) * grad_stride_.w;
            kernels_.pack_transposed(to + j, to_row, pixel, static_cast<int>(count), rows);
        }
    }

    void add_parts(const T* partial, T* grad_weight, int64_t weights) const {
        std::copy_n(partial, weights, grad_weight);
        for (int64_t split = 1; split < blocks_.splits; ++split) {
            const T* part = partial + split * weights;
            for (int64_t i = 0; i < weights; ++i) grad_weight[i] += part[i];
        }
    }

    const FewChannelsGradWeight<T>& job_;
    const KernelSet<T>& kernels_;
    const PlaneLayout& layout_;
    const FewChannelsGradWeightBlocks& blocks_;
    const int64_t rows_;
    const Strides grad_stride_;
    const Stager<T> stager_;
    const std::vector<int32_t> offsets_;
    const int64_t columns_;
};

}  // namespace

template <class T>
PassScratch few_channels_grad_weight_scratch(const PlaneLayout& layout, const FewChannelsGradWeightBlocks& blocks,
                                             int64_t rows, int64_t channels, const KernelSet<T>& kernels) {
    if (blocks.vectors_of_rows) return few_channels_rows_grad_weight_scratch(layout, blocks, rows, channels, kernels);
    const int64_t weights = rows * channels * layout.all_taps();
    const int64_t partial = blocks.splits == 1 ? 0 : blocks.splits * weights * static_cast<int64_t>(sizeof(T));
    return {cache_lines(partial), Scratch<T>(ScratchParts(), layout, blocks, channels, kernels.lanes).bytes};
}

template <class T>
void few_channels_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                              TensorView<T> grad_weight) {
    const Border border = border_of(problem, forward_table(problem.h), forward_table(problem.w));
    if (border.mixed) return gemm_grad_weight(problem, grad_output, input, grad_weight);
    const KernelSet<T>& kernels = kernel_set<T>(active_kernels());
    const FewChannelsGradWeight<T> job{problem.batch,
                                       problem.out_channels,
                                       problem.in_channels,
                                       grad_output.data,
                                       strides_of(grad_output.stride),
                                       input.data,
                                       strides_of(input.stride),
                                       static_cast<T>(border.value),
                                       problem.flops()};
    const PlaneLayout layout = few_channels_layout(problem, true);
    const FewChannelsGradWeightBlocks blocks = plan_few_channels_grad_weight(
        layout, job.batch, job.rows, job.channels, sizeof(T), kernels.lanes, kernels.mr, kernels.few_channels_limit);
    if (blocks.vectors_of_rows)
        run_few_channels_rows_grad_weight(job, layout, blocks, kernels, grad_weight.data);
    else
        Nest<T>(job, layout, blocks, kernels).run(grad_weight.data);
    // A NaN may come from an infinity that met one of the zeros between the lines or over the border.
    const T* last = grad_weight.data + grad_weight.size();
    if (std::any_of(static_cast<const T*>(grad_weight.data), last, [](T value) { return std::isnan(value); }))
        gemm_grad_weight(problem, grad_output, input, grad_weight);
}

template PassScratch few_channels_grad_weight_scratch(const PlaneLayout&, const FewChannelsGradWeightBlocks&, int64_t,
                                                      int64_t, const KernelSet<float>&);
template PassScratch few_channels_grad_weight_scratch(const PlaneLayout&, const FewChannelsGradWeightBlocks&, int64_t,
                                                      int64_t, const KernelSet<double>&);
template void few_channels_grad_weight(const ConvProblem&, TensorView<const float>, TensorView<const float>,
                                       TensorView<float>);
template void few_channels_grad_weight(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                                       TensorView<double>);

}  // namespace convx
