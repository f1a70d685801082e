// ReLU: elementwise, so the axes may be walked in any order and in any direction.
#include "cpu/relu.h"

#include <algorithm>

#include "common/array_loops.h"
#include "common/rounding.h"
#include "cpu/dispatch.h"
#include "cpu/memory_bound.h"
#include "cpu/runtime/registry.h"
#include "cpu/runtime/thread_pool.h"

namespace convx {

namespace {

// Runs shorter than this do not go around the caches: each would end in a partly written line and a fence.
constexpr int64_t least_streamed = 1024;

// Calls run(offsets, count, strides) for pieces of the innermost loop, in parallel.
template <int operands, class Run>
void for_each_run(const ArrayLoops<operands>& nest, int64_t item_bytes, const Run& run) {
    using Loop = typename ArrayLoops<operands>::Loop;
    if (nest.size == 0) return;
    const Loop inner = nest.depth > 0 ? nest.loops[nest.depth - 1] : Loop{1, {}};
    const int64_t rows = nest.size / inner.count;
    const int64_t row_pieces = ceil_div(inner.count, memory_bound_task_elements);
    const int64_t task_rows = std::max<int64_t>(1, memory_bound_task_elements / inner.count);
    const int64_t tasks = row_pieces * ceil_div(rows, task_rows);
    const int width = operands * nest.size * item_bytes < parallel_bytes ? 1 : num_threads();
    parallel_for(tasks, width, [&](int64_t task, int) {
        const int64_t piece = task % row_pieces;
        const int64_t first_row = task / row_pieces * task_rows;
        const int64_t begin = piece * memory_bound_task_elements;
        const int64_t count = std::min(inner.count - begin, row_pieces == 1 ? inner.count : memory_bound_task_elements);
        for (int64_t row = first_row; row < std::min(rows, first_row + task_rows); ++row) {
            std::array<int64_t, operands> at;
            for (int k = 0; k < operands; ++k) at[k] = nest.start[k] + begin * inner.stride[k];
            int64_t rest = row;
            for (int depth = nest.depth - 2; depth >= 0; --depth) {
                const Loop& loop = nest.loops[depth];
                for (int k = 0; k < operands; ++k) at[k] += rest % loop.count * loop.stride[k];
                rest /= loop.count;
            }
            run(at, count, inner.stride);
        }
    });
}

template <size_t operands>
bool adjacent(const int64_t (&stride)[operands], int64_t count) {
    return count == 1 || std::all_of(stride, stride + operands, [](int64_t s) { return s == 1; });
}

// Elements that are not adjacent pass through blocks in L1, so that the kernel sees adjacent ones alone: a choice by
// each element of them would mispredict half of the signs, 12 times the time of the dense array's.
constexpr int64_t block_elements = 512;

// Calls run(output, inputs..., count) for adjacent elements, block by block.
template <class T, size_t operands, class Run>
void through_blocks(const KernelSet<T>& kernels, std::array<const T*, operands> inputs, T* output,
                    const int64_t (&stride)[operands + 1], int64_t count, const Run& run) {
    T blocks[operands + 1][block_elements];
    for (int64_t first = 0; first < count; first += block_elements) {
        const int n = static_cast<int>(std::min(block_elements, count - first));
        std::array<const T*, operands> from;
        for (size_t k = 0; k < operands; ++k) {
            from[k] = inputs[k] + first * stride[k];
            if (stride[k] == 1) continue;
            const LaneRun all{0, n, 0};
            kernels.pack_lanes(blocks[k], 0, from[k], 0, 1, &all, 1, n, stride[k], T(0));
            from[k] = blocks[k];
        }
        T* const to = output + first * stride[operands];
        if (stride[operands] == 1) {
            run(to, from, n);
            continue;
        }
        run(blocks[operands], from, n);
        for (int64_t i = 0; i < n; ++i) to[i * stride[operands]] = blocks[operands][i];
    }
}

bool goes_around_caches(int64_t elements_moved, int64_t item_bytes, bool in_place) {
    return !in_place && elements_moved * item_bytes >= streaming_bytes;
}

}  // namespace

void relu(const Array& input, const Array& output) {
    const ArrayLoops<2> nest({&input, &output}, LoopOrder::any);
    dispatch(input.info.dtype, [&](auto zero) {
        using T = decltype(zero);
        const KernelSet<T>& kernels = kernel_set<T>(active_kernels());
        const bool around_caches = goes_around_caches(2 * nest.size, sizeof(T), input.data == output.data);
        for_each_run(nest, sizeof(T), [&](const auto& at, int64_t count, const auto& stride) {
            const T* x = input.as<T>() + at[0];
            T* y = output.as<T>() + at[1];
            if (adjacent(stride, count)) return kernels.relu(y, x, count, around_caches && count >= least_streamed);
            through_blocks<T, 1>(kernels, {x}, y, stride, count,
                                 [&](T* to, const auto& from, int64_t n) { kernels.relu(to, from[0], n, false); });
        });
    });
}

void relu_backward(const Array& grad_output, const Array& output, const Array& grad_input) {
    const ArrayLoops<3> nest({&grad_output, &output, &grad_input}, LoopOrder::any);
    dispatch(output.info.dtype, [&](auto zero) {
        using T = decltype(zero);
        const KernelSet<T>& kernels = kernel_set<T>(active_kernels());
        const bool around_caches = goes_around_caches(3 * nest.size, sizeof(T), grad_output.data == grad_input.data);
        for_each_run(nest, sizeof(T), [&](const auto& at, int64_t count, const auto& stride) {
            const T* g = grad_output.as<T>() + at[0];
            const T* y = output.as<T>() + at[1];
            T* gi = grad_input.as<T>() + at[2];
            if (adjacent(stride, count))
                return kernels.relu_backward(gi, g, y, count, around_caches && count >= least_streamed);
            through_blocks<T, 2>(kernels, {g, y}, gi, stride, count, [&](T* to, const auto& from, int64_t n) {
                kernels.relu_backward(to, from[0], from[1], n, false);
            });
        });
    });
}

}  // namespace convx
