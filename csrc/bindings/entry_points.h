// What convx._cpu lends to other modules of this package: its checks and its passes, as addresses in a capsule. A
// module that linked the same code instead would bring 7 MB of kernels and a second thread pool, and the two pools
// would compete for the same processors.
#pragma once

#include "common/check.h"
#include "cpu/conv2d/conv2d.h"
#include "cpu/fused/conv2d_relu_max_pool2d.h"
#include "cpu/max_pool2d/max_pool2d.h"
#include "cpu/relu.h"

namespace convx {

template <class T>
struct CpuPasses {
    decltype(&convx::conv2d_forward<T>) conv2d_forward;
    decltype(&convx::conv2d_grad_input<T>) conv2d_grad_input;
    decltype(&convx::conv2d_grad_weight<T>) conv2d_grad_weight;
    decltype(&convx::conv2d_grad_bias<T>) conv2d_grad_bias;
    decltype(&convx::relu<T>) relu;
    decltype(&convx::relu_backward<T>) relu_backward;
    decltype(&convx::max_pool2d<T>) max_pool2d;
    bool (*max_pool2d_backward_by_indices)(const PoolProblem&, TensorView<const T>, TensorView<const int64_t>,
                                           TensorView<T>);
    bool (*max_pool2d_backward_by_codes)(const PoolProblem&, TensorView<const T>, TensorView<const uint8_t>,
                                         TensorView<T>);
    decltype(&convx::conv2d_relu_max_pool2d<T>) conv2d_relu_max_pool2d;
    decltype(&convx::conv2d_relu_max_pool2d_backward<T>) conv2d_relu_max_pool2d_backward;
};

struct CpuEntryPoints {
    decltype(&convx::check_conv2d) check_conv2d;
    decltype(&convx::check_max_pool2d) check_max_pool2d;
    decltype(&convx::check_conv2d_relu_max_pool2d) check_conv2d_relu_max_pool2d;
    decltype(&convx::check_codes_fit) check_codes_fit;
    decltype(&convx::check_dtype) check_dtype;
    decltype(&convx::check_shape) check_shape;
    decltype(&convx::user_shape) user_shape;
    decltype(&convx::find_algorithm) find_algorithm;
    CpuPasses<float> float32;
    CpuPasses<double> float64;
};

// The capsule's name has the version: the layout above is only the same for modules of one build.
constexpr const char* entry_points_attribute = "entry_points";
constexpr const char* entry_points_name = "convx entry points " CONVX_VERSION;

}  // namespace convx
