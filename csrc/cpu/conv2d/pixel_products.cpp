#include "cpu/conv2d/pixel_products.h"

#include <algorithm>
#include <vector>

#include "cpu/conv2d/axis_table.h"
#include "cpu/runtime/scratch_parts.h"
#include "cpu/runtime/workspace.h"

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
class Norm {
public:
    Norm(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
         const KernelSet<double>& kernels)
        : problem_(problem), grad_(grad_output), input_(input), kernels_(kernels), h_(problem.h), w_(problem.w),
          read_(h_.count() * w_.count()), reads_value_(forward_border(problem).value != 0.0),
          counts_{h_.positions() * w_.positions(), read_ + (reads_value_ ? 1 : 0)} {}

    double run() const {
        const Workspace workspace(static_cast<size_t>(pixel_products_scratch(counts_)));
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

}  // namespace

PixelCounts count_pixels(const ConvProblem& problem) {
    const ReadAxis h(problem.h), w(problem.w);
    return {h.positions() * w.positions(), h.count() * w.count() + (forward_border(problem).value != 0.0 ? 1 : 0)};
}

int64_t pixel_products_scratch(const PixelCounts& pixels) { return Scratch(ScratchParts(), pixels).bytes; }

template <class T>
double norm_by_pixels(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                      const KernelSet<double>& kernels) {
    return Norm<T>(problem, grad_output, input, kernels).run();
}

template double norm_by_pixels(const ConvProblem&, TensorView<const float>, TensorView<const float>,
                               const KernelSet<double>&);
template double norm_by_pixels(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                               const KernelSet<double>&);

}  // namespace convx
