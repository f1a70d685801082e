// The primitives of csrc/cuda/device.cuh over fibers of the CPU (tests/simt/block.h): found before the real one where
// tests/simt stands first in the search path. Same words, same order, same rules.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <tuple>

#include "block.h"
#include "cuda/stream.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

using dim3 = convx::simt::Index3;
#define threadIdx (::convx::simt::Block::current().thread_index())
#define blockIdx (::convx::simt::Block::current().block_index())
#define blockDim (::convx::simt::Block::current().block_size())
#define gridDim (::convx::simt::Block::current().grid_size())

namespace convx::cuda {

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

struct half {
    uint16_t bits;
};
struct bfloat16 {
    uint16_t bits;
};

inline float to_float(float value) { return value; }
inline float to_float(bfloat16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }
inline float to_float(half value) {
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
    const uint32_t exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
    if (exponent == 31) return float_of(sign | 0x7f800000 | mantissa << 13);
    if (exponent > 0) return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
    const float small = std::ldexp(static_cast<float>(mantissa), -24);
    return sign ? -small : small;
}

// Rounds to the nearest, ties to even.
template <class T>
T from_float(float value);
template <>
inline float from_float<float>(float value) {
    return value;
}
template <>
inline bfloat16 from_float<bfloat16>(float value) {
    const uint32_t bits = bits_of(value);
    if (std::isnan(value)) return {0x7fff};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline half from_float<half>(float value) {
    const uint16_t sign = static_cast<uint16_t>(bits_of(value) >> 16 & 0x8000);
    const float size = std::fabs(value);
    if (std::isnan(value)) return {0x7fff};
    if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
    if (size < 0x1p-14f)  // the sum's unit is half's smallest step
        return {static_cast<uint16_t>(sign | (bits_of(size + 0.5f) - bits_of(0.5f)))};
    const uint32_t bits = bits_of(size) - (112u << 23);
    return {static_cast<uint16_t>(sign | (bits + 0xfff + (bits >> 13 & 1)) >> 13)};
}

inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline double multiply_add(double a, double b, double c) { return std::fma(a, b, c); }

inline uint32_t multiply_high(uint32_t a, uint32_t b) {
    return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}

inline void block_barrier() { simt::Block::current().barrier(); }

namespace detail {

template <class T>
struct Shuffle {
    T mine, theirs;
    int mask;
};

template <class T>
T shuffle_xor(T value, int mask) {
    Shuffle<T> lane{value, {}, mask};
    simt::Block::current().warp_together(&lane, [](void* const(&lanes)[32]) {
        for (int i = 0; i < 32; ++i) {
            auto& self = *static_cast<Shuffle<T>*>(lanes[i]);
            self.theirs = static_cast<Shuffle<T>*>(lanes[i ^ self.mask])->mine;
        }
    });
    return lane.theirs;
}

}  // namespace detail

inline float shuffle_xor(float value, int mask) { return detail::shuffle_xor(value, mask); }
inline double shuffle_xor(double value, int mask) { return detail::shuffle_xor(value, mask); }

namespace detail {

struct Ballot {
    bool mine;
    uint32_t all;
};

}  // namespace detail

inline uint32_t ballot(bool value) {
    detail::Ballot lane{value, 0};
    simt::Block::current().warp_together(&lane, [](void* const(&lanes)[32]) {
        uint32_t all = 0;
        for (int i = 0; i < 32; ++i) all |= uint32_t{static_cast<detail::Ballot*>(lanes[i])->mine} << i;
        for (void* const each : lanes) static_cast<detail::Ballot*>(each)->all = all;
    });
    return lane.all;
}

template <class T>
T& shared_memory() {
    return *reinterpret_cast<T*>(simt::Block::current().shared_bytes());
}

inline void copy_async_16(void* shared, const void* global, bool valid) {
    simt::Block::current().copy_async(shared, global, 16, valid);
}
inline void copies_commit() { simt::Block::current().copies_commit(); }
template <int pending>
void copies_wait() {
    simt::Block::current().copies_wait(pending);
}

namespace detail {

struct Matrices {
    const unsigned char* row;
    uint32_t* fragment;
};

struct Mma {
    float* sum;
    const uint32_t* a;
    const uint32_t* b;
};

// The tables of the PTX ISA, "Matrix fragments for mma.m16n8k8" and "... m16n8k16": `per` numbers to a register.
template <int per, class Number>
void mma(void* const (&lanes)[32], const Number& number) {
    constexpr int depth = 8 * per;
    float a[16][depth], b[depth][8];
    for (int lane = 0; lane < 32; ++lane) {
        const Mma& self = *static_cast<Mma*>(lanes[lane]);
        const int group = lane / 4, column = lane % 4 * per;
        for (int i = 0; i < per; ++i)
            for (int half = 0; half < 2; ++half) {
                a[group][column + i + half * depth / 2] = number(self.a[2 * half], i);
                a[group + 8][column + i + half * depth / 2] = number(self.a[2 * half + 1], i);
                b[column + i + half * depth / 2][group] = number(self.b[half], i);
            }
    }
    for (int lane = 0; lane < 32; ++lane) {
        float* const sum = static_cast<Mma*>(lanes[lane])->sum;
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            double total = sum[i];
            for (int k = 0; k < depth; ++k) total += static_cast<double>(a[row][k]) * b[k][column];
            sum[i] = static_cast<float>(total);
        }
    }
}

}  // namespace detail

inline void load_matrices(uint32_t (&fragment)[4], const void* row) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) simt::Block::current().fail("a matrix row that is not aligned");
    detail::Matrices lane{static_cast<const unsigned char*>(row), fragment};
    simt::Block::current().warp_together(&lane, [](void* const(&lanes)[32]) {
        for (int i = 0; i < 32; ++i)
            for (int matrix = 0; matrix < 4; ++matrix)
                std::memcpy(&static_cast<detail::Matrices*>(lanes[i])->fragment[matrix],
                            static_cast<detail::Matrices*>(lanes[matrix * 8 + i / 4])->row + i % 4 * 4, 4);
    });
}

inline void mma_tf32(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    detail::Mma lane{sum, a, b};
    simt::Block::current().warp_together(&lane, [](void* const(&lanes)[32]) {
        // Bits below TF32's ten are not read.
        detail::mma<1>(lanes, [](uint32_t bits, int) { return float_of(bits & 0xffffe000u); });
    });
}
template <class T>
void mma_16bit(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    detail::Mma lane{sum, a, b};
    simt::Block::current().warp_together(&lane, [](void* const(&lanes)[32]) {
        detail::mma<2>(lanes, [](uint32_t bits, int i) { return to_float(T{static_cast<uint16_t>(bits >> 16 * i)}); });
    });
}

inline uint32_t round_to_tf32(float value) {
    const uint32_t bits = bits_of(value);
    return std::isfinite(value) ? (bits + 0x1000u) & 0xffffe000u : bits;
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, Stream,
            const Arguments&... arguments) {
    const std::tuple<Parameters...> parameters{Parameters(arguments)...};
    simt::Block::run_grid(grid, threads, shared_bytes, [&] { std::apply(kernel, parameters); });
}

}  // namespace convx::cuda
