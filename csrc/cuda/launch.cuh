// Launches of one thread an element.
#pragma once

#include "common/rounding.h"
#include "cuda/device.cuh"

namespace convx::cuda {

// kernel(arguments...) by `count` threads and those that fill the last block; none where there is nothing to do.
template <int threads, class... Parameters, class... Arguments>
void launch_each(int64_t count, void (*kernel)(Parameters...), Stream stream, const Arguments&... arguments) {
    if (count > 0)
        launch(kernel, dim3(static_cast<unsigned>(ceil_div(count, threads))), threads, 0, stream, arguments...);
}

constexpr int tiles_of(int count, int size) { return static_cast<int>(ceil_div(count, size)); }

}  // namespace convx::cuda
