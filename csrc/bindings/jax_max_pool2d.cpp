#include "bindings/jax_calls.h"

namespace convx::jax {

namespace {

// What a window chose is passed from forward to backward as codes, or, where the window has more taps than a code can
// name, as indices: int64, which JAX has only in its 64-bit mode, and so two uint32 each, one axis more.
bool by_codes(const Buffer& chosen) { return chosen.type == ffi::DataType::U8; }

Shape chosen_shape(const Buffer& chosen, const Shape& output) {
    if (by_codes(chosen)) return output;
    return {output[0], output[1], output[2], output[3], 2};
}

Shape output_shape(const PoolProblem& problem) {
    return cpu->user_shape(problem.output_shape(), problem.channels_last, false);
}

}  // namespace

// input -> output, or (output, codes or indices)
void max_pool2d(const Call& call) {
    static const std::string op = "max_pool2d";
    const Buffer x = call.argument(0, "input"), y = call.result(0, "output");
    const PoolProblem problem = cpu->check_max_pool2d(op, x.info, call.pool_options()).problem;
    cpu->check_shape(op, y.info, output_shape(problem));
    TensorView<int64_t> indices;
    TensorView<uint8_t> codes;
    if (call.results() > 1) {
        const Buffer chosen = call.result(1, "indices_or_codes");
        cpu->check_shape(op, chosen.info, chosen_shape(chosen, y.info.shape));
        if (by_codes(chosen)) {
            cpu->check_codes_fit(op, problem);
            codes = image_view<uint8_t>(chosen, problem.channels_last);
        } else {
            indices = image_view<int64_t>(chosen, problem.channels_last);
        }
    }
    dispatch(problem.dtype, [&](auto zero) {
        using T = decltype(zero);
        passes<T>().max_pool2d(problem, image_view<const T>(x, problem.channels_last),
                               image_view<T>(y, problem.channels_last), indices, codes);
    });
}

// (grad_output, codes or indices) -> grad_input
void max_pool2d_backward(const Call& call) {
    static const std::string op = "max_pool2d_backward";
    const Buffer g = call.argument(0, "grad_output"), chosen = call.argument(1, "indices_or_codes");
    const Buffer grad_input = call.result(0, "input");
    const PoolProblem problem = cpu->check_max_pool2d(op, grad_input.info, call.pool_options()).problem;
    const bool last = problem.channels_last;
    cpu->check_dtype(op, g.info, grad_input.info);
    cpu->check_shape(op, g.info, output_shape(problem));
    cpu->check_shape(op, chosen.info, chosen_shape(chosen, g.info.shape));
    if (by_codes(chosen)) cpu->check_codes_fit(op, problem);
    bool inside = true;
    dispatch(problem.dtype, [&](auto zero) {
        using T = decltype(zero);
        const auto grad_view = image_view<const T>(g, last);
        const auto result = image_view<T>(grad_input, last);
        inside = by_codes(chosen) ? passes<T>().max_pool2d_backward_by_codes(
                                        problem, grad_view, image_view<const uint8_t>(chosen, last), result)
                                  : passes<T>().max_pool2d_backward_by_indices(
                                        problem, grad_view, image_view<const int64_t>(chosen, last), result);
    });
    if (!inside) throw ShapeError(op + ": indices_or_codes points outside the image");
}

}  // namespace convx::jax
