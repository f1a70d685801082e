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

template <class T>
void run_forward(const ConvProblem& problem, const ConvPlan& plan, const Tensor& input, const Tensor& weight,
                 const Tensor& bias, const Tensor& output, void* workspace, Stream stream) {
    for (int64_t first = 0; first < problem.batch; first += plan.images) {
        const int64_t count = std::min(plan.images, problem.batch - first);
        if (plan.method == ConvMethod::direct) {
            const Tensor images = input.images(sizeof(T), first, count),
                         result = output.images(sizeof(T), first, count);
            Direct<T> direct(problem, images, weight, false, result, static_cast<T*>(workspace), stream);
            direct.set_output(bias, problem.relu);
            direct.run_forward(problem.h, problem.w);
            continue;
        }
        WindowSum<T> sum = window_sum<T>(forward_axis(problem.h), forward_axis(problem.w), problem.groups,
                                         problem.group_in(), problem.group_out(), input.images(sizeof(T), first, count),
                                         weight, false, output.images(sizeof(T), first, count), problem.padding_value);
        sum.bias = static_cast<const T*>(bias.data);
        sum.bias_stride = bias.stride[1];
        sum.relu = problem.relu;
        run_window_sum(plan, sum, workspace, stream);
    }
}

// A phase of each axis is a window sum of its own; phases without a tap are sums of nothing, zeros.
template <class T>
void adjoint(const ConvProblem& problem, const ConvPlan& plan, const Axis& h, const Axis& w, const Tensor& grad_output,
             const Tensor& weight, const Tensor& bias, const Tensor& grad_input, void* workspace, Stream stream) {
    if (plan.method == ConvMethod::direct) {
        Direct<T> direct(problem, grad_output, weight, true, grad_input, static_cast<T*>(workspace), stream);
        direct.set_output(bias, false);
        direct.run_adjoint(h, w);
        return;
    }
    for (int64_t phase_h = 0; phase_h < h.phases(); ++phase_h)
        for (int64_t phase_w = 0; phase_w < w.phases(); ++phase_w) {
            WindowSum<T> sum =
                window_sum<T>(adjoint_axis(h, phase_h), adjoint_axis(w, phase_w), problem.groups, problem.group_out(),
                              problem.group_in(), grad_output, weight, true, grad_input, 0.0);
            sum.bias = static_cast<const T*>(bias.data);
            sum.bias_stride = bias.stride[1];
            run_window_sum(plan, sum, workspace, stream);
        }
}

template <class T>
void run_grad_input(const ConvProblem& problem, const ConvPlan& plan, const Tensor& grad_output, const Tensor& weight,
                    const Tensor& bias, const Tensor& grad_input, void* workspace, Stream stream) {
    for (int64_t first = 0; first < problem.batch; first += plan.images) {
        const int64_t count = std::min(plan.images, problem.batch - first);
        const Tensor grads = grad_output.images(sizeof(T), first, count);
        const Tensor result = grad_input.images(sizeof(T), first, count);
        if (plan.unfolded_bytes == 0) {
            adjoint<T>(problem, plan, problem.h, problem.w, grads, weight, bias, result, workspace, stream);
            continue;
        }
        const Axis h = problem.h.unfolded(), w = problem.w.unfolded();
        Tensor padded;
        padded.data = static_cast<char*>(workspace) + plan.panel_bytes;
        padded.unrounded = true;
        padded.shape = {count, problem.in_channels, h.input, w.input};
        padded.stride = dense_strides(padded.shape, false);
        adjoint<T>(problem, plan, h, w, grads, weight, {}, padded, workspace, stream);
        fold<T>(problem, padded, result, stream);
    }
}

template <class T>
void run_grad_weight(const ConvProblem& problem, const ConvPlan& plan, const Tensor& grad_output, const Tensor& input,
                     const Tensor& grad_weight, void* workspace, Stream stream, const Carried& carried) {
    if (problem.in_channels == 0) return;
    int64_t first = 0;
    do {  // once also where there is no image: a gradient of zeros
        const int64_t count = std::min(plan.images, problem.batch - first);
        auto grad =
            weight_grad<T>(problem, grad_output.images(sizeof(T), first, count), input.images(sizeof(T), first, count),
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
                run_gemm_grad_weight<typename decltype(chosen)::Tile>(
                    grad, grad_output.stride[1] == 1 && input.stride[1] == 1, plan.steps_of_part, stream);
            });
        first += count;
    } while (first < problem.batch);
}

template <class T>
ConvPasses conv_passes_of() {
    return {&run_forward<T>, &run_grad_input<T>, &run_grad_weight<T>, &run_grad_bias<T>};
}

}  // namespace convx::cuda
