// ReLU and its gradient over the arrays of a backend, of any number of axes.
#pragma once

#include "bindings/py_array.h"

namespace convx {

template <class Backend>
PyArray relu_destination(Backend& backend, py::handle out, const PyArray& like) {
    return out.is_none() ? backend.empty_like(like) : backend.output(out, like.info, like.info.shape);
}

template <class Backend>
py::object relu_op(typename Backend::Library library, py::handle input, py::handle return_mask, py::handle out) {
    static const std::string op = "relu";
    Backend backend(op, library);
    const PyArray x = backend.input("input", input);
    const PyArray y = relu_destination(backend, out, x);
    if (!out.is_none()) backend.check_no_overlap(y, x, true);
    const int64_t size = element_count(x.info.shape);
    if (truth(op, "return_mask", return_mask)) {
        const PyArray mask = backend.empty_bytes({relu_mask_bytes(size)});
        backend.run(size, [&] { backend.relu_mask(x, y, mask); });
        return py::make_tuple(y.object, mask.object);
    }
    backend.run(size, [&] { backend.relu(x, y); });
    return y.object;
}

template <class Backend>
py::object relu_backward_op(typename Backend::Library library, py::handle grad_output, py::handle output,
                            py::handle out) {
    static const std::string op = "relu_backward";
    Backend backend(op, library);
    const PyArray g = backend.input("grad_output", grad_output);
    const PyArray y = backend.input_or_bytes("output", output);
    const bool is_mask = y.item_bytes != 0;
    const int64_t size = element_count(g.info.shape);
    if (is_mask) {
        check_relu_mask(op, y.info.shape, size);
    } else {
        check_dtype(op, y.info, g.info);
        check_shape(op, y.info, g.info.shape);
    }
    const PyArray result = relu_destination(backend, out, g);
    if (!out.is_none()) {
        backend.check_no_overlap(result, g, true);
        backend.check_no_overlap(result, y, !is_mask);
    }
    backend.run(size, [&] {
        if (is_mask)
            backend.relu_mask_backward(g, y, result);
        else
            backend.relu_backward(g, y, result);
    });
    return result.object;
}

}  // namespace convx
