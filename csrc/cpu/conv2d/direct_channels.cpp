// Direct convolution with vectors over the channels of the result: output channels forward, input channels in
// grad_input, of any number of groups.
//
// Pixels are broadcast from a padded tile, so no stride takes rows apart, rows shorter than a few vectors waste nothing
// (a row of 10 fills two vectors to 62 %), and NHWC is written as it comes. NCHW takes a transpose of the result (5 %
// of the time at 100 products a sum), which joins the phases of a strided gradient on the way.
//
// Work: a unit is a row block of one group of one image with all its channels; some rows at a time, their pixels run
// through the tiles of one panel of channels after the other. Every sum is one chain of FMA in the order of channels
// and taps: the same bits for any thread count, batch and memory layout.
#include <algorithm>

#include "common/rounding.h"
#include "cpu/conv2d/direct.h"

namespace convx {

namespace {

// The padded tile of a unit, in L2 (512 KiB) beside the weights of a group: 64 channels x 9 taps x 64 are 144 KiB.
constexpr int64_t tile_bytes = 128 * 1024;
// Pixels whose sums wait for their transpose, in L1.
constexpr int64_t block_pixels = 128;

struct Blocks {
    int64_t unit_rows = 1;   // rows of the largest phase in a unit
    int64_t block_rows = 1;  // of which so many run through all panels in one go
    int64_t task_units = 1;
};

PlaneLayout layout_of(const ConvProblem& problem, bool forward) {
    if (forward) return {pixels_of_forward(problem.h), pixels_of_forward(problem.w)};
    return {by_offset(phases_of_adjoint(problem.h)), by_offset(phases_of_adjoint(problem.w))};
}

Blocks plan_blocks(const PlaneLayout& layout, int64_t batch, int64_t groups, int64_t channels, int64_t rows,
                   int64_t item_bytes) {
    Blocks blocks;
    const int64_t height = layout.h.positions(), width = layout.w.positions();
    const int64_t row_bytes = channels * layout.planes() * layout.row_step() * item_bytes;
    const int64_t fit = std::max<int64_t>(tile_bytes / row_bytes - layout.reach / layout.h.advance, 1);
    const int64_t row_flops = 2 * channels * rows * layout.all_taps() * width;
    blocks.unit_rows = even_part(height, std::min(fit, unit_rows(layout, batch * groups, row_flops)));
    const auto classes = static_cast<int64_t>(layout.h.classes.size() * layout.w.classes.size());
    blocks.block_rows = std::clamp(block_pixels / (classes * width), int64_t{1}, blocks.unit_rows);
    blocks.task_units =
        units_of_a_task(batch * groups * ceil_div(height, blocks.unit_rows), blocks.unit_rows * row_flops);
    return blocks;
}

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, int64_t tile, int64_t pixel_count, int64_t columns, int64_t result_size,
            int64_t taps_size)
        : planes(parts.take<T>(tile)), pixels(parts.take<const T*>(pixel_count)),
          row(parts.take<const T*>(std::max(pixel_count, columns))), result(parts.take<T>(result_size)),
          taps(parts.take<T>(taps_size)), bytes(parts.bytes()) {}
    T* planes;         // [channel][plane]
    const T** pixels;  // [class][pixel] of a block of rows
    const T** row;     // the sums of a row of the result, where it has to be transposed
    T* result;         // [class][pixel][output channel of a panel]
    T* taps;           // [tap][output channel], while weights are packed
    int64_t bytes;
};

// The pixels of the result that have the same taps.
struct Class {
    const PhasedAxis::Class *h, *w;
    int64_t taps;         // of a channel
    int64_t taps_before;  // of the classes before
    std::vector<int32_t> offsets;
};

template <class T>
class DirectChannelsDriver {
public:
    DirectChannelsDriver(const WindowSum<T>& sum, const KernelSet<T>& kernels)
        : sum_(sum), kernels_(kernels), nr_(kernels.nr), panels_(ceil_div(sum.rows, nr_)),
          channels_adjacent_(sum.dest.stride[1] == 1), layout_(layout_of(*sum.problem, sum.forward())),
          blocks_(plan_blocks(layout_, sum.batch, sum.groups, sum.channels, sum.rows, sizeof(T))),
          padded_tile_(layout_, strides_of(sum.source.stride), sum.pad(), kernels),
          plane_(layout_.plane_size(blocks_.unit_rows, kernels.lanes)),
          class_pixels_(blocks_.block_rows * layout_.w.positions()) {
        int64_t taps = 0;
        for (size_t i = 0; i < layout_.h.classes.size(); ++i)
            for (size_t j = 0; j < layout_.w.classes.size(); ++j) {
                Class one{&layout_.h.classes[i], &layout_.w.classes[j], 0, taps,
                          layout_.offsets(i, j, sum.channels, plane_)};
                one.taps = static_cast<int64_t>(one.h->taps.size() * one.w->taps.size());
                taps += one.taps;
                classes_.push_back(std::move(one));
            }
    }

    const Blocks& blocks() const { return blocks_; }
    const PlaneLayout& layout() const { return layout_; }

    TaskPlan tasks() const {
        return {ceil_div(units(), blocks_.task_units), sum_.flops(), shared(ScratchParts()).bytes,
                scratch(ScratchParts()).bytes};
    }

    void run() const {
        const int64_t units = this->units();
        const TaskPlan plan = tasks();
        const TaskRunner runner(plan);
        const DirectShared<T> shared = this->shared(ScratchParts(runner.shared()));
        runner.run(sum_.groups * panels_, [&](int64_t panel, ScratchParts parts) {
            pack_panel(panel / panels_, panel % panels_, shared, scratch(parts).taps);
        });
        runner.run(plan.tasks, [&](int64_t task, ScratchParts parts) {
            const Scratch<T> scratch = this->scratch(parts);
            const int64_t last = std::min(units, (task + 1) * blocks_.task_units);
            for (int64_t unit = task * blocks_.task_units; unit < last; ++unit)
                run_unit(unit_of(unit), unit + 1 < units ? unit_of(unit + 1) : Unit{}, shared, scratch);
        });
    }

private:
    struct Unit {
        int64_t group = 0, n = 0, first = 0, rows = 0;
    };

    // A block of rows of a unit.
    struct RowBlock {
        int64_t group, n, first, rows;
        const T* planes;  // of its first row
    };

    // Weights: [group][panel][class][channel, tap][output channel].
    DirectShared<T> shared(ScratchParts parts) const {
        return {parts, sum_.groups * panels_ * nr_ * sum_.channels * layout_.all_taps(), sum_.groups * sum_.rows};
    }
    Scratch<T> scratch(ScratchParts parts) const {
        const int64_t pixels = static_cast<int64_t>(classes_.size()) * class_pixels_;
        return {parts,
                sum_.channels * layout_.planes() * plane_,
                pixels,
                sum_.dest.shape[3],
                channels_adjacent_ ? 0 : pixels * nr_,
                sum_.problem->taps() * nr_};
    }

    int64_t units() const { return sum_.groups * sum_.batch * ceil_div(layout_.h.positions(), blocks_.unit_rows); }

    // Neighbouring units share the weights of a group.
    Unit unit_of(int64_t unit) const {
        const int64_t height = layout_.h.positions(), row_blocks = ceil_div(height, blocks_.unit_rows);
        const int64_t first = unit % row_blocks * blocks_.unit_rows;
        return {unit / row_blocks / sum_.batch, unit / row_blocks % sum_.batch, first,
                std::min(blocks_.unit_rows, height - first)};
    }

    const T* source_of(const Unit& unit) const { return sum_.source.at(unit.n, unit.group * sum_.channels, 0, 0); }
    T* weights_of(const DirectShared<T>& shared, int64_t group, int64_t panel) const {
        return shared.weights + (group * panels_ + panel) * nr_ * sum_.channels * layout_.all_taps();
    }
    int64_t width_of(int64_t panel) const { return std::min(nr_, sum_.rows - panel * nr_); }

    void pack_panel(int64_t group, int64_t panel, const DirectShared<T>& shared, T* taps) const {
        const int64_t width = width_of(panel), first = panel * nr_;
        if (width < nr_) std::fill_n(taps, sum_.problem->taps() * nr_, T(0));
        T* to = weights_of(shared, group, panel);
        const T* from = sum_.weight + group * sum_.weight_group + first * sum_.weight_row;
        for (int64_t c = 0; c < sum_.channels; ++c, from += sum_.weight_channel) {
            pack_taps(taps, from, width);
            for (const Class& one : classes_) {
                T* at = to + (one.taps_before * sum_.channels + c * one.taps) * nr_;
                for (const PhasedAxis::Tap& r : one.h->taps)
                    for (const PhasedAxis::Tap& s : one.w->taps) {
                        std::copy_n(taps + (r.kernel_index * sum_.problem->w.kernel + s.kernel_index) * nr_, nr_, at);
                        at += nr_;
                    }
            }
        }
        for (int64_t k = group * sum_.rows + first, i = 0; sum_.bias && i < width; ++i)
            shared.bias[k + i] = sum_.bias[(k + i) * sum_.bias_stride];
    }

    // [tap][output channel] of one channel.
    void pack_taps(T* taps, const T* from, int64_t width) const {
        const int64_t columns = sum_.problem->w.kernel, count = sum_.problem->taps();
        const T* row[64];
        for (int64_t i = 0; i < width; ++i) row[i] = from + i * sum_.weight_row;
        if (sum_.weight_w == 1 && sum_.weight_h == columns)
            return kernels_.pack_transposed(taps, nr_, row, static_cast<int>(width), count);
        for (int64_t tap = 0; tap < count; ++tap)
            for (int64_t i = 0; i < width; ++i)
                taps[tap * nr_ + i] = row[i][tap / columns * sum_.weight_h + tap % columns * sum_.weight_w];
    }

    // `next` is what comes after it: the copy alone would wait for memory longer than it works.
    void run_unit(const Unit& unit, const Unit& next, const DirectShared<T>& shared, const Scratch<T>& scratch) const {
        padded_tile_.copy(scratch.planes, plane_, source_of(unit), sum_.channels, unit.first, unit.rows);
        int64_t tiles = 0;
        for (const Class& one : classes_) tiles += ceil_div(unit.rows * one.w->positions, kernels_.mr);
        Prefetch<T> ahead;
        if (next.rows > 0)
            ahead = padded_tile_.prefetch(source_of(next), sum_.channels, next.first, next.rows,
                                          channels_adjacent_ ? tiles : tiles * panels_);
        for (int64_t row = 0; row < unit.rows; row += blocks_.block_rows) {
            const RowBlock block{unit.group, unit.n, unit.first + row, std::min(blocks_.block_rows, unit.rows - row),
                                 scratch.planes + row * layout_.row_step()};
            const T** pixels = scratch.pixels;
            for (const Class& one : classes_) {
                find_pixels(one, block, pixels);
                if (channels_adjacent_) run_adjacent(one, block, pixels, shared, ahead);
                pixels += class_pixels_;
            }
            if (!channels_adjacent_) run_planes(block, shared, scratch, ahead);
        }
    }

    int64_t rows_of(const PhasedAxis::Class& h, const RowBlock& block) const {
        return std::max<int64_t>(std::min(block.rows, h.positions - block.first), 0);
    }

    void find_pixels(const Class& one, const RowBlock& block, const T** to) const {
        for (int64_t i = 0; i < rows_of(*one.h, block); ++i)
            for (int64_t j = 0; j < one.w->positions; ++j)
                *to++ = block.planes + i * layout_.row_step() + j * layout_.w.advance;
    }

    // Calls tile(first pixel, count): nearly equal sizes, since a tile of less than 4 pixels waits for its own sums.
    template <class Tile>
    void for_tiles(int64_t pixels, const Tile& tile) const {
        const int64_t tiles = ceil_div(pixels, kernels_.mr);
        for (int64_t i = 0; i < tiles; ++i) {
            const int64_t first = i * pixels / tiles;
            tile(first, (i + 1) * pixels / tiles - first);
        }
    }

    void run_tile(const Class& one, const T* const* pixels, int64_t count, int64_t group, int64_t panel,
                  const DirectShared<T>& shared, T* to, int64_t step) const {
        const T* bias = sum_.bias ? shared.bias + group * sum_.rows + panel * nr_ : nullptr;
        kernels_.gemm_tile_pixels(static_cast<int>(count), static_cast<int>(width_of(panel)), sum_.channels * one.taps,
                                  {pixels, one.offsets.data()},
                                  weights_of(shared, group, panel) + one.taps_before * sum_.channels * nr_,
                                  {to, step, false, nullptr, bias, sum_.relu});
    }

    // Written as it comes, pixel by pixel in one stream.
    void run_adjacent(const Class& one, const RowBlock& block, const T* const* pixels, const DirectShared<T>& shared,
                      Prefetch<T>& ahead) const {
        const int64_t rows = rows_of(*one.h, block), columns = one.w->positions;
        const int64_t step = one.w->step * sum_.dest.stride[3], row_step = one.h->step * sum_.dest.stride[2];
        T* dest =
            sum_.dest.at(block.n, block.group * sum_.rows, one.h->first + block.first * one.h->step, one.w->first);
        const bool one_run = row_step == columns * step;
        const int64_t runs = one_run ? 1 : rows, run = one_run ? rows * columns : columns;
        for (int64_t i = 0; i < runs; ++i, dest += row_step, pixels += run)
            for_tiles(run, [&](int64_t first, int64_t count) {
                ahead.next();
                for (int64_t panel = 0; panel < panels_; ++panel)
                    run_tile(one, pixels + first, count, block.group, panel, shared, dest + first * step + panel * nr_,
                             step);
            });
    }

    // Panel by panel through sums that are transposed.
    void run_planes(const RowBlock& block, const DirectShared<T>& shared, const Scratch<T>& scratch,
                    Prefetch<T>& ahead) const {
        for (int64_t panel = 0; panel < panels_; ++panel) {
            for (size_t k = 0; k < classes_.size(); ++k) {
                const Class& one = classes_[k];
                const int64_t at = static_cast<int64_t>(k) * class_pixels_;
                for_tiles(rows_of(*one.h, block) * one.w->positions, [&](int64_t first, int64_t count) {
                    ahead.next();
                    run_tile(one, scratch.pixels + at + first, count, block.group, panel, shared,
                             scratch.result + (at + first) * nr_, nr_);
                });
            }
            store(block, panel, scratch);
        }
    }

    void store(const RowBlock& block, int64_t panel, const Scratch<T>& scratch) const {
        const std::vector<PhasedAxis::Class>& classes_w = layout_.w.classes;
        const auto [of_image, of_channel, of_row, of_column] = sum_.dest.stride;
        (void)of_image, (void)of_channel;
        const int64_t columns = sum_.dest.shape[3];
        T* dest = sum_.dest.at(block.n, block.group * sum_.rows + panel * nr_, 0, 0);
        if (classes_.size() == 1 && of_row == columns * of_column) {
            const int64_t pixels = block.rows * columns;
            for (int64_t p = 0; p < pixels; ++p) scratch.row[p] = scratch.result + p * nr_;
            return store_pixels(dest + block.first * of_row, scratch.row, pixels, width_of(panel));
        }
        const T* of_class = scratch.result;
        for (const PhasedAxis::Class& h : layout_.h.classes) {
            for (int64_t i = 0; i < rows_of(h, block); ++i) {
                for (size_t j = 0; j < classes_w.size(); ++j) {
                    const PhasedAxis::Class& w = classes_w[j];
                    const T* from = of_class + (static_cast<int64_t>(j) * class_pixels_ + i * w.positions) * nr_;
                    for (int64_t p = 0; p < w.positions; ++p) scratch.row[w.first + p * w.step] = from + p * nr_;
                }
                store_pixels(dest + (h.first + (block.first + i) * h.step) * of_row, scratch.row, columns,
                             width_of(panel));
            }
            of_class += static_cast<int64_t>(classes_w.size()) * class_pixels_ * nr_;
        }
    }

    void store_pixels(T* dest, const T* const* pixels, int64_t count, int64_t width) const {
        const int64_t of_channel = sum_.dest.stride[1], of_column = sum_.dest.stride[3];
        if (of_column == 1) return kernels_.pack_transposed(dest, of_channel, pixels, static_cast<int>(count), width);
        for (int64_t p = 0; p < count; ++p)
            for (int64_t k = 0; k < width; ++k) dest[p * of_column + k * of_channel] = pixels[p][k];
    }

    const WindowSum<T>& sum_;
    const KernelSet<T>& kernels_;
    const int64_t nr_, panels_;
    const bool channels_adjacent_;  // in dest
    const PlaneLayout layout_;
    const Blocks blocks_;
    const PaddedTile<T> padded_tile_;
    const int64_t plane_;         // elements of a plane
    const int64_t class_pixels_;  // of a block of rows, at most
    std::vector<Class> classes_;
};

}  // namespace

struct DirectChannelsMethod : DirectMethod<DirectChannelsDriver> {
    static constexpr const char* name = "direct-channels";

    static Work work(const WorkSizes& sizes) {
        Work work = sizes.common();
        sizes.for_phases([&](double count, double height, double width, double taps) {
            const TileGrid grid(height * width, sizes.tile.mr, sizes.vectors(sizes.rows), sizes.tile.nr_vectors);
            work[WorkKind::cycles] += count * sizes.groups * sizes.channels * taps * grid.cycles;
            work[WorkKind::tiles] += count * sizes.groups * grid.tiles;
        });
        sizes.add_padded_tile(work);
        sizes.add_result(work, true);
        return work;
    }

    template <class T>
    static void describe(const WindowSum<T>& sum, const DirectChannelsDriver<T>& driver, const KernelSet<T>& kernels,
                         PassPlan& text) {
        const PlaneLayout& layout = driver.layout();
        text.tile = std::to_string(kernels.mr) + " pixels x " + std::to_string(kernels.nr) + " channels";
        text.block =
            lines_of_a_group(driver.blocks().unit_rows * layout.h.classes[0].step) + sums_of(sum.channels, layout);
        text.reason = "few channels: vectors over the channels of the result, pixels of a padded tile are broadcast" +
                      phases_note(layout.h.classes.size() * layout.w.classes.size());
    }
};

template const Method<WindowSum<float>>& method_row<DirectChannelsMethod, WindowSum<float>>();
template const Method<WindowSum<double>>& method_row<DirectChannelsMethod, WindowSum<double>>();

}  // namespace convx
