#include "bindings/explain.h"

namespace convx {

ConvOptions ExplainedOptions::conv() const {
    const auto& self = *this;
    ConvOptions result =
        conv_options(op_, self["stride"], self["padding"], self["dilation"], self["groups"], self["layout"]);
    if (options_.contains("padding_mode")) result.padding_mode = padding_mode(op_, self["padding_mode"]);
    if (options_.contains("padding_value")) result.padding_value = number(op_, "padding_value", self["padding_value"]);
    if (options_.contains("activation")) result.relu = relu_activation(op_, self["activation"]);
    if (options_.contains("algorithm")) result.algorithm = conv_algorithm(op_, self["algorithm"]);
    return result;
}

ConvTransposeOptions ExplainedOptions::transpose() const {
    const auto& self = *this;
    return transpose_options(op_, {self["stride"], self["padding"], self["output_padding"], self["groups"],
                                   self["dilation"], self["layout"], self["algorithm"]});
}

PoolOptions ExplainedOptions::pool(py::handle kernel_size) const {
    const auto& self = *this;
    return dilated_pool_options(
        op_, {kernel_size, self["stride"], self["padding"], self["dilation"], self["ceil_mode"], self["layout"]});
}

PoolOptions ExplainedOptions::pool_behind() const {
    const auto& self = *this;
    return pool_options(op_, "pool_", self["pool_kernel_size"], self["pool_stride"], self["pool_padding"],
                        self["layout"]);
}

std::array<bool, 3> ExplainedOptions::mask() const {
    return options_.contains("output_mask") ? output_mask(op_, (*this)["output_mask"]) : std::array{true, true, true};
}

bool ExplainedOptions::wants(const char* name) const {
    return options_.contains(name) && truth(op_, name, (*this)[name]);
}

}  // namespace convx
