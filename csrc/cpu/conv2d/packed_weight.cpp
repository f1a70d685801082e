// Packed weights, handed to the method that made them.
#include "cpu/conv2d/packed_weight.h"

#include "cpu/conv2d/conv2d.h"
#include "cpu/conv2d/methods.h"
#include "cpu/registry.h"

namespace convx {

namespace {

PackedForm form_of(const ConvProblem& problem) {
    return {choose_method(problem, ConvPass::forward), &active_kernels(), problem.groups, problem.channels_last,
            winograd_by_channels(problem.groups, problem.out_h(), problem.out_w())};
}

}  // namespace

template <class T>
PackedWeight<T> pack_weight(const ConvProblem& problem, TensorView<const T> weight) {
    PackedWeight<T> packed{form_of(problem), Workspace(0)};
    switch (packed.form.method) {
        case ConvMethod::gemm:
            gemm_pack_weight(problem, weight, packed);
            break;
        case ConvMethod::winograd:
            winograd_pack_weight(problem, weight, packed);
            break;
        default:
            break;
    }
    return packed;
}

template <class T>
void conv2d_forward_packed(const ConvProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                           TensorView<const T> bias, TensorView<T> output, const PackedWeight<T>& packed) {
    if (packed.weights() && packed.form == form_of(problem)) {
        switch (packed.form.method) {
            case ConvMethod::gemm:
                return gemm_forward_packed(problem, input, weight, bias, output, packed);
            case ConvMethod::winograd:
                return winograd_forward_packed(problem, input, weight, bias, output, packed);
            default:
                break;
        }
    }
    conv2d_forward(problem, input, weight, bias, output);
}

template PackedWeight<float> pack_weight(const ConvProblem&, TensorView<const float>);
template PackedWeight<double> pack_weight(const ConvProblem&, TensorView<const double>);
template void conv2d_forward_packed(const ConvProblem&, TensorView<const float>, TensorView<const float>,
                                    TensorView<const float>, TensorView<float>, const PackedWeight<float>&);
template void conv2d_forward_packed(const ConvProblem&, TensorView<const double>, TensorView<const double>,
                                    TensorView<const double>, TensorView<double>, const PackedWeight<double>&);

}  // namespace convx
