#include "bindings/host_arrays.h"

#include <algorithm>

#include "bindings/tensor_memory.h"

namespace convx {

namespace {

py::array numpy_array(const std::string& op, const char* name, py::handle object) {
    if (!py::isinstance<py::array>(object)) wrong_type(op, name, object, "a numpy.ndarray");
    // A mask would be ignored, which loses what it says.
    if (Py_TYPE(object.ptr()) != py::detail::npy_api::get().PyArray_Type_ &&
        returned([object] { return PyObject_HasAttrString(object.ptr(), "mask"); }))
        wrong_type(op, name, object, "a numpy.ndarray without a mask");
    return py::reinterpret_borrow<py::array>(object);
}

bool is_native(const py::dtype& dtype) { return dtype.byteorder() != '>' && dtype.byteorder() != '!'; }

bool is_bytes(const py::array& array) { return array.dtype().num() == py::dtype::num_of<uint8_t>(); }

DType float_dtype(const std::string& op, const char* name, const py::array& array) {
    const py::dtype dtype = array.dtype();
    const bool native = is_native(dtype);
    if (native && dtype.num() == py::dtype::num_of<float>()) return DType::float32;
    if (native && dtype.num() == py::dtype::num_of<double>()) return DType::float64;
    wrong_dtype(op, name, str_of(dtype) + (native ? "" : " (byte-swapped)"), "float32 or float64");
}

// Strides in whole elements and aligned data.
bool is_addressable(const py::array& array) {
    const py::ssize_t item = array.itemsize();
    if (reinterpret_cast<uintptr_t>(array.data()) % static_cast<size_t>(item) != 0) return false;
    for (py::ssize_t axis = 0; axis < array.ndim(); ++axis)
        if (array.shape(axis) > 1 && array.strides(axis) % item != 0) return false;
    return true;
}

PyArray described(const char* name, DType dtype, int64_t item_bytes, py::array array) {
    PyArray result;
    result.info.name = name;
    result.info.dtype = dtype;
    result.item_bytes = item_bytes;
    // Shifts and sizes in place: divisions and copies would take longer than all other lines.
    const int shift = result.item() == 8 ? 3 : result.item() == 4 ? 2 : 0;
    const auto axes = static_cast<size_t>(array.ndim());
    result.info.shape.resize(axes);
    result.stride.resize(axes);
    for (size_t axis = 0; axis < axes; ++axis) {
        result.info.shape[axis] = array.shape()[axis];
        result.stride[axis] = array.strides()[axis] >> shift;
    }
    result.data = const_cast<void*>(array.data());
    result.object = std::move(array);
    return result;
}

py::array addressable(py::array array) {
    if (is_addressable(array)) return array;
    return result_of(array.attr("copy"));
}

// An uninitialised array in C order; pybind11's own constructors make vectors of the sizes and strides first.
py::array new_array(int dtype, const Shape& shape) {
    if (ResultAllocator::running()) return new_tensor_array(shape, dtype);
    const auto& numpy = py::detail::npy_api::get();
    Py_intptr_t sizes[Shape::most_axes];
    std::copy(shape.begin(), shape.end(), sizes);
    PyObject* array = numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, numpy.PyArray_DescrFromType_(dtype),
                                                  static_cast<int>(shape.size()), sizes, nullptr, nullptr, 0, nullptr);
    if (!array) throw py::error_already_set();
    return py::reinterpret_steal<py::array>(array);
}

py::object numpy_function(const char* name) {
    return object_returned([] { return PyImport_ImportModule("numpy"); }).attr(name);
}

}  // namespace

PyArray HostArrays::input(const char* name, py::handle object) {
    py::array array = numpy_array(op_, name, object);
    const DType dtype = float_dtype(op_, name, array);
    return described(name, dtype, 0, addressable(std::move(array)));
}

PyArray HostArrays::input_or_bytes(const char* name, py::handle object) {
    if (!py::isinstance<py::array>(object) || !is_bytes(py::reinterpret_borrow<py::array>(object)))
        return input(name, object);
    py::array bytes = numpy_array(op_, name, object);
    if (bytes.ndim() == 1 && bytes.size() > 1 && bytes.strides(0) != 1) bytes = result_of(bytes.attr("copy"));
    return described(name, DType::float32, 1, std::move(bytes));
}

PyArray HostArrays::integers(const char* name, py::handle object, bool indices_too, const char* expected) {
    py::array array = numpy_array(op_, name, object);
    const py::dtype dtype = array.dtype();
    const bool codes = is_bytes(array), indices = indices_too && dtype.num() == py::dtype::num_of<int64_t>();
    if (!is_native(dtype) || (!codes && !indices)) wrong_dtype(op_, name, str_of(dtype), expected);
    return described(name, DType::float32, codes ? 1 : 8, addressable(std::move(array)));
}

PyArray HostArrays::codes(const char* name, py::handle object) { return integers(name, object, false, "uint8"); }

PyArray HostArrays::indices_or_codes(const char* name, py::handle object) {
    return integers(name, object, true, "int64 (indices) or uint8 (codes)");
}

PyArray HostArrays::output(py::handle object, const ArrayInfo& like, const Shape& shape) {
    py::array array = numpy_array(op_, "out", object);
    const bool writeable = array.writeable(), aligned = is_addressable(array);
    const DType dtype = float_dtype(op_, "out", array);
    PyArray out = described("out", dtype, 0, std::move(array));
    check_output(op_, out, writeable, aligned, like, shape);
    return out;
}

bool HostArrays::shares_memory(const PyArray& out, const PyArray& input) {
    return result_of(numpy_function("shares_memory"), out.object, input.object).cast<bool>();
}

PyArray HostArrays::empty(DType dtype, const Shape& shape) {
    const int number = dtype == DType::float32 ? py::dtype::num_of<float>() : py::dtype::num_of<double>();
    return described("output", dtype, 0, new_array(number, shape));
}

PyArray HostArrays::empty_like(const PyArray& like) {
    if (is_row_major(like)) return empty(like.info.dtype, like.info.shape);
    py::array array = result_of(numpy_function("empty_like"), like.object, py::none(), "K", false);  // no subclass
    return described("output", like.info.dtype, 0, std::move(array));
}

PyArray HostArrays::empty_bytes(const Shape& shape) {
    return described("output", DType::float32, 1, new_array(py::dtype::num_of<uint8_t>(), shape));
}

PyArray HostArrays::empty_indices(const Shape& shape) {
    return described("output", DType::float32, 8, new_array(py::dtype::num_of<int64_t>(), shape));
}

}  // namespace convx
