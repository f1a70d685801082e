// Elementwise, so axes may be walked in any order and direction. Bound by memory: four loads of 16 bytes an array and
// thread are in flight before the first store (Little's law on an H100: 3 TB/s x 600 ns = 1.8 MB, 14 KiB a
// multiprocessor, which 256 such threads have). No shared memory; 22 to 36 registers strided, 29 to 55 dense.
#include "cuda/relu.h"

#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/numbers.cuh"
#include "cuda/strided_loops.cuh"

namespace convx::cuda {

namespace {

constexpr int threads = 256;
constexpr int chunks_of_thread = 4;

// NaN stays NaN with its bits, -0 gives +0. Forward, the value decides about itself.
template <class T>
__device__ T gated(T value, T decides) {
    return to_sum(decides) <= 0 ? T{} : value;
}

// The last array is written, the one before it decides.
template <class T, int arrays>
struct Dense {
    T* data[arrays];
    int64_t count;
};

template <class T, int arrays>
__global__ void __launch_bounds__(threads) relu_dense(Dense<T, arrays> run) {
    constexpr int inputs = arrays - 1, of_chunk = Chunk<T>::count;
    const int64_t chunks = run.count / of_chunk;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * (threads * chunks_of_thread) + threadIdx.x;
    Chunk<T> value[inputs][chunks_of_thread];
#pragma unroll
    for (int i = 0; i < chunks_of_thread; ++i)
#pragma unroll
        for (int k = 0; k < inputs; ++k)
            if (first + i * threads < chunks)
                value[k][i] = load_chunk<of_chunk>(run.data[k] + (first + i * threads) * of_chunk);
#pragma unroll
    for (int i = 0; i < chunks_of_thread; ++i) {
        if (first + i * threads >= chunks) continue;
        Chunk<T> result;
#pragma unroll
        for (int j = 0; j < of_chunk; ++j) result.value[j] = gated(value[0][i].value[j], value[inputs - 1][i].value[j]);
        store_chunk(run.data[inputs] + (first + i * threads) * of_chunk, result);
    }
    const int64_t tail = chunks * of_chunk + threadIdx.x;
    if (blockIdx.x == 0 && tail < run.count)
        run.data[inputs][tail] = gated(run.data[0][tail], run.data[inputs - 1][tail]);
}

template <class T, int arrays, bool far>
struct Strided {
    __device__ void operator()(int64_t index) const {
        int64_t at[arrays];
        loops.template find<far>(index, at);
        data[arrays - 1][at[arrays - 1]] = gated(data[0][at[0]], data[arrays - 2][at[arrays - 2]]);
    }

    T* data[arrays];
    StridedLoops<arrays> loops;
};

template <class T, int arrays>
void run(const Array* const (&operands)[arrays], Stream stream) {
    const ArrayLoops<arrays> nest(operands, LoopOrder::any);
    if (nest.size == 0) return;
    Dense<T, arrays> dense{{}, nest.size};
    for (int k = 0; k < arrays; ++k) dense.data[k] = static_cast<T*>(operands[k]->data) + nest.start[k];
    const auto is_aligned = [](T* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
    if (nest.is_dense() && std::all_of(dense.data, dense.data + arrays, is_aligned)) {
        constexpr int64_t of_block = int64_t{threads} * chunks_of_thread * Chunk<T>::count;
        return launch(relu_dense<T, arrays>, grid(ceil_div(nest.size, of_block)), threads, 0, stream, dense);
    }
    const StridedLoops<arrays> loops(nest);
    loops.with_far([&](auto far) {
        Strided<T, arrays, far()> strided{{}, loops};
        std::copy_n(dense.data, arrays, strided.data);
        launch_each<threads>(nest.size, strided, stream);
    });
}

}  // namespace

void relu(const Array& input, const Array& output, Stream stream) {
    with_type(input.info.dtype, [&](auto type) { run<typename decltype(type)::T, 2>({&input, &output}, stream); });
}

void relu_backward(const Array& grad_output, const Array& output, const Array& grad_input, Stream stream) {
    with_type(output.info.dtype,
              [&](auto type) { run<typename decltype(type)::T, 3>({&grad_output, &output, &grad_input}, stream); });
}

}  // namespace convx::cuda
