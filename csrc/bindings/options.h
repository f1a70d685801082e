#pragma once

#include "bindings/arguments.h"

namespace convx {

// How Python spells Algorithm.
constexpr const char* algorithm_names[] = {"auto", "direct", "winograd"};

// The options of an operation, from its arguments: shared by the backends and by explain. The fused operation has
// neither padding modes nor dilated windows; what these leave out keeps its default.
ConvOptions conv_options(const std::string& op, py::handle stride, py::handle padding, py::handle dilation,
                         py::handle groups, py::handle layout);
ConvOptions padded_options(const std::string& op, py::handle stride, py::handle padding, py::handle dilation,
                           py::handle groups, py::handle padding_mode, py::handle padding_value, py::handle layout,
                           py::handle algorithm);
ConvTransposeOptions transpose_options(const std::string& op, py::handle stride, py::handle padding,
                                       py::handle output_padding, py::handle groups, py::handle dilation,
                                       py::handle layout, py::handle algorithm);
PoolOptions pool_options(const std::string& op, const char* prefix, py::handle kernel_size, py::handle stride,
                         py::handle padding, py::handle layout);
PoolOptions dilated_pool_options(const std::string& op, py::handle kernel_size, py::handle stride, py::handle padding,
                                 py::handle dilation, py::handle ceil_mode, py::handle layout);

struct FusedOptions {
    ConvOptions conv;
    PoolOptions pool;
};
FusedOptions fused_options(const std::string& op, py::handle stride, py::handle padding, py::handle dilation,
                           py::handle groups, py::handle pool_kernel_size, py::handle pool_stride,
                           py::handle pool_padding, py::handle layout);

}  // namespace convx
