#include "bindings/jax_calls.h"

namespace convx::jax {

namespace {

Shape output_shape(const FusedProblem& problem) {
    return cpu->user_shape(problem.pool.output_shape(), problem.pool.channels_last, false);
}

PoolOptions behind(const Call& call) {
    PoolOptions options = call.pool_options("pool_");
    options.prefix = "pool_";
    return options;
}

const std::string backward = "conv2d_relu_max_pool2d_backward";

FusedProblem backward_problem(const Call& call, const Buffer& g, const Buffer& input, const Buffer& weight,
                              const ArrayInfo* bias, const Buffer& codes) {
    const FusedProblem problem =
        cpu->check_conv2d_relu_max_pool2d(backward, input.info, weight.info, bias, call.conv_options(), behind(call))
            .problem;
    cpu->check_dtype(backward, g.info, input.info);
    for (const Buffer* const saved : {&g, &codes}) cpu->check_shape(backward, saved->info, output_shape(problem));
    return problem;
}

}  // namespace

// (input, weight[, bias]) -> (output, codes)
void conv2d_relu_max_pool2d(const Call& call) {
    static const std::string op = "conv2d_relu_max_pool2d";
    const Buffer x = call.argument(0, "input"), w = call.argument(1, "weight");
    const Buffer y = call.result(0, "output"), codes = call.result(1, "codes");
    const bool biased = call.arguments() > 2;
    const Buffer b = biased ? call.argument(2, "bias") : x;
    const FusedProblem problem = cpu->check_conv2d_relu_max_pool2d(op, x.info, w.info, biased ? &b.info : nullptr,
                                                                   call.conv_options(), behind(call))
                                     .problem;
    const bool last = problem.conv.channels_last;
    for (const Buffer* const result : {&y, &codes}) cpu->check_shape(op, result->info, output_shape(problem));
    dispatch(x.info.dtype, [&](auto zero) {
        using T = decltype(zero);
        passes<T>().conv2d_relu_max_pool2d(problem, image_view<const T>(x, last), plain_view<const T>(w),
                                           biased ? vector_view<const T>(b) : TensorView<const T>{},
                                           image_view<T>(y, last), image_view<uint8_t>(codes, last));
    });
}

// (grad_output, weight, codes) -> grad_input
void conv2d_relu_max_pool2d_grad_input(const Call& call) {
    const Buffer g = call.argument(0, "grad_output"), w = call.argument(1, "weight");
    const Buffer codes = call.argument(2, "codes"), grad_input = call.result(0, "input");
    const FusedProblem problem = backward_problem(call, g, grad_input, w, nullptr, codes);
    const bool last = problem.conv.channels_last;
    bool inside = true;
    dispatch(g.info.dtype, [&](auto zero) {
        using T = decltype(zero);
        const auto result = image_view<T>(grad_input, last);
        // The input is read for the other gradients alone: this one stands where it has to have a shape.
        inside = passes<T>().conv2d_relu_max_pool2d_backward(
            problem, image_view<const T>(g, last), result, plain_view<const T>(w),
            image_view<const uint8_t>(codes, last), result, {}, nullptr);
    });
    if (!inside) throw ShapeError(backward + ": codes has a code outside its window");
}

// (grad_output, input, codes) -> (grad_weight[, grad_bias])
void conv2d_relu_max_pool2d_grad_weight(const Call& call) {
    const Buffer g = call.argument(0, "grad_output"), x = call.argument(1, "input");
    const Buffer codes = call.argument(2, "codes"), grad_weight = call.result(0, "weight");
    const bool biased = call.results() > 1;
    const Buffer grad_bias = biased ? call.result(1, "bias") : grad_weight;
    const FusedProblem problem = backward_problem(call, g, x, grad_weight, biased ? &grad_bias.info : nullptr, codes);
    const bool last = problem.conv.channels_last;
    bool inside = true;
    dispatch(g.info.dtype, [&](auto zero) {
        using T = decltype(zero);
        const auto result = plain_view<T>(grad_weight);  // and the weight, which is not read either
        inside = passes<T>().conv2d_relu_max_pool2d_backward(
            problem, image_view<const T>(g, last), image_view<const T>(x, last), result,
            image_view<const uint8_t>(codes, last), {}, result, biased ? static_cast<T*>(grad_bias.data) : nullptr);
    });
    if (!inside) throw ShapeError(backward + ": codes has a code outside its window");
}

}  // namespace convx::jax
