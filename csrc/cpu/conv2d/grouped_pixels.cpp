// Groups of few channels in NCHW: forward and input gradient with vectors over pixels.
//
// A unit is a band of lines of one group of one image. Its source is staged as planes with their border written out
// (staged_planes.h); all lines of the band are one run of positions, so that vectors are full whatever the width is,
// and what lies between the lines is dropped on the way to the result. Sums have the order of grouped_staged.cpp, which
// takes NHWC: the same bits.
#include "cpu/conv2d/grouped.h"
#include "cpu/runtime/run_tasks.h"

#include <algorithm>

#include "common/rounding.h"

namespace convx {

namespace {

constexpr int64_t staged_bytes = 64 * 1024;

struct Blocks {
    int64_t tile_rows = 1;   // channels of the result of one tile
    int64_t band_lines = 1;  // positions of the largest phase
    int64_t task_units = 1;
};

PlaneLayout layout_of(const ConvProblem& problem, bool forward) {
    if (forward) return {phases_of_forward(problem.h), phases_of_forward(problem.w)};
    PlaneLayout layout(phases_of_adjoint(problem.h), phases_of_adjoint(problem.w));
    // The order of the sums in grouped_staged.cpp.
    for (PhasedAxis* axis : {&layout.h, &layout.w})
        for (PhasedAxis::Class& one : axis->classes)
            std::sort(one.taps.begin(), one.taps.end(),
                      [](const PhasedAxis::Tap& a, const PhasedAxis::Tap& b) { return a.offset < b.offset; });
    return layout;
}

Blocks plan_blocks(const PlaneLayout& layout, int64_t batch, int64_t groups, int64_t channels, int64_t rows,
                   int64_t item_bytes) {
    Blocks blocks;
    blocks.tile_rows = ceil_div(rows, ceil_div(rows, grouped_panel));
    const int64_t lines = std::max<int64_t>(layout.h.positions(), 1);
    const int64_t line_bytes = channels * layout.planes() * layout.pitch * item_bytes;
    const int64_t fit = staged_bytes / std::max<int64_t>(line_bytes, 1) - layout.reach;
    const int64_t wanted = ceil_div(lines, ceil_div(grouped_wanted_tasks, std::max<int64_t>(batch * groups, 1)));
    const int64_t most = std::clamp(std::min(fit, std::max(wanted, 4 * layout.reach)), int64_t{1}, lines);
    blocks.band_lines = ceil_div(lines, ceil_div(lines, most));
    const int64_t units = batch * groups * ceil_div(lines, blocks.band_lines);
    const int64_t unit_flops =
        2 * channels * rows * layout.all_taps() * blocks.band_lines * std::max<int64_t>(layout.w.positions(), 1);
    blocks.task_units = std::clamp(grouped_task_flops / std::max<int64_t>(unit_flops, 1), int64_t{1},
                                   std::max<int64_t>(units / grouped_wanted_tasks, 1));
    return blocks;
}

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const PlaneLayout& layout, const Blocks& blocks, int64_t channels, int64_t lanes)
        : planes(parts.take<T>(channels * layout.planes() * layout.plane_size(blocks.band_lines, lanes))),
          sums(parts.take<T>(static_cast<int64_t>(layout.w.classes.size()) * blocks.tile_rows * blocks.band_lines *
                             layout.pitch)),
          bytes(parts.bytes()) {}
    T* planes;  // [channel][phase of h][phase of w][plane]
    T* sums;    // [class of columns][row][line * pitch + column]
    int64_t bytes;
};

template <class T>
struct Shared {
    Shared(ScratchParts parts, const PlaneLayout& layout, int64_t groups, int64_t channels, int64_t rows)
        : weights(parts.take<T>(groups * rows * channels * layout.all_taps())), bias(parts.take<T>(groups * rows)),
          bytes(parts.bytes()) {}
    T* weights;  // [group][tile of rows][class][channel][tap][row]
    T* bias;
    int64_t bytes;
};

struct Class {
    const PhasedAxis::Class *h, *w;
    int64_t taps;     // of a channel
    int64_t weights;  // taps of the classes before
    std::vector<int32_t> offsets;
};

template <class T>
class GroupedPixelsDriver {
public:
    GroupedPixelsDriver(const WindowSum<T>& sum, const KernelSet<T>& kernels)
        : sum_(sum), layout_(layout_of(*sum.problem, sum.forward())), kernels_(kernels),
          blocks_(plan_blocks(layout_, sum.batch, sum.groups, sum.channels, sum.rows, sizeof(T))),
          stager_(layout_, strides_of(sum.source.stride), sum.pad(), kernels),
          plane_(layout_.plane_size(blocks_.band_lines, kernels.lanes)), taps_(layout_.all_taps()) {
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
        return {ceil_div(units(), blocks_.task_units), sum_.flops(),
                Shared<T>(ScratchParts(), layout_, sum_.groups, sum_.channels, sum_.rows).bytes,
                Scratch<T>(ScratchParts(), layout_, blocks_, sum_.channels, kernels_.lanes).bytes};
    }

    void run() const {
        const int64_t units = this->units();
        const TaskPlan plan = tasks();
        const TaskRunner runner(plan);
        const Shared<T> shared(ScratchParts(runner.shared()), layout_, sum_.groups, sum_.channels, sum_.rows);
        runner.run(sum_.groups, [&](int64_t group, ScratchParts) { pack_group(group, shared); });
        runner.run(plan.tasks, [&](int64_t task, ScratchParts parts) {
            const Scratch<T> scratch(parts, layout_, blocks_, sum_.channels, kernels_.lanes);
            const int64_t last = std::min(units, (task + 1) * blocks_.task_units);
            for (int64_t unit = task * blocks_.task_units; unit < last; ++unit)
                run_band(band_of(unit), unit + 1 < units ? band_of(unit + 1) : Band{}, shared, scratch);
        });
    }

private:
    int64_t units() const { return sum_.groups * sum_.batch * ceil_div(layout_.h.positions(), blocks_.band_lines); }

    struct Band {
        int64_t group = 0, n = 0, first_line = 0, lines = 0;
    };

    // Neighbouring units lie beside each other in memory.
    Band band_of(int64_t unit) const {
        const int64_t positions = layout_.h.positions(), bands = ceil_div(positions, blocks_.band_lines);
        const int64_t line = unit % bands * blocks_.band_lines;
        return {unit / bands % sum_.groups, unit / bands / sum_.groups, line,
                std::min(blocks_.band_lines, positions - line)};
    }

    T* weights_of(const Shared<T>& shared, int64_t group, int64_t row) const {
        return shared.weights + (group * sum_.rows + row) * sum_.channels * taps_;
    }
    int64_t rows_of(int64_t row) const { return std::min(blocks_.tile_rows, sum_.rows - row); }

    void pack_group(int64_t group, const Shared<T>& shared) const {
        for (int64_t row = 0; row < sum_.rows; row += blocks_.tile_rows) {
            T* to = weights_of(shared, group, row);
            const T* from = sum_.weight + group * sum_.weight_group + row * sum_.weight_row;
            for (const Class& one : classes_)
                for (int64_t c = 0; c < sum_.channels; ++c)
                    for (const PhasedAxis::Tap& r : one.h->taps)
                        for (const PhasedAxis::Tap& s : one.w->taps) {
                            const T* tap = from + c * sum_.weight_channel + r.kernel_index * sum_.weight_h +
                                           s.kernel_index * sum_.weight_w;
                            for (int64_t i = 0; i < rows_of(row); ++i) *to++ = tap[i * sum_.weight_row];
                        }
        }
        for (int64_t k = group * sum_.rows; sum_.bias && k < (group + 1) * sum_.rows; ++k)
            shared.bias[k] = sum_.bias[k * sum_.bias_stride];
    }

    // `next` is what comes after it: staging alone would wait for memory longer than it works.
    void run_band(const Band& band, const Band& next, const Shared<T>& shared, const Scratch<T>& scratch) const {
        stager_.stage(scratch.planes, plane_, sum_.source.at(band.n, band.group * sum_.channels, 0, 0), sum_.channels,
                      band.first_line, band.lines);
        const int64_t tiles =
            ceil_div(sum_.rows, blocks_.tile_rows) * static_cast<int64_t>(classes_.size()) * tiles_of(band.lines);
        ReadAhead<T> ahead;
        if (next.lines > 0)
            ahead = stager_.read_ahead(sum_.source.at(next.n, next.group * sum_.channels, 0, 0), sum_.channels,
                                       next.first_line, next.lines, tiles);
        const size_t classes_w = layout_.w.classes.size();
        const auto [of_image, of_channel, of_row, of_column] = sum_.dest.stride;
        (void)of_image;
        for (int64_t row = 0; row < sum_.rows; row += blocks_.tile_rows)
            for (size_t i = 0; i < classes_.size(); i += classes_w) {
                const PhasedAxis::Class& h = *classes_[i].h;
                const int64_t lines = std::min(band.lines, h.positions - band.first_line);
                if (lines <= 0) continue;
                T* dest = sum_.dest.at(band.n, band.group * sum_.rows + row, h.first + band.first_line * h.step, 0);
                ReadAhead<T> dest_ahead;
                if (of_column == 1)
                    dest_ahead = {dest,
                                  rows_of(row),
                                  of_channel,
                                  lines,
                                  h.step * of_row,
                                  sum_.dest.shape[3],
                                  static_cast<int64_t>(classes_w) * tiles_of(lines)};
                for (size_t j = 0; j < classes_w; ++j)
                    run_class(classes_[i + j], band, lines, row, shared, scratch,
                              scratch.sums + static_cast<int64_t>(j) * class_sums(), ahead, dest_ahead);
                store_lines(dest, h.step * of_row, lines, rows_of(row), scratch.sums);
            }
    }

    int64_t row_sums() const { return blocks_.band_lines * layout_.pitch; }
    int64_t class_sums() const { return blocks_.tile_rows * row_sums(); }
    int64_t tiles_of(int64_t lines) const { return ceil_div(lines * layout_.pitch, tile_positions()); }
    int64_t tile_positions() const {
        return std::min<int64_t>(kernels_.few_channels_limit / blocks_.tile_rows, 8) * kernels_.lanes;
    }

    void run_class(const Class& one, const Band& band, int64_t lines, int64_t row, const Shared<T>& shared,
                   const Scratch<T>& scratch, T* sums, ReadAhead<T>& ahead, ReadAhead<T>& dest_ahead) const {
        FewChannelsRun<T> job{};
        job.offsets = one.offsets.data();
        job.rows = static_cast<int>(rows_of(row));
        job.weights = weights_of(shared, band.group, row) + one.weights * sum_.channels * job.rows;
        job.depth = sum_.channels * one.taps;
        job.dest_stride = row_sums();
        job.bias = sum_.bias ? shared.bias + band.group * sum_.rows + row : nullptr;
        job.relu = sum_.relu;
        const int64_t count = (lines - 1) * layout_.pitch + one.w->positions, tile = tile_positions();
        for (int64_t first = 0; first < count; first += tile) {
            ahead.next();
            dest_ahead.next();
            job.source = scratch.planes + first;
            job.dest = sums + first;
            job.count = std::min(tile, count - first);
            kernels_.few_channels_run(job);
        }
    }

    // Lines of all classes of columns to their places.
    void store_lines(T* dest, int64_t dest_line, int64_t lines, int64_t rows, const T* sums) const {
        const int64_t columns = sum_.dest.shape[3], step = sum_.dest.stride[3], pitch = layout_.pitch;
        const std::vector<PhasedAxis::Class>& classes = layout_.w.classes;
        for (int64_t i = 0; i < rows; ++i, dest += sum_.dest.stride[1], sums += row_sums()) {
            if (step == 1 && classes.size() == 1) {
                const LaneRun whole{0, static_cast<int32_t>(columns), 0};
                kernels_.pack_lanes(dest, dest_line, sums, pitch, lines, &whole, 1, static_cast<int>(columns), 1, T(0));
                continue;
            }
            for (int64_t line = 0; line < lines; ++line) {
                T* to = dest + line * dest_line;
                const T* from = sums + line * pitch;
                if (step == 1 && classes.size() == 2) {
                    kernels_.join_row(to, from, from + class_sums(), columns);
                    continue;
                }
                for (size_t j = 0; j < classes.size(); ++j)
                    for (int64_t x = 0; x < classes[j].positions; ++x)
                        to[(classes[j].first + x * classes[j].step) * step] =
                            from[static_cast<int64_t>(j) * class_sums() + x];
            }
        }
    }

    const WindowSum<T>& sum_;
    const PlaneLayout layout_;
    const KernelSet<T>& kernels_;
    const Blocks blocks_;
    const Stager<T> stager_;
    const int64_t plane_, taps_;
    std::vector<Class> classes_;
};

}  // namespace

struct GroupedPixelsMethod : GroupedMethod<GroupedPixelsDriver> {
    static constexpr const char* name = "grouped-pixels";

    static bool suits(const ConvProblem& problem, ConvPass, const Kernels&) {
        return has_few_channels(problem) && !is_depthwise(problem) && !problem.channels_last;
    }

    template <class T>
    static void describe(const WindowSum<T>& sum, const GroupedPixelsDriver<T>& driver, const KernelSet<T>& kernels,
                         PassPlan& text) {
        const Blocks blocks = driver.blocks();
        const int64_t vecs = std::min<int64_t>(kernels.few_channels_limit / blocks.tile_rows, 8);
        text.tile = std::to_string(blocks.tile_rows) + (blocks.tile_rows == 1 ? " channel x " : " channels x ") +
                    std::to_string(vecs * kernels.lanes) + " pixels";
        text.block = lines_of_a_group(blocks.band_lines * driver.layout().h.classes[0].step) +
                     sums_of(sum.channels, driver.layout());
        text.reason = "too few channels a group for the GEMM's tiles: vectors over pixels of staged planes" +
                      phases_note(driver.layout().h.classes.size() * driver.layout().w.classes.size());
    }
};

template const Method<WindowSum<float>>& method_row<GroupedPixelsMethod, WindowSum<float>>();
template const Method<WindowSum<double>>& method_row<GroupedPixelsMethod, WindowSum<double>>();

}  // namespace convx
