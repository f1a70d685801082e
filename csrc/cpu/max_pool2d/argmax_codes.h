// Checks of the indices and codes that a backward pass of max-pooling is given.
#pragma once

#include "common/problem.h"

namespace convx {

// True if every code names a tap of its window inside the image, or no gradient.
bool codes_are_legal(const PoolProblem& problem, const TensorView<const uint8_t>& codes);

// Local indices lie in rows that their window covers; others have to lie in the plane. Whether all are local matters
// where planes are cut.
enum class Indices { illegal, anywhere, local };

Indices inspect_indices(const PoolProblem& problem, const TensorView<const int64_t>& indices, bool cut);

}  // namespace convx
