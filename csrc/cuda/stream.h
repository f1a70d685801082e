// The caller's stream: a cudaStream_t, named without CUDA's headers.
#pragma once

namespace convx::cuda {

using Stream = void*;

}  // namespace convx::cuda
