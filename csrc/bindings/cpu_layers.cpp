// What a layer's constructor is given, checked before there is an input: the operation's own checks, on the smallest
// input that the options leave room for. Where that one is refused, so is every other.
#include <algorithm>

#include "bindings/cpu_ops.h"

namespace convx {

namespace {

std::string text(py::handle object) { return py::str(object).cast<std::string>(); }

DType layer_dtype(const std::string& layer, py::handle dtype) {
    const std::string name = text(dtype);  // of NumPy's, which tells byte-swapped ones apart
    if (name != "float32" && name != "float64")
        throw TypeError(layer + ": dtype is " + name + ", expected float32 or float64");
    return name == "float32" ? DType::float32 : DType::float64;
}

int64_t channel_count(const std::string& layer, const char* name, py::handle object) {
    const int64_t value = integer(layer, name, object);
    if (value < 1)
        throw ShapeError(layer + ": " + name + " is " + std::to_string(value) + ", expected a positive number");
    return value;
}

Pair kernel_pair(const std::string& layer, py::handle kernel_size) {
    const Pair kernel = pair(layer, "kernel_size", kernel_size);
    check_positive(layer, "", "kernel_size", kernel);
    return kernel;
}

// The cells from a window's first tap to its last; what does not fit 64 bits is refused whatever the input.
int64_t extent_of(int64_t kernel, int64_t dilation) {
    int64_t reach;
    return __builtin_mul_overflow(dilation, kernel - 1, &reach) || reach > size_limit ? size_limit : reach + 1;
}

// So large that a window fits without padding, and that every border mode finds enough to mirror.
int64_t smallest_input(int64_t kernel, int64_t dilation, const Pair& sides) {
    const int64_t side = std::min(std::max(sides[0], sides[1]), size_limit - 1);
    return std::clamp(std::max(extent_of(kernel, dilation), side + 1), int64_t{1}, size_limit);
}

// So large that the padding leaves something of the output.
int64_t smallest_transposed_input(int64_t kernel, int64_t stride, int64_t dilation, const Pair& sides) {
    const int64_t cut = std::min(sides[0], size_limit) + std::min(sides[1], size_limit);
    const int64_t missing = std::max<int64_t>(0, cut + 1 - extent_of(kernel, dilation));
    const int64_t step = std::max<int64_t>(1, stride);
    return std::min(1 + missing / step + (missing % step != 0), size_limit);
}

ArrayInfo image(DType dtype, int64_t channels, int64_t height, int64_t width, bool channels_last) {
    return {"input", dtype, user_shape({1, channels, height, width}, channels_last, true)};
}

}  // namespace

py::tuple resolve_conv2d_layer_op(py::handle layer, py::handle in_channels, py::handle out_channels,
                                  py::handle kernel_size, py::handle bias, py::handle dtype, const ConvHandles& given,
                                  py::handle layout, py::handle algorithm) {
    const std::string op = text(layer);
    const int64_t c = channel_count(op, "in_channels", in_channels);
    const int64_t k = channel_count(op, "out_channels", out_channels);
    const Pair kernel = kernel_pair(op, kernel_size);
    truth(op, "bias", bias);
    const DType type = layer_dtype(op, dtype);
    const ConvOptions options = padded_options(op, given, layout, algorithm);
    check_groups(op, options.groups, c, k);
    const auto size = [&](size_t axis) {
        return smallest_input(kernel[axis], options.dilation[axis], options.padding.sides[axis]);
    };
    const Shape weight{k, c / options.groups, kernel[0], kernel[1]};
    check_conv2d(op, image(type, c, size(0), size(1), options.channels_last), {"weight", type, weight}, nullptr,
                 options);
    return to_tuple(weight);
}

py::tuple resolve_conv_transpose2d_layer_op(py::handle layer, py::handle in_channels, py::handle out_channels,
                                            py::handle kernel_size, py::handle bias, py::handle dtype,
                                            const TransposeHandles& given) {
    const std::string op = text(layer);
    const int64_t c = channel_count(op, "in_channels", in_channels);
    const int64_t k = channel_count(op, "out_channels", out_channels);
    const Pair kernel = kernel_pair(op, kernel_size);
    truth(op, "bias", bias);
    const DType type = layer_dtype(op, dtype);
    const ConvTransposeOptions options = transpose_options(op, given);
    const ConvOptions& conv = options.conv;
    check_groups(op, conv.groups, c, k);
    const auto size = [&](size_t axis) {
        return smallest_transposed_input(kernel[axis], conv.stride[axis], conv.dilation[axis],
                                         conv.padding.sides[axis]);
    };
    const Shape weight{c, k / conv.groups, kernel[0], kernel[1]};
    check_conv_transpose2d(op, image(type, c, size(0), size(1), conv.channels_last), {"weight", type, weight}, nullptr,
                           options);
    return to_tuple(weight);
}

py::tuple resolve_max_pool2d_layer_op(py::handle layer, const PoolHandles& given) {
    const std::string op = text(layer);
    const PoolOptions options = dilated_pool_options(op, given);
    const auto size = [&](size_t axis) {
        return smallest_input(options.kernel[axis], options.dilation[axis], options.padding.sides[axis]);
    };
    check_max_pool2d(op, image(DType::float32, 1, size(0), size(1), options.channels_last), options);
    return to_tuple({options.kernel[0], options.kernel[1]});
}

py::tuple resolve_linear_layer_op(py::handle layer, py::handle in_features, py::handle out_features, py::handle bias,
                                  py::handle dtype) {
    const std::string op = text(layer);
    const int64_t columns = channel_count(op, "in_features", in_features);
    const int64_t rows = channel_count(op, "out_features", out_features);
    truth(op, "bias", bias);
    layer_dtype(op, dtype);
    return to_tuple({rows, columns});
}

py::object truth_op(py::handle owner, py::handle name, py::handle value) {
    return py::bool_(truth(text(owner), text(name).c_str(), value));
}

py::object integer_op(py::handle owner, py::handle name, py::handle value) {
    return py::int_(integer(text(owner), text(name).c_str(), value));
}

}  // namespace convx
