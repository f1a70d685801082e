#include "cpu/conv2d/methods.h"
#include "cpu/conv_transpose2d.h"

#include "bindings/cpu_ops.h"
#include "cpu/conv2d/conv2d.h"

namespace convx {

namespace {

int64_t work_of(const ConvTransposeProblem& problem) {
    const auto count = [](const std::array<int64_t, 4>& s) { return s[0] * s[1] * s[2] * s[3]; };
    return problem.conv.flops() / 2 + count(problem.input_shape) + count(problem.output_shape());
}

}  // namespace

py::array conv_transpose2d_op(py::handle input, py::handle weight, py::handle bias, const TransposeHandles& given,
                              py::handle out) {
    static const std::string op = "conv_transpose2d";
    const FloatArray x = float_array(op, "input", input);
    const FloatArray w = float_array(op, "weight", weight);
    std::optional<FloatArray> b;
    if (!bias.is_none()) b = float_array(op, "bias", bias);
    const ConvTransposeOptions options = transpose_options(op, given);
    const auto [problem, unbatched] = check_conv_transpose2d(op, x.info, w.info, b ? &b->info : nullptr, options);
    expect_method(op, problem.conv, ConvPass::grad_input);

    const bool channels_last = problem.conv.channels_last;
    const Shape shape = user_shape(problem.output_shape(), channels_last, unbatched);
    py::array y;
    if (out.is_none()) {
        y = new_array(problem.conv.dtype, shape);
    } else {
        y = output_array(op, out, x.info, shape).array;
        check_no_overlap(op, y, x);
        check_no_overlap(op, y, w);
        if (b) check_no_overlap(op, y, *b);
    }
    dispatch(problem.conv.dtype, [&, &problem = problem](auto zero) {
        using T = decltype(zero);
        const auto input_view = image_view<const T>(x.array, channels_last);
        const auto weight_view = plain_view<const T>(w.array);
        const auto bias_or_none = b ? vector_view<const T>(b->array) : TensorView<const T>{};
        const auto output_view = image_view<T>(y, channels_last);
        without_gil(work_of(problem),
                    [&] { conv_transpose2d_forward<T>(problem, input_view, weight_view, bias_or_none, output_view); });
    });
    return y;
}

py::tuple conv_transpose2d_backward_op(py::handle grad_output, py::handle input, py::handle weight,
                                       const TransposeHandles& given, py::handle mask_option) {
    static const std::string op = "conv_transpose2d_backward";
    const FloatArray g = float_array(op, "grad_output", grad_output);
    const FloatArray x = float_array(op, "input", input);
    const FloatArray w = float_array(op, "weight", weight);
    const ConvTransposeOptions options = transpose_options(op, given);
    const std::array<bool, 3> mask = output_mask(op, mask_option);
    const auto [problem, unbatched] = check_conv_transpose2d(op, x.info, w.info, nullptr, options);
    const bool channels_last = problem.conv.channels_last;
    check_dtype(op, g.info, x.info);
    check_shape(op, g.info, user_shape(problem.output_shape(), channels_last, unbatched));
    if (mask[0]) expect_method(op, problem.conv, ConvPass::forward);
    if (mask[1]) expect_method(op, problem.conv, ConvPass::grad_weight);

    py::object grads[3] = {py::none(), py::none(), py::none()};
    if (mask[0]) grads[0] = new_array(problem.conv.dtype, x.info.shape);
    if (mask[1]) grads[1] = new_array(problem.conv.dtype, w.info.shape);
    if (mask[2]) grads[2] = new_array(problem.conv.dtype, {problem.conv.in_channels});
    dispatch(problem.conv.dtype, [&, &problem = problem](auto zero) {
        using T = decltype(zero);
        const auto grad_view = image_view<const T>(g.array, channels_last);
        const auto input_view = image_view<const T>(x.array, channels_last);
        const auto weight_view = plain_view<const T>(w.array);
        TensorView<T> grad_input, grad_weight;
        T* grad_bias = nullptr;
        if (mask[0]) grad_input = image_view<T>(grads[0], channels_last);
        if (mask[1]) grad_weight = plain_view<T>(grads[1]);
        if (mask[2]) grad_bias = static_cast<T*>(py::array(grads[2]).mutable_data());
        without_gil(work_of(problem), [&] {
            if (mask[0]) conv_transpose2d_grad_input<T>(problem, grad_view, weight_view, grad_input);
            if (mask[1]) conv_transpose2d_grad_weight<T>(problem, grad_view, input_view, grad_weight);
            if (mask[2]) conv2d_grad_bias<T>(grad_view, grad_bias);
        });
    });
    return py::make_tuple(grads[0], grads[1], grads[2]);
}

}  // namespace convx
