// Weight gradient for few input channels with vectors over output channels:
//
//   sums[(c, r, s)][k] = sum over pixels d of plane[(c, r, s) + place of d] * grad_output[d][k]
//
// Pixels are broadcast from the staged lines (staged_planes.h), and grad_output stands beside them with its channels
// adjacent: transposed in NCHW, 0.3 cycles an element, against taps / 16 cycles of FMA. No lane is lost between short
// lines, and no tile ends with a sum across lanes.
//
// Work: a task owns some of the chunks of the batch, bands of lines of an image or several small images. Pixels run in
// ascending order, chunks too, and the tasks' sums are added in order at the end. All cuts follow from the problem.
#include "common/rounding.h"
#include "cpu/conv2d/direct.h"
#include "cpu/runtime/split_sum.h"

namespace convx {

namespace {

int64_t columns_of(const PlaneLayout& layout, int64_t channels) { return channels * layout.all_taps(); }

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const PlaneLayout& layout, const DirectSumBlocks& blocks, int64_t channels,
            const KernelSet<T>& kernels)
        : plane(layout.plane_size(blocks.band_lines, kernels.lanes)), image(channels * layout.planes() * plane),
          planes(parts.take<T>(blocks.images * image)), taps(parts.take<const T*>(columns_of(layout, channels))),
          grad(parts.take<T>(blocks.images * blocks.band_lines * layout.w.positions() * kernels.nr)),
          bytes(parts.bytes()) {}
    int64_t plane;  // elements of a plane
    int64_t image;  // of the planes of an image
    T* planes;
    const T** taps;  // of the first pixel
    T* grad;         // [pixel][output channel of a panel]
    int64_t bytes;
};

template <class T>
class Driver {
public:
    Driver(const PixelSum<T>& sum, const PlaneLayout& layout, const DirectSumBlocks& blocks,
           const KernelSet<T>& kernels)
        : problem_(*sum.problem), grad_(sum.grad_output), input_(sum.input), layout_(layout), blocks_(blocks),
          kernels_(kernels), stager_(layout, strides_of(sum.input.stride), sum.pad(), kernels),
          columns_(columns_of(layout, problem_.in_channels)), panels_(ceil_div(problem_.out_channels, kernels.nr)),
          part_(panels_ * columns_ * kernels.nr),
          taps_(layout.offsets(0, 0, problem_.in_channels, layout.plane_size(blocks.band_lines, kernels.lanes))) {
        const int64_t lines = blocks.band_lines,
                      image = Scratch<T>(ScratchParts(), layout, blocks, problem_.in_channels, kernels).image;
        for (int64_t n = 0; n < blocks.images; ++n)
            for (int64_t line = 0; line < lines; ++line)
                for (int64_t j = 0; j < layout.w.positions(); ++j)
                    places_.push_back(static_cast<int32_t>(n * image + line * layout.pitch + j));
    }

    TaskPlan tasks() const {
        return {blocks_.splits, problem_.flops(), cache_lines(blocks_.splits * part_ * int64_t{sizeof(T)}),
                Scratch<T>(ScratchParts(), layout_, blocks_, problem_.in_channels, kernels_).bytes};
    }

    void run(const TaskPlan& plan, T* grad_weight) const {
        const int64_t bands = ceil_div(layout_.h.positions(), blocks_.band_lines);
        const int64_t chunks = ceil_div(problem_.batch, blocks_.images) * bands;
        const TaskRunner runner(plan);
        T* const first = static_cast<T*>(runner.shared());
        const SplitSum<T> sums(first, first, blocks_.splits, part_);
        runner.run(blocks_.splits, [&](int64_t split, ScratchParts parts) {
            const Scratch<T> own(parts, layout_, blocks_, problem_.in_channels, kernels_);
            std::fill_n(sums.part(split), part_, T(0));
            const int64_t last = (split + 1) * chunks / blocks_.splits;
            for (int64_t chunk = split * chunks / blocks_.splits; chunk < last; ++chunk)
                add_chunk(chunk / bands * blocks_.images, chunk % bands * blocks_.band_lines, own, sums.part(split));
        });
        sums.add();
        store(first, grad_weight);
    }

private:
    void add_chunk(int64_t n, int64_t first_line, const Scratch<T>& scratch, T* sums) const {
        const int64_t images = std::min(blocks_.images, problem_.batch - n);
        const int64_t lines = std::min(blocks_.band_lines, layout_.h.positions() - first_line);
        for (int64_t i = 0; i < images; ++i)
            stager_.stage(scratch.planes + i * scratch.image, scratch.plane, input_.at(n + i, 0, 0, 0),
                          problem_.in_channels, first_line, lines);
        const int64_t tiles = ceil_div(columns_, kernels_.mr);
        for (size_t t = 0; t < taps_.size(); ++t) scratch.taps[t] = scratch.planes + taps_[t];
        for (int64_t panel = 0; panel < panels_; ++panel, sums += columns_ * kernels_.nr) {
            const int64_t row = panel * kernels_.nr;
            const int rows = static_cast<int>(std::min<int64_t>(kernels_.nr, problem_.out_channels - row));
            stage_grad(scratch.grad, n, images, row, rows, first_line, lines);
            for (int64_t tile = 0, first = 0; tile < tiles; ++tile) {
                const int64_t stop = (tile + 1) * columns_ / tiles;
                kernels_.gemm_tile_pixels(static_cast<int>(stop - first), rows, images * lines * layout_.w.positions(),
                                          {scratch.taps + first, places_.data()}, scratch.grad,
                                          {sums + first * kernels_.nr, kernels_.nr, true});
                first = stop;
            }
        }
    }

    void stage_grad(T* to, int64_t n, int64_t images, int64_t first_row, int rows, int64_t first_line,
                    int64_t lines) const {
        const Strides from = strides_of(grad_.stride);
        const int64_t columns = layout_.w.positions(), nr = kernels_.nr;
        // Lanes that no row fills are multiplied too: numbers, since denormal leftovers would be slow.
        if (rows < nr) std::fill_n(to, images * lines * columns * nr, T(0));
        const bool flat = from.h == columns * from.w;
        const int64_t runs = flat ? 1 : lines, run = flat ? lines * columns : columns;
        const T* row[64];
        for (int64_t i = 0; i < images; ++i)
            for (int64_t line = 0; line < runs; ++line, to += run * nr) {
                const T* source = grad_.data + (n + i) * from.n + first_row * from.c + (first_line + line) * from.h;
                if (from.w == 1) {
                    for (int r = 0; r < rows; ++r) row[r] = source + r * from.c;
                    kernels_.pack_transposed(to, nr, row, rows, run);
                } else {
                    const LaneRun whole{0, rows, 0};
                    kernels_.pack_lanes(to, nr, source, from.w, run, &whole, 1, rows, from.c, T(0));
                }
            }
    }

    // [output channel][channel, tap] out of [panel][channel, tap][output channel].
    void store(const T* all_sums, T* grad_weight) const {
        for (int64_t row = 0; row < problem_.out_channels; ++row) {
            const T* sums = all_sums + row / kernels_.nr * columns_ * kernels_.nr + row % kernels_.nr;
            for (int64_t column = 0; column < columns_; ++column) *grad_weight++ = sums[column * kernels_.nr];
        }
    }

    const ConvProblem& problem_;
    const TensorView<const T> grad_, input_;
    const PlaneLayout& layout_;
    const DirectSumBlocks& blocks_;
    const KernelSet<T>& kernels_;
    const Stager<T> stager_;
    const int64_t columns_, panels_;
    const int64_t part_;                // sums of a split
    const std::vector<int32_t> taps_;   // from a pixel's place
    SmallVector<int32_t, 256> places_;  // of the pixels of a chunk
};

}  // namespace

template <class T>
TaskPlan direct_channels_tasks(const PixelSum<T>& sum, const PlaneLayout& layout, const DirectSumBlocks& blocks,
                               const KernelSet<T>& kernels) {
    return Driver<T>(sum, layout, blocks, kernels).tasks();
}

template <class T>
void run_direct_channels(const PixelSum<T>& sum, const PlaneLayout& layout, const DirectSumBlocks& blocks,
                         const TaskPlan& tasks, const KernelSet<T>& kernels) {
    Driver<T>(sum, layout, blocks, kernels).run(tasks, sum.grad_weight.data);
}

template TaskPlan direct_channels_tasks(const PixelSum<float>&, const PlaneLayout&, const DirectSumBlocks&,
                                        const KernelSet<float>&);
template TaskPlan direct_channels_tasks(const PixelSum<double>&, const PlaneLayout&, const DirectSumBlocks&,
                                        const KernelSet<double>&);
template void run_direct_channels(const PixelSum<float>&, const PlaneLayout&, const DirectSumBlocks&, const TaskPlan&,
                                  const KernelSet<float>&);
template void run_direct_channels(const PixelSum<double>&, const PlaneLayout&, const DirectSumBlocks&, const TaskPlan&,
                                  const KernelSet<double>&);

}  // namespace convx
