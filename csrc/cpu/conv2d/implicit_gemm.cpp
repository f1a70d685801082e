#include "cpu/conv2d/implicit_gemm.h"

#include "common/rounding.h"
#include "cpu/runtime/run_tasks.h"

namespace convx {

template <class T>
void pack_weight_panel(const ImplicitGemm<T>& gemm, const WeightPart& part, int64_t width, const KernelSet<T>& kernels,
                       T* dest) {
    const int64_t channels = part.channels, taps = gemm.taps();
    const int rows = static_cast<int>(std::min(width, gemm.rows - part.first_row));
    const T* source = gemm.weight + part.group * gemm.weight_group + part.first_row * gemm.weight_row +
                      part.first_channel * gemm.weight_channel;
    const auto columns = static_cast<int64_t>(gemm.w->taps.size());
    const auto tap_offset = [&](int64_t tap) {
        return gemm.h->taps[static_cast<size_t>(tap / columns)].kernel_index * gemm.weight_h +
               gemm.w->taps[static_cast<size_t>(tap % columns)].kernel_index * gemm.weight_w;
    };
    bool dense_taps = true;
    for (int64_t tap = 0; tap < taps; ++tap) dense_taps &= tap_offset(tap) == tap;
    const T* row[64];
    // Lanes that no row fills are multiplied too (their sums are dropped): denormal leftovers would be slow.
    if (rows < width) std::fill(dest, dest + channels * taps * width, T(0));
    if (dense_taps && gemm.weight_channel == taps) {
        for (int i = 0; i < rows; ++i) row[i] = source + i * gemm.weight_row;
        kernels.pack_transposed(dest, width, row, rows, channels * taps);
    } else if (dense_taps && taps > 1) {
        for (int64_t c = 0; c < channels; ++c) {
            for (int i = 0; i < rows; ++i) row[i] = source + i * gemm.weight_row + c * gemm.weight_channel;
            // A few lines on a page of their own, which no hardware prefetcher foresees.
            for (int i = 0; i < rows; i += 2) __builtin_prefetch(row[i] + 8 * gemm.weight_channel);
            kernels.pack_transposed(dest + c * taps * width, width, row, rows, taps);
        }
    } else {
        const LaneRun run{0, rows, 0};
        for (int64_t tap = 0; tap < taps; ++tap)
            kernels.pack_lanes(dest + tap * width, taps * width, source + tap_offset(tap), gemm.weight_channel,
                               channels, &run, 1, rows, gemm.weight_row, T(0));
    }
}

namespace {

// The widths of the two operands' panels, which swap with the orientation.
struct Panels {
    int64_t pixel_width, row_width;
    Panels(const GemmBlocks& blocks, int mr, int nr)
        : pixel_width(blocks.pixels_in_rows ? mr : nr), row_width(blocks.pixels_in_rows ? nr : mr) {}
};

// Where the pixels of a panel go: at dest + offset, evenly spaced, if `direct`.
struct PanelDest {
    int64_t offset;
    bool direct;
};

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const GemmBlocks& blocks, int64_t channels, int64_t taps, const KernelSet<T>& kernels)
        : width(Panels(blocks, kernels.mr, kernels.nr).pixel_width),
          pixels(parts.take<T>(blocks.by_rows ? 0 : blocks.block_panels * width * channels * taps)),
          weights(parts.take<T>(blocks.by_rows ? blocks.block_rows * channels * taps : 0)),
          tile(parts.take<T>(kernels.mr * kernels.nr)), pad(parts.take<T>(channels)),
          runs(parts.take<LaneRun>((blocks.by_rows ? 1 : blocks.block_panels) * taps * width)),
          run_count(parts.take<int32_t>((blocks.by_rows ? 1 : blocks.block_panels) * taps)),
          dest(parts.take<PanelDest>(blocks.block_panels)), rows(parts.take<const T*>(blocks.block_panels * width)),
          bytes(parts.bytes()) {}
    int64_t width;
    T* pixels;           // [panel][channel, tap][pixel], where tasks own pixels
    T* weights;          // [panel][channel, tap][row], where they own rows
    T* tile;             // a tile that has to be scattered
    T* pad;              // a row of pad values
    LaneRun* runs;       // [panel][tap][pixel]: what a tap reads
    int32_t* run_count;  // [panel][tap]
    PanelDest* dest;     // [panel]
    const T** rows;      // [panel][pixel]: where the channels of a pixel stand, if they are read in place
    int64_t bytes;
};

template <class T>
class Driver {
public:
    Driver(const ImplicitGemm<T>& gemm, const GemmBlocks& blocks, const KernelSet<T>& kernels)
        : gemm_(gemm), blocks_(blocks), kernels_(kernels), panels_(blocks, kernels.mr, kernels.nr), taps_(gemm.taps()),
          pixels_(gemm.pixels()), pixel_panels_(ceil_div(pixels_, panels_.pixel_width)),
          row_panels_(ceil_div(gemm.rows, panels_.row_width)) {}

    TaskPlan tasks() const {
        const int64_t channels = std::min(blocks_.chunk_channels, gemm_.channels);
        TaskPlan plan;
        plan.tasks = gemm_.groups * row_blocks() * pixel_blocks();
        plan.flops = gemm_.flops();
        plan.worker_bytes = Scratch<T>(ScratchParts(), blocks_, channels, taps_, kernels_).bytes;
        if (blocks_.by_rows && !pixels_in_place())
            plan.shared_bytes = cache_lines(pixel_panels_ * panels_.pixel_width * gemm_.groups * gemm_.channels *
                                            taps_ * int64_t{sizeof(T)});
        else if (!blocks_.by_rows && !gemm_.packed_weight)
            plan.shared_bytes = weight_bytes();
        return plan;
    }

    int64_t weight_bytes() const {
        return cache_lines(gemm_.groups * row_panels_ * panels_.row_width * gemm_.channels * taps_ *
                           int64_t{sizeof(T)});
    }

    void run(const TaskPlan& plan) {
        weights_ = gemm_.packed_weight;
        const TaskRunner runner(plan);
        T* shared = static_cast<T*>(runner.shared());
        if (plan.shared_bytes > 0 && blocks_.by_rows) {
            pack_all_pixels(shared, runner);
            shared_pixels_ = shared;
        } else if (plan.shared_bytes > 0) {
            pack_weights(shared, runner.width());
            weights_ = shared;
        }
        const int64_t row_blocks = this->row_blocks(), pixel_blocks = this->pixel_blocks();
        runner.run(plan.tasks, [&](int64_t task, ScratchParts parts) {
            const int64_t row_block = task % row_blocks;
            const int64_t pixel_block = task / row_blocks % pixel_blocks;
            const int64_t group = task / row_blocks / pixel_blocks;
            run_task(group, pixel_block, row_block, scratch_at(parts));
        });
    }

    // --- weights: [group][chunk][panel][channel, tap][row] ---

    void pack_weights(T* packed_weights, int width) const {
        const int64_t chunks = ceil_div(gemm_.channels, blocks_.chunk_channels);
        const int64_t packed = gemm_.groups * row_panels_ * panels_.row_width * gemm_.channels * taps_;
        const bool big = packed * static_cast<int64_t>(sizeof(T)) > 128 * 1024;
        parallel_for(gemm_.groups * chunks * row_panels_, big ? width : 1, [&](int64_t task, int) {
            const int64_t panel = task % row_panels_;
            const int64_t chunk = task / row_panels_ % chunks;
            const int64_t group = task / row_panels_ / chunks;
            const int64_t first_channel = chunk * blocks_.chunk_channels;
            const int64_t channels = std::min(blocks_.chunk_channels, gemm_.channels - first_channel);
            pack_weights_of(packed_weights + weight_panel(group, first_channel, channels, panel), group, first_channel,
                            channels, panel);
        });
    }

private:
    int64_t row_blocks() const { return ceil_div(gemm_.rows, blocks_.block_rows); }
    int64_t pixel_blocks() const { return ceil_div(pixel_panels_, blocks_.block_panels); }

    // The row operand of the tile needs no packing where its channels are adjacent in memory and there is one tap: 1x1
    // convolutions in NHWC run 5 to 10 % faster. (The weights of one in NCHW could be read so too; that was 0 to 30 %
    // slower than packing them.)
    bool pixels_in_place() const { return blocks_.pixels_in_rows && taps_ == 1 && gemm_.source_stride.c == 1; }

    // Where a panel begins.
    int64_t weight_panel(int64_t group, int64_t first_channel, int64_t channels, int64_t panel) const {
        const int64_t rows = row_panels_ * panels_.row_width;
        return (group * gemm_.channels + first_channel) * taps_ * rows + panel * channels * taps_ * panels_.row_width;
    }

    void pack_weights_of(T* dst, int64_t group, int64_t first_channel, int64_t channels, int64_t panel) const {
        pack_weight_panel(gemm_, {group, panel * panels_.row_width, first_channel, channels}, panels_.row_width,
                          kernels_, dst);
    }

    // --- pixels, where all tasks share them: [group][chunk][panel][channel, tap][pixel] ---

    int64_t pixel_panel(int64_t group, int64_t first_channel, int64_t channels, int64_t panel) const {
        const int64_t pixels = pixel_panels_ * panels_.pixel_width;
        return (group * gemm_.channels + first_channel) * taps_ * pixels +
               panel * channels * taps_ * panels_.pixel_width;
    }

    void pack_all_pixels(T* pixels, const TaskRunner& runner) {
        runner.run(gemm_.groups * pixel_panels_, [&](int64_t task, ScratchParts parts) {
            const int64_t group = task / pixel_panels_, panel = task % pixel_panels_;
            const Scratch<T> scratch = scratch_at(parts);
            find_runs(panel, 0, scratch);
            for (int64_t c = 0; c < gemm_.channels; c += blocks_.chunk_channels) {
                const int64_t channels = std::min(blocks_.chunk_channels, gemm_.channels - c);
                pack_pixels(pixels + pixel_panel(group, c, channels, panel), group, c, channels, 0, scratch);
            }
        });
    }

    // --- one task ---

    Scratch<T> scratch_at(ScratchParts parts) const {
        const int64_t channels = std::min(blocks_.chunk_channels, gemm_.channels);
        const Scratch<T> scratch(parts, blocks_, channels, taps_, kernels_);
        std::fill(scratch.pad, scratch.pad + channels, gemm_.pad);
        return scratch;
    }

    void run_task(int64_t group, int64_t pixel_block, int64_t row_block, const Scratch<T>& scratch) {
        const int64_t first_panel = pixel_block * blocks_.block_panels;
        const int64_t panel_count = std::min(blocks_.block_panels, pixel_panels_ - first_panel);
        for (int64_t panel = 0; panel < panel_count; ++panel) {
            find_dest(first_panel + panel, scratch.dest[panel]);
            if (!shared_pixels_) find_runs(first_panel + panel, blocks_.by_rows ? 0 : panel, scratch);
            if (pixels_in_place()) find_rows(blocks_.by_rows ? 0 : panel, panel, scratch);
        }

        const int64_t first_row_panel = row_block * blocks_.block_rows / panels_.row_width;
        const int64_t last_row_panel =
            std::min(row_panels_, ceil_div((row_block + 1) * blocks_.block_rows, panels_.row_width));
        for (int64_t c = 0; c < gemm_.channels; c += blocks_.chunk_channels) {
            const int64_t channels = std::min(blocks_.chunk_channels, gemm_.channels - c);
            if (!blocks_.by_rows && !pixels_in_place()) pack_panels(group, c, channels, panel_count, scratch);
            const int64_t weight_panel_size = panels_.row_width * channels * taps_;
            const T* weights =
                weights_ ? weights_ + weight_panel(group, c, channels, first_row_panel) : scratch.weights;
            if (!weights_)
                for (int64_t row_panel = first_row_panel; row_panel < last_row_panel; ++row_panel)
                    pack_weights_of(scratch.weights + (row_panel - first_row_panel) * weight_panel_size, group, c,
                                    channels, row_panel);
            const T* pixels =
                shared_pixels_ ? shared_pixels_ + pixel_panel(group, c, channels, first_panel) : scratch.pixels;
            for (int64_t pass = 0; pass < panel_count; pass += blocks_.pass_panels)
                for (int64_t row_panel = first_row_panel; row_panel < last_row_panel; ++row_panel)
                    for (int64_t panel = pass; panel < std::min(pass + blocks_.pass_panels, panel_count); ++panel)
                        multiply(group, row_panel, first_panel, panel, c, channels,
                                 weights + (row_panel - first_row_panel) * weight_panel_size,
                                 pixels + panel * panels_.pixel_width * channels * taps_, scratch);
        }
    }

    // Without other taps that find the lines in L1 again, and planes of a page or more: a few channels at a time, so
    // that the panels read each plane in one stretch (one page and prefetcher stream a channel) instead of one line of
    // every channel in turn. 10 % of a 1x1 layer at 56x56, nothing at 14x14.
    void pack_panels(int64_t group, int64_t chunk, int64_t channels, int64_t panel_count, const Scratch<T>& scratch) {
        const bool large_planes = gemm_.source_stride.c * static_cast<int64_t>(sizeof(T)) >= 4096;
        const int64_t stretch = taps_ == 1 && large_planes ? std::min<int64_t>(channels, 16) : channels;
        for (int64_t first = 0; first < channels; first += stretch)
            for (int64_t panel = 0; panel < panel_count; ++panel)
                pack_pixels(scratch.pixels + (panel * channels + first) * taps_ * panels_.pixel_width, group,
                            chunk + first, std::min(stretch, channels - first), panel, scratch);
    }

    // What the taps read for the pixels of a panel, into slot `slot`.
    void find_runs(int64_t panel, int64_t slot, const Scratch<T>& scratch) {
        const int64_t first = panel * panels_.pixel_width;
        const int64_t count = std::min(panels_.pixel_width, pixels_ - first);
        const int64_t tap_columns = static_cast<int64_t>(gemm_.w->taps.size());
        for (int64_t tap = 0; tap < taps_; ++tap) scratch.run_count[slot * taps_ + tap] = 0;
        for_each_segment(gemm_.h->positions, gemm_.w->positions, first, count, [&](const PixelSegment& segment) {
            for (int64_t tap = 0; tap < taps_; ++tap) {
                const int64_t at = slot * taps_ + tap;
                scratch.run_count[at] =
                    append_runs(*gemm_.h, *gemm_.w, tap / tap_columns, tap % tap_columns, gemm_.source_stride, segment,
                                scratch.runs + at * panels_.pixel_width, scratch.run_count[at]);
            }
        });
    }

    // Where the pixels of a panel stand, out of the runs in slot `slot`.
    void find_rows(int64_t slot, int64_t panel, const Scratch<T>& scratch) {
        const T** rows = scratch.rows + panel * panels_.pixel_width;
        std::fill(rows, rows + panels_.pixel_width, scratch.pad);
        const LaneRun* runs = scratch.runs + slot * panels_.pixel_width;
        for (int r = 0; r < scratch.run_count[slot]; ++r)
            for (int i = 0; i < runs[r].count; ++i)
                rows[runs[r].lane + i] = gemm_.source + runs[r].offset + i * gemm_.w->step * gemm_.source_stride.w;
    }

    bool channels_adjacent() const { return gemm_.source_stride.c == 1 && gemm_.w->step * gemm_.source_stride.w != 1; }

    // Channels [first, first + count) of a group, for the pixels whose runs are in slot `slot`.
    void pack_pixels(T* dst, int64_t group, int64_t first, int64_t count, int64_t slot, const Scratch<T>& scratch) {
        const int64_t width = panels_.pixel_width;
        const T* source = gemm_.source + (group * gemm_.channels + first) * gemm_.source_stride.c;
        const int64_t step = gemm_.w->step * gemm_.source_stride.w;
        for (int64_t tap = 0; tap < taps_; ++tap) {
            const int64_t at = slot * taps_ + tap;
            const LaneRun* runs = scratch.runs + at * width;
            const int run_count = scratch.run_count[at];
            if (!channels_adjacent()) {
                kernels_.pack_lanes(dst + tap * width, taps_ * width, source, gemm_.source_stride.c, count, runs,
                                    run_count, static_cast<int>(width), step, gemm_.pad);
                continue;
            }
            const T* row[64];
            std::fill(row, row + width, scratch.pad);
            for (int r = 0; r < run_count; ++r)
                for (int i = 0; i < runs[r].count; ++i) row[runs[r].lane + i] = source + runs[r].offset + i * step;
            kernels_.pack_transposed(dst + tap * width, taps_ * width, row, static_cast<int>(width), count);
        }
    }

    // Pixels that are evenly spaced in dest, in the direction in which a tile can store them, need no scatter.
    void find_dest(int64_t panel, PanelDest& dest) const {
        const Strides& to = gemm_.dest_stride;
        const int64_t first = panel * panels_.pixel_width, count = std::min(panels_.pixel_width, pixels_ - first);
        const int64_t columns = gemm_.w->positions, plane = gemm_.h->positions * columns;
        const int64_t n = first / plane, in_plane = first % plane;
        const int64_t i = in_plane / columns, j = in_plane % columns;
        const bool even = j + count <= columns || (in_plane + count <= plane && to.h == columns * to.w);
        const bool storable = (blocks_.pixels_in_rows ? to.c : to.w) == 1;
        dest = {n * to.n + i * to.h + j * to.w, even && storable};
    }

    // One tile, straight into dest where that can be, else through the scratch tile.
    void multiply(int64_t group, int64_t row_panel, int64_t first_panel, int64_t panel, int64_t first_channel,
                  int64_t channels, const T* weights, const T* pixels, const Scratch<T>& scratch) {
        const int64_t first_row = row_panel * panels_.row_width;
        const int rows = static_cast<int>(std::min(panels_.row_width, gemm_.rows - first_row));
        const int64_t first_pixel = (first_panel + panel) * panels_.pixel_width;
        const int count = static_cast<int>(std::min(panels_.pixel_width, pixels_ - first_pixel));
        const int64_t depth = channels * taps_;
        const bool accumulate = first_channel > 0;
        const bool last = first_channel + channels == gemm_.channels;
        const T* bias = last && gemm_.bias ? bias_ + group * gemm_.rows + first_row : nullptr;
        const bool relu = last && gemm_.relu;

        const T* in_place[64];  // rows of the tile that are not packed
        if (pixels_in_place()) {
            for (int i = 0; i < count; ++i) {
                const T* pixel = scratch.rows[panel * panels_.pixel_width + i];
                in_place[i] = pixel == scratch.pad ? pixel : pixel + group * gemm_.channels + first_channel;
            }
        }
        const auto run_tile = [&](const TileOutput<T>& out) {
            if (pixels_in_place()) return kernels_.gemm_tile_rows(count, rows, depth, in_place, weights, out);
            if (blocks_.pixels_in_rows) return kernels_.gemm_tile(count, rows, depth, pixels, weights, out);
            return kernels_.gemm_tile(rows, count, depth, weights, pixels, out);
        };

        const Strides& to = gemm_.dest_stride;
        T* dest = gemm_.dest + (group * gemm_.rows + first_row) * to.c;
        if (scratch.dest[panel].direct) {
            T* c = dest + scratch.dest[panel].offset;
            if (blocks_.pixels_in_rows) return run_tile({c, to.w, accumulate, nullptr, bias, relu});
            return run_tile({c, to.c, accumulate, bias, nullptr, relu});
        }
        run_tile({scratch.tile, kernels_.nr, false});
        int64_t row_step = kernels_.nr, pixel_step = 1;
        if (blocks_.pixels_in_rows) std::swap(row_step, pixel_step);
        for_each_run_of_dest(first_pixel, count, [&](int64_t lane, int64_t length, int64_t offset) {
            for (int64_t row = 0; row < rows; ++row)
                scatter(scratch.tile + row * row_step + lane * pixel_step, pixel_step, dest + row * to.c + offset, to.w,
                        length, accumulate, bias ? bias + row : nullptr, relu);
        });
    }

    // Calls visit(lane, count, offset in dest) for the evenly spaced parts of a panel: one an image where the rows of
    // dest follow each other, else one a row.
    template <class Visit>
    void for_each_run_of_dest(int64_t first_pixel, int64_t count, const Visit& visit) const {
        const Strides& to = gemm_.dest_stride;
        const bool flat = to.h == gemm_.w->positions * to.w;
        const int64_t rows = flat ? 1 : gemm_.h->positions;
        const int64_t columns = flat ? gemm_.h->positions * gemm_.w->positions : gemm_.w->positions;
        for_each_segment(rows, columns, first_pixel, count,
                         [&](const PixelSegment& s) { visit(s.lane, s.count, s.n * to.n + s.i * to.h + s.j * to.w); });
    }

    // The end of a tile (finish_row in gemm_tile.inl.h) for pixels that a tile cannot store itself.
    static void scatter(const T* tile, int64_t tile_step, T* c, int64_t step, int64_t count, bool accumulate,
                        const T* bias, bool relu) {
        if (tile_step == 1 && step == 1) {  // the common case, for the compiler's vectors
            if (accumulate)
                for (int64_t i = 0; i < count; ++i) c[i] = c[i] + tile[i];
            else
                for (int64_t i = 0; i < count; ++i) c[i] = tile[i];
        } else {
            for (int64_t i = 0; i < count; ++i)
                c[i * step] = accumulate ? c[i * step] + tile[i * tile_step] : tile[i * tile_step];
        }
        if (bias)
            for (int64_t i = 0; i < count; ++i) c[i * step] += *bias;
        if (relu)
            for (int64_t i = 0; i < count; ++i) c[i * step] = c[i * step] <= T(0) ? T(0) : c[i * step];
    }

public:
    // The bias with unit stride.
    void set_bias(const T* bias) { bias_ = bias; }

private:
    const ImplicitGemm<T>& gemm_;
    const GemmBlocks& blocks_;
    const KernelSet<T>& kernels_;
    const Panels panels_;
    const int64_t taps_, pixels_, pixel_panels_, row_panels_;
    const T* shared_pixels_ = nullptr;
    const T* weights_ = nullptr;
    const T* bias_ = nullptr;
};

}  // namespace

template <class T>
GemmPlan plan_implicit_gemm(const ImplicitGemm<T>& gemm, bool channels_last, const KernelSet<T>& kernels) {
    const GemmBlocks blocks = plan_gemm_blocks(gemm, channels_last, kernels);
    return {blocks, Driver<T>(gemm, blocks, kernels).tasks()};
}

template <class T>
void run_implicit_gemm(const ImplicitGemm<T>& gemm, const GemmPlan& plan, const KernelSet<T>& kernels) {
    Driver<T> driver(gemm, plan.blocks, kernels);
    std::vector<T> bias;
    if (gemm.bias && gemm.bias_stride != 1)
        for (int64_t row = 0; row < gemm.groups * gemm.rows; ++row) bias.push_back(gemm.bias[row * gemm.bias_stride]);
    driver.set_bias(bias.empty() ? gemm.bias : bias.data());
    driver.run(plan.tasks);
}

template <class T>
int64_t packed_weight_bytes(const ImplicitGemm<T>& gemm, const GemmBlocks& blocks, const KernelSet<T>& kernels) {
    return Driver<T>(gemm, blocks, kernels).weight_bytes();
}

template <class T>
void pack_gemm_weights(const ImplicitGemm<T>& gemm, const GemmBlocks& blocks, const KernelSet<T>& kernels, T* packed) {
    Driver<T>(gemm, blocks, kernels).pack_weights(packed, num_threads());
}

template void pack_weight_panel(const ImplicitGemm<float>&, const WeightPart&, int64_t, const KernelSet<float>&,
                                float*);
template void pack_weight_panel(const ImplicitGemm<double>&, const WeightPart&, int64_t, const KernelSet<double>&,
                                double*);
template GemmPlan plan_implicit_gemm(const ImplicitGemm<float>&, bool, const KernelSet<float>&);
template GemmPlan plan_implicit_gemm(const ImplicitGemm<double>&, bool, const KernelSet<double>&);
template void run_implicit_gemm(const ImplicitGemm<float>&, const GemmPlan&, const KernelSet<float>&);
template void run_implicit_gemm(const ImplicitGemm<double>&, const GemmPlan&, const KernelSet<double>&);
template int64_t packed_weight_bytes(const ImplicitGemm<float>&, const GemmBlocks&, const KernelSet<float>&);
template int64_t packed_weight_bytes(const ImplicitGemm<double>&, const GemmBlocks&, const KernelSet<double>&);
template void pack_gemm_weights(const ImplicitGemm<float>&, const GemmBlocks&, const KernelSet<float>&, float*);
template void pack_gemm_weights(const ImplicitGemm<double>&, const GemmBlocks&, const KernelSet<double>&, double*);

}  // namespace convx
