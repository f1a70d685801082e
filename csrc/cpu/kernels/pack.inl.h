// Packing: strided memory into the panels that gemm_tile reads. Bound by load and store ports while the source is in
// cache; every packed element is used once per row (or column) of the other operand, which is what pays for it.
#pragma once

namespace {

// One run of lanes out of memory with unit step, for all d.
template <class T>
inline void copy_run(T* dst, int64_t dst_stride, const T* src, int64_t src_stride, int64_t depth, int count) {
    constexpr int lanes = VecOf<T>::lanes;
    if (count == 2 * lanes) {
        for (int64_t d = 0; d < depth; ++d, dst += dst_stride, src += src_stride) {
            store(dst, load(src));
            store(dst + lanes, load(src + lanes));
        }
        return;
    }
    if (count >= lanes) {  // the last vector overlaps the one before: a third of the time of a masked tail
        const int last = count - lanes;
        for (int64_t d = 0; d < depth; ++d, dst += dst_stride, src += src_stride) {
            for (int i = 0; i < last; i += lanes) store(dst + i, load(src + i));
            store(dst + last, load(src + last));
        }
        return;
    }
    for (int64_t d = 0; d < depth; ++d, dst += dst_stride, src += src_stride) store(dst, load(src, count), count);
}

// One run with step 2: two loads give the even places. The second load of the last vector would reach one element past
// the run, which need not exist, so that vector is loaded by parts.
template <class T>
inline void copy_run_step2(T* dst, int64_t dst_stride, const T* src, int64_t src_stride, int64_t depth, int count) {
    constexpr int lanes = VecOf<T>::lanes;
    for (int64_t d = 0; d < depth; ++d, dst += dst_stride, src += src_stride) {
        int i = 0;
        for (; i + lanes < count; i += lanes) store(dst + i, even_lanes(load(src + 2 * i), load(src + 2 * i + lanes)));
        if (i < count) {
            const int n = count - i;
            const int readable = 2 * n - 1;
            const T* s = src + 2 * i;
            const Vec<T> low = readable >= lanes ? load(s) : load(s, readable);
            const Vec<T> high = readable > lanes ? load(s + lanes, readable - lanes) : broadcast(T(0));
            if (n == lanes)
                store(dst + i, even_lanes(low, high));
            else
                store(dst + i, even_lanes(low, high), n);
        }
    }
}

template <class T>
inline void fill_lanes(T* dst, int64_t dst_stride, int64_t depth, int begin, int end, T value) {
    for (int i = begin; i < end; ++i)
        for (int64_t d = 0; d < depth; ++d) dst[d * dst_stride + i] = value;
}

// Runs that lie on one line in memory (the rows of a plane under one tap, where output and input are equally wide) are
// copied in one go with what is between them, which belongs to the same plane; then the gaps are overwritten. A panel
// inside the image so costs two loads and two stores a channel even where it spans several rows.
template <class T>
void pack_lanes(T* dst, int64_t dst_stride, const T* src, int64_t src_stride, int64_t depth, const convx::LaneRun* runs,
                int run_count, int width, int64_t step, T pad) {
    int filled = 0;  // lanes below this one are written
    for (int r = 0; r < run_count;) {
        const convx::LaneRun& first = runs[r];
        int last = r;
        while (last + 1 < run_count &&
               runs[last + 1].offset - first.offset == (runs[last + 1].lane - first.lane) * step)
            ++last;
        const int count = runs[last].lane + runs[last].count - first.lane;
        T* to = dst + first.lane;
        const T* from = src + first.offset;
        if (step == 1) {
            copy_run(to, dst_stride, from, src_stride, depth, count);
        } else if (step == 2) {
            copy_run_step2(to, dst_stride, from, src_stride, depth, count);
        } else {
            for (int64_t d = 0; d < depth; ++d)
                for (int i = 0; i < count; ++i) to[d * dst_stride + i] = from[d * src_stride + i * step];
        }
        for (; r <= last; ++r) {
            fill_lanes(dst, dst_stride, depth, filled, runs[r].lane, pad);
            filled = runs[r].lane + runs[r].count;
        }
    }
    fill_lanes(dst, dst_stride, depth, filled, width, pad);
}

template <class T>
void pack_transposed(T* dst, int64_t dst_stride, const T* const* rows, int row_count, int64_t depth) {
    constexpr int lanes = VecOf<T>::lanes;
    for (int i = 0; i < row_count; i += lanes) {
        const int n = row_count - i < lanes ? row_count - i : lanes;
        for (int64_t d = 0; d < depth; d += lanes) {
            const int deep = depth - d < lanes ? static_cast<int>(depth - d) : lanes;
            if (deep == 1) {  // the ninth tap of a 3 x 3 kernel
                for (int r = 0; r < n; ++r) dst[d * dst_stride + i + r] = rows[i + r][d];
                continue;
            }
            Vec<T> block[lanes];
            const auto row = [&](int r) { return rows[i + (r < n ? r : n - 1)] + d; };
            if (deep == lanes) {
                load_transposed(block, row);
            } else {
#pragma GCC unroll 16
                for (int r = 0; r < lanes; ++r) block[r] = load(row(r), deep);
                transpose(block);
            }
            T* to = dst + d * dst_stride + i;
#pragma GCC unroll 16
            for (int e = 0; e < lanes; ++e) {
                if (e >= deep) break;
                if (n == lanes)
                    store(to + e * dst_stride, block[e]);
                else
                    store(to + e * dst_stride, block[e], n);
            }
        }
    }
}

// Pixel by pixel, as memory has them. Where the width is no multiple of the lanes, a vector's end is overwritten by the
// next pixel, which comes later.
template <class T, int width>
void pack_panels(T* dst, int64_t panel_stride, const T* src, int64_t src_stride, int64_t pixels, int64_t channels) {
    constexpr int lanes = VecOf<T>::lanes;
    const int64_t whole = channels >= width + lanes ? (channels - lanes) / width : 0;  // panels that read no further
    for (int64_t p = 0; p < pixels; ++p, src += src_stride, dst += width) {
        T* to = dst;
        int64_t c = 0;
        for (int64_t panel = 0; panel < whole; ++panel, c += width, to += panel_stride)
#pragma GCC unroll 4
            for (int v = 0; v < width; v += lanes) store(to + v, load(src + c + v));
        for (; c < channels; c += width, to += panel_stride)
            for (int v = 0; v < width && c + v < channels; v += lanes)
                store(to + v, channels - c - v < lanes ? load(src + c + v, static_cast<int>(channels - c - v))
                                                       : load(src + c + v));
    }
}

}  // namespace
