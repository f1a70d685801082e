// The gradient of max-pooling of narrow dense planes by codes, a vector of planes in lanes like narrow.cpp.
// Codes become numbers on the way, so that a tap is a comparison, a mask and an addition.
#include <atomic>
#include <cstdlib>

#include "cpu/max_pool2d/nest.h"
#include "cpu/max_pool2d/residues.h"

namespace convx {

namespace {

constexpr int64_t most_staged_bytes = 192 << 10;  // of a vector of planes, in L2 beside their gradients and codes

template <class T>
class NarrowGather {
public:
    NarrowGather(const PoolProblem& problem, const TensorView<const T>& grad_output,
                 const TensorView<const uint8_t>& codes, const TensorView<T>& grad_input)
        : problem_(problem), grad_output_(grad_output), codes_(codes), grad_input_(grad_input) {}

    struct Scratch {
        Scratch(ScratchParts parts, const NarrowGather& nest)
            : grads(parts.take<T>(nest.lanes_of(nest.windows_))), codes(parts.take<T>(nest.lanes_of(nest.windows_))),
              sums(parts.take<T>(nest.lanes_of(nest.cells_))), bytes(parts.bytes()) {}
        T *grads, *codes, *sums;
        int64_t bytes;
    };

    // False where a code is illegal.
    bool run() {
        list_sums();
        list_checks();
        const int64_t planes = problem_.batch * problem_.channels;
        const int64_t task_planes = std::max<int64_t>(1, pool_task_elements / (cells_ * lanes_)) * lanes_;
        std::atomic<bool> legal{true};
        run_pool_tasks(*this, pool_width(problem_, sizeof(T)), ceil_div(planes, task_planes),
                       [&](int64_t task, const Scratch& scratch) {
                           const int64_t end = std::min(planes, (task + 1) * task_planes);
                           for (int64_t plane = task * task_planes; plane < end; plane += lanes_)
                               if (!run_planes(plane, static_cast<int>(std::min(lanes_, end - plane)), scratch))
                                   legal.store(false, std::memory_order_relaxed);
                       });
        return legal.load();
    }

private:
    // The jobs are the same for all planes but for where scratch lies.
    struct SumJob : PoolLaneSum<T> {
        int64_t to;
    };
    struct CheckJob : PoolLaneCheck<T> {
        int64_t from;
    };

    int64_t lanes_of(int64_t cells) const { return (cells + lanes_) * lanes_; }  // packed in whole vectors

    bool run_planes(int64_t first, int count, const Scratch& scratch) const {
        const T* grads[widest_vector];
        const uint8_t* codes[widest_vector];
        T* outputs[widest_vector];
        int64_t n = first / problem_.channels, c = first % problem_.channels;
        for (int k = 0; k < lanes_; ++k) {
            grads[k] = grad_output_.at(n, c, 0, 0);
            codes[k] = codes_.at(n, c, 0, 0);
            outputs[k] = grad_input_.at(n, c, 0, 0);
            if (k + 1 >= count) continue;  // lanes without a plane repeat the last one
            if (++c == problem_.channels) {
                c = 0;
                ++n;
            }
        }
        kernels_.pool_pack(scratch.grads, grads, windows_, lanes_ * windows_);
        kernels_.pool_pack_codes(scratch.codes, codes, windows_);
        bool legal = true;
        for (CheckJob job : checks_) {
            job.codes = scratch.codes + job.from;
            legal = kernels_.pool_check_lanes(job) && legal;
        }
        for (SumJob job : sums_) {
            job.grads = scratch.grads;
            job.codes = scratch.codes;
            job.output = scratch.sums + job.to;
            kernels_.pool_sum_lanes(job);
        }
        PoolUnpack<T> job{};
        job.values = scratch.sums;
        job.count = cells_;
        job.planes = count;
        job.ahead = lanes_ * cells_;
        job.outputs = outputs;
        kernels_.pool_unpack(job);
        return legal;
    }

    void list_sums() {
        const int64_t window_row = problem_.out_w() * lanes_;
        const int64_t cell_row = problem_.w.input * lanes_;
        for (const Residue& h : h_.list)
            for (const WindowRun& rows : h.runs)
                for (const Residue& w : w_.list)
                    for (const WindowRun& columns : w.runs) {
                        const size_t first = offsets_.size();
                        const int64_t window = rows.begin * window_row + columns.begin * lanes_;
                        for (int64_t r = rows.tap_begin; r < rows.tap_end; ++r)
                            for (int64_t s = columns.tap_begin; s < columns.tap_end; ++s) {
                                const size_t i = static_cast<size_t>(r), j = static_cast<size_t>(s);
                                offsets_.push_back(window + h_.windows[i] * window_row + w_.windows[j] * lanes_);
                                wanted_.push_back(static_cast<T>(h_.taps[i] * problem_.w.kernel + w_.taps[j]));
                            }
                        SumJob job{};
                        job.taps = static_cast<int>(offsets_.size() - first);
                        job.rows = rows.end - rows.begin;
                        job.columns = columns.end - columns.begin;
                        job.row_step = window_row;
                        job.to = (h.first + rows.begin * problem_.h.stride) * cell_row +
                                 (w.first + columns.begin * problem_.w.stride) * lanes_;
                        job.output_row = problem_.h.stride * cell_row;
                        job.output_step = problem_.w.stride * lanes_;
                        sums_.push_back(job);
                    }
        size_t first = 0;
        for (SumJob& job : sums_) {
            job.offsets = offsets_.data() + first;
            job.wanted = wanted_.data() + first;
            first += static_cast<size_t>(job.taps);
        }
    }

    void list_checks() {
        const int64_t window_row = problem_.out_w() * lanes_;
        for (const WindowRun& rows : window_runs(problem_.h))
            for (const WindowRun& columns : window_runs(problem_.w)) {
                for (int64_t r = rows.tap_begin; r < rows.tap_end; ++r)
                    for (int64_t s = columns.tap_begin; s < columns.tap_end; ++s)
                        legal_.push_back(static_cast<T>(r * problem_.w.kernel + s));
                CheckJob job{};
                job.from = rows.begin * window_row + columns.begin * lanes_;
                job.rows = rows.end - rows.begin;
                job.columns = columns.end - columns.begin;
                job.row_step = window_row;
                job.taps = static_cast<int>(rows.count() * columns.count());
                job.all_taps = job.taps == problem_.taps();
                checks_.push_back(job);
            }
        size_t first = 0;
        for (CheckJob& job : checks_) {
            job.legal = legal_.data() + first;
            first += static_cast<size_t>(job.taps);
        }
    }

    const PoolProblem& problem_;
    const TensorView<const T> grad_output_;
    const TensorView<const uint8_t> codes_;
    const TensorView<T> grad_input_;
    const KernelSet<T>& kernels_ = kernel_set<T>(active_kernels());
    const int64_t lanes_ = kernels_.lanes;
    const Residues h_{problem_.h}, w_{problem_.w};
    const int64_t windows_ = problem_.out_h() * problem_.out_w(), cells_ = problem_.h.input * problem_.w.input;
    std::vector<SumJob> sums_;
    std::vector<int64_t> offsets_;  // per tap of each job in sums_
    std::vector<T> wanted_;
    std::vector<CheckJob> checks_;
    std::vector<T> legal_;  // per tap of each job in checks_
};

}  // namespace

template <class T>
bool max_pool2d_gather_is_narrow(const PoolProblem& problem, const TensorView<const T>& grad_output,
                                 const TensorView<const uint8_t>& codes, const TensorView<T>& grad_input) {
    const int64_t lanes = kernel_set<T>(active_kernels()).lanes;
    const int64_t bytes = problem.h.input * problem.w.input * lanes * int64_t{sizeof(T)};
    // Measured in NCHW against gather.cpp: 3x3 windows gain at 28x28, at stride 2 lose from 35x35 on; where
    // windows do not overlap only rows of less than two vectors gain.
    const bool overlap = problem.h.kernel > problem.h.stride || problem.w.kernel > problem.w.stride;
    if (overlap ? problem.h.input * problem.w.input > 1024 : problem.w.input > 16) return false;
    return problem.batch * problem.channels >= lanes && bytes <= most_staged_bytes && plane_is_dense(grad_output) &&
           plane_is_dense(codes) && plane_is_dense(grad_input);
}

template <class T>
bool max_pool2d_gather_narrow(const PoolProblem& problem, const TensorView<const T>& grad_output,
                              const TensorView<const uint8_t>& codes, const TensorView<T>& grad_input) {
    return NarrowGather<T>(problem, grad_output, codes, grad_input).run();
}

template bool max_pool2d_gather_is_narrow(const PoolProblem&, const TensorView<const float>&,
                                          const TensorView<const uint8_t>&, const TensorView<float>&);
template bool max_pool2d_gather_is_narrow(const PoolProblem&, const TensorView<const double>&,
                                          const TensorView<const uint8_t>&, const TensorView<double>&);
template bool max_pool2d_gather_narrow(const PoolProblem&, const TensorView<const float>&,
                                       const TensorView<const uint8_t>&, const TensorView<float>&);
template bool max_pool2d_gather_narrow(const PoolProblem&, const TensorView<const double>&,
                                       const TensorView<const uint8_t>&, const TensorView<double>&);

}  // namespace convx
