// Groups of as many channels as a vector has lanes, or more: vectors over the channels of the result, broadcast pixels.
//
// A tile is 6 pixels (or taps, in the weight gradient) x 2 vectors on AVX2: per step 2 loads that are aligned and 6
// broadcasts, which no line border slows down, for 12 FMA, whatever the stride is. One vector takes 8 pixels: more
// would not have their addresses in registers. Every sum is one chain of FMA in the order of taps (or pixels).
#pragma once

namespace {

template <class T, int vecs, int pixels>
void grouped_channels_tile(const convx::GroupedChannels<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    Vec<T> acc[pixels][vecs];
    const T* source[pixels];
#pragma GCC unroll 8
    for (int p = 0; p < pixels; ++p) {
        source[p] = job.source + job.places[p];
#pragma GCC unroll 2
        for (int v = 0; v < vecs; ++v) acc[p][v] = broadcast(T(0));
    }
    const int32_t* offset = job.offsets;
    const T* weights = job.weights;
    for (const int32_t* end = offset + job.taps; offset < end; ++offset, weights += vecs * lanes) {
        const int64_t at = *offset;
        Vec<T> weight[vecs];
#pragma GCC unroll 2
        for (int v = 0; v < vecs; ++v) weight[v] = load(weights + v * lanes);
#pragma GCC unroll 8
        for (int p = 0; p < pixels; ++p) {
            const Vec<T> pixel = broadcast(source[p][at]);
#pragma GCC unroll 2
            for (int v = 0; v < vecs; ++v) acc[p][v] = fma(pixel, weight[v], acc[p][v]);
        }
    }
#pragma GCC unroll 8
    for (int p = 0; p < pixels; ++p)
#pragma GCC unroll 2
        for (int v = 0; v < vecs; ++v) {
            Vec<T> sum = acc[p][v];
            if (job.bias) sum = add(sum, load(job.bias + v * lanes));
            if (job.relu) sum = relu(sum);
            store(job.dest + static_cast<int64_t>(job.to[p]) * vecs * lanes + v * lanes, sum);
        }
}

// `pixels` or fewer.
template <class T, int vecs, int pixels>
void grouped_channels_pick(const convx::GroupedChannels<T>& job) {
    if constexpr (pixels > 1) {
        if (job.pixels < pixels) return grouped_channels_pick<T, vecs, pixels - 1>(job);
    }
    grouped_channels_tile<T, vecs, pixels>(job);
}

// `limit` accumulators at most.
template <class T, int limit>
void grouped_channels(const convx::GroupedChannels<T>& job) {
    if (job.vecs == 1)
        grouped_channels_pick<T, 1, convx::grouped_channel_pixels(1, limit)>(job);
    else
        grouped_channels_pick<T, 2, convx::grouped_channel_pixels(2, limit)>(job);
}

// --- weight gradient ---

template <class T, int vecs, int taps>
void grouped_channel_sums_tile(const convx::GroupedChannelSums<T>& job, const int32_t* offsets, T* sums) {
    constexpr int lanes = VecOf<T>::lanes;
    Vec<T> acc[taps][vecs];
    int64_t offset[taps];
#pragma GCC unroll 8
    for (int t = 0; t < taps; ++t) {
        offset[t] = offsets[t];
#pragma GCC unroll 2
        for (int v = 0; v < vecs; ++v) acc[t][v] = broadcast(T(0));
    }
    const T* grad = job.grad;
    const int64_t step = job.source_step, columns = job.columns;
    for (int64_t image = 0; image < job.images; ++image) {
        const T* row = job.source + image * job.source_image;
        for (int64_t i = 0; i < job.rows; ++i, row += job.source_row) {
            const T* source = row;
            for (const T* end = grad + columns * vecs * lanes; grad < end; grad += vecs * lanes, source += step) {
                Vec<T> factor[vecs];
#pragma GCC unroll 2
                for (int v = 0; v < vecs; ++v) factor[v] = load(grad + v * lanes);
#pragma GCC unroll 8
                for (int t = 0; t < taps; ++t) {
                    const Vec<T> pixel = broadcast(source[offset[t]]);
#pragma GCC unroll 2
                    for (int v = 0; v < vecs; ++v) acc[t][v] = fma(pixel, factor[v], acc[t][v]);
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < taps; ++t)
#pragma GCC unroll 2
        for (int v = 0; v < vecs; ++v) {
            T* to = sums + (t * vecs + v) * lanes;
            store(to, add(load(to), acc[t][v]));
        }
}

// `count` taps, `taps` or fewer.
template <class T, int vecs, int taps>
void grouped_channel_sums_pick(int64_t count, const convx::GroupedChannelSums<T>& job, const int32_t* offsets,
                               T* sums) {
    if constexpr (taps > 1) {
        if (count < taps) return grouped_channel_sums_pick<T, vecs, taps - 1>(count, job, offsets, sums);
    }
    grouped_channel_sums_tile<T, vecs, taps>(job, offsets, sums);
}

template <class T, int vecs, int taps>
void grouped_channel_sums_of(const convx::GroupedChannelSums<T>& job) {
    for (int64_t t = 0; t < job.taps; t += taps)
        grouped_channel_sums_pick<T, vecs, taps>(job.taps - t, job, job.offsets + t,
                                                 job.sums + t * vecs * VecOf<T>::lanes);
}

template <class T, int limit>
void grouped_channel_sums(const convx::GroupedChannelSums<T>& job) {
    if (job.vecs == 1)
        grouped_channel_sums_of<T, 1, convx::grouped_channel_pixels(1, limit)>(job);
    else
        grouped_channel_sums_of<T, 2, convx::grouped_channel_pixels(2, limit)>(job);
}

}  // namespace
