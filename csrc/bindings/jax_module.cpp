// convx._jax: the operations as handlers of XLA's foreign function interface, for python/convx/jax.
#include "bindings/jax_calls.h"
#include "bindings/module.h"

namespace py = pybind11;
using namespace convx;

const CpuEntryPoints* convx::jax::cpu = nullptr;

namespace {

template <void (*function)(const jax::Call&)>
void add(py::dict& handlers, const char* name) {
    handlers[name] = py::capsule(reinterpret_cast<void*>(&jax::handler<function>));
}

}  // namespace

CONVX_PYTHON_MODULE(_jax, module) {
    const py::object capsule = py::module_::import("convx._cpu").attr(entry_points_attribute);
    jax::cpu = static_cast<const CpuEntryPoints*>(PyCapsule_GetPointer(capsule.ptr(), entry_points_name));
    if (!jax::cpu) throw py::error_already_set();
    py::dict handlers;
    add<&jax::conv2d>(handlers, "conv2d");
    add<&jax::conv2d_grad_input>(handlers, "conv2d_grad_input");
    add<&jax::conv2d_grad_weight>(handlers, "conv2d_grad_weight");
    add<&jax::conv2d_grad_bias>(handlers, "conv2d_grad_bias");
    add<&jax::relu>(handlers, "relu");
    add<&jax::relu_backward>(handlers, "relu_backward");
    add<&jax::max_pool2d>(handlers, "max_pool2d");
    add<&jax::max_pool2d_backward>(handlers, "max_pool2d_backward");
    add<&jax::conv2d_relu_max_pool2d>(handlers, "conv2d_relu_max_pool2d");
    add<&jax::conv2d_relu_max_pool2d_grad_input>(handlers, "conv2d_relu_max_pool2d_grad_input");
    add<&jax::conv2d_relu_max_pool2d_grad_weight>(handlers, "conv2d_relu_max_pool2d_grad_weight");
    module.attr("handlers") = handlers;
    // XLA loads handlers of its own version and of older ones.
    module.attr("ffi_api_version") = py::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
}
