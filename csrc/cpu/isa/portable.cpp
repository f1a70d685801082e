// Plain C++ for any processor; the compiler maps the 4-lane loops to what the baseline has (SSE2, NEON).
#include "cpu/simd/vec_portable.h"

#include "cpu/kernels/kernel_set.inl.h"

namespace convx {

extern const Kernels kernels_portable;
constexpr Kernels kernels_portable = {"portable", make_kernel_set<float, 4, 2, 2, 2>(),
                                      make_kernel_set<double, 4, 2, 2, 2>()};

}  // namespace convx
