// conv2d and its gradients over the arrays of a backend, Cpu or Cuda (cpu_backend.h, cuda_backend.h).
#pragma once

#include "bindings/options.h"
#include "bindings/py_array.h"

namespace convx {

// Multiplications and elements.
inline int64_t work_of(const ConvProblem& problem) {
    return problem.flops() / 2 + element_count(problem.input_shape()) + element_count(problem.output_shape());
}

// The gradients that output_mask asks for, None for the others.
struct Gradients {
    template <class Backend>
    Gradients(Backend& backend, const std::array<bool, 3>& mask, const PyArray& x, const Shape& weight_shape,
              const Shape& bias_shape) {
        const Shape* shapes[] = {&x.info.shape, &weight_shape, &bias_shape};
        for (size_t i = 0; i < 3; ++i)
            if (mask[i]) array[i] = backend.empty(x.info.dtype, *shapes[i]);
    }
    Tensor input(bool last) const { return array[0].object ? image_tensor(array[0], last) : Tensor{}; }
    Tensor weight() const { return array[1].object ? plain_tensor(array[1]) : Tensor{}; }
    Tensor bias() const { return array[2].object ? vector_tensor(array[2]) : Tensor{}; }
    py::tuple objects() const {
        const auto object = [&](size_t i) -> py::object { return array[i].object ? array[i].object : py::none(); };
        return py::make_tuple(object(0), object(1), object(2));
    }
    std::array<PyArray, 3> array;
};

template <class Backend>
py::object conv2d_op(typename Backend::Library library, py::handle input, py::handle weight, py::handle bias,
                     const ConvHandles& given, py::handle activation, py::handle layout, py::handle algorithm,
                     typename Backend::Precision precision, py::handle out) {
    static const std::string op = "conv2d";
    Backend backend(op, library);
    const PyArray x = backend.input("input", input);
    const typename Backend::Weight w = backend.weight("weight", weight);
    const std::optional<PyArray> b = backend.optional_input("bias", bias);
    ConvOptions options = padded_options(op, given, layout, algorithm);
    options.relu = relu_activation(op, activation);
    backend.set_precision(precision);
    const Checked<ConvProblem> checked = check_conv2d(op, x.info, w.array.info, info_of(b), options);
    const ConvProblem& problem = checked.problem;
    backend.check_method(problem, ConvPass::forward);

    const bool last = problem.channels_last;
    const PyArray y = backend.result(out, x.info, user_shape(problem.output_shape(), last, checked.unbatched),
                                     {&x, &w.array, b ? &*b : nullptr});
    const Tensor from = image_tensor(x, last), weights = plain_tensor(w.array), to = image_tensor(y, last);
    const Tensor biases = vector_or_none(b);
    backend.run(work_of(problem), [&] { backend.conv2d_forward(problem, from, weights, biases, to, w.prepared); });
    return y.object;
}

template <class Backend>
py::tuple conv2d_backward_op(typename Backend::Library library, py::handle grad_output, py::handle input,
                             py::handle weight, const ConvHandles& given, py::handle layout, py::handle algorithm,
                             typename Backend::Precision precision, py::handle mask_option,
                             py::handle per_sample_option) {
    static const std::string op = "conv2d_backward";
    Backend backend(op, library);
    const PyArray g = backend.input("grad_output", grad_output);
    const PyArray x = backend.input("input", input);
    const PyArray w = backend.input("weight", weight);
    const ConvOptions options = padded_options(op, given, layout, algorithm);
    backend.set_precision(precision);
    const std::array<bool, 3> mask = output_mask(op, mask_option);
    const bool per_sample = truth(op, "per_sample", per_sample_option);
    const Checked<ConvProblem> checked = check_conv2d(op, x.info, w.info, nullptr, options);
    const ConvProblem& problem = checked.problem;
    const bool last = problem.channels_last;
    check_dtype(op, g.info, x.info);
    check_shape(op, g.info, user_shape(problem.output_shape(), last, checked.unbatched));
    if (mask[0]) backend.check_method(problem, ConvPass::grad_input);
    if (mask[1]) backend.check_method(problem, ConvPass::grad_weight);

    const auto sample_shape = [&](const Shape& shape) {
        return per_sample_shape(problem.batch, shape, !per_sample || checked.unbatched);
    };
    const Gradients grads(backend, mask, x, sample_shape(w.info.shape), sample_shape({problem.out_channels}));
    const Tensor grad = image_tensor(g, last), from = image_tensor(x, last), weights = plain_tensor(w);
    backend.run(work_of(problem), [&] {
        if (mask[0]) backend.conv2d_grad_input(problem, grad, weights, grads.input(last), {});
        if (per_sample) {
            if (mask[1]) backend.per_sample_grad_weight(problem, grad, from, grads.array[1].data);
            if (mask[2]) backend.per_sample_grad_bias(problem, grad, grads.array[2].data);
        } else {
            if (mask[1]) backend.conv2d_grad_weight(problem, grad, from, grads.weight());
            if (mask[2]) backend.conv2d_grad_bias(problem, grad, grads.bias());
        }
    });
    return grads.objects();
}

template <class Backend>
py::tuple conv2d_grad_norms_op(typename Backend::Library library, py::handle grad_output, py::handle input,
                               py::handle weight_shape, const ConvHandles& given, py::handle layout,
                               py::handle algorithm, typename Backend::Precision precision) {
    static const std::string op = "conv2d_grad_norms";
    Backend backend(op, library);
    const PyArray g = backend.input("grad_output", grad_output);
    const PyArray x = backend.input("input", input);
    const ArrayInfo weight{"weight_shape", x.info.dtype, sizes(op, "weight_shape", weight_shape)};
    const ConvOptions options = padded_options(op, given, layout, algorithm);
    backend.set_precision(precision);
    const Checked<ConvProblem> checked = check_conv2d(op, x.info, weight, nullptr, options);
    const ConvProblem& problem = checked.problem;
    const bool last = problem.channels_last;
    check_dtype(op, g.info, x.info);
    check_shape(op, g.info, user_shape(problem.output_shape(), last, checked.unbatched));
    backend.check_method(problem, ConvPass::grad_weight);

    const Shape shape = per_sample_shape(problem.batch, {}, checked.unbatched);
    const PyArray weight_norms = backend.empty(DType::float64, shape);
    const PyArray bias_norms = backend.empty(DType::float64, shape);
    const Tensor grad = image_tensor(g, last), from = image_tensor(x, last);
    backend.run(work_of(problem), [&] {
        backend.grad_weight_norms(problem, grad, from, weight_norms.as<double>());
        backend.grad_bias_norms(problem, grad, bias_norms.as<double>());
    });
    return py::make_tuple(weight_norms.object, bias_norms.object);
}

}  // namespace convx
