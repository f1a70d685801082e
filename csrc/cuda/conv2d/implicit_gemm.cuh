// The implicit GEMM: one kernel text for the three passes of a convolution. Rows x columns of the result, the sum over
// the depth; operands are fetched tile by tile, either from images (image_gather.cuh: nothing is copied beforehand) or
// from a packed panel (window_gemm.cuh: a weight in the order of the tiles).
//
//   pass         rows             columns      depth             a        b
//   forward      pixels (n,p,q)   K/G          taps (r,s,c)      images   panel
//   grad_input   pixels (n,h,w)   C/G          taps (r,s,k)      images   panel    one problem for each phase
//   grad_weight  K/G              taps         pixels (n,p,q)    images   images   split-K
//
// Bound by fused multiply-adds (or mma) where the depth is long: a gather costs about 10 instructions an element, 128 x
// 16 of them to 128 x 128 x 16 multiply-adds of 256 threads (80 to 1024 in each).
#pragma once

#include <type_traits>

#include "cuda/conv2d/image_gather.cuh"
#include "cuda/conv2d/tile.cuh"

namespace convx::cuda {

// `fetch` of an operand loads its part of a depth step while the step before is being multiplied, `store` writes it to
// shared memory afterwards; asynchronous copies do both in `fetch`.

// Weights packed as whole tiles, zeros where the matrix ends.
template <class Tile, int lines>
struct PanelOperand {
    using T = typename Tile::Element;
    struct Argument {
        const T* panel;
        int depth_steps;     // of one column of tiles
        int64_t group_size;  // elements
    };
    __device__ PanelOperand(const Argument& argument, int first_line, int group)
        : tile(argument.panel + group * argument.group_size +
               static_cast<int64_t>(first_line / lines) * argument.depth_steps * lines * Tile::depth) {}

    __device__ void fetch(typename Tile::template Operand<lines>& to, int depth_step) {
        constexpr int chunks = lines * Tile::depth / Chunk<T>::count;
        const T* from = tile + static_cast<int64_t>(depth_step) * lines * Tile::depth;
        for (int i = static_cast<int>(threadIdx.x); i < chunks; i += Tile::threads)
            copy_async_16(to.chunk(i), from + i * Chunk<T>::count, true);
    }
    __device__ void store(typename Tile::template Operand<lines>&) {}

    const T* tile;
};

// Images. Lines are pixels and the depth taps, or the other way round. A thread takes elements of one line at adjacent
// depths (its neighbours: adjacent lines), or of one depth (neighbours: adjacent depths), as memory has it.
enum class Lines { pixels, taps };
enum class Adjacent { lines, depth };

template <class Tile, int lines, Lines kind, Adjacent adjacent>
struct ImageOperand {
    using T = typename Tile::Element;
    using Argument = ImageGather<T>;
    using Pixel = typename Argument::Pixel;
    using Tap = typename Argument::Tap;
    using Line = std::conditional_t<kind == Lines::pixels, Pixel, Tap>;
    static constexpr int count = lines * Tile::depth / Tile::threads;  // elements of a thread
    static constexpr bool along_depth = adjacent == Adjacent::lines;
    static constexpr int line_step = along_depth ? 0 : Tile::threads / Tile::depth;
    static_assert(!along_depth || Tile::threads % lines == 0);
    static_assert(along_depth || Tile::threads % Tile::depth == 0);

    __device__ ImageOperand(const Argument& argument, int first, int group) : image(argument) {
        image.to_group(group);
        const int thread = static_cast<int>(threadIdx.x);
        own_line = along_depth ? thread % lines : thread / Tile::depth;
        own_depth = along_depth ? thread / lines * count : thread % Tile::depth;
        first_line = first + own_line;
        if constexpr (along_depth) line = make_line(first_line);
    }

    __device__ void fetch(typename Tile::template Operand<lines>&, int depth_step) {
        const int d = depth_step * Tile::depth + own_depth;
        if constexpr (kind == Lines::taps && !along_depth) {
            // Taps are computed again: kept, 16 of them would spill.
            const Pixel pixel = image.pixel(d);
#pragma unroll
            for (int i = 0; i < count; ++i) element[i] = image.load(pixel, image.tap(first_line + i * line_step));
        } else if constexpr (kind == Lines::taps) {
#pragma unroll
            for (int i = 0; i < count; ++i) element[i] = image.load(image.pixel(d + i), line);
        } else {
            static_assert(along_depth, "pixels as lines: the taps of one pixel, in order");
            Tap tap = image.tap(d);
#pragma unroll
            for (int i = 0; i < count; ++i) {
                element[i] = image.load(line, tap);
                image.advance(tap);
            }
        }
    }
    __device__ void store(typename Tile::template Operand<lines>& to) {
        if constexpr (along_depth && Tile::depth_inside) {
#pragma unroll
            for (int i = 0; i < count; i += Chunk<T>::count) {
                Chunk<T> chunk;
#pragma unroll
                for (int j = 0; j < Chunk<T>::count; ++j) chunk.value[j] = element[i + j];
                store_chunk(&to.at(own_line, own_depth + i), chunk);
            }
        } else {
#pragma unroll
            for (int i = 0; i < count; ++i)
                to.at(own_line + i * line_step, own_depth + (along_depth ? i : 0)) = element[i];
        }
    }

    __device__ Line make_line(int index) const {
        if constexpr (kind == Lines::pixels)
            return image.pixel(index);
        else
            return image.tap(index);
    }

    Argument image;
    int own_line, own_depth, first_line;
    Line line;
    T element[count];
};

// Images whose channels are adjacent, whole 16 bytes of them in a group, and that have no padding value other than
// zero: pixels are lines, and asynchronous copies of 16 bytes bypass the registers.
template <class Tile, int lines>
struct ChannelsOperand {
    using T = typename Tile::Element;
    using Argument = ImageGather<T>;
    static constexpr int chunks = Tile::depth / Chunk<T>::count;  // of a line
    static constexpr int own_lines = lines * chunks / Tile::threads;
    static_assert(Tile::depth_inside && Tile::threads % chunks == 0 && lines * chunks % Tile::threads == 0);

    __device__ ChannelsOperand(const Argument& argument, int first, int group) : image(argument) {
        image.to_group(group);
        own_line = static_cast<int>(threadIdx.x) / chunks;
        own_depth = static_cast<int>(threadIdx.x) % chunks * Chunk<T>::count;
#pragma unroll
        for (int i = 0; i < own_lines; ++i) line[i] = image.pixel(first + own_line + i * (Tile::threads / chunks));
    }
    __device__ void fetch(typename Tile::template Operand<lines>& to, int depth_step) {
        const auto tap = image.tap(depth_step * Tile::depth + own_depth);
#pragma unroll
        for (int i = 0; i < own_lines; ++i) {
            const T* element = image.source.data;
            const bool found = image.find(line[i], tap, element) == Argument::Found::element;
            copy_async_16(&to.at(own_line + i * (Tile::threads / chunks), own_depth), element, found);
        }
    }
    __device__ void store(typename Tile::template Operand<lines>&) {}

    Argument image;
    int own_line, own_depth;
    typename Argument::Pixel line[own_lines];
};

template <class Tile>
struct GemmShared {
    typename Tile::template Operand<Tile::rows> a[Tile::stages];
    typename Tile::template Operand<Tile::columns> b[Tile::stages];
};

// blockIdx.x: column tile + row tile * column tiles, so that blocks that read the same rows run side by side;
// blockIdx.y: part of the depth; blockIdx.z: group.
template <class Tile, class OperandA, class OperandB, class Output>
__global__ void __launch_bounds__(Tile::threads, Tile::blocks)
    implicit_gemm(typename OperandA::Argument a_argument, typename OperandB::Argument b_argument, Output output,
                  int column_tiles, int depth_steps, int steps_of_part) {
    GemmShared<Tile>& shared = shared_memory<GemmShared<Tile>>();
    const int row_tile = static_cast<int>(blockIdx.x) / column_tiles;
    const int first_row = row_tile * Tile::rows;
    const int first_column = (static_cast<int>(blockIdx.x) - row_tile * column_tiles) * Tile::columns;
    const int part = static_cast<int>(blockIdx.y), group = static_cast<int>(blockIdx.z);
    const int begin = part * steps_of_part;
    const int end = depth_steps - begin < steps_of_part ? depth_steps : begin + steps_of_part;

    OperandA a(a_argument, first_row, group);
    OperandB b(b_argument, first_column, group);
    Tile tile;
    constexpr int ahead = Tile::stages - 1;
    for (int i = 0; i < ahead; ++i) {
        if (begin + i < end) {
            a.fetch(shared.a[i], begin + i);
            b.fetch(shared.b[i], begin + i);
            a.store(shared.a[i]);
            b.store(shared.b[i]);
        }
        copies_commit();
    }
    int stage = 0;
    for (int step = begin; step < end; ++step) {
        copies_wait<ahead - 1>();
        // Also waits until all threads have read the stage before, which the next fetch overwrites.
        block_barrier();
        const int next = stage + ahead < Tile::stages ? stage + ahead : stage - 1;
        const bool fetches = step + ahead < end;
        if (fetches) {
            a.fetch(shared.a[next], step + ahead);
            b.fetch(shared.b[next], step + ahead);
        }
        copies_commit();
        tile.multiply(shared.a[stage], shared.b[stage]);
        if (fetches) {
            a.store(shared.a[next]);
            b.store(shared.b[next]);
        }
        stage = stage + 1 < Tile::stages ? stage + 1 : 0;
    }
    copies_wait<0>();
    output.begin(first_row, first_column, part, group);
    tile.each(output);
}

struct GemmSize {
    int rows, columns, depth, groups;
};

// Split-K: several `parts` have `steps_of_part` steps of the tile's depth each.
template <class Tile, class OperandA, class OperandB, class Output>
void run_implicit_gemm(const typename OperandA::Argument& a, const typename OperandB::Argument& b, const Output& output,
                       const GemmSize& size, Stream stream, int parts = 1, int steps_of_part = 0) {
    const int column_tiles = tiles_of(size.columns, Tile::columns), depth_steps = tiles_of(size.depth, Tile::depth);
    launch(implicit_gemm<Tile, OperandA, OperandB, Output>,
           grid(int64_t{tiles_of(size.rows, Tile::rows)} * column_tiles, parts, size.groups), Tile::threads,
           sizeof(GemmShared<Tile>), stream, a, b, output, column_tiles, depth_steps,
           parts == 1 ? depth_steps : steps_of_part);
}

}  // namespace convx::cuda
