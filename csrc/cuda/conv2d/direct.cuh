// Convolutions of few channels a group (depthwise, grouped with fewer than 16, one channel in and out), forward and
// grad_input: a GEMM's tile would be almost empty. Adjacent threads take adjacent pixels, or channels where these lie
// side by side; a thread takes four rows of one column, and of up to four channels of its group. What lies outside
// under zeros is skipped, tap by tap, so inf and NaN need no second sum. Sums run over taps (r, s, c).
//
// The adjoint of a stride up to 4 has all phases of a row in one launch, so that whole lines are written.
//
// Bound by memory for depthwise 3x3: four outputs share 6 x 3 loads (9 x 3 at stride 2), 4.5 (6.75) an output, each of
// adjacent threads on adjacent addresses: on an H100 0.14 cycles of a multiprocessor's load unit, of 0.6 that the bytes
// of a float take. Other windows: 1.25 loads a multiply-add, from L1. No shared memory. Registers: Direct3x3 54 to 68
// (double 79 to 114), DirectAny 40 to 56 (double 80).
#pragma once

#include <algorithm>

#include "cuda/conv2d/window_sum.cuh"

namespace convx::cuda {

constexpr int direct_rows = 4, most_phases = 4;

template <class T>
struct DirectSum {
    // What differs between the phases of the columns.
    struct Phase {
        int offset, taps, first_tap;
    };

    Strided4<const T> source;
    SumTarget<T> target;
    Epilogue<T> epilogue;
    GatherAxis h, w;
    Phase of_phase[most_phases];
    Divisor phases;
    int tap_stride;  // kernel columns between taps
    TapWeights<T> weight;
    int rows, channels, columns;  // of the result; of the source's and the result's groups
    Divisor column_tiles;
    T padding;

    __device__ Phase phase_of(int phase) const {
        Phase found = of_phase[0];
#pragma unroll
        for (int i = 1; i < most_phases; ++i)
            if (phase == i) found = of_phase[i];
        return found;
    }
    __device__ void store(const Index4& at, int row, int channel, Sum<T> sum) const {
        if (epilogue.bias) sum += epilogue.bias_of(channel);
        target.put(target.at({at.n, channel, row, at.w}), epilogue.rectified(sum));
    }
};

// Windows of any size; `tile` channels of the result a thread. Elements: n, tiles of channels, blocks of rows, columns.
template <class T, int tile>
struct DirectAny {
    DirectSum<T> conv;

    __device__ void operator()(const Index4& at) const {
        const int group = conv.column_tiles.quotient(at.c);
        const int first_column = (at.c - group * conv.column_tiles.value) * tile;
        const int first_row = at.h * direct_rows;
        const int position = conv.phases.quotient(at.w);
        const auto own = conv.phase_of(at.w - position * conv.phases.value);
        const T* const image = conv.source.image(at.n, group * conv.channels);

        Sum<T> sum[tile][direct_rows];
#pragma unroll
        for (int k = 0; k < tile; ++k)
#pragma unroll
            for (int i = 0; i < direct_rows; ++i) sum[k][i] = 0;
        for (int r = 0; r < conv.h.taps; ++r) {
            int row[direct_rows];
#pragma unroll
            for (int i = 0; i < direct_rows; ++i)
                row[i] = first_row + i < conv.rows
                             ? conv.h.source((first_row + i) * conv.h.step + conv.h.offset + r * conv.h.tap_step)
                             : GatherAxis::reads_nothing;
            for (int s = 0; s < own.taps; ++s) {
                const int column = conv.w.source(position * conv.w.step + own.offset + s * conv.w.tap_step);
                if (column == GatherAxis::reads_nothing) continue;
                const T* const pixel = image + column * conv.source.w;
                const T* weight = conv.weight.at(group, first_column, 0, r, own.first_tap + s * conv.tap_stride);
                for (int c = 0; c < conv.channels; ++c, weight += conv.weight.stride_channel) {
                    Sum<T> factor[tile];
#pragma unroll
                    for (int k = 0; k < tile; ++k)
                        factor[k] =
                            first_column + k < conv.columns ? to_sum(weight[k * conv.weight.stride_column]) : Sum<T>(0);
#pragma unroll
                    for (int i = 0; i < direct_rows; ++i) {
                        if (row[i] == GatherAxis::reads_nothing) continue;
                        const T value =
                            row[i] < 0 || column < 0 ? conv.padding : pixel[c * conv.source.c + row[i] * conv.source.h];
#pragma unroll
                        for (int k = 0; k < tile; ++k) sum[k][i] = multiply_add(to_sum(value), factor[k], sum[k][i]);
                    }
                }
            }
        }
#pragma unroll
        for (int k = 0; k < tile; ++k)
#pragma unroll
            for (int i = 0; i < direct_rows; ++i)
                if (first_column + k < conv.columns && first_row + i < conv.rows)
                    conv.store(at, first_row + i, group * conv.columns + first_column + k, sum[k][i]);
    }
};

// One channel a group, 3x3 taps, adjacent rows: each value is loaded once for all outputs of the thread.
template <class T, int step>
struct Direct3x3 {
    DirectSum<T> conv;

    __device__ void operator()(const Index4& at) const {
        constexpr int source_rows = (direct_rows - 1) * step + 3;
        const int first_row = at.h * direct_rows;
        // Taps of an adjoint go up the rows: its outputs are counted from the last.
        const bool upwards = conv.h.tap_step < 0;
        const int start = upwards ? first_row + direct_rows - 1 + conv.h.offset : first_row * step + conv.h.offset;
        const int needed = (conv.rows - first_row - 1) * step + 3;  // rows past these may lie beyond any border
        const auto row_at = [&](int j) {
            return upwards || j < needed ? conv.h.source(start + j * conv.h.tap_step) : GatherAxis::reads_nothing;
        };
        const Patch3<T, source_rows> patch(conv.source.image(at.n, at.c), conv.source, row_at, conv.w,
                                           at.w * conv.w.step + conv.w.offset, conv.padding);
        Sum<T> sum[direct_rows];
#pragma unroll
        for (int i = 0; i < direct_rows; ++i) sum[i] = 0;
#pragma unroll
        for (int r = 0; r < 3; ++r)
#pragma unroll
            for (int s = 0; s < 3; ++s) {
                const Sum<T> factor = to_sum(*conv.weight.at(at.c, 0, 0, r, s));
#pragma unroll
                for (int i = 0; i < direct_rows; ++i)
                    if (patch.found(i * step + r, s))
                        sum[i] = multiply_add(to_sum(patch.value[i * step + r][s]), factor, sum[i]);
            }
#pragma unroll
        for (int i = 0; i < direct_rows; ++i) {
            const int row = upwards ? first_row + direct_rows - 1 - i : first_row + i;
            if (row < conv.rows) conv.store(at, row, at.c, sum[i]);
        }
    }
};

// The weight as [r][s][channel of the source][channel of the result]: adjacent threads read adjacent channels.
template <class T>
struct PackDirect {
    __device__ void operator()(int64_t index) const {
        const int line = results.quotient(static_cast<int>(index));
        const int result = static_cast<int>(index) - line * results.value, group = columns.quotient(result);
        const int tap = channels.quotient(line), c = line - tap * channels.value;
        const int r = window_columns.quotient(tap), s = tap - r * window_columns.value;
        panel[index] = *weight.at(group, result - group * columns.value, c, r, s);
    }

    TapWeights<T> weight;
    T* panel;
    Divisor results, channels, window_columns, columns;
};

// One window sum, or its adjoint with all phases.
template <class T>
class Direct {
public:
    Direct(const ConvProblem& problem, const Tensor& source, const Tensor& weight, bool adjoint, const Tensor& result,
           const Epilogue<T>& epilogue, T* panel, Stream stream)
        : source_(source), result_(result), inside_(result.stride[1] == 1 && result.shape[1] > 1), stream_(stream),
          groups_(problem.groups) {
        const int64_t channels = adjoint ? problem.group_out() : problem.group_in();
        const int64_t columns = adjoint ? problem.group_in() : problem.group_out();
        conv_.source = Strided4<const T>(source);
        conv_.epilogue = epilogue;
        conv_.channels = static_cast<int>(channels);
        conv_.columns = static_cast<int>(columns);
        conv_.weight = tap_weights<T>(weight, adjoint, channels, columns);
        conv_.padding = host_number<T>(adjoint ? 0.0 : problem.padding_value);
        if (inside_) pack(problem, panel);
    }

    void run_forward(const Axis& h, const Axis& w) { run_phase(forward_axis(h), forward_axis(w)); }

    void run_adjoint(const Axis& h, const Axis& w) {
        for (int64_t phase_h = 0; phase_h < h.phases(); ++phase_h) {
            const WindowAxis rows = adjoint_axis(h, phase_h);
            if (w.stride > most_phases) {
                for (int64_t phase = 0; phase < w.phases(); ++phase) run_phase(rows, adjoint_axis(w, phase));
                continue;
            }
            for (int64_t phase = 0; phase < w.stride; ++phase)
                set_phase(static_cast<int>(phase), adjoint_axis(w, phase));
            conv_.phases = Divisor(w.stride);
            WindowAxis columns = adjoint_axis(w, 0);
            columns.positions = w.input;
            columns.pixel_stride = 1;
            run(rows, columns);
        }
    }

private:
    void pack(const ConvProblem& problem, T* panel) {
        const int64_t results = result_.shape[1], channels = conv_.channels;
        const PackDirect<T> pack{
            conv_.weight,          panel, Divisor(results), Divisor(channels), Divisor(problem.w.kernel),
            Divisor(conv_.columns)};
        launch_each(problem.taps() * channels * results, pack, stream_);
        conv_.weight = {panel, conv_.columns, 1, results, problem.w.kernel * channels * results, channels * results};
    }

    void set_phase(int phase, const WindowAxis& columns) {
        conv_.of_phase[phase] = {columns.gather.offset, columns.gather.taps, static_cast<int>(columns.first_tap)};
    }

    void run_phase(const WindowAxis& h, const WindowAxis& w) {
        set_phase(0, w);
        conv_.phases = Divisor(1);
        run(h, w);
    }

    void run(const WindowAxis& h, const WindowAxis& w) {
        if (h.positions == 0 || w.positions == 0) return;
        DirectSum<T> conv = conv_;
        conv.h = h.gather;
        conv.w = w.gather;
        conv.rows = static_cast<int>(h.positions);
        conv.tap_stride = static_cast<int>(w.tap_stride);
        conv.weight.data += h.first_tap * conv.weight.stride_r;
        conv.weight.stride_r *= h.tap_stride;
        conv.target = SumTarget<T>(result_, h, w);
        const bool is_3x3 = conv.channels == 1 && conv.columns == 1 && conv.phases.value == 1 && h.gather.taps == 3 &&
                            w.gather.taps == 3 && std::abs(h.gather.tap_step) == 1 && h.gather.step <= 2 &&
                            w.tap_stride == 1 && w.first_tap == 0;
        const int tile = inside_ || conv.columns == 1 ? 1 : 4;
        const int64_t tiles = ceil_div(conv.columns, tile);
        conv.column_tiles = Divisor(tiles);
        const std::array<int64_t, 4> shape{source_.shape[0], groups_ * tiles, ceil_div(h.positions, direct_rows),
                                           w.positions};
        constexpr int blocks_3x3 = sizeof(T) == 8 ? 2 : 3;
        if (is_3x3 && h.gather.step == 1)
            launch_elements<blocks_3x3>(shape, inside_, 1, Direct3x3<T, 1>{conv}, stream_);
        else if (is_3x3)
            launch_elements<blocks_3x3>(shape, inside_, 1, Direct3x3<T, 2>{conv}, stream_);
        else if (tile == 1)
            launch_elements<3>(shape, inside_, 1, DirectAny<T, 1>{conv}, stream_);
        else
            launch_elements<3>(shape, inside_, 1, DirectAny<T, 4>{conv}, stream_);
    }

    const Tensor &source_, &result_;
    const bool inside_;
    const Stream stream_;
    const int64_t groups_;
    DirectSum<T> conv_{};
};

}  // namespace convx::cuda
