#include "cpu/relu_mask.h"

#include <algorithm>

#include "common/rounding.h"
#include "cpu/memory_bound.h"
#include "cpu/runtime/registry.h"
#include "cpu/runtime/thread_pool.h"

namespace convx {

namespace {

// Elements that strided arrays pass through in a buffer on the stack, in L1; whole bytes of the mask.
constexpr int64_t buffer_elements = 1024;
static_assert(memory_bound_task_elements % buffer_elements == 0 && buffer_elements % 8 == 0);

// visit(from offset, to offset, count, from stride, to stride, place) for elements [first, first + count) in row-major
// order: pieces of the innermost loop.
template <class Visit>
void for_each_piece(const OrderedLoops& nest, int64_t first, int64_t count, const Visit& visit) {
    const OrderedLoops::Loop& inner = nest.loops[nest.depth - 1];
    for (int64_t place = 0; place < count;) {
        const int64_t start = (first + place) % inner.count;
        int64_t rest = (first + place) / inner.count, from = start * inner.from, to = start * inner.to;
        for (int depth = nest.depth - 2; depth >= 0; --depth) {
            from += rest % nest.loops[depth].count * nest.loops[depth].from;
            to += rest % nest.loops[depth].count * nest.loops[depth].to;
            rest /= nest.loops[depth].count;
        }
        const int64_t length = std::min(inner.count - start, count - place);
        visit(from, to, length, inner.from, inner.to, place);
        place += length;
    }
}

// run(to, from, first element, count) over dense pieces, of arrays or of buffers; each begins with a byte of the mask.
template <class T, class Run>
void for_each_task(const OrderedLoops& loops, const T* from, T* to, const Run& run) {
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
bool goes_around_caches(const OrderedLoops& loops, const T* from, const T* to) {
    return loops.is_dense() && from != to && 2 * loops.size * static_cast<int64_t>(sizeof(T)) >= streaming_bytes;
}

}  // namespace

template <class T>
void relu_mask(const OrderedLoops& loops, const T* input, T* output, uint8_t* mask) {
    const KernelSet<T>& kernels = kernel_set<T>(active_kernels());
    const bool around_caches = goes_around_caches(loops, input, output);
    for_each_task(loops, input, output, [&](T* to, const T* from, int64_t first, int64_t count) {
        kernels.relu_mask(to, mask + first / 8, from, count, around_caches);
    });
}

template <class T>
void relu_mask_backward(const OrderedLoops& loops, const T* grad_output, const uint8_t* mask, T* grad_input) {
    const KernelSet<T>& kernels = kernel_set<T>(active_kernels());
    const bool around_caches = goes_around_caches(loops, grad_output, grad_input);
    for_each_task(loops, grad_output, grad_input, [&](T* to, const T* from, int64_t first, int64_t count) {
        kernels.relu_mask_backward(to, from, mask + first / 8, count, around_caches);
    });
}

template void relu_mask(const OrderedLoops&, const float*, float*, uint8_t*);
template void relu_mask(const OrderedLoops&, const double*, double*, uint8_t*);
template void relu_mask_backward(const OrderedLoops&, const float*, const uint8_t*, float*);
template void relu_mask_backward(const OrderedLoops&, const double*, const uint8_t*, double*);

}  // namespace convx
