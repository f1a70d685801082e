#pragma once

#include "bindings/arguments.h"

namespace convx {

// Arguments that stand beside each other in the functions of the modules, in this order (fast_call.h fills them).
struct ConvHandles {
    py::handle stride, padding, dilation, groups, padding_mode, padding_value;
};
struct TransposeHandles {
    py::handle stride, padding, output_padding, groups, dilation, layout, algorithm;
};
struct PoolHandles {
    py::handle kernel_size, stride, padding, dilation, ceil_mode, layout;
};
struct FusedHandles {
    py::handle stride, padding, dilation, groups, pool_kernel_size, pool_stride, pool_padding, layout;
};

// The options of an operation: shared by the backends and by explain. The fused operation has neither padding modes nor
// dilated windows; what these leave out keeps its default.
ConvOptions conv_options(const std::string& op, py::handle stride, py::handle padding, py::handle dilation,
                         py::handle groups, py::handle layout);
ConvOptions padded_options(const std::string& op, const ConvHandles& given, py::handle layout, py::handle algorithm);
ConvTransposeOptions transpose_options(const std::string& op, const TransposeHandles& given);
PoolOptions pool_options(const std::string& op, const char* prefix, py::handle kernel_size, py::handle stride,
                         py::handle padding, py::handle layout);
PoolOptions dilated_pool_options(const std::string& op, const PoolHandles& given);

struct FusedOptions {
    ConvOptions conv;
    PoolOptions pool;
};
FusedOptions fused_options(const std::string& op, const FusedHandles& given);

}  // namespace convx
