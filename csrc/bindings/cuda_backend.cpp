#include "bindings/cuda_backend.h"

namespace convx {

cuda::Precision precision_option(const std::string& op, py::handle precision) {
    if (PyUnicode_Check(precision.ptr()))
        for (int i = 0; i < 3; ++i)
            if (PyUnicode_CompareWithASCIIString(precision.ptr(), cuda::precision_names[i]) == 0)
                return static_cast<cuda::Precision>(i);
    throw ShapeError(op + ": precision is " + repr_of(precision) + ", expected 'ieee', 'tf32x3' or 'tf32'");
}

// CUDA has no other family than "direct".
void Cuda::check_method(const ConvProblem& problem, ConvPass) const {
    if (problem.algorithm != Algorithm::automatic && problem.algorithm != Algorithm::direct)
        throw ShapeError(op_ + ": algorithm is '" + algorithm_names()[static_cast<size_t>(problem.algorithm)] +
                         "', expected 'auto' or 'direct' on CUDA");
}

void Cuda::per_sample(const ConvProblem& problem, ConvPass pass, const Tensor& grad_output, const Tensor& input,
                      void* gradients, double* norms) {
    const bool joined =
        cuda::images_are_channels(grad_output) && (pass == ConvPass::grad_bias || cuda::images_are_channels(input));
    const cuda::PerSamplePlan plan = cuda::plan_per_sample(problem, pass, precision_, joined, norms != nullptr);
    cuda::per_sample(problem, pass, plan, grad_output, input, gradients, norms, workspace(plan), stream());
}

bool Cuda::max_pool2d_backward(const PoolProblem& problem, const Tensor& grad_output, const Tensor& argmax,
                               bool by_codes, const Tensor& grad_input) {
    if (by_codes)
        cuda::max_pool2d_backward_codes(problem, grad_output, argmax, grad_input, stream());
    else
        cuda::max_pool2d_backward_indices(problem, grad_output, argmax, grad_input,
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
