#include "cpu/conv2d/depthwise.h"

#include <algorithm>

#include "common/rounding.h"
#include "cpu/scratch_parts.h"
#include "cpu/thread_pool.h"
#include "cpu/workspace.h"

namespace convx {

namespace {

// What the channel's kernel needs beside the arrays: weights by tap, the bias, a row of border values.
template <class T>
struct PixelScratch {
    PixelScratch(ScratchParts parts, int64_t channels, int64_t taps)
        : weights(parts.take<T>(taps * channels)), bias(parts.take<T>(channels)), border(parts.take<T>(channels)),
          bytes(parts.bytes()) {}
    T* weights;  // [class of rows][class of columns][tap][channel]
    T* bias;
    T* border;
    int64_t bytes;
};

template <class T>
int depthwise_width(const GroupedConv<T>& conv) {
    int64_t taps = 1;
    for (const StagedAxis* axis : {conv.h, conv.w}) {
        int64_t pairs = 0;
        for (const StagedAxis::Class& of : axis->classes) pairs += of.positions * static_cast<int64_t>(of.taps.size());
        taps *= pairs;
    }
    return parallel_width(depthwise_work(2 * conv.batch * conv.groups * taps, conv.source.size() + conv.dest.size()));
}

int64_t all_taps(const StagedAxis& axis) {
    int64_t count = 0;
    for (const StagedAxis::Class& of : axis.classes) count += static_cast<int64_t>(of.taps.size());
    return count;
}

template <class T>
class PixelNest {
public:
    PixelNest(const GroupedConv<T>& conv, const KernelSet<T>& kernels)
        : conv_(conv), kernels_(kernels), channels_(conv.groups), taps_(all_taps(*conv.h) * all_taps(*conv.w)) {}

    void run() {
        const int64_t rows = conv_.h->most_positions(), columns = conv_.w->most_positions();
        const int64_t row_flops = 2 * taps_ * columns * channels_;
        const int64_t task_rows = depthwise_task_rows(row_flops, conv_.batch * rows);
        const int64_t tasks = ceil_div(conv_.batch * rows, task_rows);
        const int width = static_cast<int>(std::min<int64_t>({depthwise_width(conv_), num_threads(), tasks}));
        const Workspace workspace(static_cast<size_t>(PixelScratch<T>(ScratchParts(), channels_, taps_).bytes));
        const PixelScratch<T> scratch(ScratchParts(workspace.data()), channels_, taps_);
        prepare(scratch);
        parallel_for(tasks, width, [&](int64_t task, int) {
            std::vector<const T*> sources(static_cast<size_t>(taps_ * depthwise_pixels));
            const int64_t last = std::min(conv_.batch * rows, (task + 1) * task_rows);
            for (int64_t row = task * task_rows; row < last; ++row)
                run_row(row / rows, row % rows, scratch, sources.data());
        });
    }

private:
    void prepare(const PixelScratch<T>& scratch) const {
        T* to = scratch.weights;
        for (const StagedAxis::Class& h : conv_.h->classes)
            for (const StagedAxis::Class& w : conv_.w->classes)
                for (const StagedAxis::Tap& r : h.taps)
                    for (const StagedAxis::Tap& s : w.taps) {
                        const T* from =
                            conv_.weight + r.kernel_index * conv_.weight_h + s.kernel_index * conv_.weight_w;
                        for (int64_t c = 0; c < channels_; ++c) *to++ = from[c * conv_.weight_group];
                    }
        if (conv_.bias)
            for (int64_t c = 0; c < channels_; ++c) scratch.bias[c] = conv_.bias[c * conv_.bias_stride];
        std::fill_n(scratch.border, channels_, conv_.pad);
    }

    // Row `i` of every class of rows.
    void run_row(int64_t n, int64_t i, const PixelScratch<T>& scratch, const T** sources) const {
        const T* weights = scratch.weights;
        for (const StagedAxis::Class& h : conv_.h->classes)
            for (const StagedAxis::Class& w : conv_.w->classes) {
                const int64_t taps = static_cast<int64_t>(h.taps.size() * w.taps.size());
                for (int64_t j = 0; i < h.positions && j < w.positions; j += depthwise_pixels) {
                    DepthwisePixels<T> job;
                    job.pixels = static_cast<int>(std::min<int64_t>(depthwise_pixels, w.positions - j));
                    find_sources(n, h, w, i, j, job.pixels, scratch.border, sources);
                    job.taps = taps;
                    job.sources = sources;
                    job.weights = weights;
                    job.channels = channels_;
                    job.bias = conv_.bias ? scratch.bias : nullptr;
                    job.relu = conv_.relu;
                    job.dest = conv_.dest.at(n, 0, h.first + i * h.step, w.first + j * w.step);
                    job.dest_pixel = w.step * conv_.dest.stride[3];
                    kernels_.depthwise_pixels(job);
                }
                weights += taps * channels_;
            }
    }

    void find_sources(int64_t n, const StagedAxis::Class& h, const StagedAxis::Class& w, int64_t i, int64_t j,
                      int pixels, const T* border, const T** to) const {
        const int64_t step = conv_.source.stride[3];
        for (const StagedAxis::Tap& r : h.taps) {
            const int64_t row = conv_.h->source[static_cast<size_t>(i * conv_.h->advance + r.offset)];
            const T* from = row == AxisTable::outside ? nullptr : conv_.source.at(n, 0, row, 0);
            for (const StagedAxis::Tap& s : w.taps) {
                for (int pixel = 0; pixel < pixels; ++pixel) {
                    const int64_t column =
                        conv_.w->source[static_cast<size_t>((j + pixel) * conv_.w->advance + s.offset)];
                    to[pixel] = from && column != AxisTable::outside ? from + column * step : border;
                }
                to += depthwise_pixels;
            }
        }
    }

    const GroupedConv<T>& conv_;
    const KernelSet<T>& kernels_;
    const int64_t channels_, taps_;
};

}  // namespace

template <class T>
bool run_depthwise_planes(const DepthwiseWindow& window, const GroupedConv<T>& conv, const KernelSet<T>& kernels) {
    if (conv.source.stride[3] != 1 || conv.dest.stride[3] != 1) return false;
    const auto [batch, channels, height, width] = conv.dest.shape;
    const int64_t source_width = conv.source.shape[3];
    const DepthwiseBlocks blocks = plan_depthwise_blocks(window.kernel, window.adjoint ? 1 : window.stride,
                                                         batch * channels, height, width, source_width, sizeof(T));
    const int64_t row_blocks = ceil_div(height, blocks.block_rows);
    const int64_t units = batch * channels * row_blocks, tasks = ceil_div(units, blocks.task_units);
    const int threads = static_cast<int>(std::min<int64_t>({depthwise_width(conv), num_threads(), tasks}));
    const Workspace workspace(static_cast<size_t>(depthwise_planes_scratch(source_width, sizeof(T))));
    T* const zeros = static_cast<T*>(workspace.data()) + masked_elements;
    std::fill_n(zeros, source_width, T(0));
    const int64_t last_tap = window.flipped ? window.kernel - 1 : 0, step = window.flipped ? -1 : 1;
    parallel_for(tasks, threads, [&, channels = channels, height = height, width = width](int64_t task, int) {
        DepthwisePlanes<T> job;
        job.source_plane = conv.source.stride[1];
        job.source_row = conv.source.stride[2];
        job.height = conv.source.shape[2];
        job.width = source_width;
        job.pad_top = window.pad_top;
        job.pad_left = window.pad_left;
        job.zeros = zeros;
        job.weights_plane = conv.weight_group;
        job.weights_row = step * conv.weight_h;
        job.weights_column = step * conv.weight_w;
        job.bias_plane = conv.bias_stride;
        job.relu = conv.relu;
        job.dest_plane = conv.dest.stride[1];
        job.dest_row = conv.dest.stride[2];
        job.columns = width;
        const int64_t last = std::min(units, (task + 1) * blocks.task_units);
        for (int64_t unit = task * blocks.task_units; unit < last;) {
            const int64_t plane = unit / row_blocks, n = plane / channels, c = plane % channels;
            // Whole planes of an image go together.
            job.planes = row_blocks == 1 ? std::min(last - unit, channels - c) : 1;
            job.first_row = unit % row_blocks * blocks.block_rows;
            job.rows = std::min(blocks.block_rows, height - job.first_row);
            job.source = conv.source.at(n, c, 0, 0);
            job.weights = conv.weight + c * conv.weight_group + last_tap * (conv.weight_h + conv.weight_w);
            job.bias = conv.bias ? conv.bias + c * conv.bias_stride : nullptr;
            job.dest = conv.dest.at(n, c, 0, 0);
            if (window.adjoint)
                kernels.depthwise_planes_adjoint(static_cast<int>(window.kernel), job);
            else
                kernels.depthwise_planes(static_cast<int>(window.kernel), static_cast<int>(window.stride), job);
            unit += job.planes;
        }
    });
    return true;
}

template <class T>
bool run_depthwise_pixels(const GroupedConv<T>& conv, const KernelSet<T>& kernels) {
    if (conv.groups == 1 || conv.source.stride[1] != 1 || conv.dest.stride[1] != 1) return false;
    PixelNest<T>(conv, kernels).run();
    return true;
}

int64_t depthwise_pixels_scratch(const StagedAxis& h, const StagedAxis& w, int64_t channels, DType dtype) {
    const int64_t taps = all_taps(h) * all_taps(w);
    return dtype == DType::float32 ? PixelScratch<float>(ScratchParts(), channels, taps).bytes
                                   : PixelScratch<double>(ScratchParts(), channels, taps).bytes;
}

template bool run_depthwise_planes(const DepthwiseWindow&, const GroupedConv<float>&, const KernelSet<float>&);
template bool run_depthwise_planes(const DepthwiseWindow&, const GroupedConv<double>&, const KernelSet<double>&);
template bool run_depthwise_pixels(const GroupedConv<float>&, const KernelSet<float>&);
template bool run_depthwise_pixels(const GroupedConv<double>&, const KernelSet<double>&);

}  // namespace convx
