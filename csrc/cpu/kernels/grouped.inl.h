// Convolution of a few channels at a time over staged rows: vectors of pixels, broadcast weights.
//
// A tile is `channels` x `vecs` sums, `limit` at most; per tap it takes vecs loads, `channels` broadcasts and channels
// * vecs FMA, so four channels are bound by FMA and one channel by its loads (nine for eight FMA). Every sum runs over
// the taps in their order, alone in its lane, so that nothing depends on where in a tile a pixel lies. The last vector
// of a row overlaps the one before it: its sums are taken twice, which costs less than a masked store.
#pragma once

namespace {

template <class T, int channels, int vecs>
inline void grouped_sums(const convx::GroupedTile<T>& job, const T* weights, const T* const* pixels, T* const* to,
                         int lanes_used, const T* bias) {
    Vec<T> acc[channels][vecs];
#pragma GCC unroll 4
    for (int c = 0; c < channels; ++c)
#pragma GCC unroll 8
        for (int v = 0; v < vecs; ++v) acc[c][v] = broadcast(T(0));
    const T* at[vecs];
#pragma GCC unroll 8
    for (int v = 0; v < vecs; ++v) at[v] = pixels[v];
    for (int64_t t = 0; t < job.taps; ++t, weights += channels) {
        const int64_t offset = job.offsets[t];
        // On AVX2 twelve sums, three vectors and one weight fill the sixteen registers.
        Vec<T> x[vecs];
#pragma GCC unroll 8
        for (int v = 0; v < vecs; ++v) x[v] = load(at[v] + offset);
#pragma GCC unroll 4
        for (int c = 0; c < channels; ++c) {
            const Vec<T> weight = broadcast(weights[c]);
#pragma GCC unroll 8
            for (int v = 0; v < vecs; ++v) acc[c][v] = fma(x[v], weight, acc[c][v]);
        }
    }
#pragma GCC unroll 4
    for (int c = 0; c < channels; ++c)
#pragma GCC unroll 8
        for (int v = 0; v < vecs; ++v) {
            Vec<T> sum = acc[c][v];
            if (bias) sum = add(sum, broadcast(bias[c]));
            if (job.relu) sum = relu(sum);
            T* dest = to[v] + c * job.dest_channel;
            if (lanes_used == VecOf<T>::lanes)
                store(dest, sum);
            else
                store(dest, sum, lanes_used);
        }
}

// `count` vectors, `vecs` or fewer.
template <class T, int channels, int vecs>
inline void grouped_pick(int count, const convx::GroupedTile<T>& job, const T* weights, const T* const* pixels,
                         T* const* to, int lanes_used, const T* bias) {
    if constexpr (vecs > 1) {
        if (count < vecs) return grouped_pick<T, channels, vecs - 1>(count, job, weights, pixels, to, lanes_used, bias);
    }
    grouped_sums<T, channels, vecs>(job, weights, pixels, to, lanes_used, bias);
}

template <class T, int channels, int vecs>
void grouped_panel_of(const convx::GroupedTile<T>& job, int64_t first_channel) {
    constexpr int lanes = VecOf<T>::lanes;
    const T* weights = job.weights + first_channel * job.taps;
    const T* bias = job.bias ? job.bias + first_channel : nullptr;
    const int64_t last = job.columns > lanes ? job.columns - lanes : 0;  // the last vector's column
    const int lanes_used = job.columns < lanes ? static_cast<int>(job.columns) : lanes;
    const T* pixels[vecs];
    T* to[vecs];
    int count = 0;
    for (int64_t row = 0; row < job.rows; ++row)
        for (int64_t column = 0;; column += lanes) {
            if (column > last) column = last;
            pixels[count] = job.source + row * job.source_row + column;
            to[count] = job.dest + first_channel * job.dest_channel + row * job.dest_row + column;
            if (++count == vecs) {
                grouped_sums<T, channels, vecs>(job, weights, pixels, to, lanes_used, bias);
                count = 0;
            }
            if (column == last) break;
        }
    if (count > 0) grouped_pick<T, channels, vecs>(count, job, weights, pixels, to, lanes_used, bias);
}

// More than 8 vectors would not have their addresses in registers.
constexpr int grouped_vecs(int channels, int limit) { return limit / channels < 8 ? limit / channels : 8; }

template <class T, int limit>
void grouped_tile(const convx::GroupedTile<T>& job) {
    for (int64_t channel = 0; channel < job.channels; channel += convx::grouped_panel) {
        const int64_t channels = job.channels - channel;
        if (channels == 1)
            grouped_panel_of<T, 1, grouped_vecs(1, limit)>(job, channel);
        else if (channels == 2)
            grouped_panel_of<T, 2, grouped_vecs(2, limit)>(job, channel);
        else if (channels == 3)
            grouped_panel_of<T, 3, grouped_vecs(3, limit)>(job, channel);
        else
            grouped_panel_of<T, 4, grouped_vecs(4, limit)>(job, channel);
    }
}

}  // namespace
