// What the drivers of max-pooling share. The driver of a method is a plan until it runs:
//
//   template <class T>
//   class Example {
//   public:
//       static constexpr const char* name = "example";
//       static Verdict supports(const PoolForward<T>&, const KernelSet<T>&);  // correctness alone
//       static bool suits(const PoolForward<T>&, const KernelSet<T>&);        // speed alone
//       Example(const PoolForward<T>&, const KernelSet<T>&);                  // reads sizes and strides alone
//       TaskPlan tasks() const;
//       void describe(PassPlan&) const;
//       Outcome run() const;
//   };
//   template const PoolMethod<PoolForward<float>>& pool_method<Example, PoolForward<float>>();
//   template const PoolMethod<PoolForward<double>>& pool_method<Example, PoolForward<double>>();
#pragma once

#include <atomic>

#include "common/rounding.h"
#include "cpu/max_pool2d/method.h"
#include "cpu/memory_bound.h"
#include "cpu/runtime/run_tasks.h"

namespace convx {

template <template <class> class Driver, class Pass>
const PoolMethod<Pass>& pool_method() {
    using T = typename Pass::Element;
    using Own = Driver<T>;
    static const PoolMethod<Pass> row{
        Own::name, &Own::supports, &Own::suits,
        [](const Pass& pass, const KernelSet<T>& kernels) { return Own(pass, kernels).run(); },
        [](const Pass& pass, const KernelSet<T>& kernels, int threads, PassPlan& plan) {
            const Own driver(pass, kernels);
            const TaskPlan tasks = driver.tasks();
            plan.algorithm = Own::name;
            plan.tasks = tasks.tasks;
            plan.threads = tasks.threads(threads);
            plan.scratch_bytes = tasks.scratch_bytes(plan.threads);
            driver.describe(plan);
        }};
    return row;
}

// Units of work (rows, row blocks, planes) in tasks of about memory_bound_task_elements.
struct PoolUnits {
    int64_t units, step;

    PoolUnits(int64_t all, int64_t unit_elements)
        : units(all), step(std::max<int64_t>(1, memory_bound_task_elements / std::max<int64_t>(unit_elements, 1))) {}
    int64_t tasks() const { return ceil_div(units, step); }
};

// Tasks of a pass, which reads its input and every tap of every window.
inline TaskPlan pool_tasks(const PoolProblem& problem, const PoolUnits& units) {
    const auto elements = [](const std::array<int64_t, 4>& s) { return s[0] * s[1] * s[2] * s[3]; };
    const int64_t read = elements(problem.input_shape()) + elements(problem.output_shape()) * problem.taps();
    return {units.tasks(), memory_flops(read * item_size(problem.dtype))};
}
// The same with a Scratch(parts, driver) for each worker.
template <class Scratch, class Driver>
TaskPlan pool_tasks(const PoolProblem& problem, const PoolUnits& units, const Driver& driver) {
    TaskPlan plan = pool_tasks(problem, units);
    ScratchParts parts;
    Scratch(parts, driver);
    plan.worker_bytes = parts.bytes();
    return plan;
}

// Calls body(first unit, behind the last one, scratch parts) for each task; false if a body returns that.
template <class Body>
bool run_units(const TaskPlan& plan, const PoolUnits& units, const Body& body) {
    std::atomic<bool> good{true};
    TaskRunner(plan).run(plan.tasks, [&](int64_t task, ScratchParts parts) {
        if (!body(task * units.step, std::min(units.units, (task + 1) * units.step), parts))
            good.store(false, std::memory_order_relaxed);
    });
    return good.load();
}
template <class Scratch, class Driver, class Body>
bool run_units(const Driver& driver, const PoolUnits& units, const Body& body) {
    return run_units(driver.tasks(), units, [&](int64_t begin, int64_t end, ScratchParts parts) {
        return body(begin, end, Scratch(parts, driver));
    });
}

constexpr int64_t widest_vector = 16;

// True if rows follow one another without gaps; views without data have none.
template <class U>
bool plane_is_dense(const TensorView<U>& view) {
    return !view.data || (view.stride[3] == 1 && view.stride[2] == view.shape[3]);
}

// True if channels are adjacent; views without data are.
template <class... U>
bool channels_are_adjacent(const TensorView<U>&... views) {
    return ((!views.data || views.stride[1] == 1) && ...);
}

// Behind the last element of a view in memory, and its first one.
template <class U>
const U* end_of(const TensorView<U>& view) {
    const U* end = view.data + 1;
    for (size_t axis = 0; axis < 4; ++axis) end += std::max<int64_t>(0, view.stride[axis]) * (view.shape[axis] - 1);
    return end;
}
template <class U>
const U* begin_of(const TensorView<U>& view) {
    const U* begin = view.data;
    for (size_t axis = 0; axis < 4; ++axis) begin += std::min<int64_t>(0, view.stride[axis]) * (view.shape[axis] - 1);
    return begin;
}

// Planes [first, first + count) of a batch, one in each lane of a vector; lanes without a plane repeat the last one.
template <class U>
struct PlaneLanes {
    U* plane[widest_vector];

    PlaneLanes(const TensorView<U>& view, int64_t first, int count, int lanes) {
        if (!view.data) {
            std::fill_n(plane, lanes, nullptr);
            return;
        }
        const int64_t channels = view.shape[1], n = first / channels;
        int64_t c = first - n * channels;
        U* image = view.data + n * view.stride[0];
        for (int k = 0; k < lanes; ++k) {
            plane[k] = image + c * view.stride[1];
            if (k + 1 >= count || ++c < channels) continue;
            c = 0;
            image += view.stride[0];
        }
    }
};

// True if there is a vector of planes and it fits L2 beside its results.
template <class T>
bool vector_of_planes_fits(const PoolProblem& problem, const KernelSet<T>& kernels) {
    constexpr int64_t most_bytes = 192 << 10;
    return problem.batch * problem.channels >= kernels.lanes &&
           problem.h.input * problem.w.input * kernels.lanes * int64_t{sizeof(T)} <= most_bytes;
}

}  // namespace convx
