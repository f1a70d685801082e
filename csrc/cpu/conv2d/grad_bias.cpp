// Bias gradient: the sum of grad_output over N, P, Q, one channel per task. Bound by memory. Sums are kept in double,
// eight at a time (the add latency would bound a single one), in an order that only the shape decides.
#include <numeric>

#include "cpu/conv2d/conv2d.h"
#include "cpu/conv2d/plan.h"
#include "cpu/thread_pool.h"

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

}  // namespace

template <class T>
void conv2d_grad_bias(const ConvProblem& problem, TensorView<const T> grad_output, T* grad_bias) {
    const int64_t rows = problem.out_h(), columns = problem.out_w();
    // Reading costs about as much as 8 flops an element.
    const int width = parallel_width(8 * problem.batch * problem.out_channels * rows * columns);
    parallel_for(problem.out_channels, width, [&](int64_t k, int) {
        double sums[lanes] = {};
        for (int64_t n = 0; n < problem.batch; ++n)
            for (int64_t p = 0; p < rows; ++p)
                add_row(grad_output.at(n, k, p, 0), grad_output.stride[3], columns, sums);
        grad_bias[k] = static_cast<T>(std::accumulate(sums, sums + lanes, 0.0));
    });
}

template void conv2d_grad_bias(const ConvProblem&, TensorView<const float>, float*);
template void conv2d_grad_bias(const ConvProblem&, TensorView<const double>, double*);

}  // namespace convx
