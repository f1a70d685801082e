// What the direct methods have in common: sums of products over a padded tile, in which no operand is packed by taps.
//
//   dest[n, k, i, j] = sum over channel, tap of weight[k, channel, tap] * tile[channel, tap][i * pitch + j]
//
// They pay where an implicit GEMM would pack every pixel once a tap for a handful of channels: forward with few input
// or output channels, grad_input with few input channels, and groups. From 64 channels a group on the implicit GEMM
// fills its tiles; below it is 0.5 times as fast with 16 and 32 channels. Vectors run over the channels of the result
// (direct_channels.cpp) or over pixels (direct_spatial.cpp).
#pragma once

#include <string>

#include "cpu/conv2d/method_row.h"
#include "cpu/conv2d/padded_tile.h"

namespace convx {

// Windows that fit L2, and no borders that their adjoint would have to fold.
Verdict supports_groups(const ConvProblem& problem);
inline bool is_depthwise(const ConvProblem& problem) { return problem.group_in() == 1 && problem.group_out() == 1; }

// Rows of the largest phase in a unit, of which there are `images` with one unit each: as many units as tasks are
// wanted, unless they have too little work or would copy too many rows twice.
int64_t unit_rows(const PlaneLayout& layout, int64_t images, int64_t row_flops);

// What all workers of a driver share.
template <class T>
struct DirectShared {
    DirectShared(ScratchParts parts, int64_t weights_count, int64_t bias_count)
        : weights(parts.take<T>(weights_count)), bias(parts.take<T>(bias_count)), bytes(parts.bytes()) {}
    T* weights;
    T* bias;  // [group][output channel]
    int64_t bytes;
};

// Forward and grad_input by drivers that multiply the border of zeros.
template <template <class> class Driver>
struct DirectMethod : DriverMethod<Driver> {
    static constexpr Traits traits{};

    static Verdict supports(const ConvProblem& problem, ConvPass) { return supports_groups(problem); }

    template <class T>
    static void run(const WindowSum<T>&, const Driver<T>& driver, const KernelSet<T>&) {
        driver.run();
    }
};

// For explanations.
std::string lines_of_a_group(int64_t lines);
int64_t most_taps(const PlaneLayout& layout);  // of a class
std::string sums_of(int64_t channels, const PlaneLayout& layout);
std::string phases_note(size_t phases);

// --- vectors over pixels ---

// Taps by ascending offset: the order of every sum.
PlaneLayout spatial_layout(const ConvProblem& problem, bool forward);

struct SpatialBlocks {
    int64_t groups = 1;      // of a unit
    int64_t rows = 1;        // of the result, of each phase
    int64_t task_units = 1;  // units of one task
    int64_t splits = 1;      // split-K of the weight gradient
};

// The padded tile of one group in a 32 KiB L1 beside what streams through.
constexpr int64_t tile_bytes_l1 = 20 * 1024;
// What a unit copies at once; channels_inside: an array has its channels adjacent in memory.
SpatialBlocks spatial_blocks(const PlaneLayout& layout, int64_t groups, int64_t channels, int64_t rows,
                             int64_t item_bytes, bool channels_inside, int64_t l1_bytes);

template <class T>
bool channels_adjacent(const TensorView<T>& view) {
    return view.shape[1] > 1 && view.stride[1] == 1 && view.stride[3] != 1;
}

std::string rows_of_groups(const SpatialBlocks& blocks);

// The driver of forward and grad_input, for depthwise.cpp too.
template <class T>
TaskPlan direct_spatial_tasks(const WindowSum<T>& sum, const KernelSet<T>& kernels);
template <class T>
void run_direct_spatial(const WindowSum<T>& sum, const KernelSet<T>& kernels);
template <class T>
void describe_direct_spatial(const WindowSum<T>& sum, const KernelSet<T>& kernels, PassPlan& text);

// --- depthwise: straight from and to arrays whose columns or channels are adjacent ---

// Whether the kernels over planes take the window: 3x3 or 5x5, stride 1 or 2.
bool depthwise_planes_take(const ConvProblem& problem);

// Few flops an element: 512 planes of 14 x 14 through 3x3 with stride 2 take 25 us, three times what their flops would.
inline int64_t depthwise_work(int64_t flops, int64_t elements) { return flops + 8 * elements; }

// Rows of a plane that strips of columns go down: 8 KiB run ahead of memory better than all that a 32 KiB L1 holds.
constexpr int64_t depthwise_rows_bytes = 8 * 1024;

// Masked lanes reach this far beyond the row of zeros, at most. They must not lie in a page that is not there: though
// nothing is read, each such load would cost 100 ns.
constexpr int64_t masked_elements = 64;

}  // namespace convx
