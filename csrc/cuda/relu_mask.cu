// ReLU with one bit an element, and its gradient from the bits. Bits follow the elements in row-major order of the
// axes, so these are merged where both arrays allow it but never exchanged. A warp takes 32 adjacent elements at a
// time, whose bits are a ballot; four such words a thread are in flight. Bound by memory: loads of 128 bytes a warp, of
// which the mask adds 1/32. No shared memory.
#include "cuda/relu.h"

#include "cuda/launch.cuh"
#include "cuda/numbers.cuh"
#include "cuda/strided_loops.cuh"

namespace convx::cuda {

namespace {

constexpr int threads = 256;

template <class T>
struct ReluMask {
    const T* from;
    T* to;
    uint8_t* mask;  // written, or read with a stride
    int64_t mask_stride;
    StridedLoops<2> loops;
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
    int64_t at[words<far>][2];
#pragma unroll
    for (int i = 0; i < words<far>; ++i) {
        const int64_t index = first + i * 32;
        value[i] = T{};
        if (index >= relu.loops.count) continue;
        relu.loops.template find<far>(index, at[i]);
        value[i] = relu.from[at[i][0]];
    }
#pragma unroll
    for (int i = 0; i < words<far>; ++i) {
        const int64_t index = first + i * 32;
        const bool kept = !(to_sum(value[i]) <= 0);
        const uint32_t bits = ballot(kept);
        if (index < relu.loops.count) relu.to[at[i][1]] = kept ? value[i] : T{};
        const int64_t byte = (index - lane) / 8 + lane;
        if (lane < 4 && byte * 8 < relu.loops.count) relu.mask[byte] = static_cast<uint8_t>(bits >> (8 * lane));
    }
}

template <class T, bool far>
__global__ void __launch_bounds__(threads) relu_mask_backward_kernel(ReluMask<T> relu) {
    const int64_t first = first_of_thread<far>();
    T value[words<far>];
    int64_t at[words<far>][2];
    bool kept[words<far>];
#pragma unroll
    for (int i = 0; i < words<far>; ++i) {
        const int64_t index = first + i * 32;
        if (index >= relu.loops.count) continue;
        relu.loops.template find<far>(index, at[i]);
        value[i] = relu.from[at[i][0]];
        kept[i] = relu.mask[index / 8 * relu.mask_stride] >> (index % 8) & 1;
    }
#pragma unroll
    for (int i = 0; i < words<far>; ++i)
        if (first + i * 32 < relu.loops.count) relu.to[at[i][1]] = kept[i] ? value[i] : T{};
}

// start(argument, grid for all elements, std::bool_constant<far>).
template <class Start>
void run(const Array& from, const Array& to, const Array& mask, const Start& start) {
    with_type(from.info.dtype, [&](auto type) {
        using T = typename decltype(type)::T;
        const StridedLoops<2> loops({{&from, &to}, LoopOrder::row_major});
        if (loops.count == 0) return;
        const ReluMask<T> relu{from.as<T>(), to.as<T>(), mask.as<uint8_t>(), mask.stride[0], loops};
        loops.with_far([&](auto far) { start(relu, grid(ceil_div(loops.count, threads * words<far()>)), far); });
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
