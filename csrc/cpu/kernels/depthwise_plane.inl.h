// Depthwise convolution of a plane whose columns are adjacent: vectors of columns, rows kept in registers.
//
// The rows are copied once into L1 with their borders, which costs a load and a store a vector and saves every tap its
// masks; with stride 2 they are taken apart there into even and odd columns, so that all taps read adjacent elements.
// Then each vector read (three shifts of a row, for 3x3) serves every row of the result that it belongs to. Each sum
// runs over the taps row by row, whichever of the two nests below takes it.
#pragma once

namespace {

// What happens to a sum on its way out. Fields of a job are read once, into values like this: a vector store may alias
// them, so they would be read again behind every one.
template <class T>
struct PlaneOutput {
    bool has_bias, relu_follows;
    int lanes_used;
    Vec<T> bias;

    explicit PlaneOutput(const convx::DepthwisePlane<T>& job)
        : has_bias(job.bias != nullptr), relu_follows(job.relu),
          lanes_used(job.columns < VecOf<T>::lanes ? static_cast<int>(job.columns) : VecOf<T>::lanes),
          bias(broadcast(job.bias ? *job.bias : T(0))) {}

    void put(T* to, Vec<T> sum) const {
        if (has_bias) sum = add(sum, bias);
        if (relu_follows) sum = relu(sum);
        if (lanes_used == VecOf<T>::lanes)
            store(to, sum);
        else
            store(to, sum, lanes_used);
    }
};

template <class T, int stride>
inline void stage_plane(const convx::DepthwisePlane<T>& job, int kernel) {
    constexpr int lanes = VecOf<T>::lanes;
    const int64_t width = job.width, residue_pitch = job.residue_pitch, pitch = job.pitch;
    const int64_t source_row = job.source_row, height = job.height;
    const int64_t whole = width / (stride * lanes) * (stride * lanes);
    const int rest = static_cast<int>(width - whole), rest_high = rest > lanes ? rest - lanes : 0;
    // The last vectors then overlap those before them: quicker than masks.
    const bool overlaps = whole > 0 && width % stride == 0;
    // With stride 2, where the even and odd columns of the source begin.
    T* even = job.staged + job.pad_left % stride * residue_pitch + job.pad_left / stride;
    T* odd = job.staged + (job.pad_left + 1) % stride * residue_pitch + (job.pad_left + 1) / stride;
    const int64_t first = job.first_row * stride - job.pad_top;
    const int64_t end = first + (job.rows - 1) * stride + kernel;
    const T* from = job.source + first * source_row;
    T* row = job.staged;
    for (int64_t y = first; y < end; ++y, from += source_row, even += pitch, odd += pitch, row += pitch) {
        if (y < 0 || y >= height) {
            for (int64_t i = 0; i < pitch; i += lanes) store(row + i, broadcast(T(0)));
        } else if (stride == 1) {
            for (int64_t x = 0; x < whole; x += lanes) store(even + x, load(from + x));
            if (overlaps)
                store(even + width - lanes, load(from + width - lanes));
            else
                store(even + whole, load(from + whole, rest));  // the zeros behind the last column are the border
        } else {
            for (int64_t x = 0; x < whole; x += 2 * lanes) {
                const Vec<T> low = load(from + x), high = load(from + x + lanes);
                store(even + x / 2, even_lanes(low, high));
                store(odd + x / 2, odd_lanes(low, high));
            }
            const int64_t x = overlaps ? width - 2 * lanes : whole;
            const Vec<T> low = overlaps ? load(from + x) : load(from + x, rest);
            const Vec<T> high = overlaps ? load(from + x + lanes) : load(from + x + lanes, rest_high);
            store(even + x / 2, even_lanes(low, high));
            store(odd + x / 2, odd_lanes(low, high));
        }
    }
}

// `rows` rows at a time of one vector of columns, as many as there are from `row` on; returns the first one left over.
template <class T, int kernel, int stride, int rows>
inline int64_t plane_blocks(const convx::DepthwisePlane<T>& job, int64_t row, int64_t column, const Vec<T>* weights,
                            const PlaneOutput<T>& output) {
    const int64_t residue_pitch = job.residue_pitch, pitch = job.pitch, dest_row = job.dest_row;
    const int64_t end = job.rows;
    const T* at = job.staged + row * stride * pitch + column;
    T* to = job.dest + (job.first_row + row) * dest_row + column;
    for (; row + rows <= end; row += rows, at += rows * stride * pitch, to += rows * dest_row) {
        Vec<T> acc[rows];
#pragma GCC unroll 4
        for (int i = 0; i < rows; ++i) acc[i] = broadcast(T(0));
#pragma GCC unroll 11
        for (int y = 0; y < (rows - 1) * stride + kernel; ++y) {
#pragma GCC unroll 5
            for (int s = 0; s < kernel; ++s) {
                const Vec<T> x = load(at + y * pitch + s % stride * residue_pitch + s / stride);
#pragma GCC unroll 4
                for (int i = 0; i < rows; ++i) {
                    const int r = y - i * stride;
                    if (r >= 0 && r < kernel) acc[i] = fma(x, weights[r * kernel + s], acc[i]);
                }
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < rows; ++i) output.put(to + i * dest_row, acc[i]);
    }
    return row;
}

template <class T, int kernel, int stride>
void plane_column(const convx::DepthwisePlane<T>& job, int64_t column, const Vec<T>* weights,
                  const PlaneOutput<T> output) {
    int64_t row = plane_blocks<T, kernel, stride, 4>(job, 0, column, weights, output);
    row = plane_blocks<T, kernel, stride, 2>(job, row, column, weights, output);
    plane_blocks<T, kernel, stride, 1>(job, row, column, weights, output);
}

// 3x3: down `rows` rows of two vectors at once with the sums that are under way, no row of the source read twice. Two
// chains of dependent FMA, because one would wait for itself.
template <class T, int stride, bool plain>
void rolling_pair(const convx::DepthwisePlane<T>& job, const T* at, int64_t source_apart, T* to, int64_t dest_apart,
                  int64_t rows, const Vec<T>* weights, const PlaneOutput<T> output) {
    const int64_t pitch = job.pitch, residue_pitch = job.residue_pitch, dest_row = job.dest_row;
    // Three taps of a row, added to `sum`.
    const auto add_taps = [&](Vec<T> sum, const Vec<T>* x, int r) {
        return fma(x[2], weights[3 * r + 2], fma(x[1], weights[3 * r + 1], fma(x[0], weights[3 * r], sum)));
    };
    const auto read = [&](const T* p, Vec<T>* x) {
#pragma GCC unroll 3
        for (int s = 0; s < 3; ++s) x[s] = load(p + s % stride * residue_pitch + s / stride);
    };
    const Vec<T> zero = broadcast(T(0));
    Vec<T> upper[2], lower[2];  // sums that have two rows of taps, and one
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
        Vec<T> x[3];
        read(at + v * source_apart, x);
        lower[v] = add_taps(zero, x, 0);
        if (stride == 2) continue;
        read(at + v * source_apart + pitch, x);
        upper[v] = add_taps(lower[v], x, 1);
        lower[v] = add_taps(zero, x, 0);
    }
    at += (3 - stride) * pitch;
    for (; rows > 0; --rows, at += stride * pitch, to += dest_row)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
            const T* p = at + v * source_apart;
            Vec<T> x[3];
            if (stride == 2) {
                read(p, x);
                upper[v] = add_taps(lower[v], x, 1);
                p += pitch;
            }
            read(p, x);
            const Vec<T> sum = add_taps(upper[v], x, 2);
            if (stride == 1) upper[v] = add_taps(lower[v], x, 1);
            lower[v] = add_taps(zero, x, 0);
            if (plain)
                store(to + v * dest_apart, sum);
            else
                output.put(to + v * dest_apart, sum);
        }
}

// All rows of the vectors of columns at `first` and `second`; where they are one, its upper and its lower half.
template <class T, int stride>
void rolling_columns(const convx::DepthwisePlane<T>& job, int64_t first, int64_t second, const Vec<T>* weights,
                     const PlaneOutput<T>& output) {
    const T* at = job.staged + first;
    T* to = job.dest + job.first_row * job.dest_row + first;
    int64_t source_apart = second - first, dest_apart = second - first, rows = job.rows;
    if (first == second) {
        rows = (job.rows + 1) / 2;  // both take the row in the middle of an odd number
        source_apart = (job.rows - rows) * stride * job.pitch;
        dest_apart = (job.rows - rows) * job.dest_row;
    }
    if (output.has_bias || output.relu_follows || output.lanes_used < VecOf<T>::lanes)
        rolling_pair<T, stride, false>(job, at, source_apart, to, dest_apart, rows, weights, output);
    else
        rolling_pair<T, stride, true>(job, at, source_apart, to, dest_apart, rows, weights, output);
}

template <class T, int kernel, int stride>
void depthwise_plane_sized(const convx::DepthwisePlane<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    stage_plane<T, stride>(job, kernel);
    Vec<T> weights[kernel * kernel];
#pragma GCC unroll 25
    for (int t = 0; t < kernel * kernel; ++t) weights[t] = broadcast(job.weights[t]);
    const PlaneOutput<T> output(job);
    // The last vector overlaps the one before it.
    const int64_t last = job.columns > lanes ? job.columns - lanes : 0;
    for (int64_t column = 0;; column += lanes) {
        if (column > last) column = last;
        if constexpr (kernel == 3) {
            const int64_t first = column;
            if (column < last) column = column + lanes < last ? column + lanes : last;
            rolling_columns<T, stride>(job, first, column, weights, output);
        } else {
            plane_column<T, kernel, stride>(job, column, weights, output);
        }
        if (column == last) break;
    }
}

// kernel is 3 or 5, stride 1 or 2.
template <class T>
void depthwise_plane(int kernel, int stride, const convx::DepthwisePlane<T>& job) {
    if (kernel == 3 && stride == 1) return depthwise_plane_sized<T, 3, 1>(job);
    if (kernel == 3) return depthwise_plane_sized<T, 3, 2>(job);
    if (stride == 1) return depthwise_plane_sized<T, 5, 1>(job);
    depthwise_plane_sized<T, 5, 2>(job);
}

template <class T>
void depthwise_stage(int kernel, int stride, const convx::DepthwisePlane<T>& job) {
    if (stride == 1) return stage_plane<T, 1>(job, kernel);
    stage_plane<T, 2>(job, kernel);
}

// Columns [0, columns) of one row of the adjoint of 3x3 with stride 2. Columns where the window's middle tap is the
// only one in its row take one product a row of the source, those between them two, of a place and the one behind it.
template <class T, bool between_first, bool two_rows>
inline void adjoint_row(const T* above, const T* at, const T* above_weights, const T* at_weights, T* to,
                        int64_t columns) {
    constexpr int lanes = VecOf<T>::lanes;
    const Vec<T> a0 = broadcast(above_weights[0]), a1 = broadcast(above_weights[1]), a2 = broadcast(above_weights[2]);
    const Vec<T> b0 = broadcast(at_weights[0]), b1 = broadcast(at_weights[1]), b2 = broadcast(at_weights[2]);
    const int64_t last = columns >= 2 * lanes && columns % 2 == 0 ? columns - 2 * lanes : columns;
    for (int64_t column = 0; column < columns; column += 2 * lanes) {
        if (column > last) column = last;
        Vec<T> between = broadcast(T(0)), middle = broadcast(T(0));
        if (two_rows) {
            const Vec<T> left = load(above + column / 2), right = load(above + column / 2 + 1);
            between = fma(right, a0, fma(left, a2, between));
            middle = fma(between_first ? right : left, a1, middle);
        }
        const Vec<T> left = load(at + column / 2), right = load(at + column / 2 + 1);
        between = fma(right, b0, fma(left, b2, between));
        middle = fma(between_first ? right : left, b1, middle);
        const Vec<T> even = between_first ? between : middle, odd = between_first ? middle : between;
        const int64_t rest = columns - column;
        if (rest >= 2 * lanes) {
            store(to + column, interleave_low(even, odd));
            store(to + column + lanes, interleave_high(even, odd));
            continue;
        }
        store(to + column, interleave_low(even, odd), static_cast<int>(rest < lanes ? rest : lanes));
        if (rest > lanes) store(to + column + lanes, interleave_high(even, odd), static_cast<int>(rest - lanes));
    }
}

// The adjoint of 3x3 with stride 2, padding below 3: `source` is the gradient of the output, `dest` that of the input,
// pad_top and pad_left are those of the forward pass.
template <class T>
void depthwise_plane_adjoint(const convx::DepthwisePlane<T>& job) {
    // Row h reads source rows u - 1 and u with taps 2 and 0 where h + pad is 2 u, and u with tap 1 where it is 2 u + 1.
    const int64_t first = job.first_row + job.pad_top, end = first + job.rows;
    convx::DepthwisePlane<T> stage = job;
    stage.first_row = first / 2;
    stage.rows = (end - 1) / 2 - first / 2 + 1;
    stage.pad_top = stage.pad_left = 1;
    stage_plane<T, 1>(stage, 2);
    const bool between_first = job.pad_left % 2 == 0;
    // Staged column x is column x - 1 of the source.
    const T* staged = job.staged + (between_first ? job.pad_left / 2 : (job.pad_left - 1) / 2 + 1);
    for (int64_t h = first; h < end; ++h) {
        const T* above = staged + (h / 2 - first / 2) * job.pitch;
        const T* at = above + job.pitch;
        T* to = job.dest + (h - job.pad_top) * job.dest_row;
        const T* weights = job.weights;
        if (h % 2 == 0 && between_first)
            adjoint_row<T, true, true>(above, at, weights + 6, weights, to, job.columns);
        else if (h % 2 == 0)
            adjoint_row<T, false, true>(above, at, weights + 6, weights, to, job.columns);
        else if (between_first)
            adjoint_row<T, true, false>(above, at, weights, weights + 3, to, job.columns);
        else
            adjoint_row<T, false, false>(above, at, weights, weights + 3, to, job.columns);
    }
}

}  // namespace
