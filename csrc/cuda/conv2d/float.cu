#include "cuda/conv2d/passes.cuh"

namespace convx::cuda {

template ConvPasses conv_passes_of<float>();

}  // namespace convx::cuda
