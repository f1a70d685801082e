// AVX2 and FMA: 16 registers hold a 6 x 2 tile (12 accumulators, 2 columns, 1 broadcast).
#include "cpu/simd/vec_avx2.h"

#include "cpu/kernels/kernel_set.inl.h"

namespace convx {

extern const KernelSet<CONVX_ELEMENT> CONVX_TABLE;
constexpr KernelSet<CONVX_ELEMENT> CONVX_TABLE = make_kernel_set<CONVX_ELEMENT, 6, 2, 3, 4>();

}  // namespace convx
