#include "cuda/conv2d/passes.cuh"

namespace convx::cuda {

template ConvPasses conv_passes_of<double>();

}  // namespace convx::cuda
