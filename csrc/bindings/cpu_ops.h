// The functions that convx._cpu alone has; cpu_module.cpp names them.
#pragma once

#include "bindings/options.h"
#include "bindings/py_array.h"

namespace convx {

// The checks alone, for libraries that ask for the shape of a result before there are numbers.
py::tuple resolve_conv2d_op(py::handle input, py::handle weight, py::handle bias, const ConvHandles& given,
                            py::handle activation, py::handle layout, py::handle algorithm);
py::tuple resolve_conv_transpose2d_op(py::handle input, py::handle weight, py::handle bias,
                                      const TransposeHandles& given);
py::tuple resolve_relu_op(py::handle input);
py::tuple resolve_max_pool2d_op(py::handle input, const PoolHandles& given);
py::tuple resolve_conv2d_relu_max_pool2d_op(py::handle input, py::handle weight, py::handle bias,
                                            const FusedHandles& given);

// The checks of a layer's constructor, from the name of the layer and its arguments to the shape of its weight, or of
// the window; and those of single arguments.
py::tuple resolve_conv2d_layer_op(py::handle layer, py::handle in_channels, py::handle out_channels,
                                  py::handle kernel_size, py::handle bias, py::handle dtype, const ConvHandles& given,
                                  py::handle layout, py::handle algorithm);
py::tuple resolve_conv_transpose2d_layer_op(py::handle layer, py::handle in_channels, py::handle out_channels,
                                            py::handle kernel_size, py::handle bias, py::handle dtype,
                                            const TransposeHandles& given);
py::tuple resolve_max_pool2d_layer_op(py::handle layer, const PoolHandles& given);
py::tuple resolve_linear_layer_op(py::handle layer, py::handle in_features, py::handle out_features, py::handle bias,
                                  py::handle dtype);
py::object truth_op(py::handle owner, py::handle name, py::handle value);
py::object integer_op(py::handle owner, py::handle name, py::handle value);

}  // namespace convx
