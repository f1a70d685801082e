// The vector primitives over AVX2 and FMA: 8 floats or 4 doubles. vec_portable.h says what each function means.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <type_traits>

namespace {

struct VecF {
    __m256 v;
};
struct VecD {
    __m256d v;
};
struct MaskF {
    __m256 m;
};
struct MaskD {
    __m256d m;
};

template <class T>
struct VecOf {
    using type = std::conditional_t<sizeof(T) == 4, VecF, VecD>;
    using mask = std::conditional_t<sizeof(T) == 4, MaskF, MaskD>;
    static constexpr int lanes = 32 / sizeof(T);
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
using Mask = typename VecOf<T>::mask;

inline __m256i first_lanes_32(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256i first_lanes_64(int n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}

inline VecF broadcast(float x) { return {_mm256_set1_ps(x)}; }
inline VecD broadcast(double x) { return {_mm256_set1_pd(x)}; }

inline VecF load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline VecD load(const double* p) { return {_mm256_loadu_pd(p)}; }
inline VecF load(const float* p, int n) { return {_mm256_maskload_ps(p, first_lanes_32(n))}; }
inline VecD load(const double* p, int n) { return {_mm256_maskload_pd(p, first_lanes_64(n))}; }
template <class T>
Mask<T> lanes_between(int begin, int end);
template <>
inline MaskF lanes_between<float>(int begin, int end) {
    return {_mm256_castsi256_ps(_mm256_andnot_si256(first_lanes_32(begin), first_lanes_32(end)))};
}
template <>
inline MaskD lanes_between<double>(int begin, int end) {
    return {_mm256_castsi256_pd(_mm256_andnot_si256(first_lanes_64(begin), first_lanes_64(end)))};
}
inline VecF load(const float* p, MaskF mask) { return {_mm256_maskload_ps(p, _mm256_castps_si256(mask.m))}; }
inline VecD load(const double* p, MaskD mask) { return {_mm256_maskload_pd(p, _mm256_castpd_si256(mask.m))}; }
inline void store(float* p, VecF a) { _mm256_storeu_ps(p, a.v); }
inline void store(double* p, VecD a) { _mm256_storeu_pd(p, a.v); }
// Not maskstore: AMD processors take about 20 cycles for one, these pieces take one store each.
inline void store(float* p, VecF a, int n) {
    if (n >= 8) return store(p, a);
    __m128 low = _mm256_castps256_ps128(a.v);
    if (n & 4) {
        _mm_storeu_ps(p, low);
        low = _mm256_extractf128_ps(a.v, 1);
        p += 4;
    }
    if (n & 2) {
        _mm_storel_pi(reinterpret_cast<__m64*>(p), low);
        low = _mm_movehl_ps(low, low);
        p += 2;
    }
    if (n & 1) _mm_store_ss(p, low);
}
inline void store(double* p, VecD a, int n) {
    if (n >= 4) return store(p, a);
    __m128d low = _mm256_castpd256_pd128(a.v);
    if (n & 2) {
        _mm_storeu_pd(p, low);
        low = _mm256_extractf128_pd(a.v, 1);
        p += 2;
    }
    if (n & 1) _mm_store_sd(p, low);
}
inline void stream(float* p, VecF a) { _mm256_stream_ps(p, a.v); }
inline void stream(double* p, VecD a) { _mm256_stream_pd(p, a.v); }
inline void stream_fence() { _mm_sfence(); }

inline VecF in_register(VecF a) {
    asm("" : "+x"(a.v));
    return a;
}
inline VecD in_register(VecD a) {
    asm("" : "+x"(a.v));
    return a;
}

inline VecF add(VecF a, VecF b) { return {_mm256_add_ps(a.v, b.v)}; }
inline VecD add(VecD a, VecD b) { return {_mm256_add_pd(a.v, b.v)}; }
inline VecF sub(VecF a, VecF b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline VecD sub(VecD a, VecD b) { return {_mm256_sub_pd(a.v, b.v)}; }
inline VecF mul(VecF a, VecF b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline VecD mul(VecD a, VecD b) { return {_mm256_mul_pd(a.v, b.v)}; }
inline VecF fma(VecF a, VecF b, VecF c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline VecD fma(VecD a, VecD b, VecD c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
inline VecF relu(VecF a) { return {_mm256_andnot_ps(_mm256_cmp_ps(a.v, _mm256_setzero_ps(), _CMP_LE_OQ), a.v)}; }
inline VecD relu(VecD a) { return {_mm256_andnot_pd(_mm256_cmp_pd(a.v, _mm256_setzero_pd(), _CMP_LE_OQ), a.v)}; }

inline VecF max(VecF a, VecF b) { return {_mm256_max_ps(a.v, b.v)}; }
inline VecD max(VecD a, VecD b) { return {_mm256_max_pd(a.v, b.v)}; }

inline MaskF greater(VecF a, VecF b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)}; }
inline MaskD greater(VecD a, VecD b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_GT_OQ)}; }
inline MaskF greater_or_nan(VecF a, VecF b) {
    return {_mm256_or_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ), _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q))};
}
inline MaskD greater_or_nan(VecD a, VecD b) {
    return {_mm256_or_pd(_mm256_cmp_pd(a.v, b.v, _CMP_GT_OQ), _mm256_cmp_pd(a.v, a.v, _CMP_UNORD_Q))};
}
inline MaskF equal(VecF a, VecF b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
inline MaskD equal(VecD a, VecD b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ)}; }
inline uint32_t lane_bits(MaskF m) { return static_cast<uint32_t>(_mm256_movemask_ps(m.m)); }
inline uint32_t lane_bits(MaskD m) { return static_cast<uint32_t>(_mm256_movemask_pd(m.m)); }
template <class T>
Mask<T> lanes_of_bits(uint32_t bits);
template <>
inline MaskF lanes_of_bits<float>(uint32_t bits) {
    const __m256i own = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i all = _mm256_set1_epi32(static_cast<int>(bits));
    return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, own), own))};
}
template <>
inline MaskD lanes_of_bits<double>(uint32_t bits) {
    const __m256i own = _mm256_setr_epi64x(1, 2, 4, 8), all = _mm256_set1_epi64x(bits);
    return {_mm256_castsi256_pd(_mm256_cmpeq_epi64(_mm256_and_si256(all, own), own))};
}
inline bool any_nan(VecF a) { return _mm256_movemask_ps(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)) != 0; }
inline bool any_nan(VecD a) { return _mm256_movemask_pd(_mm256_cmp_pd(a.v, a.v, _CMP_UNORD_Q)) != 0; }
inline VecF add_where(MaskF m, VecF sum, VecF a) { return {_mm256_add_ps(sum.v, _mm256_and_ps(m.m, a.v))}; }
inline VecD add_where(MaskD m, VecD sum, VecD a) { return {_mm256_add_pd(sum.v, _mm256_and_pd(m.m, a.v))}; }
inline VecF select(MaskF m, VecF a, VecF b) { return {_mm256_blendv_ps(b.v, a.v, m.m)}; }
inline VecD select(MaskD m, VecD a, VecD b) { return {_mm256_blendv_pd(b.v, a.v, m.m)}; }

inline float sum_lanes(VecF a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline double sum_lanes(VecD a) {
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

// Within halves: pairs of lanes end up in the order 0 2 1 3.
inline VecF even_lanes_anyhow(VecF a, VecF b) { return {_mm256_shuffle_ps(a.v, b.v, _MM_SHUFFLE(2, 0, 2, 0))}; }
inline VecF odd_lanes_anyhow(VecF a, VecF b) { return {_mm256_shuffle_ps(a.v, b.v, _MM_SHUFFLE(3, 1, 3, 1))}; }
inline VecD even_lanes_anyhow(VecD a, VecD b) { return {_mm256_unpacklo_pd(a.v, b.v)}; }
inline VecD odd_lanes_anyhow(VecD a, VecD b) { return {_mm256_unpackhi_pd(a.v, b.v)}; }
inline VecD in_order(VecD a) { return {_mm256_permute4x64_pd(a.v, _MM_SHUFFLE(3, 1, 2, 0))}; }
inline VecF in_order(VecF a) { return {_mm256_castpd_ps(in_order(VecD{_mm256_castps_pd(a.v)}).v)}; }
inline VecF even_lanes(VecF a, VecF b) { return in_order(even_lanes_anyhow(a, b)); }
inline VecF odd_lanes(VecF a, VecF b) { return in_order(odd_lanes_anyhow(a, b)); }
inline VecD even_lanes(VecD a, VecD b) { return in_order(even_lanes_anyhow(a, b)); }
inline VecD odd_lanes(VecD a, VecD b) { return in_order(odd_lanes_anyhow(a, b)); }

inline VecF interleave_low(VecF a, VecF b) {
    return {_mm256_permute2f128_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v), 0x20)};
}
inline VecF interleave_high(VecF a, VecF b) {
    return {_mm256_permute2f128_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v), 0x31)};
}
inline VecD interleave_low(VecD a, VecD b) {
    return {_mm256_permute2f128_pd(_mm256_unpacklo_pd(a.v, b.v), _mm256_unpackhi_pd(a.v, b.v), 0x20)};
}
inline VecD interleave_high(VecD a, VecD b) {
    return {_mm256_permute2f128_pd(_mm256_unpacklo_pd(a.v, b.v), _mm256_unpackhi_pd(a.v, b.v), 0x31)};
}

// 4 x 4 within each half.
inline void transpose_within_halves(VecF* rows) {
    const __m256 a0 = _mm256_unpacklo_ps(rows[0].v, rows[1].v), a1 = _mm256_unpackhi_ps(rows[0].v, rows[1].v);
    const __m256 a2 = _mm256_unpacklo_ps(rows[2].v, rows[3].v), a3 = _mm256_unpackhi_ps(rows[2].v, rows[3].v);
    rows[0].v = _mm256_shuffle_ps(a0, a2, 0x44);
    rows[1].v = _mm256_shuffle_ps(a0, a2, 0xee);
    rows[2].v = _mm256_shuffle_ps(a1, a3, 0x44);
    rows[3].v = _mm256_shuffle_ps(a1, a3, 0xee);
}
inline void transpose(VecF (&rows)[8]) {
    transpose_within_halves(rows);
    transpose_within_halves(rows + 4);
    for (int i = 0; i < 4; ++i) {
        const __m256 low = rows[i].v, high = rows[i + 4].v;
        rows[i].v = _mm256_permute2f128_ps(low, high, 0x20);
        rows[i + 4].v = _mm256_permute2f128_ps(low, high, 0x31);
    }
}
inline void transpose(VecD (&rows)[4]) {
    const __m256d a0 = _mm256_unpacklo_pd(rows[0].v, rows[1].v), a1 = _mm256_unpackhi_pd(rows[0].v, rows[1].v);
    const __m256d a2 = _mm256_unpacklo_pd(rows[2].v, rows[3].v), a3 = _mm256_unpackhi_pd(rows[2].v, rows[3].v);
    rows[0].v = _mm256_permute2f128_pd(a0, a2, 0x20);
    rows[1].v = _mm256_permute2f128_pd(a1, a3, 0x20);
    rows[2].v = _mm256_permute2f128_pd(a0, a2, 0x31);
    rows[3].v = _mm256_permute2f128_pd(a1, a3, 0x31);
}

// Places 4 apart share a register, one in each half.
inline void load_quads(const float* const* places, int64_t offset, VecF (&columns)[4]) {
    for (int i = 0; i < 4; ++i)
        columns[i].v = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(places[i] + offset)),
                                            _mm_loadu_ps(places[i + 4] + offset), 1);
    transpose_within_halves(columns);
}
inline void store_quads(float* const* places, int64_t offset, const VecF (&columns)[4]) {
    VecF rows[4] = {columns[0], columns[1], columns[2], columns[3]};
    transpose_within_halves(rows);
    for (int i = 0; i < 4; ++i) {
        _mm_storeu_ps(places[i] + offset, _mm256_castps256_ps128(rows[i].v));
        _mm_storeu_ps(places[i + 4] + offset, _mm256_extractf128_ps(rows[i].v, 1));
    }
}
inline void load_quads(const double* const* places, int64_t offset, VecD (&columns)[4]) {
    for (int i = 0; i < 4; ++i) columns[i] = load(places[i] + offset);
    transpose(columns);
}
inline void store_quads(double* const* places, int64_t offset, const VecD (&columns)[4]) {
    VecD rows[4] = {columns[0], columns[1], columns[2], columns[3]};
    transpose(rows);
    for (int i = 0; i < 4; ++i) store(places[i] + offset, rows[i]);
}

// Halves of rows are loaded to where they belong, which spares a third of the shuffles.
template <class Row>
inline void load_transposed(VecF (&block)[8], const Row& row) {
    for (int half = 0; half < 8; half += 4) {
        for (int r = 0; r < 4; ++r) {
            const __m256 low = _mm256_castps128_ps256(_mm_loadu_ps(row(r) + half));
            block[half + r].v = _mm256_insertf128_ps(low, _mm_loadu_ps(row(r + 4) + half), 1);
        }
        transpose_within_halves(block + half);
    }
}
template <class Row>
inline void load_transposed(VecD (&block)[4], const Row& row) {
    for (int half = 0; half < 4; half += 2) {
        const auto pair = [&](int r) {
            const __m256d low = _mm256_castpd128_pd256(_mm_loadu_pd(row(r) + half));
            return _mm256_insertf128_pd(low, _mm_loadu_pd(row(r + 2) + half), 1);
        };
        const __m256d r0 = pair(0), r1 = pair(1);
        block[half].v = _mm256_unpacklo_pd(r0, r1);
        block[half + 1].v = _mm256_unpackhi_pd(r0, r1);
    }
}

inline int64_t narrow_to_bytes(VecF a) {
    const __m256i wide = _mm256_cvttps_epi32(a.v);
    const __m128i half = _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    return _mm_cvtsi128_si64(_mm_packus_epi16(half, half));
}
inline int64_t narrow_to_bytes(VecD a) {
    const __m128i wide = _mm256_cvttpd_epi32(a.v);
    const __m128i half = _mm_packus_epi32(wide, wide);
    return _mm_cvtsi128_si64(_mm_packus_epi16(half, half));
}
inline void store_bytes(uint8_t* p, int64_t bytes, int n) {
    if (n >= 8) return static_cast<void>(__builtin_memcpy(p, &bytes, 8));
    if (n & 4) {
        __builtin_memcpy(p, &bytes, 4);
        bytes >>= 32;
        p += 4;
    }
    if (n & 2) {
        __builtin_memcpy(p, &bytes, 2);
        bytes >>= 16;
        p += 2;
    }
    if (n & 1) *p = static_cast<uint8_t>(bytes);
}
inline void store_codes(uint8_t* p, VecF a) { store_bytes(p, narrow_to_bytes(a), 8); }
inline void store_codes(uint8_t* p, VecD a) { store_bytes(p, narrow_to_bytes(a), 4); }
inline void store_codes(uint8_t* p, VecF a, int n) { store_bytes(p, narrow_to_bytes(a), n); }
inline void store_codes(uint8_t* p, VecD a, int n) { store_bytes(p, narrow_to_bytes(a), n); }

template <class T>
Vec<T> load_codes(const uint8_t* p);
template <>
inline VecF load_codes<float>(const uint8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
}
template <>
inline VecD load_codes<double>(const uint8_t* p) {
    int32_t codes;
    __builtin_memcpy(&codes, p, sizeof codes);
    return {_mm256_cvtepi32_pd(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(codes)))};
}
template <class T>
Vec<T> load_codes(const uint8_t* p, int n) {
    uint8_t all[8] = {};
    for (int i = 0; i < n; ++i) all[i] = p[i];
    return load_codes<T>(all);
}

inline void store_four(int64_t* p, __m128i offsets, __m256i origin) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_add_epi64(_mm256_cvtepi32_epi64(offsets), origin));
}
inline void store_indices(int64_t* p, VecF a, const int32_t* ramp, int64_t origin) {
    const __m256i steps = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ramp)), from = _mm256_set1_epi64x(origin);
    const __m256i offsets = _mm256_add_epi32(_mm256_cvttps_epi32(a.v), steps);
    store_four(p, _mm256_castsi256_si128(offsets), from);
    store_four(p + 4, _mm256_extracti128_si256(offsets, 1), from);
}
inline void store_indices(int64_t* p, VecD a, const int32_t* ramp, int64_t origin) {
    const __m128i steps = _mm_loadu_si128(reinterpret_cast<const __m128i*>(ramp));
    store_four(p, _mm_add_epi32(_mm256_cvttpd_epi32(a.v), steps), _mm256_set1_epi64x(origin));
}
template <class V>
void store_indices(int64_t* p, V a, const int32_t* ramp, int64_t origin, int n) {
    int64_t all[8];
    store_indices(all, a, ramp, origin);
    for (int i = 0; i < n; ++i) p[i] = all[i];
}

// Added to the bits of 1.5 * 2^52, a number of less than 51 bits is the whole part of a double; another one ends up as
// a double far away.
inline __m256d load_four(const int64_t* p, __m128i ramp, int64_t origin) {
    const __m256d magic = _mm256_set1_pd(6755399441055744.0);
    const __m256i from = _mm256_sub_epi64(_mm256_castpd_si256(magic), _mm256_set1_epi64x(origin));
    const __m256i at = _mm256_add_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), from);
    return _mm256_sub_pd(_mm256_castsi256_pd(_mm256_sub_epi64(at, _mm256_cvtepi32_epi64(ramp))), magic);
}
template <class T>
Vec<T> load_indices(const int64_t* p, const int32_t* ramp, int64_t origin);
template <>
inline VecF load_indices<float>(const int64_t* p, const int32_t* ramp, int64_t origin) {
    const __m256i steps = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ramp));
    const __m128 low = _mm256_cvtpd_ps(load_four(p, _mm256_castsi256_si128(steps), origin));
    const __m128 high = _mm256_cvtpd_ps(load_four(p + 4, _mm256_extracti128_si256(steps, 1), origin));
    return {_mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1)};
}
template <>
inline VecD load_indices<double>(const int64_t* p, const int32_t* ramp, int64_t origin) {
    return {load_four(p, _mm_loadu_si128(reinterpret_cast<const __m128i*>(ramp)), origin)};
}
template <class T>
Vec<T> load_indices(const int64_t* p, const int32_t* ramp, int64_t origin, int n) {
    int64_t all[8] = {};
    for (int i = 0; i < n; ++i) all[i] = p[i];
    return load_indices<T>(all, ramp, origin);
}

struct Code {
    __m128i v;
};
inline Code broadcast_code(uint8_t code) { return {_mm_set1_epi8(static_cast<char>(code))}; }
template <class T>
decltype(equal(Vec<T>{}, Vec<T>{})) codes_equal(const uint8_t* p, Code code);
template <>
inline MaskF codes_equal<float>(const uint8_t* p, Code code) {
    const __m128i same = _mm_cmpeq_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), code.v);
    return {_mm256_castsi256_ps(_mm256_cvtepi8_epi32(same))};
}
template <>
inline MaskD codes_equal<double>(const uint8_t* p, Code code) {
    int32_t codes;
    __builtin_memcpy(&codes, p, sizeof codes);
    const __m128i same = _mm_cmpeq_epi8(_mm_cvtsi32_si128(codes), code.v);
    return {_mm256_castsi256_pd(_mm256_cvtepi8_epi64(same))};
}

inline void prefetch(const void* p) { __builtin_prefetch(p); }
inline void prefetch_to_write(void* p) { __builtin_prefetch(p, 1); }

}  // namespace
