// ReLU takes arrays of any rank and strides.
#include "bindings/cuda_ops.h"
#include "cuda/relu.h"
#include "cuda/runtime.h"

namespace convx {

namespace {

cuda::StridedArray strided(const DeviceArray& array) { return {array.data, array.stride}; }

int64_t elements_of(const DeviceArray& array) {
    int64_t elements = 1;
    for (const int64_t size : array.info.shape) elements *= size;
    return elements;
}

DeviceArray destination(DeviceArrays& arrays, py::handle out, const DeviceArray& like) {
    return out.is_none() ? arrays.empty_like(like) : arrays.output(out, like.info, like.info.shape);
}

}  // namespace

py::object cuda_relu_op(py::handle library, py::handle input, py::handle return_mask, py::handle out) {
    static const std::string op = "relu";
    DeviceArrays arrays(op, library);
    const DeviceArray x = arrays.input("input", input);
    const DeviceArray y = destination(arrays, out, x);
    if (!out.is_none()) arrays.check_no_overlap(y, x, true);
    const bool masked = truth(op, "return_mask", return_mask);
    const cuda::DeviceGuard guard(arrays.device());
    if (!masked) {
        cuda::relu(x.info.dtype, x.info.shape, strided(x), strided(y), arrays.stream());
        return y.array;
    }
    const DeviceArray mask = arrays.empty_integers("uint8", {relu_mask_bytes(elements_of(x))});
    cuda::relu_mask(x.info.dtype, x.info.shape, strided(x), strided(y), static_cast<uint8_t*>(mask.data),
                    arrays.stream());
    return py::make_tuple(y.array, mask.array);
}

py::object cuda_relu_backward_op(py::handle library, py::handle grad_output, py::handle output, py::handle out) {
    static const std::string op = "relu_backward";
    DeviceArrays arrays(op, library);
    const DeviceArray g = arrays.input("grad_output", grad_output);
    const DeviceArray y = arrays.input_or_bytes("output", output);
    const bool is_mask = y.item_bytes != 0;
    if (is_mask) {
        check_relu_mask(op, y.info.shape, elements_of(g));
    } else {
        check_dtype(op, y.info, g.info);
        check_shape(op, y.info, g.info.shape);
    }
    const DeviceArray result = destination(arrays, out, g);
    if (!out.is_none()) {
        arrays.check_no_overlap(result, g, true);
        arrays.check_no_overlap(result, y, !is_mask);
    }
    const cuda::DeviceGuard guard(arrays.device());
    if (is_mask) {
        cuda::relu_mask_backward(g.info.dtype, g.info.shape, strided(g), static_cast<const uint8_t*>(y.data),
                                 y.stride[0], strided(result), arrays.stream());
        return result.array;
    }
    cuda::relu_backward(g.info.dtype, g.info.shape, strided(g), strided(y), strided(result), arrays.stream());
    return result.array;
}

}  // namespace convx
