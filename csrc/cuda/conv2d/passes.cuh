// The three passes for one element type: cut into launches, choose the tile that the plan names, run.
#pragma once

#include "cuda/conv2d/conv2d.h"
#include "cuda/conv2d/direct.cuh"
#include "cuda/conv2d/direct_grad_weight.cuh"
#include "cuda/conv2d/fold.cuh"
#include "cuda/conv2d/grad_bias.cuh"
#include "cuda/conv2d/grad_weight.cuh"
#include "cuda/conv2d/window_gemm.cuh"

namespace convx::cuda {

// Calls work(tile) with a value whose type is std::type_identity-like: Chosen<Tile>.
template <class Tile_>
struct Chosen {
    using Tile = Tile_;
};
template <class T, class Work>
void with_tile(const ConvPlan& plan, const Work& work) {
    const auto sized = [&](auto tiles) {
        using Sizes = typename decltype(tiles)::Tile;
        if (plan.large)
            work(Chosen<typename Sizes::Large>{});
        else
            work(Chosen<typename Sizes::Small>{});
    };
    if constexpr (std::is_same_v<T, float>) {
        if (plan.precision == Precision::tf32x3) return sized(Chosen<Tiles<T, Precision::tf32x3>>{});
        if (plan.precision == Precision::tf32) return sized(Chosen<Tiles<T, Precision::tf32>>{});
    }
    sized(Chosen<Tiles<T, Precision::ieee>>{});
}

// Whether 16 bytes of adjacent channels can be copied as they lie, and what they are summed with needs no padding
// value.
template <class T>
bool channels_in_chunks(const WindowSum<T>& sum) {
    const ImageGather<T>& image = sum.image;
    constexpr int64_t count = Chunk<T>::count;
    const auto whole = [&](int64_t elements) { return elements % count == 0; };
    return image.stride_c == 1 && whole(image.channels.value) && whole(image.stride_n) && whole(image.stride_h) &&
           whole(image.stride_w) && reinterpret_cast<uintptr_t>(image.data) % 16 == 0 &&
           image.h.mode != PaddingMode::constant && image.w.mode != PaddingMode::constant;
}

template <class T>
void run_window_sum(const ConvPlan& plan, const WindowSum<T>& sum, void* workspace, Stream stream) {
    if (sum.image.pixels == 0 || sum.columns == 0) return;
    with_tile<T>(plan, [&](auto chosen) {
        WindowGemm<typename decltype(chosen)::Tile>(sum).run(sum, channels_in_chunks(sum), workspace, stream);
    });
}

// Images [first, first + count) of a tensor.
template <class T>
DeviceTensor some_images(const DeviceTensor& tensor, int64_t first, int64_t count) {
    DeviceTensor some = tensor;
    some.data = static_cast<T*>(tensor.data) + first * tensor.stride[0];
    some.shape[0] = count;
    return some;
}

template <class T>
void Conv2d<T>::forward(const ConvProblem& problem, const ConvPlan& plan, const DeviceTensor& input,
                        const DeviceTensor& weight, const DeviceTensor& bias, const DeviceTensor& output,
                        void* workspace, Stream stream) {
    for (int64_t first = 0; first < problem.batch; first += plan.images) {
        const int64_t count = std::min(plan.images, problem.batch - first);
        if (plan.method == ConvMethod::direct) {
            const DeviceTensor images = some_images<T>(input, first, count),
                               result = some_images<T>(output, first, count);
            Direct<T> direct(problem, images, weight, false, result, static_cast<T*>(workspace), stream);
            direct.set_output(bias, problem.relu);
            direct.run_forward(problem.h, problem.w);
            continue;
        }
        WindowSum<T> sum = window_sum<T>(forward_axis(problem.h), forward_axis(problem.w), problem.groups,
                                         problem.group_in(), problem.group_out(), some_images<T>(input, first, count),
                                         weight, false, some_images<T>(output, first, count), problem.padding_value);
        sum.bias = static_cast<const T*>(bias.data);
        sum.bias_stride = bias.stride[1];
        sum.relu = problem.relu;
        run_window_sum(plan, sum, workspace, stream);
    }
}

// A residue class of each axis is a window sum of its own; classes without a tap are sums of nothing, zeros.
template <class T>
void adjoint(const ConvProblem& problem, const ConvPlan& plan, const Axis& h, const Axis& w,
             const DeviceTensor& grad_output, const DeviceTensor& weight, const DeviceTensor& bias,
             const DeviceTensor& grad_input, void* workspace, Stream stream) {
    if (plan.method == ConvMethod::direct) {
        Direct<T> direct(problem, grad_output, weight, true, grad_input, static_cast<T*>(workspace), stream);
        direct.set_output(bias, false);
        direct.run_adjoint(h, w);
        return;
    }
    for (int64_t residue_h = 0; residue_h < std::min(h.stride, h.input); ++residue_h)
        for (int64_t residue_w = 0; residue_w < std::min(w.stride, w.input); ++residue_w) {
            WindowSum<T> sum =
                window_sum<T>(adjoint_axis(h, residue_h), adjoint_axis(w, residue_w), problem.groups,
                              problem.group_out(), problem.group_in(), grad_output, weight, true, grad_input, 0.0);
            sum.bias = static_cast<const T*>(bias.data);
            sum.bias_stride = bias.stride[1];
            run_window_sum(plan, sum, workspace, stream);
        }
}

template <class T>
void Conv2d<T>::grad_input(const ConvProblem& problem, const ConvPlan& plan, const DeviceTensor& grad_output,
                           const DeviceTensor& weight, const DeviceTensor& grad_input, void* workspace, Stream stream,
                           const DeviceTensor& bias) {
    for (int64_t first = 0; first < problem.batch; first += plan.images) {
        const int64_t count = std::min(plan.images, problem.batch - first);
        const DeviceTensor grads = some_images<T>(grad_output, first, count);
        const DeviceTensor result = some_images<T>(grad_input, first, count);
        if (plan.unfolded_bytes == 0) {
            adjoint<T>(problem, plan, problem.h, problem.w, grads, weight, bias, result, workspace, stream);
            continue;
        }
        const Axis h = problem.h.unfolded(), w = problem.w.unfolded();
        DeviceTensor padded;
        padded.data = static_cast<char*>(workspace) + plan.panel_bytes;
        padded.unrounded = true;
        padded.shape = {count, problem.in_channels, h.input, w.input};
        padded.stride = {problem.in_channels * h.input * w.input, h.input * w.input, w.input, 1};
        adjoint<T>(problem, plan, h, w, grads, weight, {}, padded, workspace, stream);
        fold<T>(problem, padded, result, stream);
    }
}

template <class T>
void Conv2d<T>::grad_weight(const ConvProblem& problem, const ConvPlan& plan, const DeviceTensor& grad_output,
                            const DeviceTensor& input, const DeviceTensor& grad_weight, void* workspace, Stream stream,
                            const Carried& carried) {
    if (problem.in_channels == 0) return;
    int64_t first = 0;
    do {  // once also where there is no image: a gradient of zeros
        const int64_t count = std::min(plan.images, problem.batch - first);
        auto grad =
            weight_grad<T>(problem, some_images<T>(grad_output, first, count), some_images<T>(input, first, count),
                           grad_weight, workspace, static_cast<int>(plan.parts));
        grad.carried = static_cast<Sum<T>*>(carried.sums);
        if (!grad.carried && plan.carried_bytes)
            grad.carried = reinterpret_cast<Sum<T>*>(static_cast<char*>(workspace) + plan.partial_bytes);
        grad.first = carried.first && first == 0;
        grad.skips = plan.method == ConvMethod::direct;
        grad.last = carried.last && first + count == problem.batch;
        if (plan.method == ConvMethod::direct)
            run_direct_grad_weight(grad, grad_output.stride[1] == 1 && input.stride[1] == 1, plan.steps_of_part,
                                   stream);
        else
            with_tile<T>(plan, [&](auto chosen) {
                run_grad_weight<typename decltype(chosen)::Tile>(
                    grad, grad_output.stride[1] == 1 && input.stride[1] == 1, plan.steps_of_part, stream);
            });
        first += count;
    } while (first < problem.batch);
}

}  // namespace convx::cuda
