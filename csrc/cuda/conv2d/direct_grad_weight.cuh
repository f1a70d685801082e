// The weight gradient where groups have few channels: a block takes a part of the pixels for 16 output channels and up
// to 9 taps; its pixels go in turn to 16 lanes, whose sums are added in order, and the parts' afterwards (add_parts).
// As in grad_bias.cuh the layout decides who adds, never the order. What lies outside under zeros is skipped.
//
// Bound by memory and the load unit alike for depthwise 3x3: one load of grad_output and nine of the input, which
// neighbours share in L1, to nine multiply-adds. Shared memory: 9 KiB (18 for double); 48 to 74 registers.
#pragma once

#include "cuda/conv2d/grad_weight.cuh"

namespace convx::cuda {

template <class T>
struct DirectTapSums {
    Sum<T> sum[direct_lanes][direct_channels][direct_taps];  // nine: the banks of 32 neighbours differ
};

// is_3x3: depthwise, the nine taps of a window.
template <class T, bool channels_adjacent, bool is_3x3>
__global__ void __launch_bounds__(direct_lanes* direct_channels, 3)
    direct_grad_weight(WeightGrad<T> grad, int tap_tiles, Divisor group_rows, int pixels_of_part) {
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
        ImageGather<T>& images = grad.images;
        images.data += static_cast<int64_t>(group_rows.quotient(channel)) * images.channels.value * images.stride_c;
        const auto grad_at = [&](int64_t pixel) {
            const auto at = grad.grads.pixel(static_cast<int>(pixel));
            return to_sum(
                at.image[channel * grad.grads.stride_c + at.h * grad.grads.stride_h + at.w * grad.grads.stride_w]);
        };
        if constexpr (is_3x3) {
            for (int64_t i = begin + lane; i < end; i += direct_lanes) {
                const auto at = images.pixel(static_cast<int>(i));
                int column[3];
                T value[3][3];
                bool found[3];
#pragma unroll
                for (int s = 0; s < 3; ++s) column[s] = images.w.source(at.w + s * images.w.tap_step);
#pragma unroll
                for (int r = 0; r < 3; ++r) {
                    const int row = images.h.source(at.h + r * images.h.tap_step);
                    found[r] = row != GatherAxis::reads_nothing;
                    const T* const line = at.image + row * images.stride_h;
#pragma unroll
                    for (int s = 0; s < 3; ++s) {
                        value[r][s] = images.padding;
                        if (row >= 0 && column[s] >= 0) value[r][s] = line[column[s] * images.stride_w];
                    }
                }
                const Sum<T> factor = grad_at(i);
#pragma unroll
                for (int t = 0; t < direct_taps; ++t)
                    if (found[t / 3] && column[t % 3] != GatherAxis::reads_nothing)
                        sum[t] = multiply_add(factor, to_sum(value[t / 3][t % 3]), sum[t]);
            }
        } else {
            for (int64_t i = begin + lane; i < end; i += direct_lanes) {
                const auto at = images.pixel(static_cast<int>(i));
                const Sum<T> factor = grad_at(i);
                auto tap = images.tap(first_tap);
#pragma unroll
                for (int t = 0; t < direct_taps; ++t) {
                    const T* element = nullptr;
                    const auto found = images.find(at, tap, element);
                    if (found != ImageGather<T>::Found::nothing)
                        sum[t] = multiply_add(
                            factor, to_sum(found == ImageGather<T>::Found::element ? *element : images.padding),
                            sum[t]);
                    images.advance(tap);
                }
            }
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
void run_direct_grad_weight(const WeightGrad<T>& grad, bool channels_adjacent, int64_t pixels_of_part, Stream stream) {
    static_assert(direct_taps <= direct_lanes);
    const int channels = grad.groups * grad.rows;
    const int tap_tiles = tiles_of(grad.columns, direct_taps);
    const bool is_3x3 = grad.images.h.taps == 3 && grad.images.w.taps == 3 && grad.images.channels.value == 1;
    const dim3 grid(static_cast<unsigned>(tiles_of(channels, direct_channels) * tap_tiles),
                    static_cast<unsigned>(grad.parts));
    const auto start = [&](auto kernel) {
        launch(kernel, grid, direct_lanes * direct_channels, sizeof(DirectTapSums<T>), stream, grad, tap_tiles,
               Divisor(grad.rows), static_cast<int>(pixels_of_part));
    };
    if (channels_adjacent)
        start(is_3x3 ? &direct_grad_weight<T, true, true> : &direct_grad_weight<T, true, false>);
    else
        start(is_3x3 ? &direct_grad_weight<T, false, true> : &direct_grad_weight<T, false, false>);
    add_parts_in_order(grad, stream);
}

}  // namespace convx::cuda
