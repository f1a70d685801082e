// The functions of convx._cuda, as those of convx._cpu (cpu_ops.h) with the caller's array library in front. One file
// an operation; cuda_module.cpp names them.
#pragma once

#include "bindings/cuda_arrays.h"
#include "bindings/options.h"
#include "cuda/conv2d/plan.h"

namespace convx {

cuda::Precision precision_option(const std::string& op, py::handle precision);
void check_cuda_algorithm(const std::string& op, const ConvOptions& options);

py::object cuda_conv2d_op(py::handle library, py::handle input, py::handle weight, py::handle bias,
                          const ConvHandles& given, py::handle activation, py::handle layout, py::handle algorithm,
                          py::handle precision, py::handle out);
py::tuple cuda_conv2d_backward_op(py::handle library, py::handle grad_output, py::handle input, py::handle weight,
                                  const ConvHandles& given, py::handle layout, py::handle algorithm,
                                  py::handle precision, py::handle output_mask, py::handle per_sample);
py::tuple cuda_conv2d_grad_norms_op(py::handle library, py::handle grad_output, py::handle input,
                                    py::handle weight_shape, const ConvHandles& given, py::handle layout,
                                    py::handle algorithm, py::handle precision);
py::object cuda_conv_transpose2d_op(py::handle library, py::handle input, py::handle weight, py::handle bias,
                                    const TransposeHandles& given, py::handle precision, py::handle out);
py::tuple cuda_conv_transpose2d_backward_op(py::handle library, py::handle grad_output, py::handle input,
                                            py::handle weight, const TransposeHandles& given, py::handle precision,
                                            py::handle output_mask);
py::object cuda_relu_op(py::handle library, py::handle input, py::handle return_mask, py::handle out);
py::object cuda_relu_backward_op(py::handle library, py::handle grad_output, py::handle output, py::handle out);
py::object cuda_max_pool2d_op(py::handle library, py::handle input, const PoolHandles& given, py::handle return_indices,
                              py::handle return_codes);
py::object cuda_max_pool2d_backward_op(py::handle library, py::handle grad_output, py::handle indices_or_codes,
                                       py::handle input_shape, const PoolHandles& given);

py::list cuda_explain_op(const std::string& op, py::handle input_shape, py::handle operand, const py::dict& options,
                         const std::string& dtype);
py::tuple cuda_conv2d_relu_max_pool2d_op(py::handle library, py::handle input, py::handle weight, py::handle bias,
                                         const FusedHandles& given, py::handle precision);
py::tuple cuda_conv2d_relu_max_pool2d_backward_op(py::handle library, py::handle grad_output, py::handle input,
                                                  py::handle weight, py::handle codes, const FusedHandles& given,
                                                  py::handle precision, py::handle output_mask);

}  // namespace convx
