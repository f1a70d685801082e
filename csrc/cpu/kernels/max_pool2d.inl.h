// Max-pooling as the greatest of several streams. A loop nest has laid the values under each tap of the window where
// they are adjacent for a block of cells whose columns are (pixels of a row, or channels of a pixel); what is left is
// the same for every layout, stride, dilation and padding: compare and keep.
//
// Selection is that of SEMANTICS.md in the order of the taps: a tie stays with the earlier one, a NaN replaces all. The
// test for NaNs would cost as much as the rest, so each vector is first taken as if it had none: per tap a load,
// compare, blend and max, or, without codes, a max. A sum of the values rides along and tells afterwards: it is a NaN
// if one of them was (or if infinities of both signs met), and then the vector is taken again, by the rules.
#pragma once

namespace {

// What happens to the code of the chosen tap.
enum class CodeForm { none, bytes, lanes, indices };

template <class T>
struct Best {
    Vec<T> value, code, sum;
};

template <bool with_codes, bool with_nans, class T>
inline void take(Best<T>& best, Vec<T> value, Vec<T> code) {
    if constexpr (with_nans) {
        const auto replace = greater_or_nan(value, best.value);
        best.value = select(replace, value, best.value);
        if constexpr (with_codes) best.code = select(replace, code, best.code);
    } else {
        if constexpr (with_codes) best.code = select(greater(value, best.value), code, best.code);
        best.value = max(value, best.value);
        best.sum = add(best.sum, value);
    }
}

// The best of one vector of cells, `at` elements from the first. Windows of any size:
template <class T, bool ranked>
struct AnyWindow {
    using Exact = AnyWindow;
    const convx::PoolMax<T>& job;

    explicit AnyWindow(const convx::PoolMax<T>& given) : job(given) {}

    template <bool with_codes, bool with_nans>
    inline Best<T> best(int64_t at, int64_t column) const {
        const int tap_columns = job.tap_columns, taps = job.tap_rows * tap_columns;
        const int64_t* const offsets = job.offsets;
        const int64_t rank_offset = job.rank_offset, next_code_row = job.code_row - tap_columns;
        const T* const* row = job.rows_of_taps;
        const T* code = job.codes;
        const auto code_at = [&](const T* place) {
            if constexpr (!with_codes) return broadcast(T(0));
            if constexpr (ranked) return add(broadcast(*code), load(place + rank_offset));
            return broadcast(*code);
        };
        // The first value is taken twice, which changes nothing and keeps it out of the loop.
        const T* place = *row + offsets[0] + at;
        const Vec<T> value = load(place);
        Best<T> best{value, code_at(place), value};
        if (with_codes && job.first_codes) best.code = add(best.code, load(job.first_codes + column));
        Vec<T> other_sum = value;  // two chains of additions, whose latency would count
        for (int t = 0, s = 0; t < taps; ++t, ++code) {
            if (s == tap_columns) {
                s = 0;
                ++row;
                code += next_code_row;
            }
            place = *row + offsets[s++] + at;
            take<with_codes, with_nans>(best, load(place), code_at(place));
            const Vec<T> sum = best.sum;
            best.sum = other_sum;
            other_sum = sum;
        }
        best.sum = add(best.sum, other_sum);
        return best;
    }
};

// Windows of a size known at compile time: addresses and codes in registers, or operands from the stack.
template <class T, int tap_rows, int tap_columns, bool ranked>
struct FixedWindow {
    using Exact = AnyWindow<T, ranked>;
    const T* rows[tap_rows];
    int64_t offsets[tap_columns];
    Vec<T> codes[tap_rows * tap_columns];
    const convx::PoolMax<T>& job;

    explicit FixedWindow(const convx::PoolMax<T>& given) : job(given) {
        for (int r = 0; r < tap_rows; ++r) rows[r] = job.rows_of_taps[r];
        for (int s = 0; s < tap_columns; ++s) offsets[s] = job.offsets[s];
        for (int r = 0; r < tap_rows; ++r)
            for (int s = 0; s < tap_columns; ++s)
                codes[r * tap_columns + s] = broadcast(job.codes[r * job.code_row + s]);
    }

    template <bool with_codes, bool with_nans>
    inline Best<T> best(int64_t at, int64_t column) const {
        Best<T> best;
#pragma GCC unroll 9
        for (int t = 0; t < tap_rows * tap_columns; ++t) {
            const T* place = rows[t / tap_columns] + offsets[t % tap_columns] + at;
            const Vec<T> value = load(place);
            Vec<T> code = codes[t];
            if constexpr (ranked) code = add(code, load(place + job.rank_offset));
            if (t == 0) {
                best = {value, code, value};
                if (with_codes && job.first_codes) best.code = add(code, load(job.first_codes + column));
            } else {
                take<with_codes, with_nans>(best, value, code);
            }
        }
        return best;
    }
};

// Windows of two columns at stride 2, whose values lie in turn in rows as they are. Two rows read side by side are two
// short streams to the hardware; asked for in sequence, as the one stream that dense rows are, they come twice as fast
// from memory (8 x 64 x 224 x 224 on one core: 14.4 ms; each row 1 to 8 cells ahead: 11.5 to 9.2; in sequence: 7.0).
template <class T, int fixed_rows>
struct PairWindow {
    using Exact = PairWindow<T, 0>;
    const convx::PoolMax<T>& job;

    explicit PairWindow(const convx::PoolMax<T>& given) : job(given) {}

    template <bool with_codes, bool with_nans>
    inline Best<T> best(int64_t at, int64_t column) const {
        constexpr int lanes = VecOf<T>::lanes;
        const int tap_rows = fixed_rows ? fixed_rows : job.tap_rows;
        constexpr int64_t ahead = 4096 / sizeof(T);
        const T* sequence = job.rows_of_taps[0] + at + column * (2 * tap_rows - 2) + ahead;
        Best<T> best;
#pragma GCC unroll 2
        for (int r = 0; r < tap_rows; ++r) {
            const T* pairs = job.rows_of_taps[r] + at;
            const T* codes = job.codes + r * job.code_row;
            const Vec<T> low = load(pairs), high = load(pairs + lanes);
            prefetch(sequence + r * 2 * lanes);
            const Vec<T> first = even_lanes(low, high), second = odd_lanes(low, high);
            if (r == 0)
                best = {first, broadcast(codes[0]), first};
            else
                take<with_codes, with_nans>(best, first, broadcast(codes[0]));
            take<with_codes, with_nans>(best, second, broadcast(codes[1]));
        }
        return best;
    }
};

// Where the results of one row go.
template <CodeForm form, class T>
struct RowOutput {
    T* values;
    uint8_t* code_bytes;
    T* code_lanes;
    int64_t* indices;
    int64_t index_origin;
    const int32_t* index_ramp;

    RowOutput(const convx::PoolMax<T>& job, int64_t row)
        : values(job.output + row * job.output_step),
          code_bytes(form == CodeForm::bytes ? job.code_bytes + row * job.code_step : nullptr),
          code_lanes(form == CodeForm::lanes ? job.code_lanes + row * job.code_step : nullptr),
          indices(form == CodeForm::indices ? job.indices + row * job.code_step : nullptr),
          index_origin(job.index_origin + row * job.index_row), index_ramp(job.index_ramp) {}

    // All lanes, or the first n.
    template <class... Count>
    inline void put(int64_t column, const Best<T>& best, Count... n) const {
        store(values + column, best.value, n...);
        if constexpr (form == CodeForm::bytes) store_codes(code_bytes + column, best.code, n...);
        if constexpr (form == CodeForm::lanes) store(code_lanes + column, best.code, n...);
        if constexpr (form == CodeForm::indices)
            store_indices(indices + column, best.code, index_ramp + column, index_origin, n...);
    }
};

// The first n cells of one vector, by the rules for NaNs.
template <CodeForm form, class Window, class T>
void put_exactly(const convx::PoolMax<T>& job, int64_t row, int64_t column, int n) {
    const Window window(job);
    const Best<T> best =
        window.template best<form != CodeForm::none, true>(row * job.value_step + column * job.column_step, column);
    RowOutput<form, T>(job, row).put(column, best, n);
}

// All cells of a block in whole vectors, of which the last one of a row overlaps its neighbour. A row of less than one
// vector runs over into the next rows, which are written after it, as long as these are dense.
template <CodeForm form, class Window, class T>
void pool_max_block(const convx::PoolMax<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    const Window window(job);
    const int64_t columns = job.columns, rows = job.rows, column_step = job.column_step;
    const bool dense = job.output_step == columns && (form == CodeForm::none || job.code_step == columns);
    for (int64_t row = 0; row < rows; ++row) {
        const RowOutput<form, T> output(job, row);
        const int64_t at = row * job.value_step;
        const bool whole = columns >= lanes || (dense && (rows - row) * columns >= lanes);
        for (int64_t column = 0;;) {
            const Best<T> best = window.template best<form != CodeForm::none, false>(at + column * column_step, column);
            const int n = whole ? lanes : static_cast<int>(columns);
            if (any_nan(best.sum))
                put_exactly<form, typename Window::Exact>(job, row, column, n);
            else if (whole)
                output.put(column, best);
            else
                output.put(column, best, n);
            column += lanes;
            if (column >= columns) break;
            if (column > columns - lanes) column = columns - lanes;
        }
    }
}

template <class T, CodeForm form>
void pool_max_formed(const convx::PoolMax<T>& job) {
    const auto is = [&](int tap_rows, int tap_columns) {
        return job.tap_rows == tap_rows && job.tap_columns == tap_columns;
    };
    if (job.pairs)
        return is(2, 2) ? pool_max_block<form, PairWindow<T, 2>>(job) : pool_max_block<form, PairWindow<T, 0>>(job);
    if (form != CodeForm::none && job.rank_offset)
        return is(3, 1)   ? pool_max_block<form, FixedWindow<T, 3, 1, true>>(job)
               : is(2, 1) ? pool_max_block<form, FixedWindow<T, 2, 1, true>>(job)
               : is(5, 1) ? pool_max_block<form, FixedWindow<T, 5, 1, true>>(job)
                          : pool_max_block<form, AnyWindow<T, true>>(job);
    if (is(3, 3)) return pool_max_block<form, FixedWindow<T, 3, 3, false>>(job);
    if (is(2, 2)) return pool_max_block<form, FixedWindow<T, 2, 2, false>>(job);
    if (is(1, 3)) return pool_max_block<form, FixedWindow<T, 1, 3, false>>(job);
    if (is(3, 1)) return pool_max_block<form, FixedWindow<T, 3, 1, false>>(job);
    if (is(2, 1)) return pool_max_block<form, FixedWindow<T, 2, 1, false>>(job);
    if (is(1, 5)) return pool_max_block<form, FixedWindow<T, 1, 5, false>>(job);
    if (is(5, 1)) return pool_max_block<form, FixedWindow<T, 5, 1, false>>(job);
    pool_max_block<form, AnyWindow<T, false>>(job);
}

template <class T>
void pool_max(const convx::PoolMax<T>& job) {
    if (job.code_bytes) return pool_max_formed<T, CodeForm::bytes>(job);
    if (job.code_lanes) return pool_max_formed<T, CodeForm::lanes>(job);
    if (job.indices) return pool_max_formed<T, CodeForm::indices>(job);
    pool_max_formed<T, CodeForm::none>(job);
}

// As many planes as a vector has lanes, transposed: vector i holds element i of every plane. Planes are too short for
// the hardware to foresee, so the same elements `ahead` further on are asked for on the way: 1.5x at 14x14 from L3.
template <class T>
bool pool_pack(T* to, const T* const* planes, int64_t count, int64_t ahead) {
    constexpr int lanes = VecOf<T>::lanes;
    Vec<T> sum = broadcast(T(0));
    for (int64_t i = 0; i < count; i += lanes, to += lanes * lanes) {
        Vec<T> block[lanes];
        if (i + lanes <= count) {
            load_transposed(block, [&](int k) { return planes[k] + i; });
        } else {
            for (int k = 0; k < lanes; ++k) block[k] = load(planes[k] + i, static_cast<int>(count - i));
            transpose(block);
        }
#pragma GCC unroll 16
        for (int k = 0; k < lanes; ++k) {
            prefetch(planes[k] + i + ahead);
            sum = add(sum, block[k]);
            store(to + k * lanes, block[k]);
        }
    }
    return !any_nan(sum);
}

// pool_max of vectors that hold no NaN, column by column: codes as lanes, or none.
template <class T, bool with_codes, int fixed_rows, int fixed_columns>
void pool_max_numbers_of(const convx::PoolMax<T>& job) {
    constexpr int lanes = VecOf<T>::lanes, fixed = fixed_rows * fixed_columns;
    const int tap_rows = fixed ? fixed_rows : job.tap_rows, tap_columns = fixed ? fixed_columns : job.tap_columns;
    const T* rows_of_taps[fixed ? fixed_rows : 1];
    int64_t offsets[fixed ? fixed_columns : 1];
    Vec<T> codes[fixed ? fixed : 1];
    for (int r = 0; r < fixed_rows; ++r) rows_of_taps[r] = job.rows_of_taps[r];
    for (int s = 0; s < fixed_columns; ++s) offsets[s] = job.offsets[s];
    for (int t = 0; t < fixed; ++t)
        codes[t] = broadcast(job.codes[t / fixed_columns * job.code_row + t % fixed_columns]);
    const int64_t columns = job.columns, step = job.column_step * lanes;
    for (int64_t row = 0; row < job.rows; ++row) {
        T* to = job.output + row * job.output_step;
        T* code_to = with_codes ? job.code_lanes + row * job.code_step : nullptr;
        int64_t at = row * job.value_step;
        for (int64_t column = 0; column < columns; column += lanes, at += step) {
            Vec<T> best, code;
#pragma GCC unroll 3
            for (int r = 0; r < tap_rows; ++r) {
                const T* values = (fixed ? rows_of_taps[r] : job.rows_of_taps[r]) + at;
#pragma GCC unroll 3
                for (int s = 0; s < tap_columns; ++s) {
                    const Vec<T> value = load(values + (fixed ? offsets[s] : job.offsets[s]));
                    const Vec<T> this_code =
                        fixed ? codes[fixed ? r * fixed_columns + s : 0] : broadcast(job.codes[r * job.code_row + s]);
                    if (r == 0 && s == 0) {
                        best = value;
                        code = this_code;
                        continue;
                    }
                    if constexpr (with_codes) code = select(greater(value, best), this_code, code);
                    best = max(value, best);
                }
            }
            store(to + column, best);
            if constexpr (with_codes) store(code_to + column, code);
        }
    }
}

template <class T, bool with_codes>
void pool_max_numbers_formed(const convx::PoolMax<T>& job) {
    switch (job.tap_rows * 4 + job.tap_columns) {
        case 3 * 4 + 3:
            return pool_max_numbers_of<T, with_codes, 3, 3>(job);
        case 3 * 4 + 2:
            return pool_max_numbers_of<T, with_codes, 3, 2>(job);
        case 2 * 4 + 3:
            return pool_max_numbers_of<T, with_codes, 2, 3>(job);
        case 2 * 4 + 2:
            return pool_max_numbers_of<T, with_codes, 2, 2>(job);
        default:
            return pool_max_numbers_of<T, with_codes, 0, 0>(job);
    }
}

template <class T>
void pool_max_numbers(const convx::PoolMax<T>& job) {
    job.code_lanes ? pool_max_numbers_formed<T, true>(job) : pool_max_numbers_formed<T, false>(job);
}

template <class T, class Put>
inline void unpack_lanes(const T* lanes_of_cells, int64_t count, int planes, const Put& put) {
    constexpr int lanes = VecOf<T>::lanes;
    for (int64_t i = 0; i < count; i += lanes) {
        Vec<T> block[lanes];
        load_transposed(block, [&](int k) { return lanes_of_cells + (i + k) * lanes; });
        if (i + lanes <= count && planes == lanes) {
#pragma GCC unroll 16
            for (int k = 0; k < lanes; ++k) put(k, i, block[k]);
        } else {
            for (int k = 0; k < planes; ++k)
                put(k, i, block[k], static_cast<int>(count - i < lanes ? count - i : lanes));
        }
    }
}

template <class T>
void pool_unpack(const convx::PoolUnpack<T>& job) {
    const int64_t count = job.count;
    const int planes = job.planes;
    unpack_lanes(job.values, count, planes, [&](int k, int64_t i, Vec<T> v, auto... n) {
        prefetch_to_write(job.outputs[k] + i + job.ahead);
        store(job.outputs[k] + i, v, n...);
    });
    if (job.code_bytes)
        unpack_lanes(job.codes, count, planes,
                     [&](int k, int64_t i, Vec<T> v, auto... n) { store_codes(job.code_bytes[k] + i, v, n...); });
    if (job.indices)
        unpack_lanes(job.codes, count, planes, [&](int k, int64_t i, Vec<T> v, auto... n) {
            store_indices(job.indices[k] + i, v, job.index_ramp + i, 0, n...);
        });
}

// `count` lanes of `fill`; up to a vector is written beyond them.
template <class T>
inline void fill_lanes(T* to, int64_t count, Vec<T> fill) {
    for (int64_t i = 0; i < count; i += VecOf<T>::lanes) store(to + i, fill);
}

// One vector, or, where nothing may be read beyond the last element, its first n lanes.
template <class T>
inline Vec<T> load_last(const T* p, int64_t n, bool beyond) {
    return beyond || n >= VecOf<T>::lanes ? load(p) : n > 0 ? load(p, static_cast<int>(n)) : broadcast(T(0));
}

template <class T>
void pool_stage(const convx::PoolStage<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    const Vec<T> fill = broadcast(job.fill);
    const int64_t count = job.pixels * job.group;
    for (int64_t row = 0; row < job.rows; ++row) {
        T* to = job.staged + row * job.staged_step;
        const T* from = job.source + row * job.source_step;
        fill_lanes(to, job.before, fill);
        to += job.before;
        if (job.pixel_step == job.group) {
            for (int64_t i = 0; i < count; i += lanes) store(to + i, load_last(from + i, count - i, job.beyond));
        } else if (job.group == 1) {
            for (int64_t i = 0; i < count; ++i) to[i] = from[i * job.pixel_step];
        } else {
            for (int64_t pixel = 0; pixel < job.pixels; ++pixel)
                for (int64_t i = 0; i < job.group; i += lanes)
                    store(to + pixel * job.group + i,
                          load_last(from + pixel * job.pixel_step + i, job.group - i, job.beyond));
        }
        fill_lanes(to + count, job.after, fill);
    }
}

// Both residues of columns modulo 2 at once: even.source holds even and odd pixels in turn.
template <class T>
void pool_stage_pairs(const convx::PoolStage<T>& even, const convx::PoolStage<T>& odd) {
    constexpr int lanes = VecOf<T>::lanes;
    const Vec<T> fill = broadcast(even.fill);
    const int64_t count = even.pixels + odd.pixels;
    for (int64_t row = 0; row < even.rows; ++row) {
        T* to_even = even.staged + row * even.staged_step;
        T* to_odd = odd.staged + row * odd.staged_step;
        const T* from = even.source + row * even.source_step;
        fill_lanes(to_even, even.before, fill);
        fill_lanes(to_odd, odd.before, fill);
        to_even += even.before;
        to_odd += odd.before;
        for (int64_t i = 0; i < count; i += 2 * lanes) {
            const Vec<T> low = load_last(from + i, count - i, even.beyond);
            const Vec<T> high = load_last(from + i + lanes, count - i - lanes, even.beyond);
            store(to_even + i / 2, even_lanes(low, high));
            store(to_odd + i / 2, odd_lanes(low, high));
        }
        fill_lanes(to_even + even.pixels, even.after, fill);
        fill_lanes(to_odd + odd.pixels, odd.after, fill);
    }
}

}  // namespace
