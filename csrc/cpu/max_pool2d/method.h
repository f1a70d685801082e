// A method of max-pooling: its name, what it can compute, where it is fast, and the functions that run and explain it.
// methods.cpp has the lists. All methods of a pass give the same bits: gradients of a cell are added in row-major order
// of the windows. So the choice may depend on the batch and on the strides of arrays.
#pragma once

#include "cpu/kernels/kernel_set.h"
#include "cpu/max_pool2d/max_pool2d.h"
#include "cpu/pass_plan.h"

namespace convx {

// The arguments of the passes. One of indices and codes has data; in the forward pass one at most. Results are dense,
// in NCHW or NHWC, but for rows and images that are part of a larger array.
template <class T>
struct PoolForward {
    using Element = T;
    PoolProblem problem;
    TensorView<const T> input;
    TensorView<T> output;
    TensorView<int64_t> indices;
    TensorView<uint8_t> codes;
};

template <class T>
struct PoolBackward {
    using Element = T;
    PoolProblem problem;
    TensorView<const T> grad_output;
    TensorView<const int64_t> indices;
    TensorView<const uint8_t> codes;
    TensorView<T> grad_input;
};

enum class Outcome {
    done,
    not_applicable,  // seen on the way, in the indices: the next method in the list writes all of the result
    illegal,         // an index outside its plane, a code that names no tap of its window inside the image
};

template <class Pass>
struct PoolMethod {
    using T = typename Pass::Element;
    const char* name;
    Verdict (*supports)(const Pass&, const KernelSet<T>&);
    bool (*suits)(const Pass&, const KernelSet<T>&);  // whether it is the first choice among those behind it
    Outcome (*run)(const Pass&, const KernelSet<T>&);
    void (*describe)(const Pass&, const KernelSet<T>&, int threads, PassPlan&);
};

// The row of a driver, defined in its file by driver.h.
template <template <class> class Driver, class Pass>
const PoolMethod<Pass>& pool_method();

}  // namespace convx
