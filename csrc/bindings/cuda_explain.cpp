#include "bindings/cuda_explain.h"

#include "bindings/cuda_backend.h"

namespace convx {

namespace {

std::string precision_text(DType dtype, cuda::Precision precision) {
    if (dtype == DType::float16 || dtype == DType::bfloat16)
        return std::string(dtype_name(dtype)) + " on tensor cores, summed in float32";
    if (precision == cuda::Precision::ieee) return std::string("IEEE ") + dtype_name(dtype) + " on CUDA cores";
    return std::string(precision == cuda::Precision::tf32 ? "TF32" : "three products of TF32") +
           " on tensor cores, summed in float32";
}

CudaPlan conv_plan(const ConvProblem& problem, ConvPass pass, const cuda::ConvPlan& plan) {
    const int64_t in = element_count(problem.input_shape()), weight = element_count(problem.weight_shape());
    const int64_t out = element_count(problem.output_shape());
    const bool bias = pass == ConvPass::grad_bias, direct = plan.method == cuda::ConvMethod::direct;
    CudaPlan entry;
    entry.pass = pass_name(pass);
    entry.algorithm = bias ? "sum over pixels" : direct ? "direct" : "implicit-gemm";
    entry.precision = bias     ? problem.dtype == DType::float64 ? "float64" : "summed in float32"
                      : direct ? std::string(dtype_name(problem.dtype)) + " on CUDA cores, summed in " +
                                     (problem.dtype == DType::float64 ? "float64" : "float32")
                               : precision_text(problem.dtype, plan.precision);
    if (!bias && !direct) {
        const cuda::TileSize tile = cuda::tile_size(problem.dtype, plan.large);
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

// ReLU and pooling: one launch whose only cost is the memory that it moves.
CudaPlan memory_plan(bool backward, DType dtype, int64_t bytes) {
    CudaPlan entry;
    entry.pass = backward ? "backward" : "forward";
    entry.algorithm = "one thread an element or a few";
    entry.precision = dtype_name(dtype);
    entry.bytes = bytes;
    entry.reason = "bound by memory: every array is read or written once";
    return entry;
}

}  // namespace

CudaPlans::CudaPlans(const std::string& op, const py::dict& options) : op_(op) {
    if (options.contains("precision")) precision_ = precision_option(op, options["precision"]);
}

DType CudaPlans::dtype(const std::string& op, const std::string& name) {
    for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16})
        if (name == dtype_name(dtype)) return dtype;
    throw TypeError(op + ": dtype is " + name + ", expected float32, float64, float16 or bfloat16");
}

CudaPlan CudaPlans::conv(const ConvProblem& problem, ConvPass pass) const {
    return conv_plan(problem, pass, cuda::plan_conv2d(problem, pass, precision_));
}

// Of arrays that are dense in their layout.
CudaPlan CudaPlans::samples(const ConvProblem& problem, ConvPass pass, bool norms) const {
    const bool joined = !problem.channels_last || problem.batch <= 1;
    const cuda::PerSamplePlan plan = cuda::plan_per_sample(problem, pass, precision_, joined, norms);
    CudaPlan entry = conv_plan(problem, pass, plan.pass);
    entry.workspace_bytes = plan.workspace_bytes();
    return entry;
}

CudaPlan CudaPlans::norms(const ConvProblem& problem, ConvPass pass) const {
    CudaPlan entry = samples(problem, pass, true);
    entry.pass = pass == ConvPass::grad_weight ? "weight_norms" : "bias_norms";
    return entry;
}

CudaPlan CudaPlans::relu(DType dtype, int64_t size, bool backward) const {
    return memory_plan(backward, dtype, size * item_size(dtype) * (backward ? 3 : 2));
}

CudaPlan CudaPlans::max_pool2d(const PoolProblem& problem, bool backward, const ExplainedOptions&) const {
    cuda::check_planes(op_, problem);
    const int64_t in = element_count(problem.input_shape()), out = element_count(problem.output_shape());
    return memory_plan(backward, problem.dtype, (in + out) * item_size(problem.dtype) + (backward ? out : 0));
}

CudaPlan CudaPlans::fill() const {
    CudaPlan entry;
    entry.algorithm = "fill";
    return entry;
}

CudaPlan CudaPlans::pool_behind(const FusedProblem& problem, const std::array<bool, 3>& mask, bool backward,
                                std::vector<CudaPlan>&) const {
    const cuda::FusedPlan plan =
        backward ? cuda::plan_fused_backward(problem, precision_, mask) : cuda::plan_fused_forward(problem, precision_);
    const int64_t whole = element_count(problem.conv.output_shape()), out = element_count(problem.pool.output_shape());
    CudaPlan entry = memory_plan(backward, problem.conv.dtype, (whole + out) * item_size(problem.conv.dtype) + out);
    entry.workspace_bytes = plan.buffer_bytes + plan.carried_weight + plan.carried_bias;
    entry.reason += "; the workspace holds the convolution's output of " + std::to_string(plan.images) +
                    (plan.images == 1 ? " image" : " images") + " at a time";
    return entry;
}

py::dict CudaPlans::dict(const CudaPlan& plan) const {
    using namespace py::literals;
    return py::dict("pass"_a = plan.pass, "algorithm"_a = plan.algorithm, "precision"_a = plan.precision,
                    "tile"_a = plan.tile, "parts"_a = plan.parts, "blocks"_a = plan.blocks,
                    "workspace_bytes"_a = plan.workspace_bytes, "flops"_a = plan.flops, "bytes"_a = plan.bytes,
                    "reason"_a = plan.reason);
}

}  // namespace convx
