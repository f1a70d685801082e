// The weight gradient of a depthwise convolution where channels are adjacent: vectors of channels, a sum in registers
// for each tap and channel, straight out of the arrays.
//
// Three taps x four vectors share the loads of the gradient: 16 loads for 12 FMA, 12 of them operands of the FMA
// itself. L1 bounds it at 75 % of the FMA peak, above what memory delivers.
#pragma once

namespace {

template <class T, int taps, int vecs>
inline void pixel_products(const convx::DepthwisePixelProductsArgs<T>& args, int64_t tap, int64_t c, int lanes_used) {
    constexpr int lanes = VecOf<T>::lanes;
    const auto read = [lanes_used](const T* p) { return lanes_used == lanes ? load(p) : load(p, lanes_used); };
    Vec<T> acc[taps][vecs];
    const T* source[taps];
#pragma GCC unroll 3
    for (int t = 0; t < taps; ++t) {
        source[t] = args.sources[tap + t] + c;
#pragma GCC unroll 4
        for (int v = 0; v < vecs; ++v) acc[t][v] = broadcast(T(0));
    }
    const T* grad = args.grad + c;
    for (int64_t i = 0; i < args.pixels; ++i, grad += args.grad_pixel) {
        Vec<T> gradient[vecs];
#pragma GCC unroll 4
        for (int v = 0; v < vecs; ++v) gradient[v] = in_register(read(grad + v * lanes));
#pragma GCC unroll 3
        for (int t = 0; t < taps; ++t) {
            const T* x = source[t] + i * args.source_pixel;
#pragma GCC unroll 4
            for (int v = 0; v < vecs; ++v) acc[t][v] = fma(read(x + v * lanes), gradient[v], acc[t][v]);
        }
    }
#pragma GCC unroll 3
    for (int t = 0; t < taps; ++t)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; ++v) {
            T* to = args.sums + (tap + t) * args.sums_tap + c + v * lanes;
            const Vec<T> sum = add(read(to), acc[t][v]);
            if (lanes_used == lanes)
                store(to, sum);
            else
                store(to, sum, lanes_used);
        }
}

template <class T, int vecs>
void pixel_products_of_taps(const convx::DepthwisePixelProductsArgs<T>& args, int64_t c, int lanes_used) {
    int64_t tap = 0;
    for (; tap + 3 <= args.taps; tap += 3) pixel_products<T, 3, vecs>(args, tap, c, lanes_used);
    if (tap + 2 == args.taps) pixel_products<T, 2, vecs>(args, tap, c, lanes_used);
    if (tap + 1 == args.taps) pixel_products<T, 1, vecs>(args, tap, c, lanes_used);
}

template <class T>
void depthwise_pixel_products(const convx::DepthwisePixelProductsArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes;
    int64_t c = 0;
    for (; c + 4 * lanes <= args.channels; c += 4 * lanes) pixel_products_of_taps<T, 4>(args, c, lanes);
    for (; c + lanes <= args.channels; c += lanes) pixel_products_of_taps<T, 1>(args, c, lanes);
    if (c < args.channels) pixel_products_of_taps<T, 1>(args, c, static_cast<int>(args.channels - c));
}

}  // namespace
