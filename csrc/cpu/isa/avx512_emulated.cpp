// The AVX-512 kernels over tests/emulation/immintrin.h, which stands before the compiler's own header on this file's
// include path: the same text and tiles on a machine with AVX2 and FMA. For tests; never chosen by itself.
#include "cpu/isa/avx512.inl.h"

#ifdef __AVX512F__
#error "compile this file for AVX2 and FMA, with tests/emulation first on the include path"
#endif

namespace convx {

extern const Kernels kernels_avx512_emulated;
constexpr Kernels kernels_avx512_emulated = make_avx512_kernels("avx512_emulated");

}  // namespace convx
