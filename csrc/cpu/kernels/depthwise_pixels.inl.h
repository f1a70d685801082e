// Depthwise convolution where channels are adjacent: vectors of channels, straight out of the source. What lies outside
// the image is a pointer to a row of border values, so one kernel takes every window, stride, dilation and padding
// mode.
//
// Four pixels x two vectors share the loads of weights and of pointers: 14 loads for 8 FMA, so L1 bounds it at about
// half of the FMA peak, above what memory delivers.
#pragma once

namespace {

template <class T, int pixels, int vecs>
inline void pixel_sums(const convx::DepthwisePixelsArgs<T>& args, int64_t c, int lanes_used) {
    constexpr int lanes = VecOf<T>::lanes;
    const auto read = [lanes_used](const T* p) { return lanes_used == lanes ? load(p) : load(p, lanes_used); };
    Vec<T> acc[pixels][vecs];
#pragma GCC unroll 4
    for (int i = 0; i < pixels; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < vecs; ++v) acc[i][v] = broadcast(T(0));
    const T* weights = args.weights + c;
    const T* const* sources = args.sources;
    for (int64_t t = 0; t < args.taps; ++t, weights += args.channels, sources += convx::depthwise_pixels) {
        Vec<T> weight[vecs];
#pragma GCC unroll 2
        for (int v = 0; v < vecs; ++v) weight[v] = read(weights + v * lanes);
#pragma GCC unroll 4
        for (int i = 0; i < pixels; ++i) {
            const T* x = sources[i] + c;
#pragma GCC unroll 2
            for (int v = 0; v < vecs; ++v) acc[i][v] = fma(read(x + v * lanes), weight[v], acc[i][v]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < pixels; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < vecs; ++v) {
            Vec<T> sum = acc[i][v];
            if (args.bias) sum = add(sum, read(args.bias + c + v * lanes));
            if (args.relu) sum = relu(sum);
            T* to = args.dest + i * args.dest_pixel + c + v * lanes;
            if (lanes_used == lanes)
                store(to, sum);
            else
                store(to, sum, lanes_used);
        }
}

template <class T, int pixels>
void depthwise_pixels_sized(const convx::DepthwisePixelsArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes;
    int64_t c = 0;
    for (; c + 2 * lanes <= args.channels; c += 2 * lanes) pixel_sums<T, pixels, 2>(args, c, lanes);
    for (; c + lanes <= args.channels; c += lanes) pixel_sums<T, pixels, 1>(args, c, lanes);
    if (c < args.channels) pixel_sums<T, pixels, 1>(args, c, static_cast<int>(args.channels - c));
}

template <class T>
void depthwise_pixels(const convx::DepthwisePixelsArgs<T>& args) {
    if (args.pixels == 4) return depthwise_pixels_sized<T, 4>(args);
    if (args.pixels == 3) return depthwise_pixels_sized<T, 3>(args);
    if (args.pixels == 2) return depthwise_pixels_sized<T, 2>(args);
    depthwise_pixels_sized<T, 1>(args);
}

}  // namespace
