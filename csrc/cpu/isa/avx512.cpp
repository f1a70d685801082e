// AVX-512 on a processor that has it.
#include "cpu/isa/avx512.inl.h"

namespace convx {

extern const Kernels kernels_avx512;
constexpr Kernels kernels_avx512 = make_avx512_kernels("avx512");

}  // namespace convx
