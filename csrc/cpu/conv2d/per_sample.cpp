// Per-sample gradients and their squared norms. A squared norm is that of a gradient in the thread's scratch, or the
// ghost norm, which needs no gradient. For each group
//
//   grad_weight = sum over pixels i of g_i x_i^T, so |grad_weight|^2 = sum over i, j of (g_i . g_j) (x_i . x_j)
//
// where g_i are the K/G channels of grad_output at pixel i and x_i the C/G * R * S values that its window reads. A
// product x_i . x_j is the sum over the taps of products of single input pixels, so the window costs additions alone:
// three square matrices over pixels, two of them Gram matrices of channels, instead of one over all weights. That wins
// where there are fewer pixels than channels (takes_ghost_norm).
//
// The ghost norm is summed in float64 for both types: what the products of float32 numbers lose is the rounding of
// float64 sums, n 2^-53 |g|^2 |x|^2, which also bounds the result's error where terms of both signs cancel.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/conv2d/methods.h"
#include "cpu/runtime/registry.h"

namespace convx {

namespace {

// Channels staged in one go: a tile's 8 lines of 2 KiB stay in L1, and adding up its lanes costs 10 % of it.
constexpr int64_t chunk_channels = 256;

// What the windows of one axis read, as places among the indices that are read at all.
struct ReadAxis {
    explicit ReadAxis(const Axis& axis) : table(forward_table(axis)), mode(axis.mode) {
        for (const int64_t index : table.index)
            if (index != AxisTable::outside) source.push_back(index);
        std::sort(source.begin(), source.end());
        source.erase(std::unique(source.begin(), source.end()), source.end());
        place.reserve(table.index.size());
        for (const int64_t index : table.index)
            place.push_back(index == AxisTable::outside
                                ? AxisTable::outside
                                : std::lower_bound(source.begin(), source.end(), index) - source.begin());
    }
    int64_t taps() const { return static_cast<int64_t>(table.taps.size()); }
    int64_t positions() const { return table.positions; }
    int64_t at(int64_t tap, int64_t position) const {
        return place[static_cast<size_t>(tap * table.positions + position)];
    }
    int64_t count() const { return static_cast<int64_t>(source.size()); }

    AxisTable table;
    PaddingMode mode;
    std::vector<int64_t> source;  // ascending
    std::vector<int64_t> place;   // [tap][position]
};

// The pixels of an image that the Gram matrices are taken over.
struct PixelCounts {
    int64_t outputs;  // of grad_output
    int64_t inputs;   // of the input: those that a window reads, and one for a padding value
};
PixelCounts count_pixels(const ConvProblem& problem) {
    const ReadAxis h(problem.h), w(problem.w);
    return {h.positions() * w.positions(), h.count() * w.count() + (forward_border(problem).value != 0.0 ? 1 : 0)};
}

struct Scratch {
    Scratch(ScratchParts parts, const PixelCounts& pixels)
        : outputs(parts.take<double>(pixels.outputs * pixels.outputs)),
          inputs(parts.take<double>(pixels.inputs * pixels.inputs)),
          staged(parts.take<double>(std::max(pixels.outputs, pixels.inputs) * chunk_channels)),
          lines(parts.take<const double*>(std::max(pixels.outputs, pixels.inputs))),
          windows(parts.take<double>(pixels.outputs)), bytes(parts.bytes()) {}
    double* outputs;       // g_i . g_j
    double* inputs;        // products of input pixels
    double* staged;        // [pixel][channel of a chunk]
    const double** lines;  // the pixels of staged
    double* windows;       // x_i . x_j of one i
    int64_t bytes;
};

// products[i * pixels + j] = sum over channels of the values of pixels i and j; stage(first, count) puts some channels
// of all pixels into scratch.staged, chunk_channels apart.
template <class Stage>
void multiply_pixels(double* products, int64_t pixels, int64_t channels, const Scratch& scratch,
                     const KernelSet<double>& kernels, const Stage& stage) {
    const int64_t rows = kernels.dot_rows, columns = kernels.dot_columns, block = 2 * columns;
    for (int64_t i = 0; i < pixels; ++i) scratch.lines[i] = scratch.staged + i * chunk_channels;
    for (int64_t first = 0; first < channels; first += chunk_channels) {
        const int64_t depth = std::min(chunk_channels, channels - first);
        stage(first, depth);
        // Tiles on and above the diagonal: two columns of them stay in L1 while the rows come by.
        for (int64_t j0 = 0; j0 < pixels; j0 += block)
            for (int64_t i = 0; i < std::min(j0 + block, pixels); i += rows)
                for (int64_t j = j0; j < std::min(j0 + block, pixels); j += columns)
                    kernels.dot_tile(static_cast<int>(std::min(rows, pixels - i)),
                                     static_cast<int>(std::min(columns, pixels - j)), depth, scratch.lines + i,
                                     scratch.lines + j, {products + i * pixels + j, pixels, first > 0});
    }
    for (int64_t i = 0; i < pixels; ++i)
        for (int64_t j = 0; j < i; ++j) products[i * pixels + j] = products[j * pixels + i];
}

// Eight pixels at a time: as many lines are written, and whole cache lines read where pixels are adjacent.
template <class T>
void stage_pixels(double* staged, int64_t pixels, const T* const* pixel, int64_t channel_step, int64_t channels) {
    constexpr int64_t at_once = 8;
    for (int64_t i = 0; i < pixels; i += at_once) {
        const int64_t count = std::min(at_once, pixels - i);
        if (channel_step == 1) {
            for (int64_t p = i; p < i + count; ++p)
                for (int64_t c = 0; c < channels; ++c)
                    staged[p * chunk_channels + c] = static_cast<double>(pixel[p][c]);
            continue;
        }
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t p = i; p < i + count; ++p)
                staged[p * chunk_channels + c] = static_cast<double>(pixel[p][c * channel_step]);
    }
}

template <class T>
class GhostNorm {
public:
    GhostNorm(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
              const KernelSet<double>& kernels)
        : problem_(problem), grad_(grad_output), input_(input), kernels_(kernels), h_(problem.h), w_(problem.w),
          read_(h_.count() * w_.count()), reads_value_(forward_border(problem).value != 0.0),
          counts_{h_.positions() * w_.positions(), read_ + (reads_value_ ? 1 : 0)} {}

    double run() const {
        const Workspace workspace(static_cast<size_t>(Scratch(ScratchParts(), counts_).bytes));
        const Scratch scratch(ScratchParts(workspace.data()), counts_);
        double norm = 0;
        for (int64_t group = 0; group < problem_.groups; ++group) {
            multiply_outputs(group, scratch);
            multiply_inputs(group, scratch);
            norm += sum_products(scratch);
        }
        return norm;
    }

private:
    void multiply_outputs(int64_t group, const Scratch& scratch) const {
        std::vector<const T*> pixel;
        for (int64_t p = 0; p < h_.positions(); ++p)
            for (int64_t q = 0; q < w_.positions(); ++q)
                pixel.push_back(grad_.at(0, group * problem_.group_out(), p, q));
        multiply_pixels(scratch.outputs, counts_.outputs, problem_.group_out(), scratch, kernels_,
                        [&](int64_t first, int64_t count) { stage(scratch, pixel, grad_.stride[1], first, count); });
    }

    void multiply_inputs(int64_t group, const Scratch& scratch) const {
        std::vector<const T*> pixel;
        for (const int64_t row : h_.source)
            for (const int64_t column : w_.source)
                pixel.push_back(input_.at(0, group * problem_.group_in(), row, column));
        multiply_pixels(scratch.inputs, counts_.inputs, problem_.group_in(), scratch, kernels_,
                        [&](int64_t first, int64_t count) {
                            stage(scratch, pixel, input_.stride[1], first, count);
                            const auto value = static_cast<double>(static_cast<T>(problem_.padding_value));
                            if (reads_value_) std::fill_n(scratch.staged + read_ * chunk_channels, count, value);
                        });
    }

    static void stage(const Scratch& scratch, const std::vector<const T*>& pixel, int64_t channel_step, int64_t first,
                      int64_t count) {
        std::vector<const T*> from(pixel);
        for (const T*& one : from) one += first * channel_step;
        stage_pixels(scratch.staged, static_cast<int64_t>(from.size()), from.data(), channel_step, count);
    }

    // The place among the products of input pixels that tap (r, s) of window (p, q) reads; AxisTable::outside for none.
    int64_t place(int64_t row, int64_t column) const {
        const bool outside_h = row == AxisTable::outside, outside_w = column == AxisTable::outside;
        if (!outside_h && !outside_w) return row * w_.count() + column;
        const bool skipped = (outside_h && h_.mode == PaddingMode::zeros) ||
                             (outside_w && w_.mode == PaddingMode::zeros) || !reads_value_;
        return skipped ? AxisTable::outside : read_;
    }

    // Symmetric, so pairs of pixels once.
    double sum_products(const Scratch& scratch) const {
        double norm = 0;
        for (int64_t i = 0; i < counts_.outputs; ++i) {
            multiply_windows(i, scratch);
            const double* const outputs = scratch.outputs + i * counts_.outputs;
            double sums[4] = {};
            for (int64_t j = i + 1; j < counts_.outputs; ++j) sums[j % 4] += outputs[j] * scratch.windows[j];
            norm += outputs[i] * scratch.windows[i] + 2 * ((sums[0] + sums[1]) + (sums[2] + sums[3]));
        }
        return norm;
    }

    // windows[j] = x_i . x_j from the row of i's first pixel on.
    void multiply_windows(int64_t i, const Scratch& scratch) const {
        const int64_t rows = h_.positions(), columns = w_.positions(), first = i / columns;
        std::fill(scratch.windows + first * columns, scratch.windows + rows * columns, 0.0);
        for (int64_t r = 0; r < h_.taps(); ++r)
            for (int64_t s = 0; s < w_.taps(); ++s) {
                const int64_t own = place(h_.at(r, first), w_.at(s, i % columns));
                if (own == AxisTable::outside) continue;
                const double* const products = scratch.inputs + own * counts_.inputs;
                for (int64_t p = first; p < rows; ++p) add_row(scratch.windows + p * columns, products, h_.at(r, p), s);
            }
    }

    void add_row(double* windows, const double* products, int64_t row, int64_t s) const {
        const AxisTable::Tap& tap = w_.table.taps[static_cast<size_t>(s)];
        const int64_t inside = tap.end - tap.begin;
        int64_t begin = 0, end = 0;
        if (row != AxisTable::outside && inside > 0 && w_.at(s, tap.end - 1) - w_.at(s, tap.begin) == inside - 1) {
            const double* const from = products + row * w_.count() + w_.at(s, tap.begin);
            begin = tap.begin;
            end = tap.end;
            for (int64_t q = 0; q < inside; ++q) windows[begin + q] += from[q];
        }
        for (int64_t q = 0; q < w_.positions(); ++q) {
            if (q == begin) q = end;
            if (q == w_.positions()) break;
            const int64_t at = place(row, w_.at(s, q));
            if (at != AxisTable::outside) windows[q] += products[at];
        }
    }

    const ConvProblem& problem_;
    const TensorView<const T> grad_, input_;
    const KernelSet<double>& kernels_;
    const ReadAxis h_, w_;
    const int64_t read_;
    const bool reads_value_;
    const PixelCounts counts_;
};

// Whether a norm is taken from Gram matrices instead of from the gradient.
bool takes_ghost_norm(const ConvProblem& problem) {
    if (problem.algorithm != Algorithm::automatic || problem.in_channels == 0) return false;
    // Before the tables of a large image are made. More pixels than this lose against any number of channels.
    if (problem.out_pixels() > 1024 || problem.h.input * problem.w.input > int64_t{1} << 16) return false;
    const PixelCounts pixels = count_pixels(problem);
    if (pixels.inputs > 1024) return false;
    // In multiplications of the GEMM's type. Winograd's method takes about 0.4 of them; those of pixels are in float64,
    // half of them for symmetry, at 0.75 of the speed; an addition of a window's product costs as much as 8, and
    // staging a number as 16.
    const auto squared = [](int64_t count) { return static_cast<double>(count) * static_cast<double>(count); };
    const double taps = static_cast<double>(problem.taps()), groups = static_cast<double>(problem.groups);
    const double rows = static_cast<double>(problem.group_out()), columns = static_cast<double>(problem.group_in());
    const double multiplications = traits_of(problem, ConvPass::grad_weight).multiplications;
    const double gradient = groups * rows * columns * taps * static_cast<double>(problem.out_pixels()) *
                            multiplications * (problem.dtype == DType::float64 ? 2.0 : 1.0);
    const double ghost =
        groups * (1.3 * (squared(pixels.outputs) * rows + squared(pixels.inputs) * columns) +
                  8 * squared(pixels.outputs) * taps +
                  16 * (static_cast<double>(pixels.outputs) * rows + static_cast<double>(pixels.inputs) * columns));
    return ghost < gradient;
}

// Images that are taken in parallel, one by each thread; the others go in turn, and the threads share each. An image a
// thread needs no synchronisation, and its pixel sum no split-K. The rest, fewer than threads, would leave threads
// idle: they share each of its images, unless these are too small for that.
int64_t samples_together(int64_t samples, int64_t flops_of_one, int threads) {
    return parallel_width(flops_of_one) == 1 ? samples : samples - samples % threads;
}

// work(image) for every image. Nested in a task, the passes of conv2d run on its thread alone, to the same bits.
template <class Work>
void for_each_sample(int64_t samples, int64_t flops_of_one, const Work& work) {
    const int64_t together = samples_together(samples, flops_of_one, num_threads());
    parallel_for(together, parallel_width(samples * flops_of_one), [&](int64_t n, int) { work(n); });
    for (int64_t n = together; n < samples; ++n) work(n);
}

template <class T>
double sum_of_squares(const T* values, int64_t count) {
    double sums[8] = {};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        for (int64_t lane = 0; lane < 8; ++lane) {
            const auto value = static_cast<double>(values[i + lane]);
            sums[lane] += value * value;
        }
    for (; i < count; ++i) sums[i % 8] += static_cast<double>(values[i]) * static_cast<double>(values[i]);
    double sum = 0;
    for (const double lane : sums) sum += lane;
    return sum;
}

template <class T>
double norm_of_gradient(const ConvProblem& single, TensorView<const T> grad_output, TensorView<const T> input) {
    const Workspace workspace(static_cast<size_t>(element_count(single.weight_shape())) * sizeof(T));
    const auto gradient = dense_view(static_cast<T*>(workspace.data()), single.weight_shape(), false);
    conv2d_grad_weight(single, grad_output, input, gradient);
    return sum_of_squares(gradient.data, gradient.size());
}

PassPlan plan_one(const ConvProblem& problem, ConvPass pass, const Kernels& kernels, int threads) {
    return plan_conv(problem.of_batch(1), pass, kernels, threads);
}

// A plan for one image becomes that of all of them; images in parallel have each its scratch.
void repeat(PassPlan& plan, const ConvProblem& problem, int threads, int64_t scratch_of_one) {
    const int64_t together = samples_together(problem.batch, plan.flops, threads);
    if (together > 0) {
        plan.threads =
            std::min<int64_t>({parallel_width(problem.batch * plan.flops), threads, std::max<int64_t>(together, 1)});
        plan.tasks = problem.batch;
        plan.reason += "; images in parallel, one a thread";
        if (together < problem.batch) plan.reason += ", the last ones shared by the threads";
    } else {
        plan.reason += "; one image after the other, shared by the threads";
    }
    plan.scratch_bytes = scratch_of_one * (together > 0 ? plan.threads : 1);
    plan.flops *= problem.batch;
}

}  // namespace

template <class T>
void conv2d_per_sample_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output,
                                   TensorView<const T> input, T* grad_weight) {
    const ConvProblem single = problem.of_batch(1);
    const auto first = dense_view(grad_weight, single.weight_shape(), false);
    for_each_sample(problem.batch, single.flops(), [&](int64_t n) {
        TensorView<T> own = first;
        own.data += n * first.size();
        conv2d_grad_weight(single, grad_output.images(n, 1), input.images(n, 1), own);
    });
}

template <class T>
void conv2d_grad_weight_norms(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                              double* norms) {
    const ConvProblem single = problem.of_batch(1);
    if (problem.in_channels == 0) return std::fill_n(norms, problem.batch, 0.0), void();
    if (!takes_ghost_norm(problem)) {
        for_each_sample(problem.batch, single.flops(), [&](int64_t n) {
            norms[n] = norm_of_gradient(single, grad_output.images(n, 1), input.images(n, 1));
        });
        return;
    }
    const KernelSet<double>& kernels = active_kernels().f64;
    parallel_for(problem.batch, parallel_width(problem.flops()), [&](int64_t n, int) {
        const auto grad = grad_output.images(n, 1), image = input.images(n, 1);
        norms[n] = GhostNorm<T>(single, grad, image, kernels).run();
        // Gram matrices multiply what the gradient skips, and their squares overflow earlier.
        if (!std::isfinite(norms[n]))
            norms[n] = norm_of_gradient(single, grad, image);
        else
            norms[n] = std::max(norms[n], 0.0);  // rounding, where everything cancels
    });
}

PassPlan plan_per_sample_grad_weight(const ConvProblem& problem, const Kernels& kernels, int threads) {
    PassPlan plan = plan_one(problem, ConvPass::grad_weight, kernels, threads);
    plan.bytes *= problem.batch;
    repeat(plan, problem, threads, plan.scratch_bytes);
    return plan;
}

PassPlan plan_per_sample_grad_bias(const ConvProblem& problem, const Kernels& kernels, int threads) {
    PassPlan plan = plan_conv(problem, ConvPass::grad_bias, kernels, threads);
    plan.block = "1 channel of 1 image";
    plan.tasks = problem.batch * problem.out_channels;
    plan.threads = std::min<int64_t>({parallel_width(8 * plan.flops), threads, std::max<int64_t>(plan.tasks, 1)});
    return plan;
}

PassPlan plan_grad_weight_norms(const ConvProblem& problem, const Kernels& kernels, int threads) {
    PassPlan plan = plan_one(problem, ConvPass::grad_weight, kernels, threads);
    const auto [k, c, r, s] = problem.weight_shape();
    const int64_t gradient = k * c * r * s * item_size(problem.dtype);
    plan.bytes = (plan.bytes - gradient) * problem.batch;
    plan.pass = "weight_norms";
    if (!takes_ghost_norm(problem)) {
        plan.reason += "; squares of a gradient that each thread keeps to itself";
        repeat(plan, problem, threads, plan.scratch_bytes + gradient);
        return plan;
    }
    const PixelCounts pixels = count_pixels(problem);
    const auto pairs = [](int64_t count) { return count * (count + 1) / 2; };
    plan.algorithm = "ghost norm";
    plan.tile =
        std::to_string(kernels.f64.dot_rows) + " x " + std::to_string(kernels.f64.dot_columns) + " products in float64";
    plan.block = "1 image: products of " + std::to_string(pixels.outputs) + " pixels of grad_output and of " +
                 std::to_string(pixels.inputs) + " of the input";
    plan.flops = problem.batch * problem.groups *
                 (2 * (pairs(pixels.outputs) * problem.group_out() + pairs(pixels.inputs) * problem.group_in()) +
                  pairs(pixels.outputs) * (problem.taps() + 2));
    plan.tasks = problem.batch;
    plan.threads = std::min<int64_t>({parallel_width(problem.flops()), threads, std::max<int64_t>(problem.batch, 1)});
    plan.scratch_bytes = plan.threads * Scratch(ScratchParts(), pixels).bytes;
    plan.reason = "fewer pixels than channels, so the norm is summed over pairs of pixels and no gradient is made";
    return plan;
}

PassPlan plan_grad_bias_norms(const ConvProblem& problem, const Kernels& kernels, int threads) {
    PassPlan plan = plan_conv(problem, ConvPass::grad_bias, kernels, threads);
    plan.pass = "bias_norms";
    plan.block = "1 image";
    plan.tasks = std::max<int64_t>(problem.batch, 1);
    plan.threads = std::min<int64_t>({parallel_width(8 * plan.flops), threads, plan.tasks});
    return plan;
}

template void conv2d_per_sample_grad_weight(const ConvProblem&, TensorView<const float>, TensorView<const float>,
                                            float*);
template void conv2d_per_sample_grad_weight(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                                            double*);
template void conv2d_grad_weight_norms(const ConvProblem&, TensorView<const float>, TensorView<const float>, double*);
template void conv2d_grad_weight_norms(const ConvProblem&, TensorView<const double>, TensorView<const double>, double*);

}  // namespace convx
