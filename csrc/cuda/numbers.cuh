// Element types and the types of their sums: 16-bit numbers are summed in float.
#pragma once

#include "common/tensor_view.h"
#include "cuda/device.cuh"

namespace convx::cuda {

// Calls work(Type<T>{}) with the element type of a problem.
template <class T_>
struct Type {
    using T = T_;
};
template <class Work>
void with_type(DType dtype, const Work& work) {
    switch (dtype) {
        case DType::float32:
            return work(Type<float>{});
        case DType::float64:
            return work(Type<double>{});
        case DType::float16:
            return work(Type<half>{});
        case DType::bfloat16:
            return work(Type<bfloat16>{});
    }
}

template <class T>
struct SumOf {
    using type = float;
};
template <>
struct SumOf<double> {
    using type = double;
};
template <class T>
using Sum = typename SumOf<T>::type;

template <class T>
__device__ Sum<T> to_sum(T value) {
    if constexpr (sizeof(T) == 8)
        return value;
    else
        return to_float(value);
}
template <class T>
__device__ T from_sum(Sum<T> value) {
    if constexpr (sizeof(T) == 8)
        return value;
    else
        return from_float<T>(value);
}

// An option's value as the kernels read it.
template <class T>
T host_number(double value) {
    if constexpr (sizeof(T) == 8)
        return value;
    else
        return from_float<T>(static_cast<float>(value));
}

// NaN stays NaN, -0 gives +0.
template <class S>
__device__ S relu_of(S value) {
    return value <= S(0) ? S(0) : value;
}

// Adjacent elements, moved as one: 16 bytes unless `count` says otherwise.
template <class T, int count_ = 16 / static_cast<int>(sizeof(T))>
struct alignas(sizeof(T) * count_) Chunk {
    static constexpr int count = count_;
    T value[count];
};
template <int count, class T>
__device__ Chunk<T, count> load_chunk(const T* from) {
    return *reinterpret_cast<const Chunk<T, count>*>(from);
}
template <class T, int count>
__device__ void store_chunk(T* to, const Chunk<T, count>& chunk) {
    *reinterpret_cast<Chunk<T, count>*>(to) = chunk;
}
template <class T, int count>
__device__ Chunk<T, count> rounded(const Sum<T> (&sum)[count]) {
    Chunk<T, count> chunk;
#pragma unroll
    for (int i = 0; i < count; ++i) chunk.value[i] = from_sum<T>(sum[i]);
    return chunk;
}

template <class S>
__device__ bool is_nan(S value) {
    return value != value;
}

}  // namespace convx::cuda
