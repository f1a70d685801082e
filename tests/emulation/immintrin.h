// AVX-512 intrinsics over AVX2 and FMA: what csrc/cpu/simd/vec_avx512.h needs of the real <immintrin.h>, so that its
// kernels are tested on machines without AVX-512. Found in place of the compiler's header through -Itests/emulation.
//
// A 512-bit register is two 256-bit halves, on which the compiler's vector extensions do arithmetic; everything else
// is written lane by lane, as Intel's intrinsics guide defines it. Masked loads and stores touch their lanes alone, in
// plain C++, so AddressSanitizer sees them (the real intrinsics are opaque to it). Needs -mavx2 -mfma.
#pragma once

#ifdef __AVX512F__
#error "the emulation is compiled for AVX2 and FMA"
#endif

#include <cstdint>

namespace {

namespace emulation {

typedef float Float8 __attribute__((vector_size(32)));
typedef double Double4 __attribute__((vector_size(32)));
typedef int32_t Int32x8 __attribute__((vector_size(32)));
typedef int64_t Int64x4 __attribute__((vector_size(32)));

template <class Half>
struct Halves {
    Half low, high;
};
template <int size>
struct alignas(16) Bytes {
    uint8_t byte[size];
};

}  // namespace emulation

using __m512 = emulation::Halves<emulation::Float8>;
using __m512d = emulation::Halves<emulation::Double4>;
using __m256d = emulation::Bytes<32>;
using __m128 = emulation::Bytes<16>;
using __m512i = emulation::Bytes<64>;
using __m256i = emulation::Bytes<32>;
using __m128i = emulation::Bytes<16>;
using __mmask16 = unsigned short;
using __mmask8 = unsigned char;

enum { _CMP_EQ_OQ = 0x00, _CMP_UNORD_Q = 0x03, _CMP_NLE_UQ = 0x06, _CMP_GT_OQ = 0x1e };

namespace emulation {

// Place i of a register, or of memory at any address, read as elements of type T.
template <class T>
inline T get(const void* from, int i) {
    T x;
    __builtin_memcpy(&x, static_cast<const char*>(from) + i * int{sizeof(T)}, sizeof(T));
    return x;
}
template <class T>
inline void put(void* to, int i, T x) {
    __builtin_memcpy(static_cast<char*>(to) + i * int{sizeof(T)}, &x, sizeof(T));
}

// The register whose lane i is value(i), for the first `count` lanes of the type that value returns; zeros above.
template <class Register, class Value>
inline Register lanes(int count, Value value) {
    Register r{};
    for (int i = 0; i < count; ++i) put(&r, i, value(i));
    return r;
}

// One copy for all callers: the tails of 48 tiles would fill 700 KB of code and half a minute of compilation.
template <class T, class Register>
[[gnu::noinline]] Register masked_load(unsigned mask, const void* p, int count) {
    return lanes<Register>(count, [&](int i) { return mask >> i & 1 ? get<T>(p, i) : T(0); });
}
template <class T>
[[gnu::noinline]] void masked_store(void* p, unsigned mask, const void* a, int count) {
    for (int i = 0; i < count; ++i)
        if (mask >> i & 1) put(p, i, get<T>(a, i));
}

// As the processor does: a non-temporal store to an address that is not a multiple of 64 bytes faults.
template <class Register>
inline void aligned_store(void* p, const Register& a) {
    if (reinterpret_cast<uintptr_t>(p) % 64 != 0) __builtin_trap();
    __builtin_memcpy(p, &a, sizeof(a));
}

// Lane i is lane index[i] of the 2 * count lanes in a, b; higher bits of the index are ignored.
template <class T, class Index, class Register>
inline Register permute_two(const Register& a, const __m512i& index, const Register& b, int count) {
    return lanes<Register>(count, [&](int i) {
        const Index place = get<Index>(&index, i);
        return get<T>(place & count ? &b : &a, static_cast<int>(place & (count - 1)));
    });
}

// 128-bit quarters: two of a, then two of b, each chosen by two bits of `control`.
template <class Register>
inline Register shuffle_quarters(const Register& a, const Register& b, int control) {
    using Quarter = Bytes<16>;
    return lanes<Register>(4, [&](int i) { return get<Quarter>(i < 2 ? &a : &b, control >> (2 * i) & 3); });
}

// All bits set where the relation holds; control flow is the same for all lanes and folds away.
template <class Half>
inline auto compare(Half a, Half b, int predicate) {
    if (predicate == _CMP_EQ_OQ) return a == b;
    if (predicate == _CMP_GT_OQ) return a > b;
    if (predicate == _CMP_NLE_UQ) return ~(a <= b);
    if (predicate != _CMP_UNORD_Q) __builtin_trap();  // not needed so far
    return (a != a) | (b != b);
}

inline Int32x8 lanes_of_mask(int mask, Float8) {
    const Int32x8 bit = {1, 2, 4, 8, 16, 32, 64, 128};
    return (bit & mask) == bit;
}
inline Int64x4 lanes_of_mask(int mask, Double4) {
    const Int64x4 bit = {1, 2, 4, 8};
    return (bit & int64_t{mask}) == bit;
}

// Towards zero; what an int32 cannot hold, NaN too, becomes the smallest int32.
template <class T>
inline int32_t truncate(T x) {
    return x >= T(-2147483648.0) && x < T(2147483648.0) ? static_cast<int32_t>(x) : INT32_MIN;
}

}  // namespace emulation

inline __m512 _mm512_set1_ps(float x) {
    const emulation::Float8 half = {x, x, x, x, x, x, x, x};
    return {half, half};
}
inline __m512d _mm512_set1_pd(double x) {
    const emulation::Double4 half = {x, x, x, x};
    return {half, half};
}
inline __m512 _mm512_setzero_ps() { return _mm512_set1_ps(0); }
inline __m512d _mm512_setzero_pd() { return _mm512_set1_pd(0); }
inline __m128i _mm_set1_epi8(char x) {
    return emulation::lanes<__m128i>(16, [&](int) { return static_cast<uint8_t>(x); });
}
template <class... Int>
inline __m512i _mm512_setr_epi32(Int... x) {
    static_assert(sizeof...(x) == 16);
    const int32_t lane[] = {x...};
    return emulation::lanes<__m512i>(16, [&](int i) { return lane[i]; });
}
template <class... Int>
inline __m512i _mm512_setr_epi64(Int... x) {
    static_assert(sizeof...(x) == 8);
    const int64_t lane[] = {x...};
    return emulation::lanes<__m512i>(8, [&](int i) { return lane[i]; });
}

// Memory: at any address but for the stream stores.
inline __m512 _mm512_loadu_ps(const void* p) { return emulation::get<__m512>(p, 0); }
inline __m512d _mm512_loadu_pd(const void* p) { return emulation::get<__m512d>(p, 0); }
inline void _mm512_storeu_ps(void* p, __m512 a) { emulation::put(p, 0, a); }
inline void _mm512_storeu_pd(void* p, __m512d a) { emulation::put(p, 0, a); }
inline __m512 _mm512_maskz_loadu_ps(__mmask16 m, const void* p) {
    return emulation::masked_load<float, __m512>(m, p, 16);
}
inline __m512d _mm512_maskz_loadu_pd(__mmask8 m, const void* p) {
    return emulation::masked_load<double, __m512d>(m, p, 8);
}
inline __m128i _mm_maskz_loadu_epi8(__mmask16 m, const void* p) {
    return emulation::masked_load<uint8_t, __m128i>(m, p, 16);
}
inline void _mm512_mask_storeu_ps(void* p, __mmask16 m, __m512 a) { emulation::masked_store<float>(p, m, &a, 16); }
inline void _mm512_mask_storeu_pd(void* p, __mmask8 m, __m512d a) { emulation::masked_store<double>(p, m, &a, 8); }
inline void _mm_mask_storeu_epi8(void* p, __mmask16 m, __m128i a) { emulation::masked_store<uint8_t>(p, m, &a, 16); }
inline __m512i _mm512_loadu_si512(const void* p) { return emulation::get<__m512i>(p, 0); }
inline __m512i _mm512_maskz_loadu_epi32(__mmask16 m, const void* p) {
    return emulation::masked_load<int32_t, __m512i>(m, p, 16);
}
inline __m512i _mm512_maskz_loadu_epi64(__mmask8 m, const void* p) {
    return emulation::masked_load<int64_t, __m512i>(m, p, 8);
}
inline void _mm512_mask_storeu_epi64(void* p, __mmask8 m, __m512i a) { emulation::masked_store<int64_t>(p, m, &a, 8); }
inline void _mm512_stream_ps(float* p, __m512 a) { emulation::aligned_store(p, a); }
inline void _mm512_stream_pd(double* p, __m512d a) { emulation::aligned_store(p, a); }
inline void _mm_sfence() { __builtin_ia32_sfence(); }

// Masks: bit i speaks of lane i. blend takes b where it is set.
inline __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int predicate) {
    const auto low = emulation::compare(a.low, b.low, predicate), high = emulation::compare(a.high, b.high, predicate);
    return static_cast<__mmask16>(__builtin_ia32_movmskps256(reinterpret_cast<emulation::Float8>(low)) |
                                  __builtin_ia32_movmskps256(reinterpret_cast<emulation::Float8>(high)) << 8);
}
inline __mmask8 _mm512_cmp_pd_mask(__m512d a, __m512d b, int predicate) {
    const auto low = emulation::compare(a.low, b.low, predicate), high = emulation::compare(a.high, b.high, predicate);
    return static_cast<__mmask8>(__builtin_ia32_movmskpd256(reinterpret_cast<emulation::Double4>(low)) |
                                 __builtin_ia32_movmskpd256(reinterpret_cast<emulation::Double4>(high)) << 4);
}
inline __mmask16 _mm_cmpeq_epi8_mask(__m128i a, __m128i b) {
    unsigned mask = 0;
    for (int i = 0; i < 16; ++i) mask |= static_cast<unsigned>(a.byte[i] == b.byte[i]) << i;
    return static_cast<__mmask16>(mask);
}
inline __m512 _mm512_mask_blend_ps(__mmask16 m, __m512 a, __m512 b) {
    return {emulation::lanes_of_mask(m, a.low) ? b.low : a.low,
            emulation::lanes_of_mask(m >> 8, a.low) ? b.high : a.high};
}
inline __m512d _mm512_mask_blend_pd(__mmask8 m, __m512d a, __m512d b) {
    return {emulation::lanes_of_mask(m, a.low) ? b.low : a.low,
            emulation::lanes_of_mask(m >> 4, a.low) ? b.high : a.high};
}

// Arithmetic: IEEE, the multiply-add with one rounding. max is a > b ? a : b, so b where one is a NaN or both are zero.
inline __m512 _mm512_add_ps(__m512 a, __m512 b) { return {a.low + b.low, a.high + b.high}; }
inline __m512d _mm512_add_pd(__m512d a, __m512d b) { return {a.low + b.low, a.high + b.high}; }
inline __m512 _mm512_mask_add_ps(__m512 other, __mmask16 m, __m512 a, __m512 b) {
    return _mm512_mask_blend_ps(m, other, _mm512_add_ps(a, b));
}
inline __m512d _mm512_mask_add_pd(__m512d other, __mmask8 m, __m512d a, __m512d b) {
    return _mm512_mask_blend_pd(m, other, _mm512_add_pd(a, b));
}
inline __m512 _mm512_sub_ps(__m512 a, __m512 b) { return {a.low - b.low, a.high - b.high}; }
inline __m512d _mm512_sub_pd(__m512d a, __m512d b) { return {a.low - b.low, a.high - b.high}; }
inline __m512 _mm512_mul_ps(__m512 a, __m512 b) { return {a.low * b.low, a.high * b.high}; }
inline __m512d _mm512_mul_pd(__m512d a, __m512d b) { return {a.low * b.low, a.high * b.high}; }
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    return {__builtin_ia32_vfmaddps256(a.low, b.low, c.low), __builtin_ia32_vfmaddps256(a.high, b.high, c.high)};
}
inline __m512d _mm512_fmadd_pd(__m512d a, __m512d b, __m512d c) {
    return {__builtin_ia32_vfmaddpd256(a.low, b.low, c.low), __builtin_ia32_vfmaddpd256(a.high, b.high, c.high)};
}

// The second operand where the first is not greater: of two zeros, and where one is a NaN.
// Halves added until one lane is left.
template <class T>
inline T reduce_add(const void* a, int count) {
    T sums[16];
    for (int i = 0; i < count; ++i) sums[i] = emulation::get<T>(a, i);
    for (int half = count / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    return sums[0];
}
inline float _mm512_reduce_add_ps(__m512 a) { return reduce_add<float>(&a, 16); }
inline double _mm512_reduce_add_pd(__m512d a) { return reduce_add<double>(&a, 8); }
inline __m512 _mm512_max_ps(__m512 a, __m512 b) {
    return {a.low > b.low ? a.low : b.low, a.high > b.high ? a.high : b.high};
}
inline __m512d _mm512_max_pd(__m512d a, __m512d b) {
    return {a.low > b.low ? a.low : b.low, a.high > b.high ? a.high : b.high};
}

// Whole numbers, which wrap around.
inline __m512i _mm512_set1_epi64(int64_t x) {
    return emulation::lanes<__m512i>(8, [&](int) { return x; });
}
inline __m512i _mm512_add_epi32(__m512i a, __m512i b) {
    return emulation::lanes<__m512i>(
        16, [&](int i) { return emulation::get<uint32_t>(&a, i) + emulation::get<uint32_t>(&b, i); });
}
inline __m256i _mm256_add_epi32(__m256i a, __m256i b) {
    return emulation::lanes<__m256i>(
        8, [&](int i) { return emulation::get<uint32_t>(&a, i) + emulation::get<uint32_t>(&b, i); });
}
inline __m512i _mm512_add_epi64(__m512i a, __m512i b) {
    return emulation::lanes<__m512i>(
        8, [&](int i) { return emulation::get<uint64_t>(&a, i) + emulation::get<uint64_t>(&b, i); });
}
inline __m512i _mm512_sub_epi64(__m512i a, __m512i b) {
    return emulation::lanes<__m512i>(
        8, [&](int i) { return emulation::get<uint64_t>(&a, i) - emulation::get<uint64_t>(&b, i); });
}

// Halves of a register.
inline __m256i _mm512_castsi512_si256(__m512i a) { return emulation::get<__m256i>(&a, 0); }
inline __m256i _mm512_extracti64x4_epi64(__m512i a, int half) { return emulation::get<__m256i>(&a, half); }
inline __m512 _mm512_castps256_ps512(emulation::Float8 a) { return {a, a}; }
inline __m512 _mm512_insertf32x8(__m512 a, emulation::Float8 b, int half) {
    return half ? __m512{a.low, b} : __m512{b, a.high};
}

// Lanes change places.
inline __m512 _mm512_permutex2var_ps(__m512 a, __m512i index, __m512 b) {
    return emulation::permute_two<float, int32_t>(a, index, b, 16);
}
inline __m512d _mm512_permutex2var_pd(__m512d a, __m512i index, __m512d b) {
    return emulation::permute_two<double, int64_t>(a, index, b, 8);
}
inline __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int control) {
    return emulation::shuffle_quarters(a, b, control);
}
inline __m512d _mm512_shuffle_f64x2(__m512d a, __m512d b, int control) {
    return emulation::shuffle_quarters(a, b, control);
}

// Quarters and halves of a register. The casts up leave the rest undefined; here it is zero.
inline __m128 _mm_loadu_ps(const float* p) { return emulation::get<__m128>(p, 0); }
inline __m256d _mm256_loadu_pd(const double* p) { return emulation::get<__m256d>(p, 0); }
inline void _mm_storeu_ps(float* p, __m128 a) { emulation::put(p, 0, a); }
inline void _mm256_storeu_pd(double* p, __m256d a) { emulation::put(p, 0, a); }
inline __m512 _mm512_insertf32x4(__m512 a, __m128 b, int quarter) {
    emulation::put(&a, quarter, b);
    return a;
}
inline __m512d _mm512_insertf64x4(__m512d a, __m256d b, int half) {
    emulation::put(&a, half, b);
    return a;
}
inline __m128 _mm512_extractf32x4_ps(__m512 a, int quarter) { return emulation::get<__m128>(&a, quarter); }
inline __m256d _mm512_extractf64x4_pd(__m512d a, int half) { return emulation::get<__m256d>(&a, half); }
inline __m512 _mm512_castps128_ps512(__m128 a) { return _mm512_insertf32x4(_mm512_setzero_ps(), a, 0); }
inline __m512d _mm512_castpd256_pd512(__m256d a) { return _mm512_insertf64x4(_mm512_setzero_pd(), a, 0); }
inline __m128 _mm512_castps512_ps128(__m512 a) { return emulation::get<__m128>(&a, 0); }
inline __m256d _mm512_castpd512_pd256(__m512d a) { return emulation::get<__m256d>(&a, 0); }

// Conversions: cvtt truncates, epi32_epi8 keeps the low byte, epu8_epi32 fills up with zeros.
inline __m512i _mm512_cvttps_epi32(__m512 a) {
    return emulation::lanes<__m512i>(16, [&](int i) { return emulation::truncate(emulation::get<float>(&a, i)); });
}
inline __m256i _mm512_cvttpd_epi32(__m512d a) {
    return emulation::lanes<__m256i>(8, [&](int i) { return emulation::truncate(emulation::get<double>(&a, i)); });
}
inline __m128i _mm512_cvtepi32_epi8(__m512i a) {
    return emulation::lanes<__m128i>(16, [&](int i) { return static_cast<uint8_t>(emulation::get<int32_t>(&a, i)); });
}
inline __m128i _mm256_cvtepi32_epi8(__m256i a) {
    return emulation::lanes<__m128i>(8, [&](int i) { return static_cast<uint8_t>(emulation::get<int32_t>(&a, i)); });
}
inline __m512i _mm512_cvtepu8_epi32(__m128i a) {
    return emulation::lanes<__m512i>(16, [&](int i) { return int32_t{a.byte[i]}; });
}
inline __m256i _mm256_cvtepu8_epi32(__m128i a) {
    return emulation::lanes<__m256i>(8, [&](int i) { return int32_t{a.byte[i]}; });
}
inline __m512i _mm512_cvtepi32_epi64(__m256i a) {
    return emulation::lanes<__m512i>(8, [&](int i) { return int64_t{emulation::get<int32_t>(&a, i)}; });
}
inline __m512d _mm512_cvtepi64_pd(__m512i a) {
    return emulation::lanes<__m512d>(8, [&](int i) { return static_cast<double>(emulation::get<int64_t>(&a, i)); });
}
inline emulation::Float8 _mm512_cvtpd_ps(__m512d a) {
    return emulation::lanes<emulation::Float8>(
        8, [&](int i) { return static_cast<float>(emulation::get<double>(&a, i)); });
}
inline __m512 _mm512_cvtepi32_ps(__m512i a) {
    return emulation::lanes<__m512>(16, [&](int i) { return static_cast<float>(emulation::get<int32_t>(&a, i)); });
}
inline __m512d _mm512_cvtepi32_pd(__m256i a) {
    return emulation::lanes<__m512d>(8, [&](int i) { return static_cast<double>(emulation::get<int32_t>(&a, i)); });
}

}  // namespace
