#include "bindings/entry_points.h"

#include "bindings/cpu_ops.h"

namespace convx {

namespace {

template <class T>
constexpr CpuPasses<T> passes() {
    return {&conv2d_forward<T>,
            &conv2d_grad_input<T>,
            &conv2d_grad_weight<T>,
            &conv2d_grad_bias<T>,
            &relu<T>,
            &relu_backward<T>,
            &max_pool2d<T>,
            &max_pool2d_backward<T>,
            &max_pool2d_backward<T>,
            &conv2d_relu_max_pool2d<T>,
            &conv2d_relu_max_pool2d_backward<T>};
}

constexpr CpuEntryPoints entry_points{&check_conv2d,    &check_max_pool2d, &check_conv2d_relu_max_pool2d,
                                      &check_codes_fit, &check_dtype,      &check_shape,
                                      &user_shape,      &find_algorithm,   passes<float>(),
                                      passes<double>()};

}  // namespace

py::capsule entry_points_capsule() { return py::capsule(&entry_points, entry_points_name); }

}  // namespace convx
