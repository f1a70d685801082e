// Winograd's F(4 x 4, 3 x 3) for dense 3 x 3 kernels: 36 multiplications for 16 outputs of a channel instead of 144.
//
//   dest tile = A' [ sum over channels of (G weight G') * (B' source tile B) ] A        (kernels/winograd.inl.h)
//
// The sum is a GEMM for each of the 36 frequencies: rows x channels of transformed weights U times channels x tiles of
// transformed inputs V gives the products M. It serves forward and, over grad_output with mirrored taps, grad_input.
//
// Same bits: a frequency is summed channel by channel in chunks that the number of channels fixes, and every transform
// works on one tile (one pair of channels) alone, so neither the cut into tasks nor batch, threads and layout matter.
//
// Inf, NaN and overflow would smear over a tile. They show as outputs that are not finite; an image that has one is
// computed again by a direct method. That depends on the image (and the weights) alone, as do the exceptions for values
// whose sums are exact (exact_values.cpp).
//
// What the methods of this kind have in common; their drivers are winograd_tiles.cpp, winograd_channels.cpp and
// winograd_grad_weight.cpp.
#pragma once

#include <atomic>
#include <functional>
#include <vector>

#include "cpu/conv2d/implicit_gemm.h"
#include "cpu/conv2d/method.h"

namespace convx {

constexpr Traits winograd_traits{Algorithm::winograd, true, false, true, 0.4};

Verdict supports_winograd(const ConvProblem& problem, ConvPass pass);
// Whether an image of this output (grad_input: input) size has so few tiles that vectors had better run over channels
// (winograd_channels.cpp; its tasks lie within one group, so groups go the other way).
bool has_few_tiles(const ConvProblem& problem, ConvPass pass);

// Marks an image that has to be computed again.
using Faults = std::atomic<bool>*;

// What the transforms would spoil goes to a direct method (exact_values.cpp). Of a window sum single images: those
// whose values have exact sums, and those that run(faults) marks because an output is not finite. Of a pixel sum all of
// it: run() returns whether the result is finite.
template <class T>
void run_but_for_exceptions(const WindowSum<T>& sum, const ImplicitGemm<T>& gemm,
                            const std::function<void(Faults)>& run);
template <class T>
void run_but_for_exceptions(const PixelSum<T>& sum, const std::function<bool()>& run);

// Source index of the first `count` rows (columns) that tiles read, in order; `outside` also behind the last position's
// taps. `mirrored`: tap r reads position + 2 - r.
std::vector<int64_t> winograd_read_order(const AxisTable& table, bool mirrored, int64_t count);

// Some rows of one group and some reduction channels of them.
struct WeightPart {
    int64_t group, first_row, first_channel, channels;
};

// A panel of `width` rows (mr or nr; rows that there are not are zero), G g G' at dest[frequency][channel][width].
// `taps` has room for channels * 9 * width + lanes elements.
template <class T>
void transform_weight_panel(const ImplicitGemm<T>& gemm, bool mirrored, const KernelSet<T>& kernels, int64_t width,
                            const WeightPart& part, T* taps, T* dest, int64_t dest_frequency);

// A method of window sums around its driver, which is made of a dense sum, whether taps are mirrored, and the kernels.
template <template <class> class Driver>
struct WinogradMethod {
    static constexpr Traits traits = winograd_traits;

    struct Plan {
        PhaseTables h, w;
        TaskPlan task_plan;

        const TaskPlan& tasks() const { return task_plan; }
    };

    static Verdict supports(const ConvProblem& problem, ConvPass pass) { return supports_winograd(problem, pass); }

    template <class T>
    static Plan plan(const WindowSum<T>& sum, const KernelSet<T>& kernels) {
        Plan plan{{sum.problem->h, sum.forward()}, {sum.problem->w, sum.forward()}, {}};
        plan.task_plan = Driver<T>(dense_sum(sum, plan), !sum.forward(), kernels).tasks();
        return plan;
    }

    template <class T>
    static void run(const WindowSum<T>& sum, const Plan& plan, const KernelSet<T>& kernels) {
        const ImplicitGemm<T> gemm = dense_sum(sum, plan);
        run_but_for_exceptions<T>(
            sum, gemm, [&](Faults faulty) { Driver<T>(gemm, !sum.forward(), kernels).run(plan.task_plan, faulty); });
    }

    template <class T>
    static void pack(const WindowSum<T>& sum, const KernelSet<T>& kernels, PackedWeight<T>& packed) {
        const Plan own = plan(sum, kernels);
        const ImplicitGemm<T> gemm = dense_sum(sum, own);
        Driver<T> driver(gemm, !sum.forward(), kernels);
        packed.data = Workspace(static_cast<size_t>(driver.weight_bytes()));
        driver.prepare(static_cast<T*>(packed.data.data()));
    }

    template <class T>
    static ImplicitGemm<T> dense_sum(const WindowSum<T>& sum, const Plan& plan) {
        ImplicitGemm<T> gemm = phase_of(sum, plan.h, plan.w, 0, 0);
        gemm.packed_weight = sum.packed ? sum.packed->weights() : nullptr;
        return gemm;
    }
};

}  // namespace convx
