#include "cpu/memory_bound.h"

#include <algorithm>

#include "common/rounding.h"

namespace convx {

namespace {

int lanes_of(const Kernels& kernels, DType dtype) {
    return dtype == DType::float32 ? kernels.f32.lanes : kernels.f64.lanes;
}

void share_out(PassPlan& plan, int64_t elements_of_all_tasks, int threads) {
    plan.tasks = std::max<int64_t>(ceil_div(elements_of_all_tasks, memory_bound_task_elements), 1);
    plan.threads = plan.bytes < parallel_bytes ? 1 : std::min<int64_t>(plan.tasks, threads);
    plan.block = "about " + std::to_string(std::min(elements_of_all_tasks, memory_bound_task_elements)) + " elements";
}

}  // namespace

PassPlan plan_relu(DType dtype, int64_t size, bool backward, const Kernels& kernels, int threads) {
    PassPlan plan;
    plan.pass = backward ? "grad_input" : "forward";
    plan.algorithm = "elementwise";
    plan.isa = kernels.name;
    plan.tile = std::to_string(lanes_of(kernels, dtype)) + " elements";
    plan.flops = size;
    plan.bytes = (backward ? 3 : 2) * size * item_size(dtype);
    share_out(plan, size, threads);
    plan.reason = "bound by memory; ";
    plan.reason += plan.bytes >= streaming_bytes ? "the output goes around the caches, which it would only flush"
                                                 : "the output stays in the caches for its next reader";
    return plan;
}

}  // namespace convx
