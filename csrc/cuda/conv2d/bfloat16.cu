#include "cuda/conv2d/passes.cuh"

namespace convx::cuda {

template struct Conv2d<bfloat16>;

}  // namespace convx::cuda
