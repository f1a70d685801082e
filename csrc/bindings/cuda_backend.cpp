#include "bindings/cuda_backend.h"

namespace convx {

cuda::Precision precision_option(const std::string& op, py::handle precision) {
    if (PyUnicode_Check(precision.ptr()))
        for (int i = 0; i < 3; ++i)
            if (PyUnicode_CompareWithASCIIString(precision.ptr(), cuda::precision_names[i]) == 0)
                return static_cast<cuda::Precision>(i);
    throw ShapeError(op + ": precision is " + repr_of(precision) + ", expected 'ieee', 'tf32x3' or 'tf32'");
}

// The direct sum is what CUDA has; "winograd" is asked for by name only where it exists.
void Cuda::check_method(const ConvProblem& problem, ConvPass) const {
    if (problem.algorithm != Algorithm::automatic && problem.algorithm != Algorithm::direct)
        throw ShapeError(op_ + ": algorithm is '" + algorithm_names()[static_cast<size_t>(problem.algorithm)] +
                         "', expected 'auto' or 'direct' on CUDA");
}

cuda::PerSamplePlan Cuda::planned_samples(const ConvProblem& problem, const Tensor& grad_output, const Tensor* input,
                                          bool norms) const {
    const bool joined = cuda::images_are_channels(grad_output) && (!input || cuda::images_are_channels(*input));
    return cuda::plan_per_sample(problem, input ? ConvPass::grad_weight : ConvPass::grad_bias, precision_, joined,
                                 norms);
}

bool Cuda::max_pool2d_backward(const PoolProblem& problem, const Tensor& grad_output, const Tensor& chosen,
                               bool by_codes, const Tensor& grad_input) {
    if (by_codes)
        cuda::max_pool2d_backward_codes(problem, grad_output, chosen, grad_input, stream());
    else
        cuda::max_pool2d_backward_indices(problem, grad_output, chosen, grad_input,
                                          workspace(cuda::max_pool2d_indices_workspace(problem)), stream());
    return true;
}

bool Cuda::conv2d_relu_max_pool2d_backward(const FusedProblem& problem, const Tensor& grad_output, const Tensor& input,
                                           const Tensor& weight, const Tensor& codes, const Tensor& grad_input,
                                           const Tensor& grad_weight, const Tensor& grad_bias) {
    const std::array<bool, 3> mask{grad_input.data != nullptr, grad_weight.data != nullptr, grad_bias.data != nullptr};
    if (mask == std::array{false, false, false}) return true;
    const cuda::FusedPlan plan = cuda::plan_fused_backward(problem, precision_, mask);
    cuda::conv2d_relu_max_pool2d_backward(problem, plan, grad_output, input, weight, codes, grad_input, grad_weight,
                                          grad_bias, workspace(plan), stream());
    return true;
}

}  // namespace convx
