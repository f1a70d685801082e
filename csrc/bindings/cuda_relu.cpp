// ReLU takes arrays of any rank and strides.
#include "bindings/cuda_ops.h"
#include "cuda/relu.h"
#include "cuda/runtime.h"

namespace convx {

namespace {

cuda::StridedArray strided(const DeviceArray& array) { return {array.data, array.stride}; }

DeviceArray destination(DeviceArrays& arrays, py::handle out, const DeviceArray& like) {
    return out.is_none() ? arrays.empty_like(like) : arrays.output(out, like.info, like.info.shape);
}

}  // namespace

py::object cuda_relu_op(py::handle library, py::handle input, py::handle out) {
    static const std::string op = "relu";
    DeviceArrays arrays(op, library);
    const DeviceArray x = arrays.input("input", input);
    const DeviceArray y = destination(arrays, out, x);
    if (!out.is_none()) arrays.check_no_overlap(y, x, true);
    const cuda::DeviceGuard guard(arrays.device());
    cuda::relu(x.info.dtype, x.info.shape, strided(x), strided(y), arrays.stream());
    return y.array;
}

py::object cuda_relu_backward_op(py::handle library, py::handle grad_output, py::handle output, py::handle out) {
    static const std::string op = "relu_backward";
    DeviceArrays arrays(op, library);
    const DeviceArray g = arrays.input("grad_output", grad_output);
    const DeviceArray y = arrays.input("output", output);
    check_dtype(op, y.info, g.info);
    check_shape(op, y.info, g.info.shape);
    const DeviceArray result = destination(arrays, out, g);
    if (!out.is_none()) {
        arrays.check_no_overlap(result, g, true);
        arrays.check_no_overlap(result, y, true);
    }
    const cuda::DeviceGuard guard(arrays.device());
    cuda::relu_backward(g.info.dtype, g.info.shape, strided(g), strided(y), strided(result), arrays.stream());
    return result.array;
}

}  // namespace convx
