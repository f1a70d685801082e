// C++ errors as Python sees them.
#pragma once

#include <pybind11/pybind11.h>

namespace convx {

namespace py = pybind11;

// The class convx.ShapeError. One module makes it; the others take it from there.
py::object new_shape_error();

// Translates what this module throws.
void register_errors(py::handle shape_error);

}  // namespace convx
