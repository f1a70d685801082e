// AVX-512: 32 registers hold a 12 x 2 tile (24 accumulators, 2 columns; broadcasts are memory operands of the FMA).
//
// Apart from avx512.cpp, so that the tests' emulated set has the same tiles and the same kernels.
#pragma once

#include "cpu/simd/vec_avx512.h"

#include "cpu/kernels/kernel_set.inl.h"

namespace {

constexpr convx::Kernels make_avx512_kernels(const char* name) {
    return {name, make_kernel_set<float, 12, 2, 4, 6>(), make_kernel_set<double, 12, 2, 4, 6>()};
}

}  // namespace
