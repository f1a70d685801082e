// Two kernels of its own: the sums of squares of gradients that lie in the workspace, in two stages and a fixed order.
// Bound by reading them (4 loads a thread in flight); 2 KiB of shared memory.
#include "cuda/conv2d/per_sample.h"

#include <algorithm>

#include "cuda/launch.cuh"
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

Tensor joined_tensor(const Tensor& tensor, int64_t item, int64_t first, int64_t images) {
    Tensor joined = tensor.images(item, first, 1);
    joined.shape[1] *= images;
    return joined;
}

int64_t gradient_size(const ConvProblem& problem, ConvPass pass) {
    return pass == ConvPass::grad_bias ? problem.out_channels : element_count(problem.weight_shape());
}

void add_norms(DType dtype, const PerSamplePlan& plan, const char* sums, int64_t values, int64_t images, void* partial,
               double* norms, Stream stream) {
    auto* const of_blocks = static_cast<double*>(partial);
    with_type(dtype, [&](auto type) {
        using S = Sum<typename decltype(type)::T>;
        launch(sum_squares<S>, grid(plan.norm_blocks, images), norm_threads, sizeof(NormThreads), stream,
               reinterpret_cast<const S*>(sums), values, of_blocks);
    });
    launch(add_squares, grid(images), norm_threads, sizeof(NormThreads), stream, of_blocks, plan.norm_blocks, norms);
}

}  // namespace

bool images_are_channels(const Tensor& tensor) {
    return tensor.shape[0] <= 1 || tensor.stride[0] == tensor.shape[1] * tensor.stride[1];
}

PerSamplePlan plan_per_sample(const ConvProblem& problem, ConvPass pass, Precision precision, bool joined, bool norms) {
    PerSamplePlan plan;
    plan.pass = plan_conv2d(problem.of_batch(1), pass, precision);
    const int64_t values = gradient_size(problem, pass);
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

void per_sample(const ConvProblem& problem, ConvPass pass, const PerSamplePlan& plan, const Tensor& grad_output,
                const Tensor& input, void* gradients, double* norms, void* workspace, Stream stream) {
    const ConvPasses passes = conv_passes(problem.dtype);
    const int64_t values = gradient_size(problem, pass), item = item_size(problem.dtype);
    char* const sums = static_cast<char*>(workspace) + plan.pass.workspace_bytes();
    const Carried carried = norms ? Carried{sums, true, false} : Carried{};
    for (int64_t first = 0; first < problem.batch; first += plan.images) {
        const int64_t images = std::min(plan.images, problem.batch - first);
        const ConvProblem joined = joined_images(problem, images);
        const Tensor grads = joined_tensor(grad_output, item, first, images);
        void* const result = norms ? nullptr : static_cast<char*>(gradients) + first * values * item;
        if (pass == ConvPass::grad_bias)
            passes.grad_bias(joined, plan.pass, grads, {result, {1, joined.out_channels, 1, 1}, {0, 1, 0, 0}},
                             workspace, stream, carried);
        else
            passes.grad_weight(joined, plan.pass, grads, joined_tensor(input, item, first, images),
                               {result, joined.weight_shape(), dense_strides(joined.weight_shape(), false)}, workspace,
                               stream, carried);
        if (norms) add_norms(problem.dtype, plan, sums, values, images, sums + plan.sums_bytes, norms + first, stream);
    }
}

}  // namespace convx::cuda
