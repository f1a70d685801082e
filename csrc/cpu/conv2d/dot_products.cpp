// Forward as dot products of lines of memory: what a window covers, and the weights of an output channel.
//
//   dest[n, row, i, j] = sum over d of patch[n, i, j][d] * weight[row][d],  d = (channel, tap)
//
// For a few output pixels an image: fully connected layers, squeeze-and-excitation, windows as large as the plane. A
// packed operand would be read once there, and the weights are the larger part of the traffic: they are read in place,
// once for up to 64 pixels. A window that is a line of memory itself (a 1x1 plane, all channels of a pixel, whole rows)
// is read in place too. Vectors run along d, so that neither pixels nor rows have to fill one (dot_tile.inl.h).
#include "common/rounding.h"
#include "cpu/conv2d/lines.h"
#include "cpu/conv2d/method_row.h"

namespace convx {

namespace {

// A line of 4 KiB in float32: a tile of 4 pixels and 6 rows (40 KiB) stays in L1 or nearly so.
constexpr int64_t most_depth = 1024;
// Pixels whose lines stay in L2 while the weights pass by, and windows that are copied at a time.
constexpr int64_t block_pixels = 64, copied_bytes = 1 << 20;

template <class T>
struct Scratch {
    Scratch(ScratchParts parts, int64_t pixels, int64_t rows)
        : sums(parts.take<T>(pixels * rows)), pixel(parts.take<const T*>(pixels)), row(parts.take<const T*>(rows)),
          bytes(parts.bytes()) {}
    T* sums;          // [pixel][row]
    const T** pixel;  // where the line of a pixel stands
    const T** row;    // and that of a row
    int64_t bytes;
};

template <class T>
class DotProductsDriver {
public:
    DotProductsDriver(const WindowSum<T>& sum, const KernelSet<T>& kernels)
        : sum_(sum), problem_(*sum.problem), kernels_(kernels), patches_(problem_, sum.source, sum.pad()),
          depth_(std::max<int64_t>(sum.channels * problem_.taps(), 1)), all_pixels_(sum.batch * problem_.out_pixels()),
          weights_(sum.weight_view), round_(std::clamp<int64_t>(patches_.in_place() ? all_pixels_ : most_copied(), 1,
                                                                std::max<int64_t>(all_pixels_, 1))),
          pixels_(std::min(block_pixels, round_)), rows_(block_rows()) {}

    int64_t slice() const { return ceil_div(depth_, ceil_div(depth_, most_depth)); }
    int64_t rows() const { return rows_; }
    int64_t pixels() const { return pixels_; }
    bool source_in_place() const { return patches_.in_place(); }

    TaskPlan tasks() const {
        const int64_t copied = (patches_.in_place() ? 0 : sum_.groups * round_ * depth_) + weights_.copied();
        return {round_tasks(round_), sum_.flops(), cache_lines(copied * static_cast<int64_t>(sizeof(T))),
                Scratch<T>(ScratchParts(), pixels_, rows_).bytes};
    }

    void run() {
        const TaskRunner runner(tasks());
        T* const copies = static_cast<T*>(runner.shared());
        T* const copied = copies + weights_.copied();
        weights_.prepare(copies, runner.width());
        for (int64_t first = 0; first < all_pixels_; first += round_) {
            const int64_t count = std::min(round_, all_pixels_ - first);
            if (!patches_.in_place())
                parallel_for(sum_.groups * count, runner.width(), [&](int64_t line, int) {
                    patches_.copy(line / count, first + line % count, copied + line * depth_);
                });
            const int64_t row_blocks = ceil_div(sum_.rows, rows_), pixel_blocks = ceil_div(count, pixels_);
            runner.run(round_tasks(count), [&](int64_t task, ScratchParts parts) {
                const Scratch<T> scratch(parts, pixels_, rows_);
                const int64_t group = task / row_blocks / pixel_blocks;
                const int64_t row = task / pixel_blocks % row_blocks * rows_, pixel = task % pixel_blocks * pixels_;
                const int64_t rows = std::min(rows_, sum_.rows - row), pixels = std::min(pixels_, count - pixel);
                for (int64_t i = 0; i < rows; ++i) scratch.row[i] = weights_[group * sum_.rows + row + i];
                for (int64_t i = 0; i < pixels; ++i)
                    scratch.pixel[i] = patches_.in_place() ? patches_.at(group, first + pixel + i)
                                                           : copied + (group * count + pixel + i) * depth_;
                multiply(pixels, rows, scratch);
                write(group * sum_.rows + row, rows, first + pixel, pixels, scratch);
            });
        }
    }

private:
    int64_t most_copied() const { return std::max(copied_bytes / (depth_ * int64_t{sizeof(T)}), block_pixels); }
    int64_t round_tasks(int64_t pixels) const {
        return sum_.groups * ceil_div(sum_.rows, rows_) * ceil_div(pixels, pixels_);
    }
    // As many tiles of rows as make a task, and as leave room for their sums in L1.
    int64_t block_rows() const {
        const int64_t tiles = ceil_div(std::max<int64_t>(sum_.rows, 1), kernels_.dot_columns);
        const int64_t blocks = sum_.groups * ceil_div(round_, pixels_);
        const int64_t own = units_of_a_task(tiles * blocks, 2 * depth_ * pixels_ * kernels_.dot_columns);
        return std::min<int64_t>({own, tiles, 96 / kernels_.dot_columns}) * kernels_.dot_columns;
    }

    // Slice by slice of the depth, which follows from the depth alone.
    void multiply(int64_t pixels, int64_t rows, const Scratch<T>& scratch) const {
        const int64_t mr = kernels_.dot_rows, nr = kernels_.dot_columns, slice = this->slice();
        const T* pixel[block_pixels];
        for (int64_t d = 0; d < depth_; d += slice) {
            const int64_t depth = std::min(slice, depth_ - d);
            for (int64_t i = 0; i < pixels; ++i) pixel[i] = scratch.pixel[i] + d;
            for (int64_t j = 0; j < rows; j += nr) {
                const T* row[16];
                const int count = static_cast<int>(std::min(nr, rows - j));
                for (int t = 0; t < count; ++t) row[t] = scratch.row[j + t] + d;
                for (int64_t i = 0; i < pixels; i += mr)
                    kernels_.dot_tile(static_cast<int>(std::min(mr, pixels - i)), count, depth, pixel + i, row,
                                      {scratch.sums + i * rows_ + j, rows_, d > 0});
            }
        }
    }

    void write(int64_t first_row, int64_t rows, int64_t first_pixel, int64_t pixels, const Scratch<T>& scratch) const {
        for (int64_t p = 0; p < pixels; ++p) {
            const auto [n, i, j] = patches_.place(first_pixel + p);
            T* sums = scratch.sums + p * rows_;
            if (sum_.bias)
                for (int64_t row = 0; row < rows; ++row) sums[row] += sum_.bias[(first_row + row) * sum_.bias_stride];
            if (sum_.relu)
                for (int64_t row = 0; row < rows; ++row) sums[row] = sums[row] <= T(0) ? T(0) : sums[row];
            T* to = sum_.dest.at(n, first_row, i, j);
            for (int64_t row = 0; row < rows; ++row) to[row * sum_.dest.stride[1]] = sums[row];
        }
    }

    const WindowSum<T>& sum_;
    const ConvProblem& problem_;
    const KernelSet<T>& kernels_;
    const PatchLines<T> patches_;
    const int64_t depth_, all_pixels_;
    WeightLines<T> weights_;
    const int64_t round_;   // pixels whose windows are copied before the tasks run
    const int64_t pixels_;  // of a task
    const int64_t rows_;    // of a task
};

}  // namespace

struct DotProductsMethod : DriverMethod<DotProductsDriver> {
    static constexpr const char* name = "dot-products";
    static constexpr Traits traits{};

    static Verdict supports(const ConvProblem&, ConvPass pass) {
        if (pass != ConvPass::forward) return {"computes forward alone"};
        return {};
    }
    static Work work(const WorkSizes& sizes) {
        Work work = sizes.common();
        const TileSizes& tile = sizes.tile;
        const double pixels = sizes.h.dest * sizes.w.dest, depth = sizes.channels * sizes.taps;
        const TileGrid grid(pixels, tile.dot_rows, sizes.rows, tile.dot_columns);
        work[WorkKind::cycles] = sizes.groups * sizes.vectors(depth) * grid.cycles;
        work[WorkKind::tiles] = sizes.groups * grid.tiles * std::ceil(depth / most_depth);
        const ConvProblem& problem = sizes.problem;
        if (!covers_lines(problem, dense_strides(problem.input_shape(), problem.channels_last)))
            work[WorkKind::transposes] = sizes.groups * pixels * depth;
        return work;
    }

    template <class T>
    static void run(const WindowSum<T>&, DotProductsDriver<T>& driver, const KernelSet<T>&) {
        driver.run();
    }

    template <class T>
    static void describe(const WindowSum<T>& sum, const DotProductsDriver<T>& driver, const KernelSet<T>& kernels,
                         PassPlan& text) {
        text.tile = std::to_string(kernels.dot_rows) + " pixels x " + std::to_string(kernels.dot_columns) + " channels";
        text.block = std::to_string(driver.pixels()) + " pixels x " +
                     std::to_string(std::min(driver.rows(), sum.rows)) + " channels, sums of " +
                     std::to_string(driver.slice()) + " products";
        text.reason = std::string("dot products of the weights, read in place, and windows, ") +
                      (driver.source_in_place() ? "which are lines of the input" : "which are copied to lines");
    }
};

template const Method<WindowSum<float>>& method_row<DotProductsMethod, WindowSum<float>>();
template const Method<WindowSum<double>>& method_row<DotProductsMethod, WindowSum<double>>();

}  // namespace convx
