// The device's side of common/array_loops.h: arrays of any axes and strides, one thread an element.
#pragma once

#include <type_traits>

#include "common/array_loops.h"
#include "cuda/divisor.h"

namespace convx::cuda {

// Loops from the innermost.
template <int arrays>
struct StridedLoops {
    explicit StridedLoops(const ArrayLoops<arrays>& nest) : depth(nest.depth), count(nest.size) {
        for (int i = 0; i < depth; ++i) {
            const auto& loop = nest.loops[depth - 1 - i];
            size[i] = loop.count;
            if (count > 0 && count < far_count) divisor[i] = Divisor(loop.count);
            for (int k = 0; k < arrays; ++k) stride[k][i] = loop.stride[k];
        }
    }
    // Calls work(std::bool_constant<far>); far: indices of `far_count` and more take real divisions.
    template <class Work>
    void with_far(const Work& work) const {
        if (depth > 1 && count >= far_count)
            work(std::true_type{});
        else
            work(std::false_type{});
    }

    template <bool far>
    __device__ void find(int64_t index, int64_t (&offset)[arrays]) const {
#pragma unroll
        for (int k = 0; k < arrays; ++k) offset[k] = 0;
        for (int loop = 0; loop < depth; ++loop) {
            int64_t outer = 0;
            if (loop + 1 < depth) outer = far ? index / size[loop] : divisor[loop].quotient(static_cast<int>(index));
            const int64_t position = index - outer * size[loop];
#pragma unroll
            for (int k = 0; k < arrays; ++k) offset[k] += position * stride[k][loop];
            index = outer;
        }
    }

    static constexpr int64_t far_count = int64_t{1} << 31;
    int depth;
    int64_t count;
    Divisor divisor[Shape::most_axes];  // where count < far_count
    int64_t size[Shape::most_axes];
    int64_t stride[arrays][Shape::most_axes];
};

}  // namespace convx::cuda
