#include "cpu/conv2d/window_sum.h"

#include "cpu/runtime/run_tasks.h"

namespace convx {

template <class T>
void fill_with_bias(const WindowSum<T>& sum) {
    const auto [batch, channels, height, width] = sum.dest.shape;
    const bool channels_inside = sum.dest.stride[1] == 1;
    const auto value = [&](int64_t row) {
        const T bias = sum.bias ? sum.bias[row * sum.bias_stride] : T(0);
        return sum.relu && bias <= T(0) ? T(0) : bias;
    };
    const int64_t planes = channels_inside ? height : channels;
    parallel_for(batch * planes, parallel_width(8 * sum.dest.size()),
                 [&, channels = channels, height = height, width = width](int64_t task, int) {
                     const int64_t n = task / planes, plane = task % planes;
                     if (channels_inside) {
                         for (int64_t w = 0; w < width; ++w)
                             for (int64_t c = 0; c < channels; ++c) sum.dest.at(n, 0, plane, w)[c] = value(c);
                         return;
                     }
                     for (int64_t h = 0; h < height; ++h)
                         for (int64_t w = 0; w < width; ++w) *sum.dest.at(n, plane, h, w) = value(plane);
                 });
}

template void fill_with_bias(const WindowSum<float>&);
template void fill_with_bias(const WindowSum<double>&);

}  // namespace convx
