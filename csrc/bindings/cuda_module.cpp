// convx._cuda: the names that Python sees. The same sources, compiled over the shim of tests/simt, are convx._simt.
#include "bindings/cuda_backend.h"
#include "bindings/cuda_explain.h"
#include "bindings/errors.h"
#include "bindings/module.h"
#include "bindings/operations.h"

namespace py = pybind11;
using namespace convx;

CONVX_PYTHON_MODULE(CONVX_MODULE, module) {
    register_errors(py::module_::import("convx._cpu").attr("ShapeError"));
    add_functions(module, operations<Cuda>);
    module.def("explain", &explain_op<CudaPlans>);
    module.def("device_count", &cuda::device_count);
    module.def("unavailable_reason", &cuda::unavailable_reason);
    module.def("device_name", &cuda::device_name);
}
