#include "bindings/jax_calls.h"

namespace convx::jax {

namespace {

Shape output_shape(const ConvProblem& problem) {
    return cpu->user_shape(problem.output_shape(), problem.channels_last, false);
}

}  // namespace

// (input, weight[, bias]) -> output
void conv2d(const Call& call) {
    static const std::string op = "conv2d";
    const Buffer x = call.argument(0, "input"), w = call.argument(1, "weight"), y = call.result(0, "output");
    const bool biased = call.arguments() > 2;
    const Buffer b = biased ? call.argument(2, "bias") : x;
    const ConvProblem problem =
        cpu->check_conv2d(op, x.info, w.info, biased ? &b.info : nullptr, call.conv_options()).problem;
    cpu->check_shape(op, y.info, output_shape(problem));
    dispatch(problem.dtype, [&](auto zero) {
        using T = decltype(zero);
        passes<T>().conv2d_forward(problem, image_view<const T>(x, problem.channels_last), plain_view<const T>(w),
                                   biased ? vector_view<const T>(b) : TensorView<const T>{},
                                   image_view<T>(y, problem.channels_last), nullptr);
    });
}

// (grad_output, weight[, bias]) -> grad_input: with a bias for each of its channels it is a transposed convolution
void conv2d_grad_input(const Call& call) {
    static const std::string op = "conv2d_backward";
    const Buffer g = call.argument(0, "grad_output"), w = call.argument(1, "weight");
    const Buffer grad_input = call.result(0, "input");
    const bool biased = call.arguments() > 2;
    const Buffer b = biased ? call.argument(2, "bias") : g;
    const ConvProblem problem = cpu->check_conv2d(op, grad_input.info, w.info, nullptr, call.conv_options()).problem;
    cpu->check_dtype(op, g.info, grad_input.info);
    cpu->check_shape(op, g.info, output_shape(problem));
    if (biased) {
        cpu->check_dtype(op, b.info, g.info);
        cpu->check_shape(op, b.info, {problem.in_channels});
    }
    dispatch(problem.dtype, [&](auto zero) {
        using T = decltype(zero);
        passes<T>().conv2d_grad_input(problem, image_view<const T>(g, problem.channels_last), plain_view<const T>(w),
                                      image_view<T>(grad_input, problem.channels_last),
                                      biased ? vector_view<const T>(b) : TensorView<const T>{});
    });
}

// (grad_output, input) -> grad_weight
void conv2d_grad_weight(const Call& call) {
    static const std::string op = "conv2d_backward";
    const Buffer g = call.argument(0, "grad_output"), x = call.argument(1, "input");
    const Buffer grad_weight = call.result(0, "weight");
    const ConvProblem problem = cpu->check_conv2d(op, x.info, grad_weight.info, nullptr, call.conv_options()).problem;
    cpu->check_dtype(op, g.info, x.info);
    cpu->check_shape(op, g.info, output_shape(problem));
    dispatch(problem.dtype, [&](auto zero) {
        using T = decltype(zero);
        passes<T>().conv2d_grad_weight(problem, image_view<const T>(g, problem.channels_last),
                                       image_view<const T>(x, problem.channels_last), plain_view<T>(grad_weight));
    });
}

// grad_output -> grad_bias
void conv2d_grad_bias(const Call& call) {
    static const std::string op = "conv2d_backward";
    const Buffer g = call.argument(0, "grad_output"), grad_bias = call.result(0, "grad_bias");
    const bool last = call.conv_options().channels_last;
    cpu->check_dtype(op, grad_bias.info, g.info);
    cpu->check_shape(op, grad_bias.info, {g.info.shape[last ? 3 : 1]});
    dispatch(g.info.dtype, [&](auto zero) {
        using T = decltype(zero);
        passes<T>().conv2d_grad_bias(image_view<const T>(g, last), static_cast<T*>(grad_bias.data));
    });
}

}  // namespace convx::jax
