// Groups of enough channels for vectors of them (kernels/grouped_channels.inl.h): forward and input gradient.
//
// A unit is a band of lines of one group of one image. Its source is staged as planes with their border written out
// (staged_planes.h), unstrided, since the kernel broadcasts single pixels; the result is [pixel][channel] until it is
// transposed to where it belongs, which joins the phases of a strided gradient for nothing. The order of every sum is
// channel by channel, tap by tap, in one go: the same bits for any thread count, batch and memory layout.
#include "cpu/conv2d/grouped.h"
#include "cpu/runtime/run_tasks.h"

#include <algorithm>

#include "common/rounding.h"

namespace convx {

namespace {

// In L2 (512 KiB) beside the weights of a group: 64 channels x 9 taps x 64 are 144 KiB.
constexpr int64_t staged_bytes = 128 * 1024;
constexpr int64_t result_bytes = 128 * 1024;

struct Blocks {
    int64_t band_lines = 1;  // positions of the largest phase
    int64_t dest_rows = 1;   // rows of the result that they are
    int64_t task_units = 1;
};

Blocks plan_blocks(const GroupedPlanes& planes, int64_t batch, int64_t groups, int64_t channels, int64_t rows,
                   int64_t dest_columns, int64_t item_bytes, int lanes) {
    Blocks blocks;
    const PlaneLayout& layout = planes.layout;
    const int64_t lines = std::max<int64_t>(layout.h.positions(), 1), step = layout.h.classes[0].step;
    const int64_t line_bytes = channels * planes.advance_h * layout.pitch * item_bytes;
    const int64_t result_line_bytes = step * dest_columns * 2 * lanes * item_bytes;
    const int64_t fit = std::min(staged_bytes / std::max<int64_t>(line_bytes, 1) - layout.reach / planes.advance_h,
                                 result_bytes / std::max<int64_t>(result_line_bytes, 1));
    // Enough units, unless they would stage too many lines twice.
    const int64_t wanted = ceil_div(lines, ceil_div(grouped_wanted_tasks, std::max<int64_t>(batch * groups, 1)));
    const int64_t most = std::clamp(std::min(fit, std::max(wanted, 4 * layout.reach)), int64_t{1}, lines);
    blocks.band_lines = ceil_div(lines, ceil_div(lines, most));
    blocks.dest_rows = blocks.band_lines * step;
    const int64_t units = batch * groups * ceil_div(lines, blocks.band_lines);
    const int64_t unit_flops =
        2 * channels * rows * planes.taps * blocks.band_lines * std::max<int64_t>(layout.w.positions(), 1);
    blocks.task_units = std::clamp(grouped_task_flops / std::max<int64_t>(unit_flops, 1), int64_t{1},
                                   std::max<int64_t>(units / grouped_wanted_tasks, 1));
    return blocks;
}

// One worker packs weights and computes with the same memory.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const GroupedPlanes& planes, const Blocks& blocks, int64_t channels,
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
class GroupedChannelsDriver {
public:
    GroupedChannelsDriver(const WindowSum<T>& sum, const KernelSet<T>& kernels)
        : sum_(sum), planes_(*sum.problem, sum.forward()), kernels_(kernels), lanes_(kernels.lanes),
          padded_rows_(round_up(sum.rows, lanes_)),
          blocks_(plan_blocks(planes_, sum.batch, sum.groups, sum.channels, sum.rows, sum.dest.shape[3], sizeof(T),
                              kernels.lanes)),
          stager_(planes_.layout, strides_of(sum.source.stride), sum.pad(), kernels),
          plane_(planes_.plane_size(blocks_.band_lines, lanes_)) {
        int64_t taps = 0;
        for (size_t i = 0; i < planes_.layout.h.classes.size(); ++i)
            for (size_t j = 0; j < planes_.layout.w.classes.size(); ++j) {
                classes_.push_back(find_class(i, j, taps));
                taps += classes_.back().taps;
            }
    }

    const Blocks& blocks() const { return blocks_; }
    const PlaneLayout& layout() const { return planes_.layout; }

    TaskPlan tasks() const {
        const int64_t columns = sum_.dest.shape[3];
        return {ceil_div(units(), blocks_.task_units), sum_.flops(),
                Shared<T>(ScratchParts(), planes_, sum_.groups, sum_.channels, sum_.rows, kernels_.lanes).bytes,
                Scratch<T>(ScratchParts(), planes_, blocks_, sum_.channels, columns, kernels_.lanes).bytes};
    }

    void run() const {
        const int64_t columns = sum_.dest.shape[3], units = this->units();
        const TaskPlan plan = tasks();
        const TaskRunner runner(plan);
        const Shared<T> shared(ScratchParts(runner.shared()), planes_, sum_.groups, sum_.channels, sum_.rows,
                               kernels_.lanes);
        const auto scratch_of = [&](ScratchParts parts) {
            return Scratch<T>(parts, planes_, blocks_, sum_.channels, columns, kernels_.lanes);
        };
        runner.run(sum_.groups,
                   [&](int64_t group, ScratchParts parts) { pack_group(group, shared, scratch_of(parts).taps); });
        runner.run(plan.tasks, [&](int64_t task, ScratchParts parts) {
            const Scratch<T> scratch = scratch_of(parts);
            const int64_t last = std::min(units, (task + 1) * blocks_.task_units);
            for (int64_t unit = task * blocks_.task_units; unit < last; ++unit)
                run_band(band_of(unit), unit + 1 < units ? band_of(unit + 1) : Band{}, shared, scratch);
        });
    }

private:
    int64_t units() const {
        return sum_.groups * sum_.batch * ceil_div(planes_.layout.h.positions(), blocks_.band_lines);
    }

    struct Band {
        int64_t group = 0, n = 0, first_line = 0, lines = 0;
    };

    // Neighbouring units share the weights of a group.
    Band band_of(int64_t unit) const {
        const int64_t positions = planes_.layout.h.positions(), bands = ceil_div(positions, blocks_.band_lines);
        const int64_t line = unit % bands * blocks_.band_lines;
        return {unit / bands / sum_.batch, unit / bands % sum_.batch, line,
                std::min(blocks_.band_lines, positions - line)};
    }

    Class find_class(size_t i, size_t j, int64_t taps_before) const {
        const PlaneLayout& layout = planes_.layout;
        Class one{&layout.h.classes[i], &layout.w.classes[j], 0, taps_before, {}, {}, {}};
        one.taps = static_cast<int64_t>(one.h->taps.size() * one.w->taps.size());
        one.offsets = layout.offsets(i, j, sum_.channels, plane_);
        for (int64_t y = 0; y < std::min(blocks_.band_lines, one.h->positions); ++y)
            for (int64_t x = 0; x < one.w->positions; ++x) {
                one.places.push_back(
                    static_cast<int32_t>(y * planes_.advance_h * layout.pitch + x * planes_.advance_w));
                one.to.push_back(static_cast<int32_t>((one.h->first + y * one.h->step) * sum_.dest.shape[3] +
                                                      one.w->first + x * one.w->step));
            }
        return one;
    }

    T* weights_of(const Shared<T>& shared, int64_t group, int64_t row) const {
        return shared.weights + (group * padded_rows_ + row) * sum_.channels * planes_.taps;
    }
    int vecs_of(int64_t row) const { return padded_rows_ - row > lanes_ ? 2 : 1; }

    void pack_group(int64_t group, const Shared<T>& shared, T* taps) const {
        for (int64_t row = 0; row < padded_rows_; row += 2 * lanes_) {
            const int64_t width = vecs_of(row) * lanes_, rows = std::min(width, sum_.rows - row);
            if (rows < width) std::fill_n(taps, planes_.kernel_taps * width, T(0));
            T* to = weights_of(shared, group, row);
            const T* from = sum_.weight + group * sum_.weight_group + row * sum_.weight_row;
            for (int64_t c = 0; c < sum_.channels; ++c, from += sum_.weight_channel) {
                pack_taps(taps, width, from, static_cast<int>(rows));
                for (const Class& one : classes_) {
                    T* at = to + (one.weights * sum_.channels + c * one.taps) * width;
                    for (const PhasedAxis::Tap& r : one.h->taps)
                        for (const PhasedAxis::Tap& s : one.w->taps) {
                            std::copy_n(taps + (r.kernel_index * planes_.kernel_w + s.kernel_index) * width, width, at);
                            at += width;
                        }
                }
            }
        }
        if (!sum_.bias) return;
        T* bias = shared.bias + group * padded_rows_;
        for (int64_t row = 0; row < padded_rows_; ++row)
            bias[row] = row < sum_.rows ? sum_.bias[(group * sum_.rows + row) * sum_.bias_stride] : T(0);
    }

    // [tap][row] of one channel.
    void pack_taps(T* taps, int64_t width, const T* from, int rows) const {
        const T* row[64];
        for (int i = 0; i < rows; ++i) row[i] = from + i * sum_.weight_row;
        if (sum_.weight_w == 1 && sum_.weight_h == planes_.kernel_w)
            return kernels_.pack_transposed(taps, width, row, rows, planes_.kernel_taps);
        for (int64_t tap = 0; tap < planes_.kernel_taps; ++tap)
            for (int i = 0; i < rows; ++i)
                taps[tap * width + i] =
                    row[i][tap / planes_.kernel_w * sum_.weight_h + tap % planes_.kernel_w * sum_.weight_w];
    }

    // `next` is what comes after it: staging alone would wait for memory longer than it works.
    void run_band(const Band& band, const Band& next, const Shared<T>& shared, const Scratch<T>& scratch) const {
        stager_.stage(scratch.staged, plane_, sum_.source.at(band.n, band.group * sum_.channels, 0, 0), sum_.channels,
                      band.first_line * planes_.advance_h, planes_.band(band.lines));
        // Between two tiles a share of it is asked for, and of the lines that will be written: more at once than about
        // 20 lines would have to wait.
        const int64_t row_blocks = ceil_div(padded_rows_, 2 * lanes_);
        int64_t tiles = 0;
        for (const Class& one : classes_) tiles += ceil_div(class_pixels(one, band), tile_pixels(0));
        ReadAhead<T> ahead;
        if (next.lines > 0)
            ahead =
                stager_.read_ahead(sum_.source.at(next.n, next.group * sum_.channels, 0, 0), sum_.channels,
                                   next.first_line * planes_.advance_h, planes_.band(next.lines), tiles * row_blocks);
        const int64_t step = planes_.layout.h.classes[0].step, first_row = band.first_line * step;
        const int64_t dest_rows = std::min(sum_.dest.shape[2] - first_row, band.lines * step);
        for (int64_t row = 0; row < padded_rows_; row += 2 * lanes_) {
            GroupedChannels<T> job{};
            job.vecs = vecs_of(row);
            job.source = scratch.staged;
            job.bias = sum_.bias ? shared.bias + band.group * padded_rows_ + row : nullptr;
            job.relu = sum_.relu;
            job.dest = scratch.result;
            const int64_t width = job.vecs * lanes_, rows = std::min(width, sum_.rows - row), tile = tile_pixels(row);
            T* dest = sum_.dest.at(band.n, band.group * sum_.rows + row, first_row, 0);
            ReadAhead<T> dest_ahead;
            if (sum_.dest.stride[3] == 1)
                dest_ahead = {dest, rows, sum_.dest.stride[1], dest_rows, sum_.dest.stride[2], sum_.dest.shape[3],
                              tiles};
            for (const Class& one : classes_) {
                job.offsets = one.offsets.data();
                job.taps = sum_.channels * one.taps;
                job.weights = weights_of(shared, band.group, row) + one.weights * sum_.channels * width;
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
        const auto [of_image, of_channel, of_row, of_column] = sum_.dest.stride;
        (void)of_image;
        int64_t columns = sum_.dest.shape[3];
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

    const WindowSum<T>& sum_;
    const GroupedPlanes planes_;
    const KernelSet<T>& kernels_;
    const int64_t lanes_, padded_rows_;
    const Blocks blocks_;
    const Stager<T> stager_;
    const int64_t plane_;
    std::vector<Class> classes_;
};

}  // namespace

struct GroupedChannelsMethod : GroupedMethod<GroupedChannelsDriver> {
    static constexpr const char* name = "grouped-channels";

    static bool suits(const ConvProblem& problem, ConvPass pass, const Kernels& kernels) {
        const int64_t rows = pass == ConvPass::forward ? problem.group_out() : problem.group_in();
        return has_few_channels(problem) && fills_vectors(pass, rows, lanes_of(kernels, problem.dtype));
    }

    template <class T>
    static void describe(const WindowSum<T>& sum, const GroupedChannelsDriver<T>& driver, const KernelSet<T>& kernels,
                         PassPlan& text) {
        const int vecs = sum.rows > kernels.lanes ? 2 : 1;
        text.tile = std::to_string(grouped_channel_pixels(vecs, kernels.few_channels_limit)) + " pixels x " +
                    std::to_string(vecs * kernels.lanes) + " channels";
        text.block = lines_of_a_group(driver.blocks().dest_rows) + sums_of(sum.channels, driver.layout());
        text.reason = "few channels a group, but enough for vectors of them: pixels of staged planes are broadcast" +
                      phases_note(driver.layout().h.classes.size() * driver.layout().w.classes.size());
    }
};

template const Method<WindowSum<float>>& method_row<GroupedChannelsMethod, WindowSum<float>>();
template const Method<WindowSum<double>>& method_row<GroupedChannelsMethod, WindowSum<double>>();

}  // namespace convx
