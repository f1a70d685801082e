// The row of a method in its list, made of what its file defines:
//
//   struct Example {
//       static constexpr const char* name = "example";
//       static constexpr Traits traits{};
//       static Verdict supports(const ConvProblem&, ConvPass);                       // correctness alone
//       static Work work(const WorkSizes&);                                          // what an image costs
//       template <class T> static Plan<T> plan(const WindowSum<T>&, const KernelSet<T>&);  // has tasks()
//       template <class T> static void run(const WindowSum<T>&, const Plan<T>&, const KernelSet<T>&);
//       template <class T> static void describe(const WindowSum<T>&, const Plan<T>&, const KernelSet<T>&, PassPlan&);
//   };
//   template const Method<WindowSum<float>>& method_row<Example, WindowSum<float>>();
//   template const Method<WindowSum<double>>& method_row<Example, WindowSum<double>>();
//
// A method that packs weights ahead has `pack(sum, kernels, packed)` too.
#pragma once

#include <type_traits>

#include "cpu/conv2d/method.h"

namespace convx {

namespace detail {

template <class M, class Sum, class = void>
struct PackOf {
    static constexpr decltype(Method<Sum>::pack) function = nullptr;
};
template <class M, class Sum>
struct PackOf<M, Sum, std::void_t<decltype(&M::template pack<typename Sum::Element>)>> {
    static constexpr decltype(Method<Sum>::pack) function = &M::template pack<typename Sum::Element>;
};

}  // namespace detail

template <class M, class Sum>
const Method<Sum>& method_row() {
    using T = typename Sum::Element;
    static const Method<Sum> row = [] {
        Method<Sum> made;
        made.name = M::name;
        made.traits = M::traits;
        made.supports = &M::supports;
        made.work = &M::work;
        made.run = [](const Sum& sum, const KernelSet<T>& kernels) {
            auto own = M::plan(sum, kernels);
            M::run(sum, own, kernels);
        };
        made.describe = [](const Sum& sum, const KernelSet<T>& kernels, int threads, PassPlan& plan) {
            const auto own = M::plan(sum, kernels);
            plan.algorithm = M::name;
            const TaskPlan tasks = own.tasks();
            plan.tasks = std::max<int64_t>(tasks.tasks, 1);
            plan.threads = tasks.threads(threads);
            plan.scratch_bytes = tasks.scratch_bytes(plan.threads);
            M::describe(sum, own, kernels, plan);
        };
        made.pack = detail::PackOf<M, Sum>::function;
        return made;
    }();
    return row;
}

// A method whose plan is its driver: made of a sum and the kernels, it has looked at sizes alone until it runs. Drivers
// have names of their own: gcc takes a template over one of an unnamed namespace for the same in every file.
template <template <class> class Driver>
struct DriverMethod {
    template <class Sum>
    static Driver<typename Sum::Element> plan(const Sum& sum, const KernelSet<typename Sum::Element>& kernels) {
        return Driver<typename Sum::Element>(sum, kernels);
    }
};

// Of the weight gradient by direct sums.
template <template <class> class Driver>
struct SumMethod : DriverMethod<Driver> {
    static constexpr Traits traits{};

    template <class T>
    static void run(const PixelSum<T>& sum, Driver<T>& driver, const KernelSet<T>&) {
        driver.run(sum.grad_weight.data);
    }
};

}  // namespace convx
