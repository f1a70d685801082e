// The weight gradient of 1x1 convolutions in NHWC: rank-1 updates pixel by pixel, vectors over channels, which lie
// adjacent in both operands. Panels are copied without transposes.
#include "common/rounding.h"
#include "cpu/conv2d/method_row.h"
#include "cpu/runtime/split_sum.h"

namespace convx {

namespace {

constexpr int64_t packed_pixels = 16;  // at a time, which stay in L1 while their channels are shared out to panels

struct Blocks {
    int64_t mc = 1;  // output channels of one task
    int64_t nc = 1;  // input channels of one task
    int64_t kc = 1;  // pixels of the batch that are summed in registers in one go
    int64_t pixels = 0;
    int64_t chunks = 0;
    int64_t slices = 1;  // slices of the pixel sum (split-K), added in order
};

// Rows as many as 264 and columns as many as 256, so that most layers read whole pixels, in the order of memory
// (reading halves of them costs 10 %); for 192 pixels at a time that is 200 KiB of each operand's panels.
template <class T>
Blocks plan_blocks(const ConvProblem& problem, const KernelSet<T>& kernels) {
    constexpr int64_t wanted_parts = 16;  // each adds all weights once more
    Blocks blocks;
    const int64_t rows = problem.group_out(), columns = problem.group_in();
    blocks.pixels = problem.batch * problem.out_pixels();
    const int64_t pixels = std::max<int64_t>(blocks.pixels, 1), most = 768 / static_cast<int64_t>(sizeof(T));
    blocks.kc = ceil_div(pixels, ceil_div(pixels, most));
    blocks.chunks = ceil_div(pixels, blocks.kc);
    blocks.mc = even_blocks(rows, 264, kernels.mr);
    blocks.nc = even_blocks(columns, 256, kernels.nr);
    const int64_t tiles = problem.groups * ceil_div(rows, blocks.mc) * ceil_div(columns, blocks.nc);
    blocks.slices = std::clamp(wanted_parts / std::max<int64_t>(tiles, 1), int64_t{1}, blocks.chunks);
    return blocks;
}

template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const Blocks& blocks, const KernelSet<T>& kernels)
        : row_panel(blocks.kc * kernels.mr + kernels.nr), column_panel(blocks.kc * kernels.nr + kernels.nr),
          rows(parts.take<T>(ceil_div(blocks.mc, kernels.mr) * row_panel)),
          columns(parts.take<T>(ceil_div(blocks.nc, kernels.nr) * column_panel)), runs(parts.take<LaneRun>(blocks.kc)),
          bytes(parts.bytes()) {}
    int64_t row_panel, column_panel;
    T* rows;     // grad_output: panels of [pixel][mr]
    T* columns;  // input: panels of [pixel][nr]
    LaneRun* runs;
    int64_t bytes;
};

template <class T>
class OuterDriver {
public:
    OuterDriver(const PixelSum<T>& sum, const KernelSet<T>& kernels)
        : problem_(*sum.problem), h_(forward_table(problem_.h)), w_(forward_table(problem_.w)), pad_(sum.pad()),
          grad_(sum.grad_output), input_(sum.input), kernels_(kernels), rows_(problem_.group_out()),
          columns_(problem_.group_in()), blocks_(plan_blocks(problem_, kernels)),
          product_{problem_.groups, rows_, columns_, blocks_.mc, blocks_.nc, blocks_.slices} {}

    const Blocks& blocks() const { return blocks_; }

    TaskPlan tasks() const {
        return product_.tasks(problem_.flops(), Scratch<T>(ScratchParts(), blocks_, kernels_).bytes);
    }

    void run(T* grad_weight) {
        product_.run(tasks(), grad_weight, [&](auto... task) { run_task(task...); });
    }

private:
    void run_task(int64_t group, int64_t row, int64_t column, int64_t slice, T* partial, ScratchParts parts) const {
        const Scratch<T> scratch(parts, blocks_, kernels_);
        const int64_t mr = kernels_.mr, nr = kernels_.nr;
        const int64_t rows = std::min(blocks_.mc, rows_ - row);
        const int64_t columns = std::min(blocks_.nc, columns_ - column);
        const int64_t begin = slice * blocks_.chunks / blocks_.slices;
        for (int64_t chunk = begin; chunk < (slice + 1) * blocks_.chunks / blocks_.slices; ++chunk) {
            const int64_t first = chunk * blocks_.kc;
            const int64_t pixels = std::min(blocks_.kc, blocks_.pixels - first);
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
        const Strides strides = strides_of(input_.stride);
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
    const AxisTable h_, w_;
    const T pad_;
    const TensorView<const T> grad_, input_;
    const KernelSet<T>& kernels_;
    const int64_t rows_, columns_;
    const Blocks blocks_;
    const SplitProduct<T> product_;
};

}  // namespace

struct OuterSumMethod : SumMethod<OuterDriver> {
    static constexpr const char* name = "outer-products";

    static Verdict supports(const ConvProblem& problem, ConvPass) {
        return {problem.taps() == 1 ? nullptr : "needs a window of one tap"};
    }
    static Work work(const WorkSizes& sizes) {
        Work work = sizes.common();
        const double pixels = sizes.h.dest * sizes.w.dest, columns = sizes.channels * sizes.taps;
        const TileGrid grid(sizes.rows, sizes.tile.mr, sizes.vectors(columns), sizes.tile.nr_vectors);
        work[WorkKind::cycles] = sizes.groups * pixels * grid.cycles;
        work[WorkKind::tiles] = sizes.groups * grid.tiles * std::ceil(pixels * item_size(sizes.problem.dtype) / 768);
        if (sizes.channels_last)
            work[WorkKind::copies] = sizes.groups * pixels * (sizes.vectors(columns) + sizes.vectors(sizes.rows));
        else
            work[WorkKind::transposes] = sizes.groups * pixels * (columns + sizes.rows);
        work[WorkKind::runs] = sizes.groups * pixels;
        return work;
    }

    template <class T>
    static void describe(const PixelSum<T>& sum, const OuterDriver<T>& driver, const KernelSet<T>& kernels,
                         PassPlan& text) {
        const Blocks& blocks = driver.blocks();
        text.tile = std::to_string(kernels.mr) + " x " + std::to_string(kernels.nr) + " weights";
        text.block = std::to_string(std::min(blocks.mc, sum.problem->group_out())) + " output channels x " +
                     std::to_string(std::min(blocks.nc, sum.problem->group_in())) + " input channels, sums of " +
                     std::to_string(blocks.kc) + " pixels, " + std::to_string(blocks.slices) +
                     (blocks.slices == 1 ? " part" : " parts");
        text.reason = "rank-1 updates pixel by pixel, vectors over channels because the layout is NHWC";
    }
};

template const Method<PixelSum<float>>& method_row<OuterSumMethod, PixelSum<float>>();
template const Method<PixelSum<double>>& method_row<OuterSumMethod, PixelSum<double>>();

}  // namespace convx
