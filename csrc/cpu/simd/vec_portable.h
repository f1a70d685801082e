// The vector primitives for any processor: 4 floats or 2 doubles in the vectors of GCC and Clang (SSE2, NEON), which
// compile in a third of the time of loops over four lanes and cannot end up as scalars. This file is also the
// definition of every function; vec_avx2.h and vec_avx512.h give the same functions in the same order.
//
// Kernels use nothing else, so a new instruction set is one more file like this. All names live in an anonymous
// namespace: each translation unit keeps its own copy and no inline function can leak into another instruction set.
#pragma once

#include <cstdint>
#include <type_traits>

namespace {

typedef float Floats __attribute__((vector_size(16)));
typedef double Doubles __attribute__((vector_size(16)));

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
    Floats v;
};
template <>
struct Lanes<double> {
    Doubles v;
};
// What a comparison gives: in each lane an integer of its size, all bits set or none.
template <class T>
struct LaneMask;
template <>
struct LaneMask<float> {
    decltype(Floats{} == Floats{}) m;
};
template <>
struct LaneMask<double> {
    decltype(Doubles{} == Doubles{}) m;
};

template <class T>
struct VecOf {
    using type = Lanes<T>;
    using mask = LaneMask<T>;
    static constexpr int lanes = 16 / sizeof(T);
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
using Mask = typename VecOf<T>::mask;

// Lane i is value(i), a number or the integer of a mask.
template <class Vector, class Value>
Vector vector_of(const Value& value) {
    if constexpr (sizeof(Vector{}[0]) == 4)
        return Vector{value(0), value(1), value(2), value(3)};
    else
        return Vector{value(0), value(1)};
}
template <class T, class Value>
Vec<T> lanes_of(const Value& value) {
    return {vector_of<decltype(Vec<T>::v)>(value)};
}
template <class T>
using MaskBits = decltype(Mask<T>::m);
template <class T, class Value>
MaskBits<T> integers(const Value& value) {
    using Integer = std::remove_reference_t<decltype(MaskBits<T>{}[0])>;
    return vector_of<MaskBits<T>>([&](int i) { return static_cast<Integer>(value(i)); });
}

// The same value in every lane.
inline Lanes<float> broadcast(float x) { return {Floats{x, x, x, x}}; }
inline Lanes<double> broadcast(double x) { return {Doubles{x, x}}; }

// Unaligned load; with n, only the first n lanes are read and the others are zero. What reads or writes a part of a
// vector is one copy for all callers: with a branch for each lane in each of them the object takes twice as long.
template <class T>
Vec<T> load(const T* p) {
    Vec<T> r;
    __builtin_memcpy(&r, p, sizeof r);
    return r;
}
template <class T>
[[gnu::noinline]] Vec<T> load_some(const T* p, int n) {
    return lanes_of<T>([=](int i) { return i < n ? p[i] : T(0); });
}
template <class T>
Vec<T> load(const T* p, int n) {
    return n >= VecOf<T>::lanes ? load(p) : load_some(p, n);
}

// Lanes [begin, end), and a load of such lanes alone, the others being zero.
template <class T>
Mask<T> lanes_between(int begin, int end) {
    return {integers<T>([=](int i) { return begin <= i && i < end ? -1 : 0; })};
}
template <class T>
[[gnu::noinline]] Vec<T> load(const T* p, Mask<T> mask) {
    return lanes_of<T>([=](int i) { return mask.m[i] ? p[i] : T(0); });
}

// Unaligned store; with n, only the first n lanes are written.
template <class T>
void store(T* p, Lanes<T> a) {
    __builtin_memcpy(p, &a, sizeof a);
}
template <class T>
[[gnu::noinline]] void store_some(T* p, Lanes<T> a, int n) {
    for (int i = 0; i < VecOf<T>::lanes && i < n; ++i) p[i] = a.v[i];
}
template <class T>
void store(T* p, Lanes<T> a, int n) {
    n >= VecOf<T>::lanes ? store(p, a) : store_some(p, a, n);
}

// Aligned store that goes around the caches; stream_fence orders all of them before what follows.
template <class T>
void stream(T* p, Lanes<T> a) {
    store(p, a);
}
inline void stream_fence() {}

// The same value, from a register: keeps the compiler from reading memory once more for every use.
template <class T>
Lanes<T> in_register(Lanes<T> a) {
    return a;
}

template <class T>
Lanes<T> add(Lanes<T> a, Lanes<T> b) {
    return {a.v + b.v};
}
template <class T>
Lanes<T> sub(Lanes<T> a, Lanes<T> b) {
    return {a.v - b.v};
}
template <class T>
Lanes<T> mul(Lanes<T> a, Lanes<T> b) {
    return {a.v * b.v};
}

// a * b + c; the vector instruction sets round once, this one twice.
template <class T>
Lanes<T> fma(Lanes<T> a, Lanes<T> b, Lanes<T> c) {
    return {c.v + a.v * b.v};
}

// a if not (a <= 0) else 0: a NaN stays, and so that zeros are +0 on every path it is a comparison, not max(0, a).
template <class T>
Lanes<T> relu(Lanes<T> a) {
    const Lanes<T> zero = broadcast(T(0));
    return {a.v <= zero.v ? zero.v : a.v};
}

// The greater of a and b, neither of which may be a NaN; b where they are equal.
template <class T>
Lanes<T> max(Lanes<T> a, Lanes<T> b) {
    return {a.v > b.v ? a.v : b.v};
}

template <class T>
LaneMask<T> greater(Lanes<T> a, Lanes<T> b) {
    return {a.v > b.v};
}
// a > b, or a is a NaN: the max-pool rule for replacing b by a, and with b = 0 the test !(a <= 0).
template <class T>
LaneMask<T> greater_or_nan(Lanes<T> a, Lanes<T> b) {
    return {(a.v > b.v) | (a.v != a.v)};
}
template <class T>
LaneMask<T> equal(Lanes<T> a, Lanes<T> b) {
    return {a.v == b.v};
}

// Lane i as bit i, and the way back, which ignores higher bits.
template <class T>
uint32_t lane_bits(LaneMask<T> m) {
    const auto bits = m.m & integers<T>([](int i) { return 1 << i; });
    uint32_t all = 0;
    for (int i = 0; i < VecOf<T>::lanes; ++i) all |= static_cast<uint32_t>(bits[i]);
    return all;
}
template <class T>
Mask<T> lanes_of_bits(uint32_t bits) {
    const auto bit = integers<T>([](int i) { return 1 << i; });
    return {(integers<T>([=](int) { return bits; }) & bit) == bit};
}

template <class T>
bool any_nan(Lanes<T> a) {
    using Halves = MaskBits<double>;
    const auto nan = reinterpret_cast<Halves>(a.v != a.v);
    return (nan[0] | nan[1]) != 0;
}

// Lane by lane: m ? a : b. In bits, because SSE2 has no comparison of 64-bit integers for m ? a.v : b.v.
template <class T>
Lanes<T> select(LaneMask<T> m, Lanes<T> a, Lanes<T> b) {
    using Bits = MaskBits<T>;
    using Vector = decltype(a.v);
    const Bits chosen = (m.m & reinterpret_cast<Bits>(a.v)) | (~m.m & reinterpret_cast<Bits>(b.v));
    return {reinterpret_cast<Vector>(chosen)};
}

// Lane by lane: m ? sum + a : sum.
template <class T>
Lanes<T> add_where(LaneMask<T> m, Lanes<T> sum, Lanes<T> a) {
    return select(m, add(sum, a), sum);
}

// All lanes, halves added until one is left.
inline float sum_lanes(Lanes<float> a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
inline double sum_lanes(Lanes<double> a) { return a.v[0] + a.v[1]; }

// Of the 2 * lanes values in a, b: those at even (odd) places, in order.
inline Lanes<float> even_lanes(Lanes<float> a, Lanes<float> b) { return {Floats{a.v[0], a.v[2], b.v[0], b.v[2]}}; }
inline Lanes<float> odd_lanes(Lanes<float> a, Lanes<float> b) { return {Floats{a.v[1], a.v[3], b.v[1], b.v[3]}}; }
inline Lanes<double> even_lanes(Lanes<double> a, Lanes<double> b) { return {Doubles{a.v[0], b.v[0]}}; }
inline Lanes<double> odd_lanes(Lanes<double> a, Lanes<double> b) { return {Doubles{a.v[1], b.v[1]}}; }

// The same, faster, in an order of lanes that in_order() restores.
template <class T>
Lanes<T> even_lanes_anyhow(Lanes<T> a, Lanes<T> b) {
    return even_lanes(a, b);
}
template <class T>
Lanes<T> odd_lanes_anyhow(Lanes<T> a, Lanes<T> b) {
    return odd_lanes(a, b);
}
template <class T>
Lanes<T> in_order(Lanes<T> a) {
    return a;
}

// The way back: a0 b0 a1 b1 ..., the first and the second half of it.
inline Lanes<float> interleave_low(Lanes<float> a, Lanes<float> b) { return {Floats{a.v[0], b.v[0], a.v[1], b.v[1]}}; }
inline Lanes<float> interleave_high(Lanes<float> a, Lanes<float> b) { return {Floats{a.v[2], b.v[2], a.v[3], b.v[3]}}; }
inline Lanes<double> interleave_low(Lanes<double> a, Lanes<double> b) { return even_lanes(a, b); }
inline Lanes<double> interleave_high(Lanes<double> a, Lanes<double> b) { return odd_lanes(a, b); }

// Transposes a lanes x lanes block in place.
inline void transpose(Lanes<float> (&rows)[4]) {
    const Lanes<float> a0 = interleave_low(rows[0], rows[2]), a1 = interleave_low(rows[1], rows[3]);
    const Lanes<float> a2 = interleave_high(rows[0], rows[2]), a3 = interleave_high(rows[1], rows[3]);
    rows[0] = interleave_low(a0, a1);
    rows[1] = interleave_high(a0, a1);
    rows[2] = interleave_low(a2, a3);
    rows[3] = interleave_high(a2, a3);
}
inline void transpose(Lanes<double> (&rows)[2]) {
    const Lanes<double> first = rows[0];
    rows[0] = interleave_low(first, rows[1]);
    rows[1] = interleave_high(first, rows[1]);
}

// Four adjacent elements at every lane's own place: columns[j] of lane i is places[i][offset + j].
template <class T>
void load_quads(const T* const* places, int64_t offset, Vec<T> (&columns)[4]) {
    constexpr int lanes = VecOf<T>::lanes;
    for (int j = 0; j < 4; j += lanes) {
        Vec<T> block[lanes];
        for (int i = 0; i < lanes; ++i) block[i] = load(places[i] + offset + j);
        transpose(block);
        for (int i = 0; i < lanes; ++i) columns[j + i] = block[i];
    }
}
template <class T>
void store_quads(T* const* places, int64_t offset, const Vec<T> (&columns)[4]) {
    constexpr int lanes = VecOf<T>::lanes;
    for (int j = 0; j < 4; j += lanes) {
        Vec<T> block[lanes];
        for (int i = 0; i < lanes; ++i) block[i] = columns[j + i];
        transpose(block);
        for (int i = 0; i < lanes; ++i) store(places[i] + offset + j, block[i]);
    }
}

// A transposed block from memory: lane r of block[e] is row(r)[e].
template <class T, int count, class Row>
void load_transposed(Lanes<T> (&block)[count], const Row& row) {
    for (int r = 0; r < count; ++r) block[r] = load(row(r));
    transpose(block);
}

// Window codes: lanes hold whole numbers 0..255 as T, memory holds bytes. With n, the first n of them.
template <class T>
void store_codes(uint8_t* p, Lanes<T> a) {
    for (int i = 0; i < VecOf<T>::lanes; ++i) p[i] = static_cast<uint8_t>(a.v[i]);
}
template <class T>
void store_codes(uint8_t* p, Lanes<T> a, int n) {
    for (int i = 0; i < VecOf<T>::lanes && i < n; ++i) p[i] = static_cast<uint8_t>(a.v[i]);
}

template <class T>
Vec<T> load_codes(const uint8_t* p, int n = VecOf<T>::lanes) {
    return lanes_of<T>([=](int i) { return i < n ? T(p[i]) : T(0); });
}

// Indices: lanes hold whole numbers below 2^24 as T. p[i] = origin + ramp[i] + lane i; `ramp` has a whole vector. With
// n, the first n.
template <class T>
void store_indices(int64_t* p, Lanes<T> a, const int32_t* ramp, int64_t origin, int n = VecOf<T>::lanes) {
    for (int i = 0; i < VecOf<T>::lanes && i < n; ++i) p[i] = origin + ramp[i] + static_cast<int32_t>(a.v[i]);
}
// The way back, lane i = p[i] - origin - ramp[i]: exact where that is below 2^24, beyond 2^23 or a NaN where it is not.
template <class T>
Vec<T> load_indices(const int64_t* p, const int32_t* ramp, int64_t origin, int n = VecOf<T>::lanes) {
    const auto distance = [=](int i) {
        return static_cast<int64_t>(static_cast<uint64_t>(p[i]) - static_cast<uint64_t>(origin) -
                                    static_cast<uint64_t>(ramp[i]));
    };
    return lanes_of<T>([=](int i) { return i < n ? static_cast<T>(distance(i)) : T(0); });
}

// One code in every lane, and which of the next `lanes` codes in memory are equal to it.
struct Code {
    uint8_t v;
};
inline Code broadcast_code(uint8_t code) { return {code}; }
template <class T>
Mask<T> codes_equal(const uint8_t* p, Code code) {
    return {integers<T>([=](int i) { return p[i]; }) == integers<T>([=](int) { return code.v; })};
}

// Asks for a cache line; any address will do.
inline void prefetch(const void* p) { __builtin_prefetch(p); }
inline void prefetch_to_write(void* p) { __builtin_prefetch(p, 1); }

}  // namespace
