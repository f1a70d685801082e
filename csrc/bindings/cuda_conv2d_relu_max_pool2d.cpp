#include "cuda/conv2d_relu_max_pool2d.h"

#include "bindings/cuda_ops.h"
#include "cuda/runtime.h"

namespace convx {

py::tuple cuda_conv2d_relu_max_pool2d_op(py::handle library, py::handle input, py::handle weight, py::handle bias,
                                         const FusedHandles& given, py::handle precision) {
    static const std::string op = "conv2d_relu_max_pool2d";
    DeviceArrays arrays(op, library);
    const DeviceArray x = arrays.input("input", input);
    const DeviceArray w = arrays.input("weight", weight);
    std::optional<DeviceArray> b;
    if (!bias.is_none()) b = arrays.input("bias", bias);
    const FusedOptions options = fused_options(op, given);
    const cuda::Precision exactness = precision_option(op, precision);
    const auto fused =
        check_conv2d_relu_max_pool2d(op, x.info, w.info, b ? &b->info : nullptr, options.conv, options.pool);
    cuda::check_planes(op, fused.problem.pool);
    const bool last = options.conv.channels_last;
    const Shape shape = user_shape(fused.problem.pool.output_shape(), last, fused.unbatched);
    const DeviceArray y = arrays.empty(x.info.dtype, shape);
    const DeviceArray codes = arrays.empty_integers("uint8", shape);
    const cuda::FusedPlan plan = cuda::plan_fused_forward(fused.problem, exactness);
    const cuda::DeviceGuard guard(arrays.device());
    cuda::conv2d_relu_max_pool2d(fused.problem, plan, image_tensor(x, last), plain_tensor(w),
                                 b ? vector_tensor(*b) : cuda::DeviceTensor{}, image_tensor(y, last),
                                 image_tensor(codes, last), arrays.workspace(plan.workspace_bytes()), arrays.stream());
    return py::make_tuple(y.array, codes.array);
}

py::tuple cuda_conv2d_relu_max_pool2d_backward_op(py::handle library, py::handle grad_output, py::handle input,
                                                  py::handle weight, py::handle codes, const FusedHandles& given,
                                                  py::handle precision, py::handle mask_option) {
    static const std::string op = "conv2d_relu_max_pool2d_backward";
    DeviceArrays arrays(op, library);
    const DeviceArray g = arrays.input("grad_output", grad_output);
    const DeviceArray x = arrays.input("input", input);
    const DeviceArray w = arrays.input("weight", weight);
    const DeviceArray chosen = arrays.integers("codes", codes, {"uint8"}, "uint8");
    const FusedOptions options = fused_options(op, given);
    const cuda::Precision exactness = precision_option(op, precision);
    const std::array<bool, 3> mask = output_mask(op, mask_option);
    const auto fused = check_conv2d_relu_max_pool2d(op, x.info, w.info, nullptr, options.conv, options.pool);
    cuda::check_planes(op, fused.problem.pool);
    const bool last = options.conv.channels_last;
    const Shape shape = user_shape(fused.problem.pool.output_shape(), last, fused.unbatched);
    check_dtype(op, g.info, x.info);
    check_shape(op, g.info, shape);
    check_shape(op, {"codes", x.info.dtype, chosen.info.shape}, shape);

    py::object grads[3] = {py::none(), py::none(), py::none()};
    if (!mask[0] && !mask[1] && !mask[2]) return py::make_tuple(grads[0], grads[1], grads[2]);
    cuda::DeviceTensor grad_input, grad_weight, grad_bias;
    const auto grad = [&](int i, const Shape& of) {
        DeviceArray array = arrays.empty(x.info.dtype, of);
        grads[i] = array.array;
        return array;
    };
    if (mask[0]) grad_input = image_tensor(grad(0, x.info.shape), last);
    if (mask[1]) grad_weight = plain_tensor(grad(1, w.info.shape));
    if (mask[2]) grad_bias = vector_tensor(grad(2, {fused.problem.conv.out_channels}));
    const cuda::FusedPlan plan = cuda::plan_fused_backward(fused.problem, exactness, mask);
    const cuda::DeviceGuard guard(arrays.device());
    cuda::conv2d_relu_max_pool2d_backward(fused.problem, plan, image_tensor(g, last), image_tensor(x, last),
                                          plain_tensor(w), image_tensor(chosen, last), grad_input, grad_weight,
                                          grad_bias, arrays.workspace(plan.workspace_bytes()), arrays.stream());
    return py::make_tuple(grads[0], grads[1], grads[2]);
}

}  // namespace convx
