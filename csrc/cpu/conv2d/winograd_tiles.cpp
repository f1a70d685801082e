// Winograd's method with vectors over tiles (winograd_parts.h): for planes of more than a few tiles, and for groups.
#include "common/rounding.h"
#include "cpu/conv2d/method_row.h"
#include "cpu/conv2d/winograd_parts.h"
#include "cpu/runtime/run_tasks.h"

namespace convx {

namespace {

// Partial sums of 64 to 128 channels keep the rounding error of a sum of 512 near that of 128.
constexpr int64_t chunk_target = 128;
constexpr int64_t own_input_bytes = 320 * 1024;
constexpr int64_t product_bytes = 160 * 1024;
constexpr int64_t own_weight_bytes = 448 * 1024;
constexpr int64_t shared_weight_bytes = 6 * 1024 * 1024;

struct Blocks {
    int64_t kc = 1;  // reduction channels that are summed in registers in one go
    // Which transformed operand is made once and shared, the other being made by the task that uses it, in L2. Shared
    // weights: a task owns a block of tiles. Shared inputs: a task owns a block of rows, of one block of tiles after
    // the other; for many channels and few tiles, where the weights (4 times their size) would stream from memory.
    bool shares_inputs = false;
    int64_t nc_panels = 1;  // panels of tiles
    int64_t mc = 1;         // output channels
};

template <class T>
Blocks plan_blocks(const ImplicitGemm<T>& gemm, int64_t tiles, const KernelSet<T>& kernels) {
    Blocks blocks;
    const int64_t channels = std::max<int64_t>(gemm.channels, 1), rows = std::max<int64_t>(gemm.rows, 1);
    blocks.kc = even_part(channels, chunk_target);
    const int64_t mr = kernels.mr, nr = kernels.nr, panels = std::max<int64_t>(ceil_div(tiles, nr), 1);
    const int64_t frequency_bytes = winograd_frequencies * int64_t{sizeof(T)};
    const int64_t weight_bytes = gemm.groups * rows * channels * frequency_bytes;
    // Few tiles make few tasks, or leave the transformed weights used so seldom that they had better stay in L2.
    const int64_t tile_tasks = gemm.groups * panels;
    blocks.shares_inputs =
        weight_bytes > 4 * shared_weight_bytes ||
        (tiles <= winograd_few_tiles && (weight_bytes > shared_weight_bytes || tile_tasks < winograd_tasks));
    if (blocks.shares_inputs) {
        blocks.nc_panels = std::min(ceil_div(winograd_few_tiles, nr), panels);
        const int64_t fit = own_weight_bytes / (frequency_bytes * blocks.kc * mr);
        blocks.mc = std::clamp<int64_t>(ceil_div(rows, mr) / winograd_tasks, 1, std::max<int64_t>(fit, 1)) * mr;
    } else {
        const int64_t fit = own_input_bytes / (frequency_bytes * channels * nr);
        blocks.nc_panels = std::clamp<int64_t>(tile_tasks / winograd_tasks, 1, std::max<int64_t>(fit, 1));
        const int64_t rows_fit = product_bytes / (frequency_bytes * blocks.nc_panels * nr * mr);
        blocks.mc = std::min(std::max<int64_t>(rows_fit, 1) * mr, round_up(rows, mr));
    }
    return blocks;
}

// Channels of a panel at a time, which stay in L1 until they are transformed; where channels are adjacent in memory, as
// many as make the reads from there long enough to stream.
constexpr int64_t staged_channels = 8;
constexpr int64_t staged_adjacent_channels = 32;
constexpr int64_t shared_part = 64;  // channels of a panel that one task transforms for all
constexpr int64_t stored_rows = 16;  // rows of incomplete tiles at a time

template <class T>
int64_t stage_columns(const KernelSet<T>& kernels) {
    return winograd_inputs * kernels.nr;  // at most, when no two tiles are neighbours
}

// Panels of [channel][nr or mr].
template <class T>
struct Operand {
    T* data;
    int64_t panel, frequency;  // strides
};

// Transformed inputs or weights of one task: [frequency][panel].
template <class T>
Operand<T> task_operand(T* memory, int64_t panels, int64_t channels, int64_t width) {
    return {memory, channels * width, panels * channels * width + frequency_padding};
}
inline int64_t task_operand_size(int64_t panels, int64_t channels, int64_t width) {
    return winograd_frequencies * (panels * channels * width + frequency_padding);
}

// [group][panel][frequency][channel][mr]
template <class T>
WinogradWeightLayout weight_layout(const ImplicitGemm<T>& gemm, const Blocks& blocks, int64_t mr) {
    const int64_t kc = blocks.kc, frequency = gemm.channels * mr + frequency_padding;
    return {mr,        kc,      ceil_div(gemm.rows, mr),         ceil_div(gemm.channels, kc),
            frequency, kc * mr, winograd_frequencies * frequency};
}

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const Blocks& blocks, int64_t channels, const KernelSet<T>& kernels)
        : product_row(blocks.nc_panels * kernels.nr), product_frequency(blocks.mc * product_row + frequency_padding),
          operand(parts.take<T>(blocks.shares_inputs ? task_operand_size(blocks.mc / kernels.mr, blocks.kc, kernels.mr)
                                                     : task_operand_size(blocks.nc_panels, channels, kernels.nr))),
          products(parts.take<T>(winograd_frequencies * product_frequency)),
          stage(parts.take<T>(std::max(staged_adjacent_channels * winograd_inputs * stage_columns(kernels),
                                       stored_rows * winograd_outputs * winograd_outputs * kernels.nr))),
          taps(parts.take<T>(blocks.kc * 9 * kernels.mr + kernels.lanes)), pad(parts.take<T>(staged_adjacent_channels)),
          faults(parts.take<T>(kernels.nr)), places(parts.take<int64_t>(kernels.nr)),
          runs(parts.take<LaneRun>(winograd_inputs * stage_columns(kernels))),
          pixels(parts.take<const T*>(winograd_inputs * stage_columns(kernels))), bytes(parts.bytes()) {}
    int64_t product_row, product_frequency;
    T* operand;   // the transformed operand that is not shared
    T* products;  // M: [frequency][row][tile]
    T* stage;     // [channel][6 rows][columns] of a panel's inputs, or [row][4][4 * nr] of its outputs
    T* taps;      // [channel, tap][mr]
    T* pad;
    T* faults;
    int64_t* places;
    LaneRun* runs;
    const T** pixels;
    int64_t bytes;
};

template <class T>
class TileDriver : public WinogradDriver<T> {
public:
    TileDriver(const ImplicitGemm<T>& gemm, bool mirrored, const KernelSet<T>& kernels)
        : TileDriver(gemm, mirrored, kernels,
                     plan_blocks(gemm, gemm.batch * tiles_of(gemm.h) * tiles_of(gemm.w), kernels)) {}

    const Blocks& blocks() const { return blocks_; }

    TaskPlan tasks() const {
        const int64_t shared = blocks_.shares_inputs ? task_operand_size(blocks_.nc_panels, gemm_.channels, kernels_.nr)
                                                     : weight_layout_.size(gemm_.groups);
        TaskPlan plan;
        plan.tasks = blocks_.shares_inputs ? ceil_div(gemm_.rows, blocks_.mc)
                                           : gemm_.groups * ceil_div(ceil_div(tiles_, kernels_.nr), blocks_.nc_panels);
        plan.flops = gemm_.flops();
        plan.shared_bytes = cache_lines(shared * int64_t{sizeof(T)});
        plan.worker_bytes = Scratch<T>(ScratchParts(), blocks_, gemm_.channels, kernels_).bytes;
        return plan;
    }

    void run(const TaskPlan& plan, Faults faulty) {
        row_of_ = winograd_read_order(*gemm_.h, mirrored_, tile_rows_ * winograd_outputs + 2);
        column_of_ = winograd_read_order(*gemm_.w, mirrored_, tile_columns_ * winograd_outputs + 2);
        if (gemm_.bias)
            for (int64_t row = 0; row < gemm_.groups * gemm_.rows; ++row)
                bias_.push_back(gemm_.bias[row * gemm_.bias_stride]);
        faulty_ = faulty;
        const TaskRunner runner(plan);
        T* shared = static_cast<T*>(runner.shared());
        if (blocks_.shares_inputs) return run_blocks_of_rows(shared, runner);
        if (!weights_) this->transform_all_weights(shared, runner);
        weights_ = weights_ ? weights_ : shared;
        run_blocks_of_tiles(runner);
    }

private:
    using WinogradDriver<T>::gemm_;
    using WinogradDriver<T>::mirrored_;
    using WinogradDriver<T>::kernels_;
    using WinogradDriver<T>::weight_layout_;
    using WinogradDriver<T>::weights_;

    TileDriver(const ImplicitGemm<T>& gemm, bool mirrored, const KernelSet<T>& kernels, const Blocks& blocks)
        : WinogradDriver<T>(gemm, mirrored, kernels, weight_layout(gemm, blocks, kernels.mr)),
          tile_rows_(tiles_of(gemm.h)), tile_columns_(tiles_of(gemm.w)),
          tiles_(gemm.batch * tile_rows_ * tile_columns_), blocks_(blocks) {}

    static int64_t tiles_of(const AxisTable* axis) { return winograd_tiles(axis->positions); }

    Scratch<T> scratch_of(ScratchParts parts) const { return Scratch<T>(parts, blocks_, gemm_.channels, kernels_); }

    Operand<const T> weights_of(int64_t group, int64_t row, int64_t channel) const {
        return {weights_ + weight_layout_.at(group, row / kernels_.mr, channel / blocks_.kc), weight_layout_.panel,
                weight_layout_.frequency};
    }

    void run_blocks_of_tiles(const TaskRunner& runner) {
        const int64_t panels = ceil_div(tiles_, kernels_.nr), tile_blocks = ceil_div(panels, blocks_.nc_panels);
        runner.run(gemm_.groups * tile_blocks, [&](int64_t task, ScratchParts parts) {
            const Scratch<T> scratch = scratch_of(parts);
            const int64_t group = task / tile_blocks, first = task % tile_blocks * blocks_.nc_panels;
            const int64_t count = std::min(blocks_.nc_panels, panels - first);
            const Operand<T> inputs = task_operand(scratch.operand, count, gemm_.channels, kernels_.nr);
            for (int64_t panel = 0; panel < count; ++panel)
                transform_panel(group, first + panel, 0, gemm_.channels, inputs.data + panel * inputs.panel,
                                inputs.frequency, scratch);
            for (int64_t row = 0; row < gemm_.rows; row += blocks_.mc) {
                const int64_t rows = std::min(blocks_.mc, gemm_.rows - row);
                multiply(weights_of(group, row, 0), rows, inputs, first, count, 0, gemm_.channels, scratch);
                store_block(group, first, count, row, rows, scratch);
            }
        });
    }

    void run_blocks_of_rows(T* shared, const TaskRunner& runner) {
        const int64_t panels = ceil_div(tiles_, kernels_.nr);
        const int64_t pieces = ceil_div(gemm_.channels, shared_part), row_blocks = ceil_div(gemm_.rows, blocks_.mc);
        for (int64_t block = 0; block < gemm_.groups * ceil_div(panels, blocks_.nc_panels); ++block) {
            const int64_t group = block % gemm_.groups, first = block / gemm_.groups * blocks_.nc_panels;
            const int64_t count = std::min(blocks_.nc_panels, panels - first);
            const Operand<T> inputs = task_operand(shared, count, gemm_.channels, kernels_.nr);
            runner.run(count * pieces, [&](int64_t task, ScratchParts parts) {
                const int64_t panel = task / pieces, c = task % pieces * shared_part;
                transform_panel(group, first + panel, c, std::min(shared_part, gemm_.channels - c),
                                inputs.data + panel * inputs.panel + c * kernels_.nr, inputs.frequency,
                                scratch_of(parts));
            });
            runner.run(row_blocks, [&](int64_t task, ScratchParts parts) {
                const Scratch<T> scratch = scratch_of(parts);
                const int64_t row = task * blocks_.mc, rows = std::min(blocks_.mc, gemm_.rows - row);
                for (int64_t c = 0; c < gemm_.channels; c += blocks_.kc) {
                    const int64_t channels = std::min(blocks_.kc, gemm_.channels - c);
                    if (weights_) {
                        multiply(weights_of(group, row, c), rows, inputs, first, count, c, channels, scratch);
                        continue;
                    }
                    const Operand<T> weights =
                        task_operand(scratch.operand, ceil_div(rows, kernels_.mr), channels, kernels_.mr);
                    for (int64_t i = 0; i < rows; i += kernels_.mr)
                        this->transform_weights(group, (row + i) / kernels_.mr, c / blocks_.kc, scratch.taps,
                                                weights.data + i / kernels_.mr * weights.panel, weights.frequency);
                    multiply({weights.data, weights.panel, weights.frequency}, rows, inputs, first, count, c, channels,
                             scratch);
                }
                store_block(group, first, count, row, rows, scratch);
            });
        }
    }

    int64_t panel_tiles(int64_t panel) const { return std::min<int64_t>(kernels_.nr, tiles_ - panel * kernels_.nr); }

    // The inputs of a panel's tiles, copied side by side and without borders, a few channels at a time; then B' d B.
    void transform_panel(int64_t group, int64_t panel, int64_t first_channel, int64_t channel_count, T* dest,
                         int64_t dest_frequency, const Scratch<T>& scratch) {
        const int64_t first = panel * kernels_.nr, count = panel_tiles(panel);
        int64_t columns = 0;
        for_each_segment(tile_rows_, tile_columns_, first, count, [&](const PixelSegment& s) {
            for (int64_t t = 0; t < s.count; ++t) scratch.places[s.lane + t] = columns + winograd_outputs * t;
            columns += winograd_outputs * s.count + 2;
        });
        // Lanes without a tile repeat the first one.
        for (int64_t t = count; t < kernels_.nr; ++t) scratch.places[t] = 0;
        const int64_t plane = winograd_inputs * columns;
        const int run_count = find_runs(first, count, columns, scratch);
        const Strides& from = gemm_.source_stride;
        const bool channels_adjacent = from.c == 1 && from.w != 1;
        const int64_t step = channels_adjacent ? staged_adjacent_channels : staged_channels;
        std::fill(scratch.pad, scratch.pad + step, gemm_.pad);
        if (!channels_adjacent) std::fill(scratch.stage, scratch.stage + step * plane, gemm_.pad);
        for (int64_t c = 0; c < channel_count; c += step) {
            const int64_t channels = std::min(step, channel_count - c);
            const T* source = gemm_.source + (group * gemm_.channels + first_channel + c) * from.c;
            if (channels_adjacent) {
                std::fill(scratch.pixels, scratch.pixels + plane, scratch.pad);
                for (int r = 0; r < run_count; ++r)
                    for (int32_t i = 0; i < scratch.runs[r].count; ++i)
                        scratch.pixels[scratch.runs[r].lane + i] = source + scratch.runs[r].offset + i * from.w;
                kernels_.pack_transposed(scratch.stage, plane, scratch.pixels, static_cast<int>(plane), channels);
            } else {
                kernels_.winograd_stage(
                    {source, from.c, from.w, scratch.runs, run_count, channels, scratch.stage, plane});
            }
            kernels_.winograd_input(
                {scratch.stage, plane, columns, scratch.places, channels, dest + c * kernels_.nr, dest_frequency});
        }
    }

    // What the staged plane reads: runs of adjacent columns of a source row.
    int find_runs(int64_t first, int64_t count, int64_t columns, const Scratch<T>& scratch) const {
        int run_count = 0;
        for (int64_t i = 0; i < winograd_inputs; ++i) {
            int64_t lane = i * columns;
            for_each_segment(tile_rows_, tile_columns_, first, count, [&](const PixelSegment& s) {
                const int64_t width = winograd_outputs * s.count + 2;
                const int64_t row = row_of_[static_cast<size_t>(winograd_outputs * s.i + i)];
                if (row != AxisTable::outside) {
                    const int64_t* order = column_of_.data() + winograd_outputs * s.j;
                    const int64_t base = s.n * gemm_.source_stride.n + row * gemm_.source_stride.h;
                    for_each_stretch(order, width, [&](int64_t q, int64_t length) {
                        scratch.runs[run_count++] = {static_cast<int32_t>(lane + q), static_cast<int32_t>(length),
                                                     base + order[q] * gemm_.source_stride.w};
                    });
                }
                lane += width;
            });
        }
        return run_count;
    }

    // Channels [c, c + channels) of rows x panels of tiles; the weights are of these channels alone.
    void multiply(const Operand<const T>& weights, int64_t rows, const Operand<T>& inputs, int64_t first_panel,
                  int64_t panels, int64_t c, int64_t channels, const Scratch<T>& scratch) {
        const int64_t nr = kernels_.nr, tiles = std::min(panels * nr, tiles_ - first_panel * nr);
        multiply_frequencies<T>({weights.data, weights.panel, inputs.data + c * nr, inputs.panel, channels, blocks_.kc,
                                 rows, tiles, scratch.products, scratch.product_row, c > 0},
                                weights.frequency, inputs.frequency, scratch.product_frequency, kernels_);
    }

    void store_block(int64_t group, int64_t first_panel, int64_t panels, int64_t row, int64_t rows,
                     const Scratch<T>& scratch) {
        for (int64_t panel = 0; panel < panels; ++panel)
            store_tiles(group, first_panel + panel, scratch.products + panel * kernels_.nr, row, rows, scratch);
    }

    // A panel of tiles: A' m A, straight into dest where all of them are complete.
    void store_tiles(int64_t group, int64_t panel, const T* products, int64_t first_row, int64_t rows,
                     const Scratch<T>& scratch) {
        const int64_t first = panel * kernels_.nr, count = panel_tiles(panel);
        const Strides& to = gemm_.dest_stride;
        const int64_t height = gemm_.h->positions, width = gemm_.w->positions;
        bool complete = count == kernels_.nr && to.w == 1;
        for_each_segment(tile_rows_, tile_columns_, first, count, [&](const PixelSegment& s) {
            complete =
                complete && winograd_outputs * (s.i + 1) <= height && winograd_outputs * (s.j + s.count) <= width;
            for (int64_t t = 0; t < s.count; ++t)
                scratch.places[s.lane + t] =
                    s.n * to.n + winograd_outputs * s.i * to.h + winograd_outputs * (s.j + t) * to.w;
        });
        std::fill(scratch.faults, scratch.faults + kernels_.nr, T(0));
        const int64_t channel = group * gemm_.rows + first_row;
        const T* bias = gemm_.bias ? bias_.data() + channel : nullptr;
        WinogradOutputArgs<T> args{products,
                                   scratch.product_frequency,
                                   scratch.product_row,
                                   rows,
                                   gemm_.dest + channel * to.c,
                                   scratch.places,
                                   to.c,
                                   to.h,
                                   bias,
                                   gemm_.relu,
                                   scratch.faults};
        if (complete) {
            kernels_.winograd_output(args);
        } else {
            args.dest = scratch.stage;
            args.dest_line = winograd_outputs * kernels_.nr;
            args.dest_row = winograd_outputs * args.dest_line;
            for (int64_t t = 0; t < kernels_.nr; ++t) scratch.places[t] = winograd_outputs * t;
            for (int64_t row = 0; row < rows; row += stored_rows) {
                args.rows = std::min(stored_rows, rows - row);
                kernels_.winograd_output(args);
                scatter(args, first, count, gemm_.dest + (channel + row) * to.c);
                args.source += args.rows * args.source_row;
                if (bias) args.bias += args.rows;
            }
        }
        for_each_segment(tile_rows_, tile_columns_, first, count, [&](const PixelSegment& s) {
            for (int64_t t = 0; t < s.count; ++t)
                if (!(scratch.faults[s.lane + t] == T(0))) faulty_[s.n] = true;
        });
    }

    // Staged rows of tiles, without what lies behind the last position.
    void scatter(const WinogradOutputArgs<T>& args, int64_t first, int64_t count, T* dest) const {
        const Strides& to = gemm_.dest_stride;
        for_each_segment(tile_rows_, tile_columns_, first, count, [&](const PixelSegment& s) {
            const int64_t h = winograd_outputs * s.i, w = winograd_outputs * s.j;
            const int64_t columns = std::min(winograd_outputs * s.count, gemm_.w->positions - w);
            for (int64_t i = 0; i < std::min<int64_t>(winograd_outputs, gemm_.h->positions - h); ++i) {
                const T* from = args.dest + i * args.dest_line + winograd_outputs * s.lane;
                T* line = dest + s.n * to.n + (h + i) * to.h + w * to.w;
                if (to.c == 1) {
                    const T* row[stored_rows];
                    for (int64_t k = 0; k < args.rows; ++k) row[k] = from + k * args.dest_row;
                    kernels_.pack_transposed(line, to.w, row, static_cast<int>(args.rows), columns);
                    continue;
                }
                for (int64_t k = 0; k < args.rows; ++k)
                    for (int64_t j = 0; j < columns; ++j) line[k * to.c + j * to.w] = from[k * args.dest_row + j];
            }
        });
    }

    const int64_t tile_rows_, tile_columns_, tiles_;
    const Blocks blocks_;
    std::vector<int64_t> row_of_, column_of_;
    std::vector<T> bias_;
    Faults faulty_ = nullptr;
};

}  // namespace

struct WinogradTilesMethod : WinogradMethod<TileDriver> {
    static constexpr const char* name = "winograd-tiles";

    static Work work(const WorkSizes& sizes) {
        const double tiles = winograd_tile_count(sizes);
        const TileGrid grid(sizes.rows, sizes.tile.mr, sizes.vectors(tiles), sizes.tile.nr_vectors);
        Work work = sizes.common();
        work[WorkKind::cycles] = winograd_frequencies * sizes.groups * sizes.channels * grid.cycles;
        work[WorkKind::runs] = winograd_frequencies * sizes.groups;
        work[WorkKind::tiles] = winograd_frequencies * sizes.groups * grid.tiles * std::ceil(sizes.channels / 128);
        work[WorkKind::transforms] = sizes.groups * (sizes.channels + sizes.rows) * sizes.vectors(tiles);
        return work;
    }

    template <class T>
    static void describe(const WindowSum<T>& sum, const Plan& plan, const KernelSet<T>& kernels, PassPlan& text) {
        const Blocks blocks = TileDriver<T>(phase_of(sum, plan.h, plan.w, 0, 0), !sum.forward(), kernels).blocks();
        text.tile = "4 x 4 outputs, " + std::to_string(kernels.mr) + " channels x " + std::to_string(kernels.nr) +
                    " tiles of a frequency";
        text.block = std::to_string(blocks.nc_panels * kernels.nr) + " tiles x " +
                     std::to_string(std::min(blocks.mc, sum.rows)) + " channels, sums of " + std::to_string(blocks.kc) +
                     " channels";
        text.reason = "F(4x4, 3x3): 36 multiplications for 16 outputs instead of 144; ";
        text.reason += blocks.shares_inputs ? "a task makes the transformed weights that it needs in L2"
                                            : "a task keeps the transformed inputs in L2";
        text.reason += "; images with inf, NaN or an overflow by a direct method";
    }
};

template const Method<WindowSum<float>>& method_row<WinogradTilesMethod, WindowSum<float>>();
template const Method<WindowSum<double>>& method_row<WinogradTilesMethod, WindowSum<double>>();

}  // namespace convx
