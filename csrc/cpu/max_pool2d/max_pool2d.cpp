// Max-pooling, forward: which loop nest runs.
//
//  - channels: the channels of a pixel are adjacent (NHWC) and at least a vector.
//  - narrow: dense planes so small that their rows would be mostly tails; a vector of planes is transposed into lanes.
//  - planes: everything else.
#include "cpu/max_pool2d/max_pool2d.h"

#include "cpu/max_pool2d/methods.h"
#include "cpu/max_pool2d/pool_axis.h"
#include "cpu/runtime/registry.h"

namespace convx {

template <class T>
void max_pool2d(const PoolProblem& problem, TensorView<const T> input, TensorView<T> output,
                TensorView<int64_t> indices, TensorView<uint8_t> codes) {
    if (output.size() == 0) return;
    const PoolOutputs<T> outputs{output, indices, codes};
    const Axis &h = problem.h, &w = problem.w;
    const int64_t channels = problem.channels;
    const bool adjacent = input.stride[1] == 1 && output.stride[1] == 1 && (!codes.data || codes.stride[1] == 1);
    const bool vectors = adjacent && channels >= kernel_set<T>(active_kernels()).lanes;
    // Taken apart, windows of many channels pay for being staged as well.
    const bool large = h.kernel > h.stride && h.stride * (w.kernel + 2) + h.kernel + 1 < problem.taps() / 2;
    if (vectors && !large) return max_pool2d_channels(problem, input, outputs);
    if (max_pool2d_is_narrow(problem, input, outputs)) return max_pool2d_narrow(problem, input, outputs);

    const int64_t group = adjacent ? std::min<int64_t>(channels, 32) : 1;
    if (group == 1 && !indices.data && rows_are_tiled(h) && planes_are_stacked(input) && planes_are_stacked(output) &&
        (!codes.data || planes_are_stacked(codes)))
        return max_pool2d_planes<T>(stack_planes(problem), stack_planes(input),
                                    {stack_planes(output), {}, stack_planes(codes)}, 1);
    const auto run = [&](int64_t first, int64_t count, int64_t size) {
        const auto part = [&](auto view) {
            view.data += view.data ? first * view.stride[1] : 0;
            view.shape[1] = count;
            return view;
        };
        PoolProblem some = problem;
        some.channels = count;
        max_pool2d_planes<T>(some, part(input), {part(output), part(indices), part(codes)}, size);
    };
    const int64_t rest = channels % group;
    run(0, channels - rest, group);
    if (rest) run(channels - rest, rest, rest);
}

template void max_pool2d(const PoolProblem&, TensorView<const float>, TensorView<float>, TensorView<int64_t>,
                         TensorView<uint8_t>);
template void max_pool2d(const PoolProblem&, TensorView<const double>, TensorView<double>, TensorView<int64_t>,
                         TensorView<uint8_t>);

}  // namespace convx
