// Two kernels of its own: the sums of squares of gradients that lie in the workspace, in two stages and a fixed order.
// Bound by reading them, 4 loads a thread in flight; 2 KiB of shared memory.
#include "cuda/conv2d/per_sample.h"

#include <algorithm>

#include "common/rounding.h"
#include "cuda/numbers.cuh"

namespace convx::cuda {

namespace {

// Of the gradients or partial sums of one launch's images: several waves of blocks, and a bound on what a batch takes.
constexpr int64_t most_bytes = int64_t{64} << 20;
constexpr int64_t most_groups = 65535;  // of a launch: gridDim.z
constexpr int norm_threads = 256;
constexpr int64_t values_of_block = 16384;  // whose squares one block adds

struct NormThreads {
    double sum[norm_threads];
};

// The block's sum in thread 0, by halves: the same order whatever the threads' order.
__device__ void add_up(NormThreads& shared) {
    const int thread = static_cast<int>(threadIdx.x);
    for (int half = norm_threads / 2; half > 0; half /= 2) {
        block_barrier();
        if (thread < half) shared.sum[thread] += shared.sum[thread + half];
    }
}

// blockIdx.x: part of a gradient, blockIdx.y: image.
template <class S>
__global__ void __launch_bounds__(norm_threads) sum_squares(const S* gradients, int64_t count, double* partial) {
    NormThreads& shared = shared_memory<NormThreads>();
    const S* const gradient = gradients + static_cast<int64_t>(blockIdx.y) * count;
    const int64_t begin = static_cast<int64_t>(blockIdx.x) * values_of_block;
    const int64_t end = begin + values_of_block < count ? begin + values_of_block : count;
    double sum = 0;
#pragma unroll 4
    for (int64_t i = begin + threadIdx.x; i < end; i += norm_threads) {
        const auto value = static_cast<double>(gradient[i]);
        sum = multiply_add(value, value, sum);
    }
    shared.sum[threadIdx.x] = sum;
    add_up(shared);
    if (threadIdx.x == 0) partial[static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x] = shared.sum[0];
}

// One block an image.
__global__ void __launch_bounds__(norm_threads) add_squares(const double* partial, int64_t count, double* norms) {
    NormThreads& shared = shared_memory<NormThreads>();
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += norm_threads)
        sum += partial[static_cast<int64_t>(blockIdx.x) * count + i];
    shared.sum[threadIdx.x] = sum;
    add_up(shared);
    if (threadIdx.x == 0) norms[blockIdx.x] = shared.sum[0];
}

// `images` of them as the groups of one.
ConvProblem joined_images(const ConvProblem& problem, int64_t images) {
    ConvProblem joined = problem.of_batch(1);
    joined.in_channels *= images;
    joined.out_channels *= images;
    joined.groups *= images;
    return joined;
}

Tensor some_images(const Tensor& tensor, DType dtype, int64_t first, int64_t images) {
    Tensor some = tensor.images(item_size(dtype), first, 1);
    some.shape[1] *= images;
    return some;
}

int64_t sum_size(DType dtype) { return dtype == DType::float64 ? 8 : 4; }

// run(problem of the joined images, first image, images) for each launch.
template <class Run>
void for_each_launch_of_images(const ConvProblem& problem, const PerSamplePlan& plan, const Run& run) {
    for (int64_t first = 0; first < problem.batch; first += plan.images) {
        const int64_t images = std::min(plan.images, problem.batch - first);
        run(joined_images(problem, images), first, images);
    }
}

// Gradients of some images: to `result`, rounded, or unrounded to `sums`.
void run_grad_weight(const ConvProblem& joined, const PerSamplePlan& plan, const Tensor& grad_output,
                     const Tensor& input, void* result, void* sums, void* workspace, Stream stream) {
    const Tensor gradient{result, joined.weight_shape(), dense_strides(joined.weight_shape(), false)};
    conv_passes(joined.dtype)
        .grad_weight(joined, plan.pass, grad_output, input, gradient, workspace, stream,
                     sums ? Carried{sums, true, false} : Carried{});
}
void run_grad_bias(const ConvProblem& joined, const PerSamplePlan& plan, const Tensor& grad_output, void* result,
                   void* sums, void* workspace, Stream stream) {
    const Tensor gradient{result, {1, joined.out_channels, 1, 1}, {0, 1, 0, 0}};
    conv_passes(joined.dtype)
        .grad_bias(joined, plan.pass, grad_output, gradient, workspace, stream,
                   sums ? Carried{sums, true, false} : Carried{});
}

// What the workspace of a norm is made of.
struct NormSpace {
    NormSpace(const PerSamplePlan& plan, void* workspace)
        : sums(static_cast<char*>(workspace) + plan.pass.workspace_bytes()), partial(sums + plan.sums_bytes) {}
    char *sums, *partial;
};

void run_norms(const ConvProblem& problem, const PerSamplePlan& plan, const NormSpace& space, int64_t values,
               int64_t first, int64_t images, double* norms, Stream stream) {
    auto* const partial = reinterpret_cast<double*>(space.partial);
    const dim3 grid(static_cast<unsigned>(plan.norm_blocks), static_cast<unsigned>(images));
    with_type(problem.dtype, [&](auto type) {
        using S = Sum<typename decltype(type)::T>;
        launch(sum_squares<S>, grid, norm_threads, sizeof(NormThreads), stream, reinterpret_cast<const S*>(space.sums),
               values, partial);
    });
    launch(add_squares, dim3(static_cast<unsigned>(images)), norm_threads, sizeof(NormThreads), stream, partial,
           plan.norm_blocks, norms + first);
}

}  // namespace

bool images_are_channels(const Tensor& tensor) {
    return tensor.shape[0] <= 1 || tensor.stride[0] == tensor.shape[1] * tensor.stride[1];
}

PerSamplePlan plan_per_sample(const ConvProblem& problem, ConvPass pass, Precision precision, bool joined, bool norms) {
    PerSamplePlan plan;
    plan.pass = plan_conv2d(problem.of_batch(1), pass, precision);
    const int64_t values = pass == ConvPass::grad_bias ? problem.out_channels : element_count(problem.weight_shape());
    const int64_t sums = std::max<int64_t>(values * sum_size(problem.dtype), 1);
    const int64_t of_image = sums * (plan.pass.parts + (norms ? 1 : 0));
    if (joined) {
        plan.images = std::clamp<int64_t>(std::min(most_bytes / of_image, most_groups / problem.groups), 1,
                                          std::max<int64_t>(problem.batch, 1));
        plan.pass.partial_bytes = workspace_part(plan.images * plan.pass.parts * sums);
        plan.pass.blocks *= plan.images;
    }
    if (norms) {
        plan.sums_bytes = workspace_part(plan.images * sums);
        plan.norm_blocks = std::max<int64_t>(ceil_div(values, values_of_block), 1);
        plan.norm_bytes = workspace_part(plan.images * plan.norm_blocks * 8);
    }
    plan.pass.reason +=
        joined ? "; " + std::to_string(plan.images) + " images in one launch, as groups" : "; a launch for each image";
    if (norms) plan.pass.reason += "; their gradients stay in the workspace, the squares are summed in float64";
    return plan;
}

void per_sample_grad_weight(const ConvProblem& problem, const PerSamplePlan& plan, const Tensor& grad_output,
                            const Tensor& input, void* grad_weight, void* workspace, Stream stream) {
    const int64_t bytes = element_count(problem.weight_shape()) * item_size(problem.dtype);
    for_each_launch_of_images(problem, plan, [&](const ConvProblem& joined, int64_t first, int64_t images) {
        run_grad_weight(joined, plan, some_images(grad_output, problem.dtype, first, images),
                        some_images(input, problem.dtype, first, images),
                        static_cast<char*>(grad_weight) + first * bytes, nullptr, workspace, stream);
    });
}

void per_sample_grad_bias(const ConvProblem& problem, const PerSamplePlan& plan, const Tensor& grad_output,
                          void* grad_bias, void* workspace, Stream stream) {
    const int64_t bytes = problem.out_channels * item_size(problem.dtype);
    for_each_launch_of_images(problem, plan, [&](const ConvProblem& joined, int64_t first, int64_t images) {
        run_grad_bias(joined, plan, some_images(grad_output, problem.dtype, first, images),
                      static_cast<char*>(grad_bias) + first * bytes, nullptr, workspace, stream);
    });
}

void grad_weight_norms(const ConvProblem& problem, const PerSamplePlan& plan, const Tensor& grad_output,
                       const Tensor& input, double* norms, void* workspace, Stream stream) {
    const NormSpace space(plan, workspace);
    for_each_launch_of_images(problem, plan, [&](const ConvProblem& joined, int64_t first, int64_t images) {
        run_grad_weight(joined, plan, some_images(grad_output, problem.dtype, first, images),
                        some_images(input, problem.dtype, first, images), nullptr, space.sums, workspace, stream);
        run_norms(problem, plan, space, element_count(problem.weight_shape()), first, images, norms, stream);
    });
}

void grad_bias_norms(const ConvProblem& problem, const PerSamplePlan& plan, const Tensor& grad_output, double* norms,
                     void* workspace, Stream stream) {
    const NormSpace space(plan, workspace);
    for_each_launch_of_images(problem, plan, [&](const ConvProblem& joined, int64_t first, int64_t images) {
        run_grad_bias(joined, plan, some_images(grad_output, problem.dtype, first, images), nullptr, space.sums,
                      workspace, stream);
        run_norms(problem, plan, space, problem.out_channels, first, images, norms, stream);
    });
}

}  // namespace convx::cuda
