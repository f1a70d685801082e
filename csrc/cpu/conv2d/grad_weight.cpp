// Weight gradient: a GEMM whose reduction runs over the pixels of the whole batch.
//
//   grad_weight[k, (c, r, s)] = sum over n, p, q of grad_output[n, k, p, q] * input[n, c, h(r, p), w(s, q)]
//
// Pixels are the fastest axis of both operands in NCHW, so the tile is one of dot products, with vectors over pixels
// (dot_tile.inl.h): a 1x1 convolution reads both arrays in place, other columns are staged as lines of pixels, and
// nothing is transposed. Against packing both operands for the tile of gemm_tile.inl.h, which took 20 to 25 % of the
// time, 1x1 layers gain 5 to 15 %.
//
// A task owns a block of rows (k), a block of columns (c, r, s) and a contiguous part of the pixels, chunk by chunk.
// Where rows and columns give too few tasks the pixels are split; the parts are added in order at the end. The cuts
// follow from the problem alone.
#include <cmath>

#include "common/rounding.h"
#include "cpu/conv2d/grad_weight_channels.h"
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
    Scratch(ScratchParts parts, const GradWeightBlocks& blocks)
        : rows(parts.take<T>(blocks.block_rows * blocks.stage_stride)),
          columns(parts.take<T>(blocks.stage_columns * blocks.stage_stride)),
          row_start(parts.take<const T*>(blocks.block_rows)), column_start(parts.take<const T*>(blocks.stage_columns)),
          runs(parts.take<LaneRun>(blocks.chunk_pixels)), pad(parts.take<T>(blocks.stage_columns)),
          bytes(parts.bytes()) {}
    T* rows;                 // grad_output: [row][pixel], where it is not read in place
    T* columns;              // input: [column][pixel], where it is not read in place
    const T** row_start;     // where the pixels of a row stand
    const T** column_start;  // and those of a column
    LaneRun* runs;           // what a tap reads
    T* pad;                  // the channels of a pixel outside
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
          taps_(problem.taps()), columns_(problem.group_in() * taps_), step_(w_.step * input_stride_.w),
          blocks_(plan_grad_weight_blocks(problem, kernels)), pad_(static_cast<T>(border_.value)) {}

    const Border& border() const { return border_; }
    const AxisTable& h() const { return h_; }
    const AxisTable& w() const { return w_; }
    T pad() const { return pad_; }

    void run(T* grad_weight) {
        const int64_t row_blocks = ceil_div(rows_, blocks_.block_rows);
        const int64_t column_blocks = ceil_div(columns_, blocks_.block_columns);
        const int64_t tasks = problem_.groups * row_blocks * column_blocks * blocks_.splits;
        const int width = static_cast<int>(std::min<int64_t>({parallel_width(problem_.flops()), num_threads(), tasks}));
        const int64_t part = problem_.groups * rows_ * columns_;
        const PassScratch scratch = grad_weight_scratch<T>(blocks_, part);
        const Workspace workspace(static_cast<size_t>(scratch.shared_bytes + width * scratch.worker_bytes));
        // One part needs no partial sums: the tiles go to grad_weight itself.
        T* partial = blocks_.splits == 1 ? grad_weight : static_cast<T*>(workspace.data());
        char* workers = static_cast<char*>(workspace.data()) + scratch.shared_bytes;

        // Neighbouring tasks, which one worker runs, share their pixels.
        parallel_for(tasks, width, [&](int64_t task, int worker) {
            const int64_t row_block = task % row_blocks;
            const int64_t column_block = task / row_blocks % column_blocks;
            const int64_t split = task / row_blocks / column_blocks % blocks_.splits;
            const int64_t group = task / row_blocks / column_blocks / blocks_.splits;
            run_task(group, row_block * blocks_.block_rows, column_block * blocks_.block_columns, split,
                     partial + split * part + group * rows_ * columns_, workers + worker * scratch.worker_bytes);
        });
        if (blocks_.splits > 1) add_parts(partial, grad_weight, part);
    }

private:
    void run_task(int64_t group, int64_t first_row, int64_t first_column, int64_t split, T* partial, char* memory) {
        const Scratch<T> scratch(ScratchParts(memory), blocks_);
        std::fill(scratch.pad, scratch.pad + blocks_.stage_columns, pad_);
        const int64_t rows = std::min(blocks_.block_rows, rows_ - first_row);
        const int64_t stop_column = std::min(first_column + blocks_.block_columns, columns_);
        const int64_t first_chunk = split * blocks_.chunks / blocks_.splits;
        const int64_t last_chunk = (split + 1) * blocks_.chunks / blocks_.splits;
        for (int64_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
            const PixelChunk pixels = blocks_.chunk(chunk);
            find_rows(group * rows_ + first_row, rows, pixels, scratch);
            for (int64_t column = first_column; column < stop_column; column += blocks_.stage_columns) {
                const int64_t columns = std::min(blocks_.stage_columns, stop_column - column);
                find_columns(group, column, columns, pixels, scratch);
                multiply(rows, columns, pixels.count, scratch, partial + first_row * columns_ + column,
                         chunk > first_chunk);
            }
        }
    }

    // Two tiles of columns (16 KiB) stay in L1 while `pass_rows` rows come by out of L2.
    void multiply(int64_t rows, int64_t columns, int64_t depth, const Scratch<T>& scratch, T* sums, bool accumulate) {
        const int64_t mr = kernels_.dot_rows, nr = kernels_.dot_columns;
        const int64_t pass = blocks_.pass_rows;
        for (int64_t first_row = 0; first_row < rows; first_row += pass)
            for (int64_t first = 0; first < columns; first += 2 * nr)
                for (int64_t i = first_row; i < std::min(first_row + pass, rows); i += mr)
                    for (int64_t j = first; j < std::min(first + 2 * nr, columns); j += nr)
                        kernels_.dot_tile(static_cast<int>(std::min(mr, rows - i)),
                                          static_cast<int>(std::min(nr, columns - j)), depth, scratch.row_start + i,
                                          scratch.column_start + j, {sums + i * columns_ + j, columns_, accumulate});
    }

    // Reading rows in place pays unless they all fall into few sets of the cache.
    static bool spreads(int64_t stride) { return stride * static_cast<int64_t>(sizeof(T)) % 2048 != 0; }

    void find_rows(int64_t channel, int64_t rows, const PixelChunk& pixels, const Scratch<T>& scratch) {
        const T* source = grad_ + channel * grad_stride_.c;
        const bool flat = grad_stride_.h == w_.positions * grad_stride_.w;
        const int64_t segment_rows = flat ? 1 : h_.positions;
        const int64_t segment_columns = flat ? h_.positions * w_.positions : w_.positions;
        bool in_place = false;
        for_each_segment(segment_rows, segment_columns, pixels.first, pixels.count, [&](const PixelSegment& segment) {
            const T* from =
                source + segment.n * grad_stride_.n + segment.i * grad_stride_.h + segment.j * grad_stride_.w;
            in_place = segment.count == pixels.count && grad_stride_.w == 1 && spreads(grad_stride_.c);
            if (in_place) {
                for (int64_t row = 0; row < rows; ++row) scratch.row_start[row] = from + row * grad_stride_.c;
            } else {
                stage_line(scratch.rows + segment.lane, blocks_.stage_stride, from, grad_stride_.w, grad_stride_.c,
                           segment.count, rows);
            }
        });
        if (!in_place)
            for (int64_t row = 0; row < rows; ++row) scratch.row_start[row] = scratch.rows + row * blocks_.stage_stride;
    }

    // Columns in the order of the weights: (channel, tap).
    void find_columns(int64_t group, int64_t first_column, int64_t columns, const PixelChunk& pixels,
                      const Scratch<T>& scratch) {
        for (int64_t tap = 0; tap < taps_; ++tap) {
            // The channels whose column c * taps + tap lies in this block.
            const int64_t begin = ceil_div(std::max<int64_t>(first_column - tap, 0), taps_);
            const int64_t end = ceil_div(std::max<int64_t>(first_column + columns - tap, 0), taps_);
            if (begin >= end) continue;
            int run_count = 0;
            for_each_segment(h_.positions, w_.positions, pixels.first, pixels.count, [&](const PixelSegment& segment) {
                run_count = append_runs(h_, w_, tap / problem_.w.kernel, tap % problem_.w.kernel, input_stride_,
                                        segment, scratch.runs, run_count);
            });
            const T* source = input_ + (group * problem_.group_in() + begin) * input_stride_.c;
            const int64_t first = begin * taps_ + tap - first_column;
            const T** start = scratch.column_start + first;
            if (reads_in_place(scratch.runs, run_count, pixels.count)) {
                for (int64_t c = begin; c < end; ++c)
                    start[(c - begin) * taps_] = source + (c - begin) * input_stride_.c + scratch.runs[0].offset;
                continue;
            }
            T* stage = scratch.columns + first * blocks_.stage_stride;
            for (int64_t c = begin; c < end; ++c)
                start[(c - begin) * taps_] = stage + (c - begin) * taps_ * blocks_.stage_stride;
            if (input_stride_.c == 1 && step_ != 1)
                stage_channels(stage, source, run_count, pixels.count, end - begin, scratch);
            else
                kernels_.pack_lanes(stage, taps_ * blocks_.stage_stride, source, input_stride_.c, end - begin,
                                    scratch.runs, run_count, static_cast<int>(pixels.count), step_, pad_);
        }
    }

    // The runs are one line in memory, without gaps.
    bool reads_in_place(const LaneRun* runs, int run_count, int64_t count) const {
        if (step_ != 1 || !spreads(input_stride_.c)) return false;
        int64_t lane = 0;
        for (int r = 0; r < run_count; ++r) {
            if (runs[r].lane != lane || runs[r].offset != runs[0].offset + lane) return false;
            lane += runs[r].count;
        }
        return lane == count;
    }

    // dst[row * dst_stride + i] = source[row * row_step + i * step], for i < count.
    void stage_line(T* dst, int64_t dst_stride, const T* source, int64_t step, int64_t row_step, int64_t count,
                    int64_t rows) {
        if (row_step == 1 && step != 1) {
            for (int64_t i = 0; i < count; i += 64) {
                const T* pixel[64];
                const int64_t n = std::min<int64_t>(64, count - i);
                for (int64_t p = 0; p < n; ++p) pixel[p] = source + (i + p) * step;
                kernels_.pack_transposed(dst + i, dst_stride, pixel, static_cast<int>(n), rows);
            }
            return;
        }
        const LaneRun run{0, static_cast<int32_t>(count), 0};
        kernels_.pack_lanes(dst, dst_stride, source, row_step, rows, &run, 1, static_cast<int>(count), step, T(0));
    }

    // Channels adjacent in memory: a transpose of what a tap reads, pixels outside being a row of pad values.
    void stage_channels(T* stage, const T* source, int run_count, int64_t count, int64_t channels,
                        const Scratch<T>& scratch) {
        int r = 0;
        for (int64_t i = 0; i < count; i += 64) {
            const T* pixel[64];
            const int64_t n = std::min<int64_t>(64, count - i);
            for (int64_t p = 0; p < n; ++p) {
                while (r < run_count && i + p >= scratch.runs[r].lane + scratch.runs[r].count) ++r;
                const bool inside = r < run_count && i + p >= scratch.runs[r].lane;
                pixel[p] =
                    inside ? source + scratch.runs[r].offset + (i + p - scratch.runs[r].lane) * step_ : scratch.pad;
            }
            kernels_.pack_transposed(stage + i, taps_ * blocks_.stage_stride, pixel, static_cast<int>(n), channels);
        }
    }

    // The parts in ascending order of their pixels.
    void add_parts(const T* partial, T* grad_weight, int64_t part) {
        parallel_for(problem_.groups * rows_, parallel_width(4 * part * blocks_.splits), [&](int64_t k, int) {
            T* to = grad_weight + k * columns_;
            std::copy_n(partial + k * columns_, columns_, to);
            for (int64_t split = 1; split < blocks_.splits; ++split) {
                const T* from = partial + split * part + k * columns_;
                for (int64_t column = 0; column < columns_; ++column) to[column] += from[column];
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
    const int64_t rows_, taps_, columns_;
    const int64_t step_;  // input distance of pixels adjacent in a row
    const GradWeightBlocks blocks_;
    const T pad_;
};

}  // namespace

template <class T>
PassScratch grad_weight_scratch(const GradWeightBlocks& blocks, int64_t weights) {
    const int64_t partial = blocks.splits == 1 ? 0 : blocks.splits * weights * static_cast<int64_t>(sizeof(T));
    return {cache_lines(partial), Scratch<T>(ScratchParts(), blocks).bytes};
}

template <class T>
void gemm_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                      TensorView<T> grad_weight) {
    const int64_t size = grad_weight.size();
    const KernelSet<T>& kernels = kernel_set<T>(active_kernels());
    Nest<T> nest(problem, grad_output, input, kernels);
    if (nest.border().mixed) return plain_grad_weight(problem, grad_output, input, grad_weight);
    if (grad_weight_by_channels(problem))
        run_grad_weight_channels(problem, nest.h(), nest.w(), nest.pad(), grad_output, input, kernels,
                                 grad_weight.data);
    else
        nest.run(grad_weight.data);
    // An infinite or NaN gradient over the border has become 0 * inf = NaN, where it should have added nothing.
    if (nest.border().skips &&
        std::any_of(grad_weight.data, grad_weight.data + size, [](T value) { return std::isnan(value); }))
        plain_grad_weight(problem, grad_output, input, grad_weight);
}

template PassScratch grad_weight_scratch<float>(const GradWeightBlocks&, int64_t);
template PassScratch grad_weight_scratch<double>(const GradWeightBlocks&, int64_t);
template void gemm_grad_weight(const ConvProblem&, TensorView<const float>, TensorView<const float>, TensorView<float>);
template void gemm_grad_weight(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                               TensorView<double>);

}  // namespace convx
