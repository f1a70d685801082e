// Depthwise convolutions, forward and input gradient: in NCHW vectors of columns straight out of the arrays, masked at
// the borders, sums rolling down the rows; in NHWC vectors of channels through pointers to pixels; staged rows
// (direct_spatial.cpp) for other windows and memory orders. The order of every sum is the same: channel by channel, row
// by row.

#include <algorithm>

#include "common/rounding.h"
#include "cpu/conv2d/direct.h"

namespace convx {

bool depthwise_planes_take(const ConvProblem& problem) {
    const auto fits = [&](const Axis& axis) {
        return axis.stride <= 2 && axis.dilation == 1 && axis.pad_before < axis.kernel &&
               (axis.mode == PaddingMode::zeros || (axis.pad_before == 0 && axis.pad_after == 0));
    };
    const int64_t kernel = problem.h.kernel;
    return problem.group_in() == 1 && problem.group_out() == 1 && fits(problem.h) && fits(problem.w) &&
           problem.w.kernel == kernel && (kernel == 3 || kernel == 5) && problem.w.stride == problem.h.stride;
}

namespace {

// The window of a sum over planes.
struct Window {
    int64_t kernel, stride;  // of both axes
    int64_t pad_top, pad_left;
    bool flipped;  // weights from the last to the first
    bool adjoint;  // of a window with stride 2: the padding is that of the forward pass

    Window(const ConvProblem& problem, bool forward)
        : kernel(problem.h.kernel), stride(problem.h.stride), pad_top(problem.h.pad_before),
          pad_left(problem.w.pad_before), flipped(!forward && stride == 1), adjoint(!forward && stride > 1) {
        if (!flipped) return;
        pad_top = kernel - 1 - pad_top;
        pad_left = kernel - 1 - pad_left;
    }
};

struct Blocks {
    int64_t block_rows = 1;  // rows of the result of one plane
    int64_t task_units = 1;  // such blocks of one task
};
Blocks plan_blocks(int64_t kernel, int64_t stride, int64_t planes, int64_t rows, int64_t columns,
                   int64_t source_columns, int64_t item_bytes) {
    Blocks blocks;
    const int64_t fit = std::max<int64_t>((depthwise_rows_bytes / (source_columns * item_bytes) - kernel) / stride, 4);
    const int64_t wanted = std::max(ceil_div(wanted_tasks, std::max<int64_t>(planes, 1)), ceil_div(rows, fit));
    const int64_t parts = std::clamp(wanted, int64_t{1}, std::max<int64_t>(ceil_div(rows, 4), 1));
    blocks.block_rows = std::min(round_up(ceil_div(rows, parts), 4), std::max<int64_t>(rows, 1));
    const int64_t units = planes * ceil_div(rows, blocks.block_rows);
    blocks.task_units = units_of_a_task(units, 2 * kernel * kernel * columns * blocks.block_rows);
    return blocks;
}

template <class T>
class PlaneDriver {
public:
    PlaneDriver(const WindowSum<T>& sum, const KernelSet<T>& kernels)
        : sum_(sum), kernels_(kernels), window_(*sum.problem, sum.forward()),
          blocks_(plan_blocks(window_.kernel, window_.adjoint ? 1 : window_.stride,
                              sum.dest.shape[0] * sum.dest.shape[1], sum.dest.shape[2], sum.dest.shape[3],
                              sum.source.shape[3], sizeof(T))) {}

    const Blocks& blocks() const { return blocks_; }

    TaskPlan tasks() const {
        return {ceil_div(units(), blocks_.task_units),
                depthwise_work(sum_.flops(), sum_.source.size() + sum_.dest.size()),
                cache_lines((sum_.source.shape[3] + 2 * masked_elements) * int64_t{sizeof(T)}), 0};
    }

    void run(const TaskPlan& plan) const {
        const auto [batch, channels, height, width] = sum_.dest.shape;
        (void)batch;
        const int64_t source_width = sum_.source.shape[3], units = this->units();
        const int64_t row_blocks = ceil_div(height, blocks_.block_rows);
        const TaskRunner runner(plan);
        T* const zeros = static_cast<T*>(runner.shared()) + masked_elements;
        std::fill_n(zeros, source_width, T(0));
        const int64_t last_tap = window_.flipped ? window_.kernel - 1 : 0, step = window_.flipped ? -1 : 1;
        runner.run(plan.tasks, [&, channels = channels, height = height, width = width](int64_t task, ScratchParts) {
            DepthwisePlanesArgs<T> args;
            args.source_plane = sum_.source.stride[1];
            args.source_row = sum_.source.stride[2];
            args.height = sum_.source.shape[2];
            args.width = source_width;
            args.pad_top = window_.pad_top;
            args.pad_left = window_.pad_left;
            args.zeros = zeros;
            args.weights_plane = sum_.weight_group;
            args.weights_row = step * sum_.weight_h;
            args.weights_column = step * sum_.weight_w;
            args.bias_plane = sum_.bias_stride;
            args.relu = sum_.relu;
            args.dest_plane = sum_.dest.stride[1];
            args.dest_row = sum_.dest.stride[2];
            args.columns = width;
            const int64_t last = std::min(units, (task + 1) * blocks_.task_units);
            for (int64_t unit = task * blocks_.task_units; unit < last;) {
                const int64_t plane = unit / row_blocks, n = plane / channels, c = plane % channels;
                // Whole planes of an image go together.
                args.planes = row_blocks == 1 ? std::min(last - unit, channels - c) : 1;
                args.first_row = unit % row_blocks * blocks_.block_rows;
                args.rows = std::min(blocks_.block_rows, height - args.first_row);
                args.source = sum_.source.at(n, c, 0, 0);
                args.weights = sum_.weight + c * sum_.weight_group + last_tap * (sum_.weight_h + sum_.weight_w);
                args.bias = sum_.bias ? sum_.bias + c * sum_.bias_stride : nullptr;
                args.dest = sum_.dest.at(n, c, 0, 0);
                if (window_.adjoint)
                    kernels_.depthwise_planes_adjoint(static_cast<int>(window_.kernel), args);
                else
                    kernels_.depthwise_planes(static_cast<int>(window_.kernel), static_cast<int>(window_.stride), args);
                unit += args.planes;
            }
        });
    }

private:
    int64_t units() const {
        return sum_.dest.shape[0] * sum_.dest.shape[1] * ceil_div(sum_.dest.shape[2], blocks_.block_rows);
    }

    const WindowSum<T>& sum_;
    const KernelSet<T>& kernels_;
    const Window window_;
    const Blocks blocks_;
};

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
class PixelDriver {
public:
    PixelDriver(const WindowSum<T>& sum, const PhasedAxis& h, const PhasedAxis& w, const KernelSet<T>& kernels)
        : sum_(sum), h_(h), w_(w), kernels_(kernels), channels_(sum.groups), taps_(h.all_taps() * w.all_taps()) {}

    int64_t task_rows() const { return units_of_a_task(rows(), 2 * taps_ * w_.positions() * channels_); }

    TaskPlan tasks() const {
        return {ceil_div(rows(), task_rows()), depthwise_work(sum_.flops(), sum_.source.size() + sum_.dest.size()),
                PixelScratch<T>(ScratchParts(), channels_, taps_).bytes, 0};
    }

    void run(const TaskPlan& plan) const {
        const int64_t rows = h_.positions(), task_rows = this->task_rows();
        const TaskRunner runner(plan);
        const PixelScratch<T> scratch(ScratchParts(runner.shared()), channels_, taps_);
        prepare(scratch);
        runner.run(plan.tasks, [&](int64_t task, ScratchParts) {
            std::vector<const T*> sources(static_cast<size_t>(taps_ * depthwise_pixels));
            const int64_t last = std::min(sum_.batch * rows, (task + 1) * task_rows);
            for (int64_t row = task * task_rows; row < last; ++row)
                run_row(row / rows, row % rows, scratch, sources.data());
        });
    }

private:
    int64_t rows() const { return sum_.batch * h_.positions(); }

    void prepare(const PixelScratch<T>& scratch) const {
        T* to = scratch.weights;
        for (const PhasedAxis::Class& h : h_.classes)
            for (const PhasedAxis::Class& w : w_.classes)
                for (const PhasedAxis::Tap& r : h.taps)
                    for (const PhasedAxis::Tap& s : w.taps) {
                        const T* from = sum_.weight + r.kernel_index * sum_.weight_h + s.kernel_index * sum_.weight_w;
                        for (int64_t c = 0; c < channels_; ++c) *to++ = from[c * sum_.weight_group];
                    }
        if (sum_.bias)
            for (int64_t c = 0; c < channels_; ++c) scratch.bias[c] = sum_.bias[c * sum_.bias_stride];
        std::fill_n(scratch.border, channels_, sum_.pad());
    }

    // Row `i` of every class of rows.
    void run_row(int64_t n, int64_t i, const PixelScratch<T>& scratch, const T** sources) const {
        const T* weights = scratch.weights;
        for (const PhasedAxis::Class& h : h_.classes)
            for (const PhasedAxis::Class& w : w_.classes) {
                const int64_t taps = static_cast<int64_t>(h.taps.size() * w.taps.size());
                for (int64_t j = 0; i < h.positions && j < w.positions; j += depthwise_pixels) {
                    DepthwisePixelsArgs<T> args;
                    args.pixels = static_cast<int>(std::min<int64_t>(depthwise_pixels, w.positions - j));
                    find_sources(n, h, w, i, j, args.pixels, scratch.border, sources);
                    args.taps = taps;
                    args.sources = sources;
                    args.weights = weights;
                    args.channels = channels_;
                    args.bias = sum_.bias ? scratch.bias : nullptr;
                    args.relu = sum_.relu;
                    args.dest = sum_.dest.at(n, 0, h.first + i * h.step, w.first + j * w.step);
                    args.dest_pixel = w.step * sum_.dest.stride[3];
                    kernels_.depthwise_pixels(args);
                }
                weights += taps * channels_;
            }
    }

    void find_sources(int64_t n, const PhasedAxis::Class& h, const PhasedAxis::Class& w, int64_t i, int64_t j,
                      int pixels, const T* border, const T** to) const {
        const int64_t step = sum_.source.stride[3];
        for (const PhasedAxis::Tap& r : h.taps) {
            const int64_t row = h_.at(r.phase, i * h_.advance + r.offset);
            const T* from = row == AxisTable::outside ? nullptr : sum_.source.at(n, 0, row, 0);
            for (const PhasedAxis::Tap& s : w.taps) {
                for (int pixel = 0; pixel < pixels; ++pixel) {
                    const int64_t column = w_.at(s.phase, (j + pixel) * w_.advance + s.offset);
                    to[pixel] = from && column != AxisTable::outside ? from + column * step : border;
                }
                to += depthwise_pixels;
            }
        }
    }

    const WindowSum<T>& sum_;
    const PhasedAxis &h_, &w_;
    const KernelSet<T>& kernels_;
    const int64_t channels_, taps_;
};

}  // namespace

struct DepthwiseMethod {
    static constexpr const char* name = "depthwise";
    static constexpr Traits traits{};

    // By the memory of the arrays: the order of the sums is the same.
    enum class Driver { planes, pixels, staged };
    struct Plan {
        Driver driver;
        PhasedAxis h, w;  // of pixels and staged rows
        TaskPlan task_plan;

        const TaskPlan& tasks() const { return task_plan; }
    };

    static Verdict supports(const ConvProblem& problem, ConvPass) {
        if (!is_depthwise(problem)) return {"needs one channel a group"};
        return supports_groups(problem);
    }
    static Work work(const WorkSizes& sizes) {
        Work work = sizes.common();
        const bool planes = depthwise_planes_take(sizes.problem) && !sizes.source_last;
        sizes.for_phases([&](double count, double height, double width, double taps) {
            const double vectors = planes || !sizes.channels_last ? sizes.groups * height * sizes.vectors(width)
                                                                  : height * width * sizes.vectors(sizes.groups);
            work[WorkKind::cycles] += count * vectors * taps / 2;
            work[WorkKind::tiles] += count * vectors;
        });
        work[WorkKind::runs] = sizes.groups * sizes.h.dest;
        if (!planes && !sizes.channels_last) sizes.add_padded_tile(work);
        return work;
    }

    template <class T>
    static Plan plan(const WindowSum<T>& sum, const KernelSet<T>& kernels) {
        const ConvProblem& problem = *sum.problem;
        if (depthwise_planes_take(problem) && sum.source.stride[3] == 1 && sum.dest.stride[3] == 1)
            return {Driver::planes, {}, {}, PlaneDriver<T>(sum, kernels).tasks()};
        const PlaneLayout layout = spatial_layout(problem, sum.forward());
        Plan plan{Driver::staged, layout.h, layout.w, {}};
        if (sum.groups > 1 && sum.source.stride[1] == 1 && sum.dest.stride[1] == 1) {
            plan.driver = Driver::pixels;
            plan.task_plan = PixelDriver<T>(sum, plan.h, plan.w, kernels).tasks();
        } else {
            plan.task_plan = direct_spatial_tasks(sum, kernels);
        }
        return plan;
    }

    template <class T>
    static void run(const WindowSum<T>& sum, const Plan& plan, const KernelSet<T>& kernels) {
        if (plan.driver == Driver::planes)
            PlaneDriver<T>(sum, kernels).run(plan.task_plan);
        else if (plan.driver == Driver::pixels)
            PixelDriver<T>(sum, plan.h, plan.w, kernels).run(plan.task_plan);
        else
            run_direct_spatial(sum, kernels);
    }

    template <class T>
    static void describe(const WindowSum<T>& sum, const Plan& plan, const KernelSet<T>& kernels, PassPlan& text) {
        if (plan.driver == Driver::staged) return describe_direct_spatial(sum, kernels, text);
        const std::string sums = ", sums of 1 channel x " + std::to_string(sum.problem->taps()) + " taps";
        if (plan.driver == Driver::planes) {
            text.tile = "2 x " + std::to_string(kernels.lanes) + " pixels";
            text.block = std::to_string(PlaneDriver<T>(sum, kernels).blocks().block_rows) + " rows of one plane" + sums;
            text.reason = "one channel a group, vectors over pixels because the layout is NCHW";
            return;
        }
        text.tile = std::to_string(depthwise_pixels) + " pixels x " + std::to_string(2 * kernels.lanes) + " channels";
        text.block =
            std::to_string(PixelDriver<T>(sum, plan.h, plan.w, kernels).task_rows()) + " rows of all channels" + sums;
        text.reason = "one channel a group, vectors over channels because the layout is NHWC" +
                      phases_note(plan.h.classes.size() * plan.w.classes.size());
    }
};

template const Method<WindowSum<float>>& method_row<DepthwiseMethod, WindowSum<float>>();
template const Method<WindowSum<double>>& method_row<DepthwiseMethod, WindowSum<double>>();

}  // namespace convx
