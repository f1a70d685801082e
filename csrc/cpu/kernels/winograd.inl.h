// The transforms of Winograd's F(4 x 4, 3 x 3): Y = A' [(G g G') * (B' d B)] A, * element by element.
//
// Cook-Toom: a correlation of 4 outputs with 3 taps is a polynomial product, evaluated at 6 points, multiplied point by
// point and interpolated (Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016; Winograd,
// "Arithmetic complexity of computations", 1980). With finite points p_0..p_4 and infinity, M(x) the product of all
// x - p_l and N_j that of p_j - p_l over l != j:
//   B' row j: coefficients of M(x) / (x - p_j); last row: of M(x)
//   G  row j: p_j^k / N_j, k = 0..2;            last row: 0 0 1
//   A' column j: p_j^i, i = 0..3;               last column: 0 0 0 1
// The points are 0, +-11/16, +-3/2: half the rounding error of 0, +-1, +-2 at the same cost (Barabasz, Anderson,
// Soodhalter, Gregg, "Error analysis and improving the accuracy of Winograd convolution", 2018). Their powers that
// occur are exact in float32.
//
// Vectors run over tiles (over rows of the weights), so every lane does the same arithmetic in the same order, and a
// tile's bits depend on nothing beside it.
#pragma once

#include "cpu/kernels/micro_kernel.inl.h"

namespace {

constexpr double point_a = 0.6875, point_b = 1.5;
constexpr double point_a2 = point_a * point_a, point_b2 = point_b * point_b;

template <class T>
inline Vec<T> number(double x) {
    return broadcast(static_cast<T>(x));
}

template <class T>
inline Vec<T> load_lanes(const T* from, int n) {
    return n >= VecOf<T>::lanes ? load(from) : load(from, n);
}
template <class T>
inline void store_lanes(T* to, Vec<T> value, int n) {
    if (n >= VecOf<T>::lanes)
        store(to, value);
    else
        store(to, value, n);
}

// B' along one axis: 12 multiply-adds.
template <class T>
[[gnu::always_inline]] inline void transform_input(const Vec<T> (&d)[6], Vec<T> (&v)[6]) {
    const Vec<T> even_b = fma(number<T>(-point_b2), d[2], d[4]), odd_b = fma(number<T>(-point_b2), d[1], d[3]);
    const Vec<T> even_a = fma(number<T>(-point_a2), d[2], d[4]), odd_a = fma(number<T>(-point_a2), d[1], d[3]);
    const Vec<T> product = number<T>(point_a2 * point_b2), sum = number<T>(-point_a2 - point_b2);
    v[0] = fma(product, d[0], fma(sum, d[2], d[4]));
    v[1] = fma(number<T>(point_a), odd_b, even_b);
    v[2] = fma(number<T>(-point_a), odd_b, even_b);
    v[3] = fma(number<T>(point_b), odd_a, even_a);
    v[4] = fma(number<T>(-point_b), odd_a, even_a);
    v[5] = fma(product, d[1], fma(sum, d[3], d[5]));
}

// G along one axis.
template <class T>
[[gnu::always_inline]] inline void transform_weights(const Vec<T> (&g)[3], Vec<T> (&u)[6]) {
    constexpr double n0 = point_a2 * point_b2;
    constexpr double na = 2 * point_a2 * (point_a2 - point_b2), nb = 2 * point_b2 * (point_b2 - point_a2);
    const Vec<T> even_a = mul(number<T>(1 / na), fma(number<T>(point_a2), g[2], g[0]));
    const Vec<T> even_b = mul(number<T>(1 / nb), fma(number<T>(point_b2), g[2], g[0]));
    u[0] = mul(number<T>(1 / n0), g[0]);
    u[1] = fma(number<T>(point_a / na), g[1], even_a);
    u[2] = fma(number<T>(-point_a / na), g[1], even_a);
    u[3] = fma(number<T>(point_b / nb), g[1], even_b);
    u[4] = fma(number<T>(-point_b / nb), g[1], even_b);
    u[5] = g[2];
}

// A' along one axis.
template <class T>
[[gnu::always_inline]] inline void transform_output(const Vec<T> (&m)[6], Vec<T> (&y)[4]) {
    const Vec<T> sum_a = add(m[1], m[2]), sum_b = add(m[3], m[4]);
    const Vec<T> difference_a = sub(m[1], m[2]), difference_b = sub(m[3], m[4]);
    y[0] = add(m[0], add(sum_a, sum_b));
    y[1] = fma(number<T>(point_a), difference_a, mul(number<T>(point_b), difference_b));
    y[2] = fma(number<T>(point_a2), sum_a, mul(number<T>(point_b2), sum_b));
    y[3] = fma(number<T>(point_a * point_a2), difference_a, fma(number<T>(point_b * point_b2), difference_b, m[5]));
}

// A tile along both axes, from `in` x `in` to `out` x `out`: read(i, d) fills line i of one axis, write(j, y) takes
// line j of the other. A whole tile does not fit the registers, so that the first axis goes through a buffer in L1.
template <class T, int in, int out, void (*transform)(const Vec<T> (&)[in], Vec<T> (&)[out]), class Read, class Write>
[[gnu::always_inline]] inline void transform_tile(const Read& read, const Write& write) {
    Vec<T> half[in][out];
    for (int i = 0; i < in; ++i) {
        Vec<T> d[in];
        read(i, d);
        transform(d, half[i]);
    }
    for (int j = 0; j < out; ++j) {
        Vec<T> d[in], y[out];
#pragma GCC unroll 6
        for (int i = 0; i < in; ++i) d[i] = half[i][j];
        transform(d, y);
        write(j, y);
    }
}

template <class T, int vecs>
void winograd_input(const convx::WinogradInputArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes;
    const T* source = args.source;
    T* dest = args.dest;
    for (int64_t c = 0; c < args.channels; ++c, source += args.source_channel, dest += vecs * lanes)
        for (int v = 0; v < vecs; ++v) {
            const T* places[lanes];
#pragma GCC unroll 16
            for (int t = 0; t < lanes; ++t) places[t] = source + args.places[v * lanes + t];
            const auto read = [&](int i, Vec<T>(&d)[6]) {
                Vec<T> first[4], last[4];
                load_quads(places, i * args.source_row, first);
                load_quads(places, i * args.source_row + 2, last);
                for (int j = 0; j < 4; ++j) d[j] = first[j];
                d[4] = last[2];
                d[5] = last[3];
            };
            const auto write = [&](int j, const Vec<T>(&values)[6]) {
                T* to = dest + v * lanes + j * args.dest_frequency;
#pragma GCC unroll 6
                for (int i = 0; i < 6; ++i) store(to + 6 * i * args.dest_frequency, values[i]);
            };
            transform_tile<T, 6, 6, transform_input<T>>(read, write);
        }
}

// Runs of a few elements to a few hundred, the same for every channel; what lies between them is left alone. A channel
// is a few lines on pages of their own, too few for the hardware to foresee the next: prefetching takes a quarter off.
template <class T>
void winograd_stage(const convx::WinogradStageArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes;
    const T* source = args.source;
    T* dest = args.dest;
    for (int64_t c = 0; c < args.channels; ++c, source += args.source_channel, dest += args.dest_channel)
        for (int r = 0; r < args.run_count; ++r) {
            const T* from = source + args.runs[r].offset;
            T* to = dest + args.runs[r].lane;
            const int last = args.runs[r].count - lanes;
            for (int i = 0; i < args.runs[r].count; i += 16) prefetch(from + 2 * args.source_channel + i);
            if (last < 0) {
                for (int i = 0; i < args.runs[r].count; ++i) to[i] = from[i * args.step];
            } else if (args.step == 1) {  // the last vector overlaps the one before
                for (int i = 0; i < last; i += lanes) store(to + i, load(from + i));
                store(to + last, load(from + last));
            } else {
                for (int i = 0; i < args.runs[r].count; ++i) to[i] = from[i * args.step];
            }
        }
}

// One frequency: all rows x tiles, in register tiles, slice by slice of the channels. Inlined, so that the epilogue's
// options are constants: at a depth of 64 they and a call would take 15 % of the time.
template <class T, int mr, int vecs, int rows, int used>
inline void products_tile(const convx::WinogradProductsArgs<T>& args, const T* weights, const T* inputs, T* products) {
    constexpr int lanes = VecOf<T>::lanes;
    for (int64_t c = 0; c < args.channels; c += args.chunk) {
        const int64_t depth = args.channels - c < args.chunk ? args.channels - c : args.chunk;
        Vec<T> acc[rows][used];
        multiply_tile<T>(depth, PackedRows<T, mr>(weights + c * mr),
                         PackedColumns<T, vecs * lanes>{inputs + c * vecs * lanes}, acc);
        finish_rows<T>(acc, {products, args.product_row, c > 0 || args.accumulate}, used * lanes);
    }
}

template <class T, int mr, int vecs, int rows>
inline void products_rows(const convx::WinogradProductsArgs<T>& args, int64_t want_rows, const T* weights,
                          T* products) {
    constexpr int nr = vecs * VecOf<T>::lanes;
    if constexpr (rows > 1) {
        if (want_rows < rows) return products_rows<T, mr, vecs, rows - 1>(args, want_rows, weights, products);
    }
    const T* inputs = args.inputs;
    int64_t tile = 0;
    for (; tile + nr - VecOf<T>::lanes < args.tiles; tile += nr, inputs += args.input_panel)
        products_tile<T, mr, vecs, rows, vecs>(args, weights, inputs, products + tile);
    if (tile < args.tiles) products_tile<T, mr, vecs, rows, vecs - 1>(args, weights, inputs, products + tile);
}

template <class T, int mr, int vecs>
void winograd_products(const convx::WinogradProductsArgs<T>& args) {
    static_assert(vecs == 2, "one vector less is one vector");
    const T* weights = args.weights;
    T* products = args.products;
    for (int64_t row = 0; row < args.rows; row += mr, weights += args.weight_panel, products += mr * args.product_row)
        products_rows<T, mr, vecs, mr>(args, args.rows - row, weights, products);
}

// mr is no multiple of the lanes: the last vector reads the next tap's rows too. It also writes them, for the next
// channel to overwrite: a third of the time of stores that end in the middle of a vector. Only the last channel's do.
template <class T, int mr>
void winograd_weights(const convx::WinogradWeightsArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes;
    const T* source = args.source;
    T* dest = args.dest;
    for (int64_t c = 0; c < args.channels; ++c, source += args.source_channel, dest += mr)
        for (int first = 0; first < mr; first += lanes) {
            const int n = c + 1 < args.channels || mr - first > lanes ? lanes : mr - first;
            const auto read = [&](int row, Vec<T>(&g)[3]) {
                for (int s = 0; s < 3; ++s) g[s] = load(source + args.tap[3 * row + s] + first);
            };
            const auto write = [&](int j, const Vec<T>(&u)[6]) {
                T* to = dest + first + j * args.dest_frequency;
                for (int i = 0; i < 6; ++i) store_lanes(to + 6 * i * args.dest_frequency, u[i], n);
            };
            transform_tile<T, 3, 6, transform_weights<T>>(read, write);
        }
}

template <class T>
inline void output_of_vector(const convx::WinogradOutputArgs<T>& args, const T* source, T* const* places, Vec<T> bias,
                             Vec<T>& faults) {
    const auto read = [&](int j, Vec<T>(&m)[6]) {
        const T* from = source + j * args.source_frequency;
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) m[i] = load(from + 6 * i * args.source_frequency);
    };
    const auto write = [&](int i, Vec<T>(&y)[4]) {
        faults = fma(add(add(y[0], y[1]), add(y[2], y[3])), broadcast(T(0)), faults);
        if (args.bias)
            for (Vec<T>& value : y) value = add(value, bias);
        if (args.relu)
            for (Vec<T>& value : y) value = relu(value);
        store_quads(places, i * args.dest_line, y);
    };
    transform_tile<T, 6, 4, transform_output<T>>(read, write);
}

template <class T, int vecs>
void winograd_output(const convx::WinogradOutputArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes;
    const T* source = args.source;
    T* dest = args.dest;
    Vec<T> faults[vecs];
    for (int v = 0; v < vecs; ++v) faults[v] = load(args.faults + v * lanes);
    for (int64_t row = 0; row < args.rows; ++row, source += args.source_row, dest += args.dest_row) {
        const Vec<T> bias = broadcast(args.bias ? args.bias[row] : T(0));
        for (int v = 0; v < vecs; ++v) {
            T* places[lanes];
#pragma GCC unroll 16
            for (int t = 0; t < lanes; ++t) places[t] = dest + args.places[v * lanes + t];
            output_of_vector<T>(args, source + v * lanes, places, bias, faults[v]);
        }
    }
    for (int v = 0; v < vecs; ++v) store(args.faults + v * lanes, faults[v]);
}

// The weight gradient correlates 6 x 6 inputs with 4 x 4 gradients to 3 x 3 taps: the same B', other G and A'.
template <class T>
[[gnu::always_inline]] inline void transform_gradients(const Vec<T> (&g)[4], Vec<T> (&u)[6]) {
    constexpr double n0 = point_a2 * point_b2;
    constexpr double na = 2 * point_a2 * (point_a2 - point_b2), nb = 2 * point_b2 * (point_b2 - point_a2);
    const Vec<T> even_a = mul(number<T>(1 / na), fma(number<T>(point_a2), g[2], g[0]));
    const Vec<T> even_b = mul(number<T>(1 / nb), fma(number<T>(point_b2), g[2], g[0]));
    const Vec<T> odd_a = fma(number<T>(point_a2), g[3], g[1]), odd_b = fma(number<T>(point_b2), g[3], g[1]);
    u[0] = mul(number<T>(1 / n0), g[0]);
    u[1] = fma(number<T>(point_a / na), odd_a, even_a);
    u[2] = fma(number<T>(-point_a / na), odd_a, even_a);
    u[3] = fma(number<T>(point_b / nb), odd_b, even_b);
    u[4] = fma(number<T>(-point_b / nb), odd_b, even_b);
    u[5] = g[3];
}

template <class T>
[[gnu::always_inline]] inline void transform_taps(const Vec<T> (&m)[6], Vec<T> (&y)[3]) {
    const Vec<T> sum_a = add(m[1], m[2]), sum_b = add(m[3], m[4]);
    y[0] = add(m[0], add(sum_a, sum_b));
    y[1] = fma(number<T>(point_a), sub(m[1], m[2]), mul(number<T>(point_b), sub(m[3], m[4])));
    y[2] = fma(number<T>(point_a2), sum_a, fma(number<T>(point_b2), sum_b, m[5]));
}

template <class T, int vecs>
void winograd_input_tiles(const convx::WinogradTilesArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes, width = vecs * lanes;
    for (int64_t tile = 0; tile < args.tiles; ++tile)
        for (int v = 0; v < vecs; ++v) {
            const T* source = args.source + 4 * tile * width + v * lanes;
            T* dest = args.dest + tile * width + v * lanes;
            const auto read = [&](int i, Vec<T>(&d)[6]) {
                for (int j = 0; j < 6; ++j) d[j] = load(source + i * args.source_row + j * width);
            };
            const auto write = [&](int j, const Vec<T>(&values)[6]) {
#pragma GCC unroll 6
                for (int i = 0; i < 6; ++i) store(dest + (6 * i + j) * args.dest_frequency, values[i]);
            };
            transform_tile<T, 6, 6, transform_input<T>>(read, write);
        }
}

// mr is no multiple of the lanes: the last vector reads the next pixel's channels too, and writes its own alone.
template <class T, int mr>
void winograd_gradient_tiles(const convx::WinogradTilesArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes;
    for (int64_t tile = 0; tile < args.tiles; ++tile)
        for (int first = 0; first < mr; first += lanes) {
            const int n = mr - first < lanes ? mr - first : lanes;
            const T* source = args.source + 4 * tile * mr + first;
            T* dest = args.dest + tile * mr + first;
            const auto read = [&](int i, Vec<T>(&g)[4]) {
                for (int j = 0; j < 4; ++j) g[j] = load(source + i * args.source_row + j * mr);
            };
            const auto write = [&](int j, const Vec<T>(&u)[6]) {
                for (int i = 0; i < 6; ++i) store_lanes(dest + (6 * i + j) * args.dest_frequency, u[i], n);
            };
            transform_tile<T, 4, 6, transform_gradients<T>>(read, write);
        }
}

template <class T>
void winograd_taps(const convx::WinogradTapsArgs<T>& args) {
    constexpr int lanes = VecOf<T>::lanes;
    Vec<T> faults = load(args.faults);
    for (int64_t column = 0; column < args.columns; column += lanes) {
        const auto read = [&](int j, Vec<T>(&m)[6]) {
            for (int i = 0; i < 6; ++i) m[i] = load(args.source + (6 * i + j) * args.source_frequency + column);
        };
        const auto write = [&](int i, const Vec<T>(&y)[3]) {
            faults = fma(add(add(y[0], y[1]), y[2]), broadcast(T(0)), faults);
            for (int j = 0; j < 3; ++j) store(args.dest + (3 * i + j) * args.dest_tap + column, y[j]);
        };
        transform_tile<T, 6, 3, transform_taps<T>>(read, write);
    }
    store(args.faults, faults);
}

}  // namespace
