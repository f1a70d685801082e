// The table of kernels that every instruction set fills in: the only door between ISA-free loop nests and SIMD code.
//
// This header is included by files compiled for one instruction set, so it holds nothing but plain structs.
#pragma once

#include <cstdint>

#include "cpu/kernels/depthwise_args.h"
#include "cpu/kernels/direct_args.h"
#include "cpu/kernels/pool_args.h"
#include "cpu/kernels/winograd_args.h"

namespace convx {

// Where a GEMM tile goes and what happens to it on the way: c = relu(acc [+ c] + bias).
template <class T>
struct Epilogue {
    T* c;
    int64_t row_stride;              // elements between rows; columns are adjacent
    bool accumulate;                 // add to what is there (a later part of the reduction)
    const T* row_bias = nullptr;     // one value per row, or null
    const T* column_bias = nullptr;  // one value per column, or null
    bool relu = false;
};

// Pixels that stand anywhere; the d-th value that each is multiplied with lies offsets[d] further on.
template <class T>
struct Indirection {
    const T* const* pixel;
    const int32_t* offsets;
};

// sums[r * sums_row + i] += sum over j < count of grads[j] * source[places[j] + offsets[r] + i], for r < rows and i <
// vectors * lanes, all of which can be read and written.
template <class T>
struct SelectedProductsArgs {
    const T* source;
    const int64_t* offsets;
    int rows, vectors;
    const int32_t* places;
    const T* grads;
    int64_t count;
    T* sums;
    int64_t sums_row;
};

template <class T>
struct KernelSet {
    int lanes;  // elements of one vector
    int mr;     // rows of a GEMM tile: width of a row panel
    int nr;     // columns of a GEMM tile: width of a column panel, a multiple of lanes

    // One tile: sum over d < depth of a[d * mr + i] * b[d * nr + j], for i < rows <= mr, j < columns <= nr.
    void (*gemm_tile)(int rows, int columns, int64_t depth, const T* a, const T* b, const Epilogue<T>& out);

    // The same with rows that stand anywhere, and columns of any stride: sum over d < depth of a[i][d] * b[d * b_stride
    // + j]. Whole vectors of b are read.
    void (*gemm_tile_rows)(int rows, int columns, int64_t depth, const T* const* a, const T* b, int64_t b_stride,
                           const Epilogue<T>& to);

    // The same with pixels in the rows: sum over d < depth of a.pixel[i][a.offsets[d]] * b[d * nr + j].
    void (*gemm_tile_pixels)(int rows, int columns, int64_t depth, const Indirection<T>& a, const T* b,
                             const Epilogue<T>& out);

    // One tile of dot products: sum over d < depth of a[i][d] * b[j][d], for i < rows <= dot_rows, j < columns <=
    // dot_columns; `out` without bias and ReLU.
    int dot_rows, dot_columns;
    void (*dot_tile)(int rows, int columns, int64_t depth, const T* const* a, const T* const* b,
                     const Epilogue<T>& out);

    // The weight gradient of pixels that max-pooling has selected.
    void (*selected_products)(const SelectedProductsArgs<T>& args);

    // dst[d * dst_stride + lane] for d < depth, lane < width: the runs read src + d * src_stride, other lanes get
    // `pad`.
    void (*pack_lanes)(T* dst, int64_t dst_stride, const T* src, int64_t src_stride, int64_t depth, const LaneRun* runs,
                       int run_count, int width, int64_t step, T pad);

    // dst[d * dst_stride + i] = rows[i][d] for d < depth, i < row_count.
    void (*pack_transposed)(T* dst, int64_t dst_stride, const T* const* rows, int row_count, int64_t depth);

    // Panels of adjacent channels, mr or nr wide: dst[c / width * panel_stride + p * width + c % width] = src[p *
    // src_stride + c] for p < pixels, c < channels. Whole vectors are written, a vector behind each panel too.
    void (*pack_row_panels)(T* dst, int64_t panel_stride, const T* src, int64_t src_stride, int64_t pixels,
                            int64_t channels);
    void (*pack_column_panels)(T* dst, int64_t panel_stride, const T* src, int64_t src_stride, int64_t pixels,
                               int64_t channels);

    // Winograd transforms and what lies between them (winograd_args.h).
    void (*winograd_stage)(const WinogradStageArgs<T>& args);
    void (*winograd_products)(const WinogradProductsArgs<T>& args);
    void (*winograd_input)(const WinogradInputArgs<T>& args);
    void (*winograd_weights)(const WinogradWeightsArgs<T>& args);
    void (*winograd_wide_weights)(const WinogradWeightsArgs<T>& args);  // panels of nr rows
    void (*winograd_input_pixels)(const WinogradPixelInputArgs<T>& args);
    void (*winograd_tile_products)(const WinogradTileProductsArgs<T>& args);
    void (*winograd_output_pixels)(const WinogradPixelOutputArgs<T>& args);
    void (*winograd_output)(const WinogradOutputArgs<T>& args);
    void (*winograd_input_tiles)(const WinogradTilesArgs<T>& args);
    void (*winograd_gradient_tiles)(const WinogradTilesArgs<T>& args);
    void (*winograd_taps)(const WinogradTapsArgs<T>& args);

    // Depthwise convolutions (depthwise_args.h): some planes, with kernel 3 or 5, stride 1 or 2; the adjoint of stride
    // 2; the gradient of the weights; a few pixels with adjacent channels, and their share of the gradient of the
    // weights.
    void (*depthwise_planes)(int kernel, int stride, const DepthwisePlanesArgs<T>& args);
    void (*depthwise_planes_adjoint)(int kernel, const DepthwisePlanesArgs<T>& args);
    void (*depthwise_grad_weight)(int kernel, int stride, const DepthwiseGradWeightArgs<T>& args);
    void (*depthwise_pixels)(const DepthwisePixelsArgs<T>& args);
    void (*depthwise_pixel_products)(const DepthwisePixelProductsArgs<T>& args);

    // Direct convolutions (direct_args.h), in tiles of tile_sums accumulators.
    int tile_sums;
    void (*direct_tile)(const DirectTileArgs<T>& args);
    void (*direct_grad_weight)(const DirectGradWeightArgs<T>& args);

    // A row of `count` elements taken apart into even and odd ones, and put together again.
    void (*split_row)(T* even, T* odd, const T* source, int64_t count);
    void (*join_row)(T* dest, const T* even, const T* odd, int64_t count);

    // The roofs (roofline.inl.h): FMA on registers, returning the flops done, and a copy around the caches.
    int64_t (*fma_rounds)(int64_t rounds, T* sink);
    void (*stream_copy)(T* dst, const T* src, int64_t count);

    // ReLU of `count` adjacent elements; `around_caches` writes with non-temporal stores.
    void (*relu)(T* output, const T* input, int64_t count, bool around_caches);
    void (*relu_backward)(T* grad_input, const T* grad_output, const T* output, int64_t count, bool around_caches);

    // The same with one bit an element of what the gradient passes, `count` of them from the first byte's lowest on.
    void (*relu_mask)(T* output, uint8_t* mask, const T* input, int64_t count, bool around_caches);
    void (*relu_mask_backward)(T* grad_input, const T* grad_output, const uint8_t* mask, int64_t count,
                               bool around_caches);

    // Max-pooling (pool_args.h). The pairs work on two residues of the columns modulo 2 at once: pool_stage_pairs reads
    // both in turn from even.source, pool_sum_pairs writes both in turn to even.output. `even` has as many columns as
    // `odd` or one more; where it has more, its sums can be read for a whole vector from that column on.
    void (*pool_stage)(const PoolStageArgs<T>& args);
    void (*pool_stage_pairs)(const PoolStageArgs<T>& even, const PoolStageArgs<T>& odd);
    void (*pool_max)(const PoolMaxArgs<T>& args);
    PoolWindowBest<T> (*pool_window)(const PoolWindowArgs<T>& args);
    void (*pool_sum)(const PoolSumArgs<T>& args);
    void (*pool_spread)(const PoolSpreadArgs<T>& args);
    void (*pool_sum_pairs)(const PoolSumArgs<T>& even, const PoolSumArgs<T>& odd);
    // Narrow planes, `lanes` of them at a time: values and codes, which become numbers, are packed (as whole vectors,
    // the last ones past `count`), pooled or summed, and unpacked. The planes that come next lie `ahead` elements
    // further on. pool_pack returns false if there may be a NaN, which pool_max_numbers must not meet.
    bool (*pool_pack)(T* to, const T* const* planes, int64_t count, int64_t ahead);
    void (*pool_max_numbers)(const PoolMaxArgs<T>& args);
    void (*pool_pack_codes)(T* to, const uint8_t* const* planes, int64_t count);
    bool (*pool_indices_to_codes)(
        const PoolIndexArgs<T>& args);  // false if an index is that of no tap inside the image
    bool (*pool_check_lanes)(const PoolLaneCheckArgs<T>& args);
    void (*pool_sum_lanes)(const PoolLaneSumArgs<T>& args);
    void (*pool_unpack)(const PoolUnpackArgs<T>& args);
};

struct Kernels {
    const char* name;
    const KernelSet<float>& f32;
    const KernelSet<double>& f64;
};

template <class T>
const KernelSet<T>& kernel_set(const Kernels& kernels);
template <>
inline const KernelSet<float>& kernel_set<float>(const Kernels& kernels) {
    return kernels.f32;
}
template <>
inline const KernelSet<double>& kernel_set<double>(const Kernels& kernels) {
    return kernels.f64;
}

}  // namespace convx
