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
    const convx::PoolSumArgs<T>& args;
    int64_t grad_at = 0, code_at = 0;

    explicit AnyWindows(const convx::PoolSumArgs<T>& given) : args(given) {}

    inline void set_row(int64_t row) {
        grad_at = row * args.grad_step;
        code_at = row * args.code_step;
    }
    inline Vec<T> sum(int64_t column) const {
        const int tap_columns = args.tap_columns;
        const int64_t* const offsets = args.offsets;
        Vec<T> sum = broadcast(T(0));
        for (int r = 0; r < args.tap_rows; ++r) {
            const T* grads = args.grad_rows[r] + grad_at + column;
            const uint8_t* codes = args.code_rows[r] + code_at + column;
            const uint8_t* wanted = args.wanted + r * args.wanted_row;
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
    const convx::PoolSumArgs<T>& args;
    Code wanted[tap_rows * tap_columns];
    int64_t offsets[tap_columns];
    const T* grads[tap_rows];
    const uint8_t* codes[tap_rows];

    explicit FixedWindows(const convx::PoolSumArgs<T>& given) : args(given) {
        for (int s = 0; s < tap_columns; ++s) offsets[s] = args.offsets[s];
        for (int t = 0; t < tap_rows * tap_columns; ++t)
            wanted[t] = broadcast_code(args.wanted[t / tap_columns * args.wanted_row + t % tap_columns]);
    }

    inline void set_row(int64_t row) {
        for (int r = 0; r < tap_rows; ++r) {
            grads[r] = args.grad_rows[r] + row * args.grad_step;
            codes[r] = args.code_rows[r] + row * args.code_step;
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
void pool_sum_block(const convx::PoolSumArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes;
    Windows windows(args);
    const int64_t rows = args.rows, columns = args.columns;
    for (int64_t row = 0; row < rows; ++row) {
        windows.set_row(row);
        T* to = args.output + row * args.output_step;
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
void pool_sum(const convx::PoolSumArgs<T>& args) {
    const auto is = [&](int tap_rows, int tap_columns) {
        return args.tap_rows == tap_rows && args.tap_columns == tap_columns;
    };
    if (is(1, 1)) return pool_sum_block<FixedWindows<T, 1, 1>>(args);
    if (is(1, 2)) return pool_sum_block<FixedWindows<T, 1, 2>>(args);
    if (is(2, 1)) return pool_sum_block<FixedWindows<T, 2, 1>>(args);
    if (is(2, 2)) return pool_sum_block<FixedWindows<T, 2, 2>>(args);
    if (is(2, 3)) return pool_sum_block<FixedWindows<T, 2, 3>>(args);
    if (is(3, 3)) return pool_sum_block<FixedWindows<T, 3, 3>>(args);
    pool_sum_block<AnyWindows<T>>(args);
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

template <class T>
bool are_zero(Vec<T> v) {
    T lanes[VecOf<T>::lanes];
    store(lanes, v);
    for (const T lane : lanes)
        if (lane != T(0)) return false;
    return true;
}

// A vector of windows, from the distances of their indices to their origins. Comparisons are such that a NaN, which
// stands for a far index, is outside.
template <class T>
inline Vec<T> codes_of_distances(const convx::PoolIndexArgs<T>& args, Vec<T> distance, int64_t column, Vec<T>& wrong) {
    const Vec<T> one = broadcast(T(1)), back = broadcast(-args.tap_row_distance);
    Vec<T> tap_row = broadcast(T(0)), tap_column = distance;
    for (int r = 1; r < args.tap_rows; ++r) {
        const auto reaches = greater(distance, broadcast(T(r) * args.tap_row_distance - T(0.5)));
        tap_row = add_where(reaches, tap_row, one);
        tap_column = add_where(reaches, tap_column, back);
    }
    Vec<T> inside = select(greater(tap_column, load(args.below_tap_column + column)), one, broadcast(T(0)));
    inside = select(greater(load(args.above_tap_column + column), tap_column), inside, broadcast(T(0)));
    inside = select(greater(tap_row, load(args.below_tap_row + column)), inside, broadcast(T(0)));
    inside = select(greater(load(args.above_tap_row + column), tap_row), inside, broadcast(T(0)));
    wrong = select(equal(inside, one), wrong, one);
    return fma(tap_row, broadcast(args.tap_columns), tap_column);
}

template <class T>
bool pool_indices_to_codes(const convx::PoolIndexArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes;
    const int64_t columns = args.columns;
    const int32_t* ramp = args.index_ramp;
    Vec<T> wrong = broadcast(T(0));
    for (int64_t row = 0; row < args.rows; ++row) {
        const int64_t* indices = args.indices + row * args.index_step;
        uint8_t* codes = args.codes + row * args.code_step;
        const int64_t origin = args.index_origin + row * args.index_row;
        if (columns < lanes) {
            int64_t some[lanes];  // the others are given the distance of the first
            for (int i = 0; i < lanes; ++i) some[i] = i < columns ? indices[i] : indices[0] - ramp[0] + ramp[i];
            store_codes(codes, codes_of_distances(args, load_indices<T>(some, ramp, origin), 0, wrong),
                        static_cast<int>(columns));
            continue;
        }
        for (int64_t column = 0;;) {
            const Vec<T> distance = load_indices<T>(indices + column, ramp + column, origin);
            store_codes(codes + column, codes_of_distances(args, distance, column, wrong));
            column += lanes;
            if (column >= columns) break;
            if (column > columns - lanes) column = columns - lanes;  // overlaps its neighbour
        }
    }
    return are_zero<T>(wrong);
}

// True if all codes are legal. What a comparison says is summed up: add_where leaves a sum of zeros alone.
template <class T>
bool pool_check_lanes(const convx::PoolLaneCheckArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes;
    const Vec<T> zero = broadcast(T(0)), one = broadcast(T(1)), none = broadcast(T(255)),
                 last = broadcast(T(args.taps - 1));
    Vec<T> illegal = zero;
    for (int64_t row = 0; row < args.rows; ++row) {
        const T* codes = args.codes + row * args.row_step;
        for (int64_t column = 0; column < args.columns; ++column, codes += lanes) {
            const Vec<T> code = load(codes);
            Vec<T> wrong = select(equal(code, none), zero, one);
            if (args.all_taps)
                wrong = select(greater(code, last), wrong, zero);
            else
                for (int t = 0; t < args.taps; ++t) wrong = select(equal(code, broadcast(args.legal[t])), zero, wrong);
            illegal = max(illegal, wrong);
        }
    }
    return are_zero<T>(illegal);
}

template <class T, int fixed_taps>
void pool_sum_lanes_of(const convx::PoolLaneSumArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes;
    const int taps = fixed_taps ? fixed_taps : args.taps;
    int64_t offsets[fixed_taps ? fixed_taps : 1];
    Vec<T> wanted[fixed_taps ? fixed_taps : 1];
    for (int t = 0; t < fixed_taps; ++t) {
        offsets[t] = args.offsets[t];
        wanted[t] = broadcast(args.wanted[t]);
    }
    const int64_t columns = args.columns, output_step = args.output_step;
    for (int64_t row = 0; row < args.rows; ++row) {
        const T* grads = args.grads + row * args.row_step;
        const T* codes = args.codes + row * args.row_step;
        T* to = args.output + row * args.output_row;
        for (int64_t column = 0; column < columns; ++column, grads += lanes, codes += lanes, to += output_step) {
            Vec<T> sum = broadcast(T(0));
#pragma GCC unroll 9
            for (int t = 0; t < taps; ++t) {
                const int64_t at = fixed_taps ? offsets[t] : args.offsets[t];
                const Vec<T> want = fixed_taps ? wanted[t] : broadcast(args.wanted[t]);
                sum = add_where(equal(load(codes + at), want), sum, load(grads + at));
            }
            store(to, sum);
        }
    }
}

template <class T>
void pool_sum_lanes(const convx::PoolLaneSumArgs<T>& args) {
    switch (args.taps) {
        case 1:
            return pool_sum_lanes_of<T, 1>(args);
        case 2:
            return pool_sum_lanes_of<T, 2>(args);
        case 4:
            return pool_sum_lanes_of<T, 4>(args);
        case 6:
            return pool_sum_lanes_of<T, 6>(args);
        case 9:
            return pool_sum_lanes_of<T, 9>(args);
        default:
            return pool_sum_lanes_of<T, 0>(args);
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
void pool_sum_pairs_block(const convx::PoolSumArgs<T>& even, const convx::PoolSumArgs<T>& odd) {
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
void pool_sum_pairs(const convx::PoolSumArgs<T>& even, const convx::PoolSumArgs<T>& odd) {
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
void pool_spread(const convx::PoolSpreadArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes;
    T turns[lanes];
    for (int i = 0; i < lanes; ++i) turns[i] = T(i % 2);
    const Vec<T> first_row = load(turns), next_row = broadcast(T(2)), zero = broadcast(T(0));
    const int64_t rows = args.rows, columns = args.columns, output_row = args.output_row;
    const int tap_rows = args.tap_rows;
    T* output = args.output;
    for (int64_t row = 0; row < rows; ++row, output += tap_rows * output_row) {
        const T* grads = args.grads + row * args.grad_step;
        const uint8_t* codes = args.codes + row * args.code_step;
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
