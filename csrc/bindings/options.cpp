#include "bindings/options.h"

namespace convx {

ConvOptions conv_options(const std::string& op, py::handle stride, py::handle padding_option, py::handle dilation,
                         py::handle groups, py::handle layout) {
    ConvOptions options;
    options.stride = pair(op, "stride", stride);
    options.padding = padding(op, "padding", padding_option);
    options.dilation = pair(op, "dilation", dilation);
    options.groups = integer(op, "groups", groups);
    options.channels_last = channels_last(op, layout);
    return options;
}

ConvOptions padded_options(const std::string& op, py::handle stride, py::handle padding_option, py::handle dilation,
                           py::handle groups, py::handle mode, py::handle padding_value, py::handle layout,
                           py::handle algorithm) {
    ConvOptions options = conv_options(op, stride, padding_option, dilation, groups, layout);
    options.padding_mode = padding_mode(op, mode);
    options.padding_value = number(op, "padding_value", padding_value);
    options.algorithm = conv_algorithm(op, algorithm);
    return options;
}

PoolOptions pool_options(const std::string& op, const char* prefix, py::handle kernel_size, py::handle stride,
                         py::handle padding_option, py::handle layout) {
    PoolOptions options;
    options.prefix = prefix;
    options.kernel = pair(op, {prefix, "kernel_size"}, kernel_size);
    if (!stride.is_none()) options.stride = pair(op, {prefix, "stride"}, stride);
    options.padding = padding(op, {prefix, "padding"}, padding_option);
    options.channels_last = channels_last(op, layout);
    return options;
}

}  // namespace convx
