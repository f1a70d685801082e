#include "cpu/runtime/roofline.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "common/rounding.h"
#include "cpu/runtime/registry.h"
#include "cpu/runtime/thread_pool.h"
#include "cpu/runtime/workspace.h"

namespace convx {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// The highest rate (units per second) of bursts repeated for `seconds`, at least three.
template <class Burst>
double best_rate(double seconds, const Burst& burst) {
    const Clock::time_point start = Clock::now();
    double best = 0;
    for (int run = 0; run < 3 || seconds_since(start) < seconds; ++run) {
        const Clock::time_point begin = Clock::now();
        const double units = burst();
        best = std::max(best, units / seconds_since(begin));
    }
    return best;
}

template <class T>
double fma_burst(int threads) {
    const KernelSet<T>& kernels = kernel_set<T>(active_kernels());
    // About 5 ms a task: long against the start of the threads.
    constexpr int64_t rounds = 2'000'000;
    int64_t flops = 0;
    parallel_for(threads, threads, [&](int64_t task, int) {
        T sink[3] = {T(0.5), T(1), T(0)};
        const int64_t done = kernels.fma_rounds(rounds, sink);
        if (task == 0) flops = done;
    });
    return static_cast<double>(flops) * threads;
}

}  // namespace

double fma_peak(DType dtype, double seconds) {
    const int threads = num_threads();
    return best_rate(seconds,
                     [&] { return dtype == DType::float32 ? fma_burst<float>(threads) : fma_burst<double>(threads); });
}

double copy_bandwidth(int64_t bytes, double seconds) {
    const KernelSet<float>& kernels = kernel_set<float>(active_kernels());
    constexpr int64_t block = 64 * 1024;  // floats
    const int64_t blocks = std::max<int64_t>(ceil_div(bytes, block * int64_t{sizeof(float)}), 1);
    const int64_t count = blocks * block;
    const Workspace from(static_cast<size_t>(count) * sizeof(float)), to(static_cast<size_t>(count) * sizeof(float));
    std::memset(from.data(), 1, from.size());
    std::memset(to.data(), 1, to.size());
    return best_rate(seconds, [&] {
        parallel_for(blocks, num_threads(), [&](int64_t task, int) {
            kernels.stream_copy(static_cast<float*>(to.data()) + task * block,
                                static_cast<const float*>(from.data()) + task * block, block);
        });
        return 2.0 * static_cast<double>(from.size());
    });
}

}  // namespace convx
