// The input gradient as a product with the weights, whose rows are then added where their windows lie (col2im).
//
//   tile[p][c, r, s] = sum over k of grad_output[n, k, p] * weight[k][c, r, s]
//   grad_input[n, c, h(r, p), w(s, q)] += tile[p][c, r, s]
//
// For few output pixels: the other methods sum for each input pixel over the taps that may have read it, which is more
// work the smaller the output is (a 28 x 28 window on its own plane: 784 times); this one does what forward does.
// Weights are read in place, once for up to 12 tiles of pixels. Pixels are added in ascending order.
#include "common/rounding.h"
#include "cpu/conv2d/lines.h"
#include "cpu/conv2d/method_row.h"

namespace convx {

namespace {

// Of one task: columns of the tile (4 KiB of each weight line in float32), pixels at a time, and the output channels
// that are summed in registers.
constexpr int64_t most_columns = 1024, tile_bytes = 256 * 1024, slice = 64;

template <class T>
struct Scratch {
    Scratch(ScratchParts parts, int64_t pixels, int64_t columns, int64_t nr)
        : tile(parts.take<T>(pixels * columns)), tail(parts.take<T>(slice * nr)),
          gradient(parts.take<const T*>(pixels)), bytes(parts.bytes()) {}
    T* tile;             // [pixel][channel, tap]
    T* tail;             // the last columns of the weights, with zeros behind them
    const T** gradient;  // [pixel]: where its output channels stand
    int64_t bytes;
};

template <class T>
class Col2imDriver {
public:
    Col2imDriver(const WindowSum<T>& sum, const KernelSet<T>& kernels)
        : sum_(sum), problem_(*sum.problem), kernels_(kernels), h_(forward_table(problem_.h)),
          w_(forward_table(problem_.w)), taps_(problem_.taps()), plane_(h_.positions * w_.positions),
          gradient_in_place_(sum.source.stride[1] == 1), weights_(sum.weight_view),
          channels_(std::clamp(most_columns / taps_, int64_t{1}, std::max<int64_t>(sum.rows, 1))),
          pixels_(std::clamp<int64_t>(tile_bytes / (columns() * int64_t{sizeof(T)}), kernels.mr, 12 * kernels.mr)),
          images_(std::clamp<int64_t>(pixels_ / std::max<int64_t>(plane_, 1), 1, std::max<int64_t>(sum.batch, 1))) {}

    int64_t channels() const { return channels_; }
    int64_t pixels() const { return std::min(pixels_, images_ * plane_); }

    TaskPlan tasks() const {
        const int64_t copied = weights_.copied() + (gradient_in_place_ ? 0 : sum_.source.size());
        return {ceil_div(sum_.batch, images_) * sum_.groups * ceil_div(sum_.rows, channels_), sum_.flops(),
                cache_lines(copied * int64_t{sizeof(T)}),
                Scratch<T>(ScratchParts(), pixels_, columns(), kernels_.nr).bytes};
    }

    void run() {
        const TaskPlan plan = tasks();
        const TaskRunner runner(plan);
        T* const copies = static_cast<T*>(runner.shared());
        weights_.prepare(copies, runner.width());
        if (!gradient_in_place_) copy_gradient(copies + weights_.copied(), runner.width());
        const int64_t blocks = ceil_div(sum_.batch, images_), channel_blocks = ceil_div(sum_.rows, channels_);
        runner.run(plan.tasks, [&](int64_t task, ScratchParts parts) {
            const int64_t channel = task / blocks % channel_blocks * channels_, n = task % blocks * images_;
            run_task(task / blocks / channel_blocks, channel, std::min(channels_, sum_.rows - channel), n,
                     std::min(images_, sum_.batch - n), Scratch<T>(parts, pixels_, columns(), kernels_.nr));
        });
    }

private:
    int64_t columns() const { return channels_ * taps_; }

    // To [image][pixel][output channel].
    void copy_gradient(T* to, int threads) {
        const TensorView<const T>& from = sum_.source;
        const int64_t all = from.shape[1];
        parallel_for(sum_.batch * h_.positions, threads, [&](int64_t row, int) {
            for (int64_t j = 0; j < w_.positions; ++j)
                for (int64_t k = 0; k < all; ++k)
                    to[(row * w_.positions + j) * all + k] = *from.at(row / h_.positions, k, row % h_.positions, j);
        });
        gradient_ = to;
    }
    // Pixels are counted over the whole batch.
    const T* gradient_at(int64_t pixel) const {
        if (gradient_) return gradient_ + pixel * sum_.source.shape[1];
        const auto [n, i, j] = place_of(h_.positions, w_.positions, pixel);
        return sum_.source.at(n, 0, i, j);
    }

    void run_task(int64_t group, int64_t channel, int64_t channels, int64_t first_image, int64_t images,
                  const Scratch<T>& scratch) const {
        const int64_t first = group * sum_.rows + channel;
        for (int64_t n = first_image; n < first_image + images; ++n) clear(n, first, channels);
        const int64_t last = (first_image + images) * plane_;
        for (int64_t pixel = first_image * plane_; pixel < last; pixel += pixels_) {
            const int64_t count = std::min(pixels_, last - pixel);
            for (int64_t p = 0; p < count; ++p) scratch.gradient[p] = gradient_at(pixel + p);
            multiply(group, channel * taps_, channels * taps_, count, scratch);
            for (int64_t p = 0; p < count; ++p) add(pixel + p, first, channels, scratch.tile + p * columns());
        }
        if (sum_.bias)
            for (int64_t n = first_image; n < first_image + images; ++n) add_bias(n, first, channels);
    }

    // tile[pixel][column] for all output channels of the group, slice by slice.
    void multiply(int64_t group, int64_t first_column, int64_t count, int64_t pixels, const Scratch<T>& scratch) const {
        const int64_t mr = kernels_.mr, nr = kernels_.nr, whole = count / nr * nr;
        for (int64_t k = 0; k < sum_.channels; k += slice) {
            const int64_t depth = std::min(slice, sum_.channels - k), line = group * sum_.channels + k;
            const T* weights = weights_[line] + first_column;
            for (int64_t d = 0; whole < count && d < depth; ++d) {
                T* to = std::copy_n(weights + d * weights_.step() + whole, count - whole, scratch.tail + d * nr);
                std::fill(to, scratch.tail + (d + 1) * nr, T(0));
            }
            for (int64_t p = 0; p < pixels; p += mr) {
                const int rows = static_cast<int>(std::min(mr, pixels - p));
                const T* gradient[16];
                for (int i = 0; i < rows; ++i) gradient[i] = scratch.gradient[p + i] + line;
                T* tile = scratch.tile + p * columns();
                for (int64_t column = 0; column < count; column += nr) {
                    const bool in_place = column < whole;
                    kernels_.gemm_tile_rows(rows, static_cast<int>(std::min(nr, count - column)), depth, gradient,
                                            in_place ? weights + column : scratch.tail, in_place ? weights_.step() : nr,
                                            {tile + column, columns(), k > 0});
                }
            }
        }
    }

    template <class Body>
    void for_each_line(int64_t n, int64_t first, int64_t channels, const Body& body) const {
        for (int64_t c = first; c < first + channels; ++c)
            for (int64_t y = 0; y < sum_.dest.shape[2]; ++y) body(c, sum_.dest.at(n, c, y, 0));
    }
    void clear(int64_t n, int64_t first, int64_t channels) const {
        for_each_line(n, first, channels, [&](int64_t, T* to) {
            for (int64_t x = 0; x < sum_.dest.shape[3]; ++x) to[x * sum_.dest.stride[3]] = T(0);
        });
    }
    void add_bias(int64_t n, int64_t first, int64_t channels) const {
        for_each_line(n, first, channels, [&](int64_t c, T* to) {
            for (int64_t x = 0; x < sum_.dest.shape[3]; ++x)
                to[x * sum_.dest.stride[3]] += sum_.bias[c * sum_.bias_stride];
        });
    }

    // The taps of one pixel; those outside the image are dropped.
    void add(int64_t pixel, int64_t first, int64_t channels, const T* tile) const {
        const auto [n, i, j] = place_of(h_.positions, w_.positions, pixel);
        const int64_t height = problem_.h.kernel, width = problem_.w.kernel, step = sum_.dest.stride[3];
        const bool line = step == 1 && problem_.w.dilation == 1 && w_.at(0, j) != AxisTable::outside &&
                          w_.at(width - 1, j) != AxisTable::outside;
        for (int64_t c = first; c < first + channels; ++c)
            for (int64_t r = 0; r < height; ++r, tile += width) {
                const int64_t y = h_.at(r, i);
                if (y == AxisTable::outside) continue;
                T* to = sum_.dest.at(n, c, y, 0);
                if (line) {
                    to += w_.at(0, j);
                    for (int64_t s = 0; s < width; ++s) to[s] += tile[s];
                    continue;
                }
                for (int64_t s = 0; s < width; ++s)
                    if (w_.at(s, j) != AxisTable::outside) to[w_.at(s, j) * step] += tile[s];
            }
    }

    const WindowSum<T>& sum_;
    const ConvProblem& problem_;
    const KernelSet<T>& kernels_;
    const AxisTable h_, w_;  // of the forward pass
    const int64_t taps_, plane_;
    const bool gradient_in_place_;
    WeightLines<T> weights_;
    const T* gradient_ = nullptr;  // the copy, if there is one
    const int64_t channels_;       // of a task
    const int64_t pixels_;         // of a tile
    const int64_t images_;         // of a task
};

}  // namespace

struct Col2imMethod : DriverMethod<Col2imDriver> {
    static constexpr const char* name = "col2im";
    static constexpr Traits traits{Algorithm::direct, false, false};

    static Verdict supports(const ConvProblem&, ConvPass pass) {
        if (pass != ConvPass::grad_input) return {"computes the input gradient alone"};
        return {};
    }
    static Work work(const WorkSizes& sizes) {
        Work work = sizes.common();
        const ConvProblem& problem = sizes.problem;
        const double pixels = static_cast<double>(problem.out_pixels()), taps = static_cast<double>(problem.taps());
        const TileGrid grid(pixels, sizes.tile.mr, sizes.vectors(sizes.rows * taps), sizes.tile.nr_vectors);
        work[WorkKind::cycles] = sizes.groups * sizes.channels * grid.cycles;
        work[WorkKind::tiles] = sizes.groups * grid.tiles * std::ceil(sizes.channels / slice);
        work[WorkKind::transposes] = sizes.groups * sizes.rows * taps * pixels;
        work[WorkKind::runs] = sizes.groups * sizes.rows * static_cast<double>(problem.h.kernel) * pixels;
        return work;
    }

    template <class T>
    static void run(const WindowSum<T>&, Col2imDriver<T>& driver, const KernelSet<T>&) {
        driver.run();
    }

    template <class T>
    static void describe(const WindowSum<T>& sum, const Col2imDriver<T>& driver, const KernelSet<T>& kernels,
                         PassPlan& text) {
        text.tile = std::to_string(kernels.mr) + " pixels x " + std::to_string(kernels.nr) + " weights";
        text.block = std::to_string(driver.pixels()) + " output pixels x " + std::to_string(driver.channels()) +
                     " input channels, sums of " + std::to_string(std::min(slice, sum.channels)) + " output channels";
        text.reason = "every output pixel times the weights, added to the input pixels of its window";
    }
};

template const Method<WindowSum<float>>& method_row<Col2imMethod, WindowSum<float>>();
template const Method<WindowSum<double>>& method_row<Col2imMethod, WindowSum<double>>();

}  // namespace convx
