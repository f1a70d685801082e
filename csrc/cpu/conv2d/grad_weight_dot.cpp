// Weight gradient: a GEMM whose reduction runs over the pixels of the whole batch.
//
//   grad_weight[k, (c, r, s)] = sum over n, p, q of grad_output[n, k, p, q] * input[n, c, h(r, p), w(s, q)]
//
// Pixels are the fastest axis of both operands in NCHW, so the tile is one of dot products, with vectors over pixels
// (dot_tile.inl.h): a 1x1 convolution reads both arrays in place, other columns are staged as lines of pixels, and
// nothing is transposed. Against packing both operands for the tile of micro_kernel.inl.h, which took 20 to 25 % of the
// time, 1x1 layers gain 5 to 15 %.
//
// A task owns a block of rows (k), a block of columns (c, r, s) and a contiguous part of the pixels, chunk by chunk.
// Where rows and columns give too few tasks the pixel sum is split-K: its slices are added in order. The cuts
// follow from the problem alone.
#include "common/rounding.h"
#include "cpu/conv2d/method_row.h"
#include "cpu/runtime/split_sum.h"

namespace convx {

namespace {

// Pixels [first, first + count) of the batch, one plane behind the other.
struct PixelChunk {
    int64_t first, count;
};

struct Blocks {
    int64_t mc = 1;             // output channels of one task
    int64_t pass_rows = 1;      // those that stay in L2 while the columns pass by
    int64_t nc = 1;             // (input channel, tap) pairs of one task
    int64_t stage_columns = 1;  // those that are staged at a time
    int64_t stage_stride = 1;   // elements from one staged line to the next
    int64_t plane = 1;          // pixels of an image
    int64_t parts = 1;          // chunks of an image, if it is large
    int64_t images = 1;         // images of a chunk, if they are small
    int64_t kc = 1;             // pixels summed in registers in one go
    int64_t chunks = 1;         // of the whole batch
    int64_t pixels = 0;         // of the whole batch
    int64_t slices = 1;         // slices of the pixel sum (split-K), added in order

    PixelChunk chunk(int64_t index) const {
        const int64_t first = index / parts * images * plane + index % parts * kc;
        const int64_t stop = parts > 1 ? (index / parts + 1) * plane : pixels;
        return {first, std::min(kc, stop - first)};
    }
};

template <class T>
Blocks plan_blocks(const ConvProblem& problem, const KernelSet<T>& kernels) {
    Blocks blocks;
    const int64_t rows = problem.group_out(), columns = problem.group_in() * problem.taps();
    blocks.plane = std::max<int64_t>(problem.out_pixels(), 1);
    blocks.pixels = problem.batch * problem.out_pixels();
    // A chunk of an image, or several images: 2 KiB of pixels a line, so that 2 tiles of columns and one of rows share
    // L1, and the sum across lanes at its end (about 20 cycles a tile) is 5 to 8 % of the tile's 300.
    const int64_t target = 2048 / static_cast<int64_t>(sizeof(T));
    blocks.parts = ceil_div(blocks.plane, target);
    if (blocks.parts > 1) {
        blocks.kc = round_up(ceil_div(blocks.plane, blocks.parts), 16);
        blocks.parts = ceil_div(blocks.plane, blocks.kc);
        blocks.chunks = problem.batch * blocks.parts;
    } else {
        const int64_t most = std::max<int64_t>(target / blocks.plane, 1);
        blocks.images = ceil_div(problem.batch, ceil_div(problem.batch, most));
        blocks.kc = blocks.images * blocks.plane;
        blocks.chunks = ceil_div(problem.batch, blocks.images);
    }
    blocks.stage_stride = round_up(blocks.kc, 16);
    // In L2 (512 KiB): 96 lines of rows (192 KiB), 64 staged columns (128 KiB) and 96 x 192 partial sums (72 KiB).
    // Columns that have to be staged are worth more rows, though these then come from L3.
    const bool staged = problem.taps() > 1 || problem.h.stride > 1 || problem.w.stride > 1;
    blocks.mc = even_blocks(rows, staged ? 192 : 96, kernels.dot_rows);
    blocks.pass_rows = even_blocks(blocks.mc, 96, kernels.dot_rows);
    blocks.nc = even_blocks(columns, 192, kernels.dot_columns);
    blocks.stage_columns = even_blocks(blocks.nc, 64, 2 * kernels.dot_columns);
    const int64_t tiles = problem.groups * ceil_div(rows, blocks.mc) * ceil_div(columns, blocks.nc);
    blocks.slices = std::clamp(wanted_tasks / std::max<int64_t>(tiles, 1), int64_t{1}, blocks.chunks);
    return blocks;
}

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const Blocks& blocks)
        : rows(parts.take<T>(blocks.mc * blocks.stage_stride)),
          columns(parts.take<T>(blocks.stage_columns * blocks.stage_stride)),
          row_start(parts.take<const T*>(blocks.mc)), column_start(parts.take<const T*>(blocks.stage_columns)),
          runs(parts.take<LaneRun>(blocks.kc)), pad(parts.take<T>(blocks.stage_columns)), bytes(parts.bytes()) {}
    T* rows;                 // grad_output: [row][pixel], where it is not read in place
    T* columns;              // input: [column][pixel], where it is not read in place
    const T** row_start;     // where the pixels of a row stand
    const T** column_start;  // and those of a column
    LaneRun* runs;           // what a tap reads
    T* pad;                  // the channels of a pixel outside
    int64_t bytes;
};

template <class T>
class DotDriver {
public:
    DotDriver(const PixelSum<T>& sum, const KernelSet<T>& kernels)
        : problem_(*sum.problem), kernels_(kernels), h_(forward_table(problem_.h)), w_(forward_table(problem_.w)),
          grad_(sum.grad_output.data), grad_stride_(strides_of(sum.grad_output.stride)), input_(sum.input.data),
          input_stride_(strides_of(sum.input.stride)), rows_(problem_.group_out()), taps_(problem_.taps()),
          columns_(problem_.group_in() * taps_), step_(w_.step * input_stride_.w),
          blocks_(plan_blocks(problem_, kernels)),
          product_{problem_.groups, rows_, columns_, blocks_.mc, blocks_.nc, blocks_.slices}, pad_(sum.pad()) {}

    const Blocks& blocks() const { return blocks_; }

    TaskPlan tasks() const { return product_.tasks(problem_.flops(), Scratch<T>(ScratchParts(), blocks_).bytes); }

    void run(T* grad_weight) {
        product_.run(tasks(), grad_weight, [&](auto... task) { run_task(task...); });
    }

private:
    void run_task(int64_t group, int64_t first_row, int64_t first_column, int64_t slice, T* partial,
                  ScratchParts parts) {
        const Scratch<T> scratch(parts, blocks_);
        std::fill(scratch.pad, scratch.pad + blocks_.stage_columns, pad_);
        const int64_t rows = std::min(blocks_.mc, rows_ - first_row);
        const int64_t stop_column = std::min(first_column + blocks_.nc, columns_);
        const int64_t first_chunk = slice * blocks_.chunks / blocks_.slices;
        const int64_t last_chunk = (slice + 1) * blocks_.chunks / blocks_.slices;
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

    const ConvProblem& problem_;
    const KernelSet<T>& kernels_;
    const AxisTable h_, w_;
    const T* grad_;
    const Strides grad_stride_;
    const T* input_;
    const Strides input_stride_;
    const int64_t rows_, taps_, columns_;
    const int64_t step_;  // input distance of pixels adjacent in a row
    const Blocks blocks_;
    const SplitProduct<T> product_;
    const T pad_;
};

}  // namespace

struct DotSumMethod : SumMethod<DotDriver> {
    static constexpr const char* name = "implicit-gemm";

    static Verdict supports(const ConvProblem&, ConvPass) { return {}; }
    static Work work(const WorkSizes& sizes) {
        Work work = sizes.common();
        const TileSizes& tile = sizes.tile;
        const double pixels = sizes.h.dest * sizes.w.dest, columns = sizes.channels * sizes.taps;
        const TileGrid grid(sizes.rows, tile.dot_rows, columns, tile.dot_columns);
        work[WorkKind::cycles] = sizes.groups * sizes.vectors(pixels) * grid.cycles;
        work[WorkKind::tiles] = sizes.groups * grid.tiles * std::ceil(pixels * item_size(sizes.problem.dtype) / 2048);
        if (sizes.channels_last)
            work[WorkKind::transposes] = sizes.groups * (columns + sizes.rows) * pixels;
        else if (sizes.strided)
            work[WorkKind::transposes] = sizes.groups * columns * pixels;
        else if (sizes.taps > 1)
            work[WorkKind::copies] = sizes.groups * columns * sizes.vectors(pixels);
        if (sizes.taps > 1 || sizes.strided)
            work[WorkKind::runs] = sizes.groups * (sizes.channels_last ? sizes.taps * pixels : columns * sizes.h.dest);
        return work;
    }

    template <class T>
    static void describe(const PixelSum<T>& sum, const DotDriver<T>& driver, const KernelSet<T>& kernels,
                         PassPlan& text) {
        const Blocks& blocks = driver.blocks();
        const int64_t columns = sum.problem->group_in() * sum.problem->taps();
        text.tile = std::to_string(kernels.dot_rows) + " x " + std::to_string(kernels.dot_columns) + " weights";
        text.block = std::to_string(std::min(blocks.mc, sum.problem->group_out())) + " output channels x " +
                     std::to_string(std::min(blocks.nc, columns)) + " (input channel, tap) pairs, sums of " +
                     std::to_string(blocks.kc) + " pixels, " + std::to_string(blocks.slices) +
                     (blocks.slices == 1 ? " part" : " parts");
        text.reason = "dot products over the pixels of the batch";
        text.reason +=
            blocks.slices > 1
                ? "; too few weights for all tasks, so the pixel sum is split-K and its slices added in order"
                : "; enough weights to share out, so every sum is taken in one piece";
    }
};

template const Method<PixelSum<float>>& method_row<DotSumMethod, PixelSum<float>>();
template const Method<PixelSum<double>>& method_row<DotSumMethod, PixelSum<double>>();

}  // namespace convx
