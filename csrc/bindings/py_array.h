// An array of a call, as both policies describe it: HostArrays (host_arrays.h) for NumPy's arrays and DeviceArrays
// (cuda_arrays.h) for those on a CUDA device. The bodies of the operations are templates over a policy, which says how
// arrays are taken, checked and allocated.
#pragma once

#include "bindings/arguments.h"
#include "common/array.h"

namespace convx {

struct PyArray : Array {
    py::object object;
};

inline const ArrayInfo* info_of(const std::optional<PyArray>& array) { return array ? &array->info : nullptr; }
inline Tensor vector_or_none(const std::optional<PyArray>& array) { return array ? vector_tensor(*array) : Tensor{}; }

// Raises unless the array can be written: exact dtype and shape, writeable, strides of whole elements, none twice.
void check_output(const std::string& op, const Array& out, bool writeable, bool aligned, const ArrayInfo& like,
                  const Shape& shape);

// Whether the bytes between the lowest and the highest elements of two arrays meet. Of an empty array there are none.
bool extents_meet(const Array& a, const Array& b);

[[noreturn]] void wrong_dtype(const std::string& op, const char* name, const std::string& dtype, const char* expected);

py::tuple to_tuple(const Shape& shape);

// What both policies do with the arrays that they take. `Policy` has input, output, empty, and shares_memory for
// arrays whose extents meet.
template <class Policy>
class CallArrays {
public:
    explicit CallArrays(const std::string& op) : op_(op) {}

    std::optional<PyArray> optional_input(const char* name, py::handle object) {
        if (object.is_none()) return std::nullopt;
        return self().input(name, object);
    }
    // The result of an operation: `out`, which shares no memory with an input, or a new array.
    PyArray result(py::handle out, const ArrayInfo& like, const Shape& shape,
                   std::initializer_list<const PyArray*> inputs) {
        if (out.is_none()) return self().empty(like.dtype, shape);
        PyArray array = self().output(out, like, shape);
        for (const PyArray* input : inputs)
            if (input) check_no_overlap(array, *input);
        return array;
    }
    // The very same elements in the same places pass if in_place is legal.
    void check_no_overlap(const PyArray& out, const PyArray& input, bool in_place_legal = false) {
        if (!extents_meet(out, input)) return;
        if (in_place_legal && out.data == input.data && out.stride == input.stride) return;
        if (self().shares_memory(out, input))
            throw ShapeError(op_ + ": out shares memory with " + input.info.name + ", expected memory of its own");
    }

protected:
    const std::string& op_;

private:
    Policy& self() { return static_cast<Policy&>(*this); }
};

}  // namespace convx
