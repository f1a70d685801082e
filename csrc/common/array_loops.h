// The axes of arrays of one shape as loops, for operations on single elements.
#pragma once

#include <algorithm>
#include <cstdlib>

#include "common/array.h"

namespace convx {

enum class LoopOrder { any, row_major };

// Outermost first. Axes of size 1 are left out, and those that all arrays have without a gap are one, so that what is
// left is almost always one loop.
template <int arrays>
struct ArrayLoops {
    struct Loop {
        int64_t count;
        int64_t stride[arrays];
    };

    // In any order loops are sorted by the stride of the last array, which is written.
    ArrayLoops(const Array* const (&operands)[arrays], LoopOrder order) {
        const Shape& shape = operands[0]->info.shape;
        size = element_count(shape);
        for (size_t axis = 0; axis < shape.size(); ++axis) {
            if (shape[axis] == 1) continue;
            Loop loop{shape[axis], {}};
            for (int k = 0; k < arrays; ++k) loop.stride[k] = operands[k]->stride[axis];
            if (order == LoopOrder::any)
                insert(loop);
            else
                loops[depth++] = loop;
        }
        merge();
    }

    bool is_dense() const {
        const auto adjacent = [](int64_t stride) { return stride == 1; };
        return depth == 0 || (depth == 1 && std::all_of(loops[0].stride, loops[0].stride + arrays, adjacent));
    }

    Loop loops[Shape::most_axes];
    int depth = 0;
    int64_t size;
    int64_t start[arrays] = {};  // offsets of the element where the loops begin

private:
    void insert(Loop loop) {
        // All backwards is as good as all forwards, from the other end.
        if (std::all_of(loop.stride, loop.stride + arrays, [](int64_t stride) { return stride < 0; }))
            for (int k = 0; k < arrays; ++k) {
                start[k] += (loop.count - 1) * loop.stride[k];
                loop.stride[k] = -loop.stride[k];
            }
        const auto step = [](const Loop& of) { return std::abs(of.stride[arrays - 1]); };
        int at = depth++;
        for (; at > 0 && step(loops[at - 1]) < step(loop); --at) loops[at] = loops[at - 1];
        loops[at] = loop;
    }

    void merge() {
        int kept = 0;
        for (int i = 1; i < depth; ++i) {
            bool adjoins = true;
            for (int k = 0; k < arrays; ++k)
                adjoins = adjoins && loops[kept].stride[k] == loops[i].count * loops[i].stride[k];
            const int64_t outer = adjoins ? loops[kept].count : 1;
            loops[adjoins ? kept : ++kept] = loops[i];
            loops[kept].count *= outer;
        }
        if (depth > 0) depth = kept + 1;
    }
};

}  // namespace convx
