// The methods of each pass of max-pooling, and the choice between them.
#include <array>
#include <atomic>
#include <string_view>

#include "cpu/max_pool2d/method.h"
#include "cpu/max_pool2d/windows.h"
#include "cpu/runtime/registry.h"
#include "cpu/runtime/thread_pool.h"

namespace convx {

// In order: the first one that supports a pass and suits it is chosen. A method is one file, and here a line in a list.
template <template <class> class... Drivers>
struct MethodList {
    template <class Pass>
    static const std::array<const PoolMethod<Pass>*, sizeof...(Drivers)>& rows() {
        static const std::array<const PoolMethod<Pass>*, sizeof...(Drivers)> all{&pool_method<Drivers, Pass>()...};
        return all;
    }
};

// clang-format off
template <class T> class PoolChannels;
template <class T> class PoolNarrowPlanes;
template <class T> class PoolWindowRows;
template <class T> class PoolPlanes;
using ForwardMethods = MethodList<PoolChannels, PoolNarrowPlanes, PoolWindowRows, PoolPlanes>;

template <class T> class PoolIndicesToCodes;
template <class T> class PoolScatterPlanes;
template <class T> class PoolGatherNarrowPlanes;
template <class T> class PoolGatherChannels;
template <class T> class PoolGatherPlanes;
template <class T> class PoolScatter;
using BackwardMethods = MethodList<PoolIndicesToCodes, PoolScatterPlanes, PoolGatherNarrowPlanes, PoolGatherChannels,
                                   PoolGatherPlanes, PoolScatter>;
// clang-format on

namespace {

template <class T>
auto& methods_of(const PoolForward<T>&) {
    return ForwardMethods::rows<PoolForward<T>>();
}
template <class T>
auto& methods_of(const PoolBackward<T>&) {
    return BackwardMethods::rows<PoolBackward<T>>();
}

std::atomic<const char*> named_method{nullptr};

// The place in its list of the first method from `first` on that computes a pass: the named one, or one that suits.
template <class Pass, class Set>
size_t choose(const Pass& pass, const Set& kernels, size_t first, const char* name) {
    const auto& methods = methods_of(pass);
    for (size_t i = first; name && i < methods.size(); ++i)
        if (std::string_view(methods[i]->name) == name && methods[i]->supports(pass, kernels)) return i;
    while (!methods[first]->supports(pass, kernels) || !methods[first]->suits(pass, kernels)) ++first;
    return first;
}

// The last method in a list takes every pass.
template <class Pass>
Outcome compute(const Pass& pass) {
    const auto& kernels = kernel_set<typename Pass::Element>(active_kernels());
    const auto& methods = methods_of(pass);
    size_t i = choose(pass, kernels, 0, named_method.load(std::memory_order_relaxed));
    for (;;) {
        const Outcome outcome = methods[i]->run(pass, kernels);
        if (outcome != Outcome::not_applicable) return outcome;
        i = choose(pass, kernels, i + 1, nullptr);
    }
}

template <class Pass>
void describe(PassPlan& plan, const Pass& pass, const Kernels& isa, int threads) {
    const auto& kernels = kernel_set<typename Pass::Element>(isa);
    const auto& methods = methods_of(pass);
    const size_t chosen = choose(pass, kernels, 0, named_method.load(std::memory_order_relaxed));
    methods[chosen]->describe(pass, kernels, threads, plan);
    for (size_t i = 0; i < methods.size(); ++i) {
        const Verdict verdict = methods[i]->supports(pass, kernels);
        const std::string preferred = std::string(plan.algorithm) + " is preferred";
        Candidate candidate;
        candidate.name = methods[i]->name;
        candidate.supported = static_cast<bool>(verdict);
        candidate.reason = i == chosen ? "chosen" : verdict ? preferred : verdict.refusal;
        plan.candidates.push_back(candidate);
    }
}

// A view of a dense array that only its sizes are read of.
template <class T>
TensorView<T> described_view(const std::array<int64_t, 4>& shape, bool channels_last) {
    static std::remove_const_t<T> element{};
    return dense_view<T>(&element, shape, channels_last);
}

template <class T>
void describe(PassPlan& plan, const PoolProblem& problem, bool backward, Argmax argmax, const Kernels& isa,
              int threads) {
    const bool last = problem.channels_last;
    const auto inputs = described_view<T>(problem.input_shape(), last);
    const auto outputs = described_view<T>(problem.output_shape(), last);
    auto indices = described_view<int64_t>(problem.output_shape(), last);
    auto codes = described_view<uint8_t>(problem.output_shape(), last);
    if (argmax != Argmax::indices) indices = {};
    if (argmax != Argmax::codes) codes = {};
    if (backward)
        describe(plan, PoolBackward<T>{problem, outputs, indices, codes, inputs}, isa, threads);
    else
        describe(plan, PoolForward<T>{problem, inputs, outputs, indices, codes}, isa, threads);
}

}  // namespace

template <class T>
void max_pool2d(const PoolProblem& problem, TensorView<const T> input, TensorView<T> output,
                TensorView<int64_t> indices, TensorView<uint8_t> codes) {
    if (output.size() > 0) compute(PoolForward<T>{problem, input, output, indices, codes});
}

template <class T>
bool max_pool2d_backward(const PoolProblem& problem, TensorView<const T> grad_output, TensorView<const int64_t> indices,
                         TensorView<T> grad_input) {
    return grad_input.size() == 0 ||
           compute(PoolBackward<T>{problem, grad_output, indices, {}, grad_input}) == Outcome::done;
}

template <class T>
bool max_pool2d_backward(const PoolProblem& problem, TensorView<const T> grad_output, TensorView<const uint8_t> codes,
                         TensorView<T> grad_input) {
    return grad_input.size() == 0 ||
           compute(PoolBackward<T>{problem, grad_output, {}, codes, grad_input}) == Outcome::done;
}

PassPlan plan_max_pool2d(const PoolProblem& problem, bool backward, Argmax argmax, const Kernels& kernels,
                         int threads) {
    PassPlan plan;
    const int64_t outputs = element_count(problem.output_shape()), inputs = element_count(problem.input_shape());
    const int64_t item = argmax == Argmax::indices ? 8 : argmax == Argmax::codes ? 1 : 0;
    plan.pass = backward ? "grad_input" : "forward";
    plan.isa = kernels.name;
    plan.flops = outputs * problem.taps();
    plan.bytes = (inputs + outputs) * item_size(problem.dtype) + item * outputs;
    if (inputs == 0) {
        plan.algorithm = "none";
        plan.reason = "empty arrays";
    } else if (problem.dtype == DType::float32) {
        describe<float>(plan, problem, backward, argmax, kernels, threads);
    } else {
        describe<double>(plan, problem, backward, argmax, kernels, threads);
    }
    return plan;
}

void set_max_pool2d_method(std::string_view name) {
    const char* found = nullptr;
    const auto look = [&](const auto& methods) {
        for (const auto* row : methods)
            if (row->name == name) found = row->name;
    };
    look(ForwardMethods::rows<PoolForward<float>>());
    look(BackwardMethods::rows<PoolBackward<float>>());
    named_method.store(found);
}

template void max_pool2d(const PoolProblem&, TensorView<const float>, TensorView<float>, TensorView<int64_t>,
                         TensorView<uint8_t>);
template void max_pool2d(const PoolProblem&, TensorView<const double>, TensorView<double>, TensorView<int64_t>,
                         TensorView<uint8_t>);
template bool max_pool2d_backward(const PoolProblem&, TensorView<const float>, TensorView<const int64_t>,
                                  TensorView<float>);
template bool max_pool2d_backward(const PoolProblem&, TensorView<const double>, TensorView<const int64_t>,
                                  TensorView<double>);
template bool max_pool2d_backward(const PoolProblem&, TensorView<const float>, TensorView<const uint8_t>,
                                  TensorView<float>);
template bool max_pool2d_backward(const PoolProblem&, TensorView<const double>, TensorView<const uint8_t>,
                                  TensorView<double>);

}  // namespace convx
