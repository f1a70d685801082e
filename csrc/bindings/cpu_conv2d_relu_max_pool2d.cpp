#include "cpu/fused/conv2d_relu_max_pool2d.h"

#include "bindings/cpu_ops.h"

namespace convx {

py::tuple conv2d_relu_max_pool2d_op(py::handle input, py::handle weight, py::handle bias, const FusedHandles& given) {
    static const std::string op = "conv2d_relu_max_pool2d";
    const FloatArray x = float_array(op, "input", input);
    const FloatArray w = float_array(op, "weight", weight);
    std::optional<FloatArray> b;
    if (!bias.is_none()) b = float_array(op, "bias", bias);
    const FusedOptions options = fused_options(op, given);
    const auto fused =
        check_conv2d_relu_max_pool2d(op, x.info, w.info, b ? &b->info : nullptr, options.conv, options.pool);
    const bool last = options.conv.channels_last;
    const Shape shape = user_shape(fused.problem.pool.output_shape(), last, fused.unbatched);
    const py::array y = new_array(x.info.dtype, shape);
    const py::array codes = new_array<uint8_t>(shape);
    dispatch(x.info.dtype, [&](auto zero) {
        using T = decltype(zero);
        const auto input_view = image_view<const T>(x.array, last);
        const auto weight_view = plain_view<const T>(w.array);
        const auto bias_or_none = b ? vector_view<const T>(b->array) : TensorView<const T>{};
        const auto output_view = image_view<T>(y, last);
        const auto code_view = image_view<uint8_t>(codes, last);
        const WithoutGil release;
        conv2d_relu_max_pool2d<T>(fused.problem, input_view, weight_view, bias_or_none, output_view, code_view);
    });
    return py::make_tuple(y, codes);
}

py::tuple conv2d_relu_max_pool2d_backward_op(py::handle grad_output, py::handle input, py::handle weight,
                                             py::handle codes, const FusedHandles& given, py::handle mask_option) {
    static const std::string op = "conv2d_relu_max_pool2d_backward";
    const FloatArray g = float_array(op, "grad_output", grad_output);
    const FloatArray x = float_array(op, "input", input);
    const FloatArray w = float_array(op, "weight", weight);
    const py::array chosen = integer_array(op, "codes", codes, {py::dtype::num_of<uint8_t>()}, "uint8");
    const FusedOptions options = fused_options(op, given);
    const std::array<bool, 3> mask = output_mask(op, mask_option);
    const auto fused = check_conv2d_relu_max_pool2d(op, x.info, w.info, nullptr, options.conv, options.pool);
    const bool last = options.conv.channels_last;
    const Shape shape = user_shape(fused.problem.pool.output_shape(), last, fused.unbatched);
    check_dtype(op, g.info, x.info);
    check_shape(op, g.info, shape);
    check_shape(op, {"codes", x.info.dtype, shape_of(chosen)}, shape);

    py::object grads[3] = {py::none(), py::none(), py::none()};
    if (mask[0]) grads[0] = new_array(x.info.dtype, x.info.shape);
    if (mask[1]) grads[1] = new_array(x.info.dtype, w.info.shape);
    if (mask[2]) grads[2] = new_array(x.info.dtype, {fused.problem.conv.out_channels});
    bool inside = true;
    dispatch(x.info.dtype, [&](auto zero) {
        using T = decltype(zero);
        const auto grad_view = image_view<const T>(g.array, last);
        const auto input_view = image_view<const T>(x.array, last);
        const auto weight_view = plain_view<const T>(w.array);
        const auto code_view = image_view<const uint8_t>(chosen, last);
        TensorView<T> grad_input, grad_weight;
        T* grad_bias = nullptr;
        if (mask[0]) grad_input = image_view<T>(grads[0], last);
        if (mask[1]) grad_weight = plain_view<T>(grads[1]);
        if (mask[2]) grad_bias = static_cast<T*>(py::array(grads[2]).mutable_data());
        const WithoutGil release;
        inside = conv2d_relu_max_pool2d_backward<T>(fused.problem, grad_view, input_view, weight_view, code_view,
                                                    grad_input, grad_weight, grad_bias);
    });
    if (!inside)
        throw ShapeError(op + ": codes has a code outside its window, expected taps 0 to " +
                         std::to_string(fused.problem.pool.taps() - 1) + " inside the image, or 255");
    return py::make_tuple(grads[0], grads[1], grads[2]);
}

}  // namespace convx
