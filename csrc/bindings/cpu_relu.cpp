// ReLU takes arrays of any rank: axes that all operands step over alike are merged, and what is left is cut into 4-D
// pieces.
#include "bindings/cpu_ops.h"
#include "cpu/relu.h"

namespace convx {

namespace {

constexpr int64_t small = 4096;  // below this many elements releasing the GIL costs more than the work

// The merged axes of several arrays of one shape, outermost first; strides in elements.
template <size_t count>
struct MergedAxes {
    std::vector<int64_t> shape;
    std::array<std::vector<int64_t>, count> stride;
};

template <size_t count>
MergedAxes<count> merge_axes(const std::array<const py::array*, count>& arrays) {
    const py::array& first = *arrays[0];
    std::vector<py::ssize_t> order;
    for (py::ssize_t axis = 0; axis < first.ndim(); ++axis)
        if (first.shape(axis) != 1) order.push_back(axis);
    // Elementwise work may walk the axes in any order: the order of memory merges transposed arrays too.
    std::stable_sort(order.begin(), order.end(), [&](py::ssize_t a, py::ssize_t b) {
        return std::abs(first.strides(a)) > std::abs(first.strides(b));
    });
    MergedAxes<count> merged;
    for (const py::ssize_t axis : order) {
        const int64_t size = first.shape(axis);
        bool joins = !merged.shape.empty();
        for (size_t i = 0; i < count && joins; ++i)
            joins = merged.stride[i].back() == size * arrays[i]->strides(axis) / arrays[i]->itemsize();
        for (size_t i = 0; i < count; ++i) {
            const int64_t stride = arrays[i]->strides(axis) / arrays[i]->itemsize();
            if (joins)
                merged.stride[i].back() = stride;
            else
                merged.stride[i].push_back(stride);
        }
        if (joins)
            merged.shape.back() *= size;
        else
            merged.shape.push_back(size);
    }
    while (merged.shape.size() < 4) {
        merged.shape.insert(merged.shape.begin(), 1);
        for (auto& stride : merged.stride) stride.insert(stride.begin(), 0);
    }
    return merged;
}

// Calls apply(views) for every 4-D piece.
template <class T, size_t count, class Apply>
void for_each_piece(const std::array<const py::array*, count>& arrays, const Apply& apply) {
    const MergedAxes<count> merged = merge_axes(arrays);
    const size_t outer = merged.shape.size() - 4;
    std::array<TensorView<T>, count> views;
    for (size_t i = 0; i < count; ++i) {
        views[i].data = static_cast<T*>(const_cast<void*>(arrays[i]->data()));
        for (size_t axis = 0; axis < 4; ++axis) {
            views[i].shape[axis] = merged.shape[outer + axis];
            views[i].stride[axis] = merged.stride[i][outer + axis];
        }
    }
    std::vector<int64_t> index(outer, 0);
    while (true) {
        apply(views);
        size_t axis = outer;
        while (axis-- > 0) {
            const bool carry = ++index[axis] == merged.shape[axis];
            for (size_t i = 0; i < count; ++i)
                views[i].data += merged.stride[i][axis] * (carry ? 1 - merged.shape[axis] : 1);
            if (!carry) break;
            index[axis] = 0;
        }
        if (axis == static_cast<size_t>(-1)) return;
    }
}

template <class Work>
void without_gil(int64_t elements, const Work& work) {
    if (elements <= small) return work();
    const py::gil_scoped_release release;
    work();
}

// A new array with the memory order of `like`.
py::array new_like(const py::array& like) {
    if (like.flags() & py::array::c_style)
        return py::array(like.dtype(), std::vector<py::ssize_t>(like.shape(), like.shape() + like.ndim()));
    return py::module_::import("numpy").attr("empty_like")(like, py::arg("subok") = false);
}

py::array destination(const std::string& op, py::handle out, const FloatArray& like) {
    if (out.is_none()) return new_like(like.array);
    return output_array(op, out, like.info, like.info.shape).array;
}

}  // namespace

py::array relu_op(py::handle input, py::handle out) {
    const std::string op = "relu";
    const FloatArray x = float_array(op, "input", input);
    const py::array y = destination(op, out, x);
    if (!out.is_none()) check_no_overlap(op, y, x, true);
    if (x.array.size() == 0) return y;
    dispatch(x.info.dtype, [&](auto zero) {
        using T = decltype(zero);
        without_gil(x.array.size(), [&] {
            for_each_piece<T, 2>({&x.array, &y}, [](const auto& views) { relu<T>(views[0], views[1]); });
        });
    });
    return y;
}

py::array relu_backward_op(py::handle grad_output, py::handle output, py::handle out) {
    const std::string op = "relu_backward";
    const FloatArray g = float_array(op, "grad_output", grad_output);
    const FloatArray y = float_array(op, "output", output);
    check_dtype(op, y.info, g.info);
    check_shape(op, y.info, g.info.shape);
    const py::array result = destination(op, out, g);
    if (!out.is_none()) {
        check_no_overlap(op, result, g, true);
        check_no_overlap(op, result, y, true);
    }
    if (g.array.size() == 0) return result;
    dispatch(g.info.dtype, [&](auto zero) {
        using T = decltype(zero);
        without_gil(g.array.size(), [&] {
            for_each_piece<T, 3>({&g.array, &y.array, &result},
                                 [](const auto& views) { relu_backward<T>(views[0], views[1], views[2]); });
        });
    });
    return result;
}

}  // namespace convx
