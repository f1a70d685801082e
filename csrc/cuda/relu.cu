// Elementwise, so axes may be walked in any order and direction. Bound by memory: four loads of 16 bytes an array and
// thread are in flight before the first store (Little's law on an H100: 3 TB/s x 600 ns = 1.8 MB, 14 KiB a
// multiprocessor, which 256 such threads have). No shared memory; 16 to 24 registers strided, 29 to 55 dense.
#include "cuda/relu.h"

#include <algorithm>

#include "common/array_loops.h"
#include "cuda/conv2d/tile.cuh"
#include "cuda/divisor.h"
#include "cuda/numbers.cuh"

namespace convx::cuda {

namespace {

constexpr int threads = 256;
constexpr int chunks_of_thread = 4;
constexpr int most_loops = 6;

// NaN stays NaN with its bits, -0 gives +0.
template <class T>
__device__ T apply(T value) {
    return to_sum(value) <= 0 ? T{} : value;
}
template <class T>
__device__ T apply(T grad, T output) {
    return to_sum(output) <= 0 ? T{} : grad;
}

// The last array is written.
template <class T, int arrays>
struct Dense {
    T* data[arrays];
    int64_t count;
};

template <class T>
__device__ const Chunk<T>& chunk_at(const T* data, int64_t chunk) {
    return *reinterpret_cast<const Chunk<T>*>(data + chunk * Chunk<T>::count);
}

template <class T, int arrays>
__global__ void __launch_bounds__(threads) relu_dense(Dense<T, arrays> run) {
    constexpr int inputs = arrays - 1;
    const int64_t chunks = run.count / Chunk<T>::count;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * (threads * chunks_of_thread) + threadIdx.x;
    Chunk<T> value[inputs][chunks_of_thread];
#pragma unroll
    for (int i = 0; i < chunks_of_thread; ++i)
#pragma unroll
        for (int k = 0; k < inputs; ++k)
            if (first + i * threads < chunks) value[k][i] = chunk_at(run.data[k], first + i * threads);
#pragma unroll
    for (int i = 0; i < chunks_of_thread; ++i) {
        if (first + i * threads >= chunks) continue;
        Chunk<T> result;
#pragma unroll
        for (int j = 0; j < Chunk<T>::count; ++j) {
            if constexpr (inputs == 1)
                result.value[j] = apply(value[0][i].value[j]);
            else
                result.value[j] = apply(value[0][i].value[j], value[1][i].value[j]);
        }
        *reinterpret_cast<Chunk<T>*>(run.data[inputs] + (first + i * threads) * Chunk<T>::count) = result;
    }
    const int64_t tail = chunks * Chunk<T>::count + threadIdx.x;
    if (blockIdx.x == 0 && tail < run.count) {
        if constexpr (inputs == 1)
            run.data[inputs][tail] = apply(run.data[0][tail]);
        else
            run.data[inputs][tail] = apply(run.data[0][tail], run.data[1][tail]);
    }
}

// Loops from the innermost; fewer than 2^31 elements in all.
template <class T, int arrays>
struct Strided {
    T* data[arrays];
    Divisor size[most_loops];
    int64_t stride[arrays][most_loops];
    int depth, count;
};

template <class T, int arrays>
__global__ void __launch_bounds__(threads) relu_strided(Strided<T, arrays> nest) {
    constexpr int inputs = arrays - 1;
    int index = static_cast<int>(blockIdx.x) * threads + static_cast<int>(threadIdx.x);
    if (index >= nest.count) return;
    int64_t offset[arrays] = {};
#pragma unroll
    for (int loop = 0; loop < most_loops; ++loop) {
        if (loop >= nest.depth) break;
        const int outer = nest.size[loop].quotient(index), position = index - outer * nest.size[loop].value;
#pragma unroll
        for (int k = 0; k < arrays; ++k) offset[k] += position * nest.stride[k][loop];
        index = outer;
    }
    if constexpr (inputs == 1)
        nest.data[inputs][offset[inputs]] = apply(nest.data[0][offset[0]]);
    else
        nest.data[inputs][offset[inputs]] = apply(nest.data[0][offset[0]], nest.data[1][offset[1]]);
}

// The launches over the loops of some arrays, the last of which is written.
template <class T, int arrays>
class Walk {
public:
    Walk(const Array* const (&operands)[arrays], Stream stream) : nest_(operands, LoopOrder::any), stream_(stream) {
        for (int k = 0; k < arrays; ++k) data_[k] = static_cast<T*>(operands[k]->data) + nest_.start[k];
    }

    void run() {
        if (nest_.size > 0) run(0);
    }

private:
    using Loop = typename ArrayLoops<arrays>::Loop;

    // Loops [outer, depth): in one launch, or cut at the outermost.
    void run(int outer) {
        int64_t count = 1;
        for (int i = outer; i < nest_.depth; ++i) count *= nest_.loops[i].count;
        if (is_dense(outer)) return start_dense(count);
        constexpr int64_t most_elements = int64_t{1} << 30;
        if (nest_.depth - outer <= most_loops && count <= most_elements)
            return start_strided(outer, static_cast<int>(count));
        const Loop whole = nest_.loops[outer];
        const bool single = nest_.depth - outer > most_loops;
        const int64_t step = single ? 1 : std::max<int64_t>(1, whole.count / (count / most_elements + 1));
        for (int64_t first = 0; first < whole.count; first += step) {
            nest_.loops[outer].count = std::min(step, whole.count - first);
            run(nest_.loops[outer].count == 1 ? outer + 1 : outer);
            for (int k = 0; k < arrays; ++k) data_[k] += step * whole.stride[k];
        }
        const int64_t steps = (whole.count + step - 1) / step;
        for (int k = 0; k < arrays; ++k) data_[k] -= steps * step * whole.stride[k];
        nest_.loops[outer] = whole;
    }

    bool is_dense(int outer) const {
        if (nest_.depth - outer > 1) return false;
        for (int k = 0; k < arrays; ++k) {
            if (nest_.depth > outer && nest_.loops[outer].stride[k] != 1) return false;
            if (reinterpret_cast<uintptr_t>(data_[k]) % 16 != 0) return false;
        }
        return true;
    }

    void start_dense(int64_t count) const {
        Dense<T, arrays> dense{};
        std::copy_n(data_, arrays, dense.data);
        dense.count = count;
        constexpr int64_t of_block = int64_t{threads} * chunks_of_thread * Chunk<T>::count;
        const int64_t blocks = std::max<int64_t>(1, (count + of_block - 1) / of_block);
        launch(relu_dense<T, arrays>, dim3(static_cast<unsigned>(blocks)), threads, 0, stream_, dense);
    }

    void start_strided(int outer, int count) const {
        Strided<T, arrays> nest{};
        std::copy_n(data_, arrays, nest.data);
        nest.depth = nest_.depth - outer;
        nest.count = count;
        for (int i = 0; i < nest.depth; ++i) {
            nest.size[i] = Divisor(nest_.loops[nest_.depth - 1 - i].count);
            for (int k = 0; k < arrays; ++k) nest.stride[k][i] = nest_.loops[nest_.depth - 1 - i].stride[k];
        }
        const int blocks = (count + threads - 1) / threads;
        launch(relu_strided<T, arrays>, dim3(static_cast<unsigned>(blocks)), threads, 0, stream_, nest);
    }

    T* data_[arrays];
    ArrayLoops<arrays> nest_;
    Stream stream_;
};

}  // namespace

void relu(const Array& input, const Array& output, Stream stream) {
    with_type(input.info.dtype,
              [&](auto type) { Walk<typename decltype(type)::T, 2>({&input, &output}, stream).run(); });
}

void relu_backward(const Array& grad_output, const Array& output, const Array& grad_input, Stream stream) {
    with_type(output.info.dtype, [&](auto type) {
        Walk<typename decltype(type)::T, 3>({&grad_output, &output, &grad_input}, stream).run();
    });
}

}  // namespace convx::cuda
