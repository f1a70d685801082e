// Max-pooling backwards, in gather form: the gradient of an input cell is the sum over the windows that hold it, in
// row-major order of the windows, of their gradients where their code names the cell's tap. As in max_pool2d.inl.h a
// loop nest has laid the windows of neighbouring cells where they are adjacent, tap by tap. Every cell is written once,
// and sums start at +0, so they are what scattering into zeros gives.
//
// Per vector and tap: 2 loads, compare of bytes, widen, and, add.
#pragma once

namespace {

// The sums of one vector of cells, at these distances from the first. Of any number of windows:
template <class T>
struct AnyWindows {
    const convx::PoolSum<T>& job;

    explicit AnyWindows(const convx::PoolSum<T>& given) : job(given) {}

    inline Vec<T> sum(int64_t grad_at, int64_t code_at) const {
        Vec<T> sum = broadcast(T(0));
        for (int r = 0; r < job.tap_rows; ++r)
            for (int s = 0; s < job.tap_columns; ++s) {
                const uint8_t* codes = job.code_rows[r] + job.code_offsets[s] + code_at;
                const Vec<T> grad = load(job.grad_rows[r] + job.grad_offsets[s] + grad_at);
                sum = add_where(codes_equal<T>(codes, broadcast_code(job.wanted[r * job.wanted_row + s])), sum, grad);
            }
        return sum;
    }
};

// Of a number known at compile time.
template <class T, int tap_rows, int tap_columns>
struct FixedWindows {
    const T* grads[tap_rows * tap_columns];
    const uint8_t* codes[tap_rows * tap_columns];
    Code wanted[tap_rows * tap_columns];

    explicit FixedWindows(const convx::PoolSum<T>& job) {
        for (int t = 0; t < tap_rows * tap_columns; ++t) {
            const int r = t / tap_columns, s = t % tap_columns;
            grads[t] = job.grad_rows[r] + job.grad_offsets[s];
            codes[t] = job.code_rows[r] + job.code_offsets[s];
            wanted[t] = broadcast_code(job.wanted[r * job.wanted_row + s]);
        }
    }

    inline Vec<T> sum(int64_t grad_at, int64_t code_at) const {
        Vec<T> sum = broadcast(T(0));
#pragma GCC unroll 9
        for (int t = 0; t < tap_rows * tap_columns; ++t)
            sum = add_where(codes_equal<T>(codes[t] + code_at, wanted[t]), sum, load(grads[t] + grad_at));
        return sum;
    }
};

template <class Windows, class T>
void pool_sum_block(const convx::PoolSum<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    const Windows windows(job);
    const int64_t rows = job.rows, columns = job.columns;
    for (int64_t row = 0; row < rows; ++row) {
        T* to = job.output + row * job.output_step;
        const int64_t grad_at = row * job.grad_step, code_at = row * job.code_step;
        if (columns < lanes) {
            store(to, windows.sum(grad_at, code_at), static_cast<int>(columns));
            continue;
        }
        const int64_t last = columns - lanes;  // overlaps its neighbour
        for (int64_t column = 0; column < last; column += lanes)
            store(to + column, windows.sum(grad_at + column, code_at + column));
        store(to + last, windows.sum(grad_at + last, code_at + last));
    }
}

template <class T>
void pool_sum(const convx::PoolSum<T>& job) {
    const auto is = [&](int tap_rows, int tap_columns) {
        return job.tap_rows == tap_rows && job.tap_columns == tap_columns;
    };
    if (is(1, 1)) return pool_sum_block<FixedWindows<T, 1, 1>>(job);
    if (is(1, 2)) return pool_sum_block<FixedWindows<T, 1, 2>>(job);
    if (is(2, 1)) return pool_sum_block<FixedWindows<T, 2, 1>>(job);
    if (is(2, 2)) return pool_sum_block<FixedWindows<T, 2, 2>>(job);
    if (is(2, 3)) return pool_sum_block<FixedWindows<T, 2, 3>>(job);
    if (is(3, 3)) return pool_sum_block<FixedWindows<T, 3, 3>>(job);
    pool_sum_block<AnyWindows<T>>(job);
}

// The first n of the sums of two jobs in turn.
template <class T>
inline void store_in_turn(T* to, Vec<T> even, Vec<T> odd, int64_t n) {
    constexpr int lanes = VecOf<T>::lanes;
    const Vec<T> low = interleave_low(even, odd), high = interleave_high(even, odd);
    if (n >= 2 * lanes) {
        store(to, low);
        store(to + lanes, high);
    } else if (n > lanes) {
        store(to, low);
        store(to + lanes, high, static_cast<int>(n - lanes));
    } else {
        store(to, low, static_cast<int>(n));
    }
}

template <class EvenWindows, class OddWindows, class T>
void pool_sum_pairs_block(const convx::PoolSum<T>& even, const convx::PoolSum<T>& odd) {
    const EvenWindows even_windows(even);
    const OddWindows odd_windows(odd);
    const int64_t rows = even.rows, cells = even.columns + odd.columns;
    for (int64_t row = 0; row < rows; ++row) {
        T* to = even.output + row * even.output_step;
        const int64_t grad_at = row * even.grad_step, code_at = row * even.code_step;
        for (int64_t column = 0; 2 * column < cells; column += VecOf<T>::lanes)
            store_in_turn(to + 2 * column, even_windows.sum(grad_at + column, code_at + column),
                          odd_windows.sum(grad_at + column, code_at + column), cells - 2 * column);
    }
}

template <class T>
void pool_sum_pairs(const convx::PoolSum<T>& even, const convx::PoolSum<T>& odd) {
    const auto are = [&](int tap_rows, int even_columns, int odd_columns) {
        return even.tap_rows == tap_rows && even.tap_columns == even_columns && odd.tap_columns == odd_columns;
    };
    if (are(1, 1, 1)) return pool_sum_pairs_block<FixedWindows<T, 1, 1>, FixedWindows<T, 1, 1>>(even, odd);
    if (are(1, 1, 2)) return pool_sum_pairs_block<FixedWindows<T, 1, 1>, FixedWindows<T, 1, 2>>(even, odd);
    if (are(1, 2, 1)) return pool_sum_pairs_block<FixedWindows<T, 1, 2>, FixedWindows<T, 1, 1>>(even, odd);
    if (are(2, 1, 2)) return pool_sum_pairs_block<FixedWindows<T, 2, 1>, FixedWindows<T, 2, 2>>(even, odd);
    if (are(2, 2, 1)) return pool_sum_pairs_block<FixedWindows<T, 2, 2>, FixedWindows<T, 2, 1>>(even, odd);
    pool_sum_pairs_block<AnyWindows<T>, AnyWindows<T>>(even, odd);
}

}  // namespace
