// What a convolution pass will do, decided before it runs: algorithm, tile and block sizes, scratch, and the reason.
// A plan is a value; all heuristics live in plan*.cpp: the choice of the method in plan.cpp, the rest in one file a
// method.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/problem.h"
#include "cpu/kernels.h"
#include "cpu/pass_plan.h"

namespace convx {

enum class ConvPass { forward, grad_input, grad_weight, grad_bias };

// The loop nest that runs a pass.
enum class ConvMethod {
    gemm,          // implicit_gemm.cpp, grad_weight.cpp
    winograd,      // winograd.cpp
    grouped,       // grouped*.cpp
    few_channels,  // few_channels.cpp, few_channels_grad_weight.cpp
    sum,           // grad_bias.cpp
};

// Depends on nothing but the problem of one image: never on the batch, the threads or the strides of arrays.
ConvMethod choose_method(const ConvProblem& problem, ConvPass pass);

// Scratch for one call of a pass: shared by all workers, and for each of them.
struct PassScratch {
    int64_t shared_bytes;
    int64_t worker_bytes;
};

// Blocks of the implicit GEMM that forward and grad_input run (implicit_gemm.h).
struct GemmBlocks {
    bool pixels_in_rows = false;  // channels-last: vectors run over output channels instead of pixels
    bool by_rows = false;        // few pixels: a task owns output channels and sees all pixels, not the other way round
    int64_t chunk_channels = 1;  // reduction channels (times taps) that are summed in registers in one go
    int64_t block_panels = 1;    // pixel panels of one task
    int64_t pass_panels = 1;     // those that stay in L2 while the output channels of the task pass by
    int64_t block_rows = 1;      // output channels of one task
};

GemmBlocks plan_gemm_blocks(bool channels_last, int64_t pixels, int64_t groups, int64_t channels, int64_t rows,
                            int64_t taps, int64_t item_bytes, int mr, int nr);
// Counted where it is carved up (implicit_gemm.cpp).
template <class T>
int64_t packed_weight_bytes(const GemmBlocks& blocks, int64_t groups, int64_t channels, int64_t rows, int64_t taps,
                            const KernelSet<T>& kernels);
template <class T>
PassScratch gemm_scratch(const GemmBlocks& blocks, int64_t groups, int64_t channels, int64_t rows, int64_t taps,
                         const KernelSet<T>& kernels);

// Pixels [first, first + count) of the batch, one plane behind the other.
struct PixelChunk {
    int64_t first, count;
};

// Blocks of the weight gradient (grad_weight.cpp).
struct GradWeightBlocks {
    int64_t block_rows = 1;     // output channels of one task
    int64_t pass_rows = 1;      // those that stay in L2 while the columns pass by
    int64_t block_columns = 1;  // (input channel, tap) pairs of one task
    int64_t stage_columns = 1;  // those that are staged at a time
    int64_t stage_stride = 1;   // elements from one staged line to the next
    int64_t plane = 1;          // pixels of an image
    int64_t parts = 1;          // chunks of an image, if it is large
    int64_t images = 1;         // images of a chunk, if they are small
    int64_t chunk_pixels = 1;   // pixels summed in registers in one go
    int64_t chunks = 1;         // of the whole batch
    int64_t pixels = 0;         // of the whole batch
    int64_t splits = 1;         // parts of the pixel sum, added in order at the end

    PixelChunk chunk(int64_t index) const {
        const int64_t first = index / parts * images * plane + index % parts * chunk_pixels;
        const int64_t stop = parts > 1 ? (index / parts + 1) * plane : pixels;
        return {first, std::min(chunk_pixels, stop - first)};
    }
};

template <class T>
GradWeightBlocks plan_grad_weight_blocks(const ConvProblem& problem, const KernelSet<T>& kernels);
// Counted where it is carved up (grad_weight.cpp); `weights` partial sums for each split.
template <class T>
PassScratch grad_weight_scratch(const GradWeightBlocks& blocks, int64_t weights);

// Whether vectors run over channels instead, and the blocks of that nest (grad_weight_channels.h).
inline bool grad_weight_by_channels(const ConvProblem& problem) { return problem.channels_last && problem.taps() == 1; }
struct GradWeightChannelBlocks {
    int64_t block_rows = 1;     // output channels of one task
    int64_t block_columns = 1;  // input channels of one task
    int64_t chunk_pixels = 1;   // pixels of the batch that are summed in registers in one go
    int64_t pixels = 0;
    int64_t chunks = 0;
    int64_t splits = 1;  // parts of the pixel sum, added in order at the end
};
template <class T>
GradWeightChannelBlocks plan_grad_weight_channel_blocks(const ConvProblem& problem, const KernelSet<T>& kernels);
template <class T>
PassScratch grad_weight_channels_scratch(const GradWeightChannelBlocks& blocks, int64_t weights,
                                         const KernelSet<T>& kernels);

// Blocks of Winograd's method (winograd.cpp).
struct WinogradBlocks {
    int64_t chunk_channels = 1;  // reduction channels that are summed in registers in one go
    // Which transformed operand is made once and shared, the other being made by the task that uses it, in L2. Shared
    // weights: a task owns a block of tiles. Shared inputs: a task owns a block of rows, of one block of tiles after
    // the other; for many channels and few tiles, where the weights (4 times their size) would stream from memory.
    bool shares_inputs = false;
    int64_t block_panels = 1;  // panels of tiles
    int64_t block_rows = 1;    // output channels
};

// `tiles` of the whole batch.
WinogradBlocks plan_winograd_blocks(int64_t tiles, int64_t groups, int64_t channels, int64_t rows, int64_t item_bytes,
                                    int mr, int nr);
// Counted where it is carved up (winograd.cpp).
template <class T>
PassScratch winograd_scratch(const WinogradBlocks& blocks, int64_t groups, int64_t channels, int64_t rows,
                             const KernelSet<T>& kernels);
// Whether an image of this output (grad_input: input) size has so few tiles that vectors had better run over channels
// (winograd_channels.h; its tasks lie within one group, so groups go the other way), and the blocks of that nest.
bool winograd_by_channels(int64_t groups, int64_t height, int64_t width);
constexpr int64_t winograd_most_panels = 2;
int64_t winograd_chunk_channels(int64_t channels, int lanes);
struct WinogradChannelBlocks {
    int64_t chunk_channels = 1;  // reduction channels that are summed in registers in one go
    int64_t chunks = 1;
    int64_t tiles = 1;         // of an image
    int64_t block_images = 1;  // whose transformed inputs are kept
    int64_t block_panels = 1;  // of nr output channels, of one task
    int64_t source_pixels = 1, dest_pixels = 1;
};
WinogradChannelBlocks plan_winograd_channel_blocks(int64_t batch, int64_t height, int64_t width, int64_t channels,
                                                   int64_t rows, int lanes, int nr);
template <class T>
PassScratch winograd_channels_scratch(const WinogradChannelBlocks& blocks, const KernelSet<T>& kernels);
// Blocks of Winograd's weight gradient (winograd_grad_weight.cpp).
struct WinogradGradWeightBlocks {
    int64_t block_tiles = 1;    // tiles transformed at a time, for all channels
    int64_t blocks = 1;         // of tiles, summed in order
    int64_t block_rows = 1;     // output channels of one task
    int64_t block_columns = 1;  // input channels of one task
    int64_t chunk_tiles = 1;    // tiles summed in registers in one go
};
WinogradGradWeightBlocks plan_winograd_grad_weight_blocks(int64_t tiles, int64_t groups, int64_t rows, int64_t columns,
                                                          int64_t item_bytes, int mr, int nr);
template <class T>
PassScratch winograd_grad_weight_scratch(const WinogradGradWeightBlocks& blocks, int64_t groups, int64_t rows,
                                         int64_t columns, const KernelSet<T>& kernels);
bool supports_winograd(const ConvProblem& problem, ConvPass pass);
bool prefers_winograd(const ConvProblem& problem, ConvPass pass);

struct StagedAxis;

// Whether the grouped passes take a problem: fewer than 64 channels a group, windows that fit L2. From 64 on the
// implicit GEMM fills its tiles; below it packs every pixel 9 times for few rows: 0.5 times as fast with 16 and 32
// channels.
bool grouped_can_run(const ConvProblem& problem, ConvPass pass);
// Whether its vectors run over the `rows` channels of the result (grouped_channels.h) instead of over pixels.
bool grouped_takes_channels(ConvPass pass, int64_t rows, int lanes);

// Sizes of a grouped pass (grouped.h), of one group.
struct GroupedSizes {
    int64_t channels = 1, rows = 1;  // read and written
    int64_t taps = 1;                // at most, of one class of pixels
    int64_t source_pitch = 1;        // elements of a staged row
    int64_t dest_pitch = 1;          // columns of the largest class
    int64_t classes_w = 1;           // of columns
    int64_t positions_h = 1;         // rows of the largest class
    int64_t flops = 0;               // of one image
};
GroupedSizes grouped_sizes(const StagedAxis& h, const StagedAxis& w, int64_t channels, int64_t rows);

struct GroupedBlocks {
    int64_t stage_groups = 1;      // groups staged at once
    int64_t block_rows = 1;        // rows of the result (of each class) made from one stage
    int64_t staged_rows = 1;       // what they read
    int64_t task_units = 1;        // such stages of one task
    int64_t splits = 1;            // parts of the weight gradient's sum, added in order at the end
    bool through_scratch = false;  // the other array has no vectors of pixels
    int64_t staged_elements = 0;
};
// channels_inside: an array has its channels adjacent in memory.
GroupedBlocks plan_grouped_blocks(const GroupedSizes& sizes, const StagedAxis& h, int64_t batch, int64_t groups,
                                  int64_t item_bytes, bool channels_inside, bool through_scratch);
GroupedBlocks plan_grouped_grad_weight_blocks(const GroupedSizes& sizes, const StagedAxis& h, int64_t batch,
                                              int64_t groups, int64_t item_bytes, bool channels_inside,
                                              bool through_scratch);
// Counted where they are carved up (grouped.cpp, grouped_grad_weight.cpp); bytes for each worker.
template <class T>
int64_t grouped_scratch(const GroupedBlocks& blocks, const GroupedSizes& sizes, const KernelSet<T>& kernels);
template <class T>
PassScratch grouped_grad_weight_scratch(const GroupedBlocks& blocks, const GroupedSizes& sizes, int64_t weights,
                                        const KernelSet<T>& kernels);

// Whether the kernels over planes take a pass (depthwise.h), and its cuts.
bool depthwise_planes_can_run(const ConvProblem& problem, ConvPass pass);
struct DepthwiseBlocks {
    int64_t block_rows = 1;  // rows of the result of one plane
    int64_t task_units = 1;  // such blocks of one task
};
DepthwiseBlocks plan_depthwise_blocks(int64_t kernel, int64_t stride, int64_t planes, int64_t rows, int64_t columns,
                                      int64_t source_columns, int64_t item_bytes);
// The weight gradient over planes (depthwise_grad_weight.cpp), for the windows of depthwise_planes_can_run.
struct DepthwiseGradWeightBlocks {
    int64_t block_rows = 1;     // rows of the gradient summed in one go
    int64_t task_channels = 1;  // of one task
    int64_t splits = 1;         // parts of the rows of the batch, added in order at the end
};
DepthwiseGradWeightBlocks plan_depthwise_grad_weight(const ConvProblem& problem);
// Counted where it is carved up; `gathers` where columns are not adjacent in an array.
template <class T>
PassScratch depthwise_grad_weight_scratch(const ConvProblem& problem, const DepthwiseGradWeightBlocks& blocks,
                                          bool gathers, const KernelSet<T>& kernels);
// The same over channels (depthwise_pixels_grad_weight.cpp), for any window where the layout has channels adjacent.
bool depthwise_over_channels(const ConvProblem& problem);
struct DepthwisePixelsGradWeightBlocks {
    int64_t stretch = 1;        // pixels of a row that all rows of the window go over in turn
    int64_t task_channels = 1;  // of one task
    int64_t splits = 1;         // parts of the rows of the batch, added in order at the end
};
DepthwisePixelsGradWeightBlocks plan_depthwise_pixels_grad_weight(const ConvProblem& problem);
// The flags: arrays whose rows are copied, because channels are not adjacent in them.
template <class T>
PassScratch depthwise_pixels_grad_weight_scratch(const ConvProblem& problem,
                                                 const DepthwisePixelsGradWeightBlocks& blocks, bool copies_source,
                                                 bool copies_grad);
// Rows of one task of the nest over pixels, and its scratch.
int64_t depthwise_task_rows(int64_t row_flops, int64_t rows);
int64_t depthwise_pixels_scratch(const StagedAxis& h, const StagedAxis& w, int64_t channels, DType dtype);

// Below this many flops (about 40 us on one core) an operation stays on the calling thread: what other threads take off
// 40 us is about what it costs to wake them (thread_pool.h); if they are awake, it is a gain of 25 us.
constexpr int64_t parallel_flops = 3'000'000;
inline int parallel_width(int64_t flops) { return flops < parallel_flops ? 1 : 1 << 16; }
// Few flops an element: 512 planes of 14 x 14 through 3x3 with stride 2 take 25 us, three times what their flops would.
inline int64_t depthwise_work(int64_t flops, int64_t elements) { return flops + 8 * elements; }

// What the method would do, without algorithm-independent fields (plan_conv fills those).
template <class T>
void describe_gemm(PassPlan& plan, const ConvProblem& problem, bool forward, const KernelSet<T>& kernels, int threads);
template <class T>
void describe_winograd(PassPlan& plan, const ConvProblem& problem, bool forward, const KernelSet<T>& kernels,
                       int threads);
template <class T>
void describe_winograd_grad_weight(PassPlan& plan, const ConvProblem& problem, const KernelSet<T>& kernels,
                                   int threads);
template <class T>
void describe_gemm_grad_weight(PassPlan& plan, const ConvProblem& problem, const KernelSet<T>& kernels, int threads);
template <class T>
void describe_few_channels(PassPlan& plan, const ConvProblem& problem, bool forward, const KernelSet<T>& kernels,
                           int threads);
template <class T>
void describe_few_channels_grad_weight(PassPlan& plan, const ConvProblem& problem, const KernelSet<T>& kernels,
                                       int threads);

// Whether the passes of the problem run better without packing every tap (plan_few_channels.cpp).
bool few_channels_pays(const ConvProblem& problem, ConvPass pass);

template <class T>
void describe_grouped(PassPlan& plan, const ConvProblem& problem, bool forward, const KernelSet<T>& kernels,
                      int threads);
template <class T>
void describe_depthwise_planes(PassPlan& plan, const ConvProblem& problem, bool forward, const KernelSet<T>& kernels);
template <class T>
void describe_depthwise_grad_weight(PassPlan& plan, const ConvProblem& problem, const KernelSet<T>& kernels,
                                    int threads);
template <class T>
void describe_depthwise_pixels_grad_weight(PassPlan& plan, const ConvProblem& problem, const KernelSet<T>& kernels,
                                           int threads);
template <class T>
void describe_grouped_grad_weight(PassPlan& plan, const ConvProblem& problem, const KernelSet<T>& kernels, int threads);

PassPlan plan_conv(const ConvProblem& problem, ConvPass pass, const Kernels& kernels, int threads);

}  // namespace convx
