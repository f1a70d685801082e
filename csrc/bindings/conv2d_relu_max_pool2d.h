// The training block and its gradients over the arrays of a backend.
#pragma once

#include "bindings/conv2d.h"

namespace convx {

template <class Backend>
py::tuple conv2d_relu_max_pool2d_op(typename Backend::Library library, py::handle input, py::handle weight,
                                    py::handle bias, const FusedHandles& given, typename Backend::Precision precision) {
    static const std::string op = "conv2d_relu_max_pool2d";
    Backend backend(op, library);
    const PyArray x = backend.input("input", input);
    const PyArray w = backend.input("weight", weight);
    const std::optional<PyArray> b = backend.optional_input("bias", bias);
    const FusedOptions options = fused_options(op, given);
    backend.set_precision(precision);
    const Checked<FusedProblem> checked =
        check_conv2d_relu_max_pool2d(op, x.info, w.info, info_of(b), options.conv, options.pool);
    const FusedProblem& problem = checked.problem;
    backend.check_planes(problem.pool);

    const bool last = problem.conv.channels_last;
    const Shape shape = user_shape(problem.pool.output_shape(), last, checked.unbatched);
    const PyArray y = backend.empty(x.info.dtype, shape), chosen = backend.empty_bytes(shape);
    const Tensor from = image_tensor(x, last), weights = plain_tensor(w), biases = vector_or_none(b);
    const Tensor to = image_tensor(y, last), codes = image_tensor(chosen, last);
    backend.run(work_of(problem.conv),
                [&] { backend.conv2d_relu_max_pool2d(problem, from, weights, biases, to, codes); });
    return py::make_tuple(y.object, chosen.object);
}

template <class Backend>
py::tuple conv2d_relu_max_pool2d_backward_op(typename Backend::Library library, py::handle grad_output,
                                             py::handle input, py::handle weight, py::handle codes,
                                             const FusedHandles& given, typename Backend::Precision precision,
                                             py::handle mask_option) {
    static const std::string op = "conv2d_relu_max_pool2d_backward";
    Backend backend(op, library);
    const PyArray g = backend.input("grad_output", grad_output);
    const PyArray x = backend.input("input", input);
    const PyArray w = backend.input("weight", weight);
    const PyArray chosen = backend.codes("codes", codes);
    const FusedOptions options = fused_options(op, given);
    backend.set_precision(precision);
    const std::array<bool, 3> mask = output_mask(op, mask_option);
    const Checked<FusedProblem> checked =
        check_conv2d_relu_max_pool2d(op, x.info, w.info, nullptr, options.conv, options.pool);
    const FusedProblem& problem = checked.problem;
    backend.check_planes(problem.pool);
    const bool last = problem.conv.channels_last;
    const Shape shape = user_shape(problem.pool.output_shape(), last, checked.unbatched);
    check_dtype(op, g.info, x.info);
    check_shape(op, g.info, shape);
    check_shape(op, chosen.info, shape);

    const Gradients grads(backend, mask, x, w.info.shape, {problem.conv.out_channels});
    const Tensor grad = image_tensor(g, last), from = image_tensor(x, last), weights = plain_tensor(w);
    const Tensor choice = image_tensor(chosen, last);
    const Tensor to = grads.input(last), of_weight = grads.weight(), of_bias = grads.bias();
    bool inside = true;
    backend.run(work_of(problem.conv), [&] {
        inside = backend.conv2d_relu_max_pool2d_backward(problem, grad, from, weights, choice, to, of_weight, of_bias);
    });
    if (!inside)
        throw ShapeError(op + ": codes has a code outside its window, expected taps 0 to " +
                         std::to_string(problem.pool.taps() - 1) + " inside the image, or 255");
    return grads.objects();
}

}  // namespace convx
