#include "cuda/conv2d/conv2d.h"

#include "cuda/numbers.cuh"

namespace convx::cuda {

ConvPasses conv_passes(DType dtype) {
    ConvPasses passes{};
    with_type(dtype, [&](auto type) { passes = conv_passes_of<typename decltype(type)::T>(); });
    return passes;
}

}  // namespace convx::cuda
