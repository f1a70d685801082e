// Weight gradient of a few channels at a time over staged rows: vectors of pixels on both sides, one sum a lane.
//
// A tile is `channels` x `taps` sums that stay in registers for a whole block of pixels; per vector of pixels it takes
// channels + taps loads and channels * taps FMA. The order of each sum is row by row, vector by vector, whatever the
// tile. Beyond the last column both factors are zero, so that nothing outside can spoil a sum.
#pragma once

namespace {

template <class T, int channels, int taps>
void direct_grad_weight_tile(const convx::DirectGradWeightArgs<T>& args, const int64_t* offsets, const T* grad,
                             T* sums) {
    constexpr int lanes = VecOf<T>::lanes;
    Vec<T> acc[channels][taps];
#pragma GCC unroll 4
    for (int c = 0; c < channels; ++c)
#pragma GCC unroll 9
        for (int t = 0; t < taps; ++t) acc[c][t] = load(sums + (c * args.taps + t) * lanes);
    int64_t offset[taps];
#pragma GCC unroll 9
    for (int t = 0; t < taps; ++t) offset[t] = offsets[t];
    const int64_t grad_channel = args.grad_channel;
    const int64_t whole = args.columns / lanes * lanes;
    const int rest = static_cast<int>(args.columns - whole);
    for (int64_t row = 0; row < args.rows; ++row) {
        const T* x = args.source + row * args.source_row;
        const T* g = grad + row * args.grad_row;
        const auto add_products = [&](const auto& read) {
            // The smaller side stays in registers: twelve sums leave room for three vectors and one more.
            if constexpr (taps < channels) {
                Vec<T> value[taps];
#pragma GCC unroll 9
                for (int t = 0; t < taps; ++t) value[t] = read(x + offset[t]);
#pragma GCC unroll 4
                for (int c = 0; c < channels; ++c) {
                    const Vec<T> factor = in_register(read(g + c * grad_channel));
#pragma GCC unroll 9
                    for (int t = 0; t < taps; ++t) acc[c][t] = fma(value[t], factor, acc[c][t]);
                }
            } else {
                Vec<T> factor[channels];
#pragma GCC unroll 4
                for (int c = 0; c < channels; ++c) factor[c] = read(g + c * grad_channel);
#pragma GCC unroll 9
                for (int t = 0; t < taps; ++t) {
                    const Vec<T> value = channels > 1 ? in_register(read(x + offset[t])) : read(x + offset[t]);
#pragma GCC unroll 4
                    for (int c = 0; c < channels; ++c) acc[c][t] = fma(value, factor[c], acc[c][t]);
                }
            }
        };
        for (const T* end = g + whole; g < end; g += lanes, x += lanes)
            add_products([](const T* p) { return load(p); });
        if (rest) add_products([rest](const T* p) { return load(p, rest); });
    }
#pragma GCC unroll 4
    for (int c = 0; c < channels; ++c)
#pragma GCC unroll 9
        for (int t = 0; t < taps; ++t) store(sums + (c * args.taps + t) * lanes, acc[c][t]);
}

// `count` taps, `taps` or fewer.
template <class T, int channels, int taps>
void direct_grad_weight_pick(int64_t count, const convx::DirectGradWeightArgs<T>& args, const int64_t* offsets,
                             const T* grad, T* sums) {
    if constexpr (taps > 1) {
        if (count < taps) return direct_grad_weight_pick<T, channels, taps - 1>(count, args, offsets, grad, sums);
    }
    direct_grad_weight_tile<T, channels, taps>(args, offsets, grad, sums);
}

template <class T, int channels, int taps>
void direct_grad_weight_channels(const convx::DirectGradWeightArgs<T>& args, int64_t channel) {
    for (int64_t t = 0; t < args.taps; t += taps)
        direct_grad_weight_pick<T, channels, taps>(args.taps - t, args, args.offsets + t,
                                                   args.grad + channel * args.grad_channel,
                                                   args.sums + (channel * args.taps + t) * VecOf<T>::lanes);
}

template <class T>
void direct_grad_weight(const convx::DirectGradWeightArgs<T>& args) {
    for (int64_t channel = 0; channel < args.channels; channel += convx::direct_panel) {
        const int64_t channels = args.channels - channel;
        if (channels == 1)
            direct_grad_weight_channels<T, 1, 9>(args, channel);
        else if (channels == 2)
            direct_grad_weight_channels<T, 2, 5>(args, channel);
        else if (channels == 3)
            direct_grad_weight_channels<T, 3, 4>(args, channel);
        else
            direct_grad_weight_channels<T, 4, 3>(args, channel);
    }
}

}  // namespace
