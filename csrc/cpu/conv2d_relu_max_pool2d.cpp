#include "cpu/conv2d_relu_max_pool2d.h"

#include <algorithm>
#include <vector>

#include "cpu/conv2d/conv2d.h"
#include "cpu/max_pool2d.h"
#include "cpu/workspace.h"

namespace convx {

namespace {

// A few images at a time: enough that small ones fill the threads, few enough that the convolution output of the block
// (never of the batch) stays near the cache.
constexpr int64_t block_bytes = 8 * 1024 * 1024;

FusedProblem part_of(FusedProblem problem, int64_t images) {
    problem.conv.batch = problem.pool.batch = images;
    return problem;
}

template <class T>
TensorView<T> conv_scratch(const FusedProblem& problem, const Workspace& workspace, int64_t images) {
    TensorView<T> view{static_cast<T*>(workspace.data()), problem.conv.output_shape(), {}};
    view.shape[0] = images;
    view.stride = dense_strides(view.shape, problem.conv.channels_last);
    return view;
}

int64_t image_bytes(const FusedProblem& problem) {
    return problem.conv.out_channels * problem.conv.out_pixels() * item_size(problem.conv.dtype);
}

template <class T>
Workspace block_workspace(const FusedProblem& problem) {
    return Workspace(static_cast<size_t>(fused_images(problem) * image_bytes(problem)));
}

// Where the ReLU cut the chosen value to zero nothing flows back.
template <class T>
void mark_dead(TensorView<const T> output, TensorView<uint8_t> codes) {
    const auto [n_end, c_end, h_end, w_end] = output.shape;
    for (int64_t n = 0; n < n_end; ++n)
        for (int64_t c = 0; c < c_end; ++c)
            for (int64_t h = 0; h < h_end; ++h)
                for (int64_t w = 0; w < w_end; ++w)
                    if (*output.at(n, c, h, w) <= T(0)) *codes.at(n, c, h, w) = no_gradient_code;
}

}  // namespace

int64_t fused_images(const FusedProblem& problem) {
    return std::clamp(block_bytes / std::max<int64_t>(image_bytes(problem), 1), int64_t{1},
                      std::max<int64_t>(problem.conv.batch, 1));
}

template <class T>
void conv2d_relu_max_pool2d(const FusedProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                            TensorView<const T> bias, TensorView<T> output, TensorView<uint8_t> codes) {
    const Workspace workspace = block_workspace<T>(problem);
    const int64_t step = fused_images(problem);
    for (int64_t n = 0; n < problem.conv.batch; n += step) {
        const int64_t images = std::min(step, problem.conv.batch - n);
        const FusedProblem part = part_of(problem, images);
        const TensorView<T> conv = conv_scratch<T>(problem, workspace, images);
        conv2d_forward<T>(part.conv, input.images(n, images), weight, bias, conv);
        max_pool2d<T>(part.pool, conv, output.images(n, images), {}, codes.images(n, images));
        mark_dead<T>(output.images(n, images), codes.images(n, images));
    }
}

template <class T>
bool conv2d_relu_max_pool2d_backward(const FusedProblem& problem, TensorView<const T> grad_output,
                                     TensorView<const T> input, TensorView<const T> weight,
                                     TensorView<const uint8_t> codes, TensorView<T> grad_input,
                                     TensorView<T> grad_weight, T* grad_bias) {
    const Workspace workspace = block_workspace<T>(problem);
    const int64_t step = fused_images(problem);
    const int64_t weights = grad_weight.size(), biases = problem.conv.out_channels;
    // The sums over the batch are added block by block, in order.
    std::vector<T> block_weight(grad_weight.data ? static_cast<size_t>(weights) : 0);
    std::vector<T> block_bias(grad_bias ? static_cast<size_t>(biases) : 0);
    if (grad_weight.data) std::fill(grad_weight.data, grad_weight.data + weights, T(0));
    if (grad_bias) std::fill(grad_bias, grad_bias + biases, T(0));
    for (int64_t n = 0; n < problem.conv.batch; n += step) {
        const int64_t images = std::min(step, problem.conv.batch - n);
        const FusedProblem part = part_of(problem, images);
        const TensorView<T> grad_conv = conv_scratch<T>(problem, workspace, images);
        if (!max_pool2d_backward<T>(part.pool, grad_output.images(n, images), codes.images(n, images), grad_conv))
            return false;
        if (grad_input.data) conv2d_grad_input<T>(part.conv, grad_conv, weight, grad_input.images(n, images));
        if (grad_weight.data) {
            TensorView<T> sum = grad_weight;
            sum.data = block_weight.data();
            conv2d_grad_weight<T>(part.conv, grad_conv, input.images(n, images), sum);
            for (int64_t i = 0; i < weights; ++i) grad_weight.data[i] += sum.data[i];
        }
        if (grad_bias) {
            conv2d_grad_bias<T>(part.conv, grad_conv, block_bias.data());
            for (int64_t k = 0; k < biases; ++k) grad_bias[k] += block_bias[static_cast<size_t>(k)];
        }
    }
    return true;
}

template void conv2d_relu_max_pool2d(const FusedProblem&, TensorView<const float>, TensorView<const float>,
                                     TensorView<const float>, TensorView<float>, TensorView<uint8_t>);
template void conv2d_relu_max_pool2d(const FusedProblem&, TensorView<const double>, TensorView<const double>,
                                     TensorView<const double>, TensorView<double>, TensorView<uint8_t>);
template bool conv2d_relu_max_pool2d_backward(const FusedProblem&, TensorView<const float>, TensorView<const float>,
                                              TensorView<const float>, TensorView<const uint8_t>, TensorView<float>,
                                              TensorView<float>, float*);
template bool conv2d_relu_max_pool2d_backward(const FusedProblem&, TensorView<const double>, TensorView<const double>,
                                              TensorView<const double>, TensorView<const uint8_t>, TensorView<double>,
                                              TensorView<double>, double*);

}  // namespace convx
