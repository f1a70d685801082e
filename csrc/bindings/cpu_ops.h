// The functions of convx._cpu: Python objects in, arrays out. One file an operation; cpu_module.cpp names them.
#pragma once

#include "bindings/arguments.h"

namespace convx {

// Calls work(T{}) with the element type.
template <class Work>
void dispatch(DType dtype, const Work& work) {
    if (dtype == DType::float32)
        work(float{});
    else
        work(double{});
}

inline py::array new_array(DType dtype, const std::vector<int64_t>& shape) {
    const std::vector<py::ssize_t> sizes(shape.begin(), shape.end());
    if (dtype == DType::float32) return py::array_t<float>(sizes);
    return py::array_t<double>(sizes);
}

py::array conv2d_op(py::handle input, py::handle weight, py::handle bias, py::handle stride, py::handle padding,
                    py::handle dilation, py::handle groups, py::handle padding_mode, py::handle padding_value,
                    py::handle activation, py::handle layout, py::handle algorithm, py::handle out);
py::tuple conv2d_backward_op(py::handle grad_output, py::handle input, py::handle weight, py::handle stride,
                             py::handle padding, py::handle dilation, py::handle groups, py::handle padding_mode,
                             py::handle padding_value, py::handle layout, py::handle algorithm, py::handle output_mask);

py::array relu_op(py::handle input, py::handle out);
py::array relu_backward_op(py::handle grad_output, py::handle output, py::handle out);

py::object max_pool2d_op(py::handle input, py::handle kernel_size, py::handle stride, py::handle padding,
                         py::handle dilation, py::handle ceil_mode, py::handle layout, py::handle return_indices,
                         py::handle return_codes);
py::array max_pool2d_backward_op(py::handle grad_output, py::handle indices_or_codes, py::handle input_shape,
                                 py::handle kernel_size, py::handle stride, py::handle padding, py::handle dilation,
                                 py::handle ceil_mode, py::handle layout);

py::tuple conv2d_relu_max_pool2d_op(py::handle input, py::handle weight, py::handle bias, py::handle stride,
                                    py::handle padding, py::handle dilation, py::handle groups,
                                    py::handle pool_kernel_size, py::handle pool_stride, py::handle pool_padding,
                                    py::handle layout);
py::tuple conv2d_relu_max_pool2d_backward_op(py::handle grad_output, py::handle input, py::handle weight,
                                             py::handle codes, py::handle stride, py::handle padding,
                                             py::handle dilation, py::handle groups, py::handle pool_kernel_size,
                                             py::handle pool_stride, py::handle pool_padding, py::handle layout,
                                             py::handle output_mask);

py::list explain_op(const std::string& op, py::handle input_shape, py::handle weight_shape_or_kernel_size,
                    const py::dict& options, const std::string& dtype);

// Option parsing shared by the operations and explain.
ConvOptions conv_options(const std::string& op, py::handle stride, py::handle padding, py::handle dilation,
                         py::handle groups, py::handle padding_mode, py::handle padding_value, py::handle layout);
PoolOptions pool_options(const std::string& op, const std::string& prefix, py::handle kernel_size, py::handle stride,
                         py::handle padding, py::handle dilation, py::handle ceil_mode, py::handle layout);

}  // namespace convx
