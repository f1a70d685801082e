#include "bindings/py_array.h"

#include <algorithm>
#include <vector>

namespace convx {

namespace {

// Two indices of one array at the same address. Sufficient for every view that slicing and transposing can make: each
// axis steps over everything that the smaller axes span.
bool may_overlap_itself(const Array& array) {
    std::vector<std::pair<int64_t, int64_t>> axes;  // |stride|, size
    for (size_t axis = 0; axis < array.info.shape.size(); ++axis) {
        const int64_t size = array.info.shape[axis];
        if (size == 0) return false;
        if (size > 1) axes.emplace_back(std::abs(array.stride[axis]), size);
    }
    std::sort(axes.begin(), axes.end());
    int64_t span = 1;
    for (const auto& [stride, size] : axes) {
        if (stride < span) return true;
        span += stride * (size - 1);
    }
    return false;
}

struct Extent {
    explicit Extent(const Array& array) : begin(reinterpret_cast<uintptr_t>(array.data)), end(begin) {
        if (element_count(array.info.shape) == 0) return;
        for (size_t axis = 0; axis < array.info.shape.size(); ++axis) {
            const int64_t last = (array.info.shape[axis] - 1) * array.stride[axis] * array.item();
            (last < 0 ? begin : end) += static_cast<uintptr_t>(last);
        }
        end += static_cast<uintptr_t>(array.item());
    }
    uintptr_t begin, end;
};

}  // namespace

void check_output(const std::string& op, const Array& out, bool writeable, bool aligned, const ArrayInfo& like,
                  const Shape& shape) {
    check_dtype(op, out.info, like);
    check_shape(op, out.info, shape);
    if (!writeable) throw ShapeError(op + ": out is read-only, expected a writeable array");
    if (!aligned) throw ShapeError(op + ": out is not aligned, expected strides of whole elements");
    if (may_overlap_itself(out))
        throw ShapeError(op +
                         ": out has elements that share memory with each other, expected an array without overlap");
}

bool extents_meet(const Array& a, const Array& b) {
    const Extent first(a), second(b);
    return first.begin < second.end && second.begin < first.end;
}

void wrong_dtype(const std::string& op, const char* name, const std::string& dtype, const char* expected) {
    throw TypeError(op + ": " + name + " has dtype " + dtype + ", expected " + expected);
}

py::tuple to_tuple(const Shape& shape) {
    py::tuple result(shape.size());
    for (size_t axis = 0; axis < shape.size(); ++axis) result[axis] = shape[axis];
    return result;
}

}  // namespace convx
