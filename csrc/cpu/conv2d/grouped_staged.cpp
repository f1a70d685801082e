// Forward and input gradient of groups of few channels in any memory order, and depthwise ones of any window:
//
//   dest[n, k, i, j] = sum over channel c of k's group, tap of weight[k, c, tap] * source[n, c, h(tap, i), w(tap, j)]
//
// A unit is a block of rows of a few groups of one image: its source is staged (staging.h), then the kernels run over
// it, phase by phase where a stride makes several. The order of every sum is channel by channel, tap by tap, in one go:
// the same bits for any thread count, batch and memory layout.
#include "cpu/conv2d/grouped_staged.h"

#include <algorithm>

#include "common/rounding.h"
#include "cpu/conv2d/reference.h"

namespace convx {

namespace {

// One group's staged rows in a 32 KiB L1 beside what streams through; sixteen channels' in L2.
constexpr int64_t staged_bytes_of_group = 20 * 1024;
constexpr int64_t staged_bytes_of_block = 192 * 1024;
// A line of floats: fewer channels would read lines of channels-last memory several times.
constexpr int64_t adjacent_channels = 16;
int64_t most_taps(const StagedAxis& axis) {
    size_t most = 0;
    for (const StagedAxis::Class& of : axis.classes) most = std::max(most, of.taps.size());
    return static_cast<int64_t>(most);
}

int64_t pairs(const StagedAxis& axis) {
    int64_t count = 0;
    for (const StagedAxis::Class& of : axis.classes) count += of.positions * static_cast<int64_t>(of.taps.size());
    return count;
}

}  // namespace

GroupedSizes grouped_sizes(const StagedAxis& h, const StagedAxis& w, int64_t channels, int64_t rows) {
    GroupedSizes sizes;
    sizes.channels = channels;
    sizes.rows = rows;
    sizes.taps = most_taps(h) * most_taps(w);
    sizes.source_pitch = StagedRow(w).pitch;
    sizes.dest_pitch = w.most_positions();
    sizes.classes_w = static_cast<int64_t>(w.classes.size());
    sizes.positions_h = h.most_positions();
    sizes.flops = 2 * channels * rows * pairs(h) * pairs(w);
    return sizes;
}

GroupedBlocks staged_blocks(const GroupedSizes& sizes, const StagedAxis& h, int64_t groups, int64_t item_bytes,
                            bool channels_inside, bool through_scratch) {
    GroupedBlocks blocks;
    blocks.through_scratch = through_scratch;
    if (channels_inside)
        blocks.stage_groups = std::min(groups, ceil_div(adjacent_channels, std::max(sizes.channels, sizes.rows)));
    const int64_t row_bytes = blocks.stage_groups * sizes.channels * sizes.source_pitch * item_bytes;
    // Neighbouring blocks stage their common rows twice. Where a block in L1 would have fewer new rows than twice a
    // window, L2 it is: a 9x1 window over a photo staged every row nine times (2.7 to 4.0 ms on four threads, now 1.3
    // to 1.5).
    const bool fits_l1 = 3 * h.reach(1) * row_bytes <= staged_bytes_of_group;
    const int64_t target = channels_inside || !fits_l1 ? staged_bytes_of_block : staged_bytes_of_group;
    int64_t rows = std::max<int64_t>(sizes.positions_h, 1);
    if (h.reach(rows) * row_bytes > target) {
        const int64_t beyond = h.reach(1) - h.advance;  // rows that neighbouring blocks share
        rows = std::clamp((target / row_bytes - beyond) / h.advance, int64_t{1}, rows);
        rows = ceil_div(sizes.positions_h, ceil_div(sizes.positions_h, rows));
    }
    blocks.block_rows = rows;
    blocks.staged_rows = h.reach(rows);
    blocks.staged_elements = blocks.stage_groups * sizes.channels * blocks.staged_rows * sizes.source_pitch;
    return blocks;
}

std::string rows_of_groups(const GroupedBlocks& blocks) {
    return std::to_string(blocks.block_rows) + " rows of " + std::to_string(blocks.stage_groups) +
           (blocks.stage_groups == 1 ? " group" : " groups");
}

namespace {

GroupedBlocks plan_blocks(const GroupedSizes& sizes, const StagedAxis& h, int64_t batch, int64_t groups,
                          int64_t item_bytes, bool channels_inside, bool through_scratch) {
    GroupedBlocks blocks = staged_blocks(sizes, h, groups, item_bytes, channels_inside, through_scratch);
    const int64_t row_blocks = ceil_div(sizes.positions_h, blocks.block_rows);
    const int64_t units = batch * ceil_div(groups, blocks.stage_groups) * row_blocks;
    const int64_t unit_flops = std::max<int64_t>(sizes.flops * blocks.stage_groups / row_blocks, 1);
    blocks.task_units =
        std::clamp(grouped_task_flops / unit_flops, int64_t{1}, std::max<int64_t>(units / grouped_wanted_tasks, 1));
    return blocks;
}

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const GroupedBlocks& blocks, const GroupedSizes& sizes, int64_t lanes)
        : staged(parts.take<T>(blocks.staged_elements + lanes)),
          weights(parts.take<T>(sizes.channels * sizes.taps * sizes.rows)), bias(parts.take<T>(sizes.rows)),
          pads(parts.take<T>(blocks.stage_groups * sizes.channels)),
          result(parts.take<T>(
              blocks.through_scratch
                  ? blocks.stage_groups * sizes.rows * sizes.classes_w * blocks.block_rows * sizes.dest_pitch + lanes
                  : 0)),
          bytes(parts.bytes()) {}
    T* staged;   // [channel][place row][place]
    T* weights;  // of one group and class, in panels
    T* bias;     // of one group
    T* pads;     // a border value for each channel
    T* result;   // [channel][class of columns][row][column], where dest takes no vectors of pixels
    int64_t bytes;
};

// Where the taps of a class find their factors.
struct ClassTaps {
    std::vector<int64_t> sources;  // from the place of a pixel
    std::vector<int64_t> weights;  // from the first weight of a row
};

template <class T>
class Driver {
public:
    Driver(const WindowSum<T>& sum, const StagedAxis& h, const StagedAxis& w, const KernelSet<T>& kernels)
        : sum_(sum), h_(h), w_(w), kernels_(kernels), stage_(h, w, sum.source, sum.pad(), kernels),
          sizes_(grouped_sizes(h, w, sum.channels, sum.rows)),
          channels_inside_(sum.dest.shape[1] > 1 && sum.dest.stride[1] == 1 && sum.dest.stride[3] != 1),
          direct_(w.classes.size() == 1 && sum.dest.stride[3] == 1),
          blocks_(plan_blocks(sizes_, h, sum.batch, sum.groups, sizeof(T),
                              channels_inside_ || Stage<T>::channels_adjacent(sum.source), !direct_)),
          plane_(blocks_.staged_rows * sizes_.source_pitch) {
        for (const StagedAxis::Class& of_h : h.classes)
            for (const StagedAxis::Class& of_w : w.classes) taps_.push_back(find_taps(of_h, of_w));
    }

    const GroupedBlocks& blocks() const { return blocks_; }
    const GroupedSizes& sizes() const { return sizes_; }

    TaskPlan tasks() const {
        return {ceil_div(units(), blocks_.task_units), sizes_.flops * sum_.batch * sum_.groups, 0,
                Scratch<T>(ScratchParts(), blocks_, sizes_, kernels_.lanes).bytes};
    }

    void run(const TaskPlan& plan) const {
        const int64_t group_blocks = ceil_div(sum_.groups, blocks_.stage_groups);
        const int64_t row_blocks = ceil_div(sizes_.positions_h, blocks_.block_rows), units = this->units();
        TaskRunner(plan).run(plan.tasks, [&](int64_t task, ScratchParts parts) {
            const Scratch<T> scratch(parts, blocks_, sizes_, kernels_.lanes);
            std::fill_n(scratch.pads, blocks_.stage_groups * sum_.channels, sum_.pad());
            const int64_t last = std::min(units, (task + 1) * blocks_.task_units);
            for (int64_t unit = task * blocks_.task_units; unit < last; ++unit)
                run_unit(unit / row_blocks / group_blocks, unit / row_blocks % group_blocks, unit % row_blocks,
                         scratch);
        });
    }

private:
    int64_t units() const {
        return sum_.batch * ceil_div(sum_.groups, blocks_.stage_groups) *
               ceil_div(sizes_.positions_h, blocks_.block_rows);
    }

    ClassTaps find_taps(const StagedAxis::Class& h, const StagedAxis::Class& w) const {
        ClassTaps taps;
        for (int64_t c = 0; c < sum_.channels; ++c)
            for (const StagedAxis::Tap& r : h.taps)
                for (const StagedAxis::Tap& s : w.taps) {
                    taps.sources.push_back(c * plane_ + r.offset * sizes_.source_pitch + stage_.row().at(s.offset));
                    taps.weights.push_back(c * sum_.weight_channel + r.kernel_index * sum_.weight_h +
                                           s.kernel_index * sum_.weight_w);
                }
        return taps;
    }

    void run_unit(int64_t n, int64_t group_block, int64_t row_block, const Scratch<T>& scratch) const {
        const int64_t first_group = group_block * blocks_.stage_groups;
        const int64_t groups = std::min(blocks_.stage_groups, sum_.groups - first_group);
        const int64_t first = row_block * blocks_.block_rows;
        const int64_t rows = std::min(blocks_.block_rows, sizes_.positions_h - first);
        const int64_t first_place = first * h_.advance;
        stage_.fill(scratch.staged, plane_, n, first_group * sum_.channels, groups * sum_.channels, first_place,
                    std::min(h_.reach(rows), h_.places() - first_place), scratch.pads);
        for (size_t i = 0; i < h_.classes.size(); ++i) {
            const StagedAxis::Class& h = h_.classes[i];
            const int64_t class_rows = std::min(rows, h.positions - first);
            if (class_rows <= 0) continue;
            for (int64_t g = 0; g < groups; ++g)
                for (size_t j = 0; j < w_.classes.size(); ++j)
                    run_class(n, first_group, g, i, j, first, class_rows, scratch);
            if (!direct_)
                store_result(n, first_group * sum_.rows, groups * sum_.rows, h.first + first * h.step, h.step,
                             class_rows, scratch.result);
        }
    }

    // One group's pixels of one class.
    void run_class(int64_t n, int64_t first_group, int64_t group, size_t class_h, size_t class_w, int64_t first,
                   int64_t rows, const Scratch<T>& scratch) const {
        const int64_t channel = (first_group + group) * sum_.rows;
        const StagedAxis::Class& h = h_.classes[class_h];
        const ClassTaps& taps = taps_[class_h * w_.classes.size() + class_w];
        GroupedTile<T> tile;
        tile.source = scratch.staged + group * sum_.channels * plane_;
        tile.source_row = h_.advance * sizes_.source_pitch;
        tile.offsets = taps.sources.data();
        tile.taps = static_cast<int64_t>(taps.sources.size());
        tile.weights = pack_weights(sum_.weight + (first_group + group) * sum_.weight_group, taps, scratch.weights);
        tile.bias = nullptr;
        if (sum_.bias) {
            for (int64_t k = 0; k < sum_.rows; ++k) scratch.bias[k] = sum_.bias[(channel + k) * sum_.bias_stride];
            tile.bias = scratch.bias;
        }
        tile.relu = sum_.relu;
        tile.channels = sum_.rows;
        tile.rows = rows;
        tile.columns = w_.classes[class_w].positions;
        if (direct_) {
            tile.dest = sum_.dest.at(n, channel, h.first + first * h.step, 0);
            tile.dest_channel = sum_.dest.stride[1];
            tile.dest_row = h.step * sum_.dest.stride[2];
        } else {
            const int64_t class_size = blocks_.block_rows * sizes_.dest_pitch;
            tile.dest_channel = sizes_.classes_w * class_size;
            tile.dest =
                scratch.result + group * sum_.rows * tile.dest_channel + static_cast<int64_t>(class_w) * class_size;
            tile.dest_row = sizes_.dest_pitch;
        }
        kernels_.grouped_tile(tile);
    }

    const T* pack_weights(const T* from, const ClassTaps& taps, T* to) const {
        T* const packed = to;
        for (int64_t panel = 0; panel < sum_.rows; panel += grouped_panel) {
            const int64_t width = std::min(grouped_panel, sum_.rows - panel);
            for (const int64_t offset : taps.weights)
                for (int64_t k = 0; k < width; ++k) *to++ = from[(panel + k) * sum_.weight_row + offset];
        }
        return packed;
    }

    // Rows of all classes of columns to their places in dest.
    void store_result(int64_t n, int64_t first_channel, int64_t channels, int64_t first_row, int64_t row_step,
                      int64_t rows, const T* result) const {
        const int64_t class_size = blocks_.block_rows * sizes_.dest_pitch;
        const int64_t channel_size = sizes_.classes_w * class_size;
        const int64_t step = sum_.dest.stride[3];
        const std::vector<StagedAxis::Class>& classes = w_.classes;
        for (int64_t i = 0; i < rows; ++i, result += sizes_.dest_pitch) {
            T* to = sum_.dest.at(n, first_channel, first_row + i * row_step, 0);
            if (channels_inside_) {
                for (size_t j = 0; j < classes.size(); ++j)
                    store_transposed(to + classes[j].first * step, classes[j].step * step,
                                     result + static_cast<int64_t>(j) * class_size, channel_size, channels,
                                     classes[j].positions);
                continue;
            }
            for (int64_t c = 0; c < channels; ++c, to += sum_.dest.stride[1]) {
                const T* from = result + c * channel_size;
                if (step == 1 && classes.size() == 2) {
                    kernels_.join_row(to, from, from + class_size, sum_.dest.shape[3]);
                    continue;
                }
                for (size_t j = 0; j < classes.size(); ++j)
                    for (int64_t x = 0; x < classes[j].positions; ++x)
                        to[(classes[j].first + x * classes[j].step) * step] =
                            from[static_cast<int64_t>(j) * class_size + x];
            }
        }
    }

    void store_transposed(T* to, int64_t step, const T* from, int64_t channel_size, int64_t channels,
                          int64_t pixels) const {
        constexpr int64_t at_once = 16;
        const T* row[at_once];
        for (int64_t c = 0; c < channels; c += at_once) {
            const int64_t count = std::min(at_once, channels - c);
            for (int64_t i = 0; i < count; ++i) row[i] = from + (c + i) * channel_size;
            kernels_.pack_transposed(to + c, step, row, static_cast<int>(count), pixels);
        }
    }

    const WindowSum<T>& sum_;
    const StagedAxis &h_, &w_;
    const KernelSet<T>& kernels_;
    const Stage<T> stage_;
    const GroupedSizes sizes_;
    const bool channels_inside_;  // dest takes vectors of channels
    const bool direct_;           // dest takes vectors of pixels
    const GroupedBlocks blocks_;
    const int64_t plane_;          // elements of a staged channel
    std::vector<ClassTaps> taps_;  // [class of rows][class of columns]
};

}  // namespace

template <class T>
TaskPlan grouped_staged_tasks(const WindowSum<T>& sum, const StagedAxis& h, const StagedAxis& w,
                              const KernelSet<T>& kernels) {
    return Driver<T>(sum, h, w, kernels).tasks();
}

template <class T>
void run_grouped_staged(const WindowSum<T>& sum, const StagedAxis& h, const StagedAxis& w, const TaskPlan& tasks,
                        const KernelSet<T>& kernels) {
    Driver<T>(sum, h, w, kernels).run(tasks);
}

template <class T>
void describe_grouped_staged(const WindowSum<T>& sum, const StagedAxis& h, const StagedAxis& w,
                             const KernelSet<T>& kernels, PassPlan& text) {
    const Driver<T> driver(sum, h, w, kernels);
    const int64_t panel = std::min(sum.rows, grouped_panel);
    text.tile = std::to_string(panel) + (panel == 1 ? " channel x " : " channels x ") + std::to_string(kernels.lanes) +
                " pixels";
    text.block = rows_of_groups(driver.blocks()) + ", sums of " + std::to_string(sum.channels) +
                 (sum.channels == 1 ? " channel x " : " channels x ") + std::to_string(driver.sizes().taps) + " taps";
    text.reason = is_depthwise(*sum.problem)
                      ? "one channel a group, any window: vectors over pixels of staged rows"
                      : "too few channels a group for the GEMM's tiles: vectors over pixels of staged rows";
    text.reason += phases_note(h.classes.size() * w.classes.size());
}

struct GroupedStagedMethod {
    static constexpr const char* name = "grouped-staged";
    static constexpr Traits traits{};

    struct Plan {
        StagedAxis h, w;
        TaskPlan task_plan;

        const TaskPlan& tasks() const { return task_plan; }
    };

    static Verdict supports(const ConvProblem& problem, ConvPass) { return supports_groups(problem); }
    static bool suits(const ConvProblem& problem, ConvPass, const Kernels&) { return has_few_channels(problem); }

    template <class T>
    static Plan plan(const WindowSum<T>& sum, const KernelSet<T>& kernels) {
        Plan plan{staged_axis(sum.problem->h, sum.forward()), staged_axis(sum.problem->w, sum.forward()), {}};
        plan.task_plan = grouped_staged_tasks(sum, plan.h, plan.w, kernels);
        return plan;
    }

    template <class T>
    static bool run(const WindowSum<T>& sum, const Plan& plan, const KernelSet<T>& kernels) {
        if (sum.border.skips && !all_finite(sum.weight_view)) return false;
        run_grouped_staged(sum, plan.h, plan.w, plan.task_plan, kernels);
        return true;
    }

    template <class T>
    static void describe(const WindowSum<T>& sum, const Plan& plan, const KernelSet<T>& kernels, PassPlan& text) {
        describe_grouped_staged(sum, plan.h, plan.w, kernels, text);
    }
};

template const Method<WindowSum<float>>& method_row<GroupedStagedMethod, WindowSum<float>>();
template const Method<WindowSum<double>>& method_row<GroupedStagedMethod, WindowSum<double>>();
template TaskPlan grouped_staged_tasks(const WindowSum<float>&, const StagedAxis&, const StagedAxis&,
                                       const KernelSet<float>&);
template void run_grouped_staged(const WindowSum<float>&, const StagedAxis&, const StagedAxis&, const TaskPlan&,
                                 const KernelSet<float>&);
template void describe_grouped_staged(const WindowSum<float>&, const StagedAxis&, const StagedAxis&,
                                      const KernelSet<float>&, PassPlan&);
template TaskPlan grouped_staged_tasks(const WindowSum<double>&, const StagedAxis&, const StagedAxis&,
                                       const KernelSet<double>&);
template void run_grouped_staged(const WindowSum<double>&, const StagedAxis&, const StagedAxis&, const TaskPlan&,
                                 const KernelSet<double>&);
template void describe_grouped_staged(const WindowSum<double>&, const StagedAxis&, const StagedAxis&,
                                      const KernelSet<double>&, PassPlan&);

}  // namespace convx
