// Max-pooling, backward: which loop nest runs. All of them add the gradients of a cell in row-major order of the
// windows, so they give the same bits.
//
// By codes: a gather, of narrow planes a vector at a time; where windows overlap so much that looking at all of them
// costs more, or planes are narrow and windows few, a scatter. By indices: a scatter, or, where channels are adjacent
// or planes wide, the same with the codes of their taps. Dense planes are scattered four at a time.
#include "cpu/max_pool2d/max_pool2d.h"

#include "cpu/max_pool2d/chosen.h"
#include "cpu/max_pool2d/methods.h"
#include "cpu/max_pool2d/nest.h"

namespace convx {

template <class T>
bool max_pool2d_backward(const PoolProblem& problem, TensorView<const T> grad_output, TensorView<const int64_t> indices,
                         TensorView<T> grad_input) {
    if (grad_input.size() == 0) return true;
    if (max_pool2d_gather_by_indices(problem, grad_output, indices, grad_input)) return true;
    if (max_pool2d_scatters_planes(problem, grad_output, indices, grad_input))
        return max_pool2d_scatter_planes(problem, grad_output, indices, grad_input);
    const Indices found =
        inspect_indices(problem, indices, scatter_cuts_planes(grad_input), pool_width(problem, sizeof(T)));
    if (found == Indices::illegal) return false;
    max_pool2d_scatter(problem, grad_output, indices, grad_input, found == Indices::local);
    return true;
}

template <class T>
bool max_pool2d_backward(const PoolProblem& problem, TensorView<const T> grad_output, TensorView<const uint8_t> codes,
                         TensorView<T> grad_input) {
    if (grad_input.size() == 0) return true;
    const bool channels = grad_output.stride[1] == 1 && codes.stride[1] == 1 && grad_input.stride[1] == 1 &&
                          problem.channels >= kernel_set<T>(active_kernels()).lanes;
    const int64_t windows = problem.taps() / (problem.h.stride * problem.w.stride);
    const bool scatters = channels ? windows >= 36 : windows >= 16 || problem.w.stride > 2;
    const bool narrow = !channels && max_pool2d_gather_is_narrow(problem, grad_output, codes, grad_input);
    // Four threads, in us: 832 planes of 14x14 under 3x3 with stride 2 take 370 by the gather of narrow planes, 216 so;
    // 480 of 14x14 with stride 1 take 455 and 580. Windows of four columns and more have no gather of their own: 280
    // planes of 37x33 under 4x6 with stride 2 take 650 and 80.
    const int64_t cells = problem.h.input * problem.w.input;
    const bool strided = problem.h.stride * problem.w.stride > 1;
    const bool large = problem.h.kernel > 3 || problem.w.kernel > 3;
    const bool overlap = problem.h.kernel > problem.h.stride || problem.w.kernel > problem.w.stride;
    const bool scatters_planes = strided ? narrow || large || (overlap && cells <= 2048) : cells <= 64;
    if (!channels && (scatters || scatters_planes) &&
        max_pool2d_scatters_planes(problem, grad_output, codes, grad_input))
        return max_pool2d_scatter_planes(problem, grad_output, codes, grad_input);
    if (!scatters && narrow) return max_pool2d_gather_narrow(problem, grad_output, codes, grad_input);
    if (!codes_are_legal(problem, codes, pool_width(problem, sizeof(T)))) return false;
    if (scatters)
        max_pool2d_scatter(problem, grad_output, codes, grad_input, true);
    else if (!channels && rows_are_tiled(problem.h) && planes_are_stacked(grad_output) && planes_are_stacked(codes) &&
             planes_are_stacked(grad_input))
        max_pool2d_gather(stack_planes(problem), stack_planes(grad_output), stack_planes(codes),
                          stack_planes(grad_input));
    else
        max_pool2d_gather(problem, grad_output, codes, grad_input);
    return true;
}

template bool max_pool2d_backward(const PoolProblem&, TensorView<const float>, TensorView<const int64_t>,
                                  TensorView<float>);
template bool max_pool2d_backward(const PoolProblem&, TensorView<const double>, TensorView<const int64_t>,
                                  TensorView<double>);
template bool max_pool2d_backward(const PoolProblem&, TensorView<const float>, TensorView<const uint8_t>,
                                  TensorView<float>);
template bool max_pool2d_backward(const PoolProblem&, TensorView<const double>, TensorView<const uint8_t>,
                                  TensorView<double>);

}  // namespace convx
