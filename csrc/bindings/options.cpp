#include "bindings/options.h"

#include "bindings/default_algorithm.h"

namespace convx {

ConvOptions conv_options(const std::string& op, py::handle stride, py::handle padding_option, py::handle dilation,
                         py::handle groups, py::handle layout) {
    ConvOptions options;
    options.stride = pair(op, "stride", stride);
    options.padding = padding(op, "padding", padding_option);
    options.dilation = pair(op, "dilation", dilation);
    options.groups = integer(op, "groups", groups);
    options.channels_last = channels_last(op, layout);
    options.algorithm = default_algorithm();
    return options;
}

ConvOptions padded_options(const std::string& op, const ConvHandles& given, py::handle layout, py::handle algorithm) {
    ConvOptions options = conv_options(op, given.stride, given.padding, given.dilation, given.groups, layout);
    options.padding_mode = padding_mode(op, given.padding_mode);
    options.padding_value = number(op, "padding_value", given.padding_value);
    options.algorithm = conv_algorithm(op, algorithm);
    return options;
}

ConvTransposeOptions transpose_options(const std::string& op, const TransposeHandles& given) {
    ConvTransposeOptions options;
    options.conv = conv_options(op, given.stride, given.padding, given.dilation, given.groups, given.layout);
    options.conv.algorithm = conv_algorithm(op, given.algorithm);
    options.output_padding = pair(op, "output_padding", given.output_padding);
    return options;
}

PoolOptions pool_options(const std::string& op, const char* prefix, py::handle kernel_size, py::handle stride,
                         py::handle padding_option, py::handle layout) {
    PoolOptions options;
    options.prefix = prefix;
    options.kernel = pair(op, {prefix, "kernel_size"}, kernel_size);
    options.stride = optional_pair(op, {prefix, "stride"}, stride);
    options.padding = padding(op, {prefix, "padding"}, padding_option);
    options.channels_last = channels_last(op, layout);
    return options;
}

PoolOptions dilated_pool_options(const std::string& op, const PoolHandles& given) {
    PoolOptions options = pool_options(op, "", given.kernel_size, given.stride, given.padding, given.layout);
    options.dilation = pair(op, "dilation", given.dilation);
    options.ceil_mode = truth(op, "ceil_mode", given.ceil_mode);
    return options;
}

FusedOptions fused_options(const std::string& op, const FusedHandles& given) {
    FusedOptions options;
    options.conv = conv_options(op, given.stride, given.padding, given.dilation, given.groups, given.layout);
    options.conv.relu = true;
    options.pool =
        pool_options(op, "pool_", given.pool_kernel_size, given.pool_stride, given.pool_padding, given.layout);
    return options;
}

}  // namespace convx
