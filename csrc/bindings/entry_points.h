// What convx._cpu lends to other modules of this package: its checks and its passes, as addresses in a capsule. A
// module that linked the same code instead would bring 7 MB of kernels and a second thread pool, and the two pools
// would compete for the same processors.
#pragma once

#include "bindings/cpu_backend.h"

namespace convx {

struct CpuEntryPoints {
    decltype(&convx::check_conv2d) check_conv2d = &convx::check_conv2d;
    decltype(&convx::check_max_pool2d) check_max_pool2d = &convx::check_max_pool2d;
    decltype(&convx::check_conv2d_relu_max_pool2d) check_conv2d_relu_max_pool2d = &convx::check_conv2d_relu_max_pool2d;
    decltype(&convx::check_codes_fit) check_codes_fit = &convx::check_codes_fit;
    decltype(&convx::check_dtype) check_dtype = &convx::check_dtype;
    decltype(&convx::check_shape) check_shape = &convx::check_shape;
    decltype(&convx::user_shape) user_shape = &convx::user_shape;
    decltype(&convx::find_algorithm) find_algorithm = &convx::find_algorithm;
    decltype(&Cpu::conv2d_forward) conv2d_forward = &Cpu::conv2d_forward;
    decltype(&Cpu::conv2d_grad_input) conv2d_grad_input = &Cpu::conv2d_grad_input;
    decltype(&Cpu::conv2d_grad_weight) conv2d_grad_weight = &Cpu::conv2d_grad_weight;
    decltype(&Cpu::conv2d_grad_bias) conv2d_grad_bias = &Cpu::conv2d_grad_bias;
    decltype(&convx::relu) relu = &convx::relu;
    decltype(&convx::relu_backward) relu_backward = &convx::relu_backward;
    decltype(&Cpu::max_pool2d) max_pool2d = &Cpu::max_pool2d;
    decltype(&Cpu::max_pool2d_backward) max_pool2d_backward = &Cpu::max_pool2d_backward;
    decltype(&Cpu::conv2d_relu_max_pool2d) conv2d_relu_max_pool2d = &Cpu::conv2d_relu_max_pool2d;
    decltype(&Cpu::conv2d_relu_max_pool2d_backward) conv2d_relu_max_pool2d_backward =
        &Cpu::conv2d_relu_max_pool2d_backward;
};

// The capsule's name has the version: the layout above is only the same for modules of one build.
constexpr const char* entry_points_attribute = "entry_points";
constexpr const char* entry_points_name = "convx entry points " CONVX_VERSION;

}  // namespace convx
