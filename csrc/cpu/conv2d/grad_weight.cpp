// Weight gradient: a GEMM whose reduction runs over the pixels of the whole batch.
//
//   grad_weight[k, (c, r, s)] = sum over n, p, q of grad_output[n, k, p, q] * input[n, c, h(r, p), w(s, q)]
//
// A task owns a block of rows (k), a block of columns (c, r, s) and a contiguous part of the pixels; chunk by chunk it
// packs both operands with pixels outermost and adds the product to its own partial sums. Where rows and columns give
// too few tasks the pixels are split; the parts are added in order at the end. The cuts follow from the problem alone.
#include <cmath>

#include "common/rounding.h"
#include "cpu/conv2d/methods.h"
#include "cpu/conv2d/pixels.h"
#include "cpu/conv2d/plain.h"
#include "cpu/conv2d/plan.h"
#include "cpu/registry.h"
#include "cpu/scratch_parts.h"
#include "cpu/thread_pool.h"
#include "cpu/workspace.h"

namespace convx {

namespace {

Strides strides_of(const std::array<int64_t, 4>& stride) { return {stride[0], stride[1], stride[2], stride[3]}; }

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const GradWeightBlocks& blocks, const KernelSet<T>& kernels)
        : rows(parts.take<T>(round_up(blocks.block_rows, kernels.mr) * blocks.chunk_pixels)),
          columns(parts.take<T>(round_up(blocks.block_columns, kernels.nr) * blocks.chunk_pixels)),
          stage(parts.take<T>(blocks.block_columns * blocks.chunk_pixels)),
          runs(parts.take<LaneRun>(blocks.chunk_pixels)), bytes(parts.bytes()) {}
    T* rows;        // grad_output: [panel][pixel][mr]
    T* columns;     // input: [panel][pixel][nr]
    T* stage;       // input before its transpose: [column][pixel]
    LaneRun* runs;  // what a tap reads
    int64_t bytes;
};

template <class T>
class Nest {
public:
    Nest(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
         const KernelSet<T>& kernels)
        : problem_(problem), kernels_(kernels), h_(forward_table(problem.h)), w_(forward_table(problem.w)),
          grad_(grad_output.data), grad_stride_(strides_of(grad_output.stride)), input_(input.data),
          input_stride_(strides_of(input.stride)), border_(border_of(problem, h_, w_)), rows_(problem.group_out()),
          taps_(problem.taps()), columns_(problem.group_in() * taps_), pixels_(problem.batch * problem.out_pixels()),
          step_(w_.step * input_stride_.w), adjacent_(input_stride_.c == 1 && step_ != 1 ? Adjacent::channels
                                                      : step_ == 1                       ? Adjacent::pixels
                                                                                         : Adjacent::neither),
          blocks_(plan_grad_weight_blocks(pixels_, problem.groups, rows_, problem.group_in(), taps_, adjacent_,
                                          kernels.mr, kernels.nr)),
          pad_(static_cast<T>(border_.value)) {}

    const Border& border() const { return border_; }

    void run(T* grad_weight) {
        const int64_t row_blocks = ceil_div(rows_, blocks_.block_rows);
        const int64_t column_blocks = ceil_div(columns_, blocks_.block_columns);
        const int64_t tasks = problem_.groups * row_blocks * column_blocks * blocks_.splits;
        const int width = static_cast<int>(std::min<int64_t>({parallel_width(problem_.flops()), num_threads(), tasks}));
        // One part with the columns in weight order needs no partial sums: the tiles go to grad_weight itself.
        const bool direct = blocks_.in_place(taps_);
        const int64_t part = problem_.groups * rows_ * columns_;
        const PassScratch scratch = grad_weight_scratch(blocks_, part, direct, kernels_);
        const Workspace workspace(static_cast<size_t>(scratch.shared_bytes + width * scratch.worker_bytes));
        T* partial = direct ? grad_weight : static_cast<T*>(workspace.data());
        char* workers = static_cast<char*>(workspace.data()) + scratch.shared_bytes;

        parallel_for(tasks, width, [&](int64_t task, int worker) {
            const int64_t row_block = task % row_blocks;
            const int64_t column_block = task / row_blocks % column_blocks;
            const int64_t split = task / row_blocks / column_blocks % blocks_.splits;
            const int64_t group = task / row_blocks / column_blocks / blocks_.splits;
            run_task(group, row_block * blocks_.block_rows, column_block * blocks_.block_columns, split,
                     partial + split * part + group * rows_ * columns_, workers + worker * scratch.worker_bytes);
        });
        if (!direct) add_parts(partial, grad_weight, part);
    }

private:
    void run_task(int64_t group, int64_t first_row, int64_t first_column, int64_t split, T* partial, char* memory) {
        const Scratch<T> scratch(ScratchParts(memory), blocks_, kernels_);
        const int64_t rows = std::min(blocks_.block_rows, rows_ - first_row);
        const int64_t columns = std::min(blocks_.block_columns, columns_ - first_column);
        const int64_t chunks = ceil_div(pixels_, blocks_.chunk_pixels);
        const int64_t first_chunk = split * chunks / blocks_.splits;
        const int64_t last_chunk = (split + 1) * chunks / blocks_.splits;
        for (int64_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
            const int64_t first_pixel = chunk * blocks_.chunk_pixels;
            const int64_t depth = std::min(blocks_.chunk_pixels, pixels_ - first_pixel);
            pack_rows(group, first_row, rows, first_pixel, depth, scratch);
            if (blocks_.tap_major)
                pack_columns_tap_major(group, first_column, columns, first_pixel, depth, scratch);
            else
                pack_columns(group, first_column, columns, first_pixel, depth, scratch);
            for (int64_t j = 0; j < columns; j += kernels_.nr)
                for (int64_t i = 0; i < rows; i += kernels_.mr)
                    kernels_.gemm_tile(static_cast<int>(std::min<int64_t>(kernels_.mr, rows - i)),
                                       static_cast<int>(std::min<int64_t>(kernels_.nr, columns - j)), depth,
                                       scratch.rows + i * depth, scratch.columns + j * depth,
                                       {partial + (first_row + i) * columns_ + first_column + j, columns_,
                                        chunk > first_chunk, nullptr, nullptr, false});
        }
    }

    // grad_output, pixels outermost: a transpose where pixels are adjacent in memory, copies where channels are.
    void pack_rows(int64_t group, int64_t first_row, int64_t rows, int64_t first_pixel, int64_t depth,
                   const Scratch<T>& scratch) {
        const bool flat = grad_stride_.h == w_.positions * grad_stride_.w;
        const int64_t segment_rows = flat ? 1 : h_.positions;
        const int64_t segment_columns = flat ? h_.positions * w_.positions : w_.positions;
        for_each_segment(segment_rows, segment_columns, first_pixel, depth, [&](const PixelSegment& segment) {
            const T* source = grad_ + segment.n * grad_stride_.n + (group * rows_ + first_row) * grad_stride_.c +
                              segment.i * grad_stride_.h + segment.j * grad_stride_.w;
            for (int64_t i = 0; i < rows; i += kernels_.mr) {
                const int count = static_cast<int>(std::min<int64_t>(kernels_.mr, rows - i));
                T* dst = scratch.rows + i * depth + segment.lane * kernels_.mr;
                if (grad_stride_.w == 1) {
                    const T* row[64];
                    for (int k = 0; k < count; ++k) row[k] = source + (i + k) * grad_stride_.c;
                    kernels_.pack_transposed(dst, kernels_.mr, row, count, segment.count);
                } else {
                    const LaneRun run{0, count, i * grad_stride_.c};
                    kernels_.pack_lanes(dst, kernels_.mr, source, grad_stride_.w, segment.count, &run, 1, count,
                                        grad_stride_.c, T(0));
                }
            }
        });
    }

    const T* input_at(int64_t group, int64_t channel) const {
        return input_ + (group * problem_.group_in() + channel) * input_stride_.c;
    }

    // Columns in weight order: gather each as a row of pixels, then transpose panel by panel.
    void pack_columns(int64_t group, int64_t first_column, int64_t columns, int64_t first_pixel, int64_t depth,
                      const Scratch<T>& scratch) {
        for (int64_t tap = 0; tap < taps_; ++tap) {
            // The channels whose column c * taps + tap lies in this block.
            const int64_t begin = ceil_div(std::max<int64_t>(first_column - tap, 0), taps_);
            const int64_t end = ceil_div(std::max<int64_t>(first_column + columns - tap, 0), taps_);
            if (begin >= end) continue;
            const int run_count = find_runs(tap, first_pixel, depth, scratch);
            kernels_.pack_lanes(scratch.stage + (begin * taps_ + tap - first_column) * depth, taps_ * depth,
                                input_at(group, begin), input_stride_.c, end - begin, scratch.runs, run_count,
                                static_cast<int>(depth), step_, pad_);
        }
        for (int64_t j = 0; j < columns; j += kernels_.nr) {
            const int count = static_cast<int>(std::min<int64_t>(kernels_.nr, columns - j));
            const T* row[64];
            for (int i = 0; i < count; ++i) row[i] = scratch.stage + (j + i) * depth;
            kernels_.pack_transposed(scratch.columns + j * depth, kernels_.nr, row, count, depth);
        }
    }

    // Columns tap by tap: copies where channels are adjacent in memory, a transpose of every run where pixels are.
    void pack_columns_tap_major(int64_t group, int64_t first_column, int64_t columns, int64_t first_pixel,
                                int64_t depth, const Scratch<T>& scratch) {
        const int64_t channels = problem_.group_in();
        const int64_t nr = kernels_.nr;
        for (int64_t tap = first_column / channels; tap * channels < first_column + columns; ++tap) {
            const int run_count = find_runs(tap, first_pixel, depth, scratch);
            int64_t column = std::max(first_column, tap * channels);
            const int64_t stop = std::min(first_column + columns, (tap + 1) * channels);
            while (column < stop) {
                const int64_t j = column - first_column;
                const int count = static_cast<int>(std::min(nr - j % nr, stop - column));
                T* dst = scratch.columns + j / nr * nr * depth + j % nr;
                const T* source = input_at(group, column - tap * channels);
                pack_runs(dst, source, run_count, depth, count, scratch.runs);
                column += count;
            }
        }
    }

    // Pixels outermost, `channels` lanes. As in pack_lanes, runs on one line in memory are packed in one go and the
    // gaps overwritten.
    void pack_runs(T* dst, const T* source, int run_count, int64_t depth, int channels, const LaneRun* runs) {
        const int64_t nr = kernels_.nr;
        int64_t filled = 0;  // pixels below this one are written
        const auto pad_until = [&](int64_t pixel) {
            for (; filled < pixel; ++filled) std::fill_n(dst + filled * nr, channels, pad_);
        };
        for (int r = 0; r < run_count;) {
            const LaneRun& first = runs[r];
            int last = r;
            while (last + 1 < run_count &&
                   runs[last + 1].offset - first.offset == (runs[last + 1].lane - first.lane) * step_)
                ++last;
            pack_line(dst + first.lane * nr, source + first.offset, runs[last].lane + runs[last].count - first.lane,
                      channels);
            for (; r <= last; ++r) {
                pad_until(runs[r].lane);
                filled = runs[r].lane + runs[r].count;
            }
        }
        pad_until(depth);
    }

    void pack_line(T* dst, const T* source, int64_t pixels, int channels) {
        if (adjacent_ == Adjacent::channels) {
            const LaneRun lanes{0, channels, 0};
            return kernels_.pack_lanes(dst, kernels_.nr, source, step_, pixels, &lanes, 1, channels, 1, pad_);
        }
        const T* row[64];
        for (int c = 0; c < channels; ++c) row[c] = source + c * input_stride_.c;
        kernels_.pack_transposed(dst, kernels_.nr, row, channels, pixels);
    }

    int find_runs(int64_t tap, int64_t first_pixel, int64_t depth, const Scratch<T>& scratch) const {
        int run_count = 0;
        for_each_segment(h_.positions, w_.positions, first_pixel, depth, [&](const PixelSegment& segment) {
            run_count = append_runs(h_, w_, tap / problem_.w.kernel, tap % problem_.w.kernel, input_stride_, segment,
                                    scratch.runs, run_count);
        });
        return run_count;
    }

    // The parts in ascending order of their pixels, and the columns back in weight order.
    void add_parts(const T* partial, T* grad_weight, int64_t part) {
        const int64_t rows = problem_.groups * rows_, channels = problem_.group_in();
        parallel_for(rows, parallel_width(64 * part * blocks_.splits), [&](int64_t k, int) {
            T* to = grad_weight + k * columns_;
            for (int64_t c = 0; c < channels; ++c)
                for (int64_t tap = 0; tap < taps_; ++tap) {
                    const int64_t column = blocks_.tap_major ? tap * channels + c : c * taps_ + tap;
                    const T* from = partial + k * columns_ + column;
                    T sum = from[0];
                    for (int64_t split = 1; split < blocks_.splits; ++split) sum += from[split * part];
                    to[c * taps_ + tap] = sum;
                }
        });
    }

    const ConvProblem& problem_;
    const KernelSet<T>& kernels_;
    const AxisTable h_, w_;
    const T* grad_;
    const Strides grad_stride_;
    const T* input_;
    const Strides input_stride_;
    const Border border_;
    const int64_t rows_, taps_, columns_, pixels_;
    const int64_t step_;  // input distance of pixels adjacent in a row
    const Adjacent adjacent_;
    const GradWeightBlocks blocks_;
    const T pad_;
};

}  // namespace

template <class T>
PassScratch grad_weight_scratch(const GradWeightBlocks& blocks, int64_t weights, bool in_place,
                                const KernelSet<T>& kernels) {
    const int64_t partial = in_place ? 0 : blocks.splits * weights * static_cast<int64_t>(sizeof(T));
    return {cache_lines(partial), Scratch<T>(ScratchParts(), blocks, kernels).bytes};
}

template <class T>
void gemm_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                      TensorView<T> grad_weight) {
    const int64_t size = grad_weight.size();
    Nest<T> nest(problem, grad_output, input, kernel_set<T>(active_kernels()));
    if (nest.border().mixed) return plain_grad_weight(problem, grad_output, input, grad_weight);
    nest.run(grad_weight.data);
    // An infinite or NaN gradient over the border has become 0 * inf = NaN, where it should have added nothing.
    if (nest.border().skips &&
        std::any_of(grad_weight.data, grad_weight.data + size, [](T value) { return std::isnan(value); }))
        plain_grad_weight(problem, grad_output, input, grad_weight);
}

template PassScratch grad_weight_scratch(const GradWeightBlocks&, int64_t, bool, const KernelSet<float>&);
template PassScratch grad_weight_scratch(const GradWeightBlocks&, int64_t, bool, const KernelSet<double>&);
template void gemm_grad_weight(const ConvProblem&, TensorView<const float>, TensorView<const float>, TensorView<float>);
template void gemm_grad_weight(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                               TensorView<double>);

}  // namespace convx
