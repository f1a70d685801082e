// Direct convolution with vectors over pixels, of any number of groups and in any memory order:
//
//   dest[n, k, i, j] = sum over channel c of k's group, tap of weight[k, c, tap] * source[n, c, h(tap, i), w(tap, j)]
//
// Work: a unit is a row block of a few groups of one image. Its source is copied into a padded tile (padded_tile.h),
// then the kernels run over it, phase by phase where the adjoint of a stride makes several. Rows go straight to the
// result where its columns are adjacent; where rows are short, all of a unit are one run of positions, so that vectors
// are full whatever the width is, and what lies between the rows is dropped on the way to the result. The order of
// every sum is channel by channel, row by row of the window: the same bits for any thread count, batch and memory
// layout.
#include "cpu/conv2d/direct.h"

#include <algorithm>

#include "common/rounding.h"

namespace convx {

namespace {

// The padded tile of one group where rows are one run, which streams through L1; that of sixteen channels in L2.
constexpr int64_t tile_bytes_run = 64 * 1024;
constexpr int64_t tile_bytes_l2 = 192 * 1024;
// A cache line of floats: fewer channels would read lines of channels-last memory several times.
constexpr int64_t adjacent_channels = 16;

}  // namespace

PlaneLayout spatial_layout(const ConvProblem& problem, bool forward) {
    if (forward) return {phases_of_forward(problem.h), phases_of_forward(problem.w)};
    return {by_offset(phases_of_adjoint(problem.h)), by_offset(phases_of_adjoint(problem.w))};
}

SpatialBlocks spatial_blocks(const PlaneLayout& layout, int64_t groups, int64_t channels, int64_t rows,
                             int64_t item_bytes, bool channels_inside, int64_t l1_bytes) {
    SpatialBlocks blocks;
    if (channels_inside) blocks.groups = std::min(groups, ceil_div(adjacent_channels, std::max(channels, rows)));
    const int64_t row_bytes = blocks.groups * channels * layout.planes() * layout.pitch * item_bytes;
    // Neighbouring units copy their common rows twice. Where a unit in L1 would have fewer new rows than twice a
    // window, L2 it is: a 9x1 window over a photo copied every row nine times (2.7 to 4.0 ms on four threads, now 1.3
    // to 1.5).
    const bool fits_l1 = 3 * layout.rows_of(1) * row_bytes <= l1_bytes;
    const int64_t target = channels_inside || !fits_l1 ? tile_bytes_l2 : l1_bytes;
    const int64_t height = layout.h.positions();
    blocks.rows = height;
    if (layout.rows_of(height) * row_bytes > target) {
        const int64_t most = std::max<int64_t>(target / row_bytes - layout.reach, 1);
        blocks.rows = even_part(height, std::min(most, height));
    }
    return blocks;
}

std::string rows_of_groups(const SpatialBlocks& blocks) {
    return std::to_string(blocks.rows) + " rows of " + std::to_string(blocks.groups) +
           (blocks.groups == 1 ? " group" : " groups");
}

namespace {

SpatialBlocks plan_blocks(const PlaneLayout& layout, int64_t batch, int64_t groups, int64_t channels, int64_t rows,
                          int64_t item_bytes, bool channels_inside, bool one_run) {
    SpatialBlocks blocks = spatial_blocks(layout, groups, channels, rows, item_bytes, channels_inside,
                                          one_run ? tile_bytes_run : tile_bytes_l1);
    const int64_t group_blocks = batch * ceil_div(groups, blocks.groups), height = layout.h.positions();
    const int64_t row_flops = 2 * blocks.groups * channels * rows * layout.all_taps() * layout.w.positions();
    blocks.rows = even_part(height, std::min(blocks.rows, unit_rows(layout, group_blocks, row_flops)));
    blocks.task_units = units_of_a_task(group_blocks * ceil_div(height, blocks.rows), blocks.rows * row_flops);
    return blocks;
}

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, int64_t tile, int64_t result_size)
        : planes(parts.take<T>(tile)), result(parts.take<T>(result_size)), bytes(parts.bytes()) {}
    T* planes;  // [channel][plane]
    T* result;  // [output channel][class of columns][row][column], where dest does not take the sums as they come
    int64_t bytes;
};

// The pixels of the result that have the same taps, and where these find their factors.
struct Class {
    const PhasedAxis::Class *h, *w;
    std::vector<int64_t> sources;  // from the place of a pixel
    std::vector<int64_t> weights;  // from the first weight of an output channel
    int64_t taps_before;           // of the classes before, all channels
};

// Whether rows leave so many lanes of their last vector empty that a run over all of them is worth a copy of the
// result: about 4 cycles a vector.
bool fills_run(const PlaneLayout& layout, int64_t channels, int64_t lanes) {
    const int64_t depth = channels * most_taps(layout);
    return round_up(layout.w.positions(), lanes) * depth > layout.pitch * (depth + 4);
}

template <class T>
class DirectSpatialDriver {
public:
    DirectSpatialDriver(const WindowSum<T>& sum, const KernelSet<T>& kernels)
        : sum_(sum), kernels_(kernels), layout_(spatial_layout(*sum.problem, sum.forward())),
          channels_inside_(channels_adjacent(sum.dest)), one_run_(fills_run(layout_, sum.channels, kernels.lanes)),
          in_place_(!one_run_ && layout_.w.classes.size() == 1 && sum.dest.stride[3] == 1),
          blocks_(plan_blocks(layout_, sum.batch, sum.groups, sum.channels, sum.rows, sizeof(T),
                              channels_inside_ || channels_adjacent(sum.source), one_run_)),
          padded_tile_(layout_, strides_of(sum.source.stride), sum.pad(), kernels),
          plane_(layout_.plane_size(blocks_.rows, kernels.lanes)), panel_(even_part(sum.rows, direct_panel)),
          row_sums_(one_run_ ? layout_.pitch : layout_.w.positions()),
          class_size_(in_place_ ? 0 : blocks_.rows * row_sums_) {
        for (size_t i = 0; i < layout_.h.classes.size(); ++i)
            for (size_t j = 0; j < layout_.w.classes.size(); ++j) classes_.push_back(find_class(i, j));
        for (size_t k = 1; k < classes_.size(); ++k)
            classes_[k].taps_before =
                classes_[k - 1].taps_before + static_cast<int64_t>(classes_[k - 1].weights.size());
    }

    const SpatialBlocks& blocks() const { return blocks_; }
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
        runner.run(sum_.groups, [&](int64_t group, ScratchParts) { pack_group(group, shared); });
        runner.run(plan.tasks, [&](int64_t task, ScratchParts parts) {
            const Scratch<T> scratch = this->scratch(parts);
            const int64_t last = std::min(units, (task + 1) * blocks_.task_units);
            for (int64_t unit = task * blocks_.task_units; unit < last; ++unit)
                run_unit(unit_of(unit), shared, scratch);
        });
    }

private:
    struct Unit {
        int64_t n = 0, group = 0, groups = 0, first = 0, rows = 0;
    };

    int64_t group_weights() const { return sum_.rows * sum_.channels * layout_.all_taps(); }
    // Weights: [group][class][panel][channel, tap][output channel].
    DirectShared<T> shared(ScratchParts parts) const {
        return {parts, sum_.groups * group_weights(), sum_.groups * sum_.rows};
    }
    Scratch<T> scratch(ScratchParts parts) const {
        return {parts, blocks_.groups * sum_.channels * layout_.planes() * plane_,
                blocks_.groups * sum_.rows * channel_size() + kernels_.lanes};
    }

    int64_t row_blocks() const { return ceil_div(layout_.h.positions(), blocks_.rows); }
    int64_t units() const { return sum_.batch * ceil_div(sum_.groups, blocks_.groups) * row_blocks(); }
    int64_t channel_size() const { return static_cast<int64_t>(layout_.w.classes.size()) * class_size_; }

    Unit unit_of(int64_t unit) const {
        const int64_t row_blocks = this->row_blocks(), group_blocks = ceil_div(sum_.groups, blocks_.groups);
        const int64_t group = unit / row_blocks % group_blocks * blocks_.groups,
                      first = unit % row_blocks * blocks_.rows;
        return {unit / row_blocks / group_blocks, group, std::min(blocks_.groups, sum_.groups - group), first,
                std::min(blocks_.rows, layout_.h.positions() - first)};
    }

    Class find_class(size_t i, size_t j) const {
        const std::vector<int32_t> offsets = layout_.offsets(i, j, sum_.channels, plane_);
        Class one{&layout_.h.classes[i], &layout_.w.classes[j], {offsets.begin(), offsets.end()}, {}, 0};
        for (int64_t c = 0; c < sum_.channels; ++c)
            for (const PhasedAxis::Tap& r : one.h->taps)
                for (const PhasedAxis::Tap& s : one.w->taps)
                    one.weights.push_back(c * sum_.weight_channel + r.kernel_index * sum_.weight_h +
                                          s.kernel_index * sum_.weight_w);
        return one;
    }

    const T* source_of(const Unit& unit) const { return sum_.source.at(unit.n, unit.group * sum_.channels, 0, 0); }

    // Without a prefetch of what comes next: it takes 5 to 27 % more time on an Intel Xeon with AVX-512.
    void run_unit(const Unit& unit, const DirectShared<T>& shared, const Scratch<T>& scratch) const {
        padded_tile_.copy(scratch.planes, plane_, source_of(unit), unit.groups * sum_.channels, unit.first, unit.rows);
        const size_t classes_w = layout_.w.classes.size();
        for (size_t i = 0; i < classes_.size(); i += classes_w) {
            const PhasedAxis::Class& h = *classes_[i].h;
            const int64_t rows = std::min(unit.rows, h.positions - unit.first);
            if (rows <= 0) continue;
            for (int64_t group = 0; group < unit.groups; ++group)
                for (size_t j = 0; j < classes_w; ++j) run_class(unit, group, i + j, rows, shared, scratch);
            if (!in_place_) store_result(unit, h, rows, scratch.result);
        }
    }

    // One group's pixels of one class.
    void run_class(const Unit& unit, int64_t group, size_t k, int64_t rows, const DirectShared<T>& shared,
                   const Scratch<T>& scratch) const {
        const Class& one = classes_[k];
        const int64_t channel = (unit.group + group) * sum_.rows;
        DirectTileArgs<T> tile;
        tile.source_row = layout_.row_step();
        tile.offsets = one.sources.data();
        tile.taps = static_cast<int64_t>(one.sources.size());
        tile.relu = sum_.relu;
        tile.rows = one_run_ ? 1 : rows;
        tile.columns = one_run_ ? (rows - 1) * layout_.pitch + one.w->positions : one.w->positions;
        const T* weights = shared.weights + (unit.group + group) * group_weights() + one.taps_before * sum_.rows;
        T* dest;
        if (in_place_) {
            dest = sum_.dest.at(unit.n, channel, one.h->first + unit.first * one.h->step, 0);
            tile.dest_channel = sum_.dest.stride[1];
            tile.dest_row = one.h->step * sum_.dest.stride[2];
        } else {
            dest = scratch.result + group * sum_.rows * channel_size() +
                   static_cast<int64_t>(k % layout_.w.classes.size()) * class_size_;
            tile.dest_channel = channel_size();
            tile.dest_row = row_sums_;
        }
        for (int64_t panel = 0; panel < sum_.rows; panel += panel_) {
            tile.channels = std::min(panel_, sum_.rows - panel);
            tile.weights = weights + panel * tile.taps;
            tile.bias = sum_.bias ? shared.bias + channel + panel : nullptr;
            tile.source = scratch.planes + group * sum_.channels * layout_.planes() * plane_;
            tile.dest = dest + panel * tile.dest_channel;
            kernels_.direct_tile(tile);
        }
    }

    void pack_group(int64_t group, const DirectShared<T>& shared) const {
        T* to = shared.weights + group * group_weights();
        const T* from = sum_.weight + group * sum_.weight_group;
        for (const Class& one : classes_)
            for (int64_t panel = 0; panel < sum_.rows; panel += panel_) {
                const int64_t width = std::min(panel_, sum_.rows - panel);
                for (const int64_t offset : one.weights)
                    for (int64_t k = 0; k < width; ++k) *to++ = from[(panel + k) * sum_.weight_row + offset];
            }
        for (int64_t k = group * sum_.rows; sum_.bias && k < (group + 1) * sum_.rows; ++k)
            shared.bias[k] = sum_.bias[k * sum_.bias_stride];
    }

    // Rows of all classes of columns to their places in dest.
    void store_result(const Unit& unit, const PhasedAxis::Class& h, int64_t rows, const T* result) const {
        const int64_t channels = unit.groups * sum_.rows, step = sum_.dest.stride[3];
        const std::vector<PhasedAxis::Class>& classes = layout_.w.classes;
        if (step == 1 && classes.size() == 1) {
            const LaneRun whole{0, static_cast<int32_t>(sum_.dest.shape[3]), 0};
            T* to = sum_.dest.at(unit.n, unit.group * sum_.rows, h.first + unit.first * h.step, 0);
            for (int64_t c = 0; c < channels; ++c, to += sum_.dest.stride[1], result += channel_size())
                kernels_.pack_lanes(to, h.step * sum_.dest.stride[2], result, row_sums_, rows, &whole, 1, whole.count,
                                    1, T(0));
            return;
        }
        for (int64_t i = 0; i < rows; ++i, result += row_sums_) {
            T* to = sum_.dest.at(unit.n, unit.group * sum_.rows, h.first + (unit.first + i) * h.step, 0);
            if (channels_inside_) {
                for (size_t j = 0; j < classes.size(); ++j)
                    store_transposed(to + classes[j].first * step, classes[j].step * step,
                                     result + static_cast<int64_t>(j) * class_size_, channels, classes[j].positions);
                continue;
            }
            for (int64_t c = 0; c < channels; ++c, to += sum_.dest.stride[1]) {
                const T* from = result + c * channel_size();
                if (step == 1 && classes.size() == 2) {
                    kernels_.join_row(to, from, from + class_size_, sum_.dest.shape[3]);
                    continue;
                }
                for (size_t j = 0; j < classes.size(); ++j)
                    for (int64_t x = 0; x < classes[j].positions; ++x)
                        to[(classes[j].first + x * classes[j].step) * step] =
                            from[static_cast<int64_t>(j) * class_size_ + x];
            }
        }
    }

    void store_transposed(T* to, int64_t step, const T* from, int64_t channels, int64_t pixels) const {
        constexpr int64_t at_once = 16;
        const T* row[at_once];
        for (int64_t c = 0; c < channels; c += at_once) {
            const int64_t count = std::min(at_once, channels - c);
            for (int64_t i = 0; i < count; ++i) row[i] = from + (c + i) * channel_size();
            kernels_.pack_transposed(to + c, step, row, static_cast<int>(count), pixels);
        }
    }

    const WindowSum<T>& sum_;
    const KernelSet<T>& kernels_;
    const PlaneLayout layout_;
    const bool channels_inside_;  // dest takes vectors of channels
    const bool one_run_;          // of all rows of a unit
    const bool in_place_;         // dest takes the sums as they come
    const SpatialBlocks blocks_;
    const PaddedTile<T> padded_tile_;
    const int64_t plane_;                  // elements of a plane
    const int64_t panel_;                  // output channels of a tile
    const int64_t row_sums_, class_size_;  // of an output channel, where they are not in place
    std::vector<Class> classes_;
};

}  // namespace

template <class T>
TaskPlan direct_spatial_tasks(const WindowSum<T>& sum, const KernelSet<T>& kernels) {
    return DirectSpatialDriver<T>(sum, kernels).tasks();
}

template <class T>
void run_direct_spatial(const WindowSum<T>& sum, const KernelSet<T>& kernels) {
    DirectSpatialDriver<T>(sum, kernels).run();
}

struct DirectSpatialMethod : DirectMethod<DirectSpatialDriver> {
    static constexpr const char* name = "direct-spatial";

    static Work work(const WorkSizes& sizes) {
        Work work = sizes.common();
        const double rows = std::min(double(direct_panel), sizes.rows);
        const double vectors = std::min(std::floor(sizes.tile.sums / rows), 8.0);
        sizes.for_phases([&](double count, double height, double width, double taps) {
            const double run = sizes.vectors(height * (width + sizes.taps_w() - 1));
            const TileGrid grid(sizes.rows, rows, std::min(run, height * sizes.vectors(width)), vectors);
            work[WorkKind::cycles] += count * sizes.groups * sizes.channels * taps * grid.cycles;
            work[WorkKind::tiles] += count * sizes.groups * grid.tiles;
        });
        sizes.add_padded_tile(work);
        sizes.add_result(work, false);
        return work;
    }

    template <class T>
    static void describe(const WindowSum<T>& sum, const DirectSpatialDriver<T>& driver, const KernelSet<T>& kernels,
                         PassPlan& text) {
        const PlaneLayout& layout = driver.layout();
        const int64_t panel = std::min(sum.rows, direct_panel);
        text.tile = std::to_string(panel) + (panel == 1 ? " channel x " : " channels x ") +
                    std::to_string(kernels.lanes) + " pixels";
        text.block = rows_of_groups(driver.blocks()) + sums_of(sum.channels, layout);
        text.reason =
            is_depthwise(*sum.problem) ? "one channel a group, any window" : "too few channels for the GEMM's tiles";
        text.reason +=
            ": vectors over pixels of a padded tile" + phases_note(layout.h.classes.size() * layout.w.classes.size());
    }
};

template <class T>
void describe_direct_spatial(const WindowSum<T>& sum, const KernelSet<T>& kernels, PassPlan& text) {
    DirectSpatialMethod::describe(sum, DirectSpatialDriver<T>(sum, kernels), kernels, text);
}

template const Method<WindowSum<float>>& method_row<DirectSpatialMethod, WindowSum<float>>();
template const Method<WindowSum<double>>& method_row<DirectSpatialMethod, WindowSum<double>>();
template TaskPlan direct_spatial_tasks(const WindowSum<float>&, const KernelSet<float>&);
template TaskPlan direct_spatial_tasks(const WindowSum<double>&, const KernelSet<double>&);
template void run_direct_spatial(const WindowSum<float>&, const KernelSet<float>&);
template void run_direct_spatial(const WindowSum<double>&, const KernelSet<double>&);
template void describe_direct_spatial(const WindowSum<float>&, const KernelSet<float>&, PassPlan&);
template void describe_direct_spatial(const WindowSum<double>&, const KernelSet<double>&, PassPlan&);

}  // namespace convx
