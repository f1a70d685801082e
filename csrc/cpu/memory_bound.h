// Sizes that decide how an operation runs whose time is that of moving its arrays: ReLU and pooling.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/problem.h"
#include "cpu/kernels/kernel_set.h"
#include "cpu/pass_plan.h"
#include "cpu/runtime/run_tasks.h"

namespace convx {

// The flops that take as long as reading and writing so many bytes, for the choice of threads (run_tasks.h).
constexpr int64_t memory_flops(int64_t bytes) { return 3 * bytes / 2; }

// Bytes read and written below which one thread does it all.
constexpr int64_t parallel_bytes = 2 * parallel_flops / 3;

// Bytes read and written from which an output is not worth keeping in the caches and goes around them, which saves
// reading each line before it is written. Measured with 32 MB of L3, the same arrays again and again: stores through
// the caches win by 2x at 24 and 32 MB, both are equal at 48 to 56, going around wins by 1.4x from 128 MB on.
constexpr int64_t streaming_bytes = int64_t{48} << 20;

// Elements of one task: 128 KiB of floats, a few microseconds of work, and much more than a claim costs.
constexpr int64_t memory_bound_task_elements = int64_t{1} << 15;

// Copies with stores that go around the caches, but for what is left of whole lines at both ends.
template <class T>
void copy_around_caches(const KernelSet<T>& kernels, T* to, const T* from, int64_t count) {
    constexpr int64_t line = 64 / sizeof(T);
    const int64_t beyond = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) / sizeof(T)) % line;
    const int64_t head = std::min(count, beyond == 0 ? 0 : line - beyond), body = (count - head) / line * line;
    std::copy_n(from, head, to);
    kernels.stream_copy(to + head, from + head, body);
    std::copy_n(from + head + body, count - head - body, to + head + body);
}

// What would run, for convx.explain.
PassPlan plan_relu(DType dtype, int64_t size, bool backward, const Kernels& kernels, int threads);

}  // namespace convx
