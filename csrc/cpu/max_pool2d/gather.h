// What the gradients of max-pooling by codes share that sum over one kernel (kernels/max_pool2d_backward.inl.h): the
// taps of each phase, and the arguments for a block of cells that have the same ones.
#pragma once

#include "cpu/max_pool2d/driver.h"
#include "cpu/max_pool2d/phases.h"

namespace convx {

// Where the codes decide for another method: windows that overlap so much that looking at all of them costs more than
// a scatter, or windows so far apart that vectors of cells are mostly zeros.
template <class T>
bool has_channel_vectors(const PoolBackward<T>& pass, const KernelSet<T>& kernels) {
    return channels_are_adjacent(pass.grad_output, pass.codes, pass.grad_input) &&
           pass.problem.channels >= kernels.lanes;
}
template <class T>
bool prefers_scatter(const PoolBackward<T>& pass, const KernelSet<T>& kernels) {
    const PoolProblem& problem = pass.problem;
    const int64_t windows = problem.taps() / (problem.h.stride * problem.w.stride);
    return has_channel_vectors(pass, kernels) ? windows >= 36 : windows >= 16 || problem.w.stride > 2;
}
// Where the gather of narrow planes is faster than that of planes, in NCHW: 3x3 windows gain at 28x28, at stride 2 they
// lose from 35x35 on; where windows do not overlap only rows of less than two vectors gain.
template <class T>
bool gathers_narrow_planes(const PoolBackward<T>& pass, const KernelSet<T>& kernels) {
    const Axis &h = pass.problem.h, &w = pass.problem.w;
    return !has_channel_vectors(pass, kernels) && vector_of_planes_fits(pass.problem, kernels) &&
           (windows_overlap(pass.problem) ? h.input * w.input <= 1024 : w.input <= 16) &&
           plane_is_dense(pass.grad_output) && plane_is_dense(pass.codes) && plane_is_dense(pass.grad_input);
}

template <class T>
class Gather {
public:
    static Verdict supports(const PoolBackward<T>& pass, const KernelSet<T>&) {
        return {pass.codes.data ? nullptr : "needs codes"};
    }

protected:
    Gather(const PoolBackward<T>& pass, const KernelSet<T>& kernels)
        : problem_(pass.problem), grad_output_(pass.grad_output), codes_(pass.codes), grad_input_(pass.grad_input),
          kernels_(kernels) {
        for (const int64_t r : h_.taps)
            for (const int64_t s : w_.taps) wanted_.push_back(static_cast<uint8_t>(r * problem_.w.kernel + s));
    }

    // Pointers to the rows of windows under each tap, of a worker.
    struct TapRows {
        TapRows(ScratchParts& parts, const Gather& driver)
            : grads(parts.take<const T*>(driver.problem_.h.kernel)),
              codes(parts.take<const uint8_t*>(driver.problem_.h.kernel)) {}
        const T** grads;
        const uint8_t** codes;
    };

    // Where the windows of a block lie: those that its first cell would have under offset 0, and the next row of them.
    struct Block {
        const T* grads;
        const uint8_t* codes;
        int64_t grad_row, code_row;
    };

    void set_rows(const Block& block, int64_t tap_begin, int64_t tap_end, const TapRows& rows) const {
        for (int64_t r = tap_begin; r < tap_end; ++r) {
            const int64_t window = h_.windows[static_cast<size_t>(r)];
            rows.grads[r] = block.grads + window * block.grad_row;
            rows.codes[r] = block.codes + window * block.code_row;
        }
    }
    void set_taps(PoolSumArgs<T>& args, int64_t r_begin, int64_t r_end, int64_t s_begin, int64_t s_end,
                  const TapRows& rows) const {
        args.tap_rows = static_cast<int>(r_end - r_begin);
        args.tap_columns = static_cast<int>(s_end - s_begin);
        args.grad_rows = rows.grads + r_begin;
        args.code_rows = rows.codes + r_begin;
        args.offsets = offsets_.data() + s_begin;
        args.wanted_row = static_cast<int64_t>(w_.taps.size());
        args.wanted = wanted_.data() + r_begin * args.wanted_row + s_begin;
    }
    void set_offsets(int64_t column) {
        for (const int64_t window : w_.windows) offsets_.push_back(window * column);
    }

    // Whether the result goes around the caches.
    bool streams() const {
        return (grad_output_.size() + grad_input_.size()) * int64_t{sizeof(T)} + codes_.size() >= streaming_bytes;
    }

    const PoolProblem problem_;
    const TensorView<const T> grad_output_;
    const TensorView<const uint8_t> codes_;
    const TensorView<T> grad_input_;
    const KernelSet<T>& kernels_;
    const Phases h_{problem_.h}, w_{problem_.w};
    std::vector<uint8_t> wanted_;   // codes of all pairs of taps in h_ and w_
    std::vector<int64_t> offsets_;  // per tap in w_: elements to its windows
};

}  // namespace convx
