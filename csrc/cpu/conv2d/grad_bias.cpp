// Bias gradient: the sum of grad_output over N, P, Q, or of each image over P, Q; one channel per task. Bound by
// memory. Sums are kept in double, eight at a time (the add latency would bound a single one), in an order that only
// the shape decides.
#include <numeric>

#include "cpu/conv2d/conv2d.h"
#include "cpu/runtime/run_tasks.h"
#include "cpu/runtime/thread_pool.h"

namespace convx {

namespace {

constexpr int64_t lanes = 8;

template <class T>
void add_row(const T* x, int64_t stride, int64_t count, double (&sums)[lanes]) {
    int64_t q = 0;
    if (stride == 1) {
        for (; q + lanes <= count; q += lanes)
            for (int64_t lane = 0; lane < lanes; ++lane) sums[lane] += static_cast<double>(x[q + lane]);
    }
    for (; q < count; ++q) sums[q % lanes] += static_cast<double>(x[q * stride]);
}

// One channel of images [first, first + count).
template <class T>
double sum_of_channel(const TensorView<const T>& grad_output, int64_t k, int64_t first, int64_t count) {
    double sums[lanes] = {};
    for (int64_t n = first; n < first + count; ++n)
        for (int64_t p = 0; p < grad_output.shape[2]; ++p)
            add_row(grad_output.at(n, k, p, 0), grad_output.stride[3], grad_output.shape[3], sums);
    return std::accumulate(sums, sums + lanes, 0.0);
}

// Reading costs about as much as 8 flops an element.
template <class T>
int width_of(const TensorView<const T>& grad_output) {
    return parallel_width(8 * grad_output.size());
}

}  // namespace

template <class T>
void conv2d_grad_bias(TensorView<const T> grad_output, T* grad_bias) {
    parallel_for(grad_output.shape[1], width_of(grad_output), [&](int64_t k, int) {
        grad_bias[k] = static_cast<T>(sum_of_channel(grad_output, k, 0, grad_output.shape[0]));
    });
}

template <class T>
void conv2d_per_sample_grad_bias(TensorView<const T> grad_output, T* grad_bias) {
    const int64_t channels = grad_output.shape[1];
    parallel_for(grad_output.shape[0] * channels, width_of(grad_output), [&](int64_t task, int) {
        grad_bias[task] = static_cast<T>(sum_of_channel(grad_output, task % channels, task / channels, 1));
    });
}

template <class T>
void conv2d_grad_bias_norms(TensorView<const T> grad_output, double* norms) {
    parallel_for(grad_output.shape[0], width_of(grad_output), [&](int64_t n, int) {
        double norm = 0;
        for (int64_t k = 0; k < grad_output.shape[1]; ++k) {
            const double sum = sum_of_channel(grad_output, k, n, 1);
            norm += sum * sum;
        }
        norms[n] = norm;
    });
}

template void conv2d_grad_bias(TensorView<const float>, float*);
template void conv2d_grad_bias(TensorView<const double>, double*);
template void conv2d_per_sample_grad_bias(TensorView<const float>, float*);
template void conv2d_per_sample_grad_bias(TensorView<const double>, double*);
template void conv2d_grad_bias_norms(TensorView<const float>, double*);
template void conv2d_grad_bias_norms(TensorView<const double>, double*);

}  // namespace convx
