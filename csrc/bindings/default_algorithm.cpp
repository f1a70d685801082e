#include "bindings/default_algorithm.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace convx {

namespace {

const char* environment() {
    const char* text = std::getenv("CONVX_ALGORITHM");
    return text && *text ? text : nullptr;
}

Algorithm from_environment() {
    const char* text = environment();
    if (!text || std::string(text) == "auto") return Algorithm::automatic;
    if (std::string(text) == "direct") return Algorithm::direct;
    throw std::runtime_error("CONVX_ALGORITHM=" + std::string(text) + ": expected auto or direct");
}

constexpr int not_set = -1;
std::atomic<int> chosen{not_set};

}  // namespace

Algorithm default_algorithm() {
    const int algorithm = chosen.load(std::memory_order_relaxed);
    if (algorithm != not_set) return static_cast<Algorithm>(algorithm);
    // Once: the environment is not to be read while another thread changes it.
    static const Algorithm named = from_environment();
    return named;
}

void set_default_algorithm(Algorithm algorithm) {
    chosen.store(static_cast<int>(algorithm), std::memory_order_relaxed);
}

std::string default_algorithm_reason() {
    if (chosen.load(std::memory_order_relaxed) != not_set) return "set_default_algorithm";
    return environment() ? "CONVX_ALGORITHM" : "default";
}

}  // namespace convx
