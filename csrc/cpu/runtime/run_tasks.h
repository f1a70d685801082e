// How a driver shares its work out: threads, scratch and tasks of one call, the same for its run and its explanation.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/runtime/scratch_parts.h"
#include "cpu/runtime/thread_pool.h"
#include "cpu/runtime/workspace.h"

namespace convx {

// Below this many flops (about 40 us on one core) an operation stays on the calling thread: what other threads take off
// 40 us is about what it costs to wake them (thread_pool.h); if they are awake, it is a gain of 25 us.
constexpr int64_t parallel_flops = 3'000'000;
inline int parallel_width(int64_t flops) { return flops < parallel_flops ? 1 : 1 << 16; }

// Enough tasks that the last round of 4 to 16 threads wastes little, of about 20 us each; both follow from the problem
// alone, so that the threads never change a sum.
constexpr int64_t wanted_tasks = 48;
constexpr int64_t task_flops = 1'000'000;
inline int64_t units_of_a_task(int64_t units, int64_t unit_flops) {
    return std::clamp(task_flops / std::max<int64_t>(unit_flops, 1), int64_t{1},
                      std::max<int64_t>(units / wanted_tasks, 1));
}

struct TaskPlan {
    int64_t tasks = 1;         // that can run at the same time
    int64_t flops = 0;         // of all of them, or what takes as long
    int64_t shared_bytes = 0;  // scratch that all workers share
    int64_t worker_bytes = 0;  // scratch of each worker

    int64_t threads(int most) const {
        return std::min<int64_t>({parallel_width(flops), most, std::max<int64_t>(tasks, 1)});
    }
    int64_t scratch_bytes(int64_t threads) const { return shared_bytes + threads * worker_bytes; }
};

// The scratch and the threads of one call.
class TaskRunner {
public:
    explicit TaskRunner(const TaskPlan& plan)
        : width_(static_cast<int>(plan.threads(num_threads()))), shared_bytes_(plan.shared_bytes),
          worker_bytes_(plan.worker_bytes), workspace_(static_cast<size_t>(plan.scratch_bytes(width_))) {}

    int width() const { return width_; }
    void* shared() const { return workspace_.data(); }
    ScratchParts scratch(int worker) const {
        return ScratchParts(static_cast<char*>(workspace_.data()) + shared_bytes_ + worker * worker_bytes_);
    }

    // body(task, scratch of the worker that runs it)
    template <class Body>
    void run(int64_t tasks, const Body& body) const {
        parallel_for(tasks, width_, [&](int64_t task, int worker) { body(task, scratch(worker)); });
    }

private:
    const int width_;
    const int64_t shared_bytes_, worker_bytes_;
    const Workspace workspace_;
};

}  // namespace convx
