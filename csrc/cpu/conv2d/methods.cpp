#include "cpu/conv2d/methods.h"

#include <algorithm>
#include <array>
#include <string>

#include "common/check.h"
#include "cpu/conv2d/reference.h"
#include "cpu/runtime/registry.h"

namespace convx {

// In order: the first one that supports a problem and suits it is chosen. A method is one file and one line here.
template <class... M>
struct MethodList {
    template <class Sum>
    static const std::array<const Method<Sum>*, sizeof...(M)>& rows() {
        static const std::array<const Method<Sum>*, sizeof...(M)> all{&method_row<M, Sum>()...};
        return all;
    }
};

// clang-format off: a line each
using WindowMethods = MethodList<  // forward and grad_input
    struct WinogradChannelsMethod,
    struct WinogradTilesMethod,
    struct DepthwiseMethod,
    struct DirectChannelsMethod,
    struct DirectSpatialMethod,
    struct ImplicitGemmMethod>;

using PixelMethods = MethodList<  // grad_weight
    struct WinogradSumMethod,
    struct DepthwisePixelsSumMethod,
    struct DepthwisePlanesSumMethod,
    struct DirectChannelsSumMethod,
    struct DirectSpatialSumMethod,
    struct OuterSumMethod,
    struct DotSumMethod>;
// clang-format on

namespace {

// Against the direct methods on Zen 3, one thread: 2.3 to 3.3 times as fast at 28 x 28 and above, 1.9 to 3 at 14 x 14;
// at 7 x 7 with 512 channels 2.5 times for a batch of 8, 1.3 for a single image, whose few tiles hardly pay for the
// transformed weights; weight gradients 1.9 times for one image of 7 x 7, 2.2 of 14 x 14. Planes that fill few of their
// tiles' outputs, or few channels, lose the gain. Never in float64: whoever asks for it wants the digits that the
// transforms take (errors 10 times those of the direct sum at 64 channels).
bool prefers_winograd(const ConvProblem& problem, ConvPass pass) {
    if (problem.dtype == DType::float64) return false;
    const bool forward = pass != ConvPass::grad_input;
    const int64_t height = forward ? problem.out_h() : problem.h.input;
    const int64_t width = forward ? problem.out_w() : problem.w.input;
    const auto in_tiles = [](int64_t size) {
        return (size + winograd_outputs - 1) / winograd_outputs * winograd_outputs;
    };
    // In groups of few channels the direct sums are faster, on 4 threads up to 5 times, since each group is a task.
    if (pass == ConvPass::grad_weight && problem.groups > 1 && problem.group_in() < 64 && problem.group_out() < 64)
        return false;
    return std::min(problem.group_in(), problem.group_out()) >= 16 && height * width >= 49 &&
           5 * in_tiles(height) * in_tiles(width) <= 9 * height * width;
}

template <class Rows>
auto* find_named(const Rows& rows, Algorithm algorithm) {
    const std::string_view name = algorithm_names()[static_cast<size_t>(algorithm)];
    const auto found = std::find_if(rows.begin(), rows.end(), [&](const auto* row) { return row->name == name; });
    return found == rows.end() ? nullptr : *found;
}

// A method of other passes stands for its family.
Algorithm family_of(Algorithm algorithm) {
    if (const MethodInfo* method = find_named(WindowMethods::rows<WindowSum<float>>(), algorithm))
        return method->traits.family;
    return find_named(PixelMethods::rows<PixelSum<float>>(), algorithm)->traits.family;
}

template <class Rows>
auto& choose_among(const Rows& rows, const ConvProblem& problem, ConvPass pass, const Kernels& kernels) {
    Algorithm algorithm = problem.algorithm;
    if (names_method(algorithm)) {
        if (const auto* named = find_named(rows, algorithm)) return *named;
        algorithm = family_of(algorithm);
    }
    const auto takes = [&](const MethodInfo& method, bool winograd) {
        return (method.traits.family == Algorithm::winograd) == winograd && method.supports(problem, pass) &&
               method.suits(problem, pass, kernels);
    };
    const bool winograd =
        algorithm == Algorithm::winograd || (algorithm == Algorithm::automatic && prefers_winograd(problem, pass));
    for (const bool family : {true, false})
        for (const auto* row : rows)
            if ((winograd || !family) && takes(*row, family)) return *row;
    return *rows.back();
}

// The input gradient as methods see it: without borders that fold.
ConvProblem unfolded(const ConvProblem& problem, ConvPass pass) {
    ConvProblem plain = problem;
    if (pass != ConvPass::grad_input) return plain;
    plain.h = problem.h.unfolded();
    plain.w = problem.w.unfolded();
    return plain;
}

void describe_grad_bias(PassPlan& plan, const ConvProblem& problem, int threads) {
    plan.algorithm = "sum";
    plan.tile = "8 partial sums in float64";
    plan.block = "1 channel";
    plan.tasks = problem.out_channels;
    plan.flops = problem.batch * problem.out_channels * problem.out_pixels();
    plan.threads = TaskPlan{plan.tasks, 8 * plan.flops}.threads(threads);
    plan.bytes = item_size(problem.dtype) * plan.flops;
    plan.reason = "bound by memory";
}

std::string family_name(const MethodInfo& method) {
    return algorithm_names()[static_cast<size_t>(method.traits.family)];
}

// Every method of the pass, and why it is the chosen one or not.
template <class Rows>
void list_candidates(PassPlan& plan, const Rows& rows, const MethodInfo& chosen, const ConvProblem& problem,
                     ConvPass pass, const Kernels& kernels) {
    bool behind = false;
    for (const MethodInfo* row : rows) {
        const Verdict verdict = row->supports(problem, pass);
        std::string reason = "chosen";
        if (!verdict)
            reason = verdict.refusal;
        else if (row != &chosen && names_method(problem.algorithm))
            reason = std::string("algorithm is \"") + chosen.name + '"';
        else if (row != &chosen && row->traits.family != chosen.traits.family)
            reason = problem.algorithm == Algorithm::automatic ? std::string(chosen.name) + " is preferred"
                                                               : "algorithm is \"" + family_name(chosen) + '"';
        else if (row != &chosen)
            reason = behind || !row->suits(problem, pass, kernels) ? std::string(chosen.name) + " is preferred" : "";
        behind |= row == &chosen;
        plan.candidates.push_back({row->name, static_cast<bool>(verdict), reason});
    }
}

template <class T>
void describe(PassPlan& plan, const ConvProblem& problem, ConvPass pass, const Kernels& kernels, int threads) {
    const KernelSet<T>& set = kernel_set<T>(kernels);
    if (pass == ConvPass::grad_bias) return describe_grad_bias(plan, problem, threads);
    if (pass == ConvPass::grad_weight) {
        const PixelSum<T> sum = described_pixel_sum<T>(problem);
        const auto& chosen = choose_method(sum, kernels);
        chosen.describe(sum, set, threads, plan);
        list_candidates(plan, PixelMethods::rows<PixelSum<T>>(), chosen, problem, pass, kernels);
    } else {
        const ConvProblem plain = unfolded(problem, pass);
        const WindowSum<T> sum = described_sum<T>(plain, pass);
        const auto& chosen = choose_method(sum, kernels);
        chosen.describe(sum, set, threads, plan);
        list_candidates(plan, WindowMethods::rows<WindowSum<T>>(), chosen, plain, pass, kernels);
    }
    plan.isa = kernels.name;
}

}  // namespace

const MethodInfo& choose_method(const ConvProblem& problem, ConvPass pass, const Kernels& kernels) {
    if (pass == ConvPass::grad_weight)
        return choose_among(PixelMethods::rows<PixelSum<float>>(), problem, pass, kernels);
    return choose_among(WindowMethods::rows<WindowSum<float>>(), unfolded(problem, pass), pass, kernels);
}

template <class T>
const Method<WindowSum<T>>& choose_method(const WindowSum<T>& sum, const Kernels& kernels) {
    return choose_among(WindowMethods::rows<WindowSum<T>>(), *sum.problem, sum.pass, kernels);
}
template <class T>
const Method<PixelSum<T>>& choose_method(const PixelSum<T>& sum, const Kernels& kernels) {
    return choose_among(PixelMethods::rows<PixelSum<T>>(), *sum.problem, ConvPass::grad_weight, kernels);
}

std::vector<const char*> method_names() {
    std::vector<const char*> names;
    const auto add = [&](const auto& rows) {
        for (const MethodInfo* row : rows) {
            const auto same = [&](const char* name) { return std::string_view(name) == row->name; };
            if (std::none_of(names.begin(), names.end(), same)) names.push_back(row->name);
        }
    };
    add(WindowMethods::rows<WindowSum<float>>());
    add(PixelMethods::rows<PixelSum<float>>());
    return names;
}

void expect_method(const std::string& op, const ConvProblem& problem, ConvPass pass) {
    if (!names_method(problem.algorithm)) return;
    const MethodInfo& method = choose_method(problem, pass, active_kernels());
    const Verdict verdict = method.supports(unfolded(problem, pass), pass);
    if (!verdict) throw ShapeError(op + ": algorithm is \"" + method.name + "\", which " + verdict.refusal);
}

const Traits& traits_of(const ConvProblem& problem, ConvPass pass) {
    return choose_method(problem, pass, active_kernels()).traits;
}

PassPlan plan_conv(const ConvProblem& problem, ConvPass pass, const Kernels& kernels, int threads) {
    PassPlan plan;
    plan.pass = pass_name(pass);
    plan.isa = kernels.name;
    plan.flops = problem.flops();
    plan.bytes =
        item_size(problem.dtype) * (element_count(problem.input_shape()) + element_count(problem.output_shape()) +
                                    element_count(problem.weight_shape()));
    if (problem.dtype == DType::float32)
        describe<float>(plan, problem, pass, kernels, threads);
    else
        describe<double>(plan, problem, pass, kernels, threads);
    return plan;
}

template <class T>
PackedWeight<T> pack_weight(const ConvProblem& problem, TensorView<const T> weight) {
    const Kernels& kernels = active_kernels();
    WindowSum<T> sum = described_sum<T>(problem, ConvPass::forward);
    sum.set_weight(weight);
    const Method<WindowSum<T>>& method = choose_method(sum, kernels);
    PackedWeight<T> packed{&method, &kernels, problem.groups, problem.channels_last, Workspace(0)};
    if (!method.pack || sum.channels == 0 || sum.rows == 0) return packed;
    method.pack(sum, kernel_set<T>(kernels), packed);
    packed.finite = all_finite(weight);
    return packed;
}

template const Method<WindowSum<float>>& choose_method(const WindowSum<float>&, const Kernels&);
template const Method<WindowSum<double>>& choose_method(const WindowSum<double>&, const Kernels&);
template const Method<PixelSum<float>>& choose_method(const PixelSum<float>&, const Kernels&);
template const Method<PixelSum<double>>& choose_method(const PixelSum<double>&, const Kernels&);
template PackedWeight<float> pack_weight(const ConvProblem&, TensorView<const float>);
template PackedWeight<double> pack_weight(const ConvProblem&, TensorView<const double>);

}  // namespace convx
