#include "bindings/jax_calls.h"

namespace convx::jax {

namespace {

// Buffers are dense, whatever their rank.
template <class T>
TensorView<T> line_view(const Buffer& buffer) {
    int64_t elements = 1;
    for (const int64_t size : buffer.info.shape) elements *= size;
    return {static_cast<T*>(buffer.data), {1, 1, 1, elements}, {0, 0, 0, 1}};
}

}  // namespace

// input -> output
void relu(const Call& call) {
    const Buffer x = call.argument(0, "input"), y = call.result(0, "output");
    cpu->check_dtype("relu", y.info, x.info);
    cpu->check_shape("relu", y.info, x.info.shape);
    dispatch(x.info.dtype, [&](auto zero) {
        using T = decltype(zero);
        passes<T>().relu(line_view<const T>(x), line_view<T>(y));
    });
}

// (grad_output, output) -> grad_input
void relu_backward(const Call& call) {
    static const std::string op = "relu_backward";
    const Buffer g = call.argument(0, "grad_output"), y = call.argument(1, "output");
    const Buffer grad_input = call.result(0, "grad_input");
    for (const Buffer* const buffer : {&y, &grad_input}) {
        cpu->check_dtype(op, buffer->info, g.info);
        cpu->check_shape(op, buffer->info, g.info.shape);
    }
    dispatch(g.info.dtype, [&](auto zero) {
        using T = decltype(zero);
        passes<T>().relu_backward(line_view<const T>(g), line_view<const T>(y), line_view<T>(grad_input));
    });
}

}  // namespace convx::jax
