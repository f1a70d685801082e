// Division by a number that the kernel's whole grid shares: one multiplication and one shift instead of about 30
// instructions (Granlund, Montgomery, "Division by invariant integers using multiplication", PLDI 1994, figure 4.1).
#pragma once

#include "cuda/device.cuh"

namespace convx::cuda {

struct Divisor {
    // 1 <= divisor < 2^31; dividends lie in [0, 2^31).
    Divisor(int64_t divisor = 1) : value(static_cast<int>(divisor)) {
        while ((int64_t{1} << shift) < divisor) ++shift;
        magic = static_cast<uint32_t>((((int64_t{1} << shift) - divisor) << 32) / divisor + 1);
    }
    __device__ int quotient(int dividend) const {
        const auto n = static_cast<uint32_t>(dividend);
        return static_cast<int>((multiply_high(n, magic) + n) >> shift);
    }

    int value;
    int shift = 0;
    uint32_t magic = 0;
};

}  // namespace convx::cuda
