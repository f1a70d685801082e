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

// Where sums go: rounded to the element type, or as they are where something is still to be added to them. Places are
// addresses: a pointer and an offset beside it cost the tensor-core tiles the two registers that they do not have.
template <class T>
struct SumTarget {
    char* data;
    bool unrounded;

    __device__ int64_t item() const {
        return sizeof(T) < sizeof(Sum<T>) && unrounded ? static_cast<int64_t>(sizeof(Sum<T>)) : int64_t{sizeof(T)};
    }
    __device__ char* at(int64_t offset) const { return data + offset * item(); }
    __device__ void put(char* place, Sum<T> value) const {
        if (sizeof(T) < sizeof(Sum<T>) && unrounded)
            *reinterpret_cast<Sum<T>*>(place) = value;
        else
            *reinterpret_cast<T*>(place) = from_sum<T>(value);
    }
};

template <class S>
__device__ bool is_nan(S value) {
    return value != value;
}

}  // namespace convx::cuda
