// Max-pooling as the greatest of several streams. A loop nest has laid the values under each tap of the window where
// they are adjacent for a block of cells whose columns are (pixels of a row, or channels of a pixel); what is left is
// the same for every layout, stride, dilation and padding: compare and keep.
//
// Taps are compared in row-major order: a tie stays with the earlier one, a NaN replaces all. The test for NaNs would
// cost as much as the rest, so each vector is first computed as if it had none: per tap a load, compare, blend and max,
// or, without codes, a max. A sum of the values tells afterwards: it is a NaN if one of them was (or if infinities of
// both signs met), and then the vector is computed again with the test.
#pragma once

namespace {

// What happens to the code of the selected tap.
enum class CodeForm { none, bytes, lanes, indices };

template <class T>
struct Best {
    Vec<T> value, code, sum;
};

enum class Nans { absent, summed, tested };

template <bool with_codes, Nans nans, class T>
inline void take(Best<T>& best, Vec<T> value, Vec<T> code) {
    if constexpr (nans == Nans::tested) {
        const auto replace = greater_or_nan(value, best.value);
        best.value = select(replace, value, best.value);
        if constexpr (with_codes) best.code = select(replace, code, best.code);
    } else {
        if constexpr (with_codes) best.code = select(greater(value, best.value), code, best.code);
        best.value = max(value, best.value);
        if constexpr (nans == Nans::summed) best.sum = add(best.sum, value);
    }
}

// The best of one vector of cells, `at` elements from the first. Windows of any size:
template <class T, bool ranked>
struct AnyWindow {
    using Exact = AnyWindow;
    const convx::PoolMaxArgs<T>& args;

    explicit AnyWindow(const convx::PoolMaxArgs<T>& given) : args(given) {}

    template <bool with_codes, Nans nans>
    inline Best<T> best(int64_t at, int64_t column) const {
        const int tap_columns = args.tap_columns, taps = args.tap_rows * tap_columns;
        const int64_t* const offsets = args.offsets;
        const int64_t rank_offset = args.rank_offset, next_code_row = args.code_row - tap_columns;
        const T* const* row = args.rows_of_taps;
        const T* code = args.codes;
        const auto code_at = [&](const T* place) {
            if constexpr (!with_codes) return broadcast(T(0));
            if constexpr (ranked) return add(broadcast(*code), load(place + rank_offset));
            return broadcast(*code);
        };
        const T* place = *row + offsets[0] + at;
        const Vec<T> value = load(place);
        Best<T> best{value, code_at(place), value};
        if (with_codes && nans != Nans::absent && args.first_codes)
            best.code = add(best.code, load(args.first_codes + column));
        Vec<T> other_sum = value;  // two chains of additions, whose latency would count
        for (int t = 1, s = 1; t < taps; ++t) {
            ++code;
            if (s == tap_columns) {
                s = 0;
                ++row;
                code += next_code_row;
            }
            place = *row + offsets[s++] + at;
            take<with_codes, nans>(best, load(place), code_at(place));
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
    const convx::PoolMaxArgs<T>& args;

    explicit FixedWindow(const convx::PoolMaxArgs<T>& given) : args(given) {
        for (int r = 0; r < tap_rows; ++r) rows[r] = args.rows_of_taps[r];
        for (int s = 0; s < tap_columns; ++s) offsets[s] = args.offsets[s];
        for (int r = 0; r < tap_rows; ++r)
            for (int s = 0; s < tap_columns; ++s)
                codes[r * tap_columns + s] = broadcast(args.codes[r * args.code_row + s]);
    }

    template <bool with_codes, Nans nans>
    inline Best<T> best(int64_t at, int64_t column) const {
        Best<T> best;
#pragma GCC unroll 9
        for (int t = 0; t < tap_rows * tap_columns; ++t) {
            const T* place = rows[t / tap_columns] + offsets[t % tap_columns] + at;
            const Vec<T> value = load(place);
            Vec<T> code = codes[t];
            if constexpr (ranked) code = add(code, load(place + args.rank_offset));
            if (t == 0) {
                best = {value, code, value};
                if (with_codes && nans != Nans::absent && args.first_codes)
                    best.code = add(code, load(args.first_codes + column));
            } else {
                take<with_codes, nans>(best, value, code);
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
    const convx::PoolMaxArgs<T>& args;

    explicit PairWindow(const convx::PoolMaxArgs<T>& given) : args(given) {}

    template <bool with_codes, Nans nans>
    inline Best<T> best(int64_t at, int64_t column) const {
        constexpr int lanes = VecOf<T>::lanes;
        const int tap_rows = fixed_rows ? fixed_rows : args.tap_rows;
        constexpr int64_t ahead = 4096 / sizeof(T);
        const T* sequence = args.rows_of_taps[0] + at + column * (2 * tap_rows - 2) + ahead;
        Best<T> best;
#pragma GCC unroll 2
        for (int r = 0; r < tap_rows; ++r) {
            const T* pairs = args.rows_of_taps[r] + at;
            const T* codes = args.codes + r * args.code_row;
            const Vec<T> low = load(pairs), high = load(pairs + lanes);
            prefetch(sequence + r * 2 * lanes);
            const Vec<T> first = even_lanes(low, high), second = odd_lanes(low, high);
            if (r == 0)
                best = {first, broadcast(codes[0]), first};
            else
                take<with_codes, nans>(best, first, broadcast(codes[0]));
            take<with_codes, nans>(best, second, broadcast(codes[1]));
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

    RowOutput(const convx::PoolMaxArgs<T>& args, int64_t row)
        : values(args.output + row * args.output_step),
          code_bytes(form == CodeForm::bytes ? args.code_bytes + row * args.code_step : nullptr),
          code_lanes(form == CodeForm::lanes ? args.code_lanes + row * args.code_step : nullptr),
          indices(form == CodeForm::indices ? args.indices + row * args.code_step : nullptr),
          index_origin(args.index_origin + row * args.index_row), index_ramp(args.index_ramp) {}

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
void put_exactly(const convx::PoolMaxArgs<T>& args, int64_t row, int64_t column, int n) {
    const Window window(args);
    const Best<T> best = window.template best<form != CodeForm::none, Nans::tested>(
        row * args.value_step + column * args.column_step, column);
    RowOutput<form, T>(args, row).put(column, best, n);
}

// All cells of a block in whole vectors, of which the last one of a row overlaps its neighbour. A row of less than one
// vector runs over into the next rows, which are written after it, as long as these are dense.
template <CodeForm form, class Window, class T>
void pool_max_block(const convx::PoolMaxArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes;
    const Window window(args);
    const int64_t columns = args.columns, rows = args.rows, column_step = args.column_step;
    const bool dense = args.output_step == columns && (form == CodeForm::none || args.code_step == columns);
    for (int64_t row = 0; row < rows; ++row) {
        const RowOutput<form, T> output(args, row);
        const int64_t at = row * args.value_step;
        const bool whole = columns >= lanes || (dense && (rows - row) * columns >= lanes);
        for (int64_t column = 0;;) {
            const Best<T> best =
                window.template best<form != CodeForm::none, Nans::summed>(at + column * column_step, column);
            const int n = whole ? lanes : static_cast<int>(columns);
            if (any_nan(best.sum))
                put_exactly<form, typename Window::Exact>(args, row, column, n);
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
void pool_max_formed(const convx::PoolMaxArgs<T>& args) {
    const auto is = [&](int tap_rows, int tap_columns) {
        return args.tap_rows == tap_rows && args.tap_columns == tap_columns;
    };
    if (args.pairs)
        return is(2, 2) ? pool_max_block<form, PairWindow<T, 2>>(args) : pool_max_block<form, PairWindow<T, 0>>(args);
    if (form != CodeForm::none && args.rank_offset)
        return is(3, 1)   ? pool_max_block<form, FixedWindow<T, 3, 1, true>>(args)
               : is(2, 1) ? pool_max_block<form, FixedWindow<T, 2, 1, true>>(args)
               : is(5, 1) ? pool_max_block<form, FixedWindow<T, 5, 1, true>>(args)
                          : pool_max_block<form, AnyWindow<T, true>>(args);
    if (is(3, 3)) return pool_max_block<form, FixedWindow<T, 3, 3, false>>(args);
    if (is(2, 2)) return pool_max_block<form, FixedWindow<T, 2, 2, false>>(args);
    if (is(1, 3)) return pool_max_block<form, FixedWindow<T, 1, 3, false>>(args);
    if (is(3, 1)) return pool_max_block<form, FixedWindow<T, 3, 1, false>>(args);
    if (is(2, 1)) return pool_max_block<form, FixedWindow<T, 2, 1, false>>(args);
    if (is(1, 5)) return pool_max_block<form, FixedWindow<T, 1, 5, false>>(args);
    if (is(5, 1)) return pool_max_block<form, FixedWindow<T, 5, 1, false>>(args);
    pool_max_block<form, AnyWindow<T, false>>(args);
}

template <class T>
void pool_max(const convx::PoolMaxArgs<T>& args) {
    if (args.code_bytes) return pool_max_formed<T, CodeForm::bytes>(args);
    if (args.code_lanes) return pool_max_formed<T, CodeForm::lanes>(args);
    if (args.indices) return pool_max_formed<T, CodeForm::indices>(args);
    pool_max_formed<T, CodeForm::none>(args);
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
template <bool with_codes, class Window, class T>
void pool_max_numbers_block(const convx::PoolMaxArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes;
    const Window window(args);
    const int64_t columns = args.columns, step = args.column_step * lanes;
    for (int64_t row = 0; row < args.rows; ++row) {
        T* to = args.output + row * args.output_step;
        T* code_to = with_codes ? args.code_lanes + row * args.code_step : nullptr;
        int64_t at = row * args.value_step;
        for (int64_t column = 0; column < columns; column += lanes, at += step) {
            const Best<T> best = window.template best<with_codes, Nans::absent>(at, column);
            store(to + column, best.value);
            if constexpr (with_codes) store(code_to + column, best.code);
        }
    }
}

template <class T, bool with_codes>
void pool_max_numbers_formed(const convx::PoolMaxArgs<T>& args) {
    const auto is = [&](int tap_rows, int tap_columns) {
        return args.tap_rows == tap_rows && args.tap_columns == tap_columns;
    };
    if (is(3, 3)) return pool_max_numbers_block<with_codes, FixedWindow<T, 3, 3, false>>(args);
    if (is(3, 2)) return pool_max_numbers_block<with_codes, FixedWindow<T, 3, 2, false>>(args);
    if (is(2, 3)) return pool_max_numbers_block<with_codes, FixedWindow<T, 2, 3, false>>(args);
    if (is(2, 2)) return pool_max_numbers_block<with_codes, FixedWindow<T, 2, 2, false>>(args);
    pool_max_numbers_block<with_codes, AnyWindow<T, false>>(args);
}

template <class T>
void pool_max_numbers(const convx::PoolMaxArgs<T>& args) {
    args.code_lanes ? pool_max_numbers_formed<T, true>(args) : pool_max_numbers_formed<T, false>(args);
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
void pool_unpack(const convx::PoolUnpackArgs<T>& args) {
    const int64_t count = args.count;
    const int planes = args.planes;
    unpack_lanes(args.values, count, planes, [&](int k, int64_t i, Vec<T> v, auto... n) {
        prefetch_to_write(args.outputs[k] + i + args.ahead);
        store(args.outputs[k] + i, v, n...);
    });
    if (args.code_bytes)
        unpack_lanes(args.codes, count, planes,
                     [&](int k, int64_t i, Vec<T> v, auto... n) { store_codes(args.code_bytes[k] + i, v, n...); });
    if (args.indices)
        unpack_lanes(args.codes, count, planes, [&](int k, int64_t i, Vec<T> v, auto... n) {
            store_indices(args.indices[k] + i, v, args.index_ramp + i, 0, n...);
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
void pool_stage(const convx::PoolStageArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes;
    const Vec<T> fill = broadcast(args.fill);
    const int64_t count = args.pixels * args.group;
    for (int64_t row = 0; row < args.rows; ++row) {
        T* to = args.staged + row * args.staged_step;
        const T* from = args.source + row * args.source_step;
        fill_lanes(to, args.before, fill);
        to += args.before;
        if (args.pixel_step == args.group) {
            for (int64_t i = 0; i < count; i += lanes) store(to + i, load_last(from + i, count - i, args.beyond));
        } else if (args.group == 1) {
            for (int64_t i = 0; i < count; ++i) to[i] = from[i * args.pixel_step];
        } else {
            for (int64_t pixel = 0; pixel < args.pixels; ++pixel)
                for (int64_t i = 0; i < args.group; i += lanes)
                    store(to + pixel * args.group + i,
                          load_last(from + pixel * args.pixel_step + i, args.group - i, args.beyond));
        }
        fill_lanes(to + count, args.after, fill);
    }
}

// Both residues of columns modulo 2 at once: even.source holds even and odd pixels in turn.
template <class T>
void pool_stage_pairs(const convx::PoolStageArgs<T>& even, const convx::PoolStageArgs<T>& odd) {
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
