#include "cuda/conv2d/passes.cuh"

namespace convx::cuda {

template ConvPasses conv_passes_of<half>();

}  // namespace convx::cuda
