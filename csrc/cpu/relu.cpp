// ReLU: elementwise over views, so the axes may be walked in any order, in any direction, and merged where all operands
// allow it; what is left is almost always one run.
#include "cpu/relu.h"

#include <algorithm>
#include <cstdlib>

#include "common/rounding.h"
#include "cpu/memory_bound.h"
#include "cpu/runtime/registry.h"
#include "cpu/runtime/thread_pool.h"

namespace convx {

namespace {

// Runs shorter than this do not go around the caches: each would end in a partly written line and a fence.
constexpr int64_t least_streamed = 1024;

// The nest of loops over `operands` arrays of one shape, outermost first; the output is the last operand.
template <int operands>
struct Nest {
    struct Loop {
        int64_t count;
        std::array<int64_t, operands> stride;
    };
    int depth = 0;
    std::array<Loop, 4> loops;
    std::array<int64_t, operands> start{};  // offset of the first element walked

    void append(Loop loop) {
        if (loop.count == 1) return;
        // All backwards is as good as all forwards, from the other end.
        if (std::all_of(loop.stride.begin(), loop.stride.end(), [](int64_t s) { return s < 0; })) {
            for (int k = 0; k < operands; ++k) {
                start[k] += (loop.count - 1) * loop.stride[k];
                loop.stride[k] = -loop.stride[k];
            }
        }
        int at = depth++;
        for (; at > 0 && loops[at - 1].stride.back() < loop.stride.back(); --at) loops[at] = loops[at - 1];
        loops[at] = loop;
    }

    void merge() {
        int kept = 0;
        for (int i = 1; i < depth; ++i) {
            bool adjoins = true;
            for (int k = 0; k < operands; ++k)
                adjoins = adjoins && loops[kept].stride[k] == loops[i].count * loops[i].stride[k];
            if (adjoins)
                loops[kept] = {loops[kept].count * loops[i].count, loops[i].stride};
            else
                loops[++kept] = loops[i];
        }
        depth = kept + 1;
    }
};

// Calls run(offsets, count, strides) for pieces of the innermost loop, in parallel.
template <int operands, class Run>
void for_each_run(const std::array<int64_t, 4>& shape, const std::array<std::array<int64_t, 4>, operands>& strides,
                  int64_t item_bytes, const Run& run) {
    int64_t size = 1;
    for (const int64_t count : shape) size *= count;
    if (size == 0) return;
    Nest<operands> nest;
    for (int axis = 0; axis < 4; ++axis) {
        typename Nest<operands>::Loop loop{shape[axis], {}};
        for (int k = 0; k < operands; ++k) loop.stride[k] = strides[k][axis];
        nest.append(loop);
    }
    if (nest.depth == 0) nest.loops[nest.depth++] = {1, {}};
    nest.merge();

    const auto inner = nest.loops[nest.depth - 1];
    const int64_t rows = size / inner.count;
    const int64_t row_pieces = ceil_div(inner.count, memory_bound_task_elements);
    const int64_t task_rows = std::max<int64_t>(1, memory_bound_task_elements / inner.count);
    const int64_t tasks = row_pieces * ceil_div(rows, task_rows);
    const int width = operands * size * item_bytes < parallel_bytes ? 1 : num_threads();
    parallel_for(tasks, width, [&](int64_t task, int) {
        const int64_t piece = task % row_pieces;
        const int64_t first_row = task / row_pieces * task_rows;
        const int64_t begin = piece * memory_bound_task_elements;
        const int64_t count = std::min(inner.count - begin, row_pieces == 1 ? inner.count : memory_bound_task_elements);
        for (int64_t row = first_row; row < std::min(rows, first_row + task_rows); ++row) {
            auto at = nest.start;
            for (int k = 0; k < operands; ++k) at[k] += begin * inner.stride[k];
            int64_t rest = row;
            for (int depth = nest.depth - 2; depth >= 0; --depth) {
                const auto& loop = nest.loops[depth];
                for (int k = 0; k < operands; ++k) at[k] += rest % loop.count * loop.stride[k];
                rest /= loop.count;
            }
            run(at, count, inner.stride);
        }
    });
}

template <size_t operands>
bool adjacent(const std::array<int64_t, operands>& stride, int64_t count) {
    return count == 1 || std::all_of(stride.begin(), stride.end(), [](int64_t s) { return s == 1; });
}

bool goes_around_caches(int64_t elements_moved, int64_t item_bytes, bool in_place) {
    return !in_place && elements_moved * item_bytes >= streaming_bytes;
}

}  // namespace

template <class T>
void relu(TensorView<const T> input, TensorView<T> output) {
    const KernelSet<T>& kernels = kernel_set<T>(active_kernels());
    const bool around_caches = goes_around_caches(2 * output.size(), sizeof(T), input.data == output.data);
    for_each_run<2>(output.shape, {input.stride, output.stride}, sizeof(T),
                    [&](const std::array<int64_t, 2>& at, int64_t count, const std::array<int64_t, 2>& stride) {
                        const T* x = input.data + at[0];
                        T* y = output.data + at[1];
                        if (adjacent(stride, count))
                            return kernels.relu(y, x, count, around_caches && count >= least_streamed);
                        for (int64_t i = 0; i < count; ++i, x += stride[0], y += stride[1]) *y = *x <= T(0) ? T(0) : *x;
                    });
}

template <class T>
void relu_backward(TensorView<const T> grad_output, TensorView<const T> output, TensorView<T> grad_input) {
    const KernelSet<T>& kernels = kernel_set<T>(active_kernels());
    const bool around_caches = goes_around_caches(3 * output.size(), sizeof(T), grad_output.data == grad_input.data);
    for_each_run<3>(output.shape, {grad_output.stride, output.stride, grad_input.stride}, sizeof(T),
                    [&](const std::array<int64_t, 3>& at, int64_t count, const std::array<int64_t, 3>& stride) {
                        const T* g = grad_output.data + at[0];
                        const T* y = output.data + at[1];
                        T* gi = grad_input.data + at[2];
                        if (adjacent(stride, count))
                            return kernels.relu_backward(gi, g, y, count, around_caches && count >= least_streamed);
                        for (int64_t i = 0; i < count; ++i, g += stride[0], y += stride[1], gi += stride[2])
                            *gi = *y <= T(0) ? T(0) : *g;
                    });
}

template void relu(TensorView<const float>, TensorView<float>);
template void relu(TensorView<const double>, TensorView<double>);
template void relu_backward(TensorView<const float>, TensorView<const float>, TensorView<float>);
template void relu_backward(TensorView<const double>, TensorView<const double>, TensorView<double>);

}  // namespace convx
