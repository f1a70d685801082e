// Convolutions of few channels a group (depthwise, grouped with fewer than 16, one channel in and out), forward and
// grad_input: a GEMM's tile would be almost empty. Adjacent threads take adjacent pixels, or channels where these lie
// side by side; a thread takes four rows of one column, and of up to four channels of its group. What lies outside
// under zeros is skipped, tap by tap, so these sums need no second look at inf and NaN. Sums run over taps (r, s, c).
//
// The adjoint of a stride up to 4 has all phases of a row in one launch, so that whole lines are written.
//
// Bound by memory for depthwise 3x3: four outputs share 6 x 3 loads (9 x 3 at stride 2), 4.5 (6.75) an output, each of
// adjacent threads on adjacent addresses: on an H100 0.14 cycles of a multiprocessor's load unit, of 0.6 that the bytes
// of a float take. Other windows: 1.25 loads a multiply-add, from L1. No shared memory. Registers: direct_3x3 54 to 64
// (double 80 to 112), direct_any 46 to 60 (double 78).
#pragma once

#include <algorithm>

#include "cuda/cells.cuh"
#include "cuda/conv2d/gather_axes.h"
#include "cuda/conv2d/window_sum.cuh"

namespace convx::cuda {

constexpr int direct_rows = 4, most_phases = 4;

template <class T>
struct DirectSum {
    // What differs between the phases of the columns.
    struct Phase {
        int offset, taps, first_tap;
    };

    Cells cells;  // n, channels (tiles of a group's), blocks of rows, columns
    Strided4<const T> source;
    Strided4<T> result;  // its strides; the elements may be those of `target`
    SumTarget<T> target;
    int64_t first_cell;  // offset in the target
    GatherAxis h, w;
    Phase of_phase[most_phases];
    Divisor phases;
    int tap_stride;  // kernel columns between taps
    TapWeights<T> weight;
    int rows, channels, columns;  // of the result; of the source's and the result's groups
    Divisor column_tiles;
    const T* bias;
    int64_t bias_stride;
    bool relu;
    T padding;

    __device__ Phase phase_of(int phase) const {
        Phase found = of_phase[0];
#pragma unroll
        for (int i = 1; i < most_phases; ++i)
            if (phase == i) found = of_phase[i];
        return found;
    }
    __device__ void store(const Cell& cell, int row, int channel, Sum<T> sum) const {
        if (bias) sum += to_sum(bias[channel * bias_stride]);
        target.put(target.at(first_cell + result.offset({cell.n, channel, row, cell.w})), relu ? relu_of(sum) : sum);
    }
};

// Windows of any size; `tile` channels of the result a thread.
template <class T, int tile>
__global__ void __launch_bounds__(256, 3) direct_any(DirectSum<T> conv) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (index >= conv.cells.count) return;
    const Cell cell = conv.cells.at(static_cast<int>(index));
    const int group = conv.column_tiles.quotient(cell.c);
    const int first_column = (cell.c - group * conv.column_tiles.value) * tile;
    const int first_row = cell.h * direct_rows;
    const int position = conv.phases.quotient(cell.w);
    const auto own = conv.phase_of(cell.w - position * conv.phases.value);
    const T* const image = conv.source.image(cell.n, 0) + static_cast<int64_t>(group) * conv.channels * conv.source.c;

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
            const T* const at = image + column * conv.source.w;
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
                        row[i] < 0 || column < 0 ? conv.padding : at[c * conv.source.c + row[i] * conv.source.h];
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
                conv.store(cell, first_row + i, group * conv.columns + first_column + k, sum[k][i]);
}

// One channel a group, 3x3 taps, adjacent rows: each value is loaded once for all outputs of the thread.
template <class T, int step>
__global__ void __launch_bounds__(256, sizeof(T) == 8 ? 2 : 3) direct_3x3(DirectSum<T> conv) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (index >= conv.cells.count) return;
    const Cell cell = conv.cells.at(static_cast<int>(index));
    constexpr int source_rows = (direct_rows - 1) * step + 3;
    const int first_row = cell.h * direct_rows;
    // Taps of an adjoint go up the rows: its outputs are counted from the last.
    const bool upwards = conv.h.tap_step < 0;
    const int start = upwards ? first_row + direct_rows - 1 + conv.h.offset : first_row * step + conv.h.offset;
    const int needed = (conv.rows - first_row - 1) * step + 3;  // rows past these may lie beyond any border
    const T* const image = conv.source.image(cell.n, cell.c);

    int column[3];
#pragma unroll
    for (int s = 0; s < 3; ++s) column[s] = conv.w.source(cell.w * conv.w.step + conv.w.offset + s * conv.w.tap_step);
    T value[source_rows][3];
    bool found[source_rows];
#pragma unroll
    for (int j = 0; j < source_rows; ++j) {
        const int row = upwards || j < needed ? conv.h.source(start + j * conv.h.tap_step) : GatherAxis::reads_nothing;
        found[j] = row != GatherAxis::reads_nothing;
        const T* const line = image + row * conv.source.h;
#pragma unroll
        for (int s = 0; s < 3; ++s) {
            value[j][s] = conv.padding;
            if (row >= 0 && column[s] >= 0) value[j][s] = line[column[s] * conv.source.w];
        }
    }
    Sum<T> sum[direct_rows];
#pragma unroll
    for (int i = 0; i < direct_rows; ++i) sum[i] = 0;
#pragma unroll
    for (int r = 0; r < 3; ++r)
#pragma unroll
        for (int s = 0; s < 3; ++s) {
            const Sum<T> factor = to_sum(*conv.weight.at(cell.c, 0, 0, r, s));
#pragma unroll
            for (int i = 0; i < direct_rows; ++i)
                if (found[i * step + r] && column[s] != GatherAxis::reads_nothing)
                    sum[i] = multiply_add(to_sum(value[i * step + r][s]), factor, sum[i]);
        }
#pragma unroll
    for (int i = 0; i < direct_rows; ++i) {
        const int row = upwards ? first_row + direct_rows - 1 - i : first_row + i;
        if (row < conv.rows) conv.store(cell, row, cell.c, sum[i]);
    }
}

// The weight as [r][s][channel of the source][channel of the result]: adjacent threads read adjacent channels.
template <class T>
struct DirectPanel {
    TapWeights<T> weight;
    T* panel;
    int64_t count;
    Divisor results, channels, window_columns, columns;
};

template <class T>
__global__ void __launch_bounds__(256) pack_direct(DirectPanel<T> pack) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (index >= pack.count) return;
    const int line = pack.results.quotient(static_cast<int>(index));
    const int result = static_cast<int>(index) - line * pack.results.value, group = pack.columns.quotient(result);
    const int tap = pack.channels.quotient(line), c = line - tap * pack.channels.value;
    const int r = pack.window_columns.quotient(tap), s = tap - r * pack.window_columns.value;
    pack.panel[index] = *pack.weight.at(group, result - group * pack.columns.value, c, r, s);
}

// Host side: one window sum, or its adjoint with all phases.
template <class T>
class Direct {
public:
    Direct(const ConvProblem& problem, const Tensor& source, const Tensor& weight, bool adjoint, const Tensor& result,
           T* panel, Stream stream)
        : source_(source), result_(result), inside_(result.stride[1] == 1 && result.shape[1] > 1), stream_(stream) {
        const int64_t channels = adjoint ? problem.group_out() : problem.group_in();
        const int64_t columns = adjoint ? problem.group_in() : problem.group_out();
        groups_ = problem.groups;
        conv_.source = Strided4<const T>(source);
        conv_.channels = static_cast<int>(channels);
        conv_.columns = static_cast<int>(columns);
        conv_.weight = tap_weights<T>(weight, adjoint, channels, columns);
        conv_.padding = host_number<T>(adjoint ? 0.0 : problem.padding_value);
        if (inside_) pack(problem, panel);
    }

    void set_output(const Tensor& bias, bool relu) {
        conv_.bias = static_cast<const T*>(bias.data);
        conv_.bias_stride = bias.stride[1];
        conv_.relu = relu;
    }

    void run_forward(const Axis& h, const Axis& w) {
        const WindowAxis columns = forward_axis(w);
        set_phase(0, columns);
        conv_.phases = Divisor(1);
        run(forward_axis(h), columns, columns.positions, columns.first_cell, columns.cell_stride);
    }

    void run_adjoint(const Axis& h, const Axis& w) {
        for (int64_t phase_h = 0; phase_h < h.phases(); ++phase_h) {
            const WindowAxis rows = adjoint_axis(h, phase_h);
            if (w.stride <= most_phases) {
                for (int64_t phase = 0; phase < w.stride; ++phase)
                    set_phase(static_cast<int>(phase), adjoint_axis(w, phase));
                conv_.phases = Divisor(w.stride);
                run(rows, adjoint_axis(w, 0), w.input, 0, 1);
                continue;
            }
            for (int64_t phase = 0; phase < w.phases(); ++phase) {
                const WindowAxis columns = adjoint_axis(w, phase);
                set_phase(0, columns);
                conv_.phases = Divisor(1);
                run(rows, columns, columns.positions, columns.first_cell, columns.cell_stride);
            }
        }
    }

private:
    void pack(const ConvProblem& problem, T* panel) {
        const int64_t results = result_.shape[1], channels = conv_.channels;
        DirectPanel<T> pack{};
        pack.weight = conv_.weight;
        pack.panel = panel;
        pack.count = problem.taps() * channels * results;
        pack.results = Divisor(results);
        pack.channels = Divisor(channels);
        pack.window_columns = Divisor(problem.w.kernel);
        pack.columns = Divisor(conv_.columns);
        launch_each<256>(pack.count, pack_direct<T>, stream_, pack);
        conv_.weight.data = panel;
        conv_.weight.stride_group = conv_.columns;
        conv_.weight.stride_column = 1;
        conv_.weight.stride_channel = results;
        conv_.weight.stride_s = channels * results;
        conv_.weight.stride_r = problem.w.kernel * channels * results;
    }

    void set_phase(int phase, const WindowAxis& columns) {
        conv_.of_phase[phase] = {columns.gather.offset, columns.gather.taps, static_cast<int>(columns.first_tap)};
    }

    void run(const WindowAxis& h, const WindowAxis& w, int64_t columns, int64_t first_column, int64_t column_stride) {
        if (h.positions == 0 || columns == 0) return;
        DirectSum<T> conv = conv_;
        conv.h = h.gather;
        conv.w = w.gather;
        conv.rows = static_cast<int>(h.positions);
        conv.tap_stride = static_cast<int>(w.tap_stride);
        conv.weight.data += h.first_tap * conv.weight.stride_r;
        conv.weight.stride_r *= h.tap_stride;
        conv.result = Strided4<T>(result_);
        conv.target = {static_cast<char*>(result_.data), result_.unrounded};
        conv.first_cell = h.first_cell * conv.result.h + first_column * conv.result.w;
        conv.result.h *= h.cell_stride;
        conv.result.w *= column_stride;
        const bool is_3x3 = conv.channels == 1 && conv.columns == 1 && conv.phases.value == 1 && h.gather.taps == 3 &&
                            w.gather.taps == 3 && std::abs(h.gather.tap_step) == 1 && h.gather.step <= 2 &&
                            w.tap_stride == 1 && w.first_tap == 0;
        const int tile = inside_ || conv.columns == 1 ? 1 : 4;
        const int64_t tiles = ceil_div(conv.columns, tile);
        conv.column_tiles = Divisor(tiles);
        const std::array<int64_t, 4> shape{source_.shape[0], groups_ * tiles, ceil_div(h.positions, direct_rows),
                                           columns};
        for_each_launch(shape, inside_, 1, [&](const Cells& cells) {
            conv.cells = cells;
            const auto kernel = is_3x3      ? h.gather.step == 1 ? &direct_3x3<T, 1> : &direct_3x3<T, 2>
                                : tile == 1 ? &direct_any<T, 1>
                                            : &direct_any<T, 4>;
            launch_each<256>(cells.count, kernel, stream_, conv);
        });
    }

    const Tensor &source_, &result_;
    const bool inside_;
    const Stream stream_;
    int64_t groups_;
    DirectSum<T> conv_{};
};

}  // namespace convx::cuda
