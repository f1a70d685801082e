// The passes of a convolution.
#pragma once

namespace convx {

enum class ConvPass { forward, grad_input, grad_weight, grad_bias };

constexpr const char* pass_name(ConvPass pass) {
    constexpr const char* names[] = {"forward", "grad_input", "grad_weight", "grad_bias"};
    return names[static_cast<int>(pass)];
}

}  // namespace convx
