// convx._cpu: the names that Python sees. Functions are positional; python/convx/ops.py has the keywords, the defaults
// and the documentation.
#include <pybind11/stl.h>

#include "bindings/cpu_ops.h"
#include "bindings/default_algorithm.h"
#include "bindings/entry_points.h"
#include "bindings/errors.h"
#include "bindings/fast_call.h"
#include "bindings/module.h"
#include "bindings/options.h"
#include "bindings/prepared_weight.h"
#include "cpu/conv2d/methods.h"
#include "cpu/runtime/cpuid.h"
#include "cpu/runtime/registry.h"
#include "cpu/runtime/roofline.h"
#include "cpu/runtime/thread_pool.h"
#include "cpu/runtime/workspace.h"

namespace py = pybind11;

namespace {

void set_num_threads(py::handle n) {
    const int64_t count = convx::integer("set_num_threads", "n", n);
    if (count < 1 || count > 4096)
        throw convx::ShapeError("set_num_threads: n is " + std::to_string(count) + ", expected 1 to 4096");
    convx::set_num_threads(static_cast<int>(count));
}

std::string get_default_algorithm() {
    return convx::algorithm_names()[static_cast<size_t>(convx::default_algorithm())];
}

void set_default_algorithm(py::handle algorithm) {
    convx::set_default_algorithm(convx::default_algorithm_option("set_default_algorithm", algorithm));
}

// Addresses of GOMP_parallel, omp_get_thread_num and omp_get_max_threads.
void use_team(uintptr_t parallel, uintptr_t thread_number, uintptr_t most_threads) {
    convx::Team team;
    team.parallel = reinterpret_cast<decltype(team.parallel)>(parallel);
    team.thread_number = reinterpret_cast<decltype(team.thread_number)>(thread_number);
    team.most_threads = reinterpret_cast<decltype(team.most_threads)>(most_threads);
    convx::use_team(&team);
}

py::dict cpu_features() {
    const convx::CpuFeatures& cpu = convx::cpu_features();
    py::dict features;
    features["avx2"] = cpu.avx2;
    features["fma"] = cpu.fma;
    features["avx512f"] = cpu.avx512f;
    features["avx512bw"] = cpu.avx512bw;
    features["avx512dq"] = cpu.avx512dq;
    features["avx512vl"] = cpu.avx512vl;
    return features;
}

py::dict config() {
    py::dict dict;
    dict["version"] = CONVX_VERSION;
    dict["isa"] = convx::active_kernels().name;
    dict["isa_reason"] = convx::isa_reason();
    dict["isas"] = py::cast(convx::available_isas());
    dict["cpu"] = convx::cpu_features().brand;
    dict["cpu_features"] = cpu_features();
    py::dict caches;
    caches["l1d"] = convx::l1d_bytes();
    caches["l2"] = convx::l2_bytes();
    caches["l3"] = convx::l3_bytes();
    dict["cache_bytes"] = caches;
    dict["threads"] = convx::num_threads();
    dict["threads_reason"] = convx::num_threads_reason();
    dict["algorithm"] = get_default_algorithm();
    dict["algorithm_reason"] = convx::default_algorithm_reason();
    dict["uses_team"] = convx::uses_team();
    dict["spin_us"] = convx::spin_microseconds();
    dict["workspace_cached_bytes"] = convx::workspace_cached_bytes();
#ifdef __clang__
    dict["compiler"] = __VERSION__;
#else
    dict["compiler"] = "g++ " __VERSION__;
#endif
    return dict;
}

PyMethodDef operations[] = {
    convx::FastCall<&convx::conv2d_op>::named("conv2d"),
    convx::FastCall<&convx::conv2d_backward_op>::named("conv2d_backward"),
    convx::FastCall<&convx::conv2d_grad_norms_op>::named("conv2d_grad_norms"),
    convx::FastCall<&convx::conv_transpose2d_op>::named("conv_transpose2d"),
    convx::FastCall<&convx::conv_transpose2d_backward_op>::named("conv_transpose2d_backward"),
    convx::FastCall<&convx::relu_op>::named("relu"),
    convx::FastCall<&convx::relu_backward_op>::named("relu_backward"),
    convx::FastCall<&convx::max_pool2d_op>::named("max_pool2d"),
    convx::FastCall<&convx::max_pool2d_backward_op>::named("max_pool2d_backward"),
    convx::FastCall<&convx::conv2d_relu_max_pool2d_op>::named("conv2d_relu_max_pool2d"),
    convx::FastCall<&convx::conv2d_relu_max_pool2d_backward_op>::named("conv2d_relu_max_pool2d_backward"),
    convx::FastCall<&convx::prepare_weight_op>::named("prepare_weight"),
    convx::FastCall<&convx::resolve_conv2d_op>::named("resolve_conv2d"),
    convx::FastCall<&convx::resolve_conv_transpose2d_op>::named("resolve_conv_transpose2d"),
    convx::FastCall<&convx::resolve_relu_op>::named("resolve_relu"),
    convx::FastCall<&convx::resolve_max_pool2d_op>::named("resolve_max_pool2d"),
    convx::FastCall<&convx::resolve_conv2d_relu_max_pool2d_op>::named("resolve_conv2d_relu_max_pool2d"),
    convx::FastCall<&convx::resolve_conv2d_layer_op>::named("resolve_conv2d_layer"),
    convx::FastCall<&convx::resolve_conv_transpose2d_layer_op>::named("resolve_conv_transpose2d_layer"),
    convx::FastCall<&convx::resolve_max_pool2d_layer_op>::named("resolve_max_pool2d_layer"),
    convx::FastCall<&convx::resolve_linear_layer_op>::named("resolve_linear_layer"),
    convx::FastCall<&convx::truth_op>::named("truth"),
    convx::FastCall<&convx::integer_op>::named("integer"),
    convx::FastCall<&convx::array_at_op>::named("array_at"),
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

CONVX_PYTHON_MODULE(_cpu, module) {
    convx::add_methods(convx::method_names());
    module.attr("ShapeError") = convx::new_shape_error();
    convx::register_errors(module.attr("ShapeError"));
    convx::add_functions(module, operations);
    module.def("operations_with", [](py::handle allocate) { return convx::functions_with(allocate, operations); });
    convx::register_prepared_weight(module);
    module.attr(convx::entry_points_attribute) = convx::entry_points_capsule();
    module.def("explain", &convx::explain_op);
    module.def("get_num_threads", &convx::num_threads);
    module.def("set_num_threads", &set_num_threads);
    module.def("get_default_algorithm", &get_default_algorithm);
    module.def("set_default_algorithm", &set_default_algorithm);
    module.def("use_team", &use_team);
    module.def("config", &config);
    module.def("set_isa", &convx::set_isa);
    module.def("set_max_pool2d_method", &convx::set_max_pool2d_method);
    module.def("workspace_release", &convx::workspace_release);
    module.def(
        "fma_peak",
        [](const std::string& dtype, double seconds) {
            return convx::fma_peak(dtype == "float64" ? convx::DType::float64 : convx::DType::float32, seconds);
        },
        py::call_guard<convx::WithoutGil>());
    module.def("copy_bandwidth", &convx::copy_bandwidth, py::call_guard<convx::WithoutGil>());
}
