// Max-pooling on CUDA: values, int64 indices or one-byte window codes, and the gradient from either. Problems are
// resolved (common/check.h), tensors are the caller's device memory.
#pragma once

#include <string>

#include "common/problem.h"
#include "cuda/stream.h"

namespace convx::cuda {

// Indices and codes are written where their data is not null. `dead_at_zero`: the code of a value <= 0 is 255, as
// behind a ReLU.
void max_pool2d(const PoolProblem& problem, const Tensor& input, const Tensor& output, const Tensor& indices,
                const Tensor& codes, bool dead_at_zero, Stream stream);

// Every element of grad_input is written: the sum, in row-major order, of the windows whose argmax it is. A code of no
// tap of its window inside the image adds nothing: an error would have to wait for the device.
void max_pool2d_backward_codes(const PoolProblem& problem, const Tensor& grad_output, const Tensor& codes,
                               const Tensor& grad_input, Stream stream);

// The same from indices; one that lies outside the plane adds nothing. The workspace has
// max_pool2d_indices_workspace(problem) bytes.
void max_pool2d_backward_indices(const PoolProblem& problem, const Tensor& grad_output, const Tensor& indices,
                                 const Tensor& grad_input, void* workspace, Stream stream);
int64_t max_pool2d_indices_workspace(const PoolProblem& problem);

// Throws ShapeError where a plane is too large to be counted in 31 bits.
void check_planes(const std::string& op, const PoolProblem& problem);

}  // namespace convx::cuda
