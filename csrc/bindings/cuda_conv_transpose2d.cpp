#include "bindings/cuda_ops.h"
#include "cuda/conv_transpose2d.h"
#include "cuda/runtime.h"

namespace convx {

namespace {

// The workspace of a pass, of which an empty problem needs none.
struct Planned {
    Planned(const ConvTransposeProblem& problem, cuda::ConvPass pass, cuda::Precision precision, DeviceArrays& arrays) {
        if (problem.is_empty()) return;
        plan = cuda::plan_conv2d(problem.conv, pass, precision);
        workspace = arrays.workspace(plan.workspace_bytes());
    }
    cuda::ConvPlan plan;
    void* workspace = nullptr;
};

}  // namespace

py::object cuda_conv_transpose2d_op(py::handle library, py::handle input, py::handle weight, py::handle bias,
                                    const TransposeHandles& given, py::handle precision, py::handle out) {
    static const std::string op = "conv_transpose2d";
    DeviceArrays arrays(op, library);
    const DeviceArray x = arrays.input("input", input);
    const DeviceArray w = arrays.input("weight", weight);
    std::optional<DeviceArray> b;
    if (!bias.is_none()) b = arrays.input("bias", bias);
    const ConvTransposeOptions options = transpose_options(op, given);
    const cuda::Precision exactness = precision_option(op, precision);
    const auto [problem, unbatched] = check_conv_transpose2d(op, x.info, w.info, b ? &b->info : nullptr, options);
    check_cuda_algorithm(op, options.conv);

    const bool channels_last = problem.conv.channels_last;
    const Shape shape = user_shape(problem.output_shape(), channels_last, unbatched);
    const DeviceArray y = out.is_none() ? arrays.empty(problem.conv.dtype, shape) : arrays.output(out, x.info, shape);
    if (!out.is_none()) {
        arrays.check_no_overlap(y, x);
        arrays.check_no_overlap(y, w);
        if (b) arrays.check_no_overlap(y, *b);
    }
    const Planned pass(problem, cuda::ConvPass::grad_input, exactness, arrays);
    const cuda::DeviceGuard guard(arrays.device());
    cuda::conv_transpose2d_forward(problem, pass.plan, image_tensor(x, channels_last), plain_tensor(w),
                                   b ? vector_tensor(*b) : cuda::DeviceTensor{}, image_tensor(y, channels_last),
                                   pass.workspace, arrays.stream());
    return y.array;
}

py::tuple cuda_conv_transpose2d_backward_op(py::handle library, py::handle grad_output, py::handle input,
                                            py::handle weight, const TransposeHandles& given, py::handle precision,
                                            py::handle mask_option) {
    static const std::string op = "conv_transpose2d_backward";
    DeviceArrays arrays(op, library);
    const DeviceArray g = arrays.input("grad_output", grad_output);
    const DeviceArray x = arrays.input("input", input);
    const DeviceArray w = arrays.input("weight", weight);
    const ConvTransposeOptions options = transpose_options(op, given);
    const cuda::Precision exactness = precision_option(op, precision);
    const std::array<bool, 3> mask = output_mask(op, mask_option);
    const auto [problem, unbatched] = check_conv_transpose2d(op, x.info, w.info, nullptr, options);
    check_cuda_algorithm(op, options.conv);
    const ConvProblem& conv = problem.conv;
    check_dtype(op, g.info, x.info);
    check_shape(op, g.info, user_shape(problem.output_shape(), conv.channels_last, unbatched));

    py::object grads[3] = {py::none(), py::none(), py::none()};
    const cuda::DeviceTensor g_tensor = image_tensor(g, conv.channels_last);
    const cuda::DeviceGuard guard(arrays.device());
    const cuda::Stream stream = arrays.stream();
    if (mask[0]) {
        const DeviceArray grad = arrays.empty(conv.dtype, x.info.shape);
        const Planned pass(problem, cuda::ConvPass::forward, exactness, arrays);
        cuda::conv_transpose2d_grad_input(problem, pass.plan, g_tensor, plain_tensor(w),
                                          image_tensor(grad, conv.channels_last), pass.workspace, stream);
        grads[0] = grad.array;
    }
    if (mask[1]) {
        const DeviceArray grad = arrays.empty(conv.dtype, w.info.shape);
        const Planned pass(problem, cuda::ConvPass::grad_weight, exactness, arrays);
        cuda::conv_transpose2d_grad_weight(problem, pass.plan, g_tensor, image_tensor(x, conv.channels_last),
                                           plain_tensor(grad), pass.workspace, stream);
        grads[1] = grad.array;
    }
    if (mask[2]) {
        const DeviceArray grad = arrays.empty(conv.dtype, {conv.in_channels});
        const ConvProblem sum = problem.bias_sum();
        const cuda::ConvPlan plan = cuda::plan_conv2d(sum, cuda::ConvPass::grad_bias, exactness);
        cuda::conv2d_grad_bias(sum, plan, g_tensor, vector_tensor(grad), arrays.workspace(plan.workspace_bytes()),
                               stream);
        grads[2] = grad.array;
    }
    return py::make_tuple(grads[0], grads[1], grads[2]);
}

}  // namespace convx
