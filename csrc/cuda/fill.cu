#include "cuda/fill.h"

#include "cuda/cells.cuh"

namespace convx::cuda {

namespace {

template <class T>
struct Fill {
    Cells cells;
    Strided4<T> output;
    const T* bias;  // or none: zeros
    int64_t bias_stride;
};

// One thread a cell.
template <class T>
__global__ void __launch_bounds__(256) fill_kernel(Fill<T> fill) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (index >= fill.cells.count) return;
    const Cell cell = fill.cells.at(static_cast<int>(index));
    *fill.output.at(cell) = fill.bias ? fill.bias[cell.c * fill.bias_stride] : T{};
}

}  // namespace

void fill(DType dtype, const Tensor& output, const Tensor& bias, Stream stream) {
    with_type(dtype, [&](auto type) {
        using T = typename decltype(type)::T;
        for_each_launch(output.shape, output.stride[1] == 1, 1, [&](const Cells& cells) {
            launch_each<256>(cells.count, fill_kernel<T>, stream,
                             Fill<T>{cells, Strided4<T>(output), static_cast<const T*>(bias.data), bias.stride[1]});
        });
    });
}

}  // namespace convx::cuda
