#include "bindings/errors.h"

#include <new>

#include "common/check.h"

namespace convx {

namespace {

py::handle shape_error_type;

}  // namespace

// Both a ValueError and a RuntimeError, which pybind11's own helper cannot say.
py::object new_shape_error() {
    const py::tuple bases = py::make_tuple(py::handle(PyExc_ValueError), py::handle(PyExc_RuntimeError));
    return py::reinterpret_steal<py::object>(PyErr_NewExceptionWithDoc(
        "convx.ShapeError",
        "A shape or an option that an operation cannot work with: a ValueError and a RuntimeError.\n\n"
        "Examples\n--------\n>>> import convx\n"
        ">>> issubclass(convx.ShapeError, ValueError), issubclass(convx.ShapeError, RuntimeError)\n(True, True)",
        bases.ptr(), nullptr));
}

void register_errors(py::handle shape_error) {
    shape_error_type = shape_error.inc_ref();
    py::register_local_exception_translator([](std::exception_ptr error) {
        try {
            std::rethrow_exception(error);
        } catch (const ShapeError& e) {
            PyErr_SetString(shape_error_type.ptr(), e.what());
        } catch (const TypeError& e) {
            PyErr_SetString(PyExc_TypeError, e.what());
        } catch (const std::bad_alloc&) {
            PyErr_SetString(PyExc_MemoryError, "convx: scratch memory could not be allocated");
        }
    });
}

}  // namespace convx
