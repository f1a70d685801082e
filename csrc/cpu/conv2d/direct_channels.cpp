// Direct convolution for few channels with vectors over what is written: output channels forward, input channels in the
// gradient. Pixels are broadcast from the staged lines, so that lines shorter than a few vectors waste nothing (a line
// of 10 fills two vectors to 62 %), and NHWC is written as it comes. NCHW takes a transpose of the results: 5 % of the
// time at 100 products a sum.
//
// Work: a task owns a band of lines of one image and stages it with all channels; some lines at a time their pixels run
// through the tiles of one panel of rows after the other. The order of a sum is that of few_channels.cpp.
#include "common/rounding.h"
#include "cpu/conv2d/direct.h"
#include "cpu/conv2d/reference.h"
#include "cpu/runtime/run_tasks.h"

namespace convx {

namespace {

// Pixels whose sums wait for their transpose, in L1.
constexpr int64_t group_pixels = 128;

// What all workers share.
template <class T>
struct Shared {
    Shared(ScratchParts parts, const PlaneLayout& layout, int64_t rows, int64_t channels, int nr)
        : weights(parts.take<T>(round_up(rows, nr) * channels * layout.all_taps())), bias(parts.take<T>(rows)),
          bytes(parts.bytes()) {}
    T* weights;  // [class][panel][channel, tap][row]
    T* bias;
    int64_t bytes;
};

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const PlaneLayout& layout, const DirectBlocks& blocks, int64_t channels,
            const KernelSet<T>& kernels)
        : planes(parts.take<T>(channels * layout.planes() * layout.plane_size(blocks.band_lines, kernels.lanes))),
          pixels(parts.take<const T*>(std::max(group_pixels, layout.w.positions()))),
          sums(parts.take<T>(std::max(group_pixels, layout.w.positions()) * kernels.nr)), bytes(parts.bytes()) {}
    T* planes;
    const T** pixels;  // of some lines
    T* sums;           // [pixel][row]
    int64_t bytes;
};

template <class T>
class Driver {
public:
    Driver(const WindowSum<T>& sum, const PlaneLayout& layout, const DirectBlocks& blocks, const KernelSet<T>& kernels)
        : sum_(sum), layout_(layout), blocks_(blocks), kernels_(kernels),
          stager_(layout, strides_of(sum.source.stride), sum.pad(), kernels),
          plane_(layout.plane_size(blocks.band_lines, kernels.lanes)),
          bands_(ceil_div(layout.h.positions(), blocks.band_lines)) {}

    TaskPlan tasks() const {
        return {sum_.batch * bands_, sum_.flops(),
                Shared<T>(ScratchParts(), layout_, sum_.rows, sum_.channels, kernels_.nr).bytes,
                Scratch<T>(ScratchParts(), layout_, blocks_, sum_.channels, kernels_).bytes};
    }

    bool run(const TaskPlan& plan) {
        const TaskRunner runner(plan);
        if (!pack(Shared<T>(ScratchParts(runner.shared()), layout_, sum_.rows, sum_.channels, kernels_.nr)))
            return false;
        runner.run(plan.tasks, [&](int64_t task, ScratchParts parts) {
            run_band(task / bands_, task % bands_ * blocks_.band_lines,
                     Scratch<T>(parts, layout_, blocks_, sum_.channels, kernels_));
        });
        return true;
    }

private:
    // One destination class: the taps that hit it.
    struct Class {
        const PhasedAxis::Class *h, *w;
        std::vector<int32_t> offsets;
        const T* weights;
        int64_t depth() const { return static_cast<int64_t>(offsets.size()); }
    };

    // Lines of one class, and where their first pixel goes.
    struct Lines {
        const T* const* pixels;
        int64_t count;
        T* dest;
        int64_t line_step, step;  // of dest
    };

    bool pack(const Shared<T>& shared) {
        T* to = shared.weights;
        for (size_t h = 0; h < layout_.h.classes.size(); ++h)
            for (size_t w = 0; w < layout_.w.classes.size(); ++w) {
                classes_.push_back(
                    {&layout_.h.classes[h], &layout_.w.classes[w], layout_.offsets(h, w, sum_.channels, plane_), to});
                for (int64_t row = 0; row < sum_.rows; row += kernels_.nr) to = pack_panel(to, classes_.back(), row);
            }
        for (int64_t row = 0; sum_.bias && row < sum_.rows; ++row) shared.bias[row] = sum_.bias[row * sum_.bias_stride];
        bias_ = sum_.bias ? shared.bias : nullptr;
        return all_finite(shared.weights, to - shared.weights);
    }

    T* pack_panel(T* to, const Class& one, int64_t first_row) const {
        const int64_t rows = std::min<int64_t>(kernels_.nr, sum_.rows - first_row), depth = one.depth();
        if (takes_weights_in_order(one)) {
            const T* row[64];
            for (int64_t i = 0; i < rows; ++i) row[i] = sum_.weight + (first_row + i) * sum_.weight_row;
            if (rows < kernels_.nr) std::fill_n(to, depth * kernels_.nr, T(0));
            kernels_.pack_transposed(to, kernels_.nr, row, static_cast<int>(rows), depth);
            return to + depth * kernels_.nr;
        }
        for (int64_t c = 0; c < sum_.channels; ++c)
            for (const PhasedAxis::Tap& r : one.h->taps)
                for (const PhasedAxis::Tap& s : one.w->taps) {
                    const T* from = sum_.weight + first_row * sum_.weight_row + c * sum_.weight_channel +
                                    r.kernel_index * sum_.weight_h + s.kernel_index * sum_.weight_w;
                    for (int64_t row = 0; row < rows; ++row) to[row] = from[row * sum_.weight_row];
                    std::fill(to + rows, to + kernels_.nr, T(0));
                    to += kernels_.nr;
                }
        return to;
    }

    // Whether the channels and taps of a row stand in memory as they are summed.
    bool takes_weights_in_order(const Class& one) const {
        const auto all_of = [](const PhasedAxis::Class& axis) {
            for (size_t i = 0; i < axis.taps.size(); ++i)
                if (axis.taps[i].kernel_index != static_cast<int64_t>(i)) return false;
            return true;
        };
        const auto r = static_cast<int64_t>(one.h->taps.size()), s = static_cast<int64_t>(one.w->taps.size());
        return all_of(*one.h) && all_of(*one.w) && sum_.weight_w == 1 && sum_.weight_h == s &&
               sum_.weight_channel == r * s;
    }

    void run_band(int64_t n, int64_t first_line, const Scratch<T>& scratch) const {
        const int64_t lines = std::min(blocks_.band_lines, layout_.h.positions() - first_line);
        stager_.stage(scratch.planes, plane_, sum_.source.at(n, 0, 0, 0), sum_.channels, first_line, lines);
        const Strides to = strides_of(sum_.dest.stride);
        for (const Class& one : classes_) {
            const int64_t class_lines = std::min(lines, one.h->positions - first_line);
            const int64_t group = std::max<int64_t>(group_pixels / one.w->positions, 1);
            Lines part{
                scratch.pixels, 0,
                sum_.dest.data + n * to.n + (one.h->first + first_line * one.h->step) * to.h + one.w->first * to.w,
                one.h->step * to.h, one.w->step * to.w};
            for (int64_t line = 0; line < class_lines; line += group) {
                part.count = std::min(group, class_lines - line);
                const T** pixel = scratch.pixels;
                for (int64_t i = 0; i < part.count; ++i)
                    for (int64_t j = 0; j < one.w->positions; ++j)
                        *pixel++ = scratch.planes + (line + i) * layout_.pitch + j;
                run_lines(one, part, scratch.sums);
                part.dest += group * part.line_step;
            }
        }
    }

    // Pixels in tiles of nearly equal size, since a tile of less than 4 pixels waits for its own sums. What can be
    // written as it comes is written pixel by pixel, in one stream.
    void run_lines(const Class& one, const Lines& part, T* sums) const {
        const int64_t columns = one.w->positions, pixels = part.count * columns, to_row = sum_.dest.stride[1];
        const int64_t tiles = ceil_div(pixels, kernels_.mr), nr = kernels_.nr;
        const bool even = part.count == 1 || part.line_step == columns * part.step;
        const auto run_tile = [&](int64_t tile, int64_t row, T* to, int64_t step) {
            const int64_t first = tile * pixels / tiles, count = (tile + 1) * pixels / tiles - first;
            kernels_.gemm_tile_pixels(
                static_cast<int>(count), static_cast<int>(std::min(nr, sum_.rows - row)), one.depth(),
                {part.pixels + first, one.offsets.data()}, one.weights + row * one.depth(),
                {to + first * step, step, false, nullptr, bias_ ? bias_ + row : nullptr, sum_.relu});
        };
        if (even && to_row == 1) {
            for (int64_t tile = 0; tile < tiles; ++tile)
                for (int64_t row = 0; row < sum_.rows; row += nr) run_tile(tile, row, part.dest + row, part.step);
            return;
        }
        for (int64_t row = 0; row < sum_.rows; row += nr) {
            for (int64_t tile = 0; tile < tiles; ++tile) run_tile(tile, row, sums, nr);
            const int64_t rows = std::min(nr, sum_.rows - row), runs = even ? 1 : part.count, run = pixels / runs;
            for (int64_t i = 0; i < runs; ++i)
                write(part.dest + row * to_row + i * part.line_step, part.step, sums + i * run * nr, run, rows);
        }
    }

    void write(T* dest, int64_t step, const T* sums, int64_t pixels, int64_t rows) const {
        const int64_t to_row = sum_.dest.stride[1], nr = kernels_.nr;
        const T* pixel[64];
        for (int64_t i = 0; i < pixels && step == 1; i += 64) {
            const int64_t count = std::min<int64_t>(64, pixels - i);
            for (int64_t j = 0; j < count; ++j) pixel[j] = sums + (i + j) * nr;
            kernels_.pack_transposed(dest + i, to_row, pixel, static_cast<int>(count), rows);
        }
        if (step == 1) return;
        for (int64_t i = 0; i < pixels; ++i, dest += step, sums += nr)
            for (int64_t row = 0; row < rows; ++row) dest[row * to_row] = sums[row];
    }

    const WindowSum<T>& sum_;
    const PlaneLayout& layout_;
    const DirectBlocks& blocks_;
    const KernelSet<T>& kernels_;
    const Stager<T> stager_;
    const int64_t plane_, bands_;
    std::vector<Class> classes_;
    const T* bias_ = nullptr;
};

}  // namespace

template <class T>
TaskPlan direct_channels_tasks(const WindowSum<T>& sum, const PlaneLayout& layout, const DirectBlocks& blocks,
                               const KernelSet<T>& kernels) {
    return Driver<T>(sum, layout, blocks, kernels).tasks();
}

template <class T>
bool run_direct_channels(const WindowSum<T>& sum, const PlaneLayout& layout, const DirectBlocks& blocks,
                         const TaskPlan& tasks, const KernelSet<T>& kernels) {
    return Driver<T>(sum, layout, blocks, kernels).run(tasks);
}

template TaskPlan direct_channels_tasks(const WindowSum<float>&, const PlaneLayout&, const DirectBlocks&,
                                        const KernelSet<float>&);
template TaskPlan direct_channels_tasks(const WindowSum<double>&, const PlaneLayout&, const DirectBlocks&,
                                        const KernelSet<double>&);
template bool run_direct_channels(const WindowSum<float>&, const PlaneLayout&, const DirectBlocks&, const TaskPlan&,
                                  const KernelSet<float>&);
template bool run_direct_channels(const WindowSum<double>&, const PlaneLayout&, const DirectBlocks&, const TaskPlan&,
                                  const KernelSet<double>&);

}  // namespace convx
