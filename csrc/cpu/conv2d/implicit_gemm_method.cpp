// The implicit GEMM as a method: any problem, phase by phase.
#include "common/rounding.h"
#include "common/small_vector.h"
#include "cpu/conv2d/implicit_gemm.h"
#include "cpu/conv2d/method_row.h"

namespace convx {

namespace {

// One reused panel (depth x 6 or 16 floats) has to stay in a 32 KiB L1 beside the streamed one: 256 deep is 6 + 16 KiB.
constexpr int64_t target_depth = 256;
// Packed pixels of one task, in L2 (512 KiB and more) beside the weights that stream through.
constexpr int64_t pixel_block_bytes = 192 * 1024;
// Enough tasks that the last round of 4 to 16 threads wastes little; the number follows from the problem alone.
constexpr int64_t wanted_tasks = 48;

struct Plan {
    PhaseTables h, w;
    SmallVector<GemmPlan, 1> phases;  // [phase of h][phase of w]
    TaskPlan task_plan;               // of the phase with the most taps

    const TaskPlan& tasks() const { return task_plan; }

    size_t densest() const { return h.densest() * w.size() + w.densest(); }
};

}  // namespace

template <class T>
GemmBlocks plan_gemm_blocks(const ImplicitGemm<T>& gemm, bool channels_last, const KernelSet<T>& kernels) {
    GemmBlocks blocks;
    blocks.pixels_in_rows = channels_last;
    const int64_t pixel_width = channels_last ? kernels.mr : kernels.nr;
    const int64_t row_width = channels_last ? kernels.nr : kernels.mr;
    const int64_t channels = std::max<int64_t>(gemm.channels, 1), taps = std::max<int64_t>(gemm.taps(), 1);
    const int64_t groups = gemm.groups, rows = gemm.rows, pixels = gemm.pixels();

    // The depth decides the order of sums, so it may depend on nothing but channels and taps. Even chunks.
    const int64_t chunks = ceil_div(channels, std::clamp(target_depth / taps, int64_t{1}, channels));
    blocks.chunk_channels = ceil_div(channels, chunks);

    // The smaller operand is packed once for all tasks, of the larger one every task packs its own part in L2. With
    // pixels the larger one: as many panels as fit and as leave enough tasks, with all rows.
    const int64_t depth = blocks.chunk_channels * taps;
    const int64_t panels = std::max<int64_t>(ceil_div(pixels, pixel_width), 1);
    const int64_t row_panels = ceil_div(std::max<int64_t>(rows, 1), row_width);
    const int64_t fit = std::max<int64_t>(pixel_block_bytes / (depth * pixel_width * int64_t{sizeof(T)}), 1);
    blocks.by_rows = panels * pixel_width < rows;
    if (blocks.by_rows) {
        blocks.block_panels = panels;
        blocks.pass_panels = ceil_div(panels, ceil_div(panels, fit));
        blocks.block_rows = std::min(ceil_div(row_panels * groups, wanted_tasks) + 1, row_panels) * row_width;
        return blocks;
    }
    blocks.block_panels = std::clamp(panels * groups / (2 * wanted_tasks), int64_t{1}, fit);
    blocks.pass_panels = blocks.block_panels;
    const int64_t pixel_tasks = groups * ceil_div(panels, blocks.block_panels);
    // Splitting rows packs the pixels again for each part, so a part keeps at least 8 panels.
    const int64_t row_parts = std::clamp(ceil_div(wanted_tasks, pixel_tasks), int64_t{1}, ceil_div(row_panels, 8));
    blocks.block_rows = ceil_div(row_panels, row_parts) * row_width;
    return blocks;
}

template GemmBlocks plan_gemm_blocks(const ImplicitGemm<float>&, bool, const KernelSet<float>&);
template GemmBlocks plan_gemm_blocks(const ImplicitGemm<double>&, bool, const KernelSet<double>&);

struct ImplicitGemmMethod {
    static constexpr const char* name = "implicit-gemm";
    static constexpr Traits traits{};

    static Verdict supports(const ConvProblem&, ConvPass) { return {}; }
    static bool suits(const ConvProblem&, ConvPass, const Kernels&) { return true; }

    template <class T>
    static Plan plan(const WindowSum<T>& sum, const KernelSet<T>& kernels) {
        Plan plan{{sum.problem->h, sum.forward()}, {sum.problem->w, sum.forward()}, {}, {}};
        for (size_t i = 0; i < plan.h.size(); ++i)
            for (size_t j = 0; j < plan.w.size(); ++j)
                plan.phases.push_back(
                    plan_implicit_gemm(dense_sum(sum, plan, i, j), sum.problem->channels_last, kernels));
        plan.task_plan = plan.phases[plan.densest()].tasks;
        return plan;
    }

    template <class T>
    static void run(const WindowSum<T>& sum, const Plan& plan, const KernelSet<T>& kernels) {
        if (plan.h.has_empty() || plan.w.has_empty()) fill_with_bias(sum);
        for (size_t i = 0; i < plan.h.size(); ++i)
            for (size_t j = 0; j < plan.w.size(); ++j) {
                const ImplicitGemm<T> gemm = dense_sum(sum, plan, i, j);
                if (gemm.taps() == 0 || gemm.pixels() == 0) continue;
                run_implicit_gemm(gemm, plan.phases[i * plan.w.size() + j], kernels);
            }
    }

    template <class T>
    static void describe(const WindowSum<T>& sum, const Plan& plan, const KernelSet<T>& kernels, PassPlan& text) {
        const ImplicitGemm<T> gemm = dense_sum(sum, plan, plan.h.densest(), plan.w.densest());
        const GemmBlocks& blocks = plan.phases[plan.densest()].blocks;
        const std::string mr = std::to_string(kernels.mr), nr = std::to_string(kernels.nr);
        const int64_t pixels = blocks.block_panels * (blocks.pixels_in_rows ? kernels.mr : kernels.nr);
        text.tile = blocks.pixels_in_rows ? mr + " pixels x " + nr + " channels" : mr + " channels x " + nr + " pixels";
        text.block = std::to_string(std::min(pixels, gemm.pixels())) + " pixels x " +
                     std::to_string(std::min(blocks.block_rows, gemm.rows)) + " channels, sums of " +
                     std::to_string(blocks.chunk_channels) + " channels x " + std::to_string(gemm.taps()) + " taps";
        text.reason = blocks.pixels_in_rows ? "implicit GEMM, vectors over channels because the layout is NHWC"
                                            : "implicit GEMM, vectors over pixels because the layout is NCHW";
        if (blocks.by_rows)
            text.reason += "; fewer pixels than channels, so a task owns channels and packs their weights for itself";
        if (plan.phases.size() > 1)
            text.reason += "; the stride makes " + std::to_string(plan.phases.size()) +
                           " dense phases, of which the one with most taps is shown";
    }

    template <class T>
    static void pack(const WindowSum<T>& sum, const KernelSet<T>& kernels, PackedWeight<T>& packed) {
        const Plan own = plan(sum, kernels);
        const ImplicitGemm<T> gemm = dense_sum(sum, own, 0, 0);
        const GemmBlocks& blocks = own.phases[0].blocks;
        packed.data = Workspace(static_cast<size_t>(packed_weight_bytes(gemm, blocks, kernels)));
        pack_gemm_weights(gemm, blocks, kernels, static_cast<T*>(packed.data.data()));
    }

private:
    template <class T>
    static ImplicitGemm<T> dense_sum(const WindowSum<T>& sum, const Plan& plan, size_t i, size_t j) {
        ImplicitGemm<T> gemm = phase_of(sum, plan.h, plan.w, i, j);
        if (sum.packed) gemm.packed_weight = sum.packed->weights();
        return gemm;
    }
};

template const Method<WindowSum<float>>& method_row<ImplicitGemmMethod, WindowSum<float>>();
template const Method<WindowSum<double>>& method_row<ImplicitGemmMethod, WindowSum<double>>();

}  // namespace convx
