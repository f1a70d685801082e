#include "cuda/conv2d/conv2d.h"

#include "cuda/numbers.cuh"

namespace convx::cuda {

void conv2d_forward(const ConvProblem& problem, const ConvPlan& plan, const DeviceTensor& input,
                    const DeviceTensor& weight, const DeviceTensor& bias, const DeviceTensor& output, void* workspace,
                    Stream stream) {
    with_type(problem.dtype, [&](auto type) {
        Conv2d<typename decltype(type)::T>::forward(problem, plan, input, weight, bias, output, workspace, stream);
    });
}

void conv2d_grad_input(const ConvProblem& problem, const ConvPlan& plan, const DeviceTensor& grad_output,
                       const DeviceTensor& weight, const DeviceTensor& grad_input, void* workspace, Stream stream,
                       const DeviceTensor& bias) {
    with_type(problem.dtype, [&](auto type) {
        Conv2d<typename decltype(type)::T>::grad_input(problem, plan, grad_output, weight, grad_input, workspace,
                                                       stream, bias);
    });
}

void conv2d_grad_weight(const ConvProblem& problem, const ConvPlan& plan, const DeviceTensor& grad_output,
                        const DeviceTensor& input, const DeviceTensor& grad_weight, void* workspace, Stream stream,
                        const Carried& carried) {
    with_type(problem.dtype, [&](auto type) {
        Conv2d<typename decltype(type)::T>::grad_weight(problem, plan, grad_output, input, grad_weight, workspace,
                                                        stream, carried);
    });
}

void conv2d_grad_bias(const ConvProblem& problem, const ConvPlan& plan, const DeviceTensor& grad_output,
                      const DeviceTensor& grad_bias, void* workspace, Stream stream, const Carried& carried) {
    with_type(problem.dtype, [&](auto type) {
        Conv2d<typename decltype(type)::T>::grad_bias(problem, plan, grad_output, grad_bias, workspace, stream,
                                                      carried);
    });
}

}  // namespace convx::cuda
