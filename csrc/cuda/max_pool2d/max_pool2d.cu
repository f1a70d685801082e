#include "cuda/max_pool2d/max_pool2d.h"

#include "common/check.h"
#include "cuda/max_pool2d/backward.cuh"
#include "cuda/max_pool2d/forward.cuh"

namespace convx::cuda {

void check_planes(const std::string& op, const PoolProblem& problem) {
    constexpr int64_t most_pixels = int64_t{1} << 30;
    const int64_t pixels = std::max(problem.covered_cells(), problem.out_h() * problem.out_w());
    if (pixels > most_pixels)
        throw ShapeError(op + ": a plane with " + std::to_string(pixels) + " pixels, expected at most " +
                         std::to_string(most_pixels) + " on CUDA");
}

void max_pool2d(const PoolProblem& problem, const Tensor& input, const Tensor& output, const Tensor& indices,
                const Tensor& codes, bool dead_at_zero, Stream stream) {
    with_type(problem.dtype, [&](auto type) {
        max_pool2d_of<typename decltype(type)::T>(problem, input, output, indices, codes, dead_at_zero, stream);
    });
}

void max_pool2d_backward_codes(const PoolProblem& problem, const Tensor& grad_output, const Tensor& codes,
                               const Tensor& grad_input, Stream stream) {
    with_type(problem.dtype, [&](auto type) {
        max_pool2d_gather<typename decltype(type)::T, uint8_t>(problem, grad_output, codes, grad_input, stream);
    });
}

void max_pool2d_backward_indices(const PoolProblem& problem, const Tensor& grad_output, const Tensor& indices,
                                 const Tensor& grad_input, void* workspace, Stream stream) {
    with_type(problem.dtype, [&](auto type) {
        using T = typename decltype(type)::T;
        const auto run =
            problem.taps() <= max_code_taps ? &max_pool2d_indices_of<T, uint8_t> : &max_pool2d_indices_of<T, int>;
        run(problem, grad_output, indices, grad_input, workspace, stream);
    });
}

int64_t max_pool2d_indices_workspace(const PoolProblem& problem) {
    const int64_t code_bytes = problem.taps() <= max_code_taps ? 1 : static_cast<int64_t>(sizeof(int));
    return flag_bytes(problem) + problem.batch * problem.channels * problem.out_h() * problem.out_w() * code_bytes;
}

}  // namespace convx::cuda
