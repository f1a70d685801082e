// Direct convolution for few channels with vectors over what is written: output channels forward, input channels in the
// gradient. Pixels are broadcast from the staged lines, so that lines shorter than a few vectors waste nothing (a line
// of 10 fills two vectors to 62 %), and NHWC is written as it comes. NCHW takes a transpose of the results: 5 % of the
// time at 100 products a sum.
//
// Work: a task owns a band of lines of one image and stages it with all channels; some lines at a time their pixels run
// through the tiles of one panel of rows after the other. The order of a sum is that of few_channels.cpp.
#include "common/rounding.h"
#include "cpu/conv2d/few_channels.h"
#include "cpu/conv2d/finite.h"
#include "cpu/scratch_parts.h"
#include "cpu/thread_pool.h"
#include "cpu/workspace.h"

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
    Scratch(ScratchParts parts, const PlaneLayout& layout, const FewChannelsBlocks& blocks, int64_t channels,
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
class Nest {
public:
    Nest(const FewChannelsPass<T>& pass, const PlaneLayout& layout, const FewChannelsBlocks& blocks,
         const KernelSet<T>& kernels)
        : pass_(pass), layout_(layout), blocks_(blocks), kernels_(kernels),
          stager_(layout, pass.source_stride, pass.pad, kernels),
          plane_(layout.plane_size(blocks.band_lines, kernels.lanes)),
          bands_(ceil_div(layout.h.positions(), blocks.band_lines)) {}

    bool run() {
        const PassScratch scratch = few_channels_rows_scratch(layout_, blocks_, pass_.rows, pass_.channels, kernels_);
        const int64_t tasks = pass_.batch * bands_;
        const int width = static_cast<int>(
            std::min<int64_t>({parallel_width(pass_.flops), num_threads(), std::max<int64_t>(tasks, 1)}));
        const Workspace workspace(static_cast<size_t>(scratch.shared_bytes + width * scratch.worker_bytes));
        if (!pack(Shared<T>(ScratchParts(workspace.data()), layout_, pass_.rows, pass_.channels, kernels_.nr)))
            return false;
        char* workers = static_cast<char*>(workspace.data()) + scratch.shared_bytes;
        parallel_for(tasks, width, [&](int64_t task, int worker) {
            run_band(task / bands_, task % bands_ * blocks_.band_lines,
                     Scratch<T>(ScratchParts(workers + worker * scratch.worker_bytes), layout_, blocks_, pass_.channels,
                                kernels_));
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
                    {&layout_.h.classes[h], &layout_.w.classes[w], layout_.offsets(h, w, pass_.channels, plane_), to});
                for (int64_t row = 0; row < pass_.rows; row += kernels_.nr) to = pack_panel(to, classes_.back(), row);
            }
        for (int64_t row = 0; pass_.bias && row < pass_.rows; ++row)
            shared.bias[row] = pass_.bias[row * pass_.bias_stride];
        bias_ = pass_.bias ? shared.bias : nullptr;
        return all_finite(shared.weights, to - shared.weights);
    }

    T* pack_panel(T* to, const Class& one, int64_t first_row) const {
        const int64_t rows = std::min<int64_t>(kernels_.nr, pass_.rows - first_row), depth = one.depth();
        if (takes_weights_in_order(one)) {
            const T* row[64];
            for (int64_t i = 0; i < rows; ++i) row[i] = pass_.weight + (first_row + i) * pass_.weight_row;
            if (rows < kernels_.nr) std::fill_n(to, depth * kernels_.nr, T(0));
            kernels_.pack_transposed(to, kernels_.nr, row, static_cast<int>(rows), depth);
            return to + depth * kernels_.nr;
        }
        for (int64_t c = 0; c < pass_.channels; ++c)
            for (const PhasedAxis::Tap& r : one.h->taps)
                for (const PhasedAxis::Tap& s : one.w->taps) {
                    const T* from = pass_.weight + first_row * pass_.weight_row + c * pass_.weight_channel +
                                    r.kernel_index * pass_.weight_h + s.kernel_index * pass_.weight_w;
                    for (int64_t row = 0; row < rows; ++row) to[row] = from[row * pass_.weight_row];
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
        return all_of(*one.h) && all_of(*one.w) && pass_.weight_w == 1 && pass_.weight_h == s &&
               pass_.weight_channel == r * s;
    }

    void run_band(int64_t n, int64_t first_line, const Scratch<T>& scratch) const {
        const int64_t lines = std::min(blocks_.band_lines, layout_.h.positions() - first_line);
        stager_.stage(scratch.planes, plane_, pass_.source + n * pass_.source_stride.n, pass_.channels, first_line,
                      lines);
        const Strides& to = pass_.dest_stride;
        for (const Class& one : classes_) {
            const int64_t class_lines = std::min(lines, one.h->positions - first_line);
            const int64_t group = std::max<int64_t>(group_pixels / one.w->positions, 1);
            Lines part{scratch.pixels, 0,
                       pass_.dest + n * to.n + (one.h->first + first_line * one.h->step) * to.h + one.w->first * to.w,
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
        const int64_t columns = one.w->positions, pixels = part.count * columns, to_row = pass_.dest_stride.c;
        const int64_t tiles = ceil_div(pixels, kernels_.mr), nr = kernels_.nr;
        const bool even = part.count == 1 || part.line_step == columns * part.step;
        const auto run_tile = [&](int64_t tile, int64_t row, T* to, int64_t step) {
            const int64_t first = tile * pixels / tiles, count = (tile + 1) * pixels / tiles - first;
            kernels_.gemm_tile_pixels(
                static_cast<int>(count), static_cast<int>(std::min(nr, pass_.rows - row)), one.depth(),
                {part.pixels + first, one.offsets.data()}, one.weights + row * one.depth(),
                {to + first * step, step, false, nullptr, bias_ ? bias_ + row : nullptr, pass_.relu});
        };
        if (even && to_row == 1) {
            for (int64_t tile = 0; tile < tiles; ++tile)
                for (int64_t row = 0; row < pass_.rows; row += nr) run_tile(tile, row, part.dest + row, part.step);
            return;
        }
        for (int64_t row = 0; row < pass_.rows; row += nr) {
            for (int64_t tile = 0; tile < tiles; ++tile) run_tile(tile, row, sums, nr);
            const int64_t rows = std::min(nr, pass_.rows - row), runs = even ? 1 : part.count, run = pixels / runs;
            for (int64_t i = 0; i < runs; ++i)
                write(part.dest + row * to_row + i * part.line_step, part.step, sums + i * run * nr, run, rows);
        }
    }

    void write(T* dest, int64_t step, const T* sums, int64_t pixels, int64_t rows) const {
        const int64_t to_row = pass_.dest_stride.c, nr = kernels_.nr;
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

    const FewChannelsPass<T>& pass_;
    const PlaneLayout& layout_;
    const FewChannelsBlocks& blocks_;
    const KernelSet<T>& kernels_;
    const Stager<T> stager_;
    const int64_t plane_, bands_;
    std::vector<Class> classes_;
    const T* bias_ = nullptr;
};

}  // namespace

template <class T>
PassScratch few_channels_rows_scratch(const PlaneLayout& layout, const FewChannelsBlocks& blocks, int64_t rows,
                                      int64_t channels, const KernelSet<T>& kernels) {
    return {Shared<T>(ScratchParts(), layout, rows, channels, kernels.nr).bytes,
            Scratch<T>(ScratchParts(), layout, blocks, channels, kernels).bytes};
}

template <class T>
bool run_few_channels_rows(const FewChannelsPass<T>& pass, const PlaneLayout& layout, const FewChannelsBlocks& blocks,
                           const KernelSet<T>& kernels) {
    return Nest<T>(pass, layout, blocks, kernels).run();
}

template PassScratch few_channels_rows_scratch(const PlaneLayout&, const FewChannelsBlocks&, int64_t, int64_t,
                                               const KernelSet<float>&);
template PassScratch few_channels_rows_scratch(const PlaneLayout&, const FewChannelsBlocks&, int64_t, int64_t,
                                               const KernelSet<double>&);
template bool run_few_channels_rows(const FewChannelsPass<float>&, const PlaneLayout&, const FewChannelsBlocks&,
                                    const KernelSet<float>&);
template bool run_few_channels_rows(const FewChannelsPass<double>&, const PlaneLayout&, const FewChannelsBlocks&,
                                    const KernelSet<double>&);

}  // namespace convx
