// Rows taken apart into their even and odd elements, and put together again: what a stride of two needs.
#pragma once

namespace {

// even[i] = source[2 * i], odd[i] = source[2 * i + 1], for the `count` elements of source.
template <class T>
void split_row(T* even, T* odd, const T* source, int64_t count) {
    constexpr int lanes = VecOf<T>::lanes;
    int64_t i = 0;
    for (; i + 2 * lanes <= count; i += 2 * lanes) {
        const Vec<T> low = load(source + i), high = load(source + i + lanes);
        store(even + i / 2, even_lanes(low, high));
        store(odd + i / 2, odd_lanes(low, high));
    }
    const int rest = static_cast<int>(count - i);
    if (rest == 0) return;
    if (count % 2 == 0 && i > 0) {  // overlapping the vectors before takes half the time of partial ones
        i = count - 2 * lanes;
        const Vec<T> low = load(source + i), high = load(source + i + lanes);
        store(even + i / 2, even_lanes(low, high));
        store(odd + i / 2, odd_lanes(low, high));
        return;
    }
    const Vec<T> low = load(source + i, rest);
    const Vec<T> high = rest > lanes ? load(source + i + lanes, rest - lanes) : broadcast(T(0));
    store(even + i / 2, even_lanes(low, high), (rest + 1) / 2);
    store(odd + i / 2, odd_lanes(low, high), rest / 2);
}

// The way back, for `count` elements of dest.
template <class T>
void join_row(T* dest, const T* even, const T* odd, int64_t count) {
    constexpr int lanes = VecOf<T>::lanes;
    int64_t i = 0;
    for (; i + 2 * lanes <= count; i += 2 * lanes) {
        const Vec<T> a = load(even + i / 2), b = load(odd + i / 2);
        store(dest + i, interleave_low(a, b));
        store(dest + i + lanes, interleave_high(a, b));
    }
    const int rest = static_cast<int>(count - i);
    if (rest == 0) return;
    if (count % 2 == 0 && i > 0) {
        i = count - 2 * lanes;
        const Vec<T> a = load(even + i / 2), b = load(odd + i / 2);
        store(dest + i, interleave_low(a, b));
        store(dest + i + lanes, interleave_high(a, b));
        return;
    }
    const Vec<T> a = load(even + i / 2, (rest + 1) / 2), b = load(odd + i / 2, rest / 2);
    store(dest + i, interleave_low(a, b), rest);
    if (rest > lanes) store(dest + i + lanes, interleave_high(a, b), rest - lanes);
}

}  // namespace
