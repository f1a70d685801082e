// Weight gradient of depthwise convolutions:
//
//   grad_weight[c, r, s] = sum over n, p, q of grad_output[n, c, p, q] * input[n, c, h(r, p), w(s, q)]
//
// Two methods. A task of both owns some channels and a contiguous part of the rows (n, p); at the end the parts are
// added in order. Blocks and parts follow from the problem alone.
//
//   depthwise         NCHW: planes, straight in the arrays where their columns are adjacent, else in copies of a block
//                     that have them so. Each sum keeps a vector of lanes, which are added at the end.
//   depthwise-pixels  NHWC, any window: vectors of channels, in place where these are adjacent, else in copies of
//                     single rows. One sum a channel and tap, stretch by stretch of pixels.
#include "common/rounding.h"
#include "cpu/conv2d/direct.h"
#include "cpu/conv2d/padded_tile.h"
#include "cpu/runtime/split_sum.h"

namespace convx {

namespace {

// --- planes ---

// Channels that are copied together: a line of floats, where channels are adjacent.
constexpr int64_t gathered_channels = 16;

int64_t source_rows(const ConvProblem& problem, int64_t rows) {
    return std::min(problem.h.input, (rows - 1) * problem.h.stride + problem.h.kernel);
}

struct PlaneBlocks {
    int64_t block_rows = 1;     // rows of the gradient summed in one go
    int64_t task_channels = 1;  // of one task
    int64_t splits = 1;         // parts of the rows of the batch, added in order at the end
};

PlaneBlocks plan_plane_blocks(const ConvProblem& problem) {
    PlaneBlocks blocks;
    const int64_t rows = problem.out_h(), channels = problem.groups, stride = problem.h.stride;
    const int64_t row_bytes = item_size(problem.dtype) * (stride * problem.w.input + problem.out_w());
    const int64_t fit = std::max<int64_t>(depthwise_rows_bytes / row_bytes, 4);
    blocks.block_rows = std::min(rows, round_up(ceil_div(rows, ceil_div(rows, fit)), 4));
    blocks.splits = std::clamp(wanted_tasks / channels, int64_t{1}, std::max<int64_t>(problem.batch * rows, 1));
    blocks.task_channels = units_of_a_task(channels, problem.flops() / channels / blocks.splits);
    return blocks;
}

// What one worker works with.
template <class T>
struct PlaneScratch {
    PlaneScratch(ScratchParts parts, const ConvProblem& problem, const PlaneBlocks& blocks, bool gathers, int64_t lanes)
        : zero_line(parts.take<T>(problem.w.input + 2 * masked_elements)),
          sums(parts.take<T>(std::min(blocks.task_channels, problem.groups) * problem.taps() * lanes)) {
        if (gathers) {
            source =
                parts.take<T>(gathered_channels * (source_rows(problem, blocks.block_rows) * problem.w.input + lanes));
            grad = parts.take<T>(gathered_channels * (blocks.block_rows * problem.out_w() + lanes));
        }
        bytes = parts.bytes();
    }
    T *zero_line, *sums;                   // sums: [channel][tap][lane]
    T *source = nullptr, *grad = nullptr;  // [channel][row][column]
    int64_t bytes;

    T* zeros() const { return zero_line + masked_elements; }
};

template <class T>
class DepthwisePlanesSumDriver {
public:
    DepthwisePlanesSumDriver(const PixelSum<T>& sum, const KernelSet<T>& kernels)
        : problem_(*sum.problem), kernels_(kernels), blocks_(plan_plane_blocks(problem_)), grad_(sum.grad_output),
          input_(sum.input), gathers_(grad_.stride[3] != 1 || input_.stride[3] != 1),
          input_layout_(plain_layout(problem_.h.input, problem_.w.input)),
          grad_layout_(plain_layout(problem_.out_h(), problem_.out_w())),
          input_tile_(input_layout_, strides_of(input_.stride), T(0), kernels),
          grad_tile_(grad_layout_, strides_of(grad_.stride), T(0), kernels) {}

    const PlaneBlocks& blocks() const { return blocks_; }

    TaskPlan tasks() const {
        return {ceil_div(problem_.groups, blocks_.task_channels) * blocks_.splits,
                depthwise_work(problem_.flops(), input_.size() + grad_.size()),
                SplitSum<T>::bytes(blocks_.splits, problem_.groups * problem_.taps()),
                PlaneScratch<T>(ScratchParts(), problem_, blocks_, gathers_, kernels_.lanes).bytes};
    }

    void run(T* grad_weight) const {
        const int64_t weights = problem_.groups * problem_.taps(), all_rows = problem_.batch * problem_.out_h();
        const int64_t channel_tasks = ceil_div(problem_.groups, blocks_.task_channels);
        const TaskPlan plan = tasks();
        const TaskRunner runner(plan);
        const SplitSum<T> parts(grad_weight, runner.shared(), blocks_.splits, weights);
        runner.run(plan.tasks, [&](int64_t task, ScratchParts scratch_parts) {
            const PlaneScratch<T> own(scratch_parts, problem_, blocks_, gathers_, kernels_.lanes);
            std::fill_n(own.zeros(), problem_.w.input, T(0));
            const int64_t split = task / channel_tasks, first = task % channel_tasks * blocks_.task_channels;
            const int64_t channels = std::min(blocks_.task_channels, problem_.groups - first);
            const int64_t sums = channels * problem_.taps();
            std::fill_n(own.sums, sums * kernels_.lanes, T(0));
            add_rows(first, channels, split * all_rows / blocks_.splits, (split + 1) * all_rows / blocks_.splits, own);
            add_lanes(own.sums, sums, parts.part(split) + first * problem_.taps());
        });
        parts.add();
    }

private:
    void add_rows(int64_t first_channel, int64_t channels, int64_t row, int64_t last,
                  const PlaneScratch<T>& scratch) const {
        const int64_t at_once = gathers_ ? gathered_channels : channels, image_rows = problem_.out_h();
        while (row < last) {
            const int64_t n = row / image_rows, p = row % image_rows;
            const int64_t rows = std::min({blocks_.block_rows, image_rows - p, last - row});
            for (int64_t c = 0; c < channels; c += at_once)
                add_block(n, first_channel + c, std::min(at_once, channels - c), p, rows, scratch,
                          scratch.sums + c * problem_.taps() * kernels_.lanes);
            row += rows;
        }
    }

    void add_block(int64_t n, int64_t channel, int64_t channels, int64_t p, int64_t rows,
                   const PlaneScratch<T>& scratch, T* sums) const {
        DepthwiseGradWeightArgs<T> args;
        args.planes = channels;
        args.height = problem_.h.input;
        args.width = problem_.w.input;
        args.pad_top = problem_.h.pad_before;
        args.pad_left = problem_.w.pad_before;
        args.zeros = scratch.zeros();
        args.first_row = p;
        args.rows = rows;
        args.columns = problem_.out_w();
        args.sums = sums;
        args.source = input_.at(n, channel, 0, 0);
        args.source_plane = input_.stride[1];
        args.source_row = input_.stride[2];
        args.grad = grad_.at(n, channel, 0, 0);
        args.grad_plane = grad_.stride[1];
        args.grad_row = grad_.stride[2];
        if (gathers_) gather(n, channel, args, scratch);
        kernels_.depthwise_grad_weight(static_cast<int>(problem_.h.kernel), static_cast<int>(problem_.h.stride), args);
    }

    // Copies of what the args reads.
    void gather(int64_t n, int64_t channel, DepthwiseGradWeightArgs<T>& args, const PlaneScratch<T>& scratch) const {
        const Axis& h = problem_.h;
        const int64_t first = std::clamp<int64_t>(args.first_row * h.stride - h.pad_before, 0, h.input);
        const int64_t last =
            std::clamp<int64_t>(h.position(args.first_row + args.rows - 1, h.kernel - 1) + 1, first, h.input);
        args.source_row = args.width;
        args.source_plane = input_layout_.plane_size(last - first, kernels_.lanes);
        args.source = scratch.source - first * args.width;
        args.grad_row = args.columns;
        args.grad_plane = grad_layout_.plane_size(args.rows, kernels_.lanes);
        args.grad = scratch.grad - args.first_row * args.columns;
        input_tile_.copy(scratch.source, args.source_plane, input_.at(n, channel, 0, 0), args.planes, first,
                         last - first);
        grad_tile_.copy(scratch.grad, args.grad_plane, grad_.at(n, channel, 0, 0), args.planes, args.first_row,
                        args.rows);
    }

    void add_lanes(const T* sums, int64_t count, T* to) const {
        if (kernels_.lanes == 16) return add_lanes_of<16>(sums, count, to);
        if (kernels_.lanes == 8) return add_lanes_of<8>(sums, count, to);
        if (kernels_.lanes == 4) return add_lanes_of<4>(sums, count, to);
        add_lanes_of<2>(sums, count, to);
    }

    template <int lanes>
    static void add_lanes_of(const T* sums, int64_t count, T* to) {
        for (int64_t i = 0; i < count; ++i) to[i] = sum_lanes<lanes, 1>(sums + i * lanes);
    }

    // The lanes in pairs, pairs of pairs, ...: shorter chains than one after the other.
    template <int lanes, int width>
    static T sum_lanes(const T* lane) {
        if constexpr (width == lanes)
            return *lane;
        else
            return sum_lanes<lanes, 2 * width>(lane) + sum_lanes<lanes, 2 * width>(lane + width);
    }

    const ConvProblem& problem_;
    const KernelSet<T>& kernels_;
    const PlaneBlocks blocks_;
    const TensorView<const T> grad_, input_;
    const bool gathers_;
    const PlaneLayout input_layout_, grad_layout_;
    const PaddedTile<T> input_tile_, grad_tile_;
};

// --- pixels ---

// What a task reads of a pixel, and of the gradient before the next row of the window goes over it.
constexpr int64_t task_channel_bytes = 512;
constexpr int64_t stretch_bytes = 8 * 1024;

struct PixelBlocks {
    int64_t stretch = 1;        // pixels of a row that all rows of the window go over in turn
    int64_t task_channels = 1;  // of one task
    int64_t splits = 1;         // parts of the rows of the batch, added in order at the end
};

PixelBlocks plan_pixel_blocks(const ConvProblem& problem) {
    PixelBlocks blocks;
    const int64_t item_bytes = item_size(problem.dtype), rows = problem.batch * problem.out_h();
    const int64_t most = task_channel_bytes / item_bytes;
    // Whole cache lines.
    blocks.task_channels =
        std::min(problem.groups, round_up(ceil_div(problem.groups, ceil_div(problem.groups, most)), 64 / item_bytes));
    const int64_t channel_tasks = ceil_div(problem.groups, blocks.task_channels);
    const int64_t wanted =
        std::min(ceil_div(wanted_tasks, channel_tasks), problem.flops() / channel_tasks / task_flops);
    blocks.splits = std::clamp(wanted, int64_t{1}, std::max<int64_t>(rows, 1));
    blocks.stretch = std::max<int64_t>(stretch_bytes / (blocks.task_channels * item_bytes), 1);
    return blocks;
}

// What one worker works with.
template <class T>
struct PixelScratch {
    PixelScratch(ScratchParts parts, const ConvProblem& problem, int64_t channels, bool copies_source, bool copies_grad)
        : sums(parts.take<T>(problem.taps() * channels)), border(parts.take<T>(channels)) {
        if (copies_source) source = parts.take<T>(problem.w.input * channels);
        if (copies_grad) grad = parts.take<T>(problem.out_w() * channels);
        bytes = parts.bytes();
    }
    T *sums, *border;                      // [tap][channel]; border values
    T *source = nullptr, *grad = nullptr;  // [column][channel]
    int64_t bytes;
};

// Pixels of a row with adjacent channels.
template <class T>
struct PixelRow {
    const T* data;
    int64_t pixel;
    const T* at(int64_t column) const { return data + column * pixel; }
};

template <class T>
class DepthwisePixelsSumDriver {
public:
    DepthwisePixelsSumDriver(const PixelSum<T>& sum, const KernelSet<T>& kernels)
        : problem_(*sum.problem), kernels_(kernels), blocks_(plan_pixel_blocks(problem_)), grad_(sum.grad_output),
          input_(sum.input), h_(forward_table(problem_.h)), w_(forward_table(problem_.w)), border_(sum.border),
          copies_source_(input_.stride[1] != 1), copies_grad_(grad_.stride[1] != 1), first_inside_(0),
          last_inside_(problem_.out_w()) {
        for (const AxisTable::Tap& tap : w_.taps) {
            first_inside_ = std::max(first_inside_, tap.begin);
            last_inside_ = std::min(last_inside_, tap.end);
        }
        last_inside_ = std::max(first_inside_, last_inside_);
    }

    const PixelBlocks& blocks() const { return blocks_; }

    TaskPlan tasks() const {
        const int64_t weights = problem_.groups * problem_.taps();
        return {ceil_div(problem_.groups, blocks_.task_channels) * blocks_.splits,
                depthwise_work(problem_.flops(), input_.size() + grad_.size()),
                cache_lines(blocks_.splits * weights * int64_t{sizeof(T)}),
                PixelScratch<T>(ScratchParts(), problem_, blocks_.task_channels, copies_source_, copies_grad_).bytes};
    }

    void run(T* grad_weight) const {
        const int64_t channels = problem_.groups, weights = channels * problem_.taps();
        const int64_t channel_tasks = ceil_div(channels, blocks_.task_channels);
        const int64_t all_rows = problem_.batch * problem_.out_h();
        const TaskPlan plan = tasks();
        const TaskRunner runner(plan);
        T* const all = static_cast<T*>(runner.shared());  // [tap][channel]
        const SplitSum<T> sums(all, all, blocks_.splits, weights);
        runner.run(plan.tasks, [&](int64_t task, ScratchParts parts) {
            const PixelScratch<T> own(parts, problem_, blocks_.task_channels, copies_source_, copies_grad_);
            const int64_t split = task / channel_tasks, first = task % channel_tasks * blocks_.task_channels;
            const int64_t count = std::min(blocks_.task_channels, channels - first);
            std::fill_n(own.sums, problem_.taps() * count, T(0));
            std::fill_n(own.border, count, static_cast<T>(border_.value));
            const int64_t last = (split + 1) * all_rows / blocks_.splits;
            for (int64_t row = split * all_rows / blocks_.splits; row < last; ++row)
                add_row(row / problem_.out_h(), row % problem_.out_h(), first, count, own);
            for (int64_t tap = 0; tap < problem_.taps(); ++tap)
                std::copy_n(own.sums + tap * count, count, sums.part(split) + tap * channels + first);
        });
        sums.add();
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t tap = 0; tap < problem_.taps(); ++tap) *grad_weight++ = all[tap * channels + c];
    }

private:
    void add_row(int64_t n, int64_t p, int64_t first, int64_t count, const PixelScratch<T>& scratch) const {
        const PixelRow<T> grad = pixel_row(grad_, copies_grad_, n, first, count, p, scratch.grad);
        const auto add_stretch = [&](const PixelRow<T>& source, size_t r, int64_t q) {
            add_pixels(source, grad, r, q, std::min(problem_.out_w(), q + blocks_.stretch), count, scratch);
        };
        if (copies_source_) {
            for (size_t r = 0; r < h_.taps.size(); ++r) {
                const PixelRow<T> source = source_row(n, r, p, first, count, scratch);
                for (int64_t q = 0; q < problem_.out_w(); q += blocks_.stretch) add_stretch(source, r, q);
            }
            return;
        }
        // Stretch by stretch, so that the gradient's lines are still in L1 when the next row of the window wants them.
        for (int64_t q = 0; q < problem_.out_w(); q += blocks_.stretch)
            for (size_t r = 0; r < h_.taps.size(); ++r) add_stretch(source_row(n, r, p, first, count, scratch), r, q);
    }

    // The row that tap `r` reads; no pixels where that is outside.
    PixelRow<T> source_row(int64_t n, size_t r, int64_t p, int64_t first, int64_t count,
                           const PixelScratch<T>& scratch) const {
        const int64_t row = h_.at(static_cast<int64_t>(r), p);
        if (row == AxisTable::outside) return {nullptr, 0};
        return pixel_row(input_, copies_source_, n, first, count, row, scratch.source);
    }

    static PixelRow<T> pixel_row(const TensorView<const T>& view, bool copies, int64_t n, int64_t first, int64_t count,
                                 int64_t row, T* scratch) {
        const T* from = view.at(n, first, row, 0);
        if (!copies) return {from, view.stride[3]};
        for (int64_t c = 0; c < count; ++c, from += view.stride[1])
            for (int64_t column = 0; column < view.shape[3]; ++column)
                scratch[column * count + c] = from[column * view.stride[3]];
        return {scratch, count};
    }

    // Adds what the pixels [begin, end) of a row give to the weights of row `r` of the window.
    void add_pixels(const PixelRow<T>& source, const PixelRow<T>& grad, size_t r, int64_t begin, int64_t end,
                    int64_t count, const PixelScratch<T>& scratch) const {
        if (!source.data && border_.skips) return;
        DepthwisePixelProductsArgs<T> args;
        args.source_pixel = source.pixel * w_.step;
        args.grad_pixel = grad.pixel;
        args.channels = count;
        args.sums_tap = count;
        T* const sums = scratch.sums + static_cast<int64_t>(r) * problem_.w.kernel * count;
        SmallVector<const T*, 8> room;
        room.reserve(w_.taps.size());
        const T** const sources = room.data();
        for (int64_t q = begin; q < end;) {
            const bool inside = source.data && q >= first_inside_ && q < last_inside_;
            args.pixels = inside ? std::min(end, last_inside_) - q : 1;
            args.grad = grad.at(q);
            args.sources = sources;
            args.sums = sums;
            args.taps = 0;
            // At the border the taps that read something follow each other.
            for (int64_t s = 0; s < problem_.w.kernel; ++s) {
                const int64_t column = source.data ? w_.at(s, q) : AxisTable::outside;
                if (column == AxisTable::outside && border_.skips) continue;
                if (args.taps == 0) args.sums = sums + s * count;
                sources[args.taps++] = column == AxisTable::outside ? scratch.border : source.at(column);
            }
            kernels_.depthwise_pixel_products(args);
            q += args.pixels;
        }
    }

    const ConvProblem& problem_;
    const KernelSet<T>& kernels_;
    const PixelBlocks blocks_;
    const TensorView<const T> grad_, input_;
    const AxisTable h_, w_;
    const Border border_;
    const bool copies_source_, copies_grad_;
    int64_t first_inside_, last_inside_;  // columns that read nothing outside the image
};

}  // namespace

struct DepthwisePlanesSumMethod : SumMethod<DepthwisePlanesSumDriver> {
    static constexpr const char* name = "depthwise";

    static Verdict supports(const ConvProblem& problem, ConvPass) {
        if (!depthwise_planes_take(problem)) return {"needs one channel a group and 3 x 3 or 5 x 5 with stride 1 or 2"};
        return supports_groups(problem);
    }
    static Work work(const WorkSizes& sizes) {
        Work work = sizes.common();
        const double vectors = sizes.groups * sizes.h.dest * sizes.vectors(sizes.w.dest);
        work[WorkKind::cycles] = vectors * sizes.taps / 2;
        work[WorkKind::tiles] = vectors;
        work[WorkKind::runs] = sizes.groups * sizes.h.dest;
        if (sizes.channels_last) work[WorkKind::transposes] = sizes.source() + sizes.dest();
        return work;
    }

    template <class T>
    static void describe(const PixelSum<T>& sum, const DepthwisePlanesSumDriver<T>& driver, const KernelSet<T>& kernels,
                         PassPlan& text) {
        const PlaneBlocks& blocks = driver.blocks();
        text.tile = std::to_string(std::min<int64_t>(sum.problem->taps(), 10)) + " taps x " +
                    std::to_string(kernels.lanes) + " pixels";
        text.block = std::to_string(blocks.block_rows) + " rows of one plane, " + std::to_string(blocks.splits) +
                     (blocks.splits == 1 ? " part" : " parts");
        text.reason = "one channel a group: sums over vectors of pixels stay in registers";
        if (blocks.splits > 1) text.reason += "; too few channels for all tasks, so the rows are split";
    }
};

template const Method<PixelSum<float>>& method_row<DepthwisePlanesSumMethod, PixelSum<float>>();
template const Method<PixelSum<double>>& method_row<DepthwisePlanesSumMethod, PixelSum<double>>();

struct DepthwisePixelsSumMethod : SumMethod<DepthwisePixelsSumDriver> {
    static constexpr const char* name = "depthwise-pixels";
    static constexpr Traits traits{Algorithm::direct, false, false};

    static Verdict supports(const ConvProblem& problem, ConvPass) {
        if (!is_depthwise(problem)) return {"needs one channel a group"};
        return supports_groups(problem);
    }
    static Work work(const WorkSizes& sizes) {
        Work work = sizes.common();
        const double vectors = sizes.h.dest * sizes.w.dest * sizes.vectors(sizes.groups);
        work[WorkKind::cycles] = vectors * sizes.taps / 2;
        work[WorkKind::tiles] = sizes.h.dest * sizes.h.of[0].taps * sizes.vectors(sizes.groups);
        if (!sizes.channels_last) work[WorkKind::transposes] = sizes.source() + sizes.dest();
        return work;
    }

    template <class T>
    static void describe(const PixelSum<T>& sum, const DepthwisePixelsSumDriver<T>& driver, const KernelSet<T>& kernels,
                         PassPlan& text) {
        const PixelBlocks& blocks = driver.blocks();
        text.tile = std::to_string(std::min<int64_t>(sum.problem->w.kernel, 3)) + " taps x " +
                    std::to_string(4 * kernels.lanes) + " channels";
        text.block = std::to_string(blocks.task_channels) + " channels, " + std::to_string(blocks.splits) +
                     (blocks.splits == 1 ? " part" : " parts") + " of the rows";
        text.reason = "one channel a group, vectors over channels because the layout is NHWC";
    }
};

template const Method<PixelSum<float>>& method_row<DepthwisePixelsSumMethod, PixelSum<float>>();
template const Method<PixelSum<double>>& method_row<DepthwisePixelsSumMethod, PixelSum<double>>();

}  // namespace convx
