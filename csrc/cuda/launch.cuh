// Launches of one thread an element.
#pragma once

#include "common/rounding.h"
#include "cuda/device.cuh"

namespace convx::cuda {

constexpr int tiles_of(int count, int size) { return static_cast<int>(ceil_div(count, size)); }

inline dim3 grid(int64_t x, int64_t y = 1, int64_t z = 1) {
    return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
}

// work(index) for all indices below `count`.
template <int threads, int blocks, class Work>
__global__ void __launch_bounds__(threads, blocks) each_kernel(Work work, int64_t count) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
    if (index < count) work(index);
}

// No launch where there is nothing to do. `blocks`: of a multiprocessor, as in __launch_bounds__.
template <int threads = 256, int blocks = 1, class Work>
void launch_each(int64_t count, const Work& work, Stream stream) {
    if (count > 0)
        launch(each_kernel<threads, blocks, Work>, grid(ceil_div(count, threads)), threads, 0, stream, work, count);
}

}  // namespace convx::cuda
