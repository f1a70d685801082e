#include "bindings/cpu_ops.h"
#include "bindings/prepared_weight.h"
#include "cpu/conv2d/conv2d.h"
#include "cpu/conv2d/per_sample.h"

namespace convx {

namespace {

int64_t work_of(const ConvProblem& problem) { return problem.flops() / 2 + elements_of(problem); }

}  // namespace

py::array conv2d_op(py::handle input, py::handle weight, py::handle bias, const ConvHandles& given,
                    py::handle activation, py::handle layout, py::handle algorithm, py::handle out) {
    static const std::string op = "conv2d";
    const FloatArray x = float_array(op, "input", input);
    const PreparedWeight* const prepared = prepared_weight(weight);
    const FloatArray w = prepared ? prepared->weight() : float_array(op, "weight", weight);
    std::optional<FloatArray> b;
    if (!bias.is_none()) b = float_array(op, "bias", bias);
    ConvOptions options = padded_options(op, given, layout, algorithm);
    options.relu = relu_activation(op, activation);
    const auto [problem, unbatched] = check_conv2d(op, x.info, w.info, b ? &b->info : nullptr, options);
    expect_method(op, problem, ConvPass::forward);

    const Shape shape = user_shape(problem.output_shape(), problem.channels_last, unbatched);
    py::array y;
    if (out.is_none()) {
        y = new_array(problem.dtype, shape);
    } else {
        y = output_array(op, out, x.info, shape).array;
        check_no_overlap(op, y, x);
        check_no_overlap(op, y, w);
        if (b) check_no_overlap(op, y, *b);
    }
    dispatch(problem.dtype, [&, &problem = problem](auto zero) {
        using T = decltype(zero);
        const auto input_view = image_view<const T>(x.array, problem.channels_last);
        const auto weight_view = plain_view<const T>(w.array);
        const auto bias_or_none = b ? vector_view<const T>(b->array) : TensorView<const T>{};
        const auto output_view = image_view<T>(y, problem.channels_last);
        without_gil(work_of(problem), [&] {
            conv2d_forward<T>(problem, input_view, weight_view, bias_or_none, output_view,
                              prepared ? &prepared->packed<T>() : nullptr);
        });
    });
    return y;
}

py::tuple conv2d_backward_op(py::handle grad_output, py::handle input, py::handle weight, const ConvHandles& given,
                             py::handle layout, py::handle algorithm, py::handle mask_option,
                             py::handle per_sample_option) {
    static const std::string op = "conv2d_backward";
    const FloatArray g = float_array(op, "grad_output", grad_output);
    const FloatArray x = float_array(op, "input", input);
    const FloatArray w = float_array(op, "weight", weight);
    const ConvOptions options = padded_options(op, given, layout, algorithm);
    const std::array<bool, 3> mask = output_mask(op, mask_option);
    const bool per_sample = truth(op, "per_sample", per_sample_option);
    const auto [problem, unbatched] = check_conv2d(op, x.info, w.info, nullptr, options);
    check_dtype(op, g.info, x.info);
    check_shape(op, g.info, user_shape(problem.output_shape(), problem.channels_last, unbatched));
    if (mask[0]) expect_method(op, problem, ConvPass::grad_input);
    if (mask[1]) expect_method(op, problem, ConvPass::grad_weight);

    py::object grads[3] = {py::none(), py::none(), py::none()};
    if (mask[0]) grads[0] = new_array(problem.dtype, x.info.shape);
    const bool summed = !per_sample || unbatched;
    const auto gradient = [&, &problem = problem, &unbatched = unbatched](const Shape& shape) {
        if (summed) return new_array(problem.dtype, shape);
        return new_array(problem.dtype, per_sample_shape(problem.batch, shape, unbatched));
    };
    if (mask[1]) grads[1] = gradient(w.info.shape);
    if (mask[2]) grads[2] = gradient({problem.out_channels});
    dispatch(problem.dtype, [&, &problem = problem](auto zero) {
        using T = decltype(zero);
        const auto grad_view = image_view<const T>(g.array, problem.channels_last);
        const auto input_view = image_view<const T>(x.array, problem.channels_last);
        const auto weight_view = plain_view<const T>(w.array);
        TensorView<T> grad_input, grad_weight;
        T* grad_bias = nullptr;
        if (mask[0]) grad_input = image_view<T>(grads[0], problem.channels_last);
        if (mask[1]) {
            grad_weight = {nullptr, problem.weight_shape(), dense_strides(problem.weight_shape(), false)};
            grad_weight.data = static_cast<T*>(py::array(grads[1]).mutable_data());
        }
        if (mask[2]) grad_bias = static_cast<T*>(py::array(grads[2]).mutable_data());
        without_gil(work_of(problem), [&] {
            if (mask[0]) conv2d_grad_input<T>(problem, grad_view, weight_view, grad_input);
            if (!per_sample) {
                if (mask[1]) conv2d_grad_weight<T>(problem, grad_view, input_view, grad_weight);
                if (mask[2]) conv2d_grad_bias<T>(grad_view, grad_bias);
            } else {
                if (mask[1]) conv2d_per_sample_grad_weight<T>(problem, grad_view, input_view, grad_weight.data);
                if (mask[2]) conv2d_per_sample_grad_bias<T>(grad_view, grad_bias);
            }
        });
    });
    return py::make_tuple(grads[0], grads[1], grads[2]);
}

py::tuple conv2d_grad_norms_op(py::handle grad_output, py::handle input, py::handle weight_shape,
                               const ConvHandles& given, py::handle layout, py::handle algorithm) {
    static const std::string op = "conv2d_grad_norms";
    const FloatArray g = float_array(op, "grad_output", grad_output);
    const FloatArray x = float_array(op, "input", input);
    const ArrayInfo weight{"weight_shape", x.info.dtype, sizes(op, "weight_shape", weight_shape)};
    const ConvOptions options = padded_options(op, given, layout, algorithm);
    const auto [problem, unbatched] = check_conv2d(op, x.info, weight, nullptr, options);
    check_dtype(op, g.info, x.info);
    check_shape(op, g.info, user_shape(problem.output_shape(), problem.channels_last, unbatched));
    expect_method(op, problem, ConvPass::grad_weight);

    const Shape shape = per_sample_shape(problem.batch, {}, unbatched);
    py::array weight_norms = new_array(DType::float64, shape), bias_norms = new_array(DType::float64, shape);
    auto* const of_weight = static_cast<double*>(weight_norms.mutable_data());
    auto* const of_bias = static_cast<double*>(bias_norms.mutable_data());
    dispatch(problem.dtype, [&, &problem = problem](auto zero) {
        using T = decltype(zero);
        const auto grad_view = image_view<const T>(g.array, problem.channels_last);
        const auto input_view = image_view<const T>(x.array, problem.channels_last);
        without_gil(work_of(problem), [&] {
            conv2d_grad_weight_norms<T>(problem, grad_view, input_view, of_weight);
            conv2d_grad_bias_norms<T>(grad_view, of_bias);
        });
    });
    return py::make_tuple(weight_norms, bias_norms);
}

}  // namespace convx
