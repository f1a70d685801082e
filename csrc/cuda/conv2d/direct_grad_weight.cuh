// The weight gradient where groups have few channels: a block takes a part of the pixels for 16 output channels and up
// to 9 taps; its pixels go in turn to 16 lanes, whose sums are added in order, and the parts' afterwards (AddParts). As
// in grad_bias.cuh the layout decides which thread adds, never the order. What lies outside under zeros is skipped.
//
// Bound by memory and the load unit alike for depthwise 3x3: one load of grad_output and nine of the input, which
// neighbours share in L1, to nine multiply-adds. Shared memory: 9 KiB (18 for double); 44 to 76 registers.
#pragma once

#include "cuda/conv2d/grad_weight.cuh"

namespace convx::cuda {

template <class T>
struct DirectTapSums {
    Sum<T> sum[direct_lanes][direct_channels][direct_taps];  // nine: the banks of 32 neighbours differ
};

// The products of one pixel for the taps from `first_tap` on.
template <class T, bool is_3x3>
__device__ void add_products(Sum<T> (&sum)[direct_taps], const ImageGather<T>& images, int pixel, int first_tap,
                             Sum<T> factor) {
    const auto at = images.pixel(pixel);
    if constexpr (is_3x3) {
        const auto row_at = [&](int r) { return images.h.source(at.h + r * images.h.tap_step); };
        const Patch3<T, 3> patch(at.image, images.source, row_at, images.w, at.w, images.padding);
#pragma unroll
        for (int t = 0; t < direct_taps; ++t)
            if (patch.found(t / 3, t % 3)) sum[t] = multiply_add(factor, to_sum(patch.value[t / 3][t % 3]), sum[t]);
    } else {
        auto tap = images.tap(first_tap);
#pragma unroll
        for (int t = 0; t < direct_taps; ++t) {
            T value;
            if (images.read(at, tap, value)) sum[t] = multiply_add(factor, to_sum(value), sum[t]);
            images.advance(tap);
        }
    }
}

// is_3x3: depthwise, the nine taps of a window.
template <class T, bool channels_adjacent, bool is_3x3>
__global__ void __launch_bounds__(direct_lanes* direct_channels, 3)
    direct_grad_weight(PixelSum<T> grad, int tap_tiles, Divisor group_rows, int pixels_of_part) {
    DirectTapSums<T>& shared = shared_memory<DirectTapSums<T>>();
    const int thread = static_cast<int>(threadIdx.x);
    const int lane = channels_adjacent ? thread / direct_channels : thread % direct_lanes;
    const int channel_in_tile = channels_adjacent ? thread % direct_channels : thread / direct_lanes;
    const int channel_tile = static_cast<int>(blockIdx.x) / tap_tiles;
    const int first_tap = (static_cast<int>(blockIdx.x) - channel_tile * tap_tiles) * direct_taps;
    const int first_channel = channel_tile * direct_channels, all_channels = grad.groups * grad.rows;
    const int channel = first_channel + channel_in_tile;
    const int64_t begin = static_cast<int64_t>(blockIdx.y) * pixels_of_part;
    const int64_t end = begin + pixels_of_part < grad.images.pixels ? begin + pixels_of_part : grad.images.pixels;

    Sum<T> sum[direct_taps];
#pragma unroll
    for (int t = 0; t < direct_taps; ++t) sum[t] = 0;
    if (channel < all_channels) {
        grad.images.to_group(group_rows.quotient(channel));
        for (int64_t i = begin + lane; i < end; i += direct_lanes) {
            const auto at = grad.grads.pixel(static_cast<int>(i));
            const auto& source = grad.grads.source;
            const Sum<T> factor = to_sum(at.image[channel * source.c + at.h * source.h + at.w * source.w]);
            add_products<T, is_3x3>(sum, grad.images, static_cast<int>(i), first_tap, factor);
        }
    }
#pragma unroll
    for (int t = 0; t < direct_taps; ++t) shared.sum[lane][channel_in_tile][t] = sum[t];
    block_barrier();
    const int own_channel = thread % direct_channels, own_tap = thread / direct_channels;
    if (own_tap >= direct_taps || first_channel + own_channel >= all_channels || first_tap + own_tap >= grad.columns)
        return;
    Sum<T> total = 0;
    for (int i = 0; i < direct_lanes; ++i) total += shared.sum[i][own_channel][own_tap];
    grad.partial[(static_cast<int64_t>(blockIdx.y) * all_channels + first_channel + own_channel) * grad.columns +
                 first_tap + own_tap] = total;
}

template <class T>
void run_direct_grad_weight(const PixelSum<T>& grad, bool channels_adjacent, int pixels_of_part, Stream stream) {
    static_assert(direct_taps <= direct_lanes);
    const int tap_tiles = tiles_of(grad.columns, direct_taps);
    const int64_t channel_tiles = tiles_of(grad.groups * grad.rows, direct_channels);
    const bool is_3x3 = grad.images.h.taps == 3 && grad.images.w.taps == 3 && grad.images.channels.value == 1;
    const auto kernel = channels_adjacent
                            ? is_3x3 ? &direct_grad_weight<T, true, true> : &direct_grad_weight<T, true, false>
                        : is_3x3 ? &direct_grad_weight<T, false, true>
                                 : &direct_grad_weight<T, false, false>;
    launch(kernel, grid(channel_tiles * tap_tiles, grad.parts), direct_lanes * direct_channels,
           sizeof(DirectTapSums<T>), stream, grad, tap_tiles, Divisor(grad.rows), pixels_of_part);
}

}  // namespace convx::cuda
