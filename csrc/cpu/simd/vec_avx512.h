// The vector primitives over AVX-512 (F, BW, DQ, VL): 16 floats or 8 doubles. vec_portable.h says what each function
// means.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <type_traits>

namespace {

struct VecF {
    __m512 v;
};
struct VecD {
    __m512d v;
};
struct MaskF {
    __mmask16 m;
};
struct MaskD {
    __mmask8 m;
};

template <class T>
struct VecOf {
    using type = std::conditional_t<sizeof(T) == 4, VecF, VecD>;
    using mask = std::conditional_t<sizeof(T) == 4, MaskF, MaskD>;
    static constexpr int lanes = 64 / sizeof(T);
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
using Mask = typename VecOf<T>::mask;

inline __mmask16 first_lanes_16(int n) { return static_cast<__mmask16>(n >= 16 ? 0xffffu : (1u << n) - 1u); }
inline __mmask8 first_lanes_8(int n) { return static_cast<__mmask8>(n >= 8 ? 0xffu : (1u << n) - 1u); }

inline VecF broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline VecD broadcast(double x) { return {_mm512_set1_pd(x)}; }

inline VecF load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline VecD load(const double* p) { return {_mm512_loadu_pd(p)}; }
inline VecF load(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes_16(n), p)}; }
inline VecD load(const double* p, int n) { return {_mm512_maskz_loadu_pd(first_lanes_8(n), p)}; }
template <class T>
Mask<T> lanes_between(int begin, int end);
template <>
inline MaskF lanes_between<float>(int begin, int end) {
    return {static_cast<__mmask16>(first_lanes_16(end) & ~first_lanes_16(begin))};
}
template <>
inline MaskD lanes_between<double>(int begin, int end) {
    return {static_cast<__mmask8>(first_lanes_8(end) & ~first_lanes_8(begin))};
}
inline VecF load(const float* p, MaskF mask) { return {_mm512_maskz_loadu_ps(mask.m, p)}; }
inline VecD load(const double* p, MaskD mask) { return {_mm512_maskz_loadu_pd(mask.m, p)}; }
inline void store(float* p, VecF a) { _mm512_storeu_ps(p, a.v); }
inline void store(double* p, VecD a) { _mm512_storeu_pd(p, a.v); }
inline void store(float* p, VecF a, int n) { _mm512_mask_storeu_ps(p, first_lanes_16(n), a.v); }
inline void store(double* p, VecD a, int n) { _mm512_mask_storeu_pd(p, first_lanes_8(n), a.v); }
inline void stream(float* p, VecF a) { _mm512_stream_ps(p, a.v); }
inline void stream(double* p, VecD a) { _mm512_stream_pd(p, a.v); }
inline void stream_fence() { _mm_sfence(); }

inline VecF in_register(VecF a) {
#ifdef __AVX512F__  // not where the tests emulate the intrinsics
    asm("" : "+v"(a.v));
#endif
    return a;
}
inline VecD in_register(VecD a) {
#ifdef __AVX512F__
    asm("" : "+v"(a.v));
#endif
    return a;
}

inline VecF add(VecF a, VecF b) { return {_mm512_add_ps(a.v, b.v)}; }
inline VecD add(VecD a, VecD b) { return {_mm512_add_pd(a.v, b.v)}; }
inline VecF sub(VecF a, VecF b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline VecD sub(VecD a, VecD b) { return {_mm512_sub_pd(a.v, b.v)}; }
inline VecF mul(VecF a, VecF b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline VecD mul(VecD a, VecD b) { return {_mm512_mul_pd(a.v, b.v)}; }
inline VecF fma(VecF a, VecF b, VecF c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline VecD fma(VecD a, VecD b, VecD c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
inline VecF relu(VecF a) {
    const __mmask16 kept = _mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_NLE_UQ);
    return {_mm512_mask_blend_ps(kept, _mm512_setzero_ps(), a.v)};
}
inline VecD relu(VecD a) {
    const __mmask8 kept = _mm512_cmp_pd_mask(a.v, _mm512_setzero_pd(), _CMP_NLE_UQ);
    return {_mm512_mask_blend_pd(kept, _mm512_setzero_pd(), a.v)};
}

inline VecF max(VecF a, VecF b) { return {_mm512_max_ps(a.v, b.v)}; }
inline VecD max(VecD a, VecD b) { return {_mm512_max_pd(a.v, b.v)}; }

inline MaskF greater(VecF a, VecF b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
inline MaskD greater(VecD a, VecD b) { return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_GT_OQ)}; }
inline MaskF greater_or_nan(VecF a, VecF b) {
    return {
        static_cast<__mmask16>(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ) | _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q))};
}
inline MaskD greater_or_nan(VecD a, VecD b) {
    return {
        static_cast<__mmask8>(_mm512_cmp_pd_mask(a.v, b.v, _CMP_GT_OQ) | _mm512_cmp_pd_mask(a.v, a.v, _CMP_UNORD_Q))};
}
inline MaskF equal(VecF a, VecF b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
inline MaskD equal(VecD a, VecD b) { return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ)}; }
inline uint32_t lane_bits(MaskF m) { return m.m; }
inline uint32_t lane_bits(MaskD m) { return m.m; }
template <class T>
Mask<T> lanes_of_bits(uint32_t bits);
template <>
inline MaskF lanes_of_bits<float>(uint32_t bits) {
    return {static_cast<__mmask16>(bits)};
}
template <>
inline MaskD lanes_of_bits<double>(uint32_t bits) {
    return {static_cast<__mmask8>(bits)};
}
inline bool any_nan(VecF a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q) != 0; }
inline bool any_nan(VecD a) { return _mm512_cmp_pd_mask(a.v, a.v, _CMP_UNORD_Q) != 0; }
inline VecF add_where(MaskF m, VecF sum, VecF a) { return {_mm512_mask_add_ps(sum.v, m.m, sum.v, a.v)}; }
inline VecD add_where(MaskD m, VecD sum, VecD a) { return {_mm512_mask_add_pd(sum.v, m.m, sum.v, a.v)}; }
inline VecF select(MaskF m, VecF a, VecF b) { return {_mm512_mask_blend_ps(m.m, b.v, a.v)}; }
inline VecD select(MaskD m, VecD a, VecD b) { return {_mm512_mask_blend_pd(m.m, b.v, a.v)}; }

inline float sum_lanes(VecF a) { return _mm512_reduce_add_ps(a.v); }
inline double sum_lanes(VecD a) { return _mm512_reduce_add_pd(a.v); }

inline VecF even_lanes(VecF a, VecF b) {
    const __m512i places = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return {_mm512_permutex2var_ps(a.v, places, b.v)};
}
inline VecF odd_lanes(VecF a, VecF b) {
    const __m512i places = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return {_mm512_permutex2var_ps(a.v, places, b.v)};
}
inline VecD even_lanes(VecD a, VecD b) {
    return {_mm512_permutex2var_pd(a.v, _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), b.v)};
}
inline VecD odd_lanes(VecD a, VecD b) {
    return {_mm512_permutex2var_pd(a.v, _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15), b.v)};
}
// One shuffle each as they are.
inline VecF even_lanes_anyhow(VecF a, VecF b) { return even_lanes(a, b); }
inline VecF odd_lanes_anyhow(VecF a, VecF b) { return odd_lanes(a, b); }
inline VecD even_lanes_anyhow(VecD a, VecD b) { return even_lanes(a, b); }
inline VecD odd_lanes_anyhow(VecD a, VecD b) { return odd_lanes(a, b); }
inline VecF in_order(VecF a) { return a; }
inline VecD in_order(VecD a) { return a; }

inline VecF interleave_low(VecF a, VecF b) {
    const __m512i places = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return {_mm512_permutex2var_ps(a.v, places, b.v)};
}
inline VecF interleave_high(VecF a, VecF b) {
    const __m512i places = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return {_mm512_permutex2var_ps(a.v, places, b.v)};
}
inline VecD interleave_low(VecD a, VecD b) {
    return {_mm512_permutex2var_pd(a.v, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), b.v)};
}
inline VecD interleave_high(VecD a, VecD b) {
    return {_mm512_permutex2var_pd(a.v, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15), b.v)};
}

// Butterflies: after the step of width w, bit w of the row number and of the lane number have changed places.
template <class V, int count, class Low, class High>
inline void exchange(V (&rows)[count], int width, Low low, High high) {
    for (int i = 0; i < count; ++i) {
        if (i & width) continue;
        const V a = rows[i], b = rows[i + width];
        rows[i].v = low(a.v, b.v);
        rows[i + width].v = high(a.v, b.v);
    }
}
// The last two steps, which stay within quarters (halves for doubles).
template <int count>
inline void transpose_within_quads(VecF (&rows)[count]) {
    const __m512i low2 = _mm512_setr_epi32(0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    const __m512i high2 = _mm512_setr_epi32(2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    const __m512i low1 = _mm512_setr_epi32(0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
    const __m512i high1 = _mm512_setr_epi32(1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    exchange(
        rows, 2, [&](__m512 a, __m512 b) { return _mm512_permutex2var_ps(a, low2, b); },
        [&](__m512 a, __m512 b) { return _mm512_permutex2var_ps(a, high2, b); });
    exchange(
        rows, 1, [&](__m512 a, __m512 b) { return _mm512_permutex2var_ps(a, low1, b); },
        [&](__m512 a, __m512 b) { return _mm512_permutex2var_ps(a, high1, b); });
}
template <int count>
inline void transpose_within_quads(VecD (&rows)[count]) {
    const __m512i low2 = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13),
                  high2 = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    const __m512i low1 = _mm512_setr_epi64(0, 8, 2, 10, 4, 12, 6, 14),
                  high1 = _mm512_setr_epi64(1, 9, 3, 11, 5, 13, 7, 15);
    exchange(
        rows, 2, [&](__m512d a, __m512d b) { return _mm512_permutex2var_pd(a, low2, b); },
        [&](__m512d a, __m512d b) { return _mm512_permutex2var_pd(a, high2, b); });
    exchange(
        rows, 1, [&](__m512d a, __m512d b) { return _mm512_permutex2var_pd(a, low1, b); },
        [&](__m512d a, __m512d b) { return _mm512_permutex2var_pd(a, high1, b); });
}
inline void transpose(VecF (&rows)[16]) {
    const __m512i low4 = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
    const __m512i high4 = _mm512_setr_epi32(4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    exchange(
        rows, 8, [](__m512 a, __m512 b) { return _mm512_shuffle_f32x4(a, b, 0x44); },
        [](__m512 a, __m512 b) { return _mm512_shuffle_f32x4(a, b, 0xee); });
    exchange(
        rows, 4, [&](__m512 a, __m512 b) { return _mm512_permutex2var_ps(a, low4, b); },
        [&](__m512 a, __m512 b) { return _mm512_permutex2var_ps(a, high4, b); });
    transpose_within_quads(rows);
}
inline void transpose(VecD (&rows)[8]) {
    exchange(
        rows, 4, [](__m512d a, __m512d b) { return _mm512_shuffle_f64x2(a, b, 0x44); },
        [](__m512d a, __m512d b) { return _mm512_shuffle_f64x2(a, b, 0xee); });
    transpose_within_quads(rows);
}

// Places 4 apart share a register.
inline void load_quads(const float* const* places, int64_t offset, VecF (&columns)[4]) {
    for (int i = 0; i < 4; ++i) {
        __m512 row = _mm512_castps128_ps512(_mm_loadu_ps(places[i] + offset));
        row = _mm512_insertf32x4(row, _mm_loadu_ps(places[i + 4] + offset), 1);
        row = _mm512_insertf32x4(row, _mm_loadu_ps(places[i + 8] + offset), 2);
        columns[i].v = _mm512_insertf32x4(row, _mm_loadu_ps(places[i + 12] + offset), 3);
    }
    transpose_within_quads(columns);
}
inline void store_quads(float* const* places, int64_t offset, const VecF (&columns)[4]) {
    VecF rows[4] = {columns[0], columns[1], columns[2], columns[3]};
    transpose_within_quads(rows);
    for (int i = 0; i < 4; ++i) {
        _mm_storeu_ps(places[i] + offset, _mm512_castps512_ps128(rows[i].v));
        _mm_storeu_ps(places[i + 4] + offset, _mm512_extractf32x4_ps(rows[i].v, 1));
        _mm_storeu_ps(places[i + 8] + offset, _mm512_extractf32x4_ps(rows[i].v, 2));
        _mm_storeu_ps(places[i + 12] + offset, _mm512_extractf32x4_ps(rows[i].v, 3));
    }
}
inline void load_quads(const double* const* places, int64_t offset, VecD (&columns)[4]) {
    for (int i = 0; i < 4; ++i)
        columns[i].v = _mm512_insertf64x4(_mm512_castpd256_pd512(_mm256_loadu_pd(places[i] + offset)),
                                          _mm256_loadu_pd(places[i + 4] + offset), 1);
    transpose_within_quads(columns);
}
inline void store_quads(double* const* places, int64_t offset, const VecD (&columns)[4]) {
    VecD rows[4] = {columns[0], columns[1], columns[2], columns[3]};
    transpose_within_quads(rows);
    for (int i = 0; i < 4; ++i) {
        _mm256_storeu_pd(places[i] + offset, _mm512_castpd512_pd256(rows[i].v));
        _mm256_storeu_pd(places[i + 4] + offset, _mm512_extractf64x4_pd(rows[i].v, 1));
    }
}

template <class V, int count, class Row>
inline void load_transposed(V (&block)[count], const Row& row) {
    for (int r = 0; r < count; ++r) block[r] = load(row(r));
    transpose(block);
}

inline void store_codes(uint8_t* p, VecF a, int n) {
    _mm_mask_storeu_epi8(p, first_lanes_16(n), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(a.v)));
}
inline void store_codes(uint8_t* p, VecD a, int n) {
    _mm_mask_storeu_epi8(p, first_lanes_8(n), _mm256_cvtepi32_epi8(_mm512_cvttpd_epi32(a.v)));
}
inline void store_codes(uint8_t* p, VecF a) { store_codes(p, a, 16); }
inline void store_codes(uint8_t* p, VecD a) { store_codes(p, a, 8); }

template <class T>
Vec<T> load_codes(const uint8_t* p, int n = VecOf<T>::lanes);
template <>
inline VecF load_codes<float>(const uint8_t* p, int n) {
    const __m128i narrow = _mm_maskz_loadu_epi8(first_lanes_16(n), p);
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(narrow))};
}
template <>
inline VecD load_codes<double>(const uint8_t* p, int n) {
    const __mmask16 lanes = static_cast<__mmask16>(n >= 8 ? 0xffu : (1u << n) - 1u);
    return {_mm512_cvtepi32_pd(_mm256_cvtepu8_epi32(_mm_maskz_loadu_epi8(lanes, p)))};
}

inline void store_eight(int64_t* p, __mmask8 m, __m256i offsets, int64_t origin) {
    _mm512_mask_storeu_epi64(p, m, _mm512_add_epi64(_mm512_cvtepi32_epi64(offsets), _mm512_set1_epi64(origin)));
}
inline void store_indices(int64_t* p, VecF a, const int32_t* ramp, int64_t origin, int n) {
    const __m512i offsets = _mm512_add_epi32(_mm512_cvttps_epi32(a.v), _mm512_loadu_si512(ramp));
    store_eight(p, first_lanes_8(n), _mm512_castsi512_si256(offsets), origin);
    store_eight(p + 8, first_lanes_8(n > 8 ? n - 8 : 0), _mm512_extracti64x4_epi64(offsets, 1), origin);
}
inline void store_indices(int64_t* p, VecD a, const int32_t* ramp, int64_t origin, int n) {
    const __m256i steps = _mm512_castsi512_si256(_mm512_maskz_loadu_epi32(0xff, ramp));
    store_eight(p, first_lanes_8(n), _mm256_add_epi32(_mm512_cvttpd_epi32(a.v), steps), origin);
}
inline void store_indices(int64_t* p, VecF a, const int32_t* ramp, int64_t origin) {
    store_indices(p, a, ramp, origin, 16);
}
inline void store_indices(int64_t* p, VecD a, const int32_t* ramp, int64_t origin) {
    store_indices(p, a, ramp, origin, 8);
}

inline __m512d load_eight(const int64_t* p, __mmask8 m, __m256i ramp, int64_t origin) {
    const __m512i at = _mm512_sub_epi64(_mm512_maskz_loadu_epi64(m, p), _mm512_set1_epi64(origin));
    return _mm512_cvtepi64_pd(_mm512_sub_epi64(at, _mm512_cvtepi32_epi64(ramp)));
}
template <class T>
Vec<T> load_indices(const int64_t* p, const int32_t* ramp, int64_t origin, int n = VecOf<T>::lanes);
template <>
inline VecF load_indices<float>(const int64_t* p, const int32_t* ramp, int64_t origin, int n) {
    const __m512i steps = _mm512_loadu_si512(ramp);
    const __m512d low = load_eight(p, first_lanes_8(n), _mm512_castsi512_si256(steps), origin);
    const __m512d high =
        load_eight(p + 8, first_lanes_8(n > 8 ? n - 8 : 0), _mm512_extracti64x4_epi64(steps, 1), origin);
    return {_mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low)), _mm512_cvtpd_ps(high), 1)};
}
template <>
inline VecD load_indices<double>(const int64_t* p, const int32_t* ramp, int64_t origin, int n) {
    const __m256i steps = _mm512_castsi512_si256(_mm512_maskz_loadu_epi32(0xff, ramp));
    return {load_eight(p, first_lanes_8(n), steps, origin)};
}

struct Code {
    __m128i v;
};
inline Code broadcast_code(uint8_t code) { return {_mm_set1_epi8(static_cast<char>(code))}; }
template <class T>
decltype(equal(Vec<T>{}, Vec<T>{})) codes_equal(const uint8_t* p, Code code);
template <>
inline MaskF codes_equal<float>(const uint8_t* p, Code code) {
    return {_mm_cmpeq_epi8_mask(_mm_maskz_loadu_epi8(0xffff, p), code.v)};
}
template <>
inline MaskD codes_equal<double>(const uint8_t* p, Code code) {
    return {static_cast<__mmask8>(_mm_cmpeq_epi8_mask(_mm_maskz_loadu_epi8(0xff, p), code.v))};
}

inline void prefetch(const void* p) { __builtin_prefetch(p); }
inline void prefetch_to_write(void* p) { __builtin_prefetch(p, 1); }

}  // namespace
