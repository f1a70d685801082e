// A strided window on somebody else's memory: what every pass reads and writes.
#pragma once

#include <array>
#include <cstdint>

#include "common/shape.h"

namespace convx {

// The 16-bit types exist on CUDA alone.
enum class DType { float32, float64, float16, bfloat16 };

constexpr int64_t item_size(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

// Axes are always in logical N, C, H, W order, whatever the memory order: NHWC is a matter of strides.
// Strides count elements and may be zero or negative.
template <class T>
struct TensorView {
    T* data = nullptr;
    std::array<int64_t, 4> shape{};
    std::array<int64_t, 4> stride{};

    int64_t size() const { return element_count(shape); }
    T* at(int64_t n, int64_t c, int64_t h, int64_t w) const {
        return data + n * stride[0] + c * stride[1] + h * stride[2] + w * stride[3];
    }
    // Images [first, first + count) of the batch.
    TensorView images(int64_t first, int64_t count) const {
        return {data + first * stride[0], {count, shape[1], shape[2], shape[3]}, stride};
    }
    operator TensorView<const T>() const { return {data, shape, stride}; }
};

// The same where the element type is known from the problem alone: what a backend's operations take.
struct Tensor {
    void* data = nullptr;
    std::array<int64_t, 4> shape{};
    std::array<int64_t, 4> stride{};
    bool unrounded = false;  // elements have the type of the sums: CUDA's workspace alone has such

    template <class T>
    T* as() const {
        return static_cast<T*>(data);
    }
    template <class T>
    operator TensorView<T>() const {
        return {as<T>(), shape, stride};
    }
    // Indices [first, first + count) of an axis, of elements of `item` bytes.
    Tensor part(size_t axis, int64_t item, int64_t first, int64_t count) const {
        Tensor some = *this;
        if (data) some.data = as<char>() + first * stride[axis] * item;
        some.shape[axis] = count;
        return some;
    }
    Tensor images(int64_t item, int64_t first, int64_t count) const { return part(0, item, first, count); }
};

// Dense strides of an N, C, H, W shape stored as NCHW or, with channels_last, as NHWC.
inline std::array<int64_t, 4> dense_strides(const std::array<int64_t, 4>& shape, bool channels_last) {
    const auto [n, c, h, w] = shape;
    (void)n;
    if (channels_last) return {c * h * w, 1, w * c, c};
    return {c * h * w, h * w, w, 1};
}
template <class T>
TensorView<T> dense_view(T* data, const std::array<int64_t, 4>& shape, bool channels_last) {
    return {data, shape, dense_strides(shape, channels_last)};
}

}  // namespace convx
