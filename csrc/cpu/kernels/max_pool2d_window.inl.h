// The greatest value of one window, with vectors along its rows: for windows that are wide where a row has few of them.
// A first pass finds the value, bound by loads; where its place is asked for, a second one ends where it finds it.
#pragma once

namespace {

// Calls use(vector, elements from the row's start) for a row of `columns` values at p until it returns true. The last
// vector overlaps the one before; a row shorter than a vector is filled up with its first value.
template <class T, class Use>
inline void for_each_vector(const T* p, int64_t columns, const Use& use) {
    constexpr int lanes = VecOf<T>::lanes;
    if (columns < lanes) {
        const int n = static_cast<int>(columns);
        use(select(lanes_between<T>(0, n), load(p, n), broadcast(*p)), 0);
        return;
    }
    for (int64_t s = 0; s + lanes <= columns; s += lanes)
        if (use(load(p + s), s)) return;
    if (columns % lanes != 0) use(load(p + columns - lanes), columns - lanes);
}

// The greatest of the values, of which any zero stands for all; false if there may be a NaN among them: their sum is
// one then, as that of infinities of both signs.
template <class T>
inline bool greatest(const convx::PoolWindowArgs<T>& args, T& value) {
    constexpr int lanes = VecOf<T>::lanes;
    Vec<T> best = broadcast(*args.source), other_best = best;  // two chains, whose latency would count
    Vec<T> sum = broadcast(T(0)), other_sum = sum;
    for (int64_t r = 0; r < args.rows; ++r)
        for_each_vector(args.source + r * args.row_step, args.columns, [&](Vec<T> v, int64_t) {
            const Vec<T> best_with_v = max(v, best), sum_with_v = add(sum, v);
            best = other_best;
            sum = other_sum;
            other_best = best_with_v;
            other_sum = sum_with_v;
            return false;
        });
    T of_lane[lanes];
    store(of_lane, max(best, other_best));
    for (int half = lanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) of_lane[i] = of_lane[i] < of_lane[i + half] ? of_lane[i + half] : of_lane[i];
    value = of_lane[0];
    return !any_nan(add(sum, other_sum));
}

// The first place in row-major order of a value that equals the greatest.
template <class T>
inline int64_t place_of(const convx::PoolWindowArgs<T>& args, T value) {
    const Vec<T> wanted = broadcast(value);
    int64_t place = -1;
    for (int64_t r = 0; place < 0; ++r)
        for_each_vector(args.source + r * args.row_step, args.columns, [&](Vec<T> v, int64_t s) {
            const uint32_t found = lane_bits(equal(v, wanted));
            if (found) place = r * args.columns + s + __builtin_ctz(found);
            return found != 0;
        });
    return place;
}

// A NaN replaces all, so that the last one stays; otherwise a tie stays with the first.
template <class T>
convx::PoolWindowBest<T> pool_window(const convx::PoolWindowArgs<T>& args) {
    const auto at = [&](int64_t place) {
        return args.source[place / args.columns * args.row_step + place % args.columns];
    };
    T value;
    if (!greatest(args, value))
        for (int64_t place = args.rows * args.columns - 1; place >= 0; --place)
            if (at(place) != at(place)) return {at(place), place};
    if (!args.wants_place && value != T(0)) return {value, 0};
    const int64_t place = place_of(args, value);
    return {at(place), place};  // the zero that it is
}

}  // namespace
