#include "cuda/conv2d/passes.cuh"

namespace convx::cuda {

template struct Conv2d<float>;

}  // namespace convx::cuda
