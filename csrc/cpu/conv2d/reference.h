// Convolution one element at a time in scalar loops that skip what lies outside the image. They run where multiplying
// the border by zero would be wrong: an infinite or NaN factor there has to add nothing. Slow (about 1 GFLOP/s a core)
// and rare: networks with infinite weights have other worries, but they get the right NaNs.
#pragma once

#include "cpu/conv2d/pixel_sum.h"
#include "cpu/conv2d/window_sum.h"

namespace convx {

template <class T>
void run_reference(const WindowSum<T>& sum);
template <class T>
void run_reference(const PixelSum<T>& sum);

}  // namespace convx
