// convx._cuda: the names that Python sees. The same sources, compiled over the shim of tests/simt, are convx._simt.
#include "bindings/cuda_ops.h"
#include "bindings/errors.h"
#include "bindings/fast_call.h"
#include "bindings/module.h"
#include "cuda/runtime.h"

namespace py = pybind11;
using namespace convx;

CONVX_PYTHON_MODULE(CONVX_MODULE, module) {
    register_errors(py::module_::import("convx._cpu").attr("ShapeError"));
    static PyMethodDef functions[] = {
        FastCall<&cuda_conv2d_op>::named("conv2d"),
        FastCall<&cuda_conv2d_backward_op>::named("conv2d_backward"),
        FastCall<&cuda_conv2d_grad_norms_op>::named("conv2d_grad_norms"),
        FastCall<&cuda_conv_transpose2d_op>::named("conv_transpose2d"),
        FastCall<&cuda_conv_transpose2d_backward_op>::named("conv_transpose2d_backward"),
        FastCall<&cuda_relu_op>::named("relu"),
        FastCall<&cuda_relu_backward_op>::named("relu_backward"),
        FastCall<&cuda_max_pool2d_op>::named("max_pool2d"),
        FastCall<&cuda_max_pool2d_backward_op>::named("max_pool2d_backward"),
        FastCall<&cuda_conv2d_relu_max_pool2d_op>::named("conv2d_relu_max_pool2d"),
        FastCall<&cuda_conv2d_relu_max_pool2d_backward_op>::named("conv2d_relu_max_pool2d_backward"),
        {nullptr, nullptr, 0, nullptr},
    };
    add_functions(module, functions);
    module.def("explain", &cuda_explain_op);
    module.def("device_count", &cuda::device_count);
    module.def("unavailable_reason", &cuda::unavailable_reason);
    module.def("device_name", &cuda::device_name);
}
