#include "bindings/cpu_ops.h"
#include "cpu/max_pool2d/max_pool2d.h"

namespace convx {

py::object max_pool2d_op(py::handle input, const PoolHandles& given, py::handle return_indices,
                         py::handle return_codes) {
    static const std::string op = "max_pool2d";
    const FloatArray x = float_array(op, "input", input);
    const PoolOptions options = dilated_pool_options(op, given);
    const bool want_indices = truth(op, "return_indices", return_indices);
    const bool want_codes = truth(op, "return_codes", return_codes);
    if (want_indices && want_codes)
        throw ShapeError(op + ": return_indices and return_codes are both True, expected at most one");
    const auto [problem, unbatched] = check_max_pool2d(op, x.info, options);
    if (want_codes) check_codes_fit(op, problem);

    const Shape shape = user_shape(problem.output_shape(), problem.channels_last, unbatched);
    const py::array y = new_array(problem.dtype, shape);
    py::object chosen = py::none();
    TensorView<int64_t> indices;
    TensorView<uint8_t> codes;
    if (want_indices) {
        chosen = new_array<int64_t>(shape);
        indices = image_view<int64_t>(chosen, problem.channels_last);
    }
    if (want_codes) {
        chosen = new_array<uint8_t>(shape);
        codes = image_view<uint8_t>(chosen, problem.channels_last);
    }
    dispatch(problem.dtype, [&, &problem = problem](auto zero) {
        using T = decltype(zero);
        const auto input_view = image_view<const T>(x.array, problem.channels_last);
        const auto output_view = image_view<T>(y, problem.channels_last);
        without_gil(elements_of(problem), [&] { max_pool2d<T>(problem, input_view, output_view, indices, codes); });
    });
    if (chosen.is_none()) return y;
    return py::make_tuple(y, chosen);
}

py::array max_pool2d_backward_op(py::handle grad_output, py::handle indices_or_codes, py::handle input_shape,
                                 const PoolHandles& given) {
    static const std::string op = "max_pool2d_backward";
    const FloatArray g = float_array(op, "grad_output", grad_output);
    const int index_type = py::dtype::num_of<int64_t>(), code_type = py::dtype::num_of<uint8_t>();
    const py::array chosen = integer_array(op, "indices_or_codes", indices_or_codes, {index_type, code_type},
                                           "int64 (indices) or uint8 (codes)");
    const PoolOptions options = dilated_pool_options(op, given);
    const ArrayInfo input{"input_shape", g.info.dtype, sizes(op, "input_shape", input_shape)};
    const auto [problem, unbatched] = check_max_pool2d(op, input, options);
    const Shape shape = user_shape(problem.output_shape(), problem.channels_last, unbatched);
    check_shape(op, g.info, shape);
    check_shape(op, {"indices_or_codes", g.info.dtype, shape_of(chosen)}, shape);
    const bool by_codes = chosen.dtype().num() == code_type;
    if (by_codes) check_codes_fit(op, problem);

    const py::array grad_input = new_array(problem.dtype, input.shape);
    bool inside = true;
    dispatch(problem.dtype, [&, &problem = problem](auto zero) {
        using T = decltype(zero);
        const auto grad_view = image_view<const T>(g.array, problem.channels_last);
        const auto result = image_view<T>(grad_input, problem.channels_last);
        const auto codes = image_view<const uint8_t>(chosen, problem.channels_last);
        const auto indices = image_view<const int64_t>(chosen, problem.channels_last);
        without_gil(elements_of(problem), [&] {
            inside = by_codes ? max_pool2d_backward<T>(problem, grad_view, codes, result)
                              : max_pool2d_backward<T>(problem, grad_view, indices, result);
        });
    });
    if (!inside)
        throw ShapeError(op + ": indices_or_codes has " +
                         (by_codes ? "a code outside its window, expected taps 0 to " +
                                         std::to_string(problem.taps() - 1) + " inside the image, or 255"
                                   : "an index outside the plane, expected 0 to " +
                                         std::to_string(problem.h.input * problem.w.input - 1)));
    return grad_input;
}

}  // namespace convx
