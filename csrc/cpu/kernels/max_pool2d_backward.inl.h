// Max-pooling backwards, in gather form: the gradient of an input cell is the sum over the windows that hold it, in
// row-major order of the windows, of their gradients where their code names the cell's tap. As in max_pool2d.inl.h a
// loop nest has laid each window's gradients and codes behind pointers, one stream per tap, for a block of cells whose
// columns are adjacent. Every cell is written once and sums start at +0, so they are what scattering into zeros gives.
//
// Per vector and tap 2 loads and 4 instructions (byte compare, widen, and, add).
#pragma once

namespace {

template <class T>
inline Vec<T> sum_of(const convx::PoolSum<T>& job, int64_t row, int64_t column) {
    const int64_t grad_at = row * job.grad_step + column, code_at = row * job.code_step + column;
    Vec<T> sum = broadcast(T(0));
    for (int t = 0; t < job.taps; ++t)
        sum = add_where(codes_equal<T>(job.codes[t] + code_at, job.wanted[t]), sum, load(job.grads[t] + grad_at));
    return sum;
}

template <class T>
void pool_sum(const convx::PoolSum<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    const int64_t last = job.columns - lanes;
    for (int64_t row = 0; row < job.rows; ++row) {
        T* to = job.output + row * job.output_step;
        if (last < 0) {
            store(to, sum_of(job, row, 0), static_cast<int>(job.columns));
            continue;
        }
        for (int64_t column = 0; column < last; column += lanes) store(to + column, sum_of(job, row, column));
        store(to + last, sum_of(job, row, last));
    }
}

// Two blocks at once, whose columns take turns in the output: even.columns is odd.columns or one more.
template <class T>
void pool_sum_pairs(const convx::PoolSum<T>& even, const convx::PoolSum<T>& odd) {
    constexpr int lanes = VecOf<T>::lanes;
    for (int64_t row = 0; row < even.rows; ++row) {
        T* to = even.output + row * even.output_step;
        const auto put = [&](int64_t column, int n) {
            const Vec<T> a = sum_of(even, row, column), b = sum_of(odd, row, column);
            const Vec<T> low = interleave_low(a, b), high = interleave_high(a, b);
            T* pairs = to + 2 * column;
            if (n == 2 * lanes) {
                store(pairs, low);
                store(pairs + lanes, high);
            } else if (n > lanes) {
                store(pairs, low);
                store(pairs + lanes, high, n - lanes);
            } else {
                store(pairs, low, n);
            }
        };
        const int64_t last = odd.columns - lanes;
        const int64_t cells = even.columns + odd.columns;
        if (last < 0) {
            put(0, static_cast<int>(cells));
            continue;
        }
        for (int64_t column = 0; column < last; column += lanes) put(column, 2 * lanes);
        put(last, 2 * lanes);
        if (cells % 2 != 0) store(to + cells - 1, sum_of(even, row, even.columns - 1), 1);
    }
}

}  // namespace
