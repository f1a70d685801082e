// Convolution of a few channels at a time over staged rows: vectors of pixels, broadcast weights.
//
// A tile is `channels` x `vecs` sums, `limit` at most; per tap it takes vecs loads, `channels` broadcasts and channels
// * vecs FMA, so four channels are bound by FMA and one channel by its loads (nine for eight FMA). Every sum runs over
// the taps in their order, alone in its lane, so that nothing depends on where in a tile a pixel lies. The last vector
// of a row overlaps the one before it: its sums are taken twice, which costs less than a masked store.
#pragma once

#include "cpu/kernels/micro_kernel.inl.h"

namespace {

template <class T, int channels, int vecs>
inline void direct_sums(const convx::DirectTileArgs<T>& args, const T* weights, const T* const* pixels, T* const* to,
                        int lanes_used, const T* bias) {
    constexpr int lanes = VecOf<T>::lanes;
    Vec<T> acc[channels][vecs];
    multiply_tile<T>(args.taps, PackedRows<T, channels>(weights), IndirectColumns<T, vecs>(pixels, args.offsets), acc);
    const convx::Epilogue<T> epilogue{nullptr, args.dest_channel, false, bias, nullptr, args.relu};
    const auto at = [&](int c, int v) { return to[v] + c * args.dest_channel; };
    if (lanes_used == lanes)
        finish_tile<T, true>(acc, epilogue, lanes, at);
    else
        finish_tile<T, false>(acc, epilogue, lanes_used, at);
}

// `count` vectors, `vecs` or fewer.
template <class T, int channels, int vecs>
inline void direct_pick(int count, const convx::DirectTileArgs<T>& args, const T* weights, const T* const* pixels,
                        T* const* to, int lanes_used, const T* bias) {
    if constexpr (vecs > 1) {
        if (count < vecs) return direct_pick<T, channels, vecs - 1>(count, args, weights, pixels, to, lanes_used, bias);
    }
    direct_sums<T, channels, vecs>(args, weights, pixels, to, lanes_used, bias);
}

template <class T, int channels, int vecs>
void direct_panel_of(const convx::DirectTileArgs<T>& args, int64_t first_channel) {
    constexpr int lanes = VecOf<T>::lanes;
    const T* weights = args.weights + first_channel * args.taps;
    const T* bias = args.bias ? args.bias + first_channel : nullptr;
    const int64_t last = args.columns > lanes ? args.columns - lanes : 0;  // the last vector's column
    const int lanes_used = args.columns < lanes ? static_cast<int>(args.columns) : lanes;
    const T* pixels[vecs];
    T* to[vecs];
    int count = 0;
    for (int64_t row = 0; row < args.rows; ++row)
        for (int64_t column = 0;; column += lanes) {
            if (column > last) column = last;
            pixels[count] = args.source + row * args.source_row + column;
            to[count] = args.dest + first_channel * args.dest_channel + row * args.dest_row + column;
            if (++count == vecs) {
                direct_sums<T, channels, vecs>(args, weights, pixels, to, lanes_used, bias);
                count = 0;
            }
            if (column == last) break;
        }
    if (count > 0) direct_pick<T, channels, vecs>(count, args, weights, pixels, to, lanes_used, bias);
}

// More than 8 vectors would not have their addresses in registers.
constexpr int direct_vecs(int channels, int limit) { return limit / channels < 8 ? limit / channels : 8; }

template <class T, int limit>
void direct_tile(const convx::DirectTileArgs<T>& args) {
    for (int64_t channel = 0; channel < args.channels; channel += convx::direct_panel) {
        const int64_t channels = args.channels - channel;
        if (channels == 1)
            direct_panel_of<T, 1, direct_vecs(1, limit)>(args, channel);
        else if (channels == 2)
            direct_panel_of<T, 2, direct_vecs(2, limit)>(args, channel);
        else if (channels == 3)
            direct_panel_of<T, 3, direct_vecs(3, limit)>(args, channel);
        else
            direct_panel_of<T, 4, direct_vecs(4, limit)>(args, channel);
    }
}

}  // namespace
