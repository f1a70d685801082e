#include "bindings/cuda_arrays.h"

namespace convx {

namespace {

constexpr DType float_types[] = {DType::float32, DType::float64, DType::float16, DType::bfloat16};
constexpr const char* float_type_names = "float32, float64, float16 or bfloat16";

Shape numbers(py::handle tuple) {
    int64_t values[Shape::most_axes];
    size_t count = 0;
    for (const py::handle value : tuple) {
        if (count == Shape::most_axes) break;
        values[count++] = value.cast<int64_t>();
    }
    return {values, values + count};
}

}  // namespace

DeviceArrays::Description DeviceArrays::described(const char* name, py::handle object) {
    const py::object description = result_of(library_.attr("describe"), object);
    if (description.is_none())
        throw TypeError(op_ + ": " + name + " is " + type_text(object) + ", expected a " +
                        library_.attr("array_type").cast<std::string>() + " as the first array is");
    const auto parts = description.cast<py::tuple>();
    PyArray array;
    array.info = {name, DType::float32, numbers(parts[1])};
    array.stride = numbers(parts[2]);
    array.data = reinterpret_cast<void*>(parts[0].cast<uintptr_t>());
    array.object = py::reinterpret_borrow<py::object>(object);
    const int device = parts[4].cast<int>();
    if (device_ < 0) {
        device_ = device;
        first_name_ = name;
    } else if (device != device_) {
        throw ShapeError(op_ + ": " + name + " is on device " + std::to_string(device) + ", expected device " +
                         std::to_string(device_) + " as " + first_name_ + " is");
    }
    return {std::move(array), parts[3].cast<std::string>(), parts[5].cast<bool>()};
}

DeviceArrays::Description DeviceArrays::described_float(const char* name, py::handle object, bool bytes_too) {
    Description found = described(name, object);
    if (bytes_too && found.dtype == "uint8") {
        found.array.item_bytes = 1;
        return found;
    }
    for (const DType type : float_types)
        if (found.dtype == dtype_name(type)) {
            found.array.info.dtype = type;
            return found;
        }
    wrong_dtype(op_, name, found.dtype, float_type_names);
}

PyArray DeviceArrays::input(const char* name, py::handle object) { return described_float(name, object, false).array; }

PyArray DeviceArrays::input_or_bytes(const char* name, py::handle object) {
    return described_float(name, object, true).array;
}

PyArray DeviceArrays::codes(const char* name, py::handle object) {
    Description found = described(name, object);
    if (found.dtype != "uint8") wrong_dtype(op_, name, found.dtype, "uint8");
    found.array.item_bytes = 1;
    return found.array;
}

PyArray DeviceArrays::indices_or_codes(const char* name, py::handle object) {
    Description found = described(name, object);
    if (found.dtype != "uint8" && found.dtype != "int64")
        wrong_dtype(op_, name, found.dtype, "int64 (indices) or uint8 (codes)");
    found.array.item_bytes = found.dtype == "uint8" ? 1 : 8;
    return found.array;
}

PyArray DeviceArrays::output(py::handle object, const ArrayInfo& like, const Shape& shape) {
    Description found = described_float("out", object, false);
    check_output(op_, found.array, found.writeable, true, like, shape);
    return found.array;
}

PyArray DeviceArrays::empty_of(const Shape& shape, const char* dtype) {
    PyArray array = described("output", result_of(library_.attr("empty"), to_tuple(shape), dtype, device_)).array;
    array.item_bytes = std::string_view(dtype) == "int64" ? 8 : 1;
    return array;
}

PyArray DeviceArrays::empty(DType dtype, const Shape& shape) {
    return input("output", result_of(library_.attr("empty"), to_tuple(shape), dtype_name(dtype), device_));
}

PyArray DeviceArrays::empty_like(const PyArray& like) {
    if (is_row_major(like) || !py::hasattr(library_, "empty_like")) return empty(like.info.dtype, like.info.shape);
    return input("output", result_of(library_.attr("empty_like"), like.object));
}

void* DeviceArrays::workspace(int64_t bytes) {
    if (bytes == 0) return nullptr;
    const PyArray array = empty_bytes({bytes});
    workspaces_.append(array.object);
    return array.data;
}

cuda::Stream DeviceArrays::stream() const {
    return reinterpret_cast<void*>(result_of(library_.attr("stream"), device_).cast<uintptr_t>());
}

}  // namespace convx
