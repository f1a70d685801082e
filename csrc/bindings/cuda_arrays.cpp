#include "bindings/cuda_arrays.h"

#include <algorithm>
#include <cstdlib>

namespace convx {

namespace {

struct NamedType {
    const char* name;
    DType dtype;
};
constexpr NamedType float_types[] = {{"float32", DType::float32},
                                     {"float64", DType::float64},
                                     {"float16", DType::float16},
                                     {"bfloat16", DType::bfloat16}};

int64_t item_bytes(const std::string& dtype) {
    for (const NamedType& type : float_types)
        if (dtype == type.name) return item_size(type.dtype);
    return dtype == "int64" ? 8 : 1;
}

Shape numbers(py::handle tuple) {
    int64_t values[Shape::most_axes];
    size_t count = 0;
    for (const py::handle value : tuple) {
        if (count == Shape::most_axes) break;
        values[count++] = value.cast<int64_t>();
    }
    return {values, values + count};
}

struct Extent {
    Extent(const DeviceArray& array, int64_t item) : begin(reinterpret_cast<uintptr_t>(array.data)), end(begin) {
        for (const int64_t size : array.info.shape)
            if (size == 0) return;
        for (size_t axis = 0; axis < array.info.shape.size(); ++axis) {
            const int64_t last = (array.info.shape[axis] - 1) * array.stride[axis] * item;
            (last < 0 ? begin : end) += static_cast<uintptr_t>(last);
        }
        end += static_cast<uintptr_t>(item);
    }
    uintptr_t begin, end;
};

}  // namespace

DeviceArray DeviceArrays::described(const char* name, py::handle object, std::string& dtype) {
    const py::object description = result_of(library_.attr("describe"), object);
    if (description.is_none())
        throw TypeError(op_ + ": " + name + " is " + type_text(object) + ", expected a " +
                        library_.attr("array_type").cast<std::string>() + " as the first array is");
    const auto parts = description.cast<py::tuple>();
    dtype = parts[3].cast<std::string>();
    DeviceArray array{{name, DType::float32, {}},
                      {},
                      nullptr,
                      parts[4].cast<int>(),
                      parts[5].cast<bool>(),
                      py::reinterpret_borrow<py::object>(object)};
    array.data = reinterpret_cast<void*>(parts[0].cast<uintptr_t>());
    array.info.shape = numbers(parts[1]);
    array.stride = numbers(parts[2]);
    if (device_ < 0) {
        device_ = array.device;
        first_name_ = name;
    } else if (array.device != device_) {
        throw ShapeError(op_ + ": " + name + " is on device " + std::to_string(array.device) + ", expected device " +
                         std::to_string(device_) + " as " + first_name_ + " is");
    }
    return array;
}

void DeviceArrays::wrong_dtype(const char* name, const std::string& dtype, const char* expected) const {
    throw TypeError(op_ + ": " + name + " has dtype " + dtype + ", expected " + expected);
}

DeviceArray DeviceArrays::input(const char* name, py::handle object) {
    const DeviceArray array = input_or_bytes(name, object);
    if (array.item_bytes != 0) wrong_dtype(name, "uint8", "float32, float64, float16 or bfloat16");
    return array;
}

DeviceArray DeviceArrays::input_or_bytes(const char* name, py::handle object) {
    std::string dtype;
    DeviceArray array = described(name, object, dtype);
    if (dtype == "uint8") {
        array.item_bytes = 1;
        return array;
    }
    for (const NamedType& type : float_types)
        if (dtype == type.name) {
            array.info.dtype = type.dtype;
            return array;
        }
    wrong_dtype(name, dtype, "float32, float64, float16 or bfloat16");
}

DeviceArray DeviceArrays::output(py::handle object, const ArrayInfo& like, const Shape& shape) {
    DeviceArray array = input("out", object);
    check_dtype(op_, array.info, like);
    check_shape(op_, array.info, shape);
    if (!array.writeable) throw ShapeError(op_ + ": out is read-only, expected a writeable array");
    std::vector<std::pair<int64_t, int64_t>> axes;  // |stride|, size: see may_overlap_itself in arguments.cpp
    for (size_t axis = 0; axis < shape.size(); ++axis) {
        if (shape[axis] == 0) return array;
        if (shape[axis] > 1) axes.emplace_back(std::abs(array.stride[axis]), shape[axis]);
    }
    std::sort(axes.begin(), axes.end());
    int64_t span = 1;
    for (const auto& [stride, size] : axes) {
        if (stride < span)
            throw ShapeError(op_ +
                             ": out has elements that share memory with each other, expected an array without overlap");
        span += stride * (size - 1);
    }
    return array;
}

void DeviceArrays::check_no_overlap(const DeviceArray& out, const DeviceArray& in, bool in_place_legal) const {
    const int64_t item = item_size(out.info.dtype);
    const Extent a(out, item), b(in, in.item_bytes != 0 ? in.item_bytes : item);
    if (a.end <= b.begin || b.end <= a.begin) return;
    if (in_place_legal && out.data == in.data && out.stride == in.stride) return;
    throw ShapeError(op_ + ": out shares memory with " + in.info.name + ", expected memory of its own");
}

DeviceArray DeviceArrays::empty(DType dtype, const Shape& shape) {
    return input("output", result_of(library_.attr("empty"), shape_tuple(shape), dtype_name(dtype), device_));
}

DeviceArray DeviceArrays::empty_like(const DeviceArray& like) {
    const Shape& shape = like.info.shape;
    bool row_major = true;
    int64_t dense = 1;
    for (size_t axis = shape.size(); axis-- > 0; dense *= shape[axis])
        row_major = row_major && (shape[axis] == 1 || like.stride[axis] == dense);
    if (row_major || !py::hasattr(library_, "empty_like")) return empty(like.info.dtype, shape);
    return input("output", result_of(library_.attr("empty_like"), like.array));
}

DeviceArray DeviceArrays::integers(const char* name, py::handle object, std::initializer_list<const char*> dtypes,
                                   const char* expected) {
    std::string dtype;
    DeviceArray array = described(name, object, dtype);
    for (const char* allowed : dtypes)
        if (dtype == allowed) {
            array.item_bytes = item_bytes(dtype);
            return array;
        }
    wrong_dtype(name, dtype, expected);
}

DeviceArray DeviceArrays::empty_integers(const char* dtype, const Shape& shape) {
    return integers("output", result_of(library_.attr("empty"), shape_tuple(shape), dtype, device_), {dtype}, dtype);
}

void* DeviceArrays::workspace(int64_t bytes) {
    if (bytes == 0) return nullptr;
    const DeviceArray array = empty_integers("uint8", {bytes});
    workspaces_.append(array.array);
    return array.data;
}

py::tuple DeviceArrays::shape_tuple(const Shape& shape) {
    py::tuple tuple(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) tuple[i] = shape[i];
    return tuple;
}

cuda::Stream DeviceArrays::stream() const {
    return reinterpret_cast<void*>(result_of(library_.attr("stream"), device_).cast<uintptr_t>());
}

cuda::DeviceTensor image_tensor(const DeviceArray& array, bool channels_last) {
    const size_t batched = array.info.shape.size() == 4 ? 1 : 0;
    const size_t c = batched + (channels_last ? 2 : 0), h = batched + (channels_last ? 0 : 1);
    const Shape &shape = array.info.shape, &stride = array.stride;
    return {array.data,
            {batched ? shape[0] : 1, shape[c], shape[h], shape[h + 1]},
            {batched ? stride[0] : 0, stride[c], stride[h], stride[h + 1]}};
}

cuda::DeviceTensor plain_tensor(const DeviceArray& array) { return image_tensor(array, false); }

cuda::DeviceTensor vector_tensor(const DeviceArray& array) {
    return {array.data, {1, array.info.shape[0], 1, 1}, {0, array.stride[0], 0, 0}};
}

}  // namespace convx
