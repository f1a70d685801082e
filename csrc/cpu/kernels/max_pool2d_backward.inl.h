// Max-pooling backwards, in gather form: the gradient of an input cell is the sum over the windows that hold it, in
// row-major order of the windows, of their gradients where their code names the cell's tap. As in max_pool2d.inl.h a
// loop nest has laid the windows of neighbouring cells where they are adjacent, tap by tap. Every cell is written once,
// and sums start at +0, so they are what scattering into zeros gives.
//
// Per vector and tap: 2 loads, compare of bytes, widen, and, add.
#pragma once

namespace {

// The sums of a row of cells, a vector at a time. Of any number of windows:
template <class T>
struct AnyWindows {
    const convx::PoolSum<T>& job;
    int64_t grad_at = 0, code_at = 0;

    explicit AnyWindows(const convx::PoolSum<T>& given) : job(given) {}

    inline void set_row(int64_t row) {
        grad_at = row * job.grad_step;
        code_at = row * job.code_step;
    }
    inline Vec<T> sum(int64_t column) const {
        const int tap_columns = job.tap_columns;
        const int64_t* const offsets = job.offsets;
        Vec<T> sum = broadcast(T(0));
        for (int r = 0; r < job.tap_rows; ++r) {
            const T* grads = job.grad_rows[r] + grad_at + column;
            const uint8_t* codes = job.code_rows[r] + code_at + column;
            const uint8_t* wanted = job.wanted + r * job.wanted_row;
            for (int s = 0; s < tap_columns; ++s)
                sum = add_where(codes_equal<T>(codes + offsets[s], broadcast_code(wanted[s])), sum,
                                load(grads + offsets[s]));
        }
        return sum;
    }
};

// Of a number known at compile time: pointers to rows and offsets of columns stay in registers.
template <class T, int tap_rows, int tap_columns>
struct FixedWindows {
    const convx::PoolSum<T>& job;
    Code wanted[tap_rows * tap_columns];
    int64_t offsets[tap_columns];
    const T* grads[tap_rows];
    const uint8_t* codes[tap_rows];

    explicit FixedWindows(const convx::PoolSum<T>& given) : job(given) {
        for (int s = 0; s < tap_columns; ++s) offsets[s] = job.offsets[s];
        for (int t = 0; t < tap_rows * tap_columns; ++t)
            wanted[t] = broadcast_code(job.wanted[t / tap_columns * job.wanted_row + t % tap_columns]);
    }

    inline void set_row(int64_t row) {
        for (int r = 0; r < tap_rows; ++r) {
            grads[r] = job.grad_rows[r] + row * job.grad_step;
            codes[r] = job.code_rows[r] + row * job.code_step;
        }
    }
    inline Vec<T> sum(int64_t column) const {
        Vec<T> sum = broadcast(T(0));
#pragma GCC unroll 9
        for (int t = 0; t < tap_rows * tap_columns; ++t) {
            const int64_t at = column + offsets[t % tap_columns];
            sum = add_where(codes_equal<T>(codes[t / tap_columns] + at, wanted[t]), sum,
                            load(grads[t / tap_columns] + at));
        }
        return sum;
    }
};

template <class Windows, class T>
void pool_sum_block(const convx::PoolSum<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    Windows windows(job);
    const int64_t rows = job.rows, columns = job.columns;
    for (int64_t row = 0; row < rows; ++row) {
        windows.set_row(row);
        T* to = job.output + row * job.output_step;
        if (columns < lanes) {
            store(to, windows.sum(0), static_cast<int>(columns));
            continue;
        }
        const int64_t last = columns - lanes;  // overlaps its neighbour
        for (int64_t column = 0; column < last; column += lanes) store(to + column, windows.sum(column));
        store(to + last, windows.sum(last));
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

// Codes of as many planes as a vector has lanes, transposed and made numbers: vector i holds code i of every plane.
template <class T>
void pool_pack_codes(T* to, const uint8_t* const* planes, int64_t count) {
    constexpr int lanes = VecOf<T>::lanes;
    for (int64_t i = 0; i < count; i += lanes, to += lanes * lanes) {
        Vec<T> block[lanes];
#pragma GCC unroll 16
        for (int k = 0; k < lanes; ++k)
            block[k] = i + lanes <= count ? load_codes<T>(planes[k] + i)
                                          : load_codes<T>(planes[k] + i, static_cast<int>(count - i));
        transpose(block);
#pragma GCC unroll 16
        for (int k = 0; k < lanes; ++k) store(to + k * lanes, block[k]);
    }
}

// A vector of windows, from the distances of their indices to their origins. Comparisons are such that a NaN, which
// stands for a far index, is outside.
template <class T>
inline Vec<T> name_indices(const convx::PoolNaming<T>& job, Vec<T> distance, int64_t column, Vec<T>& wrong) {
    const Vec<T> one = broadcast(T(1)), back = broadcast(-job.tap_row_distance);
    Vec<T> tap_row = broadcast(T(0)), tap_column = distance;
    for (int r = 1; r < job.tap_rows; ++r) {
        const auto reaches = greater(distance, broadcast(T(r) * job.tap_row_distance - T(0.5)));
        tap_row = add_where(reaches, tap_row, one);
        tap_column = add_where(reaches, tap_column, back);
    }
    Vec<T> inside = select(greater(tap_column, load(job.below_tap_column + column)), one, broadcast(T(0)));
    inside = select(greater(load(job.above_tap_column + column), tap_column), inside, broadcast(T(0)));
    inside = select(greater(tap_row, load(job.below_tap_row + column)), inside, broadcast(T(0)));
    inside = select(greater(load(job.above_tap_row + column), tap_row), inside, broadcast(T(0)));
    wrong = select(equal(inside, one), wrong, one);
    return fma(tap_row, broadcast(job.tap_columns), tap_column);
}

template <class T>
bool pool_name_indices(const convx::PoolNaming<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    const int64_t columns = job.columns;
    const int32_t* ramp = job.index_ramp;
    Vec<T> wrong = broadcast(T(0));
    for (int64_t row = 0; row < job.rows; ++row) {
        const int64_t* indices = job.indices + row * job.index_step;
        uint8_t* codes = job.codes + row * job.code_step;
        const int64_t origin = job.index_origin + row * job.index_row;
        if (columns < lanes) {
            int64_t some[lanes];  // the others are given the distance of the first
            for (int i = 0; i < lanes; ++i) some[i] = i < columns ? indices[i] : indices[0] - ramp[0] + ramp[i];
            store_codes(codes, name_indices(job, load_indices<T>(some, ramp, origin), 0, wrong),
                        static_cast<int>(columns));
            continue;
        }
        for (int64_t column = 0;;) {
            const Vec<T> distance = load_indices<T>(indices + column, ramp + column, origin);
            store_codes(codes + column, name_indices(job, distance, column, wrong));
            column += lanes;
            if (column >= columns) break;
            if (column > columns - lanes) column = columns - lanes;  // overlaps its neighbour
        }
    }
    T found[lanes];
    store(found, wrong);
    for (const T lane : found)
        if (lane != T(0)) return false;
    return true;
}

// True if all codes are legal. What a comparison says is summed up: add_where leaves a sum of zeros alone.
template <class T>
bool pool_check_lanes(const convx::PoolLaneCheck<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    const Vec<T> zero = broadcast(T(0)), one = broadcast(T(1)), none = broadcast(T(255)),
                 last = broadcast(T(job.taps - 1));
    Vec<T> illegal = zero;
    for (int64_t row = 0; row < job.rows; ++row) {
        const T* codes = job.codes + row * job.row_step;
        for (int64_t column = 0; column < job.columns; ++column, codes += lanes) {
            const Vec<T> code = load(codes);
            Vec<T> wrong = select(equal(code, none), zero, one);
            if (job.all_taps)
                wrong = select(greater(code, last), wrong, zero);
            else
                for (int t = 0; t < job.taps; ++t) wrong = select(equal(code, broadcast(job.legal[t])), zero, wrong);
            illegal = max(illegal, wrong);
        }
    }
    T found[lanes];
    store(found, illegal);
    for (const T lane : found)
        if (lane != T(0)) return false;
    return true;
}

template <class T, int fixed_taps>
void pool_sum_lanes_of(const convx::PoolLaneSum<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    const int taps = fixed_taps ? fixed_taps : job.taps;
    int64_t offsets[fixed_taps ? fixed_taps : 1];
    Vec<T> wanted[fixed_taps ? fixed_taps : 1];
    for (int t = 0; t < fixed_taps; ++t) {
        offsets[t] = job.offsets[t];
        wanted[t] = broadcast(job.wanted[t]);
    }
    const int64_t columns = job.columns, output_step = job.output_step;
    for (int64_t row = 0; row < job.rows; ++row) {
        const T* grads = job.grads + row * job.row_step;
        const T* codes = job.codes + row * job.row_step;
        T* to = job.output + row * job.output_row;
        for (int64_t column = 0; column < columns; ++column, grads += lanes, codes += lanes, to += output_step) {
            Vec<T> sum = broadcast(T(0));
#pragma GCC unroll 9
            for (int t = 0; t < taps; ++t) {
                const int64_t at = fixed_taps ? offsets[t] : job.offsets[t];
                const Vec<T> want = fixed_taps ? wanted[t] : broadcast(job.wanted[t]);
                sum = add_where(equal(load(codes + at), want), sum, load(grads + at));
            }
            store(to, sum);
        }
    }
}

template <class T>
void pool_sum_lanes(const convx::PoolLaneSum<T>& job) {
    switch (job.taps) {
        case 1:
            return pool_sum_lanes_of<T, 1>(job);
        case 2:
            return pool_sum_lanes_of<T, 2>(job);
        case 4:
            return pool_sum_lanes_of<T, 4>(job);
        case 6:
            return pool_sum_lanes_of<T, 6>(job);
        case 9:
            return pool_sum_lanes_of<T, 9>(job);
        default:
            return pool_sum_lanes_of<T, 0>(job);
    }
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
    EvenWindows even_windows(even);
    OddWindows odd_windows(odd);
    const int64_t rows = even.rows, cells = even.columns + odd.columns;
    for (int64_t row = 0; row < rows; ++row) {
        even_windows.set_row(row);
        odd_windows.set_row(row);
        T* to = even.output + row * even.output_step;
        for (int64_t column = 0; 2 * column < cells; column += VecOf<T>::lanes)
            store_in_turn(to + 2 * column, even_windows.sum(column), odd_windows.sum(column), cells - 2 * column);
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

// Gradients and codes, as numbers, are doubled once for all rows of the window: a third of the instructions that two
// sums for each row take. The last vector overlaps its neighbour.
template <class T>
void pool_spread(const convx::PoolSpread<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    T turns[lanes];
    for (int i = 0; i < lanes; ++i) turns[i] = T(i % 2);
    const Vec<T> first_row = load(turns), next_row = broadcast(T(2)), zero = broadcast(T(0));
    const int64_t rows = job.rows, columns = job.columns, output_row = job.output_row;
    const int tap_rows = job.tap_rows;
    T* output = job.output;
    for (int64_t row = 0; row < rows; ++row, output += tap_rows * output_row) {
        const T* grads = job.grads + row * job.grad_step;
        const uint8_t* codes = job.codes + row * job.code_step;
        if (columns < lanes) {
            for (int64_t column = 0; column < columns; ++column)
                for (int tap = 0; tap < 2 * tap_rows; ++tap)
                    output[tap / 2 * output_row + 2 * column + tap % 2] =
                        codes[column] == tap ? T(0) + grads[column] : T(0);
            continue;
        }
        for (int64_t column = 0;;) {
            const Vec<T> grad = load(grads + column), code = load_codes<T>(codes + column);
            const Vec<T> low = interleave_low(grad, grad), high = interleave_high(grad, grad);
            const Vec<T> low_codes = interleave_low(code, code), high_codes = interleave_high(code, code);
            Vec<T> wanted = first_row;
            T* to = output + 2 * column;
            for (int r = 0; r < tap_rows; ++r, to += output_row, wanted = add(wanted, next_row)) {
                store(to, add_where(equal(low_codes, wanted), zero, low));
                store(to + lanes, add_where(equal(high_codes, wanted), zero, high));
            }
            column += lanes;
            if (column >= columns) break;
            if (column > columns - lanes) column = columns - lanes;
        }
    }
}

}  // namespace
