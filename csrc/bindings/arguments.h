// From Python objects to the plain words of common/check.h. A wrong type is a TypeError that names the operation, the
// argument, what it got and what it expected; whether the values make sense is for check.cpp.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "bindings/gil.h"
#include "common/check.h"
#include "common/tensor_view.h"

namespace convx {

namespace py = pybind11;

// "a list", "a torch.Tensor": for messages.
std::string type_text(py::handle object);

// An argument's name in messages; put together only where there is a message.
struct ArgumentName {
    ArgumentName(const char* whole) : ArgumentName("", whole) {}
    ArgumentName(const char* first, const char* rest) : prefix(first), name(rest) {}
    std::string text() const { return std::string(prefix) + name; }
    const char* prefix;
    const char* name;
};

// A NumPy array of float32 or float64 in native byte order whose elements can be addressed by whole strides. Elements
// that cannot (fields of packed records) are copied first, the only copy of an input that convx makes.
struct FloatArray {
    py::array array;
    ArrayInfo info;
};
FloatArray float_array(const std::string& op, const char* name, py::handle object);

// The same without the copy, for an array that is written: exact shape, writeable, no element twice.
FloatArray output_array(const std::string& op, py::handle object, const ArrayInfo& like, const Shape& shape);

// Raises where `out` shares memory with an input; the very same elements in the same places pass if in_place is legal.
void check_no_overlap(const std::string& op, const py::array& out, const FloatArray& input,
                      bool in_place_legal = false);

// Any NumPy array with one of the given dtype numbers (npy_api constants), for codes and indices.
py::array integer_array(const std::string& op, const char* name, py::handle object, std::initializer_list<int> dtypes,
                        const char* expected);

Shape shape_of(const py::array& array);

// A 3-D or 4-D array in the user's layout as a view in logical N, C, H, W order.
template <class T>
TensorView<T> image_view(const py::array& array, bool channels_last) {
    TensorView<T> view;
    view.data = static_cast<T*>(const_cast<void*>(array.data()));
    const size_t batched = array.ndim() == 4 ? 1 : 0;
    const auto shape = [&](size_t axis) { return static_cast<int64_t>(array.shape(static_cast<py::ssize_t>(axis))); };
    const auto stride = [&](size_t axis) {
        return static_cast<int64_t>(array.strides(static_cast<py::ssize_t>(axis))) / static_cast<int64_t>(sizeof(T));
    };
    const size_t c = batched + (channels_last ? 2 : 0), h = batched + (channels_last ? 0 : 1);
    view.shape = {batched ? shape(0) : 1, shape(c), shape(h), shape(h + 1)};
    view.stride = {batched ? stride(0) : 0, stride(c), stride(h), stride(h + 1)};
    return view;
}

// Axes as they are: weights, or anything 4-D.
template <class T>
TensorView<T> plain_view(const py::array& array) {
    return image_view<T>(array, false);
}

// A bias: one value per channel.
template <class T>
TensorView<T> vector_view(const py::array& array) {
    return {static_cast<T*>(const_cast<void*>(array.data())),
            {1, array.shape(0), 1, 1},
            {0, array.strides(0) / static_cast<py::ssize_t>(sizeof(T)), 0, 0}};
}

// Options.
int64_t integer(const std::string& op, ArgumentName name, py::handle object);
double number(const std::string& op, ArgumentName name, py::handle object);
Pair pair(const std::string& op, ArgumentName name, py::handle object);
// Nothing for None and for an empty sequence.
std::optional<Pair> optional_pair(const std::string& op, ArgumentName name, py::handle object);
PaddingOption padding(const std::string& op, ArgumentName name, py::handle object);
std::array<PaddingMode, 2> padding_mode(const std::string& op, py::handle object);
bool channels_last(const std::string& op, py::handle layout);
bool relu_activation(const std::string& op, py::handle activation);
Algorithm conv_algorithm(const std::string& op, py::handle algorithm);  // "auto": the default (default_algorithm.h)
Algorithm default_algorithm_option(const std::string& op, py::handle algorithm);  // "auto" or "direct"
bool truth(const std::string& op, const char* name, py::handle object);
std::array<bool, 3> output_mask(const std::string& op, py::handle object);
Shape sizes(const std::string& op, const char* name, py::handle object);

}  // namespace convx
