#include "bindings/cuda_ops.h"
#include "cuda/max_pool2d/max_pool2d.h"
#include "cuda/runtime.h"

namespace convx {

py::object cuda_max_pool2d_op(py::handle library, py::handle input, const PoolHandles& given, py::handle return_indices,
                              py::handle return_codes) {
    static const std::string op = "max_pool2d";
    DeviceArrays arrays(op, library);
    const DeviceArray x = arrays.input("input", input);
    const PoolOptions options = dilated_pool_options(op, given);
    const bool want_indices = truth(op, "return_indices", return_indices);
    const bool want_codes = truth(op, "return_codes", return_codes);
    if (want_indices && want_codes)
        throw ShapeError(op + ": return_indices and return_codes are both True, expected at most one");
    const auto [problem, unbatched] = check_max_pool2d(op, x.info, options);
    if (want_codes) check_codes_fit(op, problem);
    cuda::check_planes(op, problem);

    const Shape shape = user_shape(problem.output_shape(), problem.channels_last, unbatched);
    const DeviceArray y = arrays.empty(problem.dtype, shape);
    std::optional<DeviceArray> chosen;
    if (want_indices || want_codes) chosen = arrays.empty_integers(want_indices ? "int64" : "uint8", shape);
    const cuda::DeviceTensor chosen_tensor =
        chosen ? image_tensor(*chosen, problem.channels_last) : cuda::DeviceTensor{};
    const cuda::DeviceGuard guard(arrays.device());
    cuda::max_pool2d(problem, image_tensor(x, problem.channels_last), image_tensor(y, problem.channels_last),
                     want_indices ? chosen_tensor : cuda::DeviceTensor{},
                     want_codes ? chosen_tensor : cuda::DeviceTensor{}, false, arrays.stream());
    if (!chosen) return y.array;
    return py::make_tuple(y.array, chosen->array);
}

py::object cuda_max_pool2d_backward_op(py::handle library, py::handle grad_output, py::handle indices_or_codes,
                                       py::handle input_shape, const PoolHandles& given) {
    static const std::string op = "max_pool2d_backward";
    DeviceArrays arrays(op, library);
    const DeviceArray g = arrays.input("grad_output", grad_output);
    const DeviceArray chosen =
        arrays.integers("indices_or_codes", indices_or_codes, {"int64", "uint8"}, "int64 (indices) or uint8 (codes)");
    const PoolOptions options = dilated_pool_options(op, given);
    const ArrayInfo input{"input_shape", g.info.dtype, sizes(op, "input_shape", input_shape)};
    const auto [problem, unbatched] = check_max_pool2d(op, input, options);
    const Shape shape = user_shape(problem.output_shape(), problem.channels_last, unbatched);
    check_shape(op, g.info, shape);
    check_shape(op, {"indices_or_codes", g.info.dtype, chosen.info.shape}, shape);
    const bool by_codes = chosen.item_bytes == 1;
    if (by_codes) check_codes_fit(op, problem);
    cuda::check_planes(op, problem);

    const DeviceArray grad_input = arrays.empty(problem.dtype, input.shape);
    const cuda::DeviceTensor grads = image_tensor(g, problem.channels_last);
    const cuda::DeviceTensor choice = image_tensor(chosen, problem.channels_last);
    const cuda::DeviceTensor result = image_tensor(grad_input, problem.channels_last);
    const cuda::DeviceGuard guard(arrays.device());
    if (by_codes)
        cuda::max_pool2d_backward_codes(problem, grads, choice, result, arrays.stream());
    else
        cuda::max_pool2d_backward_indices(problem, grads, choice, result,
                                          arrays.workspace(cuda::max_pool2d_indices_workspace(problem)),
                                          arrays.stream());
    return grad_input.array;
}

}  // namespace convx
