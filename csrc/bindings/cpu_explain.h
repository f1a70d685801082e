// What the CPU would run, for convx.explain (explain.h).
#pragma once

#include "bindings/explain.h"
#include "cpu/pass_plan.h"

namespace convx {

class CpuPlans {
public:
    using Plan = PassPlan;

    CpuPlans(const std::string&, const py::dict&) {}
    static DType dtype(const std::string& op, const std::string& name);

    Plan conv(const ConvProblem& problem, ConvPass pass) const;
    Plan per_sample(const ConvProblem& problem, ConvPass pass) const;
    Plan norms(const ConvProblem& problem, ConvPass pass) const;
    Plan relu(DType dtype, int64_t size, bool backward) const;
    Plan max_pool2d(const PoolProblem& problem, bool backward, const ExplainedOptions& options) const;
    // The pooling of the fused block; completes the plans of the convolution's passes.
    Plan pool_behind(const FusedProblem& problem, const std::array<bool, 3>& mask, bool backward,
                     std::vector<Plan>& passes) const;
    Plan fill() const;

    py::dict dict(const Plan& plan) const;
};

}  // namespace convx
