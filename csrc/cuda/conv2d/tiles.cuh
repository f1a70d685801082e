// The tiles of every element type. A large one has the better ratio of multiply-adds to loads, a small one fills the
// GPU where there are few rows or columns; which of them runs never changes a bit of the result.
//
//   tile                          threads  sums a thread  registers   shared memory  bound by
//   float   128 x 128 x 16          256        64         126 to 128     33 KiB       FMA: 64 to four 16-byte loads
//   float    64 x  64 x 16          128        32          79 to  96     17 KiB       FMA: 32 to three
//   double   64 x  64 x 16          256        16          80 to 102     33 KiB       FMA
//   mma     128 x 128 x 64 bytes    256        64         124 to 166     60 KiB       ldmatrix
//   mma      64 x  64 x 64 bytes    128        32          95 to 124     30 KiB       ldmatrix
//
// FMA of double: half rate on 80 and 90, 1/64 on others. ldmatrix: 24 to 16 mma a warp, 1.5 of what shared memory gives
// in the time of the mma.
#pragma once

#include "cuda/conv2d/tile.cuh"

namespace convx::cuda {

template <class T, Precision precision>
struct Tiles {  // half, bfloat16, and float as TF32
    static constexpr int depth = 64 / static_cast<int>(sizeof(T));
    using Large = MmaTile<T, precision, 128, 128, depth, 64, 32>;
    using Small = MmaTile<T, precision, 64, 64, depth, 32, 32>;
};
template <>
struct Tiles<float, Precision::ieee> {
    using Large = FmaTile<float, 128, 128, 16, 8, 8>;
    using Small = FmaTile<float, 64, 64, 16, 8, 4>;
};
template <>
struct Tiles<double, Precision::ieee> {
    using Large = FmaTile<double, 64, 64, 16, 4, 4>;
    using Small = Large;
};

// plan.cpp counts with these sizes.
template <class T, Precision precision>
constexpr bool is_planned(DType dtype) {
    const auto has = [](const TileSize& size, auto tile) {
        using Tile = typename decltype(tile)::T;
        return size.rows == Tile::rows && size.columns == Tile::columns && size.depth == Tile::depth;
    };
    using Own = Tiles<T, precision>;
    return has(tile_size(dtype, true), Type<typename Own::Large>{}) &&
           has(tile_size(dtype, false), Type<typename Own::Small>{});
}
static_assert(is_planned<float, Precision::ieee>(DType::float32) &&
              is_planned<float, Precision::tf32>(DType::float32) &&
              is_planned<double, Precision::ieee>(DType::float64) &&
              is_planned<half, Precision::ieee>(DType::float16) &&
              is_planned<bfloat16, Precision::ieee>(DType::bfloat16));

}  // namespace convx::cuda
