#include "cpu/conv2d/conv2d.h"

#include <algorithm>
#include <cassert>

#include "cpu/conv2d/methods.h"

namespace convx {

namespace {

// The input index that each cell of the unfolded axis shows.
AxisTable shown_cells(const Axis& axis) {
    Axis cells = axis;
    cells.kernel = cells.stride = cells.dilation = 1;
    if (!axis.folds()) cells.pad_before = cells.pad_after = 0;
    return forward_table(cells);
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

// Borders that mirror or wrap: the gradient of the padded images, folded back image by image.
template <class T>
void folded_grad_input(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> weight,
                       TensorView<T> grad_input) {
    ConvProblem image = problem;
    image.batch = 1;
    image.h = problem.h.unfolded();
    image.w = problem.w.unfolded();
    const AxisTable cells_h = shown_cells(problem.h), cells_w = shown_cells(problem.w);
    TensorView<T> padded{nullptr, {1, problem.in_channels, image.h.input, image.w.input}, {}};
    padded.stride = dense_strides(padded.shape, problem.channels_last);
    const Workspace workspace(static_cast<size_t>(padded.size()) * sizeof(T));
    padded.data = static_cast<T*>(workspace.data());
    for (int64_t n = 0; n < problem.batch; ++n) {
        compute(grad_input_sum<T>(image, grad_output.images(n, 1), weight, padded, {}));
        fold<T>(cells_h, cells_w, padded, grad_input.images(n, 1));
    }
}

}  // namespace

template <class T>
void conv2d_forward(const ConvProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                    TensorView<const T> bias, TensorView<T> output, const PackedWeight<T>* packed) {
    WindowSum<T> sum = forward_sum(problem, input, weight, bias, output);
    sum.packed = packed;
    compute(sum);
}

template <class T>
void conv2d_grad_input(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> weight,
                       TensorView<T> grad_input, TensorView<const T> bias) {
    if (!problem.h.folds() && !problem.w.folds())
        return compute(grad_input_sum(problem, grad_output, weight, grad_input, bias));
    assert(!bias.data);
    folded_grad_input(problem, grad_output, weight, grad_input);
}

template <class T>
void conv2d_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                        TensorView<T> grad_weight) {
    compute(pixel_sum(problem, grad_output, input, grad_weight));
}

template void conv2d_forward(const ConvProblem&, TensorView<const float>, TensorView<const float>,
                             TensorView<const float>, TensorView<float>, const PackedWeight<float>*);
template void conv2d_forward(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                             TensorView<const double>, TensorView<double>, const PackedWeight<double>*);
template void conv2d_grad_input(const ConvProblem&, TensorView<const float>, TensorView<const float>, TensorView<float>,
                                TensorView<const float>);
template void conv2d_grad_input(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                                TensorView<double>, TensorView<const double>);
template void conv2d_grad_weight(const ConvProblem&, TensorView<const float>, TensorView<const float>,
                                 TensorView<float>);
template void conv2d_grad_weight(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                                 TensorView<double>);

}  // namespace convx
