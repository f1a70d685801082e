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

namespace {

constexpr double point_a = 0.6875, point_b = 1.5;
constexpr double point_a2 = point_a * point_a, point_b2 = point_b * point_b;

template <class T>
inline Vec<T> number(double x) {
    return broadcast(static_cast<T>(x));
}

// B' along one axis: 12 multiply-adds.
template <class T>
inline void transform_input(const Vec<T> (&d)[6], Vec<T> (&v)[6]) {
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
inline void transform_weights(const Vec<T> (&g)[3], Vec<T> (&u)[6]) {
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
inline void transform_output(const Vec<T> (&m)[6], Vec<T> (&y)[4]) {
    const Vec<T> sum_a = add(m[1], m[2]), sum_b = add(m[3], m[4]);
    const Vec<T> difference_a = sub(m[1], m[2]), difference_b = sub(m[3], m[4]);
    y[0] = add(m[0], add(sum_a, sum_b));
    y[1] = fma(number<T>(point_a), difference_a, mul(number<T>(point_b), difference_b));
    y[2] = fma(number<T>(point_a2), sum_a, mul(number<T>(point_b2), sum_b));
    y[3] = fma(number<T>(point_a * point_a2), difference_a, fma(number<T>(point_b * point_b2), difference_b, m[5]));
}

// A tile's column d[i][j] of all i at once does not fit the registers twice, so the rows are transformed into a buffer
// in L1 and the columns out of it.
template <class T, int vecs>
void winograd_input(const convx::WinogradInput<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    const T* source = job.source;
    T* dest = job.dest;
    for (int64_t c = 0; c < job.channels; ++c, source += job.source_channel, dest += vecs * lanes)
        for (int v = 0; v < vecs; ++v) {
            const T* places[lanes];
#pragma GCC unroll 16
            for (int t = 0; t < lanes; ++t) places[t] = source + job.places[v * lanes + t];
            Vec<T> half[6][6];
            for (int i = 0; i < 6; ++i) {
                Vec<T> d[6], first[4], last[4];
                load_quads(places, i * job.source_row, first);
                load_quads(places, i * job.source_row + 2, last);
                for (int j = 0; j < 4; ++j) d[j] = first[j];
                d[4] = last[2];
                d[5] = last[3];
                transform_input<T>(d, half[i]);
            }
            for (int j = 0; j < 6; ++j) {
                const Vec<T> d[6] = {half[0][j], half[1][j], half[2][j], half[3][j], half[4][j], half[5][j]};
                Vec<T> out[6];
                transform_input<T>(d, out);
                T* to = dest + v * lanes + j * job.dest_frequency;
#pragma GCC unroll 6
                for (int i = 0; i < 6; ++i) store(to + 6 * i * job.dest_frequency, out[i]);
            }
        }
}

// Runs of a few elements to a few hundred, the same for every channel; what lies between them is left alone. A channel
// is a few lines on pages of their own, too few for the hardware to foresee the next: prefetching takes a quarter off.
template <class T>
void winograd_stage(const convx::WinogradStage<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    const T* source = job.source;
    T* dest = job.dest;
    for (int64_t c = 0; c < job.channels; ++c, source += job.source_channel, dest += job.dest_channel)
        for (int r = 0; r < job.run_count; ++r) {
            const T* from = source + job.runs[r].offset;
            T* to = dest + job.runs[r].lane;
            const int last = job.runs[r].count - lanes;
            for (int i = 0; i < job.runs[r].count; i += 16) prefetch(from + 2 * job.source_channel + i);
            if (last < 0) {
                for (int i = 0; i < job.runs[r].count; ++i) to[i] = from[i * job.step];
            } else if (job.step == 1) {  // the last vector overlaps the one before
                for (int i = 0; i < last; i += lanes) store(to + i, load(from + i));
                store(to + last, load(from + last));
            } else {
                for (int i = 0; i < job.runs[r].count; ++i) to[i] = from[i * job.step];
            }
        }
}

// One frequency: all rows x tiles, in register tiles, chunk by chunk of the channels. What gemm_tile does, without its
// options: at a depth of 64 those and the call would take 15 % of the time.
template <class T, int mr, int vecs, int rows, int used>
inline void products_tile(const convx::WinogradProducts<T>& job, const T* weights, const T* inputs, T* products) {
    constexpr int lanes = VecOf<T>::lanes;
    for (int64_t c = 0; c < job.channels; c += job.chunk) {
        const int64_t depth = job.channels - c < job.chunk ? job.channels - c : job.chunk;
        Vec<T> acc[rows][used];
        multiply_panels<T, vecs * lanes>(depth, PanelRows<T, mr>(weights + c * mr), inputs + c * vecs * lanes, acc);
        if (c > 0 || job.accumulate) {
#pragma GCC unroll 16
            for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
                for (int v = 0; v < used; ++v)
                    acc[i][v] = add(load(products + i * job.product_row + v * lanes), acc[i][v]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
            for (int v = 0; v < used; ++v) store(products + i * job.product_row + v * lanes, acc[i][v]);
    }
}

template <class T, int mr, int vecs, int rows>
inline void products_rows(const convx::WinogradProducts<T>& job, int64_t want_rows, const T* weights, T* products) {
    constexpr int nr = vecs * VecOf<T>::lanes;
    if constexpr (rows > 1) {
        if (want_rows < rows) return products_rows<T, mr, vecs, rows - 1>(job, want_rows, weights, products);
    }
    const T* inputs = job.inputs;
    int64_t tile = 0;
    for (; tile + nr - VecOf<T>::lanes < job.tiles; tile += nr, inputs += job.input_panel)
        products_tile<T, mr, vecs, rows, vecs>(job, weights, inputs, products + tile);
    if (tile < job.tiles) products_tile<T, mr, vecs, rows, vecs - 1>(job, weights, inputs, products + tile);
}

template <class T, int mr, int vecs>
void winograd_products(const convx::WinogradProducts<T>& job) {
    static_assert(vecs == 2, "one vector less is one vector");
    const T* weights = job.weights;
    T* products = job.products;
    for (int64_t row = 0; row < job.rows; row += mr, weights += job.weight_panel, products += mr * job.product_row)
        products_rows<T, mr, vecs, mr>(job, job.rows - row, weights, products);
}

// mr is no multiple of the lanes: the last vector reads the next tap's rows too. It also writes them, for the next
// channel to overwrite: a third of the time of stores that end in the middle of a vector. Only the last channel's do.
template <class T, int mr>
void winograd_weights(const convx::WinogradWeights<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    const T* source = job.source;
    T* dest = job.dest;
    for (int64_t c = 0; c < job.channels; ++c, source += job.source_channel, dest += mr)
        for (int first = 0; first < mr; first += lanes) {
            const int n = c + 1 < job.channels || mr - first > lanes ? lanes : mr - first;
            Vec<T> half[3][6];
            for (int r = 0; r < 3; ++r) {
                Vec<T> g[3];
                for (int s = 0; s < 3; ++s) g[s] = load(source + job.tap[3 * r + s] + first);
                transform_weights<T>(g, half[r]);
            }
            for (int j = 0; j < 6; ++j) {
                const Vec<T> g[3] = {half[0][j], half[1][j], half[2][j]};
                Vec<T> u[6];
                transform_weights<T>(g, u);
                T* to = dest + first + j * job.dest_frequency;
                if (n == lanes) {
                    for (int i = 0; i < 6; ++i) store(to + 6 * i * job.dest_frequency, u[i]);
                } else {
                    for (int i = 0; i < 6; ++i) store(to + 6 * i * job.dest_frequency, u[i], n);
                }
            }
        }
}

template <class T>
inline void output_of_vector(const convx::WinogradOutput<T>& job, const T* source, T* const* places, Vec<T> bias,
                             Vec<T>& faults) {
    Vec<T> half[4][6];
    for (int j = 0; j < 6; ++j) {
        Vec<T> m[6], y[4];
        const T* from = source + j * job.source_frequency;
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) m[i] = load(from + 6 * i * job.source_frequency);
        transform_output<T>(m, y);
        for (int i = 0; i < 4; ++i) half[i][j] = y[i];
    }
    for (int i = 0; i < 4; ++i) {
        Vec<T> y[4];
        transform_output<T>(half[i], y);
        faults = fma(add(add(y[0], y[1]), add(y[2], y[3])), broadcast(T(0)), faults);
        if (job.bias)
            for (Vec<T>& value : y) value = add(value, bias);
        if (job.relu)
            for (Vec<T>& value : y) value = relu(value);
        store_quads(places, i * job.dest_line, y);
    }
}

template <class T, int vecs>
void winograd_output(const convx::WinogradOutput<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    const T* source = job.source;
    T* dest = job.dest;
    Vec<T> faults[vecs];
    for (int v = 0; v < vecs; ++v) faults[v] = load(job.faults + v * lanes);
    for (int64_t row = 0; row < job.rows; ++row, source += job.source_row, dest += job.dest_row) {
        const Vec<T> bias = broadcast(job.bias ? job.bias[row] : T(0));
        for (int v = 0; v < vecs; ++v) {
            T* places[lanes];
#pragma GCC unroll 16
            for (int t = 0; t < lanes; ++t) places[t] = dest + job.places[v * lanes + t];
            output_of_vector<T>(job, source + v * lanes, places, bias, faults[v]);
        }
    }
    for (int v = 0; v < vecs; ++v) store(job.faults + v * lanes, faults[v]);
}

// The weight gradient correlates 6 x 6 inputs with 4 x 4 gradients to 3 x 3 taps: the same B', other G and A'.
template <class T>
inline void transform_gradients(const Vec<T> (&g)[4], Vec<T> (&u)[6]) {
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
inline void transform_taps(const Vec<T> (&m)[6], Vec<T> (&y)[3]) {
    const Vec<T> sum_a = add(m[1], m[2]), sum_b = add(m[3], m[4]);
    y[0] = add(m[0], add(sum_a, sum_b));
    y[1] = fma(number<T>(point_a), sub(m[1], m[2]), mul(number<T>(point_b), sub(m[3], m[4])));
    y[2] = fma(number<T>(point_a2), sum_a, fma(number<T>(point_b2), sum_b, m[5]));
}

template <class T, int vecs>
void winograd_input_tiles(const convx::WinogradTiles<T>& job) {
    constexpr int lanes = VecOf<T>::lanes, width = vecs * lanes;
    for (int64_t tile = 0; tile < job.tiles; ++tile)
        for (int v = 0; v < vecs; ++v) {
            const T* source = job.source + 4 * tile * width + v * lanes;
            T* dest = job.dest + tile * width + v * lanes;
            Vec<T> half[6][6];
            for (int i = 0; i < 6; ++i) {
                Vec<T> d[6];
                for (int j = 0; j < 6; ++j) d[j] = load(source + i * job.source_row + j * width);
                transform_input<T>(d, half[i]);
            }
            for (int j = 0; j < 6; ++j) {
                const Vec<T> d[6] = {half[0][j], half[1][j], half[2][j], half[3][j], half[4][j], half[5][j]};
                Vec<T> out[6];
                transform_input<T>(d, out);
#pragma GCC unroll 6
                for (int i = 0; i < 6; ++i) store(dest + (6 * i + j) * job.dest_frequency, out[i]);
            }
        }
}

// mr is no multiple of the lanes: the last vector reads the next pixel's channels too, and writes its own alone.
template <class T, int mr>
void winograd_gradient_tiles(const convx::WinogradTiles<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    for (int64_t tile = 0; tile < job.tiles; ++tile)
        for (int first = 0; first < mr; first += lanes) {
            const int n = mr - first < lanes ? mr - first : lanes;
            const T* source = job.source + 4 * tile * mr + first;
            T* dest = job.dest + tile * mr + first;
            Vec<T> half[4][6];
            for (int i = 0; i < 4; ++i) {
                Vec<T> g[4];
                for (int j = 0; j < 4; ++j) g[j] = load(source + i * job.source_row + j * mr);
                transform_gradients<T>(g, half[i]);
            }
            for (int j = 0; j < 6; ++j) {
                const Vec<T> g[4] = {half[0][j], half[1][j], half[2][j], half[3][j]};
                Vec<T> u[6];
                transform_gradients<T>(g, u);
                for (int i = 0; i < 6; ++i) {
                    T* to = dest + (6 * i + j) * job.dest_frequency;
                    if (n == lanes)
                        store(to, u[i]);
                    else
                        store(to, u[i], n);
                }
            }
        }
}

template <class T>
void winograd_taps(const convx::WinogradTaps<T>& job) {
    constexpr int lanes = VecOf<T>::lanes;
    Vec<T> faults = load(job.faults);
    for (int64_t column = 0; column < job.columns; column += lanes) {
        Vec<T> half[3][6];
        for (int j = 0; j < 6; ++j) {
            Vec<T> m[6], y[3];
            for (int i = 0; i < 6; ++i) m[i] = load(job.source + (6 * i + j) * job.source_frequency + column);
            transform_taps<T>(m, y);
            for (int i = 0; i < 3; ++i) half[i][j] = y[i];
        }
        for (int i = 0; i < 3; ++i) {
            Vec<T> y[3];
            transform_taps<T>(half[i], y);
            faults = fma(add(add(y[0], y[1]), y[2]), broadcast(T(0)), faults);
            for (int j = 0; j < 3; ++j) store(job.dest + (3 * i + j) * job.dest_tap + column, y[j]);
        }
    }
    store(job.faults, faults);
}

}  // namespace
