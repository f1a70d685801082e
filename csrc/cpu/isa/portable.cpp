// Any processor: 4 floats or 2 doubles, which the baseline has (SSE2, NEON).
#include "cpu/simd/vec_portable.h"

#include "cpu/kernels/kernel_set.inl.h"

namespace convx {

extern const KernelSet<CONVX_ELEMENT> CONVX_TABLE;
constexpr KernelSet<CONVX_ELEMENT> CONVX_TABLE = make_kernel_set<CONVX_ELEMENT, 4, 2, 2, 2>();

}  // namespace convx
