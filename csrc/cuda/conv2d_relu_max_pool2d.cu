// No kernels of its own: those of the convolution and of the pooling. Bound as these are, and by the convolution's
// output, which goes to memory and back (2 x 4 bytes an element of float).
#include "cuda/conv2d_relu_max_pool2d.h"

#include <algorithm>

#include "common/rounding.h"

namespace convx::cuda {

namespace {

// Of the convolution's output at a time: several waves of blocks on any device, and a bound on what a large batch
// takes.
constexpr int64_t most_buffer_bytes = int64_t{256} << 20;

FusedPlan chunked(const FusedProblem& problem) {
    FusedPlan plan;
    const ConvProblem& conv = problem.conv;
    const int64_t image_bytes = conv.out_channels * conv.out_pixels() * item_size(conv.dtype);
    plan.images = std::clamp<int64_t>(most_buffer_bytes / image_bytes, 1, std::max<int64_t>(conv.batch, 1));
    plan.buffer_bytes = workspace_part(plan.images * image_bytes);
    return plan;
}

Tensor buffer_of(const ConvProblem& problem, void* workspace) {
    return {workspace, problem.output_shape(), dense_strides(problem.output_shape(), problem.channels_last)};
}

}  // namespace

FusedPlan plan_fused_forward(const FusedProblem& problem, Precision precision) {
    FusedPlan plan = chunked(problem);
    plan.forward =
        plan_conv2d(problem.conv.of_batch(std::min(plan.images, problem.conv.batch)), ConvPass::forward, precision);
    plan.pass_bytes = plan.forward.workspace_bytes();
    return plan;
}

FusedPlan plan_fused_backward(const FusedProblem& problem, Precision precision, const std::array<bool, 3>& mask) {
    FusedPlan plan = chunked(problem);
    const ConvProblem chunk = problem.conv.of_batch(std::min(plan.images, problem.conv.batch));
    const int64_t sum_bytes = sum_size(chunk.dtype);
    const bool carries = plan.images < problem.conv.batch;
    const auto plan_pass = [&](ConvPass pass) {
        ConvPlan of_pass = plan_conv2d(chunk, pass, precision);
        plan.pass_bytes = std::max(plan.pass_bytes, of_pass.workspace_bytes());
        return of_pass;
    };
    if (mask[0]) plan.grad_input = plan_pass(ConvPass::grad_input);
    if (mask[1]) plan.grad_weight = plan_pass(ConvPass::grad_weight);
    if (mask[2]) plan.grad_bias = plan_pass(ConvPass::grad_bias);
    if (mask[1] && carries) plan.carried_weight = workspace_part(element_count(chunk.weight_shape()) * sum_bytes);
    if (mask[2] && carries) plan.carried_bias = workspace_part(chunk.out_channels * sum_bytes);
    plan.pass_bytes = workspace_part(plan.pass_bytes);
    return plan;
}

void conv2d_relu_max_pool2d(const FusedProblem& problem, const FusedPlan& plan, const Tensor& input,
                            const Tensor& weight, const Tensor& bias, const Tensor& output, const Tensor& codes,
                            void* workspace, Stream stream) {
    const int64_t batch = problem.conv.batch, item = item_size(problem.conv.dtype);
    const ConvPasses passes = conv_passes(problem.conv.dtype);
    for (int64_t first = 0; first < batch; first += plan.images) {
        const int64_t count = std::min(plan.images, batch - first);
        const ConvProblem conv = problem.conv.of_batch(count);
        const Tensor buffer = buffer_of(conv, workspace);
        passes.forward(conv, plan.forward, input.images(item, first, count), weight, bias, buffer,
                       static_cast<char*>(workspace) + plan.buffer_bytes, stream);
        PoolProblem pool = problem.pool;
        pool.batch = count;
        max_pool2d(pool, buffer, output.images(item, first, count), Tensor{}, codes.images(1, first, count), true,
                   stream);
    }
}

void conv2d_relu_max_pool2d_backward(const FusedProblem& problem, const FusedPlan& plan, const Tensor& grad_output,
                                     const Tensor& input, const Tensor& weight, const Tensor& codes,
                                     const Tensor& grad_input, const Tensor& grad_weight, const Tensor& grad_bias,
                                     void* workspace, Stream stream) {
    const int64_t batch = problem.conv.batch, item = item_size(problem.conv.dtype);
    const ConvPasses passes = conv_passes(problem.conv.dtype);
    char* const pass_workspace = static_cast<char*>(workspace) + plan.buffer_bytes;
    char* const carried_weight = pass_workspace + plan.pass_bytes;
    char* const carried_bias = carried_weight + plan.carried_weight;
    int64_t first = 0;
    do {  // once also where there is no image: gradients of zeros
        const int64_t count = std::min(plan.images, batch - first);
        const ConvProblem conv = problem.conv.of_batch(count);
        const Tensor buffer = buffer_of(conv, workspace);
        PoolProblem pool = problem.pool;
        pool.batch = count;
        max_pool2d_backward_codes(pool, grad_output.images(item, first, count), codes.images(1, first, count), buffer,
                                  stream);
        const auto carried = [&](char* sums, int64_t bytes) {
            return Carried{bytes ? sums : nullptr, first == 0, first + count == batch};
        };
        if (grad_input.data)
            passes.grad_input(conv, plan.grad_input, buffer, weight, {}, grad_input.images(item, first, count),
                              pass_workspace, stream);
        if (grad_weight.data)
            passes.grad_weight(conv, plan.grad_weight, buffer, input.images(item, first, count), grad_weight,
                               pass_workspace, stream, carried(carried_weight, plan.carried_weight));
        if (grad_bias.data)
            passes.grad_bias(conv, plan.grad_bias, buffer, grad_bias, pass_workspace, stream,
                             carried(carried_bias, plan.carried_bias));
        first += count;
    } while (first < batch);
}

}  // namespace convx::cuda
