// max_pool2d and its gradient over the arrays of a backend.
#pragma once

#include "bindings/options.h"
#include "bindings/py_array.h"

namespace convx {

inline int64_t work_of(const PoolProblem& problem) {
    return element_count(problem.input_shape()) + element_count(problem.output_shape());
}

template <class Backend>
py::object max_pool2d_op(typename Backend::Library library, py::handle input, const PoolHandles& given,
                         py::handle return_indices, py::handle return_codes) {
    static const std::string op = "max_pool2d";
    Backend backend(op, library);
    const PyArray x = backend.input("input", input);
    const PoolOptions options = dilated_pool_options(op, given);
    const bool want_indices = truth(op, "return_indices", return_indices);
    const bool want_codes = truth(op, "return_codes", return_codes);
    if (want_indices && want_codes)
        throw ShapeError(op + ": return_indices and return_codes are both True, expected at most one");
    const Checked<PoolProblem> checked = check_max_pool2d(op, x.info, options);
    const PoolProblem& problem = checked.problem;
    if (want_codes) check_codes_fit(op, problem);
    backend.check_planes(problem);

    const bool last = problem.channels_last;
    const Shape shape = user_shape(problem.output_shape(), last, checked.unbatched);
    const PyArray y = backend.empty(problem.dtype, shape);
    PyArray chosen;
    if (want_indices) chosen = backend.empty_indices(shape);
    if (want_codes) chosen = backend.empty_bytes(shape);
    const Tensor from = image_tensor(x, last), to = image_tensor(y, last);
    Tensor indices, codes;
    if (want_indices) indices = image_tensor(chosen, last);
    if (want_codes) codes = image_tensor(chosen, last);
    backend.run(work_of(problem), [&] { backend.max_pool2d(problem, from, to, indices, codes); });
    if (!chosen.object) return y.object;
    return py::make_tuple(y.object, chosen.object);
}

template <class Backend>
py::object max_pool2d_backward_op(typename Backend::Library library, py::handle grad_output,
                                  py::handle indices_or_codes, py::handle input_shape, const PoolHandles& given) {
    static const std::string op = "max_pool2d_backward";
    Backend backend(op, library);
    const PyArray g = backend.input("grad_output", grad_output);
    const PyArray chosen = backend.indices_or_codes("indices_or_codes", indices_or_codes);
    const PoolOptions options = dilated_pool_options(op, given);
    const ArrayInfo input{"input_shape", g.info.dtype, sizes(op, "input_shape", input_shape)};
    const Checked<PoolProblem> checked = check_max_pool2d(op, input, options);
    const PoolProblem& problem = checked.problem;
    const bool last = problem.channels_last, by_codes = chosen.item_bytes == 1;
    const Shape shape = user_shape(problem.output_shape(), last, checked.unbatched);
    check_shape(op, g.info, shape);
    check_shape(op, chosen.info, shape);
    if (by_codes) check_codes_fit(op, problem);
    backend.check_planes(problem);

    const PyArray grad_input = backend.empty(problem.dtype, input.shape);
    const Tensor grad = image_tensor(g, last), choice = image_tensor(chosen, last), to = image_tensor(grad_input, last);
    bool inside = true;
    backend.run(work_of(problem), [&] { inside = backend.max_pool2d_backward(problem, grad, choice, by_codes, to); });
    if (!inside)
        throw ShapeError(op + ": indices_or_codes has " +
                         (by_codes ? "a code outside its window, expected taps 0 to " +
                                         std::to_string(problem.taps() - 1) + " inside the image, or 255"
                                   : "an index outside the plane, expected 0 to " +
                                         std::to_string(problem.h.input * problem.w.input - 1)));
    return grad_input.object;
}

}  // namespace convx
