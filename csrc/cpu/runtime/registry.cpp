#include "cpu/runtime/registry.h"

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <stdexcept>

#include "cpu/runtime/cpuid.h"

namespace convx {

extern const KernelSet<float> avx512_float, avx512_emulated_float, avx2_float, portable_float;
extern const KernelSet<double> avx512_double, avx512_emulated_double, avx2_double, portable_double;

namespace {

struct Entry {
    Kernels kernels;
    bool (*runs_here)();
    bool automatic;  // false: only when asked for by name
};

bool has_avx512() {
    const CpuFeatures& cpu = cpu_features();
    return cpu.avx512f && cpu.avx512bw && cpu.avx512dq && cpu.avx512vl && cpu.avx2 && cpu.fma;
}
bool has_avx2() { return cpu_features().avx2 && cpu_features().fma; }
bool always() { return true; }

// Best first, portable last.
const std::vector<Entry>& entries() {
    // Never destroyed: threads may be in a kernel when the process ends.
    static const std::vector<Entry>& list = *new std::vector<Entry>{
#ifdef CONVX_HAVE_AVX512
        {{"avx512", avx512_float, avx512_double}, has_avx512, true},
#endif
#ifdef CONVX_HAVE_AVX2
        {{"avx2", avx2_float, avx2_double}, has_avx2, true},
#endif
#ifdef CONVX_HAVE_AVX512_EMULATED
        {{"avx512_emulated", avx512_emulated_float, avx512_emulated_double}, has_avx2, false},
#endif
        {{"portable", portable_float, portable_double}, always, true},
    };
    return list;
}

struct Choice {
    const Kernels* kernels;
    std::string reason;
};

const Kernels* find(const std::string& name) {
    for (const Entry& entry : entries())
        if (name == entry.kernels.name && entry.runs_here()) return &entry.kernels;
    return nullptr;
}

std::string joined(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
}

Choice choose() {
    const char* forced = std::getenv("CONVX_ISA");
    if (forced && *forced) {
        if (const Kernels* kernels = find(forced)) return {kernels, "forced by CONVX_ISA"};
        throw std::runtime_error("CONVX_ISA=" + std::string(forced) +
                                 ": this machine can run: " + joined(available_isas()));
    }
    for (const Entry& entry : entries())
        if (entry.automatic && entry.runs_here()) return {&entry.kernels, "best that this processor has"};
    return {&entries().back().kernels, "portable fallback"};
}

std::mutex mutex;
std::atomic<const Kernels*> active{nullptr};
std::string reason;

}  // namespace

const Kernels& active_kernels() {
    if (const Kernels* kernels = active.load(std::memory_order_acquire)) return *kernels;
    const std::lock_guard<std::mutex> lock(mutex);
    if (!active.load()) {
        Choice choice = choose();
        reason = choice.reason;
        active.store(choice.kernels, std::memory_order_release);
    }
    return *active.load();
}

std::string isa_reason() {
    active_kernels();
    const std::lock_guard<std::mutex> lock(mutex);
    return reason;
}

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Entry& entry : entries())
        if (entry.runs_here()) names.emplace_back(entry.kernels.name);
    return names;
}

void set_isa(const std::string& name) {
    const Kernels* kernels = find(name);
    if (!kernels)
        throw std::invalid_argument("instruction set '" + name +
                                    "': this machine can run: " + joined(available_isas()));
    const std::lock_guard<std::mutex> lock(mutex);
    reason = "set by set_isa";
    active.store(kernels, std::memory_order_release);
}

}  // namespace convx
