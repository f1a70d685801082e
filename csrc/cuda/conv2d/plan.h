// The plan of a pass as a value: from a resolved problem to tile, split-K and workspace. Plans do not depend on the
// device, so sums have the same order on every one.
#pragma once

#include <string>

#include "common/conv_pass.h"
#include "common/problem.h"

namespace convx::cuda {

// How float32 is multiplied: `ieee` on the CUDA cores; `tf32x3` as three products of TF32 numbers on the tensor cores;
// `tf32` as one.
enum class Precision { ieee, tf32x3, tf32 };
constexpr const char* precision_names[] = {"ieee", "tf32x3", "tf32"};

struct TileSize {
    int rows, columns, depth;
};
// The tiles that tiles.cuh instantiates.
constexpr TileSize tile_size(DType dtype, bool large) {
    const int side = large && dtype != DType::float64 ? 128 : 64;
    return {side, side, item_size(dtype) == 2 ? 32 : 16};
}

constexpr int64_t sum_size(DType dtype) { return dtype == DType::float64 ? 8 : 4; }

// A block of the direct weight gradient (direct_grad_weight.cuh).
constexpr int direct_lanes = 16, direct_channels = 16, direct_taps = 9;

// `direct`: direct.cuh, for few channels a group.
enum class ConvMethod { implicit_gemm, direct };

struct ConvPlan {
    ConvMethod method = ConvMethod::implicit_gemm;
    Precision precision = Precision::ieee;
    bool large = false;          // which tile
    int64_t images = 1;          // of one launch: window positions are counted in 31 bits
    int64_t parts = 1;           // of a weight or bias gradient's sum (split-K)
    int64_t steps_of_part = 1;   // of the tile's depth; pixels in a bias gradient and in the direct weight gradient
    int64_t panel_bytes = 0;     // the packed weight
    int64_t partial_bytes = 0;   // the parts of a sum
    int64_t carried_bytes = 0;   // sums of a weight gradient over images of several launches
    int64_t unfolded_bytes = 0;  // the gradient of the padded images, where a border mirrors
    int64_t blocks = 0;          // of the largest launch
    std::string reason;

    int64_t workspace_bytes() const { return panel_bytes + unfolded_bytes + partial_bytes + carried_bytes; }
};

// Throws ShapeError where an image alone has more than 2^30 window positions.
ConvPlan plan_conv2d(const ConvProblem& problem, ConvPass pass, Precision precision);

}  // namespace convx::cuda
