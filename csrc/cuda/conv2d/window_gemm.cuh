// Window sums (forward, grad_input) as implicit GEMMs: pixels are rows, channels of the result columns. The weight is
// packed first, by a kernel of its own, into the order of the tiles: a few microseconds for at most 10 MB, after which
// every block copies its part asynchronously, 16 bytes at a time.
#pragma once

#include "cuda/conv2d/implicit_gemm.cuh"
#include "cuda/conv2d/tiles.cuh"
#include "cuda/conv2d/window_sum.cuh"
#include "cuda/launch.cuh"

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
        cell = pixel < sum.image.pixels ? sum.result.at(sum.cell(pixel, group)) : nullptr;
    }
    __device__ void store(int, int column_in_tile, Sum<T> value) {
        const int column = first_column + column_in_tile;
        if (!cell || column >= sum.columns) return;
        if (is_nan(value)) value = sum.exact(pixel, group, column);
        sum.result.put(cell + column * sum.result_c * sum.result.item(), sum.finished(value, group, column));
    }

    WindowSum<T> sum;
    int first_row, first_column, group, pixel;
    char* cell;
};

// One thread an element of the panel: [group][column tile][depth step] of tiles.
template <class Tile>
__global__ void __launch_bounds__(256) pack_panel(WindowSum<typename Tile::Element> sum, typename Tile::Element* panel,
                                                  int depth_steps, int column_tiles, int64_t count) {
    using T = typename Tile::Element;
    const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (index >= count) return;
    constexpr int tile_size = Tile::columns * Tile::depth;
    const int64_t tile = index / tile_size;
    const int64_t column_tile = tile / depth_steps;
    const int group = static_cast<int>(column_tile / column_tiles);
    int column_in_tile, d_in_tile;
    Tile::panel_position(static_cast<int>(index - tile * tile_size), column_in_tile, d_in_tile);
    const int column = static_cast<int>(column_tile - int64_t{group} * column_tiles) * Tile::columns + column_in_tile;
    const int d = static_cast<int>(tile - column_tile * depth_steps) * Tile::depth + d_in_tile;
    const auto tap = sum.image.tap(d);
    panel[index] =
        column < sum.columns && d < sum.image.depth ? *sum.weight.at(group, column, tap.c, tap.r, tap.s) : T{};
}

template <class Tile>
struct WindowGemm {
    using T = typename Tile::Element;

    explicit WindowGemm(const WindowSum<T>& sum)
        : depth_steps(tiles_of(sum.image.depth, Tile::depth)), column_tiles(tiles_of(sum.columns, Tile::columns)),
          row_tiles(tiles_of(sum.image.pixels, Tile::rows)),
          group_size(int64_t{column_tiles} * depth_steps * Tile::columns * Tile::depth),
          panel_count(group_size * sum.groups) {}

    void run(const WindowSum<T>& sum, bool channels_adjacent, void* workspace, Stream stream) const {
        T* const panel = static_cast<T*>(workspace);
        launch_each<256>(panel_count, pack_panel<Tile>, stream, sum, panel, depth_steps, column_tiles, panel_count);
        using Panel = PanelOperand<Tile, Tile::columns>;
        const typename Panel::Argument weight{panel, depth_steps, group_size};
        if constexpr (Tile::depth_inside) {
            if (channels_adjacent) return start<ChannelsOperand<Tile, Tile::rows>, Panel>(sum, weight, stream);
        }
        start<ImageOperand<Tile, Tile::rows, Lines::pixels, Adjacent::lines>, Panel>(sum, weight, stream);
    }

    int depth_steps, column_tiles, row_tiles;
    int64_t group_size, panel_count;

private:
    template <class Images, class Panel>
    void start(const WindowSum<T>& sum, const typename Panel::Argument& weight, Stream stream) const {
        WindowOutput<T> output{};
        output.sum = sum;
        launch(implicit_gemm<Tile, Images, Panel, WindowOutput<T>>,
               dim3(static_cast<unsigned>(row_tiles) * static_cast<unsigned>(column_tiles), 1,
                    static_cast<unsigned>(sum.groups)),
               Tile::threads, implicit_gemm_shared<Tile>, stream, sum.image, weight, output, column_tiles, depth_steps,
               depth_steps);
    }
};

}  // namespace convx::cuda
