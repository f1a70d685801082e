// Forward: rows are output channels, the reduction runs over input channels and all taps.
#include "cpu/conv2d/implicit_gemm.h"
#include "cpu/conv2d/methods.h"
#include "cpu/conv2d/winograd.h"
#include "cpu/registry.h"

namespace convx {

namespace {

// run(gemm, blocks, kernels)
template <class T, class Run>
void describe_and(const Run& run, const ConvProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                  TensorView<const T> bias, TensorView<T> output) {
    const KernelSet<T>& kernels = kernel_set<T>(active_kernels());
    const AxisTable h = forward_table(problem.h);
    const AxisTable w = forward_table(problem.w);

    ImplicitGemm<T> gemm{};
    gemm.batch = problem.batch;
    gemm.groups = problem.groups;
    gemm.channels = problem.group_in();
    gemm.rows = problem.group_out();
    gemm.h = &h;
    gemm.w = &w;
    gemm.source = input.data;
    gemm.source_stride = {input.stride[0], input.stride[1], input.stride[2], input.stride[3]};
    gemm.pad = static_cast<T>(border_of(problem, h, w).value);
    gemm.skip_outside_h = problem.h.mode == PaddingMode::zeros;
    gemm.skip_outside_w = problem.w.mode == PaddingMode::zeros;
    gemm.weight = weight.data;
    gemm.weight_group = problem.group_out() * weight.stride[0];
    gemm.weight_row = weight.stride[0];
    gemm.weight_channel = weight.stride[1];
    gemm.weight_h = weight.stride[2];
    gemm.weight_w = weight.stride[3];
    gemm.dest = output.data;
    gemm.dest_stride = {output.stride[0], output.stride[1], output.stride[2], output.stride[3]};
    gemm.bias = bias.data;
    gemm.bias_stride = bias.stride[1];
    gemm.relu = problem.relu;

    const GemmBlocks blocks = plan_gemm_blocks(problem.channels_last, gemm.pixels(), gemm.groups, gemm.channels,
                                               gemm.rows, gemm.taps(), sizeof(T), kernels.mr, kernels.nr);
    run(gemm, blocks, kernels);
}

}  // namespace

template <class T>
void gemm_forward(const ConvProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                  TensorView<const T> bias, TensorView<T> output) {
    describe_and(run_implicit_gemm<T>, problem, input, weight, bias, output);
}

// Where set_isa comes between the choice of a form and its use, nothing is packed or nothing packed is used.
template <class T>
void gemm_pack_weight(const ConvProblem& problem, TensorView<const T> weight, PackedWeight<T>& packed) {
    const auto pack = [&](const ImplicitGemm<T>& gemm, const GemmBlocks& blocks, const KernelSet<T>& kernels) {
        if (&kernels != &kernel_set<T>(*packed.form.kernels)) return;
        packed.data = Workspace(static_cast<size_t>(
            packed_weight_bytes(blocks, gemm.groups, gemm.channels, gemm.rows, gemm.taps(), kernels)));
        packed.finite = pack_gemm_weights(gemm, blocks, kernels, static_cast<T*>(packed.data.data()));
    };
    describe_and<T>(pack, problem, {}, weight, {}, {});
}

template <class T>
void gemm_forward_packed(const ConvProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                         TensorView<const T> bias, TensorView<T> output, const PackedWeight<T>& packed) {
    const auto run = [&](ImplicitGemm<T>& gemm, const GemmBlocks& blocks, const KernelSet<T>& kernels) {
        if (&kernels == &kernel_set<T>(*packed.form.kernels)) {
            gemm.packed_weight = packed.weights();
            gemm.packed_finite = packed.finite;
        }
        run_implicit_gemm(gemm, blocks, kernels);
    };
    describe_and(run, problem, input, weight, bias, output);
}

template <class T>
void winograd_forward(const ConvProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                      TensorView<const T> bias, TensorView<T> output) {
    const auto run = [](const ImplicitGemm<T>& gemm, const GemmBlocks& direct, const KernelSet<T>& kernels) {
        run_winograd(gemm, false, direct, kernels);
    };
    describe_and(run, problem, input, weight, bias, output);
}

template <class T>
void winograd_pack_weight(const ConvProblem& problem, TensorView<const T> weight, PackedWeight<T>& packed) {
    const auto pack = [&](const ImplicitGemm<T>& gemm, const GemmBlocks&, const KernelSet<T>& kernels) {
        if (&kernels != &kernel_set<T>(*packed.form.kernels)) return;
        packed.data = Workspace(static_cast<size_t>(winograd_weight_bytes(gemm, kernels)));
        transform_winograd_weights(gemm, kernels, static_cast<T*>(packed.data.data()));
    };
    describe_and<T>(pack, problem, {}, weight, {}, {});
}

template <class T>
void winograd_forward_packed(const ConvProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                             TensorView<const T> bias, TensorView<T> output, const PackedWeight<T>& packed) {
    const auto run = [&](const ImplicitGemm<T>& gemm, const GemmBlocks& direct, const KernelSet<T>& kernels) {
        const bool fits = &kernels == &kernel_set<T>(*packed.form.kernels);
        run_winograd(gemm, false, direct, kernels, fits ? packed.weights() : nullptr);
    };
    describe_and(run, problem, input, weight, bias, output);
}

template void gemm_forward(const ConvProblem&, TensorView<const float>, TensorView<const float>,
                           TensorView<const float>, TensorView<float>);
template void gemm_forward(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                           TensorView<const double>, TensorView<double>);
template void gemm_pack_weight(const ConvProblem&, TensorView<const float>, PackedWeight<float>&);
template void gemm_pack_weight(const ConvProblem&, TensorView<const double>, PackedWeight<double>&);
template void gemm_forward_packed(const ConvProblem&, TensorView<const float>, TensorView<const float>,
                                  TensorView<const float>, TensorView<float>, const PackedWeight<float>&);
template void gemm_forward_packed(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                                  TensorView<const double>, TensorView<double>, const PackedWeight<double>&);

template void winograd_forward(const ConvProblem&, TensorView<const float>, TensorView<const float>,
                               TensorView<const float>, TensorView<float>);
template void winograd_forward(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                               TensorView<const double>, TensorView<double>);
template void winograd_pack_weight(const ConvProblem&, TensorView<const float>, PackedWeight<float>&);
template void winograd_pack_weight(const ConvProblem&, TensorView<const double>, PackedWeight<double>&);
template void winograd_forward_packed(const ConvProblem&, TensorView<const float>, TensorView<const float>,
                                      TensorView<const float>, TensorView<float>, const PackedWeight<float>&);
template void winograd_forward_packed(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                                      TensorView<const double>, TensorView<double>, const PackedWeight<double>&);

}  // namespace convx
