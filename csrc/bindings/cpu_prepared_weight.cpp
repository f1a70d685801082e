#include <memory>

#include "bindings/host_arrays.h"
#include "bindings/prepared_weight.h"
#include "cpu/runtime/registry.h"

namespace convx {

namespace {

std::variant<PackedWeight<float>, PackedWeight<double>> pack(const ConvProblem& problem, const Array& weight) {
    if (problem.dtype == DType::float32) return pack_weight<float>(problem, plain_tensor(weight));
    return pack_weight<double>(problem, plain_tensor(weight));
}

py::str text_of(const PreparedWeight& prepared) {
    const ArrayInfo& info = prepared.weight().info;
    return "PreparedWeight(" + std::string(dtype_name(info.dtype)) + shape_text(info.shape) + " for " +
           prepared.algorithm() + " on " + prepared.isa() + ", " + std::to_string(prepared.packed_bytes()) +
           " bytes packed)";
}

}  // namespace

PreparedWeight::PreparedWeight(PyArray weight, const ConvProblem& problem, py::tuple arguments)
    : weight_(std::move(weight)), packed_(pack(problem, weight_)),
      algorithm_(plan_conv(problem, ConvPass::forward, active_kernels(), 1).algorithm),
      arguments_(std::move(arguments)) {}

int64_t PreparedWeight::packed_bytes() const {
    return std::visit([](const auto& packed) { return static_cast<int64_t>(packed.data.size()); }, packed_);
}
const char* PreparedWeight::isa() const {
    return std::visit([](const auto& packed) { return packed.kernels->name; }, packed_);
}

const PreparedWeight* prepared_weight(py::handle object) {
    if (py::isinstance<py::array>(object) || !py::isinstance<PreparedWeight>(object)) return nullptr;
    return object.cast<const PreparedWeight*>();
}

py::object prepare_weight_op(py::handle weight, py::handle input_shape, const ConvHandles& given, py::handle layout,
                             py::handle algorithm) {
    static const std::string op = "prepare_weight";
    HostArrays arrays(op, {});
    PyArray w = arrays.input("weight", weight);
    const ArrayInfo input{"input_shape", w.info.dtype, sizes(op, "input_shape", input_shape)};
    const ConvOptions options = padded_options(op, given, layout, algorithm);
    const ConvProblem problem = check_conv2d(op, input, w.info, nullptr, options).problem;
    expect_method(op, problem, ConvPass::forward);
    w = arrays.input("weight", result_of(w.object.attr("copy")));
    w.object.attr("setflags")(py::arg("write") = false);
    py::tuple arguments = py::make_tuple(w.object, py::tuple(py::reinterpret_borrow<py::object>(input_shape)),
                                         given.stride, given.padding, given.dilation, given.groups, given.padding_mode,
                                         given.padding_value, layout, algorithm);
    return py::cast(std::make_unique<PreparedWeight>(std::move(w), problem, std::move(arguments)));
}

void register_prepared_weight(py::module_& module) {
    py::class_<PreparedWeight> type(
        module, "PreparedWeight", py::is_final(), py::metaclass(reinterpret_cast<PyObject*>(&PyType_Type)),
        "A weight that `prepare_weight` has made ready for `conv2d`. It never changes.\n\n"
        "Examples\n--------\n>>> import numpy as np\n>>> import convx\n"
        ">>> ready = convx.prepare_weight(np.ones((16, 3, 3, 3), np.float32), (1, 3, 32, 32), padding=1)\n"
        ">>> ready.shape, ready.dtype\n((16, 3, 3, 3), dtype('float32'))");
    type.attr("__module__") = "convx";
    type.def_property_readonly(
        "weight", [](const PreparedWeight& self) { return self.weight().object; },
        "The read-only copy of the weight that was given.");
    type.def_property_readonly(
        "shape", [](const PreparedWeight& self) { return self.weight().object.attr("shape"); }, "(K, C/G, R, S).");
    type.def_property_readonly(
        "dtype", [](const PreparedWeight& self) { return self.weight().object.attr("dtype"); }, "That of the weight.");
    type.def_property_readonly(
        "nbytes",
        [](const PreparedWeight& self) {
            return self.weight().object.attr("nbytes").cast<int64_t>() + self.packed_bytes();
        },
        "Bytes of the copy and of its packed form.");
    type.def_property_readonly("algorithm", &PreparedWeight::algorithm, "The algorithm that it was made ready for.");
    type.def_property_readonly("isa", &PreparedWeight::isa, "The instruction set that it was made ready for.");
    type.def("__repr__", &text_of);
    type.def("__reduce__", [module](const PreparedWeight& self) {
        return py::make_tuple(module.attr("prepare_weight"), self.arguments());
    });
}

}  // namespace convx
