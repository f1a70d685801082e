#include "cpu/conv2d/per_sample.h"

#include <algorithm>
#include <cmath>

#include "cpu/conv2d/conv2d.h"
#include "cpu/conv2d/pixel_products.h"
#include "cpu/runtime/registry.h"
#include "cpu/runtime/thread_pool.h"
#include "cpu/runtime/workspace.h"

namespace convx {

namespace {

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
    TensorView<T> gradient{nullptr, single.weight_shape(), dense_strides(single.weight_shape(), false)};
    const Workspace workspace(static_cast<size_t>(gradient.size()) * sizeof(T));
    gradient.data = static_cast<T*>(workspace.data());
    conv2d_grad_weight(single, grad_output, input, gradient);
    return sum_of_squares(gradient.data, gradient.size());
}

}  // namespace

template <class T>
void conv2d_per_sample_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output,
                                   TensorView<const T> input, T* grad_weight) {
    const ConvProblem single = single_image(problem);
    const TensorView<T> first{grad_weight, single.weight_shape(), dense_strides(single.weight_shape(), false)};
    for_each_sample(problem.batch, single.flops(), [&](int64_t n) {
        TensorView<T> own = first;
        own.data += n * first.size();
        conv2d_grad_weight(single, grad_output.images(n, 1), input.images(n, 1), own);
    });
}

template <class T>
void conv2d_grad_weight_norms(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                              double* norms) {
    const ConvProblem single = single_image(problem);
    if (problem.in_channels == 0) return std::fill_n(norms, problem.batch, 0.0), void();
    if (!norms_by_pixels(problem)) {
        for_each_sample(problem.batch, single.flops(), [&](int64_t n) {
            norms[n] = norm_of_gradient(single, grad_output.images(n, 1), input.images(n, 1));
        });
        return;
    }
    const KernelSet<double>& kernels = active_kernels().f64;
    parallel_for(problem.batch, parallel_width(problem.flops()), [&](int64_t n, int) {
        const auto grad = grad_output.images(n, 1), image = input.images(n, 1);
        norms[n] = norm_by_pixels(single, grad, image, kernels);
        // Products of pixels multiply what the gradient skips, and their squares overflow earlier.
        if (!std::isfinite(norms[n]))
            norms[n] = norm_of_gradient(single, grad, image);
        else
            norms[n] = std::max(norms[n], 0.0);  // rounding, where everything cancels
    });
}

template void conv2d_per_sample_grad_weight(const ConvProblem&, TensorView<const float>, TensorView<const float>,
                                            float*);
template void conv2d_per_sample_grad_weight(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                                            double*);
template void conv2d_grad_weight_norms(const ConvProblem&, TensorView<const float>, TensorView<const float>, double*);
template void conv2d_grad_weight_norms(const ConvProblem&, TensorView<const double>, TensorView<const double>, double*);

}  // namespace convx
