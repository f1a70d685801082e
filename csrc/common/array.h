// An array as its owner describes it: any number of axes, in the owner's order and layout.
#pragma once

#include "common/check.h"

namespace convx {

struct Array {
    ArrayInfo info;
    Shape stride;  // elements
    void* data = nullptr;
    int64_t item_bytes = 0;  // of integers (codes, indices, masks); 0: floating point, of info.dtype

    int64_t item() const { return item_bytes != 0 ? item_bytes : item_size(info.dtype); }
    template <class T>
    T* as() const {
        return static_cast<T*>(data);
    }
};

// A 3-D or 4-D array in the user's layout, in logical N, C, H, W order.
inline Tensor image_tensor(const Array& array, bool channels_last) {
    const Shape &shape = array.info.shape, &stride = array.stride;
    const size_t batched = shape.size() == 4 ? 1 : 0;
    const size_t c = batched + (channels_last ? 2 : 0), h = batched + (channels_last ? 0 : 1);
    return {array.data,
            {batched ? shape[0] : 1, shape[c], shape[h], shape[h + 1]},
            {batched ? stride[0] : 0, stride[c], stride[h], stride[h + 1]}};
}

// Axes as they are: a weight.
inline Tensor plain_tensor(const Array& array) { return image_tensor(array, false); }

// A bias: one value per channel.
inline Tensor vector_tensor(const Array& array) {
    return {array.data, {1, array.info.shape[0], 1, 1}, {0, array.stride[0], 0, 0}};
}

// Also true without elements, whatever the strides.
inline bool is_row_major(const Array& array) {
    const Shape& shape = array.info.shape;
    if (element_count(shape) == 0) return true;
    int64_t dense = 1;
    for (size_t axis = shape.size(); axis-- > 0; dense *= shape[axis])
        if (shape[axis] != 1 && array.stride[axis] != dense) return false;
    return true;
}

}  // namespace convx
