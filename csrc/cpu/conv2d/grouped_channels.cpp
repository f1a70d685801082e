#include "cpu/conv2d/grouped_channels.h"

#include <algorithm>

#include "common/rounding.h"
#include "cpu/scratch_parts.h"
#include "cpu/thread_pool.h"
#include "cpu/workspace.h"

namespace convx {

namespace {

// One worker packs weights and computes with the same memory.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const GroupedPlanes& planes, const GroupedChannelsBlocks& blocks, int64_t channels,
            int64_t dest_columns, int lanes)
        : staged(parts.take<T>(channels * planes.plane_size(blocks.band_lines, lanes))),
          result(parts.take<T>(blocks.dest_rows * dest_columns * 2 * lanes)),
          pixels(parts.take<const T*>(blocks.dest_rows * dest_columns)),
          taps(parts.take<T>(planes.kernel_taps * 2 * lanes)), bytes(parts.bytes()) {}
    T* staged;         // [channel][plane]
    T* result;         // [pixel][vectors of channels]
    const T** pixels;  // where each of them begins
    T* taps;           // [tap][vectors of channels]
    int64_t bytes;
};

template <class T>
struct Shared {
    Shared(ScratchParts parts, const GroupedPlanes& planes, int64_t groups, int64_t channels, int64_t rows, int lanes)
        : weights(parts.take<T>(groups * round_up(rows, lanes) * channels * planes.taps)),
          bias(parts.take<T>(groups * round_up(rows, lanes))), bytes(parts.bytes()) {}
    T* weights;  // [group][vectors of rows][class][channel][tap][row]
    T* bias;     // [group][row]
    int64_t bytes;
};

// The pixels of a class: what they read and where they go, counted from the first of a band.
struct Class {
    const PhasedAxis::Class *h, *w;
    int64_t taps;     // of a channel
    int64_t weights;  // taps of the classes before
    std::vector<int32_t> offsets, places, to;
};

template <class T>
class Nest {
public:
    Nest(const GroupedConv<T>& conv, const GroupedPlanes& planes, const KernelSet<T>& kernels)
        : conv_(conv), planes_(planes), kernels_(kernels), lanes_(kernels.lanes),
          padded_rows_(round_up(conv.rows, lanes_)),
          blocks_(plan_grouped_channels(planes, conv.batch, conv.groups, conv.channels, conv.rows, conv.dest.shape[3],
                                        sizeof(T), kernels.lanes)),
          stager_(planes.layout, strides_of(conv.source.stride), conv.pad, kernels),
          plane_(planes.plane_size(blocks_.band_lines, lanes_)) {
        int64_t taps = 0;
        for (size_t i = 0; i < planes.layout.h.classes.size(); ++i)
            for (size_t j = 0; j < planes.layout.w.classes.size(); ++j) {
                classes_.push_back(find_class(i, j, taps));
                taps += classes_.back().taps;
            }
    }

    void run(int64_t flops) {
        const int64_t columns = conv_.dest.shape[3];
        const int64_t bands = ceil_div(planes_.layout.h.positions(), blocks_.band_lines);
        const int64_t units = conv_.groups * conv_.batch * bands, tasks = ceil_div(units, blocks_.task_units);
        const PassScratch size =
            grouped_channels_scratch(planes_, blocks_, conv_.groups, conv_.channels, conv_.rows, columns, kernels_);
        const int width = static_cast<int>(std::min<int64_t>({parallel_width(flops), num_threads(), tasks}));
        const Workspace workspace(static_cast<size_t>(size.shared_bytes + width * size.worker_bytes));
        const Shared<T> shared(ScratchParts(workspace.data()), planes_, conv_.groups, conv_.channels, conv_.rows,
                               kernels_.lanes);
        char* workers = static_cast<char*>(workspace.data()) + size.shared_bytes;
        const auto scratch_of = [&](int worker) {
            return Scratch<T>(ScratchParts(workers + worker * size.worker_bytes), planes_, blocks_, conv_.channels,
                              columns, kernels_.lanes);
        };
        parallel_for(conv_.groups, width,
                     [&](int64_t group, int worker) { pack_group(group, shared, scratch_of(worker).taps); });
        parallel_for(tasks, width, [&](int64_t task, int worker) {
            const Scratch<T> scratch = scratch_of(worker);
            const int64_t last = std::min(units, (task + 1) * blocks_.task_units);
            for (int64_t unit = task * blocks_.task_units; unit < last; ++unit)
                run_band(band_of(unit), unit + 1 < units ? band_of(unit + 1) : Band{}, shared, scratch);
        });
    }

private:
    struct Band {
        int64_t group = 0, n = 0, first_line = 0, lines = 0;
    };

    // Neighbouring units share the weights of a group.
    Band band_of(int64_t unit) const {
        const int64_t positions = planes_.layout.h.positions(), bands = ceil_div(positions, blocks_.band_lines);
        const int64_t line = unit % bands * blocks_.band_lines;
        return {unit / bands / conv_.batch, unit / bands % conv_.batch, line,
                std::min(blocks_.band_lines, positions - line)};
    }

    static Strides strides_of(const std::array<int64_t, 4>& stride) {
        return {stride[0], stride[1], stride[2], stride[3]};
    }

    Class find_class(size_t i, size_t j, int64_t taps_before) const {
        const PlaneLayout& layout = planes_.layout;
        Class one{&layout.h.classes[i], &layout.w.classes[j], 0, taps_before, {}, {}, {}};
        one.taps = static_cast<int64_t>(one.h->taps.size() * one.w->taps.size());
        one.offsets = layout.offsets(i, j, conv_.channels, plane_);
        for (int64_t y = 0; y < std::min(blocks_.band_lines, one.h->positions); ++y)
            for (int64_t x = 0; x < one.w->positions; ++x) {
                one.places.push_back(
                    static_cast<int32_t>(y * planes_.advance_h * layout.pitch + x * planes_.advance_w));
                one.to.push_back(static_cast<int32_t>((one.h->first + y * one.h->step) * conv_.dest.shape[3] +
                                                      one.w->first + x * one.w->step));
            }
        return one;
    }

    T* weights_of(const Shared<T>& shared, int64_t group, int64_t row) const {
        return shared.weights + (group * padded_rows_ + row) * conv_.channels * planes_.taps;
    }
    int vecs_of(int64_t row) const { return padded_rows_ - row > lanes_ ? 2 : 1; }

    void pack_group(int64_t group, const Shared<T>& shared, T* taps) const {
        for (int64_t row = 0; row < padded_rows_; row += 2 * lanes_) {
            const int64_t width = vecs_of(row) * lanes_, rows = std::min(width, conv_.rows - row);
            if (rows < width) std::fill_n(taps, planes_.kernel_taps * width, T(0));
            T* to = weights_of(shared, group, row);
            const T* from = conv_.weight + group * conv_.weight_group + row * conv_.weight_row;
            for (int64_t c = 0; c < conv_.channels; ++c, from += conv_.weight_channel) {
                pack_taps(taps, width, from, static_cast<int>(rows));
                for (const Class& one : classes_) {
                    T* at = to + (one.weights * conv_.channels + c * one.taps) * width;
                    for (const PhasedAxis::Tap& r : one.h->taps)
                        for (const PhasedAxis::Tap& s : one.w->taps) {
                            std::copy_n(taps + (r.kernel_index * planes_.kernel_w + s.kernel_index) * width, width, at);
                            at += width;
                        }
                }
            }
        }
        if (!conv_.bias) return;
        T* bias = shared.bias + group * padded_rows_;
        for (int64_t row = 0; row < padded_rows_; ++row)
            bias[row] = row < conv_.rows ? conv_.bias[(group * conv_.rows + row) * conv_.bias_stride] : T(0);
    }

    // [tap][row] of one channel.
    void pack_taps(T* taps, int64_t width, const T* from, int rows) const {
        const T* row[64];
        for (int i = 0; i < rows; ++i) row[i] = from + i * conv_.weight_row;
        if (conv_.weight_w == 1 && conv_.weight_h == planes_.kernel_w)
            return kernels_.pack_transposed(taps, width, row, rows, planes_.kernel_taps);
        for (int64_t tap = 0; tap < planes_.kernel_taps; ++tap)
            for (int i = 0; i < rows; ++i)
                taps[tap * width + i] =
                    row[i][tap / planes_.kernel_w * conv_.weight_h + tap % planes_.kernel_w * conv_.weight_w];
    }

    // `next` is what comes after it: staging alone would wait for memory longer than it works.
    void run_band(const Band& band, const Band& next, const Shared<T>& shared, const Scratch<T>& scratch) const {
        stager_.stage(scratch.staged, plane_, conv_.source.at(band.n, band.group * conv_.channels, 0, 0),
                      conv_.channels, band.first_line * planes_.advance_h, planes_.band(band.lines));
        // Between two tiles a share of it is asked for, and of the lines that will be written: more at once than about
        // 20 lines would have to wait.
        const int64_t row_blocks = ceil_div(padded_rows_, 2 * lanes_);
        int64_t tiles = 0;
        for (const Class& one : classes_) tiles += ceil_div(class_pixels(one, band), tile_pixels(0));
        ReadAhead<T> ahead;
        if (next.lines > 0)
            ahead =
                stager_.read_ahead(conv_.source.at(next.n, next.group * conv_.channels, 0, 0), conv_.channels,
                                   next.first_line * planes_.advance_h, planes_.band(next.lines), tiles * row_blocks);
        const int64_t step = planes_.layout.h.classes[0].step, first_row = band.first_line * step;
        const int64_t dest_rows = std::min(conv_.dest.shape[2] - first_row, band.lines * step);
        for (int64_t row = 0; row < padded_rows_; row += 2 * lanes_) {
            GroupedChannels<T> job{};
            job.vecs = vecs_of(row);
            job.source = scratch.staged;
            job.bias = conv_.bias ? shared.bias + band.group * padded_rows_ + row : nullptr;
            job.relu = conv_.relu;
            job.dest = scratch.result;
            const int64_t width = job.vecs * lanes_, rows = std::min(width, conv_.rows - row), tile = tile_pixels(row);
            T* dest = conv_.dest.at(band.n, band.group * conv_.rows + row, first_row, 0);
            ReadAhead<T> dest_ahead;
            if (conv_.dest.stride[3] == 1)
                dest_ahead = {dest, rows, conv_.dest.stride[1], dest_rows, conv_.dest.stride[2], conv_.dest.shape[3],
                              tiles};
            for (const Class& one : classes_) {
                job.offsets = one.offsets.data();
                job.taps = conv_.channels * one.taps;
                job.weights = weights_of(shared, band.group, row) + one.weights * conv_.channels * width;
                // Tiles of even size, none of which has a pixel in vain: 49 pixels are 4 of 6 and 5 of 5.
                const int64_t pixels = class_pixels(one, band), count = ceil_div(pixels, tile);
                for (int64_t i = 0; i < count; ++i) {
                    ahead.next();
                    dest_ahead.next();
                    const int64_t first = i * pixels / count;
                    job.places = one.places.data() + first;
                    job.to = one.to.data() + first;
                    job.pixels = static_cast<int>((i + 1) * pixels / count - first);
                    kernels_.grouped_channels(job);
                }
            }
            store_result(dest, dest_rows, width, rows, scratch);
        }
    }

    int64_t tile_pixels(int64_t row) const { return grouped_channel_pixels(vecs_of(row), kernels_.few_channels_limit); }

    int64_t class_pixels(const Class& one, const Band& band) const {
        return std::max<int64_t>(std::min(band.lines, one.h->positions - band.first_line), 0) * one.w->positions;
    }

    void store_result(T* dest, int64_t dest_rows, int64_t width, int64_t channels, const Scratch<T>& scratch) const {
        const auto [of_image, of_channel, of_row, of_column] = conv_.dest.stride;
        (void)of_image;
        int64_t columns = conv_.dest.shape[3];
        if (of_row == columns * of_column) {
            columns *= dest_rows;
            dest_rows = 1;
        }
        const T* from = scratch.result;
        for (int64_t i = 0; i < dest_rows; ++i, dest += of_row, from += columns * width) {
            if (of_column == 1) {
                for (int64_t x = 0; x < columns; ++x) scratch.pixels[x] = from + x * width;
                kernels_.pack_transposed(dest, of_channel, scratch.pixels, static_cast<int>(columns), channels);
            } else {
                const LaneRun adjacent{0, static_cast<int32_t>(channels), 0};
                if (of_channel == 1)
                    kernels_.pack_lanes(dest, of_column, from, width, columns, &adjacent, 1, static_cast<int>(channels),
                                        1, T(0));
                else
                    for (int64_t x = 0; x < columns; ++x)
                        for (int64_t c = 0; c < channels; ++c)
                            dest[x * of_column + c * of_channel] = from[x * width + c];
            }
        }
    }

    const GroupedConv<T>& conv_;
    const GroupedPlanes& planes_;
    const KernelSet<T>& kernels_;
    const int64_t lanes_, padded_rows_;
    const GroupedChannelsBlocks blocks_;
    const Stager<T> stager_;
    const int64_t plane_;
    std::vector<Class> classes_;
};

}  // namespace

template <class T>
PassScratch grouped_channels_scratch(const GroupedPlanes& planes, const GroupedChannelsBlocks& blocks, int64_t groups,
                                     int64_t channels, int64_t rows, int64_t dest_columns,
                                     const KernelSet<T>& kernels) {
    return {Shared<T>(ScratchParts(), planes, groups, channels, rows, kernels.lanes).bytes,
            Scratch<T>(ScratchParts(), planes, blocks, channels, dest_columns, kernels.lanes).bytes};
}

template <class T>
void run_grouped_channels(const GroupedConv<T>& conv, const GroupedPlanes& planes, int64_t flops,
                          const KernelSet<T>& kernels) {
    if (conv.dest.size() > 0) Nest<T>(conv, planes, kernels).run(flops);
}

template PassScratch grouped_channels_scratch(const GroupedPlanes&, const GroupedChannelsBlocks&, int64_t, int64_t,
                                              int64_t, int64_t, const KernelSet<float>&);
template PassScratch grouped_channels_scratch(const GroupedPlanes&, const GroupedChannelsBlocks&, int64_t, int64_t,
                                              int64_t, int64_t, const KernelSet<double>&);
template void run_grouped_channels(const GroupedConv<float>&, const GroupedPlanes&, int64_t, const KernelSet<float>&);
template void run_grouped_channels(const GroupedConv<double>&, const GroupedPlanes&, int64_t, const KernelSet<double>&);

}  // namespace convx
