// The handlers: operands and results in XLA's order, the checks again, one pass.
#include "bindings/jax_calls.h"

namespace convx::jax {

namespace {

// The shape of a batch of results, in the user's layout.
template <class Problem>
Shape output_shape(const Problem& problem) {
    return cpu->user_shape(problem.output_shape(), problem.channels_last, false);
}

void check_like(const std::string& op, const Array& array, const ArrayInfo& like, const Shape& shape) {
    cpu->check_dtype(op, array.info, like);
    cpu->check_shape(op, array.info, shape);
}

// A bias or its gradient, where the call has one.
struct Optional {
    const ArrayInfo* info() const { return given ? &array.info : nullptr; }
    Tensor tensor() const { return given ? vector_tensor(array) : Tensor{}; }
    bool given;
    Array array;
};
Optional optional_bias(const Call& call) {
    const bool given = call.arguments() > 2;
    return {given, call.argument(given ? 2 : 0, "bias")};
}

// What a window chose is passed from forward to backward as codes, or, where the window has more taps than a code can
// name, as indices: int64, which JAX has only in its 64-bit mode, and so two uint32 each, one axis more.
Shape chosen_shape(const Array& chosen, const Shape& output) {
    if (chosen.item_bytes == 1) return output;
    return {output[0], output[1], output[2], output[3], 2};
}
Tensor chosen_tensor(const Array& chosen, bool channels_last) {
    const Shape& shape = chosen.info.shape;
    return image_tensor(dense_array(chosen.info.name, {shape.begin(), shape.begin() + 4}, chosen.data), channels_last);
}

PoolOptions pool_behind(const Call& call) {
    PoolOptions options = call.pool_options("pool_");
    options.prefix = "pool_";
    return options;
}

const std::string fused_backward = "conv2d_relu_max_pool2d_backward";

FusedProblem fused_backward_problem(const Call& call, const Array& g, const Array& input, const Array& weight,
                                    const ArrayInfo* bias, const Array& codes) {
    const FusedProblem problem = cpu->check_conv2d_relu_max_pool2d(fused_backward, input.info, weight.info, bias,
                                                                   call.conv_options(), pool_behind(call))
                                     .problem;
    cpu->check_dtype(fused_backward, g.info, input.info);
    for (const Array* const saved : {&g, &codes})
        cpu->check_shape(fused_backward, saved->info, output_shape(problem.pool));
    return problem;
}

void expect_inside(bool inside) {
    if (!inside) throw ShapeError(fused_backward + ": codes has a code outside its window");
}

}  // namespace

// (input, weight[, bias]) -> output
void conv2d(const Call& call) {
    static const std::string op = "conv2d";
    const Array x = call.argument(0, "input"), w = call.argument(1, "weight"), y = call.result(0, "output");
    const Optional bias = optional_bias(call);
    const ConvProblem problem = cpu->check_conv2d(op, x.info, w.info, bias.info(), call.conv_options()).problem;
    const bool last = problem.channels_last;
    cpu->check_shape(op, y.info, output_shape(problem));
    cpu->conv2d_forward(problem, image_tensor(x, last), plain_tensor(w), bias.tensor(), image_tensor(y, last), nullptr);
}

// (grad_output, weight[, bias]) -> grad_input: with a bias for each of its channels it is a transposed convolution
void conv2d_grad_input(const Call& call) {
    static const std::string op = "conv2d_backward";
    const Array g = call.argument(0, "grad_output"), w = call.argument(1, "weight");
    const Array grad_input = call.result(0, "input");
    const Optional bias = optional_bias(call);
    const ConvProblem problem = cpu->check_conv2d(op, grad_input.info, w.info, nullptr, call.conv_options()).problem;
    const bool last = problem.channels_last;
    check_like(op, g, grad_input.info, output_shape(problem));
    if (bias.given) check_like(op, bias.array, g.info, {problem.in_channels});
    cpu->conv2d_grad_input(problem, image_tensor(g, last), plain_tensor(w), image_tensor(grad_input, last),
                           bias.tensor());
}

// (grad_output, input) -> grad_weight
void conv2d_grad_weight(const Call& call) {
    static const std::string op = "conv2d_backward";
    const Array g = call.argument(0, "grad_output"), x = call.argument(1, "input");
    const Array grad_weight = call.result(0, "weight");
    const ConvProblem problem = cpu->check_conv2d(op, x.info, grad_weight.info, nullptr, call.conv_options()).problem;
    const bool last = problem.channels_last;
    check_like(op, g, x.info, output_shape(problem));
    cpu->conv2d_grad_weight(problem, image_tensor(g, last), image_tensor(x, last), plain_tensor(grad_weight));
}

// grad_output -> grad_bias
void conv2d_grad_bias(const Call& call) {
    const Array g = call.argument(0, "grad_output"), grad_bias = call.result(0, "grad_bias");
    const bool last = call.conv_options().channels_last;
    check_like("conv2d_backward", grad_bias, g.info, {g.info.shape[last ? 3 : 1]});
    ConvProblem problem;  // of which the dtype alone matters
    problem.dtype = g.info.dtype;
    cpu->conv2d_grad_bias(problem, image_tensor(g, last), vector_tensor(grad_bias));
}

// input -> output
void relu(const Call& call) {
    const Array x = call.argument(0, "input"), y = call.result(0, "output");
    check_like("relu", y, x.info, x.info.shape);
    cpu->relu(x, y);
}

// (grad_output, output) -> grad_input
void relu_backward(const Call& call) {
    const Array g = call.argument(0, "grad_output"), y = call.argument(1, "output");
    const Array grad_input = call.result(0, "grad_input");
    for (const Array* const array : {&y, &grad_input}) check_like("relu_backward", *array, g.info, g.info.shape);
    cpu->relu_backward(g, y, grad_input);
}

// input -> output, or (output, codes or indices)
void max_pool2d(const Call& call) {
    static const std::string op = "max_pool2d";
    const Array x = call.argument(0, "input"), y = call.result(0, "output");
    const PoolProblem problem = cpu->check_max_pool2d(op, x.info, call.pool_options()).problem;
    const bool last = problem.channels_last;
    cpu->check_shape(op, y.info, output_shape(problem));
    Tensor indices, codes;
    if (call.results() > 1) {
        const Array chosen = call.result(1, "indices_or_codes");
        const bool by_codes = chosen.item_bytes == 1;
        cpu->check_shape(op, chosen.info, chosen_shape(chosen, y.info.shape));
        if (by_codes) cpu->check_codes_fit(op, problem);
        (by_codes ? codes : indices) = chosen_tensor(chosen, last);
    }
    cpu->max_pool2d(problem, image_tensor(x, last), image_tensor(y, last), indices, codes);
}

// (grad_output, codes or indices) -> grad_input
void max_pool2d_backward(const Call& call) {
    static const std::string op = "max_pool2d_backward";
    const Array g = call.argument(0, "grad_output"), chosen = call.argument(1, "indices_or_codes");
    const Array grad_input = call.result(0, "input");
    const PoolProblem problem = cpu->check_max_pool2d(op, grad_input.info, call.pool_options()).problem;
    const bool last = problem.channels_last, by_codes = chosen.item_bytes == 1;
    check_like(op, g, grad_input.info, output_shape(problem));
    cpu->check_shape(op, chosen.info, chosen_shape(chosen, g.info.shape));
    if (by_codes) cpu->check_codes_fit(op, problem);
    if (!cpu->max_pool2d_backward(problem, image_tensor(g, last), chosen_tensor(chosen, last), by_codes,
                                  image_tensor(grad_input, last)))
        throw ShapeError(op + ": indices_or_codes points outside the image");
}

// (input, weight[, bias]) -> (output, codes)
void conv2d_relu_max_pool2d(const Call& call) {
    static const std::string op = "conv2d_relu_max_pool2d";
    const Array x = call.argument(0, "input"), w = call.argument(1, "weight");
    const Array y = call.result(0, "output"), codes = call.result(1, "codes");
    const Optional bias = optional_bias(call);
    const FusedProblem problem =
        cpu->check_conv2d_relu_max_pool2d(op, x.info, w.info, bias.info(), call.conv_options(), pool_behind(call))
            .problem;
    const bool last = problem.conv.channels_last;
    for (const Array* const result : {&y, &codes}) cpu->check_shape(op, result->info, output_shape(problem.pool));
    cpu->conv2d_relu_max_pool2d(problem, image_tensor(x, last), plain_tensor(w), bias.tensor(), image_tensor(y, last),
                                image_tensor(codes, last));
}

// (grad_output, weight, codes) -> grad_input
void conv2d_relu_max_pool2d_grad_input(const Call& call) {
    const Array g = call.argument(0, "grad_output"), w = call.argument(1, "weight");
    const Array codes = call.argument(2, "codes"), grad_input = call.result(0, "input");
    const FusedProblem problem = fused_backward_problem(call, g, grad_input, w, nullptr, codes);
    const bool last = problem.conv.channels_last;
    const Tensor result = image_tensor(grad_input, last);
    // The input is read for the other gradients alone: this one stands where it has to have a shape.
    expect_inside(cpu->conv2d_relu_max_pool2d_backward(problem, image_tensor(g, last), result, plain_tensor(w),
                                                       image_tensor(codes, last), result, {}, {}));
}

// (grad_output, input, codes) -> (grad_weight[, grad_bias])
void conv2d_relu_max_pool2d_grad_weight(const Call& call) {
    const Array g = call.argument(0, "grad_output"), x = call.argument(1, "input");
    const Array codes = call.argument(2, "codes"), grad_weight = call.result(0, "weight");
    const bool biased = call.results() > 1;
    const Optional grad_bias{biased, biased ? call.result(1, "bias") : grad_weight};
    const FusedProblem problem = fused_backward_problem(call, g, x, grad_weight, grad_bias.info(), codes);
    const bool last = problem.conv.channels_last;
    const Tensor result = plain_tensor(grad_weight);  // and the weight, which is not read either
    expect_inside(cpu->conv2d_relu_max_pool2d_backward(problem, image_tensor(g, last), image_tensor(x, last), result,
                                                       image_tensor(codes, last), {}, result, grad_bias.tensor()));
}

}  // namespace convx::jax
