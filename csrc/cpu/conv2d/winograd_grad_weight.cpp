// Weight gradient by Winograd's F(3 x 3, 4 x 4): 4 x 4 gradients and the 6 x 6 inputs behind them give 3 x 3 taps.
//
//   grad_weight[k, c] = A' [ sum over tiles of (G grad_output tile G') * (B' input tile B) ] A
//
// For each of the 36 frequencies a GEMM whose reduction runs over the tiles of the batch. Blocks of tiles are
// transformed for all channels, then tasks multiply a block of rows (k) and columns (c) each and add to their own
// products; after the last block they transform them back. Blocks and chunks follow from the problem, so the order of
// the sums does too.
//
// An inf or NaN smears over what it is multiplied with, as does an overflow in a transform; where the result has one,
// the direct method computes it again.
#include "common/rounding.h"
#include "cpu/conv2d/method_row.h"
#include "cpu/conv2d/winograd_parts.h"

namespace convx {

namespace {

constexpr int64_t segment_tiles = 16;  // of one image row, staged at a time

// Partial sums of 64 to 128 tiles keep the rounding error of a sum of 512 near that of 128.
constexpr int64_t chunk_target = 128;
// Transformed inputs and gradients of one block of tiles: in the last-level cache.
constexpr int64_t operand_bytes = 8 * 1024 * 1024;

struct Blocks {
    int64_t block_tiles = 1;  // tiles transformed at a time, for all channels
    int64_t blocks = 1;       // of tiles, summed in order
    int64_t mc = 1;           // output channels of one task
    int64_t nc = 1;           // input channels of one task
    int64_t kc = 1;           // tiles summed in registers in one go
};

template <class T>
Blocks plan_blocks(int64_t tiles, int64_t groups, int64_t rows, int64_t columns, const KernelSet<T>& kernels) {
    Blocks blocks;
    const int64_t mr = kernels.mr, nr = kernels.nr;
    tiles = std::max<int64_t>(tiles, 1);
    const int64_t tile_bytes = winograd_frequencies * int64_t{sizeof(T)} * (round_up(rows, mr) + round_up(columns, nr));
    const int64_t fit = std::clamp<int64_t>(operand_bytes / tile_bytes, 64, 512);
    blocks.blocks = ceil_div(tiles, fit);
    blocks.block_tiles = ceil_div(tiles, blocks.blocks);
    blocks.kc = even_part(blocks.block_tiles, chunk_target);
    // Products of one task in L2: 24 x 64 floats of every frequency, or fewer to make enough tasks.
    blocks.mc = std::min(std::max<int64_t>(24 / mr, 1) * mr, round_up(rows, mr));
    blocks.nc = std::min<int64_t>(round_up(64, nr), round_up(columns, nr));
    const auto tasks = [&] { return groups * ceil_div(rows, blocks.mc) * ceil_div(columns, blocks.nc); };
    if (tasks() < winograd_tasks) blocks.nc = std::min<int64_t>(round_up(32, nr), blocks.nc);
    if (tasks() < winograd_tasks) blocks.mc = std::min<int64_t>(round_up(12, mr), blocks.mc);
    return blocks;
}

// Transformed operands of a block of tiles: [frequency][panel][tile][width].
template <class T>
struct Operand {
    int64_t width, panel, frequency;
    T* data = nullptr;
    Operand(int64_t tiles, int64_t channels, int64_t panel_width)
        : width(panel_width), panel(tiles * width), frequency(ceil_div(channels, width) * panel + frequency_padding) {}
    int64_t size() const { return winograd_frequencies * frequency; }
};

template <class T>
struct Products {
    int64_t row, frequency;
    explicit Products(const Blocks& blocks) : row(blocks.nc), frequency(blocks.mc * row + frequency_padding) {}
    int64_t size() const { return winograd_frequencies * frequency; }
};

template <class T>
struct Shared {
    Shared(ScratchParts parts, const Blocks& blocks, int64_t rows, int64_t columns, const KernelSet<T>& kernels)
        : gradients(blocks.block_tiles, rows, kernels.mr), inputs(blocks.block_tiles, columns, kernels.nr) {
        gradients.data = parts.take<T>(gradients.size());
        inputs.data = parts.take<T>(inputs.size());
        const int64_t tasks = ceil_div(rows, blocks.mc) * ceil_div(columns, blocks.nc);
        products = blocks.blocks > 1 ? parts.take<T>(tasks * Products<T>(blocks).size()) : nullptr;
        bytes = parts.bytes();
    }
    Operand<T> gradients, inputs;
    T* products;  // of every task, where there are several blocks of tiles
    int64_t bytes;
};

template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const Blocks& blocks, const KernelSet<T>& kernels)
        : stage(parts.take<T>(winograd_inputs * (winograd_outputs * segment_tiles + 2) * kernels.nr + kernels.lanes)),
          products(blocks.blocks > 1 ? nullptr : parts.take<T>(Products<T>(blocks).size())),
          taps(parts.take<T>(9 * blocks.nc)), faults(parts.take<T>(kernels.lanes)), bytes(parts.bytes()) {}
    T* stage;     // [row][column][width]
    T* products;  // [frequency][row][column]
    T* taps;      // [tap][column]
    T* faults;
    int64_t bytes;
};

template <class T>
class WinogradSumDriver {
public:
    WinogradSumDriver(const PixelSum<T>& sum, const KernelSet<T>& kernels)
        : problem_(*sum.problem), kernels_(kernels), grad_(sum.grad_output), input_(sum.input),
          h_(forward_table(problem_.h)), w_(forward_table(problem_.w)), pad_(sum.pad()),
          tile_rows_(winograd_tiles(h_.positions)), tile_columns_(winograd_tiles(w_.positions)),
          tiles_(problem_.batch * tile_rows_ * tile_columns_), rows_(problem_.group_out()),
          columns_(problem_.group_in()), blocks_(plan_blocks(tiles_, problem_.groups, rows_, columns_, kernels)),
          input_row_(winograd_read_order(h_, false, tile_rows_ * winograd_outputs + 2)),
          input_column_(winograd_read_order(w_, false, tile_columns_ * winograd_outputs + 2)) {}

    const Blocks& blocks() const { return blocks_; }
    bool is_faulty() const { return faulty_; }

    TaskPlan tasks() const {
        return {ceil_div(rows_, blocks_.mc) * ceil_div(columns_, blocks_.nc), problem_.flops(),
                Shared<T>(ScratchParts(), blocks_, rows_, columns_, kernels_).bytes,
                Scratch<T>(ScratchParts(), blocks_, kernels_).bytes};
    }

    void run(T* grad_weight) {
        const TaskPlan plan = tasks();
        const int64_t row_blocks = ceil_div(rows_, blocks_.mc);
        const TaskRunner runner(plan);
        const Shared<T> shared(ScratchParts(runner.shared()), blocks_, rows_, columns_, kernels_);
        const int64_t gradient_panels = ceil_div(rows_, kernels_.mr), input_panels = ceil_div(columns_, kernels_.nr);
        for (int64_t part = 0; part < problem_.groups * blocks_.blocks; ++part) {
            const int64_t group = part / blocks_.blocks, block = part % blocks_.blocks;
            const int64_t first = block * blocks_.block_tiles, count = std::min(blocks_.block_tiles, tiles_ - first);
            runner.run(input_panels + gradient_panels, [&](int64_t task, ScratchParts parts) {
                const Scratch<T> scratch(parts, blocks_, kernels_);
                if (task < input_panels)
                    transform_inputs(group, task, first, count, shared.inputs, scratch);
                else
                    transform_gradients(group, task - input_panels, first, count, shared.gradients, scratch);
            });
            runner.run(plan.tasks, [&](int64_t task, ScratchParts parts) {
                const Scratch<T> scratch(parts, blocks_, kernels_);
                T* products = shared.products ? shared.products + task * Products<T>(blocks_).size() : scratch.products;
                const int64_t row = task % row_blocks * blocks_.mc;
                const int64_t column = task / row_blocks * blocks_.nc;
                multiply(row, column, count, block > 0, shared, products);
                if (block + 1 == blocks_.blocks) store_taps(group, row, column, products, grad_weight, scratch);
            });
        }
    }

private:
    // Calls visit(segment, place in the block) for runs of at most segment_tiles tiles of an image row.
    template <class Visit>
    void for_each_run(int64_t first, int64_t count, const Visit& visit) const {
        for_each_segment(tile_rows_, tile_columns_, first, count, [&](const PixelSegment& s) {
            for (int64_t t = 0; t < s.count; t += segment_tiles)
                visit(PixelSegment{s.n, s.i, s.j + t, s.lane + t, std::min(segment_tiles, s.count - t)});
        });
    }

    // `count` pixels beside each other, `channels` of each, to dest[pixel][width].
    void stage(T* dest, int64_t width, const T* source, int64_t channel_stride, int64_t pixel_stride, int channels,
               int64_t count) const {
        if (pixel_stride == 1 && channel_stride != 1) {
            const T* row[64];
            for (int c = 0; c < channels; ++c) row[c] = source + c * channel_stride;
            kernels_.pack_transposed(dest, width, row, channels, count);
        } else {
            const LaneRun lanes{0, channels, 0};
            kernels_.pack_lanes(dest, width, source, pixel_stride, count, &lanes, 1, channels, channel_stride, T(0));
        }
    }

    void transform_inputs(int64_t group, int64_t panel, int64_t first, int64_t count, const Operand<T>& inputs,
                          const Scratch<T>& scratch) const {
        const int64_t nr = kernels_.nr, channel = panel * nr;
        const int channels = static_cast<int>(std::min(nr, columns_ - channel));
        const T* source = input_.data + (group * columns_ + channel) * input_.stride[1];
        for_each_run(first, count, [&](const PixelSegment& s) {
            const int64_t width = winograd_outputs * s.count + 2;
            const int64_t* column = input_column_.data() + winograd_outputs * s.j;
            // Pixels outside, and channels that there are not.
            std::fill(scratch.stage, scratch.stage + winograd_inputs * width * nr, pad_);
            for (int64_t i = 0; i < winograd_inputs; ++i) {
                const int64_t row = input_row_[static_cast<size_t>(winograd_outputs * s.i + i)];
                if (row == AxisTable::outside) continue;
                for_each_stretch(column, width, [&](int64_t q, int64_t length) {
                    stage(scratch.stage + (i * width + q) * nr, nr,
                          source + s.n * input_.stride[0] + row * input_.stride[2] + column[q] * input_.stride[3],
                          input_.stride[1], input_.stride[3], channels, length);
                });
            }
            kernels_.winograd_input_tiles({scratch.stage, width * nr, s.count,
                                           inputs.data + panel * inputs.panel + s.lane * nr, inputs.frequency});
        });
    }

    void transform_gradients(int64_t group, int64_t panel, int64_t first, int64_t count, const Operand<T>& gradients,
                             const Scratch<T>& scratch) const {
        const int64_t mr = kernels_.mr, channel = panel * mr;
        const int channels = static_cast<int>(std::min(mr, rows_ - channel));
        for_each_run(first, count, [&](const PixelSegment& s) {
            const int64_t width = winograd_outputs * s.count, h = winograd_outputs * s.i, w = winograd_outputs * s.j;
            const int64_t columns = std::min(width, w_.positions - w);
            if (columns < width || h + winograd_outputs > h_.positions || channels < mr)
                std::fill(scratch.stage, scratch.stage + winograd_outputs * width * mr, T(0));
            for (int64_t i = 0; i < std::min<int64_t>(winograd_outputs, h_.positions - h); ++i)
                stage(scratch.stage + i * width * mr, mr, grad_.at(s.n, group * rows_ + channel, h + i, w),
                      grad_.stride[1], grad_.stride[3], channels, columns);
            kernels_.winograd_gradient_tiles({scratch.stage, width * mr, s.count,
                                              gradients.data + panel * gradients.panel + s.lane * mr,
                                              gradients.frequency});
        });
    }

    void multiply(int64_t row, int64_t column, int64_t tiles, bool accumulate, const Shared<T>& shared,
                  T* products) const {
        const Products<T> layout(blocks_);
        const Operand<T>&gradients = shared.gradients, &inputs = shared.inputs;
        multiply_frequencies<T>({gradients.data + row / kernels_.mr * gradients.panel, gradients.panel,
                                 inputs.data + column / kernels_.nr * inputs.panel, inputs.panel, tiles, blocks_.kc,
                                 std::min(blocks_.mc, rows_ - row), std::min(blocks_.nc, columns_ - column), products,
                                 layout.row, accumulate},
                                gradients.frequency, inputs.frequency, layout.frequency, kernels_);
    }

    void store_taps(int64_t group, int64_t first_row, int64_t first_column, const T* products, T* grad_weight,
                    const Scratch<T>& scratch) {
        const Products<T> layout(blocks_);
        const int64_t columns = std::min(blocks_.nc, columns_ - first_column);
        std::fill(scratch.faults, scratch.faults + kernels_.lanes, T(0));
        const T* taps[9];
        for (int64_t tap = 0; tap < 9; ++tap) taps[tap] = scratch.taps + tap * blocks_.nc;
        for (int64_t row = 0; row < std::min(blocks_.mc, rows_ - first_row); ++row) {
            kernels_.winograd_taps(
                {products + row * layout.row, layout.frequency, columns, scratch.taps, blocks_.nc, scratch.faults});
            T* dest = grad_weight + ((group * rows_ + first_row + row) * columns_ + first_column) * 9;
            kernels_.pack_transposed(dest, 9, taps, 9, columns);
        }
        if (has_fault(scratch.faults, kernels_.lanes)) faulty_ = true;
    }

    const ConvProblem& problem_;
    const KernelSet<T>& kernels_;
    const TensorView<const T> grad_, input_;
    const AxisTable h_, w_;
    const T pad_;
    const int64_t tile_rows_, tile_columns_, tiles_;
    const int64_t rows_, columns_;
    const Blocks blocks_;
    const std::vector<int64_t> input_row_, input_column_;
    std::atomic<bool> faulty_{false};
};

}  // namespace

struct WinogradSumMethod : DriverMethod<WinogradSumDriver> {
    static constexpr const char* name = "winograd-tiles";
    static constexpr Traits traits = winograd_traits;

    static Verdict supports(const ConvProblem& problem, ConvPass pass) { return supports_winograd(problem, pass); }
    static Work work(const WorkSizes& sizes) {
        const double tiles = winograd_tile_count(sizes);
        const TileGrid grid(sizes.rows, sizes.tile.mr, sizes.vectors(sizes.channels), sizes.tile.nr_vectors);
        Work work = sizes.common();
        work[WorkKind::cycles] = winograd_frequencies * sizes.groups * tiles * grid.cycles;
        work[WorkKind::runs] = winograd_frequencies * sizes.groups;
        work[WorkKind::tiles] = winograd_frequencies * sizes.groups * grid.tiles * std::ceil(tiles / 128);
        work[WorkKind::transforms] = sizes.groups * tiles * (sizes.vectors(sizes.channels) + sizes.vectors(sizes.rows));
        // Groups go one after the other: where one is a single task, a second thread has nothing to do.
        if (sizes.rows <= 24 && sizes.channels <= 32)
            for (double& each : work.count) each *= 2;
        return work;
    }

    template <class T>
    static void run(const PixelSum<T>& sum, WinogradSumDriver<T>& driver, const KernelSet<T>&) {
        run_but_for_exceptions<T>(sum, [&] {
            driver.run(sum.grad_weight.data);
            return !driver.is_faulty();
        });
    }

    template <class T>
    static void describe(const PixelSum<T>& sum, const WinogradSumDriver<T>& driver, const KernelSet<T>& kernels,
                         PassPlan& text) {
        const Blocks& blocks = driver.blocks();
        text.tile = "4 x 4 gradients, " + std::to_string(kernels.mr) + " x " + std::to_string(kernels.nr) +
                    " weights of a frequency";
        text.block = std::to_string(std::min(blocks.mc, sum.problem->group_out())) + " output channels x " +
                     std::to_string(std::min(blocks.nc, sum.problem->group_in())) + " input channels, sums of " +
                     std::to_string(blocks.kc) + " tiles";
        text.reason = "F(3x3, 4x4): 36 multiplications for 16 gradients instead of 144; " +
                      std::to_string(blocks.block_tiles) +
                      " tiles at a time are transformed for all channels; by a direct method where the result is inf "
                      "or NaN";
    }
};

template const Method<PixelSum<float>>& method_row<WinogradSumMethod, PixelSum<float>>();
template const Method<PixelSum<double>>& method_row<WinogradSumMethod, PixelSum<double>>();

}  // namespace convx
