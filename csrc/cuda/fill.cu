#include "cuda/fill.h"

#include "cuda/elements.cuh"

namespace convx::cuda {

namespace {

template <class T>
struct Fill {
    __device__ void operator()(const Index4& at) const { *output.at(at) = bias ? bias[at.c * bias_stride] : T{}; }

    Strided4<T> output;
    const T* bias;  // or none: zeros
    int64_t bias_stride;
};

}  // namespace

void fill(DType dtype, const Tensor& output, const Tensor& bias, Stream stream) {
    with_type(dtype, [&](auto type) {
        using T = typename decltype(type)::T;
        const Fill<T> fill{Strided4<T>(output), bias.as<const T>(), bias.stride[1]};
        launch_elements(output.shape, output.stride[1] == 1, 1, fill, stream);
    });
}

}  // namespace convx::cuda
