#include "cpu/conv2d/methods.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <string>

#include "common/check.h"
#include "cpu/conv2d/reference.h"
#include "cpu/runtime/registry.h"

namespace convx {

// The method of least predicted time is chosen (cost.h), the first of equals. A method is one file and one line here.
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
    struct DotProductsMethod,
    struct Col2imMethod,
    struct ImplicitGemmMethod>;

using PixelMethods = MethodList<  // grad_weight
    struct WinogradSumMethod,
    struct DepthwisePixelsSumMethod,
    struct DepthwisePlanesSumMethod,
    struct DirectChannelsSumMethod,
    struct DirectSpatialSumMethod,
    struct OuterSumMethod,
    struct PatchProductsMethod,
    struct DotSumMethod>;
// clang-format on

namespace {

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

// Whether a method may be chosen by its time. Winograd's transforms take digits (errors 10 times those of the direct
// sum at 64 channels), which whoever asks for float64 wants, and which a sum of few terms still has: "auto" leaves them
// out there.
bool may_choose(const MethodInfo& method, const ConvProblem& problem, Algorithm family) {
    constexpr int64_t least_channels = 16;
    if (family == Algorithm::automatic)
        return method.traits.family == Algorithm::direct ||
               (problem.dtype == DType::float32 && std::min(problem.group_in(), problem.group_out()) >= least_channels);
    return method.traits.family == family;
}

// The supported method of least predicted time. "winograd" is a wish, which few problems can meet; "direct" an order.
template <class Rows>
auto find_cheapest(const Rows& rows, const ConvProblem& problem, ConvPass pass, const Kernels& kernels,
                   Algorithm family) {
    const WorkSizes sizes(problem, pass, kernels);
    const auto cheapest = [&](Algorithm among) {
        typename Rows::value_type best = nullptr;
        double least = 0;
        for (const auto* row : rows) {
            if (!may_choose(*row, problem, among) || !row->supports(problem, pass)) continue;
            const double time = predicted_time(row->name, pass, row->work(sizes), kernels);
            if (best && time >= least) continue;
            best = row;
            least = time;
        }
        return best;
    };
    const auto found = cheapest(family);
    return found ? found : cheapest(Algorithm::direct);
}

// The last choices of this thread: to predict the times of all methods takes as long as a tiny convolution.
template <class Row>
struct Choices {
    struct Entry {
        ConvProblem problem;
        ConvPass pass;
        const Kernels* kernels = nullptr;
        Row row;
    };
    std::array<Entry, 32> entries;

    Entry& at(const ConvProblem& problem, ConvPass pass) {
        const auto mix = static_cast<uint64_t>(problem.in_channels + 31 * problem.out_channels + 7 * problem.h.input +
                                               3 * problem.h.kernel + 5 * problem.h.stride + 13 * problem.groups) +
                         static_cast<uint64_t>(pass) + 2 * problem.channels_last;
        return entries[mix * 0x9E3779B97F4A7C15u >> 59];
    }
};

template <class Rows>
auto& choose_among(const Rows& rows, const ConvProblem& problem, ConvPass pass, const Kernels& kernels) {
    Algorithm family = problem.algorithm;
    if (names_method(family)) {
        if (const auto* named = find_named(rows, family)) return *named;
        family = family_of(family);
    }
    static thread_local Choices<typename Rows::value_type> choices;
    auto& entry = choices.at(problem, pass);
    if (entry.kernels != &kernels || entry.pass != pass || !entry.problem.same_image(problem))
        entry = {problem, pass, &kernels, find_cheapest(rows, problem, pass, kernels, family)};
    return *entry.row;
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

std::string ratio_text(double ratio) {
    char text[32];
    std::snprintf(text, sizeof text, ratio < 10 ? "%.2g" : "%.0f", ratio);
    return text;
}

// Every method of the pass, and why it is the chosen one or not.
template <class Rows>
void list_candidates(PassPlan& plan, const Rows& rows, const MethodInfo& chosen, const ConvProblem& problem,
                     ConvPass pass, const Kernels& kernels) {
    const WorkSizes sizes(problem, pass, kernels);
    const double least = predicted_time(chosen.name, pass, chosen.work(sizes), kernels);
    for (const MethodInfo* row : rows) {
        const Verdict verdict = row->supports(problem, pass);
        Candidate candidate{row->name, static_cast<bool>(verdict), "chosen", 0, {}};
        double time = 0;
        if (verdict) {
            const Work work = row->work(sizes);
            time = predicted_time(row->name, pass, work, kernels);
            candidate.microseconds = time / 1000;
            for (size_t kind = 0; kind < work_kinds; ++kind)
                candidate.work.emplace_back(work_names[kind], work.count[kind]);
        }
        if (!verdict)
            candidate.reason = verdict.refusal;
        else if (row != &chosen && names_method(problem.algorithm))
            candidate.reason = std::string("algorithm is \"") + chosen.name + '"';
        else if (row != &chosen && problem.algorithm != Algorithm::automatic &&
                 row->traits.family != chosen.traits.family)
            candidate.reason = "algorithm is \"" + family_name(chosen) + '"';
        else if (row != &chosen && !may_choose(*row, problem, problem.algorithm))
            candidate.reason = "less exact, and the dtype is float64";
        else if (row != &chosen)
            candidate.reason = "predicted " + ratio_text(time / least) + " times as long as " + chosen.name;
        plan.candidates.push_back(candidate);
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
    ConvProblem shown = problem;
    shown.batch = std::max<int64_t>(problem.batch, 1);  // an empty batch: the plan of an image, which nothing runs
    if (problem.dtype == DType::float32)
        describe<float>(plan, shown, pass, kernels, threads);
    else
        describe<double>(plan, shown, pass, kernels, threads);
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
