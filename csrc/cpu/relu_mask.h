// ReLU with a mask of one bit an element, and its gradient from the mask. Bits follow the elements in row-major order
// of the axes, so these may be merged but not exchanged, whatever the strides.
#pragma once

#include <cstdint>

#include "common/shape.h"

namespace convx {

// The axes of two arrays of one shape, outermost first; axes of size 1 are left out, and those that both arrays have
// without a gap are one.
struct OrderedLoops {
    struct Loop {
        int64_t count;
        int64_t from, to;  // strides
    };
    Loop loops[Shape::most_axes];
    int depth = 0;
    int64_t size = 1;

    void append(int64_t count, int64_t from, int64_t to) {
        size *= count;
        if (count == 1) return;
        if (depth > 0 && loops[depth - 1].from == count * from && loops[depth - 1].to == count * to)
            loops[depth - 1] = {loops[depth - 1].count * count, from, to};
        else
            loops[depth++] = {count, from, to};
    }
    bool is_dense() const { return depth == 0 || (depth == 1 && loops[0].from == 1 && loops[0].to == 1); }
};

// output = input where not (input <= 0), else 0; mask has ceil(size / 8) bytes, the bits behind the last are zero. In
// place is legal.
template <class T>
void relu_mask(const OrderedLoops& loops, const T* input, T* output, uint8_t* mask);

// grad_input = grad_output where the bit is set, else 0.
template <class T>
void relu_mask_backward(const OrderedLoops& loops, const T* grad_output, const uint8_t* mask, T* grad_input);

}  // namespace convx
