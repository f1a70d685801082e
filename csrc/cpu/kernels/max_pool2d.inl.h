// Max-pooling as the greatest of several streams. A loop nest has laid the values under each tap of the window behind a
// pointer of its own, for a block of cells whose columns are adjacent (pixels of a row, or channels of a pixel); what is
// left is the same for every layout, stride, dilation and padding: compare and keep.
//
// Selection is that of SEMANTICS.md in the order of the streams: a tie stays with the earlier one, a NaN replaces all.
// The test for NaNs costs as much as the rest, and compares and blends share two ports (Zen 3), so each vector is first
// taken as if it had none: per tap a load, compare, max and blend, or, without codes, a max. A sum of the values rides
// along on other ports and tells afterwards: it is a NaN if one of them was (or if infinities of both signs met); the
// vector is then taken again, by the rules.
#pragma once

namespace {

// What happens to the code of the chosen tap.
enum class CodeForm { none, bytes, lanes };

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

// One vector of cells: values[t] + at for all taps t. Chains of taps are known at compile time where they are short.
template <class T, int fixed_taps, bool with_codes, bool ranked>
struct Singles {
    template <bool with_nans>
    static inline Best<T> best(const convx::PoolMax<T>& job, int64_t at, int64_t column) {
        const int taps = fixed_taps && !with_nans ? fixed_taps : job.taps;
        const auto code_of = [&](int t) {
            Vec<T> code = broadcast(T(0));
            if constexpr (with_codes) code = broadcast(job.codes[t]);
            if constexpr (ranked) code = add(code, load(job.values[t] + job.rank_offset + at));
            return code;
        };
        const Vec<T> first = load(job.values[0] + at);
        Best<T> best{first, code_of(0), first};
        if constexpr (with_codes) {
            if (job.first_codes) best.code = add(best.code, load(job.first_codes + column));
        }
#pragma GCC unroll 9
        for (int t = 1; t < taps; ++t) take<with_codes, with_nans>(best, load(job.values[t] + at), code_of(t));
        return best;
    }
};

// The same where a stream holds two neighbouring taps in turn, with codes c and c + 1.
template <class T, int fixed_taps, bool with_codes>
struct Pairs {
    template <bool with_nans>
    static inline Best<T> best(const convx::PoolMax<T>& job, int64_t at, int64_t column) {
        constexpr int lanes = VecOf<T>::lanes;
        const int taps = fixed_taps && !with_nans ? fixed_taps : job.taps;
        Best<T> best;
#pragma GCC unroll 2
        for (int t = 0; t < taps; ++t) {
            const T* pairs = job.values[t] + at + column;  // columns are two elements wide
            const Vec<T> low = load(pairs), high = load(pairs + lanes);
            const Vec<T> first = even_lanes(low, high), second = odd_lanes(low, high);
            if (t == 0)
                best = {first, broadcast(job.codes[0]), first};
            else
                take<with_codes, with_nans>(best, first, broadcast(job.codes[t]));
            take<with_codes, with_nans>(best, second, broadcast(job.codes[t] + T(1)));
        }
        return best;
    }
};

template <CodeForm form, class T, class... Count>
inline void put(const convx::PoolMax<T>& job, int64_t row, int64_t column, const Best<T>& best, Count... n) {
    store(job.output + row * job.output_step + column, best.value, n...);
    if constexpr (form == CodeForm::bytes) store_codes(job.code_bytes + row * job.code_step + column, best.code, n...);
    if constexpr (form == CodeForm::lanes) store(job.code_lanes + row * job.code_step + column, best.code, n...);
}

// All cells of a block in whole vectors, of which the last one of a row overlaps its neighbour. A row of less than one
// vector runs over into the next rows, which are written after it, as long as these are dense.
template <CodeForm form, class Streams, class T>
void pool_max_block(const convx::PoolMax<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    const auto best_at = [&](int64_t row, int64_t column) {
        const int64_t at = row * job.value_step + column;
        const Best<T> best = Streams::template best<false>(job, at, column);
        return any_nan(best.sum) ? Streams::template best<true>(job, at, column) : best;
    };
    const int64_t last = job.columns - lanes;
    if (last >= 0) {
        for (int64_t row = 0; row < job.rows; ++row) {
            for (int64_t column = 0; column < last; column += lanes) put<form>(job, row, column, best_at(row, column));
            put<form>(job, row, last, best_at(row, last));
        }
        return;
    }
    const bool dense = job.output_step == job.columns && (form == CodeForm::none || job.code_step == job.columns);
    for (int64_t row = 0; row < job.rows; ++row) {
        if (dense && (job.rows - row) * job.columns >= lanes)
            put<form>(job, row, 0, best_at(row, 0));
        else
            put<form>(job, row, 0, best_at(row, 0), static_cast<int>(job.columns));
    }
}

template <class T, CodeForm form>
void pool_max_formed(const convx::PoolMax<T>& job) {
    constexpr bool codes = form != CodeForm::none;
    if (job.pairs)
        return job.taps == 2 ? pool_max_block<form, Pairs<T, 2, codes>>(job) : pool_max_block<form, Pairs<T, 0, codes>>(job);
    if (codes && job.rank_offset)
        return job.taps == 3 ? pool_max_block<form, Singles<T, 3, codes, codes>>(job)
                             : pool_max_block<form, Singles<T, 0, codes, codes>>(job);
    switch (job.taps) {
        case 3: return pool_max_block<form, Singles<T, 3, codes, false>>(job);
        case 4: return pool_max_block<form, Singles<T, 4, codes, false>>(job);
        case 9: return pool_max_block<form, Singles<T, 9, codes, false>>(job);
        default: return pool_max_block<form, Singles<T, 0, codes, false>>(job);
    }
}

template <class T>
void pool_max(const convx::PoolMax<T>& job) {
    if (job.code_bytes) return pool_max_formed<T, CodeForm::bytes>(job);
    if (job.code_lanes) return pool_max_formed<T, CodeForm::lanes>(job);
    pool_max_formed<T, CodeForm::none>(job);
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
                    store(to + pixel * job.group + i, load_last(from + pixel * job.pixel_step + i, job.group - i, job.beyond));
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
