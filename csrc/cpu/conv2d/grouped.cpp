#include "cpu/conv2d/grouped.h"

#include <algorithm>

#include "common/rounding.h"
#include "cpu/conv2d/depthwise.h"
#include "cpu/conv2d/finite.h"
#include "cpu/conv2d/grouped_channels.h"
#include "cpu/conv2d/grouped_pixels.h"
#include "cpu/conv2d/methods.h"
#include "cpu/registry.h"
#include "cpu/scratch_parts.h"
#include "cpu/thread_pool.h"
#include "cpu/workspace.h"

namespace convx {

namespace {

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const GroupedBlocks& blocks, const GroupedSizes& sizes, int64_t lanes)
        : staged(parts.take<T>(blocks.staged_elements + lanes)),
          weights(parts.take<T>(sizes.channels * sizes.taps * sizes.rows)), bias(parts.take<T>(sizes.rows)),
          pads(parts.take<T>(blocks.stage_groups * sizes.channels)),
          result(parts.take<T>(
              blocks.through_scratch
                  ? blocks.stage_groups * sizes.rows * sizes.classes_w * blocks.block_rows * sizes.dest_pitch + lanes
                  : 0)),
          bytes(parts.bytes()) {}
    T* staged;   // [channel][place row][place]
    T* weights;  // of one group and class, in panels
    T* bias;     // of one group
    T* pads;     // a border value for each channel
    T* result;   // [channel][class of columns][row][column], where dest takes no vectors of pixels
    int64_t bytes;
};

// Where the taps of a class find their factors.
struct ClassTaps {
    std::vector<int64_t> sources;  // from the place of a pixel
    std::vector<int64_t> weights;  // from the first weight of a row
};

template <class T>
class Nest {
public:
    Nest(const GroupedConv<T>& conv, const KernelSet<T>& kernels)
        : conv_(conv), kernels_(kernels), stage_(*conv.h, *conv.w, conv.source, conv.pad, kernels),
          sizes_(grouped_sizes(*conv.h, *conv.w, conv.channels, conv.rows)),
          channels_inside_(conv.dest.shape[1] > 1 && conv.dest.stride[1] == 1 && conv.dest.stride[3] != 1),
          direct_(conv.w->classes.size() == 1 && conv.dest.stride[3] == 1),
          blocks_(plan_grouped_blocks(sizes_, *conv.h, conv.batch, conv.groups, sizeof(T),
                                      channels_inside_ || Stage<T>::channels_adjacent(conv.source), !direct_)),
          plane_(blocks_.staged_rows * sizes_.source_pitch) {
        for (const StagedAxis::Class& h : conv.h->classes)
            for (const StagedAxis::Class& w : conv.w->classes) taps_.push_back(find_taps(h, w));
    }

    void run() {
        const int64_t group_blocks = ceil_div(conv_.groups, blocks_.stage_groups);
        const int64_t row_blocks = ceil_div(sizes_.positions_h, blocks_.block_rows);
        const int64_t units = conv_.batch * group_blocks * row_blocks;
        const int64_t tasks = ceil_div(units, blocks_.task_units);
        const int64_t flops = sizes_.flops * conv_.batch * conv_.groups;
        const int width = static_cast<int>(std::min<int64_t>({parallel_width(flops), num_threads(), tasks}));
        const int64_t bytes = grouped_scratch(blocks_, sizes_, kernels_);
        const Workspace workspace(static_cast<size_t>(width * bytes));
        parallel_for(tasks, width, [&](int64_t task, int worker) {
            char* memory = static_cast<char*>(workspace.data()) + worker * bytes;
            const Scratch<T> scratch(ScratchParts(memory), blocks_, sizes_, kernels_.lanes);
            std::fill_n(scratch.pads, blocks_.stage_groups * conv_.channels, conv_.pad);
            const int64_t last = std::min(units, (task + 1) * blocks_.task_units);
            for (int64_t unit = task * blocks_.task_units; unit < last; ++unit)
                run_unit(unit / row_blocks / group_blocks, unit / row_blocks % group_blocks, unit % row_blocks,
                         scratch);
        });
    }

private:
    ClassTaps find_taps(const StagedAxis::Class& h, const StagedAxis::Class& w) const {
        ClassTaps taps;
        for (int64_t c = 0; c < conv_.channels; ++c)
            for (const StagedAxis::Tap& r : h.taps)
                for (const StagedAxis::Tap& s : w.taps) {
                    taps.sources.push_back(c * plane_ + r.offset * sizes_.source_pitch + stage_.row().at(s.offset));
                    taps.weights.push_back(c * conv_.weight_channel + r.kernel_index * conv_.weight_h +
                                           s.kernel_index * conv_.weight_w);
                }
        return taps;
    }

    void run_unit(int64_t n, int64_t group_block, int64_t row_block, const Scratch<T>& scratch) const {
        const int64_t first_group = group_block * blocks_.stage_groups;
        const int64_t groups = std::min(blocks_.stage_groups, conv_.groups - first_group);
        const int64_t first = row_block * blocks_.block_rows;
        const int64_t rows = std::min(blocks_.block_rows, sizes_.positions_h - first);
        const int64_t first_place = first * conv_.h->advance;
        stage_.fill(scratch.staged, plane_, n, first_group * conv_.channels, groups * conv_.channels, first_place,
                    std::min(conv_.h->reach(rows), conv_.h->places() - first_place), scratch.pads);
        for (size_t i = 0; i < conv_.h->classes.size(); ++i) {
            const StagedAxis::Class& h = conv_.h->classes[i];
            const int64_t class_rows = std::min(rows, h.positions - first);
            if (class_rows <= 0) continue;
            for (int64_t g = 0; g < groups; ++g)
                for (size_t j = 0; j < conv_.w->classes.size(); ++j)
                    run_class(n, first_group, g, i, j, first, class_rows, scratch);
            if (!direct_)
                store_result(n, first_group * conv_.rows, groups * conv_.rows, h.first + first * h.step, h.step,
                             class_rows, scratch.result);
        }
    }

    // One group's pixels of one class.
    void run_class(int64_t n, int64_t first_group, int64_t group, size_t class_h, size_t class_w, int64_t first,
                   int64_t rows, const Scratch<T>& scratch) const {
        const int64_t channel = (first_group + group) * conv_.rows;
        const StagedAxis::Class& h = conv_.h->classes[class_h];
        const ClassTaps& taps = taps_[class_h * conv_.w->classes.size() + class_w];
        GroupedTile<T> tile;
        tile.source = scratch.staged + group * conv_.channels * plane_;
        tile.source_row = conv_.h->advance * sizes_.source_pitch;
        tile.offsets = taps.sources.data();
        tile.taps = static_cast<int64_t>(taps.sources.size());
        tile.weights = pack_weights(conv_.weight + (first_group + group) * conv_.weight_group, taps, scratch.weights);
        tile.bias = nullptr;
        if (conv_.bias) {
            for (int64_t k = 0; k < conv_.rows; ++k) scratch.bias[k] = conv_.bias[(channel + k) * conv_.bias_stride];
            tile.bias = scratch.bias;
        }
        tile.relu = conv_.relu;
        tile.channels = conv_.rows;
        tile.rows = rows;
        tile.columns = conv_.w->classes[class_w].positions;
        if (direct_) {
            tile.dest = conv_.dest.at(n, channel, h.first + first * h.step, 0);
            tile.dest_channel = conv_.dest.stride[1];
            tile.dest_row = h.step * conv_.dest.stride[2];
        } else {
            const int64_t class_size = blocks_.block_rows * sizes_.dest_pitch;
            tile.dest_channel = sizes_.classes_w * class_size;
            tile.dest =
                scratch.result + group * conv_.rows * tile.dest_channel + static_cast<int64_t>(class_w) * class_size;
            tile.dest_row = sizes_.dest_pitch;
        }
        kernels_.grouped_tile(tile);
    }

    const T* pack_weights(const T* from, const ClassTaps& taps, T* to) const {
        T* const packed = to;
        for (int64_t panel = 0; panel < conv_.rows; panel += grouped_panel) {
            const int64_t width = std::min(grouped_panel, conv_.rows - panel);
            for (const int64_t offset : taps.weights)
                for (int64_t k = 0; k < width; ++k) *to++ = from[(panel + k) * conv_.weight_row + offset];
        }
        return packed;
    }

    // Rows of all classes of columns to their places in dest.
    void store_result(int64_t n, int64_t first_channel, int64_t channels, int64_t first_row, int64_t row_step,
                      int64_t rows, const T* result) const {
        const int64_t class_size = blocks_.block_rows * sizes_.dest_pitch;
        const int64_t channel_size = sizes_.classes_w * class_size;
        const int64_t step = conv_.dest.stride[3];
        const std::vector<StagedAxis::Class>& classes = conv_.w->classes;
        for (int64_t i = 0; i < rows; ++i, result += sizes_.dest_pitch) {
            T* to = conv_.dest.at(n, first_channel, first_row + i * row_step, 0);
            if (channels_inside_) {
                for (size_t j = 0; j < classes.size(); ++j)
                    store_transposed(to + classes[j].first * step, classes[j].step * step,
                                     result + static_cast<int64_t>(j) * class_size, channel_size, channels,
                                     classes[j].positions);
                continue;
            }
            for (int64_t c = 0; c < channels; ++c, to += conv_.dest.stride[1]) {
                const T* from = result + c * channel_size;
                if (step == 1 && classes.size() == 2) {
                    kernels_.join_row(to, from, from + class_size, conv_.dest.shape[3]);
                    continue;
                }
                for (size_t j = 0; j < classes.size(); ++j)
                    for (int64_t x = 0; x < classes[j].positions; ++x)
                        to[(classes[j].first + x * classes[j].step) * step] =
                            from[static_cast<int64_t>(j) * class_size + x];
            }
        }
    }

    void store_transposed(T* to, int64_t step, const T* from, int64_t channel_size, int64_t channels,
                          int64_t pixels) const {
        constexpr int64_t at_once = 16;
        const T* row[at_once];
        for (int64_t c = 0; c < channels; c += at_once) {
            const int64_t count = std::min(at_once, channels - c);
            for (int64_t i = 0; i < count; ++i) row[i] = from + (c + i) * channel_size;
            kernels_.pack_transposed(to + c, step, row, static_cast<int>(count), pixels);
        }
    }

    const GroupedConv<T>& conv_;
    const KernelSet<T>& kernels_;
    const Stage<T> stage_;
    const GroupedSizes sizes_;
    const bool channels_inside_;  // dest takes vectors of channels
    const bool direct_;           // dest takes vectors of pixels
    const GroupedBlocks blocks_;
    const int64_t plane_;          // elements of a staged channel
    std::vector<ClassTaps> taps_;  // [class of rows][class of columns]
};

// Few channels, more than one: where none of the arrays has them adjacent in memory.
template <class T>
bool takes_pixels(const GroupedConv<T>& conv) {
    const bool channels_adjacent = Stage<T>::channels_adjacent(conv.source) || Stage<T>::channels_adjacent(conv.dest);
    return (conv.channels > 1 || conv.rows > 1) && !channels_adjacent;
}

bool reads_outside(const StagedAxis& axis) {
    for (size_t place = 0; place < axis.source.size(); ++place)
        if (axis.used[place] && axis.source[place] == AxisTable::outside) return true;
    return false;
}

}  // namespace

template <class T>
int64_t grouped_scratch(const GroupedBlocks& blocks, const GroupedSizes& sizes, const KernelSet<T>& kernels) {
    return Scratch<T>(ScratchParts(), blocks, sizes, kernels.lanes).bytes;
}

template <class T>
void run_grouped(const GroupedConv<T>& conv, const KernelSet<T>& kernels) {
    if (conv.dest.size() == 0) return;
    if (conv.channels == 1 && conv.rows == 1 && run_depthwise_pixels(conv, kernels)) return;
    Nest<T>(conv, kernels).run();
}

template <class T>
void grouped_forward(const ConvProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                     TensorView<const T> bias, TensorView<T> output) {
    const Border border = border_of(problem, forward_table(problem.h), forward_table(problem.w));
    // Skipping is done by multiplying with zero; the GEMM knows what to do where that is not the same.
    if (border.mixed || (border.skips && !all_finite(weight)))
        return gemm_forward(problem, input, weight, bias, output);
    GroupedConv<T> conv{};
    conv.batch = problem.batch;
    conv.groups = problem.groups;
    conv.channels = problem.group_in();
    conv.rows = problem.group_out();
    conv.source = input;
    conv.pad = static_cast<T>(border.value);
    conv.weight = weight.data;
    conv.weight_group = problem.group_out() * weight.stride[0];
    conv.weight_row = weight.stride[0];
    conv.weight_channel = weight.stride[1];
    conv.weight_h = weight.stride[2];
    conv.weight_w = weight.stride[3];
    conv.dest = output;
    conv.bias = bias.data;
    conv.bias_stride = bias.stride[1];
    conv.relu = problem.relu;
    const KernelSet<T>& kernels = kernel_set<T>(active_kernels());
    if (grouped_takes_channels(ConvPass::forward, conv.rows, kernels.lanes))
        return run_grouped_channels(conv, GroupedPlanes(problem, true), problem.flops(), kernels);
    if (takes_pixels(conv))
        return run_grouped_pixels(conv, grouped_pixels_layout(problem, true), problem.flops(), kernels);
    const StagedAxis h = staged_forward(problem.h), w = staged_forward(problem.w);
    conv.h = &h;
    conv.w = &w;
    const DepthwiseWindow window{
        problem.h.kernel, problem.h.stride, problem.h.pad_before, problem.w.pad_before, false, false};
    if (depthwise_planes_can_run(problem, ConvPass::forward) && run_depthwise_planes(window, conv, kernels)) return;
    run_grouped(conv, kernels);
}

template <class T>
void grouped_grad_input(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> weight,
                        TensorView<T> grad_input, TensorView<const T> bias) {
    const StagedAxis h = staged_adjoint(problem.h), w = staged_adjoint(problem.w);
    if ((reads_outside(h) || reads_outside(w)) && !all_finite(weight))
        return gemm_grad_input(problem, grad_output, weight, grad_input, bias);
    GroupedConv<T> conv{};
    conv.batch = problem.batch;
    conv.groups = problem.groups;
    conv.channels = problem.group_out();
    conv.rows = problem.group_in();
    conv.h = &h;
    conv.w = &w;
    conv.source = grad_output;
    conv.weight = weight.data;
    conv.weight_group = problem.group_out() * weight.stride[0];
    conv.weight_row = weight.stride[1];
    conv.weight_channel = weight.stride[0];
    conv.weight_h = weight.stride[2];
    conv.weight_w = weight.stride[3];
    conv.dest = grad_input;
    conv.bias = bias.data;
    conv.bias_stride = bias.stride[1];
    const KernelSet<T>& kernels = kernel_set<T>(active_kernels());
    if (grouped_takes_channels(ConvPass::grad_input, conv.rows, kernels.lanes))
        return run_grouped_channels(conv, GroupedPlanes(problem, false), problem.flops(), kernels);
    if (takes_pixels(conv))
        return run_grouped_pixels(conv, grouped_pixels_layout(problem, false), problem.flops(), kernels);
    const int64_t kernel = problem.h.kernel, top = problem.h.pad_before, left = problem.w.pad_before;
    const bool strided = problem.h.stride > 1;
    const DepthwiseWindow window = strided
                                       ? DepthwiseWindow{kernel, problem.h.stride, top, left, false, true}
                                       : DepthwiseWindow{kernel, 1, kernel - 1 - top, kernel - 1 - left, true, false};
    if (depthwise_planes_can_run(problem, ConvPass::grad_input) && run_depthwise_planes(window, conv, kernels)) return;
    run_grouped(conv, kernels);
}

template int64_t grouped_scratch(const GroupedBlocks&, const GroupedSizes&, const KernelSet<float>&);
template int64_t grouped_scratch(const GroupedBlocks&, const GroupedSizes&, const KernelSet<double>&);
template void run_grouped(const GroupedConv<float>&, const KernelSet<float>&);
template void run_grouped(const GroupedConv<double>&, const KernelSet<double>&);
template void grouped_forward(const ConvProblem&, TensorView<const float>, TensorView<const float>,
                              TensorView<const float>, TensorView<float>);
template void grouped_forward(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                              TensorView<const double>, TensorView<double>);
template void grouped_grad_input(const ConvProblem&, TensorView<const float>, TensorView<const float>,
                                 TensorView<float>, TensorView<const float>);
template void grouped_grad_input(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                                 TensorView<double>, TensorView<const double>);

}  // namespace convx
