// What this processor can run, and the sizes of its caches.
#pragma once

#include <cstdint>
#include <string>

namespace convx {

// A bit is set only if the processor has the instructions and the operating system saves their registers (XCR0).
// All false where the processor is not an x86.
struct CpuFeatures {
    bool avx2 = false;
    bool fma = false;
    bool f16c = false;
    bool avx512f = false;
    bool avx512bw = false;
    bool avx512dq = false;
    bool avx512vl = false;
    std::string brand;  // "AMD EPYC ..."; "unknown" where the processor does not say
};

const CpuFeatures& cpu_features();

// Data cache that a core sees at each level (level 3 is shared by several cores); usual sizes where it is unknown.
int64_t l1d_bytes();
int64_t l2_bytes();
int64_t l3_bytes();

}  // namespace convx
