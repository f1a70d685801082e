// A strided window on the caller's device memory, in logical N, C, H, W order whatever the memory order; strides count
// elements. What the launchers take: the element type is known from the problem.
#pragma once

#include <array>
#include <cstdint>

namespace convx::cuda {

struct DeviceTensor {
    void* data = nullptr;
    std::array<int64_t, 4> shape{};
    std::array<int64_t, 4> stride{};
    bool unrounded = false;  // elements have the type of the sums; only the backend's own workspace has such
};

}  // namespace convx::cuda
