// The gradient of max-pooling of narrow dense planes by codes, a vector of planes in lanes like max_pool2d_narrow.cpp.
// Codes become numbers on the way, so that a tap is a comparison, a mask and an addition.
#include <cstdlib>

#include "cpu/max_pool2d_nest.h"
#include "cpu/max_pool2d_residues.h"

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
              sums(parts.take<T>(nest.lanes_of(nest.cells_))), offsets(parts.take<int64_t>(nest.problem_.taps())),
              wanted(parts.take<T>(nest.problem_.taps())), bytes(parts.bytes()) {}
        T *grads, *codes, *sums;
        int64_t* offsets;
        T* wanted;
        int64_t bytes;
    };

    void run() const {
        const int64_t planes = problem_.batch * problem_.channels;
        const int64_t task_planes = std::max<int64_t>(1, pool_task_elements / (cells_ * lanes_)) * lanes_;
        run_pool_tasks(*this, pool_width(problem_, sizeof(T)), ceil_div(planes, task_planes),
                       [&](int64_t task, const Scratch& scratch) {
                           const int64_t end = std::min(planes, (task + 1) * task_planes);
                           for (int64_t plane = task * task_planes; plane < end; plane += lanes_)
                               run_planes(plane, static_cast<int>(std::min(lanes_, end - plane)), scratch);
                       });
    }

private:
    int64_t lanes_of(int64_t cells) const { return (cells + lanes_) * lanes_; }  // packed in whole vectors

    template <class U>
    U* plane_of(const TensorView<U>& view, int64_t plane) const {
        return view.at(plane / problem_.channels, plane % problem_.channels, 0, 0);
    }

    void run_planes(int64_t first, int count, const Scratch& scratch) const {
        const T* grads[widest_vector];
        const uint8_t* codes[widest_vector];
        T* outputs[widest_vector];
        for (int k = 0; k < lanes_; ++k) {
            const int64_t plane = first + std::min(k, count - 1);  // lanes without a plane repeat the last one
            grads[k] = plane_of(grad_output_, plane);
            codes[k] = plane_of(codes_, plane);
            outputs[k] = plane_of(grad_input_, plane);
        }
        kernels_.pool_pack(scratch.grads, grads, windows_, lanes_ * windows_);
        kernels_.pool_pack_codes(scratch.codes, codes, windows_);
        for (const Residue& h : h_.list)
            for (const WindowRun& rows : h.runs)
                for (const Residue& w : w_.list)
                    for (const WindowRun& columns : w.runs) sum(h, rows, w, columns, scratch);
        PoolUnpack<T> job{};
        job.values = scratch.sums;
        job.count = cells_;
        job.planes = count;
        job.outputs = outputs;
        kernels_.pool_unpack(job);
    }

    void sum(const Residue& h, const WindowRun& rows, const Residue& w, const WindowRun& columns,
             const Scratch& scratch) const {
        const int64_t window_row = problem_.out_w() * lanes_, cell_row = problem_.w.input * lanes_;
        const int64_t window = rows.begin * window_row + columns.begin * lanes_;  // of a tap whose windows[] is 0
        PoolLaneSum<T> job;
        job.taps = static_cast<int>(rows.count() * columns.count());
        int64_t tap = 0;
        for (int64_t r = rows.tap_begin; r < rows.tap_end; ++r)
            for (int64_t s = columns.tap_begin; s < columns.tap_end; ++s, ++tap) {
                const size_t i = static_cast<size_t>(r), j = static_cast<size_t>(s);
                scratch.offsets[tap] = window + h_.windows[i] * window_row + w_.windows[j] * lanes_;
                scratch.wanted[tap] = static_cast<T>(h_.taps[i] * problem_.w.kernel + w_.taps[j]);
            }
        job.grads = scratch.grads;
        job.codes = scratch.codes;
        job.offsets = scratch.offsets;
        job.wanted = scratch.wanted;
        job.rows = rows.end - rows.begin;
        job.columns = columns.end - columns.begin;
        job.row_step = window_row;
        job.output = scratch.sums + (h.first + rows.begin * problem_.h.stride) * cell_row +
                     (w.first + columns.begin * problem_.w.stride) * lanes_;
        job.output_row = problem_.h.stride * cell_row;
        job.output_step = problem_.w.stride * lanes_;
        kernels_.pool_sum_lanes(job);
    }

    const PoolProblem& problem_;
    const TensorView<const T> grad_output_;
    const TensorView<const uint8_t> codes_;
    const TensorView<T> grad_input_;
    const KernelSet<T>& kernels_ = kernel_set<T>(active_kernels());
    const int64_t lanes_ = kernels_.lanes;
    const Residues h_{problem_.h}, w_{problem_.w};
    const int64_t windows_ = problem_.out_h() * problem_.out_w(), cells_ = problem_.h.input * problem_.w.input;
};

}  // namespace

template <class T>
bool max_pool2d_gather_is_narrow(const PoolProblem& problem, const TensorView<const T>& grad_output,
                                 const TensorView<const uint8_t>& codes, const TensorView<T>& grad_input) {
    const int64_t lanes = kernel_set<T>(active_kernels()).lanes;
    const int64_t bytes = problem.h.input * problem.w.input * lanes * int64_t{sizeof(T)};
    if (getenv("NONARROW")) return false;
    return problem.batch * problem.channels >= lanes && bytes <= most_staged_bytes && plane_is_dense(grad_output) &&
           plane_is_dense(codes) && plane_is_dense(grad_input);
}

template <class T>
void max_pool2d_gather_narrow(const PoolProblem& problem, const TensorView<const T>& grad_output,
                              const TensorView<const uint8_t>& codes, const TensorView<T>& grad_input) {
    NarrowGather<T>(problem, grad_output, codes, grad_input).run();
}

template bool max_pool2d_gather_is_narrow(const PoolProblem&, const TensorView<const float>&,
                                          const TensorView<const uint8_t>&, const TensorView<float>&);
template bool max_pool2d_gather_is_narrow(const PoolProblem&, const TensorView<const double>&,
                                          const TensorView<const uint8_t>&, const TensorView<double>&);
template void max_pool2d_gather_narrow(const PoolProblem&, const TensorView<const float>&,
                                       const TensorView<const uint8_t>&, const TensorView<float>&);
template void max_pool2d_gather_narrow(const PoolProblem&, const TensorView<const double>&,
                                       const TensorView<const uint8_t>&, const TensorView<double>&);

}  // namespace convx
