// What both of Winograd's nests do alike.
#pragma once

#include <vector>

#include "cpu/conv2d/implicit_gemm.h"

namespace convx {

// Source index of the first `count` rows (columns) that tiles read, in order; `outside` also behind the last position's
// taps. `mirrored`: tap r reads position + 2 - r.
std::vector<int64_t> winograd_read_order(const AxisTable& table, bool mirrored, int64_t count);

// Some rows of one group and some reduction channels of them.
struct WeightPart {
    int64_t group, first_row, first_channel, channels;
};

// A panel of `width` rows (mr or nr; rows that there are not are zero), G g G' at dest[frequency][channel][width].
// `taps` has room for channels * 9 * width + lanes elements.
template <class T>
void transform_weight_panel(const ImplicitGemm<T>& gemm, bool mirrored, const KernelSet<T>& kernels, int64_t width,
                            const WeightPart& part, T* taps, T* dest, int64_t dest_frequency);

}  // namespace convx
