// Forward convolution and the input gradient as one driver: a GEMM whose pixel operand is never a matrix in memory but
// packed panel by panel out of the image.
//
//   dest[n, row, i, j] = sum over channel, tap of weight[row, channel, tap] * source[n, channel, h(tap, i), w(tap, j)]
//
// Work: a task owns a block of pixels (over the whole batch) and packs them chunk by chunk of the reduction into L2;
// the weights were packed once for all tasks. Where there are fewer pixels than output channels it is the other way
// round: the pixels are packed once and a task owns output channels, so that neither operand is packed twice. The order
// of every sum is channel by channel, tap by tap, in chunks that the per-image problem fixes: the same bits for any
// thread count, batch and memory layout.
#include "cpu/conv2d/implicit_gemm.h"

#include "common/rounding.h"
#include "common/small_vector.h"
#include "cpu/conv2d/method_row.h"

namespace convx {

namespace {

// One reused panel (depth x 6 or 16 floats) has to stay in a 32 KiB L1 beside the streamed one: 256 deep is 6 + 16 KiB.
constexpr int64_t target_depth = 256;
// Packed pixels of one task, in L2 (512 KiB and more) beside the weights that stream through.
constexpr int64_t pixel_block_bytes = 192 * 1024;

struct GemmBlocks {
    int64_t pixel_width = 1, row_width = 1;  // of the operands' panels: mr and nr, or nr and mr
    bool pixels_in_rows = false;             // channels-last: vectors run over output channels instead of pixels
    bool by_rows = false;     // few pixels: a task owns output channels and sees all pixels, not the other way round
    int64_t kc = 1;           // reduction channels (times taps) that are summed in registers in one go
    int64_t nc_panels = 1;    // pixel panels of one task
    int64_t pass_panels = 1;  // those that stay in L2 while the output channels of the task pass by
    int64_t mc = 1;           // output channels of one task
};

template <class T>
GemmBlocks plan_gemm_blocks(const ImplicitGemm<T>& gemm, bool channels_last, const KernelSet<T>& kernels) {
    GemmBlocks blocks;
    blocks.pixels_in_rows = channels_last;
    const int64_t pixel_width = blocks.pixel_width = channels_last ? kernels.mr : kernels.nr;
    const int64_t row_width = blocks.row_width = channels_last ? kernels.nr : kernels.mr;
    const int64_t channels = std::max<int64_t>(gemm.channels, 1), taps = std::max<int64_t>(gemm.taps(), 1);
    const int64_t groups = gemm.groups, rows = gemm.rows, pixels = gemm.pixels();

    // The depth decides the order of sums, so it may depend on nothing but channels and taps. Even chunks.
    const int64_t chunks = ceil_div(channels, std::clamp(target_depth / taps, int64_t{1}, channels));
    blocks.kc = ceil_div(channels, chunks);

    // The smaller operand is packed once for all tasks, of the larger one every task packs its own part in L2. With
    // pixels the larger one: as many panels as fit and as leave enough tasks, with all rows.
    const int64_t depth = blocks.kc * taps;
    const int64_t panels = std::max<int64_t>(ceil_div(pixels, pixel_width), 1);
    const int64_t row_panels = ceil_div(std::max<int64_t>(rows, 1), row_width);
    const int64_t fit = std::max<int64_t>(pixel_block_bytes / (depth * pixel_width * int64_t{sizeof(T)}), 1);
    blocks.by_rows = panels * pixel_width < rows;
    if (blocks.by_rows) {
        blocks.nc_panels = panels;
        blocks.pass_panels = ceil_div(panels, ceil_div(panels, fit));
        blocks.mc = std::min(ceil_div(row_panels * groups, wanted_tasks) + 1, row_panels) * row_width;
        return blocks;
    }
    blocks.nc_panels = std::clamp(panels * groups / (2 * wanted_tasks), int64_t{1}, fit);
    blocks.pass_panels = blocks.nc_panels;
    const int64_t pixel_tasks = groups * ceil_div(panels, blocks.nc_panels);
    // Splitting rows packs the pixels again for each part, so a part keeps at least 8 panels.
    const int64_t row_parts = std::clamp(ceil_div(wanted_tasks, pixel_tasks), int64_t{1}, ceil_div(row_panels, 8));
    blocks.mc = ceil_div(row_panels, row_parts) * row_width;
    return blocks;
}

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const GemmBlocks& blocks, int64_t channels, int64_t taps, const KernelSet<T>& kernels)
        : width(blocks.pixel_width),
          pixels(parts.take<T>(blocks.by_rows ? 0 : blocks.nc_panels * width * channels * taps)),
          weights(parts.take<T>(blocks.by_rows ? blocks.mc * channels * taps : 0)),
          tile(parts.take<T>(kernels.mr * kernels.nr)), pad(parts.take<T>(channels)),
          runs(parts.take<LaneRun>((blocks.by_rows ? 1 : blocks.nc_panels) * taps * width)),
          run_count(parts.take<int32_t>((blocks.by_rows ? 1 : blocks.nc_panels) * taps)),
          dest(parts.take<PanelDest>(blocks.nc_panels)), rows(parts.take<const T*>(blocks.nc_panels * width)),
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
class ImplicitGemmDriver {
public:
    ImplicitGemmDriver(const ImplicitGemm<T>& gemm, const GemmBlocks& blocks, const KernelSet<T>& kernels)
        : gemm_(gemm), blocks_(blocks), kernels_(kernels), taps_(gemm.taps()), pixels_(gemm.pixels()),
          pixel_panels_(ceil_div(pixels_, blocks_.pixel_width)), row_panels_(ceil_div(gemm.rows, blocks_.row_width)) {}

    TaskPlan tasks() const {
        const int64_t channels = std::min(blocks_.kc, gemm_.channels);
        TaskPlan plan;
        plan.tasks = gemm_.groups * row_blocks() * pixel_blocks();
        plan.flops = gemm_.flops();
        plan.worker_bytes = Scratch<T>(ScratchParts(), blocks_, channels, taps_, kernels_).bytes;
        if (blocks_.by_rows && !pixels_in_place())
            plan.shared_bytes = cache_lines(pixel_panels_ * blocks_.pixel_width * gemm_.groups * gemm_.channels *
                                            taps_ * int64_t{sizeof(T)});
        else if (!blocks_.by_rows && !gemm_.packed_weight)
            plan.shared_bytes = weight_bytes();
        return plan;
    }

    int64_t weight_bytes() const {
        return cache_lines(gemm_.groups * row_panels_ * blocks_.row_width * gemm_.channels * taps_ *
                           int64_t{sizeof(T)});
    }

    void run(const TaskPlan& plan) {
        bias_ = gemm_.bias;
        if (bias_ && gemm_.bias_stride != 1) {
            for (int64_t row = 0; row < gemm_.groups * gemm_.rows; ++row)
                dense_bias_.push_back(gemm_.bias[row * gemm_.bias_stride]);
            bias_ = dense_bias_.data();
        }
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
        const int64_t chunks = ceil_div(gemm_.channels, blocks_.kc);
        const int64_t packed = gemm_.groups * row_panels_ * blocks_.row_width * gemm_.channels * taps_;
        const bool big = packed * static_cast<int64_t>(sizeof(T)) > 128 * 1024;
        parallel_for(gemm_.groups * chunks * row_panels_, big ? width : 1, [&](int64_t task, int) {
            const int64_t panel = task % row_panels_;
            const int64_t chunk = task / row_panels_ % chunks;
            const int64_t group = task / row_panels_ / chunks;
            const int64_t first_channel = chunk * blocks_.kc;
            const int64_t channels = std::min(blocks_.kc, gemm_.channels - first_channel);
            pack_weights_of(packed_weights + weight_panel(group, first_channel, channels, panel), group, first_channel,
                            channels, panel);
        });
    }

private:
    int64_t row_blocks() const { return ceil_div(gemm_.rows, blocks_.mc); }
    int64_t pixel_blocks() const { return ceil_div(pixel_panels_, blocks_.nc_panels); }

    // The row operand of the tile needs no packing where its channels are adjacent in memory and there is one tap: 1x1
    // convolutions in NHWC run 5 to 10 % faster. (The weights of one in NCHW could be read so too; that was 0 to 30 %
    // slower than packing them.)
    bool pixels_in_place() const { return blocks_.pixels_in_rows && taps_ == 1 && gemm_.source_stride.c == 1; }

    // Where a panel begins.
    int64_t weight_panel(int64_t group, int64_t first_channel, int64_t channels, int64_t panel) const {
        const int64_t rows = row_panels_ * blocks_.row_width;
        return (group * gemm_.channels + first_channel) * taps_ * rows + panel * channels * taps_ * blocks_.row_width;
    }

    void pack_weights_of(T* dst, int64_t group, int64_t first_channel, int64_t channels, int64_t panel) const {
        pack_weight_panel(gemm_, {group, panel * blocks_.row_width, first_channel, channels}, blocks_.row_width,
                          kernels_, dst);
    }

    // --- pixels, where all tasks share them: [group][chunk][panel][channel, tap][pixel] ---

    int64_t pixel_panel(int64_t group, int64_t first_channel, int64_t channels, int64_t panel) const {
        const int64_t pixels = pixel_panels_ * blocks_.pixel_width;
        return (group * gemm_.channels + first_channel) * taps_ * pixels +
               panel * channels * taps_ * blocks_.pixel_width;
    }

    void pack_all_pixels(T* pixels, const TaskRunner& runner) {
        runner.run(gemm_.groups * pixel_panels_, [&](int64_t task, ScratchParts parts) {
            const int64_t group = task / pixel_panels_, panel = task % pixel_panels_;
            const Scratch<T> scratch = scratch_at(parts);
            const PixelPanel<T> found = find_runs(panel, 0, scratch);
            for (int64_t c = 0; c < gemm_.channels; c += blocks_.kc) {
                const int64_t channels = std::min(blocks_.kc, gemm_.channels - c);
                found.pack(group, c, channels, kernels_, pixels + pixel_panel(group, c, channels, panel));
            }
        });
    }

    // --- one task ---

    Scratch<T> scratch_at(ScratchParts parts) const {
        const int64_t channels = std::min(blocks_.kc, gemm_.channels);
        const Scratch<T> scratch(parts, blocks_, channels, taps_, kernels_);
        std::fill(scratch.pad, scratch.pad + channels, gemm_.pad);
        return scratch;
    }

    void run_task(int64_t group, int64_t pixel_block, int64_t row_block, const Scratch<T>& scratch) {
        const int64_t first_panel = pixel_block * blocks_.nc_panels;
        const int64_t panel_count = std::min(blocks_.nc_panels, pixel_panels_ - first_panel);
        for (int64_t panel = 0; panel < panel_count; ++panel) {
            const int64_t first = (first_panel + panel) * blocks_.pixel_width;
            scratch.dest[panel] =
                find_dest(gemm_, first, std::min(blocks_.pixel_width, pixels_ - first), blocks_.pixels_in_rows);
            if (shared_pixels_) continue;
            const PixelPanel<T> found = find_runs(first_panel + panel, blocks_.by_rows ? 0 : panel, scratch);
            if (pixels_in_place()) found.find_rows(0, gemm_.source, scratch.rows + panel * blocks_.pixel_width);
        }

        const int64_t first_row_panel = row_block * blocks_.mc / blocks_.row_width;
        const int64_t last_row_panel = std::min(row_panels_, ceil_div((row_block + 1) * blocks_.mc, blocks_.row_width));
        for (int64_t c = 0; c < gemm_.channels; c += blocks_.kc) {
            const int64_t channels = std::min(blocks_.kc, gemm_.channels - c);
            if (!blocks_.by_rows && !pixels_in_place()) pack_panels(group, c, channels, panel_count, scratch);
            const int64_t weight_panel_size = blocks_.row_width * channels * taps_;
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
                                 pixels + panel * blocks_.pixel_width * channels * taps_, scratch);
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
                panel_at(panel, scratch)
                    .pack(group, chunk + first, std::min(stretch, channels - first), kernels_,
                          scratch.pixels + (panel * channels + first) * taps_ * blocks_.pixel_width);
    }

    PixelPanel<T> panel_at(int64_t slot, const Scratch<T>& scratch) const {
        return {gemm_, blocks_.pixel_width, scratch.pad, scratch.runs + slot * taps_ * blocks_.pixel_width,
                scratch.run_count + slot * taps_};
    }

    // What the taps read for the pixels of a panel, into slot `slot`.
    PixelPanel<T> find_runs(int64_t panel, int64_t slot, const Scratch<T>& scratch) const {
        const PixelPanel<T> found = panel_at(slot, scratch);
        const int64_t first = panel * blocks_.pixel_width;
        found.find_runs(first, std::min(blocks_.pixel_width, pixels_ - first));
        return found;
    }

    // One tile, straight into dest where that can be, else through the scratch tile.
    void multiply(int64_t group, int64_t row_panel, int64_t first_panel, int64_t panel, int64_t first_channel,
                  int64_t channels, const T* weights, const T* pixels, const Scratch<T>& scratch) {
        const int64_t first_row = row_panel * blocks_.row_width;
        const int rows = static_cast<int>(std::min(blocks_.row_width, gemm_.rows - first_row));
        const int64_t first_pixel = (first_panel + panel) * blocks_.pixel_width;
        const int count = static_cast<int>(std::min(blocks_.pixel_width, pixels_ - first_pixel));
        const int64_t depth = channels * taps_;
        const bool accumulate = first_channel > 0;
        const bool last = first_channel + channels == gemm_.channels;
        const T* bias = last && gemm_.bias ? bias_ + group * gemm_.rows + first_row : nullptr;
        const bool relu = last && gemm_.relu;

        const T* in_place[64];  // rows of the tile that are not packed
        if (pixels_in_place()) {
            for (int i = 0; i < count; ++i) {
                const T* pixel = scratch.rows[panel * blocks_.pixel_width + i];
                in_place[i] = pixel == scratch.pad ? pixel : pixel + group * gemm_.channels + first_channel;
            }
        }
        const auto run_tile = [&](const Epilogue<T>& out) {
            if (pixels_in_place())
                return kernels_.gemm_tile_rows(count, rows, depth, in_place, weights, kernels_.nr, out);
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
        for_each_run_of_dest(gemm_, first_pixel, count, [&](int64_t lane, int64_t length, int64_t offset) {
            for (int64_t row = 0; row < rows; ++row)
                scatter(scratch.tile + row * row_step + lane * pixel_step, pixel_step, dest + row * to.c + offset, to.w,
                        length, accumulate, bias ? bias + row : nullptr, relu);
        });
    }

    const ImplicitGemm<T>& gemm_;
    const GemmBlocks& blocks_;
    const KernelSet<T>& kernels_;
    const int64_t taps_, pixels_, pixel_panels_, row_panels_;
    const T* shared_pixels_ = nullptr;
    const T* weights_ = nullptr;
    const T* bias_ = nullptr;  // with unit stride
    std::vector<T> dense_bias_;
};

struct GemmPlan {
    GemmBlocks blocks;
    TaskPlan tasks;
};

struct Plan {
    PhaseTables h, w;
    SmallVector<GemmPlan, 1> phases;  // [phase of h][phase of w]
    TaskPlan task_plan;               // of the phase with the most taps

    const TaskPlan& tasks() const { return task_plan; }

    size_t densest() const { return h.densest() * w.size() + w.densest(); }
};

}  // namespace

struct ImplicitGemmMethod {
    static constexpr const char* name = "implicit-gemm";
    static constexpr Traits traits{};

    static Verdict supports(const ConvProblem&, ConvPass) { return {}; }
    static Work work(const WorkSizes& sizes) {
        Work work = sizes.common();
        const TileSizes& tile = sizes.tile;
        sizes.for_phases([&](double count, double height, double width, double taps) {
            const double pixels = height * width, packed = sizes.groups * sizes.channels * taps * pixels;
            const TileGrid grid = sizes.channels_last
                                      ? TileGrid(pixels, tile.mr, sizes.vectors(sizes.rows), tile.nr_vectors)
                                      : TileGrid(sizes.rows, tile.mr, sizes.vectors(pixels), tile.nr_vectors);
            const double depth = sizes.channels * taps;
            work[WorkKind::cycles] += count * sizes.groups * depth * grid.cycles;
            work[WorkKind::tiles] += count * sizes.groups * grid.tiles * std::ceil(depth / 384);
            if (!sizes.channels_last && !sizes.strided) {
                work[WorkKind::copies] += packed / tile.lanes;
                if (taps > 1) work[WorkKind::runs] += packed / width;
            } else if (!sizes.channels_last || taps > 1) {
                work[WorkKind::transposes] += count * packed;
                work[WorkKind::runs] += count * (sizes.channels_last ? taps * pixels : packed / width);
            }
        });
        return work;
    }

    template <class T>
    static Plan plan(const WindowSum<T>& sum, const KernelSet<T>& kernels) {
        Plan plan{{sum.problem->h, sum.forward()}, {sum.problem->w, sum.forward()}, {}, {}};
        for (size_t i = 0; i < plan.h.size(); ++i)
            for (size_t j = 0; j < plan.w.size(); ++j) {
                const ImplicitGemm<T> gemm = phase_of(sum, plan.h, plan.w, i, j);
                const GemmBlocks blocks = plan_gemm_blocks(gemm, sum.problem->channels_last, kernels);
                plan.phases.push_back({blocks, ImplicitGemmDriver<T>(gemm, blocks, kernels).tasks()});
            }
        plan.task_plan = plan.phases[plan.densest()].tasks;
        return plan;
    }

    template <class T>
    static void run(const WindowSum<T>& sum, const Plan& plan, const KernelSet<T>& kernels) {
        if (plan.h.has_empty() || plan.w.has_empty()) fill_with_bias(sum);
        for (size_t i = 0; i < plan.h.size(); ++i)
            for (size_t j = 0; j < plan.w.size(); ++j) {
                const ImplicitGemm<T> gemm = phase_of(sum, plan.h, plan.w, i, j);
                if (gemm.taps() == 0 || gemm.pixels() == 0) continue;
                const GemmPlan& own = plan.phases[i * plan.w.size() + j];
                ImplicitGemmDriver<T>(gemm, own.blocks, kernels).run(own.tasks);
            }
    }

    template <class T>
    static void describe(const WindowSum<T>& sum, const Plan& plan, const KernelSet<T>& kernels, PassPlan& text) {
        const ImplicitGemm<T> gemm = phase_of(sum, plan.h, plan.w, plan.h.densest(), plan.w.densest());
        const GemmBlocks& blocks = plan.phases[plan.densest()].blocks;
        const std::string mr = std::to_string(kernels.mr), nr = std::to_string(kernels.nr);
        const int64_t pixels = blocks.nc_panels * blocks.pixel_width;
        text.tile = blocks.pixels_in_rows ? mr + " pixels x " + nr + " channels" : mr + " channels x " + nr + " pixels";
        text.block = std::to_string(std::min(pixels, gemm.pixels())) + " pixels x " +
                     std::to_string(std::min(blocks.mc, gemm.rows)) + " channels, sums of " +
                     std::to_string(blocks.kc) + " channels x " + std::to_string(gemm.taps()) + " taps";
        text.reason = blocks.pixels_in_rows ? "implicit GEMM, vectors over channels because the layout is NHWC"
                                            : "implicit GEMM, vectors over pixels because the layout is NCHW";
        if (blocks.by_rows)
            text.reason += "; fewer pixels than channels, so a task owns channels and packs their weights for itself";
        if (plan.phases.size() > 1)
            text.reason += "; the stride makes " + std::to_string(plan.phases.size()) +
                           " dense phases, of which the one with most taps is shown";
    }

    template <class T>
    static void pack(const WindowSum<T>& sum, const KernelSet<T>& kernels, PackedWeight<T>& packed) {
        const Plan own = plan(sum, kernels);
        const ImplicitGemm<T> gemm = phase_of(sum, own.h, own.w, 0, 0);
        const ImplicitGemmDriver<T> driver(gemm, own.phases[0].blocks, kernels);
        packed.data = Workspace(static_cast<size_t>(driver.weight_bytes()));
        driver.pack_weights(static_cast<T*>(packed.data.data()), num_threads());
    }
};

template const Method<WindowSum<float>>& method_row<ImplicitGemmMethod, WindowSum<float>>();
template const Method<WindowSum<double>>& method_row<ImplicitGemmMethod, WindowSum<double>>();

}  // namespace convx
