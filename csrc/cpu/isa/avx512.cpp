// AVX-512: 32 registers hold a 12 x 2 tile (24 accumulators, 2 columns; broadcasts are memory operands of the FMA).
//
// Compiled twice more for the tests' emulated set: tests/emulation then stands before the compiler's own headers on the
// include path, and its <immintrin.h> puts the intrinsics over AVX2 and FMA. Same text, same tiles.
#include "cpu/simd/vec_avx512.h"

#include "cpu/kernels/kernel_set.inl.h"

namespace convx {

extern const KernelSet<CONVX_ELEMENT> CONVX_TABLE;
constexpr KernelSet<CONVX_ELEMENT> CONVX_TABLE = make_kernel_set<CONVX_ELEMENT, 12, 2, 4, 6>();

}  // namespace convx
