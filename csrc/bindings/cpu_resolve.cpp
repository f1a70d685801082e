// The checks of an operation alone: from shapes, dtypes and options to the shape of the result and the resolved
// problem. For libraries that ask for the shape of a result before there are numbers, as JAX does when it traces a
// function.
#include "bindings/cpu_ops.h"
#include "cpu/conv2d/methods.h"

namespace convx {

namespace {

// Anything with a shape and a NumPy dtype.
ArrayInfo described(const std::string& op, const char* name, py::handle array) {
    const auto attribute = [array](const char* of) {
        return object_returned([=] { return PyObject_GetAttrString(array.ptr(), of); });
    };
    const std::string dtype = str_of(attribute("dtype"));
    if (dtype != "float32" && dtype != "float64")
        throw TypeError(op + ": " + name + " has dtype " + dtype + ", expected float32 or float64");
    return {name, dtype == "float32" ? DType::float32 : DType::float64, sizes(op, name, attribute("shape"))};
}

std::optional<ArrayInfo> described_bias(const std::string& op, py::handle bias) {
    if (bias.is_none()) return std::nullopt;
    return described(op, "bias", bias);
}

template <class Value>
py::tuple both(const Axis& h, const Axis& w, const Value& value) {
    return py::make_tuple(value(h), value(w));
}
py::tuple paddings(const Axis& h, const Axis& w) {
    return both(h, w, [](const Axis& axis) { return py::make_tuple(axis.pad_before, axis.pad_after); });
}
const char* layout_name(bool channels_last) { return channels_last ? "NHWC" : "NCHW"; }

// The fields of ConvSpec in python/convx/jax/_specs.py.
py::tuple resolved(const ConvProblem& problem) {
    const Axis &h = problem.h, &w = problem.w;
    const auto mode = [](const Axis& axis) { return padding_mode_names[static_cast<size_t>(axis.mode)]; };
    return py::make_tuple(both(h, w, [](const Axis& axis) { return axis.input; }),
                          both(h, w, [](const Axis& axis) { return axis.kernel; }),
                          both(h, w, [](const Axis& axis) { return axis.output(); }),
                          both(h, w, [](const Axis& axis) { return axis.stride; }), paddings(h, w),
                          both(h, w, [](const Axis& axis) { return axis.dilation; }), problem.groups, both(h, w, mode),
                          problem.padding_value, problem.relu ? py::object(py::str("relu")) : py::none(),
                          layout_name(problem.channels_last),
                          algorithm_names()[static_cast<size_t>(problem.algorithm)]);
}

// The fields of PoolSpec there.
py::tuple resolved(const PoolProblem& problem) {
    const Axis &h = problem.h, &w = problem.w;
    return py::make_tuple(both(h, w, [](const Axis& axis) { return axis.input; }),
                          both(h, w, [](const Axis& axis) { return axis.kernel; }),
                          both(h, w, [](const Axis& axis) { return axis.output(); }),
                          both(h, w, [](const Axis& axis) { return axis.stride; }), paddings(h, w),
                          both(h, w, [](const Axis& axis) { return axis.dilation; }), h.ceil_mode,
                          layout_name(problem.channels_last));
}

}  // namespace

py::tuple resolve_conv2d_op(py::handle input, py::handle weight, py::handle bias, const ConvHandles& given,
                            py::handle activation, py::handle layout, py::handle algorithm) {
    static const std::string op = "conv2d";
    const ArrayInfo x = described(op, "input", input), w = described(op, "weight", weight);
    const std::optional<ArrayInfo> b = described_bias(op, bias);
    ConvOptions options = padded_options(op, given, layout, algorithm);
    options.relu = relu_activation(op, activation);
    const auto [problem, unbatched] = check_conv2d(op, x, w, b ? &*b : nullptr, options);
    expect_method(op, problem, ConvPass::forward);
    return py::make_tuple(to_tuple(user_shape(problem.output_shape(), problem.channels_last, unbatched)),
                          resolved(problem));
}

// The resolved problem is that of the convolution whose adjoint it is: the output has the shape of its input, and
// beyond that the cells that no window reaches.
py::tuple resolve_conv_transpose2d_op(py::handle input, py::handle weight, py::handle bias,
                                      const TransposeHandles& given) {
    static const std::string op = "conv_transpose2d";
    const ArrayInfo x = described(op, "input", input), w = described(op, "weight", weight);
    const std::optional<ArrayInfo> b = described_bias(op, bias);
    const ConvTransposeOptions options = transpose_options(op, given);
    const auto [problem, unbatched] = check_conv_transpose2d(op, x, w, b ? &*b : nullptr, options);
    expect_method(op, problem.conv, ConvPass::grad_input);
    return py::make_tuple(to_tuple(user_shape(problem.output_shape(), problem.conv.channels_last, unbatched)),
                          resolved(problem.conv));
}

py::tuple resolve_relu_op(py::handle input) { return to_tuple(described("relu", "input", input).shape); }

py::tuple resolve_max_pool2d_op(py::handle input, const PoolHandles& given) {
    static const std::string op = "max_pool2d";
    const PoolOptions options = dilated_pool_options(op, given);
    const auto [problem, unbatched] = check_max_pool2d(op, described(op, "input", input), options);
    return py::make_tuple(to_tuple(user_shape(problem.output_shape(), problem.channels_last, unbatched)),
                          resolved(problem));
}

py::tuple resolve_conv2d_relu_max_pool2d_op(py::handle input, py::handle weight, py::handle bias,
                                            const FusedHandles& given) {
    static const std::string op = "conv2d_relu_max_pool2d";
    const ArrayInfo x = described(op, "input", input), w = described(op, "weight", weight);
    const std::optional<ArrayInfo> b = described_bias(op, bias);
    const FusedOptions options = fused_options(op, given);
    const auto [problem, unbatched] =
        check_conv2d_relu_max_pool2d(op, x, w, b ? &*b : nullptr, options.conv, options.pool);
    const Shape shape = user_shape(problem.pool.output_shape(), problem.pool.channels_last, unbatched);
    return py::make_tuple(to_tuple(shape), resolved(problem.conv), resolved(problem.pool));
}

}  // namespace convx
