// ReLU with one bit an element, and its gradient from the bits. Bits follow the elements in row-major order of the
// axes, so these are merged where both arrays allow it but never exchanged. A warp takes 32 adjacent elements at a
// time, whose bits are a ballot; four such words a thread are in flight. Bound by memory: loads of 128 bytes a warp, of
// which the mask adds 1/32. No shared memory.
#include "cuda/relu.h"

#include <type_traits>

#include "common/array_loops.h"
#include "common/rounding.h"
#include "cuda/divisor.h"
#include "cuda/numbers.cuh"

namespace convx::cuda {

namespace {

constexpr int threads = 256;
constexpr int64_t small = int64_t{1} << 31;

// Loops from the innermost. `far`: of 2^31 elements and more, whose indices take real divisions.
struct OrderedLoops {
    int depth = 0;
    int64_t count = 1;
    Divisor divisor[Shape::most_axes];  // where count < 2^31
    int64_t size[Shape::most_axes];
    int64_t from[Shape::most_axes], to[Shape::most_axes];  // strides

    template <bool far>
    __device__ void find(int64_t index, int64_t& from_offset, int64_t& to_offset) const {
        from_offset = to_offset = 0;
        for (int loop = 0; loop < depth; ++loop) {
            int64_t outer = 0;
            if (loop + 1 < depth) outer = far ? index / size[loop] : divisor[loop].quotient(static_cast<int>(index));
            const int64_t position = index - outer * size[loop];
            from_offset += position * from[loop];
            to_offset += position * to[loop];
            index = outer;
        }
    }
};

OrderedLoops ordered_loops(const Array& from, const Array& to) {
    const ArrayLoops<2> nest({&from, &to}, LoopOrder::row_major);
    OrderedLoops loops;
    loops.count = nest.size;
    for (int i = nest.depth; i-- > 0; ++loops.depth) {
        loops.size[loops.depth] = nest.loops[i].count;
        loops.from[loops.depth] = nest.loops[i].stride[0];
        loops.to[loops.depth] = nest.loops[i].stride[1];
        if (nest.size > 0 && nest.size < small) loops.divisor[loops.depth] = Divisor(nest.loops[i].count);
    }
    return loops;
}

template <class T>
struct ReluMask {
    const T* from;
    T* to;
    uint8_t* mask;  // written, or read with a stride
    int64_t mask_stride;
    OrderedLoops loops;
};

// Of a thread.
template <bool far>
constexpr int words = far ? 1 : 4;

// The first element of a thread; the next ones are 32 apart.
template <bool far>
__device__ int64_t first_of_thread() {
    constexpr int of_warp = 32 * words<far>;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    return (static_cast<int64_t>(blockIdx.x) * (threads / 32) + warp) * of_warp + lane;
}

template <class T, bool far>
__global__ void __launch_bounds__(threads) relu_mask_kernel(ReluMask<T> relu) {
    const int64_t first = first_of_thread<far>();
    const int lane = static_cast<int>(threadIdx.x) % 32;
    T value[words<far>];
    int64_t to[words<far>] = {};
#pragma unroll
    for (int i = 0; i < words<far>; ++i) {
        const int64_t index = first + i * 32;
        value[i] = T{};
        if (index >= relu.loops.count) continue;
        int64_t from;
        relu.loops.template find<far>(index, from, to[i]);
        value[i] = relu.from[from];
    }
#pragma unroll
    for (int i = 0; i < words<far>; ++i) {
        const int64_t index = first + i * 32;
        const bool kept = !(to_sum(value[i]) <= 0);
        const uint32_t bits = ballot(kept);
        if (index < relu.loops.count) relu.to[to[i]] = kept ? value[i] : T{};
        const int64_t byte = (index - lane) / 8 + lane;
        if (lane < 4 && byte * 8 < relu.loops.count) relu.mask[byte] = static_cast<uint8_t>(bits >> (8 * lane));
    }
}

template <class T, bool far>
__global__ void __launch_bounds__(threads) relu_mask_backward_kernel(ReluMask<T> relu) {
    const int64_t first = first_of_thread<far>();
    T value[words<far>];
    int64_t to[words<far>] = {};
    bool kept[words<far>];
#pragma unroll
    for (int i = 0; i < words<far>; ++i) {
        const int64_t index = first + i * 32;
        if (index >= relu.loops.count) continue;
        int64_t from;
        relu.loops.template find<far>(index, from, to[i]);
        value[i] = relu.from[from];
        kept[i] = relu.mask[index / 8 * relu.mask_stride] >> (index % 8) & 1;
    }
#pragma unroll
    for (int i = 0; i < words<far>; ++i)
        if (first + i * 32 < relu.loops.count) relu.to[to[i]] = kept[i] ? value[i] : T{};
}

// start(argument, blocks for all elements, std::bool_constant<far>).
template <class Start>
void run(const Array& from, const Array& to, const Array& mask, const Start& start) {
    with_type(from.info.dtype, [&](auto type) {
        using T = typename decltype(type)::T;
        const ReluMask<T> relu{from.as<T>(), to.as<T>(), mask.as<uint8_t>(), mask.stride[0], ordered_loops(from, to)};
        const auto blocks = [&](int64_t of_block) {
            return dim3(static_cast<unsigned>((relu.loops.count + of_block - 1) / of_block));
        };
        if (relu.loops.count == 0) return;
        if (relu.loops.depth <= 1 || relu.loops.count < small)
            start(relu, blocks(threads * words<false>), std::false_type{});
        else
            start(relu, blocks(threads * words<true>), std::true_type{});
    });
}

}  // namespace

void relu_mask(const Array& input, const Array& output, const Array& mask, Stream stream) {
    run(input, output, mask, [&](const auto& relu, dim3 grid, auto far) {
        using T = std::remove_reference_t<decltype(*relu.to)>;
        launch(relu_mask_kernel<T, far()>, grid, threads, 0, stream, relu);
    });
}

void relu_mask_backward(const Array& grad_output, const Array& mask, const Array& grad_input, Stream stream) {
    run(grad_output, grad_input, mask, [&](const auto& relu, dim3 grid, auto far) {
        using T = std::remove_reference_t<decltype(*relu.to)>;
        launch(relu_mask_backward_kernel<T, far()>, grid, threads, 0, stream, relu);
    });
}

}  // namespace convx::cuda
