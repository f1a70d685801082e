// CPUID leaves: Intel SDM volume 2A "CPUID", AMD APM volume 3 appendix E.
//
// Cache sizes come from the deterministic cache leaf (4 on Intel, 0x8000001D on AMD): glibc's sysconf answers 256 MiB
// for the level 3 cache of a Zen 3 virtual machine whose cores share 32 MiB.
#include "cpu/runtime/cpuid.h"

#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

namespace convx {
namespace {

struct Processor {
    CpuFeatures features;
    int64_t cache_bytes[3] = {32 << 10, 512 << 10, 16 << 20};  // where the processor does not say
};

#if defined(__x86_64__) || defined(__i386__)

struct Registers {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero for a leaf that the processor does not have.
Registers cpuid(unsigned leaf, unsigned subleaf = 0) {
    Registers r;
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
    return r;
}

bool bit(unsigned word, int index) { return (word >> index & 1) != 0; }

// Extended control register 0: the register states that the operating system saves.
unsigned xcr0() {
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

std::string brand() {
    char text[3 * sizeof(Registers) + 1] = {};
    for (unsigned i = 0; i < 3; ++i) {
        const Registers r = cpuid(0x80000002 + i);
        std::memcpy(text + i * sizeof r, &r, sizeof r);
    }
    const std::string padded = text;  // some processors pad on the left, some on the right
    const size_t first = padded.find_first_not_of(' ');
    return first == std::string::npos ? "unknown" : padded.substr(first, padded.find_last_not_of(' ') - first + 1);
}

void read_caches(unsigned leaf, int64_t (&cache_bytes)[3]) {
    for (unsigned index = 0; index < 16; ++index) {
        const Registers r = cpuid(leaf, index);
        const unsigned type = r.eax & 31, level = r.eax >> 5 & 7;
        if (type == 0) return;                              // no more caches
        if (type == 2 || level < 1 || level > 3) continue;  // 2: instructions only
        const int64_t ways = (r.ebx >> 22) + 1, partitions = (r.ebx >> 12 & 1023) + 1, line = (r.ebx & 4095) + 1;
        cache_bytes[level - 1] = ways * partitions * line * (int64_t{r.ecx} + 1);
    }
}

Processor detect() {
    Processor p;
    CpuFeatures& f = p.features;
    const Registers basic = cpuid(1), extended = cpuid(7);
    const unsigned saved = bit(basic.ecx, 27) ? xcr0() : 0;  // OSXSAVE: xgetbv may be used
    const bool ymm = (saved & 0x06) == 0x06;                 // SSE and AVX state
    const bool zmm = (saved & 0xe6) == 0xe6;                 // and opmask, upper halves, zmm16 to zmm31
    const bool avx = ymm && bit(basic.ecx, 28);
    f.avx2 = avx && bit(extended.ebx, 5);
    f.fma = avx && bit(basic.ecx, 12);
    f.f16c = avx && bit(basic.ecx, 29);
    f.avx512f = avx && zmm && bit(extended.ebx, 16);
    f.avx512bw = f.avx512f && bit(extended.ebx, 30);
    f.avx512dq = f.avx512f && bit(extended.ebx, 17);
    f.avx512vl = f.avx512f && bit(extended.ebx, 31);
    f.brand = brand();
    const bool amd_leaf = bit(cpuid(0x80000001).ecx, 22);  // topology extensions
    read_caches(amd_leaf ? 0x8000001d : 4, p.cache_bytes);
    return p;
}

#else

Processor detect() {
    Processor p;
    p.features.brand = "unknown";
    return p;
}

#endif

const Processor& processor() {
    static const Processor detected = detect();
    return detected;
}

}  // namespace

const CpuFeatures& cpu_features() { return processor().features; }
int64_t l1d_bytes() { return processor().cache_bytes[0]; }
int64_t l2_bytes() { return processor().cache_bytes[1]; }
int64_t l3_bytes() { return processor().cache_bytes[2]; }

}  // namespace convx
