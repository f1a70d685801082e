#include "cpu/conv2d/plain.h"

#include "cpu/thread_pool.h"

namespace convx {

template <class T>
void run_plain(const ImplicitGemm<T>& gemm) {
    const Strides& from = gemm.source_stride;
    const Strides& to = gemm.dest_stride;
    const int64_t rows = gemm.groups * gemm.rows;
    const auto value_at = [&](int64_t n, int64_t row, int64_t i, int64_t j) {
        const int64_t group = row / gemm.rows;
        const T* weight = gemm.weight + group * gemm.weight_group + row % gemm.rows * gemm.weight_row;
        const T* source = gemm.source + n * from.n + group * gemm.channels * from.c;
        T sum = 0;
        for (int64_t c = 0; c < gemm.channels; ++c)
            for (size_t r = 0; r < gemm.h->taps.size(); ++r) {
                const int64_t h = gemm.h->at(static_cast<int64_t>(r), i);
                if (h == AxisTable::outside && gemm.skip_outside_h) continue;
                for (size_t s = 0; s < gemm.w->taps.size(); ++s) {
                    const int64_t w = gemm.w->at(static_cast<int64_t>(s), j);
                    if (w == AxisTable::outside && gemm.skip_outside_w) continue;
                    const bool outside = h == AxisTable::outside || w == AxisTable::outside;
                    const T x = outside ? gemm.pad : source[c * from.c + h * from.h + w * from.w];
                    sum += x * weight[c * gemm.weight_channel + gemm.h->taps[r].kernel_index * gemm.weight_h +
                                      gemm.w->taps[s].kernel_index * gemm.weight_w];
                }
            }
        return sum;
    };
    parallel_for(gemm.batch * rows,
                 parallel_width(2 * gemm.rows * gemm.groups * gemm.channels * gemm.taps() * gemm.pixels()),
                 [&](int64_t task, int) {
                     const int64_t n = task / rows, row = task % rows;
                     T* plane = gemm.dest + n * to.n + row * to.c;
                     for (int64_t i = 0; i < gemm.h->positions; ++i)
                         for (int64_t j = 0; j < gemm.w->positions; ++j) {
                             T sum = value_at(n, row, i, j);
                             if (gemm.bias) sum += gemm.bias[row * gemm.bias_stride];
                             if (gemm.relu && sum <= T(0)) sum = T(0);
                             plane[i * to.h + j * to.w] = sum;
                         }
                 });
}

template <class T>
void plain_grad_weight(const ConvProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
                       TensorView<T> grad_weight) {
    const AxisTable h = forward_table(problem.h), w = forward_table(problem.w);
    const bool skip_h = problem.h.mode == PaddingMode::zeros, skip_w = problem.w.mode == PaddingMode::zeros;
    const T pad = static_cast<T>(problem.padding_value);
    parallel_for(problem.out_channels * problem.group_in(), parallel_width(problem.flops()), [&](int64_t task, int) {
        const int64_t k = task / problem.group_in(), c = task % problem.group_in();
        const int64_t input_channel = k / problem.group_out() * problem.group_in() + c;
        for (int64_t r = 0; r < problem.h.kernel; ++r)
            for (int64_t s = 0; s < problem.w.kernel; ++s) {
                T sum = 0;
                for (int64_t n = 0; n < problem.batch; ++n)
                    for (int64_t p = 0; p < h.positions; ++p) {
                        const int64_t row = h.at(r, p);
                        if (row == AxisTable::outside && skip_h) continue;
                        for (int64_t q = 0; q < w.positions; ++q) {
                            const int64_t column = w.at(s, q);
                            if (column == AxisTable::outside && skip_w) continue;
                            const bool outside = row == AxisTable::outside || column == AxisTable::outside;
                            sum += *grad_output.at(n, k, p, q) *
                                   (outside ? pad : *input.at(n, input_channel, row, column));
                        }
                    }
                *grad_weight.at(k, c, r, s) = sum;
            }
    });
}

template void run_plain(const ImplicitGemm<float>&);
template void run_plain(const ImplicitGemm<double>&);
template void plain_grad_weight(const ConvProblem&, TensorView<const float>, TensorView<const float>,
                                TensorView<float>);
template void plain_grad_weight(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                                TensorView<double>);

}  // namespace convx
