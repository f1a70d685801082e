// Max-pooling as the greatest of several streams. A loop nest has laid the values under each tap of the window behind a
// pointer of its own, for a block of cells whose columns are adjacent (pixels of a staged row, or channels of an NHWC
// pixel); what is left is the same for every layout, stride, dilation and padding: compare, keep, count.
//
// Selection is that of SEMANTICS.md in the order of the streams: a tie stays with the earlier one, a NaN replaces all.
// Per vector and tap 1 load and, with codes, 5 instructions (2 compares, or, 2 blends).
#pragma once

namespace {

// What happens to the code of the chosen tap.
enum class CodeForm { none, bytes, lanes };

template <class T>
struct Best {
    Vec<T> value, code;
};

template <class T, bool with_codes>
inline void take(Best<T>& best, Vec<T> value, Vec<T> code) {
    const auto replace = greater_or_nan(value, best.value);
    best.value = select(replace, value, best.value);
    if constexpr (with_codes) best.code = select(replace, code, best.code);
}

// The best of one vector of cells: of the streams `values[t] + at`.
template <class T, int fixed_taps, bool with_codes, bool ranked>
inline Best<T> best_of(const convx::PoolMax<T>& job, int64_t at, int64_t column) {
    const int taps = fixed_taps ? fixed_taps : job.taps;
    const auto code_of = [&](int t) {
        Vec<T> code = broadcast(job.codes[t]);
        if constexpr (ranked) code = add(code, load(job.values[t] + job.rank_offset + at));
        return code;
    };
    Best<T> best{load(job.values[0] + at), broadcast(T(0))};
    if constexpr (with_codes) {
        best.code = code_of(0);
        if (job.first_codes) best.code = add(best.code, load(job.first_codes + column));
    }
#pragma GCC unroll 9
    for (int t = 1; t < taps; ++t) {
        const Vec<T> value = load(job.values[t] + at);
        if constexpr (with_codes)
            take<T, true>(best, value, code_of(t));
        else
            take<T, false>(best, value, value);
    }
    return best;
}

// The same over pairs: values[t] + 2 * at holds the values of two neighbouring taps in turn, with codes c and c + 1.
template <class T, bool with_codes>
inline Best<T> best_of_pairs(const convx::PoolMax<T>& job, int64_t at) {
    constexpr int lanes = VecOf<T>::lanes;
    Best<T> best;
    for (int t = 0; t < job.taps; ++t) {
        const T* pairs = job.values[t] + at;
        const Vec<T> low = load(pairs), high = load(pairs + lanes);
        const Vec<T> first = even_lanes(low, high), second = odd_lanes(low, high);
        if (t == 0)
            best = {first, broadcast(job.codes[0])};
        else
            take<T, with_codes>(best, first, broadcast(job.codes[t]));
        take<T, with_codes>(best, second, broadcast(job.codes[t] + T(1)));
    }
    return best;
}

template <class T, CodeForm form>
inline void put(const convx::PoolMax<T>& job, int64_t row, int64_t column, const Best<T>& best) {
    store(job.output + row * job.output_step + column, best.value);
    if constexpr (form == CodeForm::bytes) store_codes(job.code_bytes + row * job.code_step + column, best.code);
    if constexpr (form == CodeForm::lanes) store(job.code_lanes + row * job.code_step + column, best.code);
}
template <class T, CodeForm form>
inline void put(const convx::PoolMax<T>& job, int64_t row, int64_t column, const Best<T>& best, int n) {
    store(job.output + row * job.output_step + column, best.value, n);
    if constexpr (form == CodeForm::bytes) store_codes(job.code_bytes + row * job.code_step + column, best.code, n);
    if constexpr (form == CodeForm::lanes) store(job.code_lanes + row * job.code_step + column, best.code, n);
}

// All cells of a block, in whole vectors: the last one of a row overlaps its neighbour. A row of less than one vector
// runs over into the next rows, which are written after it, wherever these are dense.
template <class T, CodeForm form, class BestAt>
inline void for_each_vector(const convx::PoolMax<T>& job, const BestAt& best_at) {
    constexpr int lanes = VecOf<T>::lanes;
    const int64_t last = job.columns - lanes;
    if (last >= 0) {
        for (int64_t row = 0; row < job.rows; ++row) {
            for (int64_t column = 0; column < last; column += lanes)
                put<T, form>(job, row, column, best_at(row, column));
            put<T, form>(job, row, last, best_at(row, last));
        }
        return;
    }
    const bool dense = job.output_step == job.columns && (form == CodeForm::none || job.code_step == job.columns);
    for (int64_t row = 0; row < job.rows; ++row) {
        if (dense && (job.rows - row) * job.columns >= lanes)
            put<T, form>(job, row, 0, best_at(row, 0));
        else
            put<T, form>(job, row, 0, best_at(row, 0), static_cast<int>(job.columns));
    }
}

template <class T, CodeForm form, int fixed_taps, bool ranked>
void pool_max_block(const convx::PoolMax<T>& job) {
    constexpr bool with_codes = form != CodeForm::none;
    for_each_vector<T, form>(job, [&](int64_t row, int64_t column) {
        return best_of<T, fixed_taps, with_codes, ranked>(job, row * job.value_step + column, column);
    });
}

template <class T, CodeForm form>
void pool_max_formed(const convx::PoolMax<T>& job) {
    if constexpr (form != CodeForm::none) {
        if (job.rank_offset) return pool_max_block<T, form, 0, true>(job);
    }
    switch (job.taps) {
        case 2: return pool_max_block<T, form, 2, false>(job);
        case 3: return pool_max_block<T, form, 3, false>(job);
        case 4: return pool_max_block<T, form, 4, false>(job);
        case 9: return pool_max_block<T, form, 9, false>(job);
        default: return pool_max_block<T, form, 0, false>(job);
    }
}

template <class T>
void pool_max(const convx::PoolMax<T>& job) {
    if (job.code_bytes) return pool_max_formed<T, CodeForm::bytes>(job);
    if (job.code_lanes) return pool_max_formed<T, CodeForm::lanes>(job);
    pool_max_formed<T, CodeForm::none>(job);
}

template <class T, CodeForm form>
void pool_max_pairs_formed(const convx::PoolMax<T>& job) {
    for_each_vector<T, form>(job, [&](int64_t row, int64_t column) {
        return best_of_pairs<T, form != CodeForm::none>(job, row * job.value_step + 2 * column);
    });
}

template <class T>
void pool_max_pairs(const convx::PoolMax<T>& job) {
    if (job.code_bytes) return pool_max_pairs_formed<T, CodeForm::bytes>(job);
    if (job.code_lanes) return pool_max_pairs_formed<T, CodeForm::lanes>(job);
    pool_max_pairs_formed<T, CodeForm::none>(job);
}

}  // namespace
