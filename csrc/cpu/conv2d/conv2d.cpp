#include "cpu/conv2d/conv2d.h"

#include <algorithm>
#include <cassert>

#include "cpu/conv2d/methods.h"
#include "cpu/conv2d/reference.h"
#include "cpu/runtime/registry.h"

namespace convx {

namespace {

// The policy for inf and NaN. A method that multiplies the zeros of a border gives 0 * inf = NaN where the formula adds
// nothing; the reference then computes the sum. The zeros meet the weights of a window sum and the gradient of a pixel
// sum.
template <class Sum>
bool multiplies_zeros(const Traits& traits, const Sum& sum) {
    return traits.multiplies_border && sum.border.skips;
}
template <class T>
bool is_factor_finite(const WindowSum<T>& sum) {
    return sum.packed ? sum.packed->finite : all_finite(sum.weight_view);
}
template <class T>
bool is_factor_finite(const PixelSum<T>& sum) {
    return all_finite(sum.grad_output);
}

template <class T>
WindowSum<T> images_of(const WindowSum<T>& sum, int64_t first, int64_t count) {
    WindowSum<T> images = sum;
    images.batch = count;
    images.source = sum.source.images(first, count);
    images.dest = sum.dest.images(first, count);
    return images;
}

// Nothing is computed a third time: the operands are looked at before the direct method runs.
template <class Sum>
void run_direct_method(const Sum& sum) {
    const Kernels& kernels = active_kernels();
    const Method<Sum>& method = choose_method(sum, kernels);
    if (multiplies_zeros(method.traits, sum) && !is_factor_finite(sum)) return run_reference(sum);
    method.run(sum, kernel_set<typename Sum::Element>(kernels));
}

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
    const Workspace workspace(static_cast<size_t>(element_count(image.input_shape())) * sizeof(T));
    const auto padded = dense_view(static_cast<T*>(workspace.data()), image.input_shape(), problem.channels_last);
    for (int64_t n = 0; n < problem.batch; ++n) {
        compute(window_sum<T>(image, ConvPass::grad_input, grad_output.images(n, 1), weight, {}, padded));
        fold<T>(cells_h, cells_w, padded, grad_input.images(n, 1));
    }
}

}  // namespace

// The smaller array of an image is looked at: its weights before, or its results (for a NaN) after. Which one, and what
// is computed again, depends on the image and the weights alone.
template <class T>
void compute(const WindowSum<T>& sum) {
    if (sum.dest.size() == 0) return;
    if (sum.channels == 0) return fill_with_bias(sum);
    // One axis skips and the other one pads with a number: no single value stands for both.
    if (sum.border.mixed) return run_reference(sum);
    const Kernels& kernels = active_kernels();
    const Method<WindowSum<T>>& method = choose_method(sum, kernels);
    WindowSum<T> own = sum;
    if (sum.packed && !sum.packed->fits(method, kernels, *sum.problem)) own.packed = nullptr;
    const bool few_weights = sum.channels * sum.problem->taps() <= sum.dest.shape[2] * sum.dest.shape[3];
    const bool checks = multiplies_zeros(method.traits, sum);
    if (checks && few_weights && !is_factor_finite(own)) return run_reference(own);
    method.run(own, kernel_set<T>(kernels));
    if (!checks || few_weights) return;
    for (int64_t n = 0; n < sum.batch; ++n) {
        if (!has_nan<T>(sum.dest.images(n, 1))) continue;
        if (is_factor_finite(own)) return;
        run_reference(images_of(own, n, 1));
    }
}

template <class T>
void compute(const PixelSum<T>& sum) {
    if (sum.weights() == 0) return;
    if (sum.problem->batch == 0) return std::fill_n(sum.grad_weight.data, sum.weights(), T(0)), void();
    if (sum.border.mixed) return run_reference(sum);
    const Kernels& kernels = active_kernels();
    const Method<PixelSum<T>>& method = choose_method(sum, kernels);
    method.run(sum, kernel_set<T>(kernels));
    if (!multiplies_zeros(method.traits, sum) || !has_nan(sum.grad_weight.data, sum.weights())) return;
    if (!is_factor_finite(sum)) run_reference(sum);
}

template <class T>
void compute_directly(const WindowSum<T>& sum, int64_t first, int64_t count) {
    ConvProblem problem = *sum.problem;
    problem.batch = count;
    problem.algorithm = Algorithm::direct;
    WindowSum<T> images = images_of(sum, first, count);
    images.problem = &problem;
    images.packed = nullptr;
    run_direct_method(images);
}

template <class T>
void compute_directly(const PixelSum<T>& sum) {
    ConvProblem problem = *sum.problem;
    problem.algorithm = Algorithm::direct;
    PixelSum<T> direct = sum;
    direct.problem = &problem;
    run_direct_method(direct);
}

template <class T>
void conv2d_forward(const ConvProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                    TensorView<const T> bias, TensorView<T> output, const PackedWeight<T>* packed) {
    WindowSum<T> sum = window_sum(problem, ConvPass::forward, input, weight, bias, output);
    sum.packed = packed;
    compute(sum);
}

template <class T>
void conv2d_grad_input(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> weight,
                       TensorView<T> grad_input, TensorView<const T> bias) {
    if (!problem.h.folds() && !problem.w.folds())
        return compute(window_sum(problem, ConvPass::grad_input, grad_output, weight, bias, grad_input));
    assert(!bias.data);
    folded_grad_input(problem, grad_output, weight, grad_input);
}

template <class T>
void conv2d_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                        TensorView<T> grad_weight) {
    compute(pixel_sum(problem, grad_output, input, grad_weight));
}

template void compute(const WindowSum<float>&);
template void compute(const WindowSum<double>&);
template void compute(const PixelSum<float>&);
template void compute(const PixelSum<double>&);
template void compute_directly(const WindowSum<float>&, int64_t, int64_t);
template void compute_directly(const WindowSum<double>&, int64_t, int64_t);
template void compute_directly(const PixelSum<float>&);
template void compute_directly(const PixelSum<double>&);
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
