// convx._cpu: the names that Python sees. Functions are positional; python/convx/ops.py has the keywords, the defaults
// and the documentation.
#include <pybind11/stl.h>

#include "bindings/cpu_backend.h"
#include "bindings/cpu_explain.h"
#include "bindings/cpu_ops.h"
#include "bindings/default_algorithm.h"
#include "bindings/entry_points.h"
#include "bindings/errors.h"
#include "bindings/module.h"
#include "bindings/operations.h"
#include "bindings/prepared_weight.h"
#include "cpu/conv2d/methods.h"
#include "cpu/max_pool2d/max_pool2d.h"
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

py::dict config() {
    using namespace py::literals;
    const convx::CpuFeatures& cpu = convx::cpu_features();
#ifdef __clang__
    constexpr const char* compiler = __VERSION__;
#else
    constexpr const char* compiler = "g++ " __VERSION__;
#endif
    return py::dict("version"_a = CONVX_VERSION, "isa"_a = convx::active_kernels().name,
                    "isa_reason"_a = convx::isa_reason(), "isas"_a = convx::available_isas(), "cpu"_a = cpu.brand,
                    "cpu_features"_a =
                        py::dict("avx2"_a = cpu.avx2, "fma"_a = cpu.fma, "avx512f"_a = cpu.avx512f,
                                 "avx512bw"_a = cpu.avx512bw, "avx512dq"_a = cpu.avx512dq, "avx512vl"_a = cpu.avx512vl),
                    "cache_bytes"_a =
                        py::dict("l1d"_a = convx::l1d_bytes(), "l2"_a = convx::l2_bytes(), "l3"_a = convx::l3_bytes()),
                    "threads"_a = convx::num_threads(), "threads_reason"_a = convx::num_threads_reason(),
                    "algorithm"_a = get_default_algorithm(), "algorithm_reason"_a = convx::default_algorithm_reason(),
                    "uses_team"_a = convx::uses_team(), "spin_us"_a = convx::spin_microseconds(),
                    "workspace_cached_bytes"_a = convx::workspace_cached_bytes(), "compiler"_a = compiler);
}

constexpr convx::CpuEntryPoints entry_points;

PyMethodDef functions[] = {
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
    convx::add_functions(module, convx::operations<convx::Cpu>);
    convx::add_functions(module, functions);
    module.def("operations_with",
               [](py::handle allocate) { return convx::functions_with(allocate, convx::operations<convx::Cpu>); });
    convx::register_prepared_weight(module);
    module.attr(convx::entry_points_attribute) = py::capsule(&entry_points, convx::entry_points_name);
    module.def("explain", &convx::explain_op<convx::CpuPlans>);
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
