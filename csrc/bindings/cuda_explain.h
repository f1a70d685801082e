// What a CUDA device would run, for convx.explain (explain.h); no device is asked.
#pragma once

#include "bindings/explain.h"
#include "cuda/conv2d/plan.h"

namespace convx {

// The names are the fields of CudaPlan in python/convx/runtime.py.
struct CudaPlan {
    std::string pass, algorithm, precision, tile, reason;
    int64_t parts = 1, blocks = 0, workspace_bytes = 0, flops = 0, bytes = 0;
};

class CudaPlans {
public:
    using Plan = CudaPlan;

    CudaPlans(const std::string& op, const py::dict& options);
    static DType dtype(const std::string& op, const std::string& name);

    Plan conv(const ConvProblem& problem, ConvPass pass) const;
    Plan per_sample(const ConvProblem& problem, ConvPass pass) const { return samples(problem, pass, false); }
    Plan norms(const ConvProblem& problem, ConvPass pass) const;
    Plan relu(DType dtype, int64_t size, bool backward) const;
    Plan max_pool2d(const PoolProblem& problem, bool backward, const ExplainedOptions& options) const;
    Plan pool_behind(const FusedProblem& problem, const std::array<bool, 3>& mask, bool backward,
                     std::vector<Plan>& passes) const;
    Plan fill() const;

    py::dict dict(const Plan& plan) const;

private:
    Plan samples(const ConvProblem& problem, ConvPass pass, bool norms) const;

    const std::string& op_;
    cuda::Precision precision_ = cuda::Precision::ieee;  // of the operations that have one
};

}  // namespace convx
