// The inner product of two tiles in shared memory: sum[rows x columns] += a[rows x depth] * b[columns x depth]^T, with
// the sums in the registers of one block of threads, by fused multiply-adds of the CUDA cores or by tensor cores.
//
// Invariants: every sum is taken in ascending order of the depth, one (FmaTile) or 8 or 16 (MmaTile) at a time, so the
// size of a tile never changes a result. Columns and rows past the matrix are computed and not stored.
#pragma once

#include "cuda/conv2d/plan.h"
#include "cuda/numbers.cuh"

namespace convx::cuda {

// An operand's tile in shared memory, its rows or columns as lines: [line][depth] or, with the depth outside,
// [depth][line], with a gap of 16 bytes after each inner stretch against bank conflicts.
template <class T, int lines, int depth, bool depth_inside>
struct TileOperand {
    static constexpr int inner = depth_inside ? depth : lines, outer = depth_inside ? lines : depth;
    static constexpr int pitch = inner + Chunk<T>::count;
    alignas(16) T element[outer * pitch];

    __device__ T& at(int line, int d) { return element[depth_inside ? line * pitch + d : d * pitch + line]; }
    // The target of 16 bytes of a packed panel's tile, which is the same without the gaps.
    __device__ T* chunk(int index) {
        constexpr int in_inner = inner / Chunk<T>::count;
        return &element[index / in_inner * pitch + index % in_inner * Chunk<T>::count];
    }
    // The element of a packed panel's tile at `index`.
    __device__ static void panel_position(int index, int& line, int& d) {
        const int at_outer = index / inner, at_inner = index - at_outer * inner;
        line = depth_inside ? at_outer : at_inner;
        d = depth_inside ? at_inner : at_outer;
    }
};

// float and double on the CUDA cores: each thread has tile_rows x tile_columns sums and reads tile_rows + tile_columns
// numbers for each step of the depth. 8 x 8 floats: 64 fused multiply-adds to four 16-byte loads.
//
// Shared memory holds the depth outside, [depth][rows + 4]: lanes read adjacent rows without bank conflicts.
template <class T, int rows_, int columns_, int depth_, int tile_rows, int tile_columns>
struct FmaTile {
    using Element = T;
    static constexpr int rows = rows_, columns = columns_, depth = depth_, stages = 2;
    static constexpr int threads = rows / tile_rows * (columns / tile_columns);
    static constexpr int group = Chunk<T>::count;  // adjacent rows of a thread
    static constexpr int row_step = rows / (tile_rows / group), column_step = columns / (tile_columns / group);
    // Asked of the compiler on a multiprocessor, so that the large tile keeps to 128 registers (sm_90a would take 139).
    static constexpr int blocks = threads == 256 ? 2 : 0;
    static_assert(threads % 32 == 0 && tile_rows % group == 0 && tile_columns % group == 0);
    static constexpr bool depth_inside = false;

    template <int lines>
    using Operand = TileOperand<T, lines, depth, depth_inside>;

    __device__ FmaTile() {
        first_row = static_cast<int>(threadIdx.x) % (rows / tile_rows) * group;
        first_column = static_cast<int>(threadIdx.x) / (rows / tile_rows) * group;
        for (int i = 0; i < tile_rows; ++i)
            for (int j = 0; j < tile_columns; ++j) sum[i][j] = T(0);
    }

    __device__ void multiply(Operand<rows>& a, Operand<columns>& b) {
#pragma unroll
        for (int d = 0; d < depth; ++d) {
            Chunk<T> from_a[tile_rows / group], from_b[tile_columns / group];
#pragma unroll
            for (int i = 0; i < tile_rows / group; ++i)
                from_a[i] = load_chunk<group>(&a.at(first_row + i * row_step, d));
#pragma unroll
            for (int j = 0; j < tile_columns / group; ++j)
                from_b[j] = load_chunk<group>(&b.at(first_column + j * column_step, d));
#pragma unroll
            for (int i = 0; i < tile_rows; ++i)
#pragma unroll
                for (int j = 0; j < tile_columns; ++j)
                    sum[i][j] =
                        multiply_add(from_a[i / group].value[i % group], from_b[j / group].value[j % group], sum[i][j]);
        }
    }

    // begin_row(row), then store(row, column, sum) for each of its sums that this thread has.
    template <class Output>
    __device__ void each(Output&& output) {
#pragma unroll
        for (int i = 0; i < tile_rows; ++i) {
            const int row = first_row + i / group * row_step + i % group;
            output.begin_row(row);
#pragma unroll
            for (int j = 0; j < tile_columns; ++j)
                output.store(row, first_column + j / group * column_step + j % group, sum[i][j]);
        }
    }

    int first_row, first_column;
    T sum[tile_rows][tile_columns];
};

// Tensor cores by mma.sync: float (as TF32), half, bfloat16, with float sums. A warp has warp_rows x warp_columns sums
// in parts of 16 x 8. TF32 keeps 10 bits of a float's mantissa; three products of its upper and lower 10 keep 21 of
// the 23. Shared memory holds the depth inside, [rows][depth + 16 bytes]: the eight rows of an ldmatrix then lie 80
// bytes apart and meet each of the 32 banks once.
template <class T, Precision precision, int rows_, int columns_, int depth_, int warp_rows, int warp_columns>
struct MmaTile {
    using Element = T;
    static constexpr int rows = rows_, columns = columns_, depth = depth_, stages = 3;
    static constexpr int warps_down = rows / warp_rows;
    static constexpr int threads = 32 * warps_down * (columns / warp_columns);
    // Left alone, the compiler aims at five small blocks on a multiprocessor with tf32x3, and spills.
    static constexpr int blocks = threads == 128 ? 4 : 0;
    static constexpr int step = 32 / static_cast<int>(sizeof(T));  // the depth of one mma: 8 or 16
    static constexpr int parts_down = warp_rows / 16, parts_across = warp_columns / 8;
    static_assert(depth % step == 0 && warp_rows % 16 == 0 && warp_columns % 16 == 0);
    static constexpr bool depth_inside = true;

    template <int lines>
    using Operand = TileOperand<T, lines, depth, depth_inside>;

    __device__ MmaTile() {
        const int warp = static_cast<int>(threadIdx.x) / 32;
        first_row = warp % warps_down * warp_rows;
        first_column = warp / warps_down * warp_columns;
        for (auto& part_row : sum)
            for (auto& part : part_row)
                for (float& value : part) value = 0.0f;
    }

    __device__ void multiply(Operand<rows>& a, Operand<columns>& b) {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        constexpr int half_step = step / 2;
#pragma unroll
        for (int d = 0; d < depth; d += step) {
            uint32_t from_a[parts_down][4], from_b[parts_across][2];
#pragma unroll
            for (int i = 0; i < parts_down; ++i)
                load_matrices(from_a[i], &a.at(first_row + 16 * i + lane % 16, d + lane / 16 * half_step));
#pragma unroll
            for (int j = 0; j < parts_across; j += 2) {
                uint32_t two[4];
                load_matrices(two,
                              &b.at(first_column + 8 * j + lane / 16 * 8 + lane % 8, d + lane / 8 % 2 * half_step));
                from_b[j][0] = two[0];
                from_b[j][1] = two[1];
                from_b[j + 1][0] = two[2];
                from_b[j + 1][1] = two[3];
            }
            multiply_fragments(from_a, from_b);
        }
    }

    template <class Output>
    __device__ void each(Output&& output) {
        const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
        for (int i = 0; i < parts_down; ++i)
#pragma unroll
            for (int lower = 0; lower < 2; ++lower) {
                const int row = first_row + 16 * i + 8 * lower + lane / 4;
                output.begin_row(row);
#pragma unroll
                for (int j = 0; j < parts_across; ++j)
#pragma unroll
                    for (int side = 0; side < 2; ++side)
                        output.store(row, first_column + 8 * j + lane % 4 * 2 + side, sum[i][j][2 * lower + side]);
            }
    }

    int first_row, first_column;
    float sum[parts_down][parts_across][4];

private:
    __device__ void multiply_fragments(uint32_t (&a)[parts_down][4], uint32_t (&b)[parts_across][2]) {
        if constexpr (sizeof(T) == 2) {
#pragma unroll
            for (int i = 0; i < parts_down; ++i)
#pragma unroll
                for (int j = 0; j < parts_across; ++j) mma_16bit<T>(sum[i][j], a[i], b[j]);
        } else {
            uint32_t low_a[parts_down][4], low_b[parts_across][2];
            split(a, low_a);
            split(b, low_b);
#pragma unroll
            for (int i = 0; i < parts_down; ++i)
#pragma unroll
                for (int j = 0; j < parts_across; ++j) {
                    // The small products first: they are lost under a large sum.
                    if constexpr (precision == Precision::tf32x3) {
                        mma_tf32(sum[i][j], low_a[i], b[j]);
                        mma_tf32(sum[i][j], a[i], low_b[j]);
                    }
                    mma_tf32(sum[i][j], a[i], b[j]);
                }
        }
    }

    // Rounds to TF32, and keeps what that loses where it is needed.
    template <int parts, int registers>
    __device__ static void split(uint32_t (&bits)[parts][registers], uint32_t (&low)[parts][registers]) {
#pragma unroll
        for (int i = 0; i < parts; ++i)
#pragma unroll
            for (int j = 0; j < registers; ++j) {
                const float value = float_of(bits[i][j]);
                bits[i][j] = round_to_tf32(value);
                if constexpr (precision == Precision::tf32x3) low[i][j] = round_to_tf32(value - float_of(bits[i][j]));
            }
    }
};

}  // namespace convx::cuda
