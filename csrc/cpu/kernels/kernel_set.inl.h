// Everything that an instruction set compiles, gathered into one row of the kernel table.
#pragma once

// The arguments of the kernels come before their texts.
#include "cpu/kernels/kernel_set.h"

#include "cpu/kernels/depthwise_pixel_products.inl.h"
#include "cpu/kernels/depthwise_pixels.inl.h"
#include "cpu/kernels/depthwise_plane.inl.h"
#include "cpu/kernels/depthwise_plane_adjoint.inl.h"
#include "cpu/kernels/depthwise_plane_grad_weight.inl.h"
#include "cpu/kernels/direct.inl.h"
#include "cpu/kernels/direct_grad_weight.inl.h"
#include "cpu/kernels/dot_tile.inl.h"
#include "cpu/kernels/max_pool2d.inl.h"
#include "cpu/kernels/max_pool2d_backward.inl.h"
#include "cpu/kernels/max_pool2d_window.inl.h"
#include "cpu/kernels/micro_kernel.inl.h"
#include "cpu/kernels/pack.inl.h"
#include "cpu/kernels/relu.inl.h"
#include "cpu/kernels/relu_mask.inl.h"
#include "cpu/kernels/residues.inl.h"
#include "cpu/kernels/roofline.inl.h"
#include "cpu/kernels/selected_products.inl.h"
#include "cpu/kernels/winograd.inl.h"
#include "cpu/kernels/winograd_channels.inl.h"

namespace {

template <class T, int mr, int vecs, int dot_rows, int dot_columns>
constexpr convx::KernelSet<T> make_kernel_set() {
    convx::KernelSet<T> set{};
    set.lanes = VecOf<T>::lanes;
    set.mr = mr;
    set.nr = vecs * VecOf<T>::lanes;
    set.gemm_tile = gemm_tile<T, mr, vecs>;
    set.gemm_tile_rows = gemm_tile_rows<T, mr, vecs>;
    set.gemm_tile_pixels = gemm_tile_pixels<T, mr, vecs>;
    set.dot_rows = dot_rows;
    set.dot_columns = dot_columns;
    set.dot_tile = dot_tile<T, dot_rows, dot_columns>;
    set.selected_products = selected_products<T, mr * vecs>;
    set.pack_lanes = pack_lanes<T>;
    set.pack_transposed = pack_transposed<T>;
    set.pack_row_panels = pack_panels<T, mr>;
    set.pack_column_panels = pack_panels<T, vecs * VecOf<T>::lanes>;
    set.winograd_input = winograd_input<T, vecs>;
    set.winograd_stage = winograd_stage<T>;
    set.winograd_products = winograd_products<T, mr, vecs>;
    set.winograd_weights = winograd_weights<T, mr>;
    set.winograd_wide_weights = winograd_weights<T, vecs * VecOf<T>::lanes>;
    set.winograd_input_pixels = winograd_input_pixels<T>;
    set.winograd_tile_products = winograd_tile_products<T, mr, vecs>;
    set.winograd_output_pixels = winograd_output_pixels<T>;
    set.winograd_output = winograd_output<T, vecs>;
    set.depthwise_pixels = depthwise_pixels<T>;
    set.depthwise_pixel_products = depthwise_pixel_products<T>;
    set.depthwise_planes = depthwise_planes<T>;
    set.depthwise_planes_adjoint = depthwise_planes_adjoint<T>;
    set.depthwise_grad_weight = depthwise_grad_weight<T>;
    set.tile_sums = mr * vecs;
    set.direct_tile = direct_tile<T, mr * vecs>;
    set.direct_grad_weight = direct_grad_weight<T>;
    set.split_row = split_row<T>;
    set.join_row = join_row<T>;
    set.winograd_input_tiles = winograd_input_tiles<T, vecs>;
    set.winograd_gradient_tiles = winograd_gradient_tiles<T, mr>;
    set.winograd_taps = winograd_taps<T>;
    set.fma_rounds = fma_rounds<T>;
    set.stream_copy = stream_copy<T>;
    set.relu = relu_run<T>;
    set.relu_backward = relu_backward_run<T>;
    set.relu_mask = relu_mask_run<T>;
    set.relu_mask_backward = relu_mask_backward_run<T>;
    set.pool_stage = pool_stage<T>;
    set.pool_stage_pairs = pool_stage_pairs<T>;
    set.pool_max = pool_max<T>;
    set.pool_window = pool_window<T>;
    set.pool_sum = pool_sum<T>;
    set.pool_spread = pool_spread<T>;
    set.pool_sum_pairs = pool_sum_pairs<T>;
    set.pool_pack = pool_pack<T>;
    set.pool_max_numbers = pool_max_numbers<T>;
    set.pool_pack_codes = pool_pack_codes<T>;
    set.pool_indices_to_codes = pool_indices_to_codes<T>;
    set.pool_check_lanes = pool_check_lanes<T>;
    set.pool_sum_lanes = pool_sum_lanes<T>;
    set.pool_unpack = pool_unpack<T>;
    return set;
}

}  // namespace
