#include "bindings/cuda_ops.h"
#include "cuda/conv2d/per_sample.h"
#include "cuda/runtime.h"

namespace convx {

cuda::Precision precision_option(const std::string& op, py::handle precision) {
    if (PyUnicode_Check(precision.ptr()))
        for (int i = 0; i < 3; ++i)
            if (PyUnicode_CompareWithASCIIString(precision.ptr(), cuda::precision_names[i]) == 0)
                return static_cast<cuda::Precision>(i);
    throw ShapeError(op + ": precision is " + repr_of(precision) + ", expected 'ieee', 'tf32x3' or 'tf32'");
}

// The direct sum is what CUDA has; "winograd" is asked for by name only where it exists.
void check_cuda_algorithm(const std::string& op, const ConvOptions& options) {
    if (options.algorithm != Algorithm::automatic && options.algorithm != Algorithm::direct)
        throw ShapeError(op + ": algorithm is '" + algorithm_names()[static_cast<size_t>(options.algorithm)] +
                         "', expected 'auto' or 'direct' on CUDA");
}

py::object cuda_conv2d_op(py::handle library, py::handle input, py::handle weight, py::handle bias,
                          const ConvHandles& given, py::handle activation, py::handle layout, py::handle algorithm,
                          py::handle precision, py::handle out) {
    static const std::string op = "conv2d";
    DeviceArrays arrays(op, library);
    const DeviceArray x = arrays.input("input", input);
    const DeviceArray w = arrays.input("weight", weight);
    std::optional<DeviceArray> b;
    if (!bias.is_none()) b = arrays.input("bias", bias);
    ConvOptions options = padded_options(op, given, layout, algorithm);
    options.relu = relu_activation(op, activation);
    const cuda::Precision exactness = precision_option(op, precision);
    const auto [problem, unbatched] = check_conv2d(op, x.info, w.info, b ? &b->info : nullptr, options);
    check_cuda_algorithm(op, options);

    const Shape shape = user_shape(problem.output_shape(), problem.channels_last, unbatched);
    const DeviceArray y = out.is_none() ? arrays.empty(problem.dtype, shape) : arrays.output(out, x.info, shape);
    if (!out.is_none()) {
        arrays.check_no_overlap(y, x);
        arrays.check_no_overlap(y, w);
        if (b) arrays.check_no_overlap(y, *b);
    }
    const cuda::ConvPlan plan = cuda::plan_conv2d(problem, cuda::ConvPass::forward, exactness);
    const cuda::DeviceGuard guard(arrays.device());
    cuda::conv2d_forward(problem, plan, image_tensor(x, problem.channels_last), plain_tensor(w),
                         b ? vector_tensor(*b) : cuda::DeviceTensor{}, image_tensor(y, problem.channels_last),
                         arrays.workspace(plan.workspace_bytes()), arrays.stream());
    return y.array;
}

py::tuple cuda_conv2d_backward_op(py::handle library, py::handle grad_output, py::handle input, py::handle weight,
                                  const ConvHandles& given, py::handle layout, py::handle algorithm,
                                  py::handle precision, py::handle mask_option, py::handle per_sample_option) {
    static const std::string op = "conv2d_backward";
    DeviceArrays arrays(op, library);
    const DeviceArray g = arrays.input("grad_output", grad_output);
    const DeviceArray x = arrays.input("input", input);
    const DeviceArray w = arrays.input("weight", weight);
    const ConvOptions options = padded_options(op, given, layout, algorithm);
    const cuda::Precision exactness = precision_option(op, precision);
    const std::array<bool, 3> mask = output_mask(op, mask_option);
    const bool per_sample = truth(op, "per_sample", per_sample_option);
    const auto [problem, unbatched] = check_conv2d(op, x.info, w.info, nullptr, options);
    check_cuda_algorithm(op, options);
    check_dtype(op, g.info, x.info);
    check_shape(op, g.info, user_shape(problem.output_shape(), problem.channels_last, unbatched));

    py::object grads[3] = {py::none(), py::none(), py::none()};
    const cuda::DeviceTensor g_tensor = image_tensor(g, problem.channels_last);
    const cuda::DeviceGuard guard(arrays.device());
    const cuda::Stream stream = arrays.stream();
    if (mask[0]) {
        const DeviceArray grad = arrays.empty(problem.dtype, x.info.shape);
        const cuda::ConvPlan plan = cuda::plan_conv2d(problem, cuda::ConvPass::grad_input, exactness);
        cuda::conv2d_grad_input(problem, plan, g_tensor, plain_tensor(w), image_tensor(grad, problem.channels_last),
                                arrays.workspace(plan.workspace_bytes()), stream);
        grads[0] = grad.array;
    }
    const cuda::DeviceTensor x_tensor = image_tensor(x, problem.channels_last);
    const bool summed = !per_sample || unbatched;
    if (mask[1] && per_sample) {
        const DeviceArray grad = arrays.empty(problem.dtype, per_sample_shape(problem.batch, w.info.shape, summed));
        const bool joined = cuda::images_are_channels(g_tensor) && cuda::images_are_channels(x_tensor);
        const cuda::PerSamplePlan plan =
            cuda::plan_per_sample(problem, cuda::ConvPass::grad_weight, exactness, joined, false);
        cuda::per_sample_grad_weight(problem, plan, g_tensor, x_tensor, grad.data,
                                     arrays.workspace(plan.workspace_bytes()), stream);
        grads[1] = grad.array;
    } else if (mask[1]) {
        const DeviceArray grad = arrays.empty(problem.dtype, w.info.shape);
        const cuda::ConvPlan plan = cuda::plan_conv2d(problem, cuda::ConvPass::grad_weight, exactness);
        cuda::conv2d_grad_weight(problem, plan, g_tensor, x_tensor, plain_tensor(grad),
                                 arrays.workspace(plan.workspace_bytes()), stream);
        grads[1] = grad.array;
    }
    if (mask[2] && per_sample) {
        const DeviceArray grad =
            arrays.empty(problem.dtype, per_sample_shape(problem.batch, {problem.out_channels}, summed));
        const cuda::PerSamplePlan plan = cuda::plan_per_sample(problem, cuda::ConvPass::grad_bias, exactness,
                                                               cuda::images_are_channels(g_tensor), false);
        cuda::per_sample_grad_bias(problem, plan, g_tensor, grad.data, arrays.workspace(plan.workspace_bytes()),
                                   stream);
        grads[2] = grad.array;
    } else if (mask[2]) {
        const DeviceArray grad = arrays.empty(problem.dtype, {problem.out_channels});
        const cuda::ConvPlan plan = cuda::plan_conv2d(problem, cuda::ConvPass::grad_bias, exactness);
        cuda::conv2d_grad_bias(problem, plan, g_tensor, vector_tensor(grad), arrays.workspace(plan.workspace_bytes()),
                               stream);
        grads[2] = grad.array;
    }
    return py::make_tuple(grads[0], grads[1], grads[2]);
}

py::tuple cuda_conv2d_grad_norms_op(py::handle library, py::handle grad_output, py::handle input,
                                    py::handle weight_shape, const ConvHandles& given, py::handle layout,
                                    py::handle algorithm, py::handle precision) {
    static const std::string op = "conv2d_grad_norms";
    DeviceArrays arrays(op, library);
    const DeviceArray g = arrays.input("grad_output", grad_output);
    const DeviceArray x = arrays.input("input", input);
    const ArrayInfo weight{"weight_shape", x.info.dtype, sizes(op, "weight_shape", weight_shape)};
    const ConvOptions options = padded_options(op, given, layout, algorithm);
    const cuda::Precision exactness = precision_option(op, precision);
    const auto [problem, unbatched] = check_conv2d(op, x.info, weight, nullptr, options);
    check_cuda_algorithm(op, options);
    check_dtype(op, g.info, x.info);
    check_shape(op, g.info, user_shape(problem.output_shape(), problem.channels_last, unbatched));

    const cuda::DeviceTensor g_tensor = image_tensor(g, problem.channels_last);
    const cuda::DeviceTensor x_tensor = image_tensor(x, problem.channels_last);
    const Shape shape = per_sample_shape(problem.batch, {}, unbatched);
    const DeviceArray weight_norms = arrays.empty(DType::float64, shape),
                      bias_norms = arrays.empty(DType::float64, shape);
    const cuda::DeviceGuard guard(arrays.device());
    const cuda::Stream stream = arrays.stream();
    const bool g_joined = cuda::images_are_channels(g_tensor);
    const cuda::PerSamplePlan of_weight = cuda::plan_per_sample(problem, cuda::ConvPass::grad_weight, exactness,
                                                                g_joined && cuda::images_are_channels(x_tensor), true);
    cuda::grad_weight_norms(problem, of_weight, g_tensor, x_tensor, static_cast<double*>(weight_norms.data),
                            arrays.workspace(of_weight.workspace_bytes()), stream);
    const cuda::PerSamplePlan of_bias =
        cuda::plan_per_sample(problem, cuda::ConvPass::grad_bias, exactness, g_joined, true);
    cuda::grad_bias_norms(problem, of_bias, g_tensor, static_cast<double*>(bias_norms.data),
                          arrays.workspace(of_bias.workspace_bytes()), stream);
    return py::make_tuple(weight_norms.array, bias_norms.array);
}

}  // namespace convx
