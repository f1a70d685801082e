// Gradients of single images and their norms: who works on what, and whether the gradient is needed at all.
#include <algorithm>

#include "cpu/conv2d/per_sample.h"
#include "cpu/conv2d/pixel_products.h"

namespace convx {

// An image a thread needs no synchronisation, and one pixel sum instead of parts. What is left over, less than one for
// each thread, would leave threads idle: they share its images, unless these are too small for that.
int64_t samples_together(int64_t samples, int64_t flops_of_one, int threads) {
    return parallel_width(flops_of_one) == 1 ? samples : samples - samples % threads;
}

bool norms_by_pixels(const ConvProblem& problem) {
    if (problem.algorithm != Algorithm::automatic || problem.in_channels == 0) return false;
    // Before the tables of a large image are made. More pixels than this lose against any number of channels.
    if (problem.out_pixels() > 1024 || problem.h.input * problem.w.input > int64_t{1} << 16) return false;
    const PixelCounts pixels = count_pixels(problem);
    if (pixels.inputs > 1024) return false;
    // In multiplications of the GEMM's type. Winograd's method takes about 0.4 of them; those of pixels are in float64,
    // half of them for symmetry, at 0.75 of the speed; an addition of a window's product costs as much as 8, and
    // staging a number as 16.
    const auto squared = [](int64_t count) { return static_cast<double>(count) * static_cast<double>(count); };
    const double taps = static_cast<double>(problem.taps()), groups = static_cast<double>(problem.groups);
    const double rows = static_cast<double>(problem.group_out()), columns = static_cast<double>(problem.group_in());
    const double multiplications = traits_of(problem, ConvPass::grad_weight).multiplications;
    const double gradient = groups * rows * columns * taps * static_cast<double>(problem.out_pixels()) *
                            multiplications * (problem.dtype == DType::float64 ? 2.0 : 1.0);
    const double products =
        groups * (1.3 * (squared(pixels.outputs) * rows + squared(pixels.inputs) * columns) +
                  8 * squared(pixels.outputs) * taps +
                  16 * (static_cast<double>(pixels.outputs) * rows + static_cast<double>(pixels.inputs) * columns));
    return products < gradient;
}

namespace {

PassPlan plan_one(const ConvProblem& problem, ConvPass pass, const Kernels& kernels, int threads) {
    return plan_conv(single_image(problem), pass, kernels, threads);
}

// A plan for one image becomes that of all of them; images in parallel have each its scratch.
void repeat(PassPlan& plan, const ConvProblem& problem, int threads, int64_t scratch_of_one) {
    const int64_t together = samples_together(problem.batch, plan.flops, threads);
    if (together > 0) {
        plan.threads =
            std::min<int64_t>({parallel_width(problem.batch * plan.flops), threads, std::max<int64_t>(together, 1)});
        plan.tasks = problem.batch;
        plan.reason += "; images in parallel, one a thread";
        if (together < problem.batch) plan.reason += ", the last ones shared by the threads";
    } else {
        plan.reason += "; one image after the other, shared by the threads";
    }
    plan.scratch_bytes = scratch_of_one * (together > 0 ? plan.threads : 1);
    plan.flops *= problem.batch;
}

}  // namespace

PassPlan plan_per_sample_grad_weight(const ConvProblem& problem, const Kernels& kernels, int threads) {
    PassPlan plan = plan_one(problem, ConvPass::grad_weight, kernels, threads);
    plan.bytes *= problem.batch;
    repeat(plan, problem, threads, plan.scratch_bytes);
    return plan;
}

PassPlan plan_per_sample_grad_bias(const ConvProblem& problem, const Kernels& kernels, int threads) {
    PassPlan plan = plan_conv(problem, ConvPass::grad_bias, kernels, threads);
    plan.block = "1 channel of 1 image";
    plan.tasks = problem.batch * problem.out_channels;
    plan.threads = std::min<int64_t>({parallel_width(8 * plan.flops), threads, std::max<int64_t>(plan.tasks, 1)});
    return plan;
}

PassPlan plan_grad_weight_norms(const ConvProblem& problem, const Kernels& kernels, int threads) {
    PassPlan plan = plan_one(problem, ConvPass::grad_weight, kernels, threads);
    const auto [k, c, r, s] = problem.weight_shape();
    const int64_t gradient = k * c * r * s * item_size(problem.dtype);
    plan.bytes = (plan.bytes - gradient) * problem.batch;
    plan.pass = "weight_norms";
    if (!norms_by_pixels(problem)) {
        plan.reason += "; squares of a gradient that each thread keeps to itself";
        repeat(plan, problem, threads, plan.scratch_bytes + gradient);
        return plan;
    }
    const PixelCounts pixels = count_pixels(problem);
    const auto pairs = [](int64_t count) { return count * (count + 1) / 2; };
    plan.algorithm = "pixel products";
    plan.tile =
        std::to_string(kernels.f64.dot_rows) + " x " + std::to_string(kernels.f64.dot_columns) + " products in float64";
    plan.block = "1 image: products of " + std::to_string(pixels.outputs) + " pixels of grad_output and of " +
                 std::to_string(pixels.inputs) + " of the input";
    plan.flops = problem.batch * problem.groups *
                 (2 * (pairs(pixels.outputs) * problem.group_out() + pairs(pixels.inputs) * problem.group_in()) +
                  pairs(pixels.outputs) * (problem.taps() + 2));
    plan.tasks = problem.batch;
    plan.threads = std::min<int64_t>({parallel_width(problem.flops()), threads, std::max<int64_t>(problem.batch, 1)});
    plan.scratch_bytes = plan.threads * pixel_products_scratch(pixels);
    plan.reason = "fewer pixels than channels, so the norm is summed over pairs of pixels and no gradient is made";
    return plan;
}

PassPlan plan_grad_bias_norms(const ConvProblem& problem, const Kernels& kernels, int threads) {
    PassPlan plan = plan_conv(problem, ConvPass::grad_bias, kernels, threads);
    plan.pass = "bias_norms";
    plan.block = "1 image";
    plan.tasks = std::max<int64_t>(problem.batch, 1);
    plan.threads = std::min<int64_t>({parallel_width(8 * plan.flops), threads, plan.tasks});
    return plan;
}

}  // namespace convx
