// convx.explain: the operation's own checks and plans, run without arrays.
#include "bindings/cpu_ops.h"
#include "cpu/conv2d/per_sample.h"
#include "cpu/fused/conv2d_relu_max_pool2d.h"
#include "cpu/fused/grad_weight.h"
#include "cpu/max_pool2d/max_pool2d.h"
#include "cpu/memory_bound.h"
#include "cpu/runtime/registry.h"
#include "cpu/runtime/thread_pool.h"

namespace convx {

namespace {

py::dict to_dict(const PassPlan& plan) {
    py::dict dict;
    dict["pass"] = plan.pass;
    dict["algorithm"] = plan.algorithm;
    dict["isa"] = plan.isa;
    dict["tile"] = plan.tile;
    dict["block"] = plan.block;
    dict["tasks"] = plan.tasks;
    dict["threads"] = plan.threads;
    dict["scratch_bytes"] = plan.scratch_bytes;
    dict["flops"] = plan.flops;
    dict["bytes"] = plan.bytes;
    dict["reason"] = plan.reason;
    py::list candidates;
    for (const Candidate& each : plan.candidates)
        candidates.append(py::make_tuple(each.name, each.supported, each.reason));
    dict["candidates"] = candidates;
    return dict;
}

ConvOptions conv_options_from(const std::string& op, const py::dict& options) {
    ConvOptions result = conv_options(op, options["stride"], options["padding"], options["dilation"], options["groups"],
                                      options["layout"]);
    if (options.contains("padding_mode")) result.padding_mode = padding_mode(op, options["padding_mode"]);
    if (options.contains("padding_value")) result.padding_value = number(op, "padding_value", options["padding_value"]);
    if (options.contains("activation")) result.relu = relu_activation(op, options["activation"]);
    if (options.contains("algorithm")) result.algorithm = conv_algorithm(op, options["algorithm"]);
    return result;
}

std::array<bool, 3> mask_from(const std::string& op, const py::dict& options) {
    return options.contains("output_mask") ? output_mask(op, options["output_mask"]) : std::array{true, true, true};
}

std::vector<PassPlan> backward_plans(const ConvProblem& problem, const std::array<bool, 3>& mask, bool per_sample) {
    std::vector<PassPlan> plans;
    const auto plan = [&](ConvPass pass) {
        if (per_sample && pass == ConvPass::grad_weight)
            return plan_per_sample_grad_weight(problem, active_kernels(), num_threads());
        if (per_sample && pass == ConvPass::grad_bias)
            return plan_per_sample_grad_bias(problem, active_kernels(), num_threads());
        return plan_conv(problem, pass, active_kernels(), num_threads());
    };
    constexpr ConvPass passes[] = {ConvPass::grad_input, ConvPass::grad_weight, ConvPass::grad_bias};
    for (size_t i = 0; i < 3; ++i)
        if (mask[i]) plans.push_back(plan(passes[i]));
    return plans;
}

// The passes of conv2d that run, under the names that they have here.
std::vector<PassPlan> transpose_plans(const ConvTransposeProblem& problem, bool backward,
                                      const std::array<bool, 3>& mask) {
    struct Role {
        bool wanted;
        const char* pass;
        ConvPass runs;
        const char* reason;
    };
    const Role roles[] = {
        {!backward, "forward", ConvPass::grad_input, "the input gradient of a convolution: "},
        {backward && mask[0], "grad_input", ConvPass::forward, "a convolution of grad_output: "},
        {backward && mask[1], "grad_weight", ConvPass::grad_weight, ""},
    };
    std::vector<PassPlan> plans;
    for (const Role& role : roles) {
        if (!role.wanted) continue;
        PassPlan plan;
        if (problem.is_empty()) {
            plan.algorithm = "fill";
            plan.isa = active_kernels().name;
            plan.reason = "no window reaches the output";
        } else {
            plan = plan_conv(problem.conv, role.runs, active_kernels(), num_threads());
            plan.reason = role.reason + plan.reason;
        }
        plan.pass = role.pass;
        plans.push_back(plan);
    }
    if (backward && mask[2])
        plans.push_back(plan_conv(problem.bias_sum(), ConvPass::grad_bias, active_kernels(), num_threads()));
    return plans;
}

// What the forward pass would return or has returned; the gradient reads codes, which are the shorter, if they fit.
Argmax argmax_of(const std::string& op, const py::dict& options, const PoolProblem& problem) {
    const auto wants = [&](const char* name) { return options.contains(name) && truth(op, name, options[name]); };
    if (wants("return_indices")) return Argmax::indices;
    if (wants("return_codes")) {
        check_codes_fit(op, problem);
        return Argmax::codes;
    }
    if (op == "max_pool2d") return Argmax::none;
    return problem.taps() <= max_code_taps ? Argmax::codes : Argmax::indices;
}

}  // namespace

py::list explain_op(const std::string& op, py::handle input_shape, py::handle operand, const py::dict& options,
                    const std::string& dtype) {
    if (dtype != "float32" && dtype != "float64")
        throw TypeError(op + ": dtype is " + dtype + ", expected float32 or float64");
    const DType type = dtype == "float32" ? DType::float32 : DType::float64;
    const ArrayInfo input{"input", type, sizes(op, "input_shape", input_shape)};
    const bool backward = op.size() > 9 && op.compare(op.size() - 9, 9, "_backward") == 0;
    const std::string forward_op = backward ? op.substr(0, op.size() - 9) : op;

    std::vector<PassPlan> plans;
    if (forward_op == "relu") {
        int64_t elements = 1;
        for (const int64_t size : input.shape) elements *= size;
        plans.push_back(plan_relu(type, elements, backward, active_kernels(), num_threads()));
    } else if (forward_op == "max_pool2d") {
        const PoolOptions pool =
            dilated_pool_options(op, {operand, options["stride"], options["padding"], options["dilation"],
                                      options["ceil_mode"], options["layout"]});
        const PoolProblem problem = check_max_pool2d(op, input, pool).problem;
        plans.push_back(
            plan_max_pool2d(problem, backward, argmax_of(op, options, problem), active_kernels(), num_threads()));
    } else if (forward_op == "conv_transpose2d") {
        const ArrayInfo weight{"weight", type, sizes(op, "weight_shape", operand)};
        const ConvTransposeOptions transpose =
            transpose_options(op, {options["stride"], options["padding"], options["output_padding"], options["groups"],
                                   options["dilation"], options["layout"], options["algorithm"]});
        plans = transpose_plans(check_conv_transpose2d(op, input, weight, nullptr, transpose).problem, backward,
                                mask_from(op, options));
    } else {
        const ArrayInfo weight{"weight", type, sizes(op, "weight_shape", operand)};
        ConvOptions conv = conv_options_from(op, options);
        const bool fused = forward_op == "conv2d_relu_max_pool2d";
        if (fused) conv.relu = true;
        const auto [problem, unbatched] = check_conv2d(op, input, weight, nullptr, conv);
        if (forward_op == "conv2d_grad_norms")
            plans = {plan_grad_weight_norms(problem, active_kernels(), num_threads()),
                     plan_grad_bias_norms(problem, active_kernels(), num_threads())};
        else if (backward)
            plans = backward_plans(problem, mask_from(op, options),
                                   options.contains("per_sample") && truth(op, "per_sample", options["per_sample"]));
        else
            plans = {plan_conv(problem, ConvPass::forward, active_kernels(), num_threads())};
        if (fused) {
            const PoolOptions pool = pool_options(op, "pool_", options["pool_kernel_size"], options["pool_stride"],
                                                  options["pool_padding"], options["layout"]);
            const PoolProblem pooling = check_pool_behind(op, {problem, unbatched}, pool);
            PassPlan plan = plan_max_pool2d(pooling, backward, Argmax::codes, active_kernels(), num_threads());
            for (PassPlan& each : plans) {
                const bool summed = each.pass == "grad_weight" || each.pass == "grad_bias";
                if (!summed || !sums_selected_pixels({problem, pooling})) continue;
                each.threads = num_threads();
                describe_selected_pixels({problem, pooling}, each);
            }
            const RowBlock block = fused_row_block({problem, pooling});
            // Where the convolution shares itself out, groups of images go in turn.
            const bool in_turn = traits_of(problem, ConvPass::forward).own_parallelism;
            plan.scratch_bytes += (in_turn ? 1 : plan.threads) * block.images * problem.out_channels * block.rows *
                                  problem.out_w() * item_size(type);
            plan.reason += in_turn ? "; the threads share" : "; each thread has";
            plan.reason += " the convolution output of " + std::to_string(block.images) +
                           (block.images == 1 ? " image, " : " images, ") + std::to_string(block.rows) +
                           " rows at a time, and no more of it exists";
            plan.pass = backward ? "max_pool2d_backward" : "max_pool2d";
            plans.insert(backward ? plans.begin() : plans.end(), plan);
        }
    }
    py::list list;
    for (const PassPlan& plan : plans) list.append(to_dict(plan));
    return list;
}

}  // namespace convx
