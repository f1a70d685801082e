// The two roofs of this machine, measured: what benchmark percentages refer to.
#pragma once

#include <cstdint>

#include "common/tensor_view.h"

namespace convx {

// Floating point operations per second of FMA on registers, on num_threads() threads and the active instruction set:
// the best of several bursts within about `seconds`.
double fma_peak(DType dtype, double seconds);

// Bytes read plus bytes written per second by a copy of `bytes` bytes on num_threads() threads, the best run within
// about `seconds`.
double copy_bandwidth(int64_t bytes, double seconds);

}  // namespace convx
