// How many threads an operation may use, and how long an idle one polls.
//
// Settings are atomics that are computed on first use. Computing one twice is harmless, so there is no lock, and
// nothing that a fork could catch half done.
#include "cpu/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <thread>

#include <pthread.h>

#ifdef __linux__
#include <sched.h>
#endif

namespace convx {
namespace {

constexpr int64_t default_spin_us = 100;

enum Reason : uint32_t { unset, by_call, by_fork, by_convx_variable, by_omp_variable, by_affinity, by_quota };
constexpr const char* reason_text[] = {
    "", "set_num_threads", "forked child", "CONVX_NUM_THREADS", "OMP_NUM_THREADS", "affinity", "cgroup quota"};

constexpr uint64_t pack(Reason reason, int threads) { return uint64_t{reason} << 32 | static_cast<uint32_t>(threads); }

std::atomic<uint64_t> thread_setting{0};
std::atomic<int64_t> spin_setting{-1};

// The leading number of a variable ("4", or OpenMP's "4,2" per level), or -1 where it is unset or no such number.
int64_t variable(const char* name, int64_t least) {
    const char* text = std::getenv(name);
    if (!text) return -1;
    char* end = nullptr;
    const long long value = std::strtoll(text, &end, 10);
    const bool whole = end != text && (*end == '\0' || *end == ',' || *end == ' ');
    return whole && value >= least && value <= INT_MAX ? value : -1;
}

int affinity_cpus() {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

uint64_t detect_threads() {
    if (const int64_t n = variable("CONVX_NUM_THREADS", 1); n > 0) return pack(by_convx_variable, static_cast<int>(n));
    if (const int64_t n = variable("OMP_NUM_THREADS", 1); n > 0) return pack(by_omp_variable, static_cast<int>(n));
    const int cpus = affinity_cpus();
    const int quota = detail::cgroup_cpus("");
    return quota > 0 && quota < cpus ? pack(by_quota, quota) : pack(by_affinity, cpus);
}

uint64_t settled_threads() {
    uint64_t setting = thread_setting.load(std::memory_order_relaxed);
    if (setting == 0) {
        const uint64_t detected = detect_threads();
        if (thread_setting.compare_exchange_strong(setting, detected)) return detected;
    }
    return setting;
}

// A child has its parent's memory, not its parent's share of the machine: often there are as many children as CPUs.
[[maybe_unused]] const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { thread_setting.store(pack(by_fork, 1)); });

}  // namespace

int num_threads() { return static_cast<int>(static_cast<uint32_t>(settled_threads())); }

std::string num_threads_reason() { return reason_text[settled_threads() >> 32]; }

void set_num_threads(int n) {
    if (n < 1) throw std::invalid_argument("set_num_threads: n is " + std::to_string(n) + ", expected at least 1");
    thread_setting.store(pack(by_call, n));
}

int64_t spin_microseconds() {
    int64_t spin = spin_setting.load(std::memory_order_relaxed);
    if (spin < 0) {
        spin = variable("CONVX_SPIN_US", 0);
        if (spin < 0) spin = default_spin_us;
        spin_setting.store(spin, std::memory_order_relaxed);
    }
    return spin;
}

namespace detail {

int cgroup_cpus(const std::string& root) {
    double cpus = 0;
    const auto limit = [&](double quota, double period) {
        if (quota > 0 && period > 0) cpus = cpus > 0 ? std::min(cpus, quota / period) : quota / period;
    };
    std::ifstream groups(root + "/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {  // hierarchy:controllers:path
        const size_t first = line.find(':');
        const size_t second = line.find(':', first + 1);
        if (second == std::string::npos) continue;
        const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
        const bool version2 = controllers == ",,";
        if (!version2 && controllers.find(",cpu,") == std::string::npos) continue;
        const std::string mount = root + (version2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu");
        // Every ancestor's limit holds too. Inside a container the path may name a directory of the host, which is not
        // there: the walk then ends at the root of the mount, which is the container's own group.
        for (std::string path = line.substr(second + 1);; path.resize(path.rfind('/'))) {
            if (path == "/") path.clear();
            double quota = 0, period = 0;
            if (version2) {
                std::ifstream(mount + path + "/cpu.max") >> quota >> period;  // "max 100000" leaves quota at 0
            } else {
                std::ifstream(mount + path + "/cpu.cfs_quota_us") >> quota;  // -1: no limit
                std::ifstream(mount + path + "/cpu.cfs_period_us") >> period;
            }
            limit(quota, period);
            if (path.find('/') == std::string::npos) break;
        }
    }
    // Rounded down: a pool wider than its quota is stopped for the rest of each period (0.1 s), in mid-job.
    return cpus > 0 ? std::max(1, static_cast<int>(std::min(cpus, 1e6))) : 0;
}

}  // namespace detail
}  // namespace convx
