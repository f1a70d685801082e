// convx.explain for CUDA: the operation's own checks and plans, run without arrays and without a device.
#include "bindings/cuda_ops.h"
#include "bindings/options.h"
#include "cuda/conv2d/per_sample.h"
#include "cuda/conv2d_relu_max_pool2d.h"

namespace convx {

namespace {

DType named_dtype(const std::string& op, const std::string& name) {
    for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16})
        if (name == dtype_name(dtype)) return dtype;
    throw TypeError(op + ": dtype is " + name + ", expected float32, float64, float16 or bfloat16");
}

int64_t volume(const std::array<int64_t, 4>& shape) { return shape[0] * shape[1] * shape[2] * shape[3]; }

// One entry of the list; the names are the fields of CudaPlan in python/convx/runtime.py.
struct Entry {
    std::string pass, algorithm, precision, tile, reason;
    int64_t parts = 1, blocks = 0, workspace_bytes = 0, flops = 0, bytes = 0;

    py::dict dict() const {
        py::dict entry;
        entry["pass"] = pass;
        entry["algorithm"] = algorithm;
        entry["precision"] = precision;
        entry["tile"] = tile;
        entry["parts"] = parts;
        entry["blocks"] = blocks;
        entry["workspace_bytes"] = workspace_bytes;
        entry["flops"] = flops;
        entry["bytes"] = bytes;
        entry["reason"] = reason;
        return entry;
    }
};

std::string precision_text(DType dtype, cuda::Precision precision) {
    if (dtype == DType::float16 || dtype == DType::bfloat16)
        return std::string(dtype_name(dtype)) + " on tensor cores, summed in float32";
    if (precision == cuda::Precision::ieee) return std::string("IEEE ") + dtype_name(dtype) + " on CUDA cores";
    return std::string(precision == cuda::Precision::tf32 ? "TF32" : "three products of TF32") +
           " on tensor cores, summed in float32";
}

Entry conv_entry(const ConvProblem& problem, cuda::ConvPass pass, const cuda::ConvPlan& plan) {
    constexpr const char* names[] = {"forward", "grad_input", "grad_weight", "grad_bias"};
    const int64_t in = volume(problem.input_shape()), weight = volume(problem.weight_shape());
    const int64_t out = volume(problem.output_shape());
    const bool bias = pass == cuda::ConvPass::grad_bias;
    Entry entry;
    entry.pass = names[static_cast<int>(pass)];
    const bool direct = plan.method == cuda::ConvMethod::direct;
    entry.algorithm = bias ? "sum over pixels" : direct ? "direct" : "implicit GEMM";
    entry.precision = bias     ? problem.dtype == DType::float64 ? "float64" : "summed in float32"
                      : direct ? std::string(dtype_name(problem.dtype)) + " on CUDA cores, summed in " +
                                     (problem.dtype == DType::float64 ? "float64" : "float32")
                               : precision_text(problem.dtype, plan.precision);
    if (!bias && !direct) {
        const cuda::TileSize tile = cuda::tile_size(problem.dtype, plan.precision, plan.large);
        entry.tile = std::to_string(tile.rows) + " x " + std::to_string(tile.columns) + ", " +
                     std::to_string(tile.depth) + " deep";
    }
    entry.reason = plan.reason;
    entry.parts = plan.parts;
    entry.blocks = plan.blocks;
    entry.workspace_bytes = plan.workspace_bytes();
    entry.flops = bias ? out : problem.flops();
    entry.bytes = (bias ? out + problem.out_channels : in + weight + out) * item_size(problem.dtype);
    return entry;
}

Entry conv_entry(const ConvProblem& problem, cuda::ConvPass pass, cuda::Precision precision) {
    return conv_entry(problem, pass, cuda::plan_conv2d(problem, pass, precision));
}

// Of arrays that are dense in their layout.
Entry per_sample_entry(const ConvProblem& problem, cuda::ConvPass pass, cuda::Precision precision, bool norms) {
    const bool joined = !problem.channels_last || problem.batch <= 1;
    const cuda::PerSamplePlan plan = cuda::plan_per_sample(problem, pass, precision, joined, norms);
    Entry entry = conv_entry(problem, pass, plan.pass);
    entry.workspace_bytes = plan.workspace_bytes();
    if (norms) entry.pass = pass == cuda::ConvPass::grad_weight ? "weight_norms" : "bias_norms";
    return entry;
}

// ReLU and pooling: one launch whose only cost is the memory that it moves.
Entry memory_entry(const std::string& pass, DType dtype, int64_t bytes, int64_t workspace_bytes) {
    Entry entry;
    entry.pass = pass;
    entry.algorithm = "one thread an element or a few";
    entry.precision = dtype_name(dtype);
    entry.workspace_bytes = workspace_bytes;
    entry.bytes = bytes;
    entry.reason = "bound by memory: every array is read or written once";
    return entry;
}

ConvOptions conv_options_from(const std::string& op, const py::dict& options) {
    if (options.contains("padding_mode"))
        return padded_options(op,
                              {options["stride"], options["padding"], options["dilation"], options["groups"],
                               options["padding_mode"], options["padding_value"]},
                              options["layout"], options["algorithm"]);
    return conv_options(op, options["stride"], options["padding"], options["dilation"], options["groups"],
                        options["layout"]);
}

// The passes of conv2d that run, under the names that they have here.
std::vector<Entry> transpose_entries(const ConvTransposeProblem& problem, bool backward,
                                     const std::array<bool, 3>& mask, cuda::Precision precision) {
    struct Role {
        bool wanted;
        const char* pass;
        cuda::ConvPass runs;
        const char* reason;
    };
    const Role roles[] = {
        {!backward, "forward", cuda::ConvPass::grad_input, "the input gradient of a convolution: "},
        {backward && mask[0], "grad_input", cuda::ConvPass::forward, "a convolution of grad_output: "},
        {backward && mask[1], "grad_weight", cuda::ConvPass::grad_weight, ""},
    };
    std::vector<Entry> entries;
    for (const Role& role : roles) {
        if (!role.wanted) continue;
        Entry entry;
        if (problem.is_empty()) {
            entry.algorithm = "fill";
            entry.reason = "no window reaches the output";
        } else {
            entry = conv_entry(problem.conv, role.runs, precision);
            entry.reason = role.reason + entry.reason;
        }
        entry.pass = role.pass;
        entries.push_back(entry);
    }
    if (backward && mask[2]) entries.push_back(conv_entry(problem.bias_sum(), cuda::ConvPass::grad_bias, precision));
    return entries;
}

}  // namespace

py::list cuda_explain_op(const std::string& op, py::handle input_shape, py::handle operand, const py::dict& options,
                         const std::string& dtype) {
    const DType type = named_dtype(op, dtype);
    const int64_t item = item_size(type);
    const ArrayInfo input{"input", type, sizes(op, "input_shape", input_shape)};
    const bool backward = op.size() > 9 && op.compare(op.size() - 9, 9, "_backward") == 0;
    const std::string forward_op = backward ? op.substr(0, op.size() - 9) : op;
    const std::string pass = backward ? "backward" : "forward";

    std::vector<Entry> entries;
    if (forward_op == "relu") {
        int64_t elements = 1;
        for (const int64_t size : input.shape) elements *= size;
        entries.push_back(memory_entry(pass, type, elements * item * (backward ? 3 : 2), 0));
    } else if (forward_op == "max_pool2d") {
        const PoolOptions pool =
            dilated_pool_options(op, {operand, options["stride"], options["padding"], options["dilation"],
                                      options["ceil_mode"], options["layout"]});
        const PoolProblem problem = check_max_pool2d(op, input, pool).problem;
        cuda::check_planes(op, problem);
        const int64_t out = volume(problem.output_shape());
        entries.push_back(
            memory_entry(pass, type, (volume(problem.input_shape()) + out) * item + (backward ? out : 0), 0));
    } else if (forward_op == "conv_transpose2d") {
        const ArrayInfo weight{"weight", type, sizes(op, "weight_shape", operand)};
        const ConvTransposeOptions transpose =
            transpose_options(op, {options["stride"], options["padding"], options["output_padding"], options["groups"],
                                   options["dilation"], options["layout"], options["algorithm"]});
        const std::array<bool, 3> mask = backward ? output_mask(op, options["output_mask"]) : std::array<bool, 3>{};
        entries = transpose_entries(check_conv_transpose2d(op, input, weight, nullptr, transpose).problem, backward,
                                    mask, precision_option(op, options["precision"]));
    } else {
        const ArrayInfo weight{"weight", type, sizes(op, "weight_shape", operand)};
        ConvOptions conv = conv_options_from(op, options);
        if (options.contains("activation")) conv.relu = relu_activation(op, options["activation"]);
        const cuda::Precision precision = precision_option(op, options["precision"]);
        const bool fused = forward_op == "conv2d_relu_max_pool2d";
        const auto [problem, unbatched] = check_conv2d(op, input, weight, nullptr, conv);
        std::array<bool, 3> mask{};
        if (backward) {
            mask = output_mask(op, options["output_mask"]);
            constexpr cuda::ConvPass passes[] = {cuda::ConvPass::grad_input, cuda::ConvPass::grad_weight,
                                                 cuda::ConvPass::grad_bias};
            const bool per_sample = options.contains("per_sample") && truth(op, "per_sample", options["per_sample"]);
            for (size_t i = 0; i < 3; ++i)
                if (mask[i])
                    entries.push_back(per_sample && i > 0 ? per_sample_entry(problem, passes[i], precision, false)
                                                          : conv_entry(problem, passes[i], precision));
        } else if (forward_op == "conv2d_grad_norms") {
            for (const cuda::ConvPass each : {cuda::ConvPass::grad_weight, cuda::ConvPass::grad_bias})
                entries.push_back(per_sample_entry(problem, each, precision, true));
        } else {
            entries.push_back(conv_entry(problem, cuda::ConvPass::forward, precision));
        }
        if (fused) {
            const PoolOptions pool = pool_options(op, "pool_", options["pool_kernel_size"], options["pool_stride"],
                                                  options["pool_padding"], options["layout"]);
            const PoolProblem pooling = check_pool_behind(op, {problem, unbatched}, pool);
            const FusedProblem both{problem, pooling};
            const cuda::FusedPlan plan =
                backward ? cuda::plan_fused_backward(both, precision, mask) : cuda::plan_fused_forward(both, precision);
            const int64_t whole = volume(problem.output_shape()), out = volume(pooling.output_shape());
            Entry entry =
                memory_entry(backward ? "max_pool2d_backward" : "max_pool2d", type, (whole + out) * item + out,
                             plan.buffer_bytes + plan.carried_weight + plan.carried_bias);
            entry.reason += "; the workspace holds the convolution's output of " + std::to_string(plan.images) +
                            (plan.images == 1 ? " image" : " images") + " at a time";
            entries.insert(backward ? entries.begin() : entries.end(), entry);
        }
    }
    py::list list;
    for (const Entry& entry : entries) list.append(entry.dict());
    return list;
}

}  // namespace convx
