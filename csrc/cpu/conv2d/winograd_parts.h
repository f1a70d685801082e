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
// What the methods of this kind share: winograd_tiles.cpp, winograd_channels.cpp, winograd_grad_weight.cpp.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <vector>

#include "common/rounding.h"
#include "cpu/conv2d/cost.h"
#include "cpu/conv2d/implicit_gemm.h"
#include "cpu/conv2d/method.h"

namespace convx {

constexpr Traits winograd_traits{Algorithm::winograd, true, false, true, 0.4};

constexpr int64_t frequency_padding = 16;  // elements, so that the 36 streams of a transform do not share L1 sets
constexpr int64_t winograd_few_tiles = 256;
// Enough for 4 threads to end at about the same time; more would only cut the blocks small.
constexpr int64_t winograd_tasks = 16;

inline Verdict supports_winograd(const ConvProblem& problem, ConvPass) {
    const auto fits = [](const Axis& axis) { return axis.kernel == 3 && axis.stride == 1 && axis.dilation == 1; };
    if (!fits(problem.h) || !fits(problem.w)) return {"needs a window of 3 x 3 without stride and dilation"};
    return {};
}

// Along an axis.
inline int64_t winograd_tiles(int64_t positions) { return ceil_div(positions, winograd_outputs); }
// Of a channel of one image.
inline double winograd_tile_count(const WorkSizes& sizes) {
    return std::ceil(sizes.h.dest / winograd_outputs) * std::ceil(sizes.w.dest / winograd_outputs);
}

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
inline std::vector<int64_t> winograd_read_order(const AxisTable& table, bool mirrored, int64_t count) {
    std::vector<int64_t> order(static_cast<size_t>(count), AxisTable::outside);
    for (int64_t p = 0; p < std::min(table.positions + 2, count); ++p) {
        const int64_t position = std::min(p, table.positions - 1);
        order[static_cast<size_t>(p)] = table.at(mirrored ? 2 - (p - position) : p - position, position);
    }
    return order;
}

// visit(first, count) for each stretch of adjacent source indices in a read order; what lies outside is in none.
template <class Visit>
void for_each_stretch(const int64_t* order, int64_t count, const Visit& visit) {
    for (int64_t first = 0, end; first < count; first = end) {
        end = first + 1;
        if (order[first] == AxisTable::outside) continue;
        while (end < count && order[end] == order[end - 1] + 1) ++end;
        visit(first, end - first);
    }
}

// The GEMMs of all frequencies, at these distances from each other.
template <class T>
void multiply_frequencies(WinogradProductsArgs<T> args, int64_t weights, int64_t inputs, int64_t products,
                          const KernelSet<T>& kernels) {
    for (int64_t f = 0; f < winograd_frequencies; ++f) {
        kernels.winograd_products(args);
        args.weights += weights;
        args.inputs += inputs;
        args.products += products;
    }
}

// Kernels add 0 * output to the faults: NaN from an output that is not finite.
template <class T>
bool has_fault(const T* faults, int64_t lanes) {
    return !std::all_of(faults, faults + lanes, [](T x) { return x == T(0); });
}

// Transformed weights of all tasks, whatever the blocks are, so that prepared ones serve any batch: panels of `width`
// output channels and chunks of `kc` reduction channels, whose frequencies lie `frequency` apart.
struct WinogradWeightLayout {
    int64_t width, kc, panels, chunks;
    int64_t frequency, chunk, panel;

    int64_t size(int64_t groups) const { return groups * panels * panel; }
    int64_t at(int64_t group, int64_t p, int64_t c) const { return (group * panels + p) * panel + c * chunk; }
};

// What the drivers of window sums share: the weights U = G g G'.
template <class T>
class WinogradDriver {
public:
    int64_t weight_bytes() const { return weight_layout_.size(gemm_.groups) * int64_t{sizeof(T)}; }

    // For all later runs.
    void prepare(T* weights) const {
        constexpr int64_t weight_flops = 180;  // of the transform
        ScratchParts taps;
        taps.take<T>(taps_size());
        transform_all_weights(
            weights,
            TaskRunner({weight_tasks(), weight_flops * gemm_.groups * gemm_.rows * gemm_.channels, 0, taps.bytes()}));
    }

protected:
    WinogradDriver(const ImplicitGemm<T>& gemm, bool mirrored, const KernelSet<T>& kernels,
                   const WinogradWeightLayout& layout)
        : gemm_(gemm), mirrored_(mirrored), kernels_(kernels), weight_layout_(layout), weights_(gemm.packed_weight) {}

    int64_t taps_size() const { return weight_layout_.kc * 9 * weight_layout_.width + kernels_.lanes; }
    int64_t weight_tasks() const { return gemm_.groups * weight_layout_.panels * weight_layout_.chunks; }
    int64_t chunk_channels(int64_t chunk) const {
        return std::min(weight_layout_.kc, gemm_.channels - chunk * weight_layout_.kc);
    }

    // A panel of rows (those that there are not: zeros) and a chunk of channels, to dest[frequency][channel][width];
    // taps has room for taps_size() elements.
    void transform_weights(int64_t group, int64_t panel, int64_t chunk, T* taps, T* dest,
                           int64_t dest_frequency) const {
        const int64_t width = weight_layout_.width, channels = chunk_channels(chunk);
        pack_weight_panel(gemm_, {group, panel * width, chunk * weight_layout_.kc, channels}, width, kernels_, taps);
        WinogradWeightsArgs<T> args{taps, 9 * width, {}, channels, dest, dest_frequency};
        for (int64_t tap = 0; tap < 9; ++tap) args.tap[tap] = (mirrored_ ? 8 - tap : tap) * width;
        if (width == kernels_.mr)
            kernels_.winograd_weights(args);
        else
            kernels_.winograd_wide_weights(args);
    }

    void transform_all_weights(T* dest, const TaskRunner& runner) const {
        const int64_t panels = weight_layout_.panels, chunks = weight_layout_.chunks;
        runner.run(weight_tasks(), [&](int64_t task, ScratchParts parts) {
            const int64_t chunk = task % chunks, panel = task / chunks % panels, group = task / chunks / panels;
            transform_weights(group, panel, chunk, parts.take<T>(taps_size()),
                              dest + weight_layout_.at(group, panel, chunk), weight_layout_.frequency);
        });
    }

    const ImplicitGemm<T>& gemm_;
    const bool mirrored_;
    const KernelSet<T>& kernels_;
    const WinogradWeightLayout weight_layout_;
    const T* weights_;  // transformed ones of all rows, or null
};

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
        plan.task_plan = Driver<T>(phase_of(sum, plan.h, plan.w, 0, 0), !sum.forward(), kernels).tasks();
        return plan;
    }

    template <class T>
    static void run(const WindowSum<T>& sum, const Plan& plan, const KernelSet<T>& kernels) {
        const ImplicitGemm<T> gemm = phase_of(sum, plan.h, plan.w, 0, 0);
        run_but_for_exceptions<T>(
            sum, gemm, [&](Faults faulty) { Driver<T>(gemm, !sum.forward(), kernels).run(plan.task_plan, faulty); });
    }

    template <class T>
    static void pack(const WindowSum<T>& sum, const KernelSet<T>& kernels, PackedWeight<T>& packed) {
        const Plan own = plan(sum, kernels);
        const ImplicitGemm<T> gemm = phase_of(sum, own.h, own.w, 0, 0);
        Driver<T> driver(gemm, !sum.forward(), kernels);
        packed.data = Workspace(static_cast<size_t>(driver.weight_bytes()));
        driver.prepare(static_cast<T*>(packed.data.data()));
    }
};

}  // namespace convx
