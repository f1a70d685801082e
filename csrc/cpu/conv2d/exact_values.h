// Values whose sums users know exactly, and which Winograd's transforms would spoil by a rounding error:
//
//   masks         a tap that is zero in every filter (a causal convolution): the pixel under it must not be seen
//   whole numbers sums of whole numbers are exact in any order, a sum over frequencies is not
//   signs         products of one sign add up to that sign; a tile gives -1e-7 where the sum is 0
//
// The weights (of a weight gradient: grad_output) are looked at first, and of common ones the first few values answer
// no, so that nothing else is read. What is decided follows from the weights and one image alone: never from the batch.
#pragma once

#include <vector>

#include "cpu/conv2d/implicit_gemm.h"

namespace convx {

template <class T>
class ExactValues {
public:
    explicit ExactValues(const ImplicitGemm<T>& gemm);

    // A tap is zero in every filter.
    bool is_masked() const { return masked_; }
    // Image n and the weights are whole numbers: the direct method computes it.
    bool is_whole(int64_t n) const;
    // Raise or lower results of image n, which Winograd's method wrote, to the sign that they must have.
    void restore_signs(int64_t n) const;

private:
    const ImplicitGemm<T>& gemm_;
    TensorView<const T> source_;
    bool masked_ = false, whole_weights_ = false, signed_weights_ = false;
    std::vector<int8_t> signs_;  // of the filters of an output channel: 1, -1, or 0 where they differ
};

// The same for the weight gradient of the whole batch; `pad` is what its windows read outside the input.
template <class T>
bool is_whole_grad_weight(TensorView<const T> grad_output, TensorView<const T> input, double pad);
template <class T>
void restore_grad_weight_signs(TensorView<const T> grad_output, TensorView<const T> input, double pad, int64_t groups,
                               TensorView<T> grad_weight);  // dense

}  // namespace convx
