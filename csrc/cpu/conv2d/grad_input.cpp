// Input gradient: the adjoint of forward as an implicit GEMM over grad_output. Rows are input channels, the reduction
// runs over output channels and taps. A stride splits the input into stride_h * stride_w residue classes, each a dense
// small convolution of its own: no multiplications by inserted zeros, no scatter. A bias is that of a transposed
// convolution (cpu/conv_transpose2d.h).
#include <algorithm>
#include <cassert>

#include "cpu/conv2d/implicit_gemm.h"
#include "cpu/conv2d/methods.h"
#include "cpu/conv2d/winograd.h"
#include "cpu/registry.h"
#include "cpu/thread_pool.h"
#include "cpu/workspace.h"

namespace convx {

namespace {

// The input index that each cell of the unfolded axis shows.
AxisTable shown_cells(const Axis& axis) {
    Axis cells = axis;
    cells.kernel = cells.stride = cells.dilation = 1;
    if (!axis.folds()) cells.pad_before = cells.pad_after = 0;
    return forward_table(cells);
}

// Inputs that no window reads: whole planes at once, since the classes lie interleaved.
template <class T>
void fill_empty(TensorView<T> dest, TensorView<const T> bias) {
    const auto [batch, channels, height, width] = dest.shape;
    const bool channels_inside = dest.stride[1] == 1;
    const auto value = [&](int64_t c) { return bias.data ? bias.data[c * bias.stride[1]] : T(0); };
    const int64_t planes = channels_inside ? height : channels;
    parallel_for(batch * planes, parallel_width(8 * dest.size()),
                 [&, channels = channels, height = height, width = width](int64_t task, int) {
                     const int64_t n = task / planes, plane = task % planes;
                     if (channels_inside) {
                         for (int64_t w = 0; w < width; ++w)
                             for (int64_t c = 0; c < channels; ++c) dest.at(n, 0, plane, w)[c] = value(c);
                     } else if (dest.stride[3] == 1) {
                         for (int64_t h = 0; h < height; ++h) std::fill_n(dest.at(n, plane, h, 0), width, value(plane));
                     } else {
                         for (int64_t h = 0; h < height; ++h)
                             for (int64_t w = 0; w < width; ++w) *dest.at(n, plane, h, w) = value(plane);
                     }
                 });
}

// run(gemm, blocks, kernels) for every class.
template <class T, class Run>
void adjoint(const Run& run, const ConvProblem& problem, const Axis& axis_h, const Axis& axis_w,
             TensorView<const T> grad_output, TensorView<const T> weight, TensorView<T> dest,
             TensorView<const T> bias) {
    const KernelSet<T>& kernels = kernel_set<T>(active_kernels());
    ImplicitGemm<T> gemm{};
    gemm.batch = grad_output.shape[0];
    gemm.groups = problem.groups;
    gemm.channels = problem.group_out();
    gemm.rows = problem.group_in();
    gemm.source = grad_output.data;
    gemm.source_stride = {grad_output.stride[0], grad_output.stride[1], grad_output.stride[2], grad_output.stride[3]};
    gemm.pad = T(0);
    gemm.skip_outside_h = gemm.skip_outside_w = true;
    gemm.weight = weight.data;
    gemm.weight_group = problem.group_out() * weight.stride[0];
    gemm.weight_row = weight.stride[1];
    gemm.weight_channel = weight.stride[0];
    gemm.weight_h = weight.stride[2];
    gemm.weight_w = weight.stride[3];
    gemm.bias = bias.data;
    gemm.bias_stride = bias.stride[1];
    gemm.dest_stride = {dest.stride[0], dest.stride[1], axis_h.stride * dest.stride[2], axis_w.stride * dest.stride[3]};

    const std::vector<AxisTable> classes_h = residue_classes(axis_h), classes_w = residue_classes(axis_w);
    const auto is_empty = [](const AxisTable& table) { return table.taps.empty(); };
    if (std::any_of(classes_h.begin(), classes_h.end(), is_empty) ||
        std::any_of(classes_w.begin(), classes_w.end(), is_empty))
        fill_empty(dest, bias);
    for (size_t class_h = 0; class_h < classes_h.size(); ++class_h)
        for (size_t class_w = 0; class_w < classes_w.size(); ++class_w) {
            gemm.h = &classes_h[class_h];
            gemm.w = &classes_w[class_w];
            if (gemm.taps() == 0) continue;
            gemm.dest = dest.at(0, 0, static_cast<int64_t>(class_h), static_cast<int64_t>(class_w));
            const GemmBlocks blocks = plan_gemm_blocks(problem.channels_last, gemm.pixels(), gemm.groups, gemm.channels,
                                                       gemm.rows, gemm.taps(), sizeof(T), kernels.mr, kernels.nr);
            run(gemm, blocks, kernels);
        }
}

// grad_input[cell] = sum of all padded cells that show it, in row-major order.
template <class T>
void fold(const AxisTable& cells_h, const AxisTable& cells_w, TensorView<const T> padded, TensorView<T> grad_input) {
    const auto [n, channels, height, width] = grad_input.shape;
    (void)n;
    parallel_for(channels, parallel_width(4 * channels * cells_h.positions * cells_w.positions),
                 [&, height = height, width = width](int64_t c, int) {
                     for (int64_t h = 0; h < height; ++h)
                         for (int64_t w = 0; w < width; ++w) *grad_input.at(0, c, h, w) = T(0);
                     for (int64_t i = 0; i < cells_h.positions; ++i)
                         for (int64_t j = 0; j < cells_w.positions; ++j)
                             *grad_input.at(0, c, cells_h.at(0, i), cells_w.at(0, j)) += *padded.at(0, c, i, j);
                 });
}

template <class T, class Run>
void folded_adjoint(const Run& run, const ConvProblem& problem, TensorView<const T> grad_output,
                    TensorView<const T> weight, TensorView<T> grad_input, TensorView<const T> bias) {
    if (!problem.h.folds() && !problem.w.folds())
        return adjoint(run, problem, problem.h, problem.w, grad_output, weight, grad_input, bias);
    assert(!bias.data);
    const Axis h = problem.h.unfolded(), w = problem.w.unfolded();
    const AxisTable cells_h = shown_cells(problem.h), cells_w = shown_cells(problem.w);
    TensorView<T> padded{nullptr, {1, problem.in_channels, h.input, w.input}, {}};
    padded.stride = dense_strides(padded.shape, problem.channels_last);
    const Workspace workspace(static_cast<size_t>(padded.size()) * sizeof(T));
    padded.data = static_cast<T*>(workspace.data());
    for (int64_t n = 0; n < problem.batch; ++n) {
        adjoint<T>(run, problem, h, w, grad_output.images(n, 1), weight, padded, {});
        fold<T>(cells_h, cells_w, padded, grad_input.images(n, 1));
    }
}

}  // namespace

template <class T>
void gemm_grad_input(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> weight,
                     TensorView<T> grad_input, TensorView<const T> bias) {
    folded_adjoint(run_implicit_gemm<T>, problem, grad_output, weight, grad_input, bias);
}

template <class T>
void winograd_grad_input(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> weight,
                         TensorView<T> grad_input, TensorView<const T> bias) {
    const auto run = [](const ImplicitGemm<T>& gemm, const GemmBlocks& direct, const KernelSet<T>& kernels) {
        run_winograd(gemm, true, direct, kernels);
    };
    folded_adjoint(run, problem, grad_output, weight, grad_input, bias);
}

template void gemm_grad_input(const ConvProblem&, TensorView<const float>, TensorView<const float>, TensorView<float>,
                              TensorView<const float>);
template void gemm_grad_input(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                              TensorView<double>, TensorView<const double>);

template void winograd_grad_input(const ConvProblem&, TensorView<const float>, TensorView<const float>,
                                  TensorView<float>, TensorView<const float>);
template void winograd_grad_input(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                                  TensorView<double>, TensorView<const double>);

}  // namespace convx
