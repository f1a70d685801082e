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

ConvTransposeOptions transpose_options(const std::string& op, py::handle stride, py::handle padding_option,
                                       py::handle output_padding, py::handle groups, py::handle dilation,
                                       py::handle layout, py::handle algorithm) {
    ConvTransposeOptions options;
    options.conv = conv_options(op, stride, padding_option, dilation, groups, layout);
    options.conv.algorithm = conv_algorithm(op, algorithm);
    options.output_padding = pair(op, "output_padding", output_padding);
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

PoolOptions dilated_pool_options(const std::string& op, py::handle kernel_size, py::handle stride,
                                 py::handle padding_option, py::handle dilation, py::handle ceil_mode,
                                 py::handle layout) {
    PoolOptions options = pool_options(op, "", kernel_size, stride, padding_option, layout);
    options.dilation = pair(op, "dilation", dilation);
    options.ceil_mode = truth(op, "ceil_mode", ceil_mode);
    return options;
}

FusedOptions fused_options(const std::string& op, py::handle stride, py::handle padding, py::handle dilation,
                           py::handle groups, py::handle pool_kernel_size, py::handle pool_stride,
                           py::handle pool_padding, py::handle layout) {
    FusedOptions options;
    options.conv = conv_options(op, stride, padding, dilation, groups, layout);
    options.conv.relu = true;
    options.pool = pool_options(op, "pool_", pool_kernel_size, pool_stride, pool_padding, layout);
    return options;
}

}  // namespace convx
