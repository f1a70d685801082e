#include "cpu/conv2d/reference.h"

#include "cpu/runtime/run_tasks.h"

namespace convx {

namespace {

template <class T>
class Reference {
public:
    explicit Reference(const WindowSum<T>& sum)
        : sum_(sum), h_(sum.problem->h, sum.forward()), w_(sum.problem->w, sum.forward()),
          skip_h_(!sum.forward() || sum.problem->h.mode == PaddingMode::zeros),
          skip_w_(!sum.forward() || sum.problem->w.mode == PaddingMode::zeros) {}

    void run() const {
        const int64_t rows = sum_.groups * sum_.rows;
        parallel_for(sum_.batch * rows, parallel_width(sum_.flops()),
                     [&](int64_t task, int) { run_plane(task / rows, task % rows); });
    }

private:
    void run_plane(int64_t n, int64_t row) const {
        const T bias = sum_.bias ? sum_.bias[row * sum_.bias_stride] : T(0);
        for (int64_t i = 0; i < sum_.dest.shape[2]; ++i)
            for (int64_t j = 0; j < sum_.dest.shape[3]; ++j) {
                T value = value_at(n, row, i, j) + bias;
                if (sum_.relu && value <= T(0)) value = T(0);
                *sum_.dest.at(n, row, i, j) = value;
            }
    }

    T value_at(int64_t n, int64_t row, int64_t i, int64_t j) const {
        const int64_t group = row / sum_.rows, phases_h = static_cast<int64_t>(h_.size());
        const int64_t phases_w = static_cast<int64_t>(w_.size());
        const AxisTable &h = h_[static_cast<size_t>(i % phases_h)], &w = w_[static_cast<size_t>(j % phases_w)];
        const T* weight = sum_.weight + group * sum_.weight_group + row % sum_.rows * sum_.weight_row;
        T sum = 0;
        for (int64_t c = 0; c < sum_.channels; ++c)
            for (size_t r = 0; r < h.taps.size(); ++r) {
                const int64_t y = h.at(static_cast<int64_t>(r), i / phases_h);
                if (y == AxisTable::outside && skip_h_) continue;
                for (size_t s = 0; s < w.taps.size(); ++s) {
                    const int64_t x = w.at(static_cast<int64_t>(s), j / phases_w);
                    if (x == AxisTable::outside && skip_w_) continue;
                    const bool outside = y == AxisTable::outside || x == AxisTable::outside;
                    sum += (outside ? sum_.pad() : *sum_.source.at(n, group * sum_.channels + c, y, x)) *
                           weight[c * sum_.weight_channel + h.taps[r].kernel_index * sum_.weight_h +
                                  w.taps[s].kernel_index * sum_.weight_w];
                }
            }
        return sum;
    }

    const WindowSum<T>& sum_;
    const PhaseTables h_, w_;
    const bool skip_h_, skip_w_;
};

}  // namespace

template <class T>
void run_reference(const WindowSum<T>& sum) {
    Reference<T>(sum).run();
}

template <class T>
void run_reference(const PixelSum<T>& sum) {
    const ConvProblem& problem = *sum.problem;
    const AxisTable h = forward_table(problem.h), w = forward_table(problem.w);
    const bool skip_h = problem.h.mode == PaddingMode::zeros, skip_w = problem.w.mode == PaddingMode::zeros;
    const auto sum_of = [&](int64_t k, int64_t channel, int64_t r, int64_t s) {
        T total = 0;
        for (int64_t n = 0; n < problem.batch; ++n)
            for (int64_t p = 0; p < h.positions; ++p) {
                const int64_t row = h.at(r, p);
                if (row == AxisTable::outside && skip_h) continue;
                for (int64_t q = 0; q < w.positions; ++q) {
                    const int64_t column = w.at(s, q);
                    if (column == AxisTable::outside && skip_w) continue;
                    const bool outside = row == AxisTable::outside || column == AxisTable::outside;
                    total += *sum.grad_output.at(n, k, p, q) *
                             (outside ? sum.pad() : *sum.input.at(n, channel, row, column));
                }
            }
        return total;
    };
    parallel_for(problem.out_channels * problem.group_in(), parallel_width(problem.flops()), [&](int64_t task, int) {
        const int64_t k = task / problem.group_in(), c = task % problem.group_in();
        const int64_t channel = k / problem.group_out() * problem.group_in() + c;
        for (int64_t r = 0; r < problem.h.kernel; ++r)
            for (int64_t s = 0; s < problem.w.kernel; ++s) *sum.grad_weight.at(k, c, r, s) = sum_of(k, channel, r, s);
    });
}

template void run_reference(const WindowSum<float>&);
template void run_reference(const WindowSum<double>&);
template void run_reference(const PixelSum<float>&);
template void run_reference(const PixelSum<double>&);

}  // namespace convx
