// Max-pooling, forward. Two loop nests over one kernel (kernels/max_pool2d.inl.h):
//
//  - channels: the channels of a pixel are adjacent (NHWC) and fill a vector. Cells are pixels x channels, a stream is a
//    tap's pixel, nothing is copied; borders leave out the taps that they lack.
//  - planes: everything else. The rows of an (n, c) plane are staged a block at a time: padded with -inf, and split into
//    one row per residue of the column modulo the stride, so that each tap of neighbouring windows reads neighbouring
//    elements. Where a row can be read like that as it is, nothing is staged.
//
// Windows that overlap in rows are taken apart where that pays (5x5 and more, 3x3 at stride 1): first the best of each
// row under the window's columns, once per input row, then the best of these, which keeps the row-major order of ties
// and NaNs: S - 1 + R - 1 comparisons per cell instead of R * S - 1.
#include "cpu/max_pool2d.h"

#include <limits>

#include "cpu/memory_bound.h"
#include "cpu/pool_axis.h"
#include "cpu/registry.h"
#include "cpu/thread_pool.h"
#include "cpu/workspace.h"

namespace convx {

namespace {

constexpr int64_t block_bytes = 24 << 10;          // staged and ranked rows of one block: they stay in L1
constexpr int64_t max_block_columns = 2048;
constexpr int64_t lane_cells = 4096;               // chosen taps on their way to int64 indices
constexpr int64_t task_elements = int64_t{1} << 15;  // input elements of one task
constexpr int64_t widest_vector = 16;

int64_t round_up(int64_t n) { return (n + widest_vector - 1) / widest_vector * widest_vector; }

// Hands out 64-byte aligned parts of a buffer; without one it only adds up their sizes.
class Parts {
public:
    explicit Parts(void* buffer = nullptr) : buffer_(static_cast<char*>(buffer)) {}
    template <class U>
    U* take(int64_t count) {
        U* part = buffer_ ? reinterpret_cast<U*>(buffer_ + used_) : nullptr;
        used_ += (count * static_cast<int64_t>(sizeof(U)) + 63) / 64 * 64;
        return part;
    }
    int64_t used() const { return used_; }

private:
    char* buffer_;
    int64_t used_ = 0;
};

template <class T>
class Forward {
public:
    Forward(const PoolProblem& problem, const TensorView<const T>& input, const TensorView<T>& output,
            const TensorView<int64_t>& indices, const TensorView<uint8_t>& codes);
    void run();

private:
    // One worker's memory.
    struct Scratch {
        const T** values;  // one per tap
        T* staged;
        T* ranked;
        T* values_out;       // results on their way to adjacent-less outputs
        uint8_t* codes_out;
        T* lanes_out;
    };
    Scratch scratch(Parts& parts) const;

    void plan_planes();
    void run_planes();
    void run_channels();
    void plane_block(const Scratch& scratch, int64_t n, int64_t c, int64_t p_begin, int64_t p_end) const;
    void channels_row(const Scratch& scratch, int64_t n, int64_t p) const;
    void emit(PoolMax<T>& job, const Scratch& scratch, void (*kernel)(const PoolMax<T>&), int64_t n, int64_t c, int64_t p,
              int64_t q, int64_t vector_axis) const;
    void mark_empty(int64_t n, int64_t c_begin, int64_t c_end, int64_t p, int64_t q) const;
    bool wants_codes() const { return indices_.data || codes_.data; }
    int width(int64_t taps) const;

    const PoolProblem& problem_;
    const TensorView<const T> input_;
    const TensorView<T> output_;
    const TensorView<int64_t> indices_;
    const TensorView<uint8_t> codes_;
    const KernelSet<T>& kernels_ = kernel_set<T>(active_kernels());
    const std::vector<WindowRun> row_runs_, column_runs_;
    const int64_t R_, S_, P_, Q_;
    std::vector<T> tap_codes_;            // 0, 1, ..., R * S - 1
    std::vector<int64_t> index_offsets_;  // index under a tap, less that of its window's origin

    bool staged_ = false, separable_ = false, pairs_ = false;
    int64_t block_rows_ = 1, block_columns_ = 1;
    int64_t phase_width_ = 0, staged_row_ = 0, ranked_row_ = 0;
    std::vector<int64_t> phases_;  // residues of the column that some tap reads
    std::vector<T> first_codes_;   // per column: first tap inside the image
};

}  // namespace
}  // namespace convx
