// What the machine can do at best, for percentages: FMA on registers alone, and a copy around the caches.
#pragma once

namespace {

// 12 independent chains cover latency x ports = 4 x 2 on every processor with FMA. Returns the flops done; the sink
// keeps the compiler from dropping them.
template <class T>
int64_t fma_rounds(int64_t rounds, T* sink) {
    constexpr int chains = 12;
    Vec<T> sums[chains];
#pragma GCC unroll 12
    for (int i = 0; i < chains; ++i) sums[i] = broadcast(T(i));
    const Vec<T> factor = broadcast(sink[0]), term = broadcast(sink[1]);
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
        for (int i = 0; i < chains; ++i) sums[i] = fma(sums[i], factor, term);
    }
    for (int i = 1; i < chains; ++i) sums[0] = add(sums[0], sums[i]);
    T lanes[VecOf<T>::lanes];
    store(lanes, sums[0]);
    sink[2] = lanes[0];
    return 2 * chains * VecOf<T>::lanes * rounds;
}

// dst is aligned to a vector and count a multiple of its lanes.
template <class T>
void stream_copy(T* dst, const T* src, int64_t count) {
    for (int64_t i = 0; i < count; i += VecOf<T>::lanes) stream(dst + i, load(src + i));
    stream_fence();
}

}  // namespace
