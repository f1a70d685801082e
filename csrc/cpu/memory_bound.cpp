#include "cpu/memory_bound.h"

#include <algorithm>

#include "common/rounding.h"

namespace convx {

namespace {

int lanes_of(const Kernels& kernels, DType dtype) {
    return dtype == DType::float32 ? kernels.f32.lanes : kernels.f64.lanes;
}

int64_t elements(const std::array<int64_t, 4>& shape) { return shape[0] * shape[1] * shape[2] * shape[3]; }

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

PassPlan plan_max_pool2d(const PoolProblem& problem, bool backward, const Kernels& kernels, int threads) {
    PassPlan plan;
    const int lanes = lanes_of(kernels, problem.dtype);
    const int64_t inputs = elements(problem.input_shape()), outputs = elements(problem.output_shape());
    const bool by_channels = problem.channels_last && problem.channels >= lanes;
    plan.pass = backward ? "grad_input" : "forward";
    plan.algorithm = backward ? "gather" : "window maximum";
    plan.isa = kernels.name;
    plan.tile = std::to_string(lanes) + (by_channels ? " channels" : " columns");
    plan.flops = outputs * problem.taps();
    plan.bytes = (inputs + outputs) * item_size(problem.dtype) + outputs;
    share_out(plan, inputs, threads);
    plan.reason = by_channels ? "bound by memory; vectors over channels, which are adjacent"
                              : "bound by memory; vectors over the columns of a plane";
    if (backward) plan.reason += "; every input cell sums the windows that chose it, in row-major order";
    return plan;
}

}  // namespace convx
