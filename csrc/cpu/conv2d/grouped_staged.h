// Blocks of staged rows (staging.h), for groups in any memory order: grouped_staged.cpp and its weight gradient.
#pragma once

#include "cpu/conv2d/grouped.h"
#include "cpu/conv2d/staging.h"

namespace convx {

// Sizes of a grouped pass, of one group.
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

// What is staged at once; channels_inside: an array has its channels adjacent in memory.
GroupedBlocks staged_blocks(const GroupedSizes& sizes, const StagedAxis& h, int64_t groups, int64_t item_bytes,
                            bool channels_inside, bool through_scratch);

std::string rows_of_groups(const GroupedBlocks& blocks);

// The driver of forward and grad_input, for depthwise.cpp too.
template <class T>
TaskPlan grouped_staged_tasks(const WindowSum<T>& sum, const StagedAxis& h, const StagedAxis& w,
                              const KernelSet<T>& kernels);
template <class T>
void run_grouped_staged(const WindowSum<T>& sum, const StagedAxis& h, const StagedAxis& w, const TaskPlan& tasks,
                        const KernelSet<T>& kernels);
template <class T>
void describe_grouped_staged(const WindowSum<T>& sum, const StagedAxis& h, const StagedAxis& w,
                             const KernelSet<T>& kernels, PassPlan& text);

}  // namespace convx
