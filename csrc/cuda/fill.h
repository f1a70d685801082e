// A tensor of one number a channel.
#pragma once

#include "common/tensor_view.h"
#include "cuda/stream.h"

namespace convx::cuda {

// bias: 1 x C x 1 x 1; zeros where it has no data.
void fill(DType dtype, const Tensor& output, const Tensor& bias, Stream stream);

}  // namespace convx::cuda
