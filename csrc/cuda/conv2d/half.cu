#include "cuda/conv2d/passes.cuh"

namespace convx::cuda {

template struct Conv2d<half>;

}  // namespace convx::cuda
