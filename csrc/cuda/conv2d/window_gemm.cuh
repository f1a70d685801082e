// Window sums (forward, grad_input) as implicit GEMMs: pixels are rows, channels of the result columns. The weight is
// packed first, by a kernel of its own, into the order of the tiles (a few microseconds for at most 10 MB); after that
// every block copies its part asynchronously, 16 bytes at a time.
#pragma once

#include "cuda/conv2d/implicit_gemm.cuh"
#include "cuda/conv2d/tiles.cuh"
#include "cuda/conv2d/window_sum.cuh"

namespace convx::cuda {

// The output side of the GEMM.
template <class T>
struct WindowOutput {
    __device__ void begin(int row, int column, int, int group_index) {
        first_row = row;
        first_column = column;
        group = group_index;
    }
    __device__ void begin_row(int row) {
        pixel = first_row + row;
        at = pixel < sum.image.pixels ? sum.result_at(pixel, group) : nullptr;
    }
    __device__ void store(int, int column_in_tile, Sum<T> value) {
        const int column = first_column + column_in_tile;
        if (!at || column >= sum.columns) return;
        if (is_nan(value)) value = sum.exact(pixel, group, column);
        value += sum.epilogue.bias_of(group * sum.columns + column);
        sum.result.put(at + column * sum.result.c * sum.result.item(), sum.epilogue.rectified(value));
    }

    WindowSum<T> sum;
    int first_row, first_column, group, pixel;
    char* at;
};

// The weight in the order of the tiles: [group][column tile][depth step] of tiles.
template <class Tile>
struct PackPanel {
    using T = typename Tile::Element;

    __device__ void operator()(int64_t index) const {
        constexpr int tile_size = Tile::columns * Tile::depth;
        const int64_t tile = index / tile_size;
        const int64_t column_tile = tile / depth_steps;
        const int group = static_cast<int>(column_tile / column_tiles);
        int column, d;
        Tile::template Operand<Tile::columns>::panel_position(static_cast<int>(index - tile * tile_size), column, d);
        column += static_cast<int>(column_tile - int64_t{group} * column_tiles) * Tile::columns;
        d += static_cast<int>(tile - column_tile * depth_steps) * Tile::depth;
        const auto tap = sum.image.tap(d);
        panel[index] =
            column < sum.columns && d < sum.image.depth ? *sum.weight.at(group, column, tap.c, tap.r, tap.s) : T{};
    }

    WindowSum<T> sum;
    T* panel;
    int depth_steps, column_tiles;
};

template <class Tile>
void run_window_gemm(const WindowSum<typename Tile::Element>& sum, bool channels_adjacent, void* workspace,
                     Stream stream) {
    using T = typename Tile::Element;
    const int depth_steps = tiles_of(sum.image.depth, Tile::depth), column_tiles = tiles_of(sum.columns, Tile::columns);
    const int64_t group_size = int64_t{column_tiles} * depth_steps * Tile::columns * Tile::depth;
    T* const panel = static_cast<T*>(workspace);
    launch_each(group_size * sum.groups, PackPanel<Tile>{sum, panel, depth_steps, column_tiles}, stream);

    using Panel = PanelOperand<Tile, Tile::columns>;
    const typename Panel::Argument weight{panel, depth_steps, group_size};
    WindowOutput<T> output{};
    output.sum = sum;
    const GemmSize size{sum.image.pixels, sum.columns, sum.image.depth, sum.groups};
    if constexpr (Tile::depth_inside)
        if (channels_adjacent)
            return run_implicit_gemm<Tile, ChannelsOperand<Tile, Tile::rows>, Panel>(sum.image, weight, output, size,
                                                                                     stream);
    run_implicit_gemm<Tile, ImageOperand<Tile, Tile::rows, Lines::pixels, Adjacent::lines>, Panel>(
        sum.image, weight, output, size, stream);
}

}  // namespace convx::cuda
