#include "cpu/conv2d/grouped_pixels.h"

#include <algorithm>

#include "common/rounding.h"
#include "cpu/scratch_parts.h"
#include "cpu/thread_pool.h"
#include "cpu/workspace.h"

namespace convx {

namespace {

int64_t all_taps(const PhasedAxis& axis) {
    size_t count = 0;
    for (const PhasedAxis::Class& one : axis.classes) count += one.taps.size();
    return static_cast<int64_t>(count);
}

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const PlaneLayout& layout, const GroupedPixelsBlocks& blocks, int64_t channels,
            int64_t lanes)
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
        : weights(parts.take<T>(groups * rows * channels * all_taps(layout.h) * all_taps(layout.w))),
          bias(parts.take<T>(groups * rows)), bytes(parts.bytes()) {}
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
class Nest {
public:
    Nest(const GroupedConv<T>& conv, const PlaneLayout& layout, const KernelSet<T>& kernels)
        : conv_(conv), layout_(layout), kernels_(kernels),
          blocks_(plan_grouped_pixels(layout, conv.batch, conv.groups, conv.channels, conv.rows, sizeof(T))),
          stager_(layout, {conv.source.stride[0], conv.source.stride[1], conv.source.stride[2], conv.source.stride[3]},
                  conv.pad, kernels),
          plane_(layout.plane_size(blocks_.band_lines, kernels.lanes)), taps_(all_taps(layout.h) * all_taps(layout.w)) {
        int64_t taps = 0;
        for (size_t i = 0; i < layout.h.classes.size(); ++i)
            for (size_t j = 0; j < layout.w.classes.size(); ++j) {
                Class one{&layout.h.classes[i], &layout.w.classes[j], 0, taps,
                          layout.offsets(i, j, conv.channels, plane_)};
                one.taps = static_cast<int64_t>(one.h->taps.size() * one.w->taps.size());
                taps += one.taps;
                classes_.push_back(std::move(one));
            }
    }

    void run(int64_t flops) {
        const int64_t units = conv_.groups * conv_.batch * ceil_div(layout_.h.positions(), blocks_.band_lines);
        const int64_t tasks = ceil_div(units, blocks_.task_units);
        const PassScratch size =
            grouped_pixels_scratch(layout_, blocks_, conv_.groups, conv_.channels, conv_.rows, kernels_);
        const int width = static_cast<int>(std::min<int64_t>({parallel_width(flops), num_threads(), tasks}));
        const Workspace workspace(static_cast<size_t>(size.shared_bytes + width * size.worker_bytes));
        const Shared<T> shared(ScratchParts(workspace.data()), layout_, conv_.groups, conv_.channels, conv_.rows);
        char* workers = static_cast<char*>(workspace.data()) + size.shared_bytes;
        parallel_for(conv_.groups, width, [&](int64_t group, int) { pack_group(group, shared); });
        parallel_for(tasks, width, [&](int64_t task, int worker) {
            const Scratch<T> scratch(ScratchParts(workers + worker * size.worker_bytes), layout_, blocks_,
                                     conv_.channels, kernels_.lanes);
            const int64_t last = std::min(units, (task + 1) * blocks_.task_units);
            for (int64_t unit = task * blocks_.task_units; unit < last; ++unit)
                run_band(band_of(unit), unit + 1 < units ? band_of(unit + 1) : Band{}, shared, scratch);
        });
    }

private:
    struct Band {
        int64_t group = 0, n = 0, first_line = 0, lines = 0;
    };

    // Neighbouring units lie beside each other in memory.
    Band band_of(int64_t unit) const {
        const int64_t positions = layout_.h.positions(), bands = ceil_div(positions, blocks_.band_lines);
        const int64_t line = unit % bands * blocks_.band_lines;
        return {unit / bands % conv_.groups, unit / bands / conv_.groups, line,
                std::min(blocks_.band_lines, positions - line)};
    }

    T* weights_of(const Shared<T>& shared, int64_t group, int64_t row) const {
        return shared.weights + (group * conv_.rows + row) * conv_.channels * taps_;
    }
    int64_t rows_of(int64_t row) const { return std::min(blocks_.tile_rows, conv_.rows - row); }

    void pack_group(int64_t group, const Shared<T>& shared) const {
        for (int64_t row = 0; row < conv_.rows; row += blocks_.tile_rows) {
            T* to = weights_of(shared, group, row);
            const T* from = conv_.weight + group * conv_.weight_group + row * conv_.weight_row;
            for (const Class& one : classes_)
                for (int64_t c = 0; c < conv_.channels; ++c)
                    for (const PhasedAxis::Tap& r : one.h->taps)
                        for (const PhasedAxis::Tap& s : one.w->taps) {
                            const T* tap = from + c * conv_.weight_channel + r.kernel_index * conv_.weight_h +
                                           s.kernel_index * conv_.weight_w;
                            for (int64_t i = 0; i < rows_of(row); ++i) *to++ = tap[i * conv_.weight_row];
                        }
        }
        for (int64_t k = group * conv_.rows; conv_.bias && k < (group + 1) * conv_.rows; ++k)
            shared.bias[k] = conv_.bias[k * conv_.bias_stride];
    }

    // `next` is what comes after it: staging alone would wait for memory longer than it works.
    void run_band(const Band& band, const Band& next, const Shared<T>& shared, const Scratch<T>& scratch) const {
        stager_.stage(scratch.planes, plane_, conv_.source.at(band.n, band.group * conv_.channels, 0, 0),
                      conv_.channels, band.first_line, band.lines);
        const int64_t tiles =
            ceil_div(conv_.rows, blocks_.tile_rows) * static_cast<int64_t>(classes_.size()) * tiles_of(band.lines);
        ReadAhead<T> ahead;
        if (next.lines > 0)
            ahead = stager_.read_ahead(conv_.source.at(next.n, next.group * conv_.channels, 0, 0), conv_.channels,
                                       next.first_line, next.lines, tiles);
        const size_t classes_w = layout_.w.classes.size();
        const auto [of_image, of_channel, of_row, of_column] = conv_.dest.stride;
        (void)of_image;
        for (int64_t row = 0; row < conv_.rows; row += blocks_.tile_rows)
            for (size_t i = 0; i < classes_.size(); i += classes_w) {
                const PhasedAxis::Class& h = *classes_[i].h;
                const int64_t lines = std::min(band.lines, h.positions - band.first_line);
                if (lines <= 0) continue;
                T* dest = conv_.dest.at(band.n, band.group * conv_.rows + row, h.first + band.first_line * h.step, 0);
                ReadAhead<T> dest_ahead;
                if (of_column == 1)
                    dest_ahead = {dest,
                                  rows_of(row),
                                  of_channel,
                                  lines,
                                  h.step * of_row,
                                  conv_.dest.shape[3],
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
        job.weights = weights_of(shared, band.group, row) + one.weights * conv_.channels * job.rows;
        job.depth = conv_.channels * one.taps;
        job.dest_stride = row_sums();
        job.bias = conv_.bias ? shared.bias + band.group * conv_.rows + row : nullptr;
        job.relu = conv_.relu;
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
        const int64_t columns = conv_.dest.shape[3], step = conv_.dest.stride[3], pitch = layout_.pitch;
        const std::vector<PhasedAxis::Class>& classes = layout_.w.classes;
        for (int64_t i = 0; i < rows; ++i, dest += conv_.dest.stride[1], sums += row_sums()) {
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

    const GroupedConv<T>& conv_;
    const PlaneLayout& layout_;
    const KernelSet<T>& kernels_;
    const GroupedPixelsBlocks blocks_;
    const Stager<T> stager_;
    const int64_t plane_, taps_;
    std::vector<Class> classes_;
};

}  // namespace

template <class T>
PassScratch grouped_pixels_scratch(const PlaneLayout& layout, const GroupedPixelsBlocks& blocks, int64_t groups,
                                   int64_t channels, int64_t rows, const KernelSet<T>& kernels) {
    return {Shared<T>(ScratchParts(), layout, groups, channels, rows).bytes,
            Scratch<T>(ScratchParts(), layout, blocks, channels, kernels.lanes).bytes};
}

template <class T>
void run_grouped_pixels(const GroupedConv<T>& conv, const PlaneLayout& layout, int64_t flops,
                        const KernelSet<T>& kernels) {
    if (conv.dest.size() > 0) Nest<T>(conv, layout, kernels).run(flops);
}

template PassScratch grouped_pixels_scratch(const PlaneLayout&, const GroupedPixelsBlocks&, int64_t, int64_t, int64_t,
                                            const KernelSet<float>&);
template PassScratch grouped_pixels_scratch(const PlaneLayout&, const GroupedPixelsBlocks&, int64_t, int64_t, int64_t,
                                            const KernelSet<double>&);
template void run_grouped_pixels(const GroupedConv<float>&, const PlaneLayout&, int64_t, const KernelSet<float>&);
template void run_grouped_pixels(const GroupedConv<double>&, const PlaneLayout&, int64_t, const KernelSet<double>&);

}  // namespace convx
