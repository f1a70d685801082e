// The vector vocabulary in plain C++: 4 floats or 2 doubles. This file is also the definition of every function;
// vec_avx2.h and vec_avx512.h give the same functions in the same order.
//
// Kernels use nothing else, so a new instruction set is one more file like this. All names live in an anonymous
// namespace: each translation unit keeps its own copy and no inline function can leak into another instruction set.
#pragma once

#include <cstdint>

namespace {

template <class T, int count>
struct Lanes {
    T v[count];
};
template <class T, int count>
struct LaneMask {
    bool m[count];
};

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
    using type = Lanes<float, 4>;
    using mask = LaneMask<float, 4>;
    static constexpr int lanes = 4;
};
template <>
struct VecOf<double> {
    using type = Lanes<double, 2>;
    using mask = LaneMask<double, 2>;
    static constexpr int lanes = 2;
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
using Mask = typename VecOf<T>::mask;

// The same value in every lane.
template <class T>
Vec<T> broadcast(T x) {
    Vec<T> r;
    for (T& lane : r.v) lane = x;
    return r;
}

// Unaligned load; with n, only the first n lanes are read and the others are zero.
template <class T>
Vec<T> load(const T* p) {
    Vec<T> r;
    for (int i = 0; i < VecOf<T>::lanes; ++i) r.v[i] = p[i];
    return r;
}
template <class T>
Vec<T> load(const T* p, int n) {
    Vec<T> r;
    for (int i = 0; i < VecOf<T>::lanes; ++i) r.v[i] = i < n ? p[i] : T(0);
    return r;
}

// Lanes [begin, end), and a load of such lanes alone, the others being zero.
template <class T>
Mask<T> lanes_between(int begin, int end) {
    Mask<T> r;
    for (int i = 0; i < VecOf<T>::lanes; ++i) r.m[i] = begin <= i && i < end;
    return r;
}
template <class T>
Vec<T> load(const T* p, Mask<T> mask) {
    Vec<T> r;
    for (int i = 0; i < VecOf<T>::lanes; ++i) r.v[i] = mask.m[i] ? p[i] : T(0);
    return r;
}

// Unaligned store; with n, only the first n lanes are written.
template <class T, int count>
void store(T* p, Lanes<T, count> a) {
    for (int i = 0; i < count; ++i) p[i] = a.v[i];
}
template <class T, int count>
void store(T* p, Lanes<T, count> a, int n) {
    for (int i = 0; i < count && i < n; ++i) p[i] = a.v[i];
}

// Aligned store that goes around the caches; stream_fence orders all of them before what follows.
template <class T, int count>
void stream(T* p, Lanes<T, count> a) {
    store(p, a);
}
inline void stream_fence() {}

// The same value, from a register: keeps the compiler from reading memory once more for every use.
template <class T, int count>
Lanes<T, count> in_register(Lanes<T, count> a) {
    return a;
}

template <class T, int count>
Lanes<T, count> add(Lanes<T, count> a, Lanes<T, count> b) {
    for (int i = 0; i < count; ++i) a.v[i] += b.v[i];
    return a;
}

template <class T, int count>
Lanes<T, count> sub(Lanes<T, count> a, Lanes<T, count> b) {
    for (int i = 0; i < count; ++i) a.v[i] -= b.v[i];
    return a;
}
template <class T, int count>
Lanes<T, count> mul(Lanes<T, count> a, Lanes<T, count> b) {
    for (int i = 0; i < count; ++i) a.v[i] *= b.v[i];
    return a;
}

// a * b + c; the vector instruction sets round once, this one twice.
template <class T, int count>
Lanes<T, count> fma(Lanes<T, count> a, Lanes<T, count> b, Lanes<T, count> c) {
    for (int i = 0; i < count; ++i) c.v[i] += a.v[i] * b.v[i];
    return c;
}

// a if not (a <= 0) else 0: a NaN stays, and so that zeros are +0 on every path it is a comparison, not max(0, a).
template <class T, int count>
Lanes<T, count> relu(Lanes<T, count> a) {
    for (T& lane : a.v) lane = lane <= T(0) ? T(0) : lane;
    return a;
}

// The greater of a and b, neither of which may be a NaN; b where they are equal.
template <class T, int count>
Lanes<T, count> max(Lanes<T, count> a, Lanes<T, count> b) {
    for (int i = 0; i < count; ++i) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}

template <class T, int count>
LaneMask<T, count> greater(Lanes<T, count> a, Lanes<T, count> b) {
    LaneMask<T, count> r;
    for (int i = 0; i < count; ++i) r.m[i] = a.v[i] > b.v[i];
    return r;
}
// a > b, or a is a NaN: the max-pool rule for replacing b by a, and with b = 0 the test !(a <= 0).
template <class T, int count>
LaneMask<T, count> greater_or_nan(Lanes<T, count> a, Lanes<T, count> b) {
    LaneMask<T, count> r;
    for (int i = 0; i < count; ++i) r.m[i] = a.v[i] > b.v[i] || a.v[i] != a.v[i];
    return r;
}
template <class T, int count>
LaneMask<T, count> equal(Lanes<T, count> a, Lanes<T, count> b) {
    LaneMask<T, count> r;
    for (int i = 0; i < count; ++i) r.m[i] = a.v[i] == b.v[i];
    return r;
}

// Lane i as bit i, and the way back, which ignores higher bits.
template <class T, int count>
uint32_t lane_bits(LaneMask<T, count> m) {
    uint32_t bits = 0;
    for (int i = 0; i < count; ++i) bits |= static_cast<uint32_t>(m.m[i]) << i;
    return bits;
}
template <class T>
Mask<T> lanes_of_bits(uint32_t bits) {
    Mask<T> r;
    for (int i = 0; i < VecOf<T>::lanes; ++i) r.m[i] = bits >> i & 1;
    return r;
}

template <class T, int count>
bool any_nan(Lanes<T, count> a) {
    bool any = false;
    for (const T lane : a.v) any = any || lane != lane;
    return any;
}

// Lane by lane: m ? sum + a : sum.
template <class T, int count>
Lanes<T, count> add_where(LaneMask<T, count> m, Lanes<T, count> sum, Lanes<T, count> a) {
    for (int i = 0; i < count; ++i) sum.v[i] = m.m[i] ? sum.v[i] + a.v[i] : sum.v[i];
    return sum;
}

// Lane by lane: m ? a : b.
template <class T, int count>
Lanes<T, count> select(LaneMask<T, count> m, Lanes<T, count> a, Lanes<T, count> b) {
    for (int i = 0; i < count; ++i) a.v[i] = m.m[i] ? a.v[i] : b.v[i];
    return a;
}

// All lanes, halves added until one is left.
template <class T, int count>
T sum_lanes(Lanes<T, count> a) {
    for (int half = count / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
    return a.v[0];
}

// Of the 2 * lanes values in a, b: those at even (odd) places, in order.
template <class T, int count>
Lanes<T, count> even_lanes(Lanes<T, count> a, Lanes<T, count> b) {
    Lanes<T, count> r;
    for (int i = 0; i < count; ++i) r.v[i] = 2 * i < count ? a.v[2 * i] : b.v[2 * i - count];
    return r;
}
template <class T, int count>
Lanes<T, count> odd_lanes(Lanes<T, count> a, Lanes<T, count> b) {
    Lanes<T, count> r;
    for (int i = 0; i < count; ++i) r.v[i] = 2 * i + 1 < count ? a.v[2 * i + 1] : b.v[2 * i + 1 - count];
    return r;
}

// The same, faster, in an order of lanes that in_order() restores.
template <class T, int count>
Lanes<T, count> even_lanes_anyhow(Lanes<T, count> a, Lanes<T, count> b) {
    return even_lanes(a, b);
}
template <class T, int count>
Lanes<T, count> odd_lanes_anyhow(Lanes<T, count> a, Lanes<T, count> b) {
    return odd_lanes(a, b);
}
template <class T, int count>
Lanes<T, count> in_order(Lanes<T, count> a) {
    return a;
}

// The way back: a0 b0 a1 b1 ..., the first and the second half of it.
template <class T, int count>
Lanes<T, count> interleave_low(Lanes<T, count> a, Lanes<T, count> b) {
    Lanes<T, count> r;
    for (int i = 0; i < count; ++i) r.v[i] = i % 2 == 0 ? a.v[i / 2] : b.v[i / 2];
    return r;
}
template <class T, int count>
Lanes<T, count> interleave_high(Lanes<T, count> a, Lanes<T, count> b) {
    Lanes<T, count> r;
    for (int i = 0; i < count; ++i) r.v[i] = i % 2 == 0 ? a.v[(count + i) / 2] : b.v[(count + i) / 2];
    return r;
}

// Transposes a lanes x lanes block in place.
template <class T, int count>
void transpose(Lanes<T, count> (&rows)[count]) {
    for (int i = 0; i < count; ++i)
        for (int j = 0; j < i; ++j) {
            const T upper = rows[j].v[i];
            rows[j].v[i] = rows[i].v[j];
            rows[i].v[j] = upper;
        }
}

// Four adjacent elements at every lane's own place: columns[j] of lane i is places[i][offset + j].
template <class T>
void load_quads(const T* const* places, int64_t offset, Vec<T> (&columns)[4]) {
    for (int i = 0; i < VecOf<T>::lanes; ++i)
        for (int j = 0; j < 4; ++j) columns[j].v[i] = places[i][offset + j];
}
template <class T>
void store_quads(T* const* places, int64_t offset, const Vec<T> (&columns)[4]) {
    for (int i = 0; i < VecOf<T>::lanes; ++i)
        for (int j = 0; j < 4; ++j) places[i][offset + j] = columns[j].v[i];
}

// A transposed block from memory: lane r of block[e] is row(r)[e].
template <class T, int count, class Row>
void load_transposed(Lanes<T, count> (&block)[count], const Row& row) {
    for (int e = 0; e < count; ++e)
        for (int r = 0; r < count; ++r) block[e].v[r] = row(r)[e];
}

// Window codes: lanes hold whole numbers 0..255 as T, memory holds bytes. With n, the first n of them.
template <class T, int count>
void store_codes(uint8_t* p, Lanes<T, count> a) {
    for (int i = 0; i < count; ++i) p[i] = static_cast<uint8_t>(a.v[i]);
}
template <class T, int count>
void store_codes(uint8_t* p, Lanes<T, count> a, int n) {
    for (int i = 0; i < count && i < n; ++i) p[i] = static_cast<uint8_t>(a.v[i]);
}

template <class T>
Vec<T> load_codes(const uint8_t* p, int n = VecOf<T>::lanes) {
    Vec<T> r;
    for (int i = 0; i < VecOf<T>::lanes; ++i) r.v[i] = i < n ? T(p[i]) : T(0);
    return r;
}

// Indices: lanes hold whole numbers below 2^24 as T. p[i] = origin + ramp[i] + lane i; `ramp` has a whole vector. With
// n, the first n.
template <class T, int count>
void store_indices(int64_t* p, Lanes<T, count> a, const int32_t* ramp, int64_t origin, int n = count) {
    for (int i = 0; i < count && i < n; ++i) p[i] = origin + ramp[i] + static_cast<int32_t>(a.v[i]);
}
// The way back, lane i = p[i] - origin - ramp[i]: exact where that is below 2^24, beyond 2^23 or a NaN where it is not.
template <class T>
Vec<T> load_indices(const int64_t* p, const int32_t* ramp, int64_t origin, int n = VecOf<T>::lanes) {
    Vec<T> r;
    for (int i = 0; i < VecOf<T>::lanes; ++i)
        r.v[i] = i < n
                     ? static_cast<T>(static_cast<int64_t>(static_cast<uint64_t>(p[i]) - static_cast<uint64_t>(origin) -
                                                           static_cast<uint64_t>(ramp[i])))
                     : T(0);
    return r;
}

// One code in every lane, and which of the next `lanes` codes in memory are equal to it.
struct Code {
    uint8_t v;
};
inline Code broadcast_code(uint8_t code) { return {code}; }
template <class T>
LaneMask<T, VecOf<T>::lanes> codes_equal(const uint8_t* p, Code code) {
    LaneMask<T, VecOf<T>::lanes> r;
    for (int i = 0; i < VecOf<T>::lanes; ++i) r.m[i] = p[i] == code.v;
    return r;
}

// Asks for a cache line; any address will do.
inline void prefetch(const void* p) { __builtin_prefetch(p); }
inline void prefetch_to_write(void* p) { __builtin_prefetch(p, 1); }

}  // namespace
