// convx.PreparedWeight: a weight with its packed form, for inference.
#pragma once

#include <variant>

#include "bindings/options.h"
#include "bindings/py_array.h"
#include "cpu/conv2d/methods.h"

namespace convx {

class PreparedWeight {
public:
    PreparedWeight(PyArray weight, const ConvProblem& problem, py::tuple arguments);

    const PyArray& weight() const { return weight_; }
    template <class T>
    const PackedWeight<T>& packed() const {
        return std::get<PackedWeight<T>>(packed_);
    }
    int64_t packed_bytes() const;
    const char* isa() const;
    const std::string& algorithm() const { return algorithm_; }
    const py::tuple& arguments() const { return arguments_; }

private:
    PyArray weight_;  // a copy that nobody can write: the packed form does not change either
    std::variant<PackedWeight<float>, PackedWeight<double>> packed_;
    std::string algorithm_;
    py::tuple arguments_;  // of prepare_weight_op, which makes the same on another machine
};

// Null for anything else.
const PreparedWeight* prepared_weight(py::handle object);

py::object prepare_weight_op(py::handle weight, py::handle input_shape, const ConvHandles& given, py::handle layout,
                             py::handle algorithm);
void register_prepared_weight(py::module_& module);

}  // namespace convx
