#include "cpu/conv2d/winograd.h"

#include <atomic>
#include <vector>

#include "common/rounding.h"
#include "cpu/conv2d/winograd_channels.h"
#include "cpu/conv2d/winograd_parts.h"
#include "cpu/scratch_parts.h"
#include "cpu/thread_pool.h"
#include "cpu/workspace.h"

namespace convx {

namespace {

// Channels of a panel at a time, which stay in L1 until they are transformed; where channels are adjacent in memory, as
// many as make the reads from there long enough to stream.
constexpr int64_t staged_channels = 8;
constexpr int64_t staged_adjacent_channels = 32;
constexpr int64_t shared_part = 64;        // channels of a panel that one task transforms for all
constexpr int64_t stored_rows = 16;        // rows of incomplete tiles at a time
constexpr int64_t frequency_padding = 16;  // elements, so that the 36 streams of a transform do not share L1 sets

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
int64_t task_operand_size(int64_t panels, int64_t channels, int64_t width) {
    return winograd_frequencies * (panels * channels * width + frequency_padding);
}

// Transformed weights of all tasks: [group][panel][frequency][channel][mr], whatever the blocks are, so that prepared
// ones serve any batch.
template <class T>
struct SharedWeights {
    int64_t panels;            // of a group
    int64_t frequency, panel;  // strides

    SharedWeights(int64_t channels, int64_t rows, const KernelSet<T>& kernels)
        : panels(ceil_div(rows, kernels.mr)), frequency(channels * kernels.mr + frequency_padding),
          panel(winograd_frequencies * frequency) {}
    int64_t size(int64_t groups) const { return groups * panels * panel; }
};

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const WinogradBlocks& blocks, int64_t channels, const KernelSet<T>& kernels)
        : product_row(blocks.block_panels * kernels.nr),
          product_frequency(blocks.block_rows * product_row + frequency_padding),
          operand(parts.take<T>(blocks.shares_inputs ? task_operand_size(blocks.block_rows / kernels.mr,
                                                                         blocks.chunk_channels, kernels.mr)
                                                     : task_operand_size(blocks.block_panels, channels, kernels.nr))),
          products(parts.take<T>(winograd_frequencies * product_frequency)),
          stage(parts.take<T>(std::max(staged_adjacent_channels * winograd_inputs * stage_columns(kernels),
                                       stored_rows * winograd_outputs * winograd_outputs * kernels.nr))),
          taps(parts.take<T>(blocks.chunk_channels * 9 * kernels.mr + kernels.lanes)),
          pad(parts.take<T>(staged_adjacent_channels)), faults(parts.take<T>(kernels.nr)),
          places(parts.take<int64_t>(kernels.nr)), runs(parts.take<LaneRun>(winograd_inputs * stage_columns(kernels))),
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

// One run of tiles in a row of an image, at `lane` of a panel.
using TileSegment = PixelSegment;

template <class T>
class Nest {
public:
    Nest(const ImplicitGemm<T>& gemm, bool mirrored, const KernelSet<T>& kernels, const T* prepared,
         std::atomic<bool>* faulty)
        : gemm_(gemm), mirrored_(mirrored), kernels_(kernels),
          tile_rows_(ceil_div(gemm.h->positions, winograd_outputs)),
          tile_columns_(ceil_div(gemm.w->positions, winograd_outputs)), tiles_(gemm.batch * tile_rows_ * tile_columns_),
          blocks_(
              plan_winograd_blocks(tiles_, gemm.groups, gemm.channels, gemm.rows, sizeof(T), kernels.mr, kernels.nr)),
          shared_weights_(gemm.channels, gemm.rows, kernels), weights_(prepared),
          row_of_(winograd_read_order(*gemm.h, mirrored, tile_rows_ * winograd_outputs + 2)),
          column_of_(winograd_read_order(*gemm.w, mirrored, tile_columns_ * winograd_outputs + 2)), faulty_(faulty) {
        if (gemm.bias)
            for (int64_t row = 0; row < gemm.groups * gemm.rows; ++row)
                bias_.push_back(gemm.bias[row * gemm.bias_stride]);
    }

    void run() {
        const PassScratch scratch = winograd_scratch(blocks_, gemm_.groups, gemm_.channels, gemm_.rows, kernels_);
        const int64_t flops = 2 * gemm_.groups * gemm_.rows * gemm_.channels * gemm_.taps() * gemm_.pixels();
        const int64_t together = blocks_.shares_inputs
                                     ? ceil_div(gemm_.rows, blocks_.block_rows)
                                     : gemm_.groups * ceil_div(ceil_div(tiles_, kernels_.nr), blocks_.block_panels);
        width_ = static_cast<int>(std::min<int64_t>({parallel_width(flops), num_threads(), together}));
        const Workspace workspace(static_cast<size_t>(scratch.shared_bytes + width_ * scratch.worker_bytes));
        T* shared = static_cast<T*>(workspace.data());
        workers_ = static_cast<char*>(workspace.data()) + scratch.shared_bytes;
        worker_bytes_ = scratch.worker_bytes;
        if (blocks_.shares_inputs) return run_blocks_of_rows(shared);
        if (!weights_) transform_all_weights(shared);
        weights_ = weights_ ? weights_ : shared;
        run_blocks_of_tiles();
    }

    // For all later runs.
    void prepare(T* weights) {
        constexpr int64_t weight_flops = 180;  // of the transform
        const PassScratch scratch = winograd_scratch(blocks_, gemm_.groups, gemm_.channels, gemm_.rows, kernels_);
        width_ = std::min(parallel_width(weight_flops * gemm_.groups * gemm_.rows * gemm_.channels), num_threads());
        const Workspace workspace(static_cast<size_t>(width_ * scratch.worker_bytes));
        workers_ = static_cast<char*>(workspace.data());
        worker_bytes_ = scratch.worker_bytes;
        transform_all_weights(weights);
    }

private:
    Scratch<T> scratch_of(int worker) const {
        return Scratch<T>(ScratchParts(workers_ + worker * worker_bytes_), blocks_, gemm_.channels, kernels_);
    }

    void transform_all_weights(T* dest) {
        const int64_t chunks = ceil_div(gemm_.channels, blocks_.chunk_channels);
        parallel_for(gemm_.groups * shared_weights_.panels * chunks, width_, [&](int64_t task, int worker) {
            const int64_t panel = task / chunks, first_channel = task % chunks * blocks_.chunk_channels;
            transform_weights(panel / shared_weights_.panels, panel % shared_weights_.panels * kernels_.mr,
                              first_channel, dest + panel * shared_weights_.panel + first_channel * kernels_.mr,
                              shared_weights_.frequency, scratch_of(worker));
        });
    }

    Operand<const T> weights_of(int64_t group, int64_t row, int64_t channel) const {
        return {weights_ + (group * shared_weights_.panels + row / kernels_.mr) * shared_weights_.panel +
                    channel * kernels_.mr,
                shared_weights_.panel, shared_weights_.frequency};
    }

    void run_blocks_of_tiles() {
        const int64_t panels = ceil_div(tiles_, kernels_.nr), tile_blocks = ceil_div(panels, blocks_.block_panels);
        parallel_for(gemm_.groups * tile_blocks, width_, [&](int64_t task, int worker) {
            const Scratch<T> scratch = scratch_of(worker);
            const int64_t group = task / tile_blocks, first = task % tile_blocks * blocks_.block_panels;
            const int64_t count = std::min(blocks_.block_panels, panels - first);
            const Operand<T> inputs = task_operand(scratch.operand, count, gemm_.channels, kernels_.nr);
            for (int64_t panel = 0; panel < count; ++panel)
                transform_panel(group, first + panel, 0, gemm_.channels, inputs.data + panel * inputs.panel,
                                inputs.frequency, scratch);
            for (int64_t row = 0; row < gemm_.rows; row += blocks_.block_rows) {
                const int64_t rows = std::min(blocks_.block_rows, gemm_.rows - row);
                multiply(weights_of(group, row, 0), rows, inputs, first, count, 0, gemm_.channels, scratch);
                store_block(group, first, count, row, rows, scratch);
            }
        });
    }

    void run_blocks_of_rows(T* shared) {
        const int64_t panels = ceil_div(tiles_, kernels_.nr);
        const int64_t parts = ceil_div(gemm_.channels, shared_part),
                      row_blocks = ceil_div(gemm_.rows, blocks_.block_rows);
        for (int64_t block = 0; block < gemm_.groups * ceil_div(panels, blocks_.block_panels); ++block) {
            const int64_t group = block % gemm_.groups, first = block / gemm_.groups * blocks_.block_panels;
            const int64_t count = std::min(blocks_.block_panels, panels - first);
            const Operand<T> inputs = task_operand(shared, count, gemm_.channels, kernels_.nr);
            parallel_for(count * parts, width_, [&](int64_t task, int worker) {
                const int64_t panel = task / parts, c = task % parts * shared_part;
                transform_panel(group, first + panel, c, std::min(shared_part, gemm_.channels - c),
                                inputs.data + panel * inputs.panel + c * kernels_.nr, inputs.frequency,
                                scratch_of(worker));
            });
            parallel_for(row_blocks, width_, [&](int64_t task, int worker) {
                const Scratch<T> scratch = scratch_of(worker);
                const int64_t row = task * blocks_.block_rows, rows = std::min(blocks_.block_rows, gemm_.rows - row);
                for (int64_t c = 0; c < gemm_.channels; c += blocks_.chunk_channels) {
                    const int64_t channels = std::min(blocks_.chunk_channels, gemm_.channels - c);
                    if (weights_) {
                        multiply(weights_of(group, row, c), rows, inputs, first, count, c, channels, scratch);
                        continue;
                    }
                    const Operand<T> weights =
                        task_operand(scratch.operand, ceil_div(rows, kernels_.mr), channels, kernels_.mr);
                    for (int64_t i = 0; i < rows; i += kernels_.mr)
                        transform_weights(group, row + i, c, weights.data + i / kernels_.mr * weights.panel,
                                          weights.frequency, scratch);
                    multiply({weights.data, weights.panel, weights.frequency}, rows, inputs, first, count, c, channels,
                             scratch);
                }
                store_block(group, first, count, row, rows, scratch);
            });
        }
    }

    // A panel of rows, one chunk of channels.
    void transform_weights(int64_t group, int64_t first_row, int64_t first_channel, T* dest, int64_t dest_frequency,
                           const Scratch<T>& scratch) {
        const int64_t channels = std::min(blocks_.chunk_channels, gemm_.channels - first_channel);
        transform_weight_panel(gemm_, mirrored_, kernels_, kernels_.mr, {group, first_row, first_channel, channels},
                               scratch.taps, dest, dest_frequency);
    }

    int64_t panel_tiles(int64_t panel) const { return std::min<int64_t>(kernels_.nr, tiles_ - panel * kernels_.nr); }

    // The inputs of a panel's tiles, copied side by side and without borders, a few channels at a time; then B' d B.
    void transform_panel(int64_t group, int64_t panel, int64_t first_channel, int64_t channel_count, T* dest,
                         int64_t dest_frequency, const Scratch<T>& scratch) {
        const int64_t first = panel * kernels_.nr, count = panel_tiles(panel);
        int64_t columns = 0;
        for_each_segment(tile_rows_, tile_columns_, first, count, [&](const TileSegment& s) {
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
            for_each_segment(tile_rows_, tile_columns_, first, count, [&](const TileSegment& s) {
                const int64_t width = winograd_outputs * s.count + 2;
                const int64_t row = row_of_[static_cast<size_t>(winograd_outputs * s.i + i)];
                if (row != AxisTable::outside) {
                    const int64_t* index = column_of_.data() + winograd_outputs * s.j;
                    const int64_t base = s.n * gemm_.source_stride.n + row * gemm_.source_stride.h;
                    for (int64_t q = 0; q < width;) {
                        if (index[q] == AxisTable::outside) {
                            ++q;
                            continue;
                        }
                        int64_t end = q + 1;
                        while (end < width && index[end] == index[end - 1] + 1) ++end;
                        scratch.runs[run_count++] = {static_cast<int32_t>(lane + q), static_cast<int32_t>(end - q),
                                                     base + index[q] * gemm_.source_stride.w};
                        q = end;
                    }
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
        WinogradProducts<T> job{
            weights.data, weights.panel, inputs.data + c * nr, inputs.panel,        channels, blocks_.chunk_channels,
            rows,         tiles,         scratch.products,     scratch.product_row, c > 0};
        for (int64_t f = 0; f < winograd_frequencies; ++f) {
            kernels_.winograd_products(job);
            job.weights += weights.frequency;
            job.inputs += inputs.frequency;
            job.products += scratch.product_frequency;
        }
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
        for_each_segment(tile_rows_, tile_columns_, first, count, [&](const TileSegment& s) {
            complete =
                complete && winograd_outputs * (s.i + 1) <= height && winograd_outputs * (s.j + s.count) <= width;
            for (int64_t t = 0; t < s.count; ++t)
                scratch.places[s.lane + t] =
                    s.n * to.n + winograd_outputs * s.i * to.h + winograd_outputs * (s.j + t) * to.w;
        });
        std::fill(scratch.faults, scratch.faults + kernels_.nr, T(0));
        const int64_t channel = group * gemm_.rows + first_row;
        const T* bias = gemm_.bias ? bias_.data() + channel : nullptr;
        WinogradOutput<T> job{products,
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
            kernels_.winograd_output(job);
        } else {
            job.dest = scratch.stage;
            job.dest_line = winograd_outputs * kernels_.nr;
            job.dest_row = winograd_outputs * job.dest_line;
            for (int64_t t = 0; t < kernels_.nr; ++t) scratch.places[t] = winograd_outputs * t;
            for (int64_t row = 0; row < rows; row += stored_rows) {
                job.rows = std::min(stored_rows, rows - row);
                kernels_.winograd_output(job);
                scatter(job, first, count, gemm_.dest + (channel + row) * to.c);
                job.source += job.rows * job.source_row;
                if (bias) job.bias += job.rows;
            }
        }
        for_each_segment(tile_rows_, tile_columns_, first, count, [&](const TileSegment& s) {
            for (int64_t t = 0; t < s.count; ++t)
                if (!(scratch.faults[s.lane + t] == T(0))) faulty_[s.n] = true;
        });
    }

    // Staged rows of tiles, without what lies behind the last position.
    void scatter(const WinogradOutput<T>& job, int64_t first, int64_t count, T* dest) const {
        const Strides& to = gemm_.dest_stride;
        for_each_segment(tile_rows_, tile_columns_, first, count, [&](const TileSegment& s) {
            const int64_t h = winograd_outputs * s.i, w = winograd_outputs * s.j;
            const int64_t columns = std::min(winograd_outputs * s.count, gemm_.w->positions - w);
            for (int64_t i = 0; i < std::min<int64_t>(winograd_outputs, gemm_.h->positions - h); ++i) {
                const T* from = job.dest + i * job.dest_line + winograd_outputs * s.lane;
                T* line = dest + s.n * to.n + (h + i) * to.h + w * to.w;
                if (to.c == 1) {
                    const T* row[stored_rows];
                    for (int64_t k = 0; k < job.rows; ++k) row[k] = from + k * job.dest_row;
                    kernels_.pack_transposed(line, to.w, row, static_cast<int>(job.rows), columns);
                    continue;
                }
                for (int64_t k = 0; k < job.rows; ++k)
                    for (int64_t j = 0; j < columns; ++j) line[k * to.c + j * to.w] = from[k * job.dest_row + j];
            }
        });
    }

    const ImplicitGemm<T>& gemm_;
    const bool mirrored_;
    const KernelSet<T>& kernels_;
    const int64_t tile_rows_, tile_columns_, tiles_;
    const WinogradBlocks blocks_;
    const SharedWeights<T> shared_weights_;
    const T* weights_;  // transformed ones of all rows, or null
    const std::vector<int64_t> row_of_, column_of_;
    char* workers_ = nullptr;
    int64_t worker_bytes_ = 0;
    int width_ = 1;
    std::vector<T> bias_;
    std::atomic<bool>* faulty_;
};

}  // namespace

template <class T>
PassScratch winograd_scratch(const WinogradBlocks& blocks, int64_t groups, int64_t channels, int64_t rows,
                             const KernelSet<T>& kernels) {
    const int64_t shared = blocks.shares_inputs ? task_operand_size(blocks.block_panels, channels, kernels.nr)
                                                : SharedWeights<T>(channels, rows, kernels).size(groups);
    return {cache_lines(shared * static_cast<int64_t>(sizeof(T))),
            Scratch<T>(ScratchParts(), blocks, channels, kernels).bytes};
}

template <class T>
int64_t winograd_weight_bytes(const ImplicitGemm<T>& gemm, const KernelSet<T>& kernels) {
    if (winograd_by_channels(gemm.groups, gemm.h->positions, gemm.w->positions))
        return winograd_channels_weight_bytes(gemm.groups, gemm.channels, gemm.rows, kernels);
    return SharedWeights<T>(gemm.channels, gemm.rows, kernels).size(gemm.groups) * static_cast<int64_t>(sizeof(T));
}

template <class T>
void transform_winograd_weights(const ImplicitGemm<T>& gemm, const KernelSet<T>& kernels, T* transformed) {
    if (winograd_by_channels(gemm.groups, gemm.h->positions, gemm.w->positions))
        transform_winograd_channels_weights(gemm, kernels, transformed);
    else
        Nest<T>(gemm, false, kernels, nullptr, nullptr).prepare(transformed);
}

template <class T>
void run_winograd(const ImplicitGemm<T>& gemm, bool mirrored, const GemmBlocks& direct, const KernelSet<T>& kernels,
                  const T* transformed) {
    // Nothing to multiply, or one axis skips and the other one pads with a number.
    if (gemm.pixels() == 0 || gemm.rows == 0 || gemm.channels == 0 ||
        (gemm.pad != T(0) && (gemm.skips_h() || gemm.skips_w())))
        return run_implicit_gemm(gemm, direct, kernels);
    std::vector<std::atomic<bool>> faulty(static_cast<size_t>(gemm.batch));
    if (winograd_by_channels(gemm.groups, gemm.h->positions, gemm.w->positions))
        run_winograd_channels(gemm, mirrored, kernels, transformed, faulty.data());
    else
        Nest<T>(gemm, mirrored, kernels, transformed, faulty.data()).run();
    for (int64_t n = 0; n < gemm.batch; ++n) {
        if (!faulty[static_cast<size_t>(n)]) continue;
        ImplicitGemm<T> image = gemm;
        image.batch = 1;
        image.source += n * gemm.source_stride.n;
        image.dest += n * gemm.dest_stride.n;
        run_implicit_gemm(image, direct, kernels);
    }
}

template PassScratch winograd_scratch(const WinogradBlocks&, int64_t, int64_t, int64_t, const KernelSet<float>&);
template PassScratch winograd_scratch(const WinogradBlocks&, int64_t, int64_t, int64_t, const KernelSet<double>&);
template int64_t winograd_weight_bytes(const ImplicitGemm<float>&, const KernelSet<float>&);
template int64_t winograd_weight_bytes(const ImplicitGemm<double>&, const KernelSet<double>&);
template void transform_winograd_weights(const ImplicitGemm<float>&, const KernelSet<float>&, float*);
template void transform_winograd_weights(const ImplicitGemm<double>&, const KernelSet<double>&, double*);
template void run_winograd(const ImplicitGemm<float>&, bool, const GemmBlocks&, const KernelSet<float>&, const float*);
template void run_winograd(const ImplicitGemm<double>&, bool, const GemmBlocks&, const KernelSet<double>&,
                           const double*);

}  // namespace convx
