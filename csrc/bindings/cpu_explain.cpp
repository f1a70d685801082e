#include "bindings/cpu_explain.h"

#include "cpu/conv2d/methods.h"
#include "cpu/fused/conv2d_relu_max_pool2d.h"
#include "cpu/fused/grad_weight.h"
#include "cpu/max_pool2d/max_pool2d.h"
#include "cpu/memory_bound.h"
#include "cpu/runtime/registry.h"
#include "cpu/runtime/thread_pool.h"

namespace convx {

DType CpuPlans::dtype(const std::string& op, const std::string& name) {
    if (name != "float32" && name != "float64")
        throw TypeError(op + ": dtype is " + name + ", expected float32 or float64");
    return name == "float32" ? DType::float32 : DType::float64;
}

PassPlan CpuPlans::conv(const ConvProblem& problem, ConvPass pass) const {
    return plan_conv(problem, pass, active_kernels(), num_threads());
}

PassPlan CpuPlans::per_sample(const ConvProblem& problem, ConvPass pass) const {
    const auto plan = pass == ConvPass::grad_weight ? &plan_per_sample_grad_weight : &plan_per_sample_grad_bias;
    return plan(problem, active_kernels(), num_threads());
}

PassPlan CpuPlans::norms(const ConvProblem& problem, ConvPass pass) const {
    const auto plan = pass == ConvPass::grad_weight ? &plan_grad_weight_norms : &plan_grad_bias_norms;
    return plan(problem, active_kernels(), num_threads());
}

PassPlan CpuPlans::relu(DType dtype, int64_t size, bool backward) const {
    return plan_relu(dtype, size, backward, active_kernels(), num_threads());
}

// By what the forward pass would return or has returned; the gradient reads codes, which are the shorter, if they fit.
PassPlan CpuPlans::max_pool2d(const PoolProblem& problem, bool backward, const ExplainedOptions& options) const {
    Argmax argmax = Argmax::none;
    if (options.wants("return_indices")) {
        argmax = Argmax::indices;
    } else if (options.wants("return_codes")) {
        check_codes_fit(options.op(), problem);
        argmax = Argmax::codes;
    } else if (backward) {
        argmax = problem.taps() <= max_code_taps ? Argmax::codes : Argmax::indices;
    }
    return plan_max_pool2d(problem, backward, argmax, active_kernels(), num_threads());
}

PassPlan CpuPlans::fill() const {
    PassPlan plan;
    plan.algorithm = "fill";
    plan.isa = active_kernels().name;
    return plan;
}

PassPlan CpuPlans::pool_behind(const FusedProblem& problem, const std::array<bool, 3>&, bool backward,
                               std::vector<PassPlan>& passes) const {
    for (PassPlan& each : passes) {
        const bool summed = each.pass == "grad_weight" || each.pass == "grad_bias";
        if (!summed || !sums_selected_pixels(problem)) continue;
        each.threads = num_threads();
        describe_selected_pixels(problem, each);
    }
    const ConvProblem& conv = problem.conv;
    PassPlan plan = plan_max_pool2d(problem.pool, backward, Argmax::codes, active_kernels(), num_threads());
    const RowBlock block = fused_row_block(problem);
    // Where the convolution shares itself out, groups of images go in turn.
    const bool in_turn = traits_of(conv, ConvPass::forward).own_parallelism;
    plan.scratch_bytes += (in_turn ? 1 : plan.threads) * block.images * conv.out_channels * block.rows * conv.out_w() *
                          item_size(conv.dtype);
    plan.reason += in_turn ? "; the threads share" : "; each thread has";
    plan.reason += " the convolution output of " + std::to_string(block.images) +
                   (block.images == 1 ? " image, " : " images, ") + std::to_string(block.rows) +
                   " rows at a time, and no more of it exists";
    return plan;
}

py::dict CpuPlans::dict(const PassPlan& plan) const {
    using namespace py::literals;
    py::list candidates;
    for (const Candidate& each : plan.candidates) {
        py::dict work;
        for (const auto& [kind, count] : each.work) work[kind.c_str()] = count;
        candidates.append(py::make_tuple(each.name, each.supported, each.reason, each.microseconds, work));
    }
    return py::dict("pass"_a = plan.pass, "algorithm"_a = plan.algorithm, "isa"_a = plan.isa, "tile"_a = plan.tile,
                    "block"_a = plan.block, "tasks"_a = plan.tasks, "threads"_a = plan.threads,
                    "scratch_bytes"_a = plan.scratch_bytes, "flops"_a = plan.flops, "bytes"_a = plan.bytes,
                    "reason"_a = plan.reason, "candidates"_a = candidates);
}

}  // namespace convx
