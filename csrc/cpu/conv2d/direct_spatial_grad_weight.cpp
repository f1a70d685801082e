// Weight gradient for few input channels: direct sums over positions, with neither operand packed by taps.
//
//   grad_weight[k, (c, r, s)] = sum over n, i, j of grad_output[n, k, i, j] * plane[c, (r, s)][i * pitch + j]
//
// A task owns some of the bands of the batch. It stages the input lines of a band (staged_planes.h) and beside them
// grad_output with the same pitch and zeros between its lines, so that a band is one run of positions. Lanes of a
// vector are partial sums over positions; they are added up at the end of a band, bands in ascending order, and the
// tasks' sums in order at the end. All cuts follow from the problem.
#include "common/rounding.h"
#include "cpu/conv2d/direct.h"
#include "cpu/runtime/split_sum.h"

namespace convx {

namespace {

int64_t band_length(const PlaneLayout& layout, int64_t lines, int64_t lanes) {
    return round_up(lines * layout.pitch, lanes);
}

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const PlaneLayout& layout, const DirectSumBlocks& blocks, int64_t channels, int lanes)
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
class Driver {
public:
    Driver(const PixelSum<T>& sum, const PlaneLayout& layout, const DirectSumBlocks& blocks,
           const KernelSet<T>& kernels)
        : problem_(*sum.problem), grad_(sum.grad_output), input_(sum.input), kernels_(kernels), layout_(layout),
          blocks_(blocks), rows_(problem_.out_channels), grad_stride_(strides_of(sum.grad_output.stride)),
          stager_(layout, strides_of(sum.input.stride), sum.pad(), kernels),
          offsets_(layout.offsets(0, 0, problem_.in_channels, layout.plane_size(blocks.band_lines, kernels.lanes))),
          columns_(static_cast<int64_t>(offsets_.size())) {}

    TaskPlan tasks() const {
        return {blocks_.splits, problem_.flops(), SplitSum<T>::bytes(blocks_.splits, rows_ * columns_),
                Scratch<T>(ScratchParts(), layout_, blocks_, problem_.in_channels, kernels_.lanes).bytes};
    }

    void run(const TaskPlan& plan, T* grad_weight) const {
        const int64_t bands = ceil_div(layout_.h.positions(), blocks_.band_lines), all_bands = problem_.batch * bands;
        const int64_t weights = rows_ * columns_;
        const TaskRunner runner(plan);
        const SplitSum<T> sums(grad_weight, runner.shared(), blocks_.splits, weights);
        runner.run(blocks_.splits, [&](int64_t split, ScratchParts parts) {
            const Scratch<T> own(parts, layout_, blocks_, problem_.in_channels, kernels_.lanes);
            std::fill_n(sums.part(split), weights, T(0));
            const int64_t last = (split + 1) * all_bands / blocks_.splits;
            for (int64_t band = split * all_bands / blocks_.splits; band < last; ++band)
                add_band(band / bands, band % bands * blocks_.band_lines, own, sums.part(split));
        });
        sums.add();
    }

private:
    void add_band(int64_t n, int64_t first_line, const Scratch<T>& scratch, T* sums) const {
        const int64_t lines = std::min(blocks_.band_lines, layout_.h.positions() - first_line);
        stager_.stage(scratch.planes, scratch.plane, input_.at(n, 0, 0, 0), problem_.in_channels, first_line, lines);
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
                if (++n == problem_.batch) return {};
            }
        }
        const int64_t rows = std::min(blocks_.block_rows, rows_ - block);
        return {grad_.data + n * grad_stride_.n + block * grad_stride_.c + first_line * grad_stride_.h,
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
        const T* source = grad_.data + n * grad_stride_.n + first_row * grad_stride_.c + first_line * grad_stride_.h;
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

    const ConvProblem& problem_;
    const TensorView<const T> grad_, input_;
    const KernelSet<T>& kernels_;
    const PlaneLayout& layout_;
    const DirectSumBlocks& blocks_;
    const int64_t rows_;
    const Strides grad_stride_;
    const Stager<T> stager_;
    const std::vector<int32_t> offsets_;
    const int64_t columns_;
};

}  // namespace

template <class T>
TaskPlan direct_spatial_tasks(const PixelSum<T>& sum, const PlaneLayout& layout, const DirectSumBlocks& blocks,
                              const KernelSet<T>& kernels) {
    return Driver<T>(sum, layout, blocks, kernels).tasks();
}

template <class T>
void run_direct_spatial(const PixelSum<T>& sum, const PlaneLayout& layout, const DirectSumBlocks& blocks,
                        const TaskPlan& tasks, const KernelSet<T>& kernels) {
    Driver<T>(sum, layout, blocks, kernels).run(tasks, sum.grad_weight.data);
}

template TaskPlan direct_spatial_tasks(const PixelSum<float>&, const PlaneLayout&, const DirectSumBlocks&,
                                       const KernelSet<float>&);
template TaskPlan direct_spatial_tasks(const PixelSum<double>&, const PlaneLayout&, const DirectSumBlocks&,
                                       const KernelSet<double>&);
template void run_direct_spatial(const PixelSum<float>&, const PlaneLayout&, const DirectSumBlocks&, const TaskPlan&,
                                 const KernelSet<float>&);
template void run_direct_spatial(const PixelSum<double>&, const PlaneLayout&, const DirectSumBlocks&, const TaskPlan&,
                                 const KernelSet<double>&);

}  // namespace convx
