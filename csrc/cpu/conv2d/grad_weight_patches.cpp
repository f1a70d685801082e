// The weight gradient by rank-1 updates over patches, what a window covers:
//
//   grad_weight[k][d] = sum over n, p, q of grad_output[n, k, p, q] * patch[n, p, q][d],  d = (channel, tap)
//
// For a few output pixels: fully connected layers, squeeze-and-excitation, windows as large as the plane. Vectors run
// along d, as the weights lie, so that neither pixels nor channels have to fill one; a patch that is a line of memory
// itself (a 1x1 plane, all channels of a pixel, whole rows) is read in place. Dot products over pixels would end in
// a sum across lanes for every few of them. Bound by the weights' bytes up to about 16 pixels, then by FMA.
#include "common/rounding.h"
#include "cpu/conv2d/lines.h"
#include "cpu/conv2d/method_row.h"

namespace convx {

namespace {

// Pixels summed in registers at a time: a column panel of 64 floats (32 KiB) stays in L1 while the rows pass by.
constexpr int64_t chunk_pixels = 128;
constexpr int64_t copied_bytes = 1 << 20;  // of the operands of a round, which are copied before its tasks run
constexpr int64_t transposed_pixels = 16;  // at a time

// What all workers share.
template <class T>
struct Shared {
    Shared(ScratchParts parts, int64_t gradients_count, int64_t patches_count)
        : gradients(parts.take<T>(gradients_count)), patches(parts.take<T>(patches_count)), bytes(parts.bytes()) {}
    T* gradients;  // [output channel][pixel]
    T* patches;    // [group][pixel][column], where they are not read in place
    int64_t bytes;
};

}  // namespace

template <class T>
class PatchProductsDriver {
public:
    PatchProductsDriver(const PixelSum<T>& sum, const KernelSet<T>& kernels)
        : problem_(*sum.problem), kernels_(kernels), grad_(sum.grad_output), patches_(problem_, sum.input, sum.pad()),
          rows_(problem_.group_out()), columns_(problem_.group_in() * problem_.taps()),
          pixels_(problem_.batch * problem_.out_pixels()), line_step_(line_step(sum.input.stride)),
          round_(round_pixels()), gradient_step_(round_up(round_, kernels.lanes) + kernels.lanes),
          mc_(even_blocks(rows_, 8 * kernels.mr, kernels.mr)), nc_(columns_of_task()) {}

    bool in_place() const { return line_step_ != 0; }
    int64_t mc() const { return mc_; }
    int64_t nc() const { return nc_; }

    TaskPlan tasks() const {
        ScratchParts tail;
        tail.take<T>(kernels_.nr * chunk_pixels);
        return {problem_.groups * ceil_div(rows_, mc_) * ceil_div(columns_, nc_), problem_.flops(),
                shared(ScratchParts()).bytes, tail.bytes()};
    }

    void run(T* grad_weight) {
        const TaskPlan plan = tasks();
        const TaskRunner runner(plan);
        const Shared<T> shared = this->shared(ScratchParts(runner.shared()));
        if (pixels_ == 0) std::fill_n(grad_weight, problem_.groups * rows_ * columns_, T(0));
        for (int64_t first = 0; first < pixels_; first += round_) {
            const int64_t count = std::min(round_, pixels_ - first);
            parallel_for(ceil_div(count, transposed_pixels), runner.width(), [&](int64_t block, int) {
                const int64_t begin = block * transposed_pixels;
                copy_gradients(first + begin, std::min(transposed_pixels, count - begin), shared.gradients + begin);
            });
            if (!in_place())
                parallel_for(problem_.groups * count, runner.width(), [&](int64_t line, int) {
                    patches_.copy(line / count, first + line % count, shared.patches + line * columns_);
                });
            const int64_t row_blocks = ceil_div(rows_, mc_), column_blocks = ceil_div(columns_, nc_);
            runner.run(plan.tasks, [&](int64_t task, ScratchParts parts) {
                const int64_t group = task / row_blocks / column_blocks;
                const T* lines = in_place() ? patches_.at(group, first) : shared.patches + group * count * columns_;
                run_task(group, task % row_blocks * mc_, task / row_blocks % column_blocks * nc_, {first, count, lines},
                         shared, grad_weight + group * rows_ * columns_, parts.take<T>(kernels_.nr * chunk_pixels));
            });
        }
    }

private:
    struct Round {
        int64_t first, count;  // pixels
        const T* lines;        // their patches
    };

    // From one patch to the next where they can be read in place; else 0.
    int64_t line_step(const std::array<int64_t, 4>& stride) const {
        if (!patches_.in_place()) return 0;
        if (problem_.out_pixels() == 1) return problem_.batch == 1 ? columns_ : stride[0];
        return 0;
    }
    // Whole chunks, so that sums are cut at the same pixels whether patches are copied or read in place.
    int64_t round_pixels() const {
        const int64_t line = problem_.groups * std::max({rows_, columns_, int64_t{1}}) * int64_t{sizeof(T)};
        return std::clamp<int64_t>(std::max(copied_bytes / line / chunk_pixels, int64_t{1}) * chunk_pixels, 1,
                                   std::max<int64_t>(pixels_, 1));
    }
    Shared<T> shared(ScratchParts parts) const {
        return {parts, problem_.groups * rows_ * gradient_step_, in_place() ? 0 : problem_.groups * round_ * columns_};
    }
    int64_t columns_of_task() const {
        const int64_t tiles = ceil_div(std::max<int64_t>(columns_, 1), kernels_.nr);
        const int64_t blocks = problem_.groups * ceil_div(rows_, mc_);
        const int64_t pixels = std::max<int64_t>(round_, 16);  // few of them take as long as the stores
        return units_of_a_task(tiles * blocks, 2 * pixels * mc_ * kernels_.nr) * kernels_.nr;
    }

    void run_task(int64_t group, int64_t row, int64_t column, const Round& round, const Shared<T>& shared, T* weights,
                  T* tail) const {
        const int64_t mr = kernels_.mr, nr = kernels_.nr, step = in_place() ? line_step_ : columns_;
        const int64_t last_row = std::min(row + mc_, rows_), last_column = std::min(column + nc_, columns_);
        for (int64_t first = 0; first < round.count; first += chunk_pixels) {
            const int64_t pixels = std::min(chunk_pixels, round.count - first);
            const T* const gradients = shared.gradients + group * rows_ * gradient_step_ + first;
            for (int64_t j = column; j < last_column; j += nr) {
                const int64_t width = std::min(nr, last_column - j);
                const T* b = round.lines + first * step + j;
                const bool whole = width % kernels_.lanes == 0;  // vectors are what the kernel reads
                for (int64_t p = 0; p < pixels && !whole; ++p) std::copy_n(b + p * step, width, tail + p * nr);
                for (int64_t i = row; i < last_row; i += mr) {
                    const T* rows[16];
                    const int count = static_cast<int>(std::min(mr, last_row - i));
                    for (int k = 0; k < count; ++k) rows[k] = gradients + (i + k) * gradient_step_;
                    kernels_.gemm_tile_rows(count, static_cast<int>(width), pixels, rows, whole ? b : tail,
                                            whole ? step : nr,
                                            {weights + i * columns_ + j, columns_, round.first + first > 0});
                }
            }
        }
    }

    // Those of all channels at `count` pixels, next to each other.
    void copy_gradients(int64_t first, int64_t count, T* to) const {
        const int64_t channels = problem_.out_channels;
        const T* pixel[transposed_pixels];
        for (int64_t p = 0; p < count; ++p) {
            const auto [n, i, j] = patches_.place(first + p);
            pixel[p] = grad_.at(n, 0, i, j);
        }
        if (grad_.stride[1] == 1)
            return kernels_.pack_transposed(to, gradient_step_, pixel, static_cast<int>(count), channels);
        for (int64_t k = 0; k < channels; ++k)
            for (int64_t p = 0; p < count; ++p) to[k * gradient_step_ + p] = pixel[p][k * grad_.stride[1]];
    }

    const ConvProblem& problem_;
    const KernelSet<T>& kernels_;
    const TensorView<const T> grad_;
    const PatchLines<T> patches_;
    const int64_t rows_, columns_, pixels_;
    const int64_t line_step_;
    const int64_t round_;          // pixels
    const int64_t gradient_step_;  // from one output channel to the next
    const int64_t mc_, nc_;
};

struct PatchProductsMethod : SumMethod<PatchProductsDriver> {
    static constexpr const char* name = "patch-products";

    static Verdict supports(const ConvProblem&, ConvPass) { return {}; }
    static Work work(const WorkSizes& sizes) {
        Work work = sizes.common();
        const ConvProblem& problem = sizes.problem;
        const double pixels = sizes.h.dest * sizes.w.dest, columns = sizes.channels * sizes.taps;
        const TileGrid grid(sizes.rows, sizes.tile.mr, sizes.vectors(columns), sizes.tile.nr_vectors);
        work[WorkKind::cycles] = sizes.groups * pixels * grid.cycles;
        work[WorkKind::tiles] = sizes.groups * grid.tiles * std::ceil(pixels / chunk_pixels);
        work[WorkKind::runs] = sizes.groups * pixels * std::ceil(sizes.rows / (8 * sizes.tile.mr));
        if (pixels > 1 || !covers_lines(problem, dense_strides(problem.input_shape(), problem.channels_last)))
            work[WorkKind::transposes] = sizes.groups * pixels * columns;
        return work;
    }

    template <class T>
    static void describe(const PixelSum<T>& sum, const PatchProductsDriver<T>& driver, const KernelSet<T>& kernels,
                         PassPlan& text) {
        const ConvProblem& problem = *sum.problem;
        text.tile = std::to_string(kernels.mr) + " x " + std::to_string(kernels.nr) + " weights";
        text.block = std::to_string(std::min(driver.mc(), problem.group_out())) + " output channels x " +
                     std::to_string(std::min(driver.nc(), problem.group_in() * problem.taps())) +
                     " weights, sums of at most " + std::to_string(chunk_pixels) + " pixels";
        text.reason = std::string("rank-1 updates by gradients of pixels and their patches, ") +
                      (driver.in_place() ? "which are lines of the input" : "which are copied to lines");
    }
};

template const Method<PixelSum<float>>& method_row<PatchProductsMethod, PixelSum<float>>();
template const Method<PixelSum<double>>& method_row<PatchProductsMethod, PixelSum<double>>();

}  // namespace convx
