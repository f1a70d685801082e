// convx.explain: the operation's own checks and plans, run without arrays. `Plans` says what a backend would run
// (cpu_explain.cpp, cuda_explain.cpp).
#pragma once

#include <string_view>
#include <vector>

#include "bindings/options.h"
#include "common/conv_pass.h"

namespace convx {

// The options by their names; those that an operation does not have keep their defaults.
class ExplainedOptions {
public:
    ExplainedOptions(const std::string& op, const py::dict& options) : op_(op), options_(options) {}

    ConvOptions conv() const;
    ConvTransposeOptions transpose() const;
    PoolOptions pool(py::handle kernel_size) const;
    PoolOptions pool_behind() const;
    std::array<bool, 3> mask() const;
    bool wants(const char* name) const;  // an option that is True
    const std::string& op() const { return op_; }

private:
    py::object operator[](const char* name) const { return options_[name]; }

    const std::string& op_;
    const py::dict& options_;
};

template <class Plans>
class Explanation {
public:
    using Plan = typename Plans::Plan;

    Explanation(const std::string& op, const py::dict& options, const std::string& dtype)
        : op_(op), forward_op_(op), options_(op, options), type_(Plans::dtype(op, dtype)), plans_(op, options) {
        constexpr std::string_view ending = "_backward";
        backward_ = op.size() > ending.size() && op.compare(op.size() - ending.size(), ending.size(), ending) == 0;
        if (backward_) forward_op_.resize(op.size() - ending.size());
    }

    py::list list(py::handle input_shape, py::handle operand) {
        const ArrayInfo input{"input", type_, sizes(op_, "input_shape", input_shape)};
        if (forward_op_ == "relu") {
            add(plans_.relu(type_, element_count(input.shape), backward_));
        } else if (forward_op_ == "max_pool2d") {
            add(plans_.max_pool2d(check_max_pool2d(op_, input, options_.pool(operand)).problem, backward_, options_));
        } else {
            const ArrayInfo weight{"weight", type_, sizes(op_, "weight_shape", operand)};
            if (forward_op_ == "conv_transpose2d")
                transpose(check_conv_transpose2d(op_, input, weight, nullptr, options_.transpose()).problem);
            else
                conv(check_conv2d(op_, input, weight, nullptr, options_.conv()));
        }
        py::list list;
        for (const Plan& plan : found_) list.append(plans_.dict(plan));
        return list;
    }

private:
    void add(Plan plan) { found_.push_back(std::move(plan)); }

    // The passes of conv2d that run, under the names that they have here.
    void transpose(const ConvTransposeProblem& problem) {
        const std::array<bool, 3> mask = backward_ ? options_.mask() : std::array{false, false, false};
        const auto role = [&](ConvPass pass, ConvPass runs, const char* reason) {
            Plan plan;
            if (problem.is_empty()) {
                plan = plans_.fill();
                plan.reason = "no window reaches the output";
            } else {
                plan = plans_.conv(problem.conv, runs);
                plan.reason = reason + plan.reason;
            }
            plan.pass = pass_name(pass);
            add(std::move(plan));
        };
        if (!backward_) role(ConvPass::forward, ConvPass::grad_input, "the input gradient of a convolution: ");
        if (mask[0]) role(ConvPass::grad_input, ConvPass::forward, "a convolution of grad_output: ");
        if (mask[1]) role(ConvPass::grad_weight, ConvPass::grad_weight, "");
        if (mask[2]) add(plans_.conv(problem.bias_sum(), ConvPass::grad_bias));
    }

    void conv(const Checked<ConvProblem>& checked) {
        ConvProblem problem = checked.problem;
        const bool fused = forward_op_ == "conv2d_relu_max_pool2d";
        if (fused) problem.relu = true;
        const std::array<bool, 3> mask = backward_ ? options_.mask() : std::array{false, false, false};
        const bool per_sample = options_.wants("per_sample");
        if (forward_op_ == "conv2d_grad_norms") {
            add(plans_.norms(problem, ConvPass::grad_weight));
            add(plans_.norms(problem, ConvPass::grad_bias));
        } else if (!backward_) {
            add(plans_.conv(problem, ConvPass::forward));
        }
        if (mask[0]) add(plans_.conv(problem, ConvPass::grad_input));
        for (const ConvPass pass : {ConvPass::grad_weight, ConvPass::grad_bias})
            if (mask[pass == ConvPass::grad_weight ? 1 : 2])
                add(per_sample ? plans_.per_sample(problem, pass) : plans_.conv(problem, pass));
        if (!fused) return;
        const FusedProblem both{problem, check_pool_behind(op_, checked, options_.pool_behind())};
        Plan plan = plans_.pool_behind(both, mask, backward_, found_);
        plan.pass = backward_ ? "max_pool2d_backward" : "max_pool2d";
        found_.insert(backward_ ? found_.begin() : found_.end(), std::move(plan));
    }

    const std::string& op_;
    std::string forward_op_;
    const ExplainedOptions options_;
    const DType type_;
    Plans plans_;
    bool backward_;
    std::vector<Plan> found_;
};

template <class Plans>
py::list explain_op(const std::string& op, py::handle input_shape, py::handle operand, const py::dict& options,
                    const std::string& dtype) {
    return Explanation<Plans>(op, options, dtype).list(input_shape, operand);
}

}  // namespace convx
