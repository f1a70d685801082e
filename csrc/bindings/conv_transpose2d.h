// conv_transpose2d and its gradients over the arrays of a backend: the passes of conv2d in other roles. The output is
// the input gradient of the convolution (plus a bias), the input gradient the convolution itself, the weight gradient
// the same one. Where the convolution is empty the bias stands alone, and gradients are zeros.
#pragma once

#include "bindings/conv2d.h"

namespace convx {

inline int64_t work_of(const ConvTransposeProblem& problem) {
    return problem.conv.flops() / 2 + element_count(problem.input_shape) + element_count(problem.output_shape());
}

// The rows and columns of the output that the convolution has as its input.
inline Tensor reached(const ConvTransposeProblem& problem, const Tensor& output) {
    return output.part(2, 0, 0, problem.conv.h.input).part(3, 0, 0, problem.conv.w.input);
}

template <class Backend>
void transposed_forward(Backend& backend, const ConvTransposeProblem& problem, const Tensor& input,
                        const Tensor& weight, const Tensor& bias, const Tensor& output) {
    const ConvProblem& conv = problem.conv;
    if (problem.is_empty()) return backend.fill(conv.dtype, output, bias);
    backend.conv2d_grad_input(conv, input, weight, reached(problem, output), bias);
    const int64_t item = item_size(conv.dtype), rows = conv.h.input, columns = conv.w.input;
    if (rows < problem.out_h) backend.fill(conv.dtype, output.part(2, item, rows, problem.out_h - rows), bias);
    if (columns < problem.out_w) backend.fill(conv.dtype, output.part(3, item, columns, problem.out_w - columns), bias);
}

template <class Backend>
py::object conv_transpose2d_op(typename Backend::Library library, py::handle input, py::handle weight, py::handle bias,
                               const TransposeHandles& given, typename Backend::Precision precision, py::handle out) {
    static const std::string op = "conv_transpose2d";
    Backend backend(op, library);
    const PyArray x = backend.input("input", input);
    const PyArray w = backend.input("weight", weight);
    const std::optional<PyArray> b = backend.optional_input("bias", bias);
    const ConvTransposeOptions options = transpose_options(op, given);
    backend.set_precision(precision);
    const Checked<ConvTransposeProblem> checked = check_conv_transpose2d(op, x.info, w.info, info_of(b), options);
    const ConvTransposeProblem& problem = checked.problem;
    backend.check_method(problem.conv, ConvPass::grad_input);

    const bool last = problem.conv.channels_last;
    const PyArray y = backend.result(out, x.info, user_shape(problem.output_shape(), last, checked.unbatched),
                                     {&x, &w, b ? &*b : nullptr});
    const Tensor from = image_tensor(x, last), weights = plain_tensor(w), to = image_tensor(y, last);
    const Tensor biases = vector_or_none(b);
    backend.run(work_of(problem), [&] { transposed_forward(backend, problem, from, weights, biases, to); });
    return y.object;
}

template <class Backend>
py::tuple conv_transpose2d_backward_op(typename Backend::Library library, py::handle grad_output, py::handle input,
                                       py::handle weight, const TransposeHandles& given,
                                       typename Backend::Precision precision, py::handle mask_option) {
    static const std::string op = "conv_transpose2d_backward";
    Backend backend(op, library);
    const PyArray g = backend.input("grad_output", grad_output);
    const PyArray x = backend.input("input", input);
    const PyArray w = backend.input("weight", weight);
    const ConvTransposeOptions options = transpose_options(op, given);
    backend.set_precision(precision);
    const std::array<bool, 3> mask = output_mask(op, mask_option);
    const Checked<ConvTransposeProblem> checked = check_conv_transpose2d(op, x.info, w.info, nullptr, options);
    const ConvTransposeProblem& problem = checked.problem;
    const ConvProblem& conv = problem.conv;
    const bool last = conv.channels_last;
    check_dtype(op, g.info, x.info);
    check_shape(op, g.info, user_shape(problem.output_shape(), last, checked.unbatched));
    if (mask[0]) backend.check_method(conv, ConvPass::forward);
    if (mask[1]) backend.check_method(conv, ConvPass::grad_weight);

    const Gradients grads(backend, mask, x, w.info.shape, {conv.in_channels});
    const Tensor grad = image_tensor(g, last), from = image_tensor(x, last), weights = plain_tensor(w);
    const Tensor to = grads.input(last), of_weight = grads.weight(), of_bias = grads.bias();
    backend.run(work_of(problem), [&] {
        const bool empty = problem.is_empty();
        if (mask[0] && empty) backend.fill(conv.dtype, to, {});
        if (mask[1] && empty) backend.fill(conv.dtype, of_weight, {});
        if (mask[0] && !empty) backend.conv2d_forward(conv, reached(problem, grad), weights, {}, to, nullptr);
        if (mask[1] && !empty) backend.conv2d_grad_weight(conv, from, reached(problem, grad), of_weight);
        if (mask[2]) backend.conv2d_grad_bias(problem.bias_sum(), grad, of_bias);
    });
    return grads.objects();
}

}  // namespace convx
