// A reduction that is cut into parts (split-K), whose sums are added in ascending order: the same bits for any number
// of threads, since the cuts follow from the problem.
#pragma once

#include <algorithm>

#include "common/rounding.h"
#include "cpu/runtime/run_tasks.h"

namespace convx {

template <class T>
class SplitSum {
public:
    // A single part is `result` itself; several lie in `parts`, bytes(...) of them.
    SplitSum(T* result, void* parts, int64_t splits, int64_t size)
        : result_(result), parts_(splits == 1 ? result : static_cast<T*>(parts)), splits_(splits), size_(size) {}

    static int64_t bytes(int64_t splits, int64_t size) {
        return splits == 1 ? 0 : cache_lines(splits * size * static_cast<int64_t>(sizeof(T)));
    }

    T* part(int64_t split) const { return parts_ + split * size_; }

    void add() const {
        if (splits_ == 1) return;
        constexpr int64_t block = 4096;  // of a task, in L1
        parallel_for(ceil_div(size_, block), parallel_width(4 * size_ * splits_), [&](int64_t task, int) {
            const int64_t first = task * block, count = std::min(block, size_ - first);
            std::copy_n(parts_ + first, count, result_ + first);
            for (int64_t split = 1; split < splits_; ++split)
                for (int64_t i = first; i < first + count; ++i) result_[i] += parts_[split * size_ + i];
        });
    }

private:
    T* const result_;
    T* const parts_;
    const int64_t splits_, size_;
};

// A product of matrices for each group, rows x columns, whose sum is split-K: a task owns a block of rows, a block of
// columns and a slice of the sum.
template <class T>
struct SplitProduct {
    int64_t groups, rows, columns, mc, nc, slices;

    int64_t row_blocks() const { return ceil_div(rows, mc); }
    int64_t column_blocks() const { return ceil_div(std::max<int64_t>(columns, 1), nc); }
    int64_t size() const { return groups * rows * columns; }
    TaskPlan tasks(int64_t flops, int64_t worker_bytes) const {
        return {groups * row_blocks() * column_blocks() * slices, flops, SplitSum<T>::bytes(slices, size()),
                worker_bytes};
    }

    // body(group, first row, first column, slice, its sums of the group, scratch). Neighbouring tasks, which one worker
    // runs, share what is summed over.
    template <class Body>
    void run(const TaskPlan& plan, T* result, const Body& body) const {
        const int64_t row_blocks = this->row_blocks(), column_blocks = this->column_blocks();
        const TaskRunner runner(plan);
        const SplitSum<T> sums(result, runner.shared(), slices, size());
        runner.run(plan.tasks, [&](int64_t task, ScratchParts parts) {
            const int64_t slice = task / row_blocks / column_blocks % slices;
            const int64_t group = task / row_blocks / column_blocks / slices;
            body(group, task % row_blocks * mc, task / row_blocks % column_blocks * nc, slice,
                 sums.part(slice) + group * rows * columns, parts);
        });
        sums.add();
    }
};

}  // namespace convx
