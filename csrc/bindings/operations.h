// The operations of a backend as functions of its module: positional arguments, results in the caller's arrays.
#pragma once

#include "bindings/conv2d.h"
#include "bindings/conv2d_relu_max_pool2d.h"
#include "bindings/conv_transpose2d.h"
#include "bindings/fast_call.h"
#include "bindings/max_pool2d.h"
#include "bindings/relu.h"

namespace convx {

template <class Backend>
inline PyMethodDef operations[] = {
    FastCall<&conv2d_op<Backend>>::named("conv2d"),
    FastCall<&conv2d_backward_op<Backend>>::named("conv2d_backward"),
    FastCall<&conv2d_grad_norms_op<Backend>>::named("conv2d_grad_norms"),
    FastCall<&conv_transpose2d_op<Backend>>::named("conv_transpose2d"),
    FastCall<&conv_transpose2d_backward_op<Backend>>::named("conv_transpose2d_backward"),
    FastCall<&relu_op<Backend>>::named("relu"),
    FastCall<&relu_backward_op<Backend>>::named("relu_backward"),
    FastCall<&max_pool2d_op<Backend>>::named("max_pool2d"),
    FastCall<&max_pool2d_backward_op<Backend>>::named("max_pool2d_backward"),
    FastCall<&conv2d_relu_max_pool2d_op<Backend>>::named("conv2d_relu_max_pool2d"),
    FastCall<&conv2d_relu_max_pool2d_backward_op<Backend>>::named("conv2d_relu_max_pool2d_backward"),
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace convx
