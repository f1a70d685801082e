// ReLU with a mask. Bits follow the elements in row-major order, so axes may be merged but not exchanged.
#include <algorithm>

#include "common/array_loops.h"
#include "common/rounding.h"
#include "cpu/dispatch.h"
#include "cpu/memory_bound.h"
#include "cpu/relu.h"
#include "cpu/runtime/registry.h"
#include "cpu/runtime/thread_pool.h"

namespace convx {

namespace {

using Loops = ArrayLoops<2>;

// Elements that strided arrays pass through in a buffer on the stack, in L1; whole bytes of the mask.
constexpr int64_t buffer_elements = 1024;
static_assert(memory_bound_task_elements % buffer_elements == 0 && buffer_elements % 8 == 0);

// visit(from offset, to offset, count, from stride, to stride, place) for elements [first, first + count) in row-major
// order: pieces of the innermost loop.
template <class Visit>
void for_each_piece(const Loops& nest, int64_t first, int64_t count, const Visit& visit) {
    const Loops::Loop& inner = nest.loops[nest.depth - 1];
    for (int64_t place = 0; place < count;) {
        const int64_t start = (first + place) % inner.count;
        int64_t rest = (first + place) / inner.count, from = start * inner.stride[0], to = start * inner.stride[1];
        for (int depth = nest.depth - 2; depth >= 0; --depth) {
            from += rest % nest.loops[depth].count * nest.loops[depth].stride[0];
            to += rest % nest.loops[depth].count * nest.loops[depth].stride[1];
            rest /= nest.loops[depth].count;
        }
        const int64_t length = std::min(inner.count - start, count - place);
        visit(from, to, length, inner.stride[0], inner.stride[1], place);
        place += length;
    }
}

// run(to, from, first element, count) over dense pieces, of arrays or of buffers; each begins with a byte of the mask.
template <class T, class Run>
void for_each_task(const Loops& loops, const T* from, T* to, const Run& run) {
    const int width = 2 * loops.size * static_cast<int64_t>(sizeof(T)) < parallel_bytes ? 1 : num_threads();
    parallel_for(ceil_div(loops.size, memory_bound_task_elements), width, [&](int64_t task, int) {
        const int64_t begin = task * memory_bound_task_elements;
        const int64_t end = std::min(loops.size, begin + memory_bound_task_elements);
        if (loops.is_dense()) return run(to + begin, from + begin, begin, end - begin);
        T buffer[buffer_elements];
        for (int64_t first = begin; first < end; first += buffer_elements) {
            const int64_t count = std::min(buffer_elements, end - first);
            for_each_piece(loops, first, count,
                           [&](int64_t at, int64_t, int64_t length, int64_t step, int64_t, int64_t place) {
                               for (int64_t i = 0; i < length; ++i) buffer[place + i] = from[at + i * step];
                           });
            run(buffer, buffer, first, count);
            for_each_piece(loops, first, count,
                           [&](int64_t, int64_t at, int64_t length, int64_t, int64_t step, int64_t place) {
                               for (int64_t i = 0; i < length; ++i) to[at + i * step] = buffer[place + i];
                           });
        }
    });
}

template <class T>
bool goes_around_caches(const Loops& loops, const T* from, const T* to) {
    return loops.is_dense() && from != to && 2 * loops.size * static_cast<int64_t>(sizeof(T)) >= streaming_bytes;
}

// kernel(to, bytes of the mask, from, count, around caches) over all tasks.
template <class T, class Kernel>
void run(const Array& input, const Array& output, const Array& mask, const Kernel& kernel) {
    const Loops loops({&input, &output}, LoopOrder::row_major);
    const T* const from = input.as<const T>();
    T* const to = output.as<T>();
    const bool around_caches = goes_around_caches(loops, from, to);
    for_each_task(loops, from, to, [&](T* results, const T* values, int64_t first, int64_t count) {
        kernel(results, mask.as<uint8_t>() + first / 8, values, count, around_caches);
    });
}

}  // namespace

void relu_mask(const Array& input, const Array& output, const Array& mask) {
    dispatch(input.info.dtype, [&](auto zero) {
        run<decltype(zero)>(input, output, mask, kernel_set<decltype(zero)>(active_kernels()).relu_mask);
    });
}

void relu_mask_backward(const Array& grad_output, const Array& mask, const Array& grad_input) {
    dispatch(grad_output.info.dtype, [&](auto zero) {
        using T = decltype(zero);
        const auto kernel = kernel_set<T>(active_kernels()).relu_mask_backward;
        run<T>(grad_output, grad_input, mask,
               [kernel](T* to, const uint8_t* bits, const T* from, int64_t count, bool around_caches) {
                   kernel(to, from, bits, count, around_caches);
               });
    });
}

}  // namespace convx
