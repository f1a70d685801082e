// Direct convolution over planes that have their border written out (conv2d/staged_planes.h): vectors run over
// positions, a tap is a constant distance, and nothing is packed for it.
//
// Per tap of few_channels_run: vecs unaligned loads, rows broadcasts, rows * vecs FMA. Every second load crosses a
// line and counts twice: (1.5 vecs + rows) / 2 cycles against rows * vecs / 2, so FMA bounds it from 3 x 4 on.
// Sums go on from what a former part has left in dest, and run in the order of d.
#pragma once

namespace {

// The accumulators of one tile: `limit` in all, and no more than 8 vectors, whose addresses have to be formed.
constexpr int few_channels_vecs(int rows, int limit) { return limit / rows < 8 ? limit / rows : 8; }

template <class T, int rows, int vecs>
void few_channels_tile(const convx::FewChannelsRun<T>& job, int64_t first, int columns) {
    constexpr int lanes = VecOf<T>::lanes;
    Vec<T> acc[rows][vecs];
    T* dest = job.dest + first;
    if (job.accumulate) {
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
            for (int v = 0; v < vecs; ++v)
                acc[i][v] = load(dest + i * job.dest_stride + v * lanes, columns - v * lanes);
    } else {
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
            for (int v = 0; v < vecs; ++v) acc[i][v] = broadcast(T(0));
    }
    const T* weight = job.weights;
    const T* source = job.source + first;
    for (int64_t d = 0; d < job.depth; ++d, weight += rows) {
        const T* from = source + job.offsets[d];
        // The shorter side of the tile waits in registers, the longer one passes by: 12 accumulators leave no more.
        if constexpr (rows < vecs) {
            Vec<T> row[rows];
#pragma GCC unroll 16
            for (int i = 0; i < rows; ++i) row[i] = broadcast(weight[i]);
#pragma GCC unroll 8
            for (int v = 0; v < vecs; ++v) {
                Vec<T> column = load(from + v * lanes);
                if constexpr (rows > 1) column = in_register(column);
#pragma GCC unroll 16
                for (int i = 0; i < rows; ++i) acc[i][v] = fma(row[i], column, acc[i][v]);
            }
        } else {
            Vec<T> column[vecs];
#pragma GCC unroll 8
            for (int v = 0; v < vecs; ++v) column[v] = load(from + v * lanes);
#pragma GCC unroll 16
            for (int i = 0; i < rows; ++i) {
                const Vec<T> row = broadcast(weight[i]);
#pragma GCC unroll 8
                for (int v = 0; v < vecs; ++v) acc[i][v] = fma(row, column[v], acc[i][v]);
            }
        }
    }
    if (job.bias) {
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
            for (int v = 0; v < vecs; ++v) acc[i][v] = add(acc[i][v], broadcast(job.bias[i]));
    }
    if (job.relu) {
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
            for (int v = 0; v < vecs; ++v) acc[i][v] = relu(acc[i][v]);
    }
    if (columns == vecs * lanes) {
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
            for (int v = 0; v < vecs; ++v) store(dest + i * job.dest_stride + v * lanes, acc[i][v]);
        return;
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
        for (int v = 0; v < vecs; ++v) {
            T* to = dest + i * job.dest_stride + v * lanes;
            if (v < vecs - 1)
                store(to, acc[i][v]);
            else
                store(to, acc[i][v], columns - v * lanes);
        }
}

template <class T, int rows, int vecs>
void few_channels_tail(const convx::FewChannelsRun<T>& job, int64_t first, int columns) {
    if constexpr (vecs > 1) {
        if (columns <= (vecs - 1) * VecOf<T>::lanes) return few_channels_tail<T, rows, vecs - 1>(job, first, columns);
    }
    few_channels_tile<T, rows, vecs>(job, first, columns);
}

template <class T, int rows, int limit>
void few_channels_rows(const convx::FewChannelsRun<T>& job) {
    if constexpr (rows > 1) {
        if (job.rows < rows) return few_channels_rows<T, rows - 1, limit>(job);
    }
    constexpr int vecs = few_channels_vecs(rows, limit);
    constexpr int whole = vecs * VecOf<T>::lanes;
    int64_t first = 0;
    for (; first + whole <= job.count; first += whole) few_channels_tile<T, rows, vecs>(job, first, whole);
    if (first < job.count) few_channels_tail<T, rows, vecs>(job, first, static_cast<int>(job.count - first));
}

// mr rows and limit accumulators at most.
template <class T, int mr, int limit>
void few_channels_run(const convx::FewChannelsRun<T>& job) {
    few_channels_rows<T, mr, limit>(job);
}

// --- weight gradient: lanes are partial sums over positions, added up at the end of a band ---

template <class T, int rows, int taps>
void few_channels_products(const convx::FewChannelsDots<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    Vec<T> acc[rows][taps];
    const T* source[taps];
#pragma GCC unroll 16
    for (int t = 0; t < taps; ++t) {
        source[t] = job.source + job.offsets[t];
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) acc[i][t] = broadcast(T(0));
    }
    const T* grad = job.grad;
    const int64_t stride = job.grad_stride;
    for (int64_t p = 0; p < job.count; p += lanes) {
        Vec<T> row[rows];
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) {
            row[i] = load(grad + i * stride + p);
            // Where 16 registers hold all rows; else one of them is read again for each tap.
            if constexpr (taps > 1 && rows * taps + rows < 16) row[i] = in_register(row[i]);
        }
#pragma GCC unroll 16
        for (int t = 0; t < taps; ++t) {
            Vec<T> column = load(source[t] + p);
            if constexpr (rows > 1) column = in_register(column);
#pragma GCC unroll 8
            for (int i = 0; i < rows; ++i) acc[i][t] = fma(row[i], column, acc[i][t]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 16
        for (int t = 0; t < taps; ++t) job.sums[i * job.sums_stride + t] += sum_lanes(acc[i][t]);
}

// The most taps beside `rows` rows: `limit` accumulators, 10 addresses.
constexpr int few_channels_taps(int rows, int limit) { return limit / rows < 10 - rows ? limit / rows : 10 - rows; }

template <class T, int rows, int taps>
void few_channels_pick_taps(const convx::FewChannelsDots<T>& job) {
    if constexpr (taps > 1) {
        if (job.taps < taps) return few_channels_pick_taps<T, rows, taps - 1>(job);
    }
    few_channels_products<T, rows, taps>(job);
}

template <class T, int rows, int limit>
void few_channels_pick_rows(const convx::FewChannelsDots<T>& job) {
    if constexpr (rows > 1) {
        if (job.rows < rows) return few_channels_pick_rows<T, rows - 1, limit>(job);
    }
    few_channels_pick_taps<T, rows, few_channels_taps(rows, limit)>(job);
}

template <class T, int limit>
void few_channels_dots(const convx::FewChannelsDots<T>& job) {
    few_channels_pick_rows<T, 5, limit>(job);
}

}  // namespace
