// ReLU takes arrays of any rank and strides.
#include "cpu/relu.h"
#include "cpu/relu_mask.h"

#include <algorithm>

#include "bindings/cpu_ops.h"

namespace convx {

namespace {

// The arrays, all of one shape, as 4-D views and what is in front of them: relu.cpp merges axes, and only arrays of
// more than four axes with gaps have to be cut.
template <class T, size_t count>
class Pieces {
public:
    explicit Pieces(const std::array<const py::array*, count>& arrays) {
        const py::array& first = *arrays[0];
        const bool dense = std::all_of(arrays.begin(), arrays.end(),
                                       [](const py::array* array) { return array->flags() & py::array::c_style; });
        const py::ssize_t axes = dense ? 1 : first.ndim();
        for (size_t i = 0; i < count; ++i) {
            views_[i].data = static_cast<T*>(const_cast<void*>(arrays[i]->data()));
            views_[i].shape = {1, 1, 1, 1};
            for (py::ssize_t axis = 0; axis < axes; ++axis) {
                const int64_t size = dense ? first.size() : first.shape(axis);
                const int64_t stride = dense ? 1 : arrays[i]->strides(axis) / static_cast<py::ssize_t>(sizeof(T));
                if (axis < axes - 4) {
                    if (i == 0) outer_.push_back({size, {}});
                    outer_[static_cast<size_t>(axis)].stride[i] = stride;
                } else {
                    views_[i].shape[static_cast<size_t>(4 - axes + axis)] = size;
                    views_[i].stride[static_cast<size_t>(4 - axes + axis)] = stride;
                }
            }
        }
    }

    template <class Apply>
    void for_each(const Apply& apply) {
        visit(0, apply);
    }

private:
    struct Loop {
        int64_t size;
        std::array<int64_t, count> stride;
    };

    template <class Apply>
    void visit(size_t axis, const Apply& apply) {
        if (axis == outer_.size()) return apply(views_);
        const std::array<TensorView<T>, count> start = views_;
        for (int64_t index = 0; index < outer_[axis].size; ++index) {
            visit(axis + 1, apply);
            for (size_t i = 0; i < count; ++i) views_[i].data += outer_[axis].stride[i];
        }
        views_ = start;
    }

    std::array<TensorView<T>, count> views_;
    std::vector<Loop> outer_;
};

// A new array with the memory order of `like`.
py::array new_like(const FloatArray& like) {
    if (like.array.flags() & py::array::c_style) return new_array(like.info.dtype, like.info.shape);
    const py::object numpy = object_returned([] { return PyImport_ImportModule("numpy"); });
    return result_of(numpy.attr("empty_like"), like.array, py::none(), "K", false);  // no subclass
}

// The axes of arrays of one shape, in their order.
OrderedLoops loops_of(const py::array& from, const py::array& to) {
    OrderedLoops loops;
    const auto stride = [](const py::array& array, py::ssize_t axis) {
        return static_cast<int64_t>(array.strides(axis) / array.itemsize());
    };
    for (py::ssize_t axis = 0; axis < from.ndim(); ++axis)
        loops.append(from.shape(axis), stride(from, axis), stride(to, axis));
    return loops;
}

bool is_mask(py::handle object) {
    return py::isinstance<py::array>(object) &&
           py::reinterpret_borrow<py::array>(object).dtype().num() == py::dtype::num_of<uint8_t>();
}

py::array destination(const std::string& op, py::handle out, const FloatArray& like) {
    if (out.is_none()) return new_like(like);
    return output_array(op, out, like.info, like.info.shape).array;
}

py::tuple relu_mask_op(const FloatArray& x, const py::array& y) {
    py::array mask = new_array<uint8_t>({relu_mask_bytes(x.array.size())});
    auto* const bits = static_cast<uint8_t*>(mask.mutable_data());
    dispatch(x.info.dtype, [&](auto zero) {
        using T = decltype(zero);
        const OrderedLoops loops = loops_of(x.array, y);
        const auto* const from = static_cast<const T*>(x.array.data());
        auto* const to = static_cast<T*>(const_cast<void*>(y.data()));
        without_gil(x.array.size(), [&] { relu_mask<T>(loops, from, to, bits); });
    });
    return py::make_tuple(y, mask);
}

py::array relu_mask_backward_op(const std::string& op, const FloatArray& g, py::handle output, py::handle out) {
    py::array mask = py::reinterpret_borrow<py::array>(output);
    check_relu_mask(op, shape_of(mask), g.array.size());
    if (mask.size() > 1 && mask.strides(0) != 1) mask = result_of(mask.attr("copy"));
    const py::array result = destination(op, out, g);
    if (!out.is_none()) {
        check_no_overlap(op, result, g, true);
        check_no_overlap(op, result, {mask, {"output", DType::float32, {}}});
    }
    dispatch(g.info.dtype, [&](auto zero) {
        using T = decltype(zero);
        const OrderedLoops loops = loops_of(g.array, result);
        const auto* const from = static_cast<const T*>(g.array.data());
        auto* const to = static_cast<T*>(const_cast<void*>(result.data()));
        const auto* const bits = static_cast<const uint8_t*>(mask.data());
        without_gil(g.array.size(), [&] { relu_mask_backward<T>(loops, from, bits, to); });
    });
    return result;
}

}  // namespace

py::object relu_op(py::handle input, py::handle return_mask, py::handle out) {
    static const std::string op = "relu";
    const FloatArray x = float_array(op, "input", input);
    const py::array y = destination(op, out, x);
    if (!out.is_none()) check_no_overlap(op, y, x, true);
    if (truth(op, "return_mask", return_mask)) return relu_mask_op(x, y);
    if (x.array.size() == 0) return y;
    dispatch(x.info.dtype, [&](auto zero) {
        using T = decltype(zero);
        Pieces<T, 2> pieces({&x.array, &y});
        without_gil(x.array.size(), [&] { pieces.for_each([](const auto& views) { relu<T>(views[0], views[1]); }); });
    });
    return y;
}

py::array relu_backward_op(py::handle grad_output, py::handle output, py::handle out) {
    static const std::string op = "relu_backward";
    const FloatArray g = float_array(op, "grad_output", grad_output);
    if (is_mask(output)) return relu_mask_backward_op(op, g, output, out);
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
        Pieces<T, 3> pieces({&g.array, &y.array, &result});
        without_gil(g.array.size(), [&] {
            pieces.for_each([](const auto& views) { relu_backward<T>(views[0], views[1], views[2]); });
        });
    });
    return result;
}

}  // namespace convx
