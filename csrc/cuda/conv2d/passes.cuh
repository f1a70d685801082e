// The passes for one element type, in the launches and with the tile of the plan.
#pragma once

#include "cuda/conv2d/conv2d.h"
#include "cuda/conv2d/direct.cuh"
#include "cuda/conv2d/direct_grad_weight.cuh"
#include "cuda/conv2d/fold.cuh"
#include "cuda/conv2d/grad_bias.cuh"
#include "cuda/conv2d/grad_weight.cuh"
#include "cuda/conv2d/window_gemm.cuh"

namespace convx::cuda {

// Calls work(Type<Tile>{}) with the tile of a plan.
template <class T, class Work>
void with_tile(const ConvPlan& plan, const Work& work) {
    const auto sized = [&](auto tiles) {
        using Sizes = typename decltype(tiles)::T;
        if (plan.large)
            work(Type<typename Sizes::Large>{});
        else
            work(Type<typename Sizes::Small>{});
    };
    if constexpr (std::is_same_v<T, float>) {
        if (plan.precision == Precision::tf32x3) return sized(Type<Tiles<T, Precision::tf32x3>>{});
        if (plan.precision == Precision::tf32) return sized(Type<Tiles<T, Precision::tf32>>{});
    }
    sized(Type<Tiles<T, Precision::ieee>>{});
}

// Whether 16 bytes of adjacent channels can be copied as they lie: they are also aligned, and no padding value goes in
// between.
template <class T>
bool channels_in_chunks(const ImageGather<T>& image) {
    const auto whole = [&](int64_t elements) { return elements % Chunk<T>::count == 0; };
    return image.source.c == 1 && whole(image.channels.value) && whole(image.source.n) && whole(image.source.h) &&
           whole(image.source.w) && reinterpret_cast<uintptr_t>(image.source.data) % 16 == 0 &&
           image.h.mode != PaddingMode::constant && image.w.mode != PaddingMode::constant;
}

template <class T>
void run_window_sum(const ConvPlan& plan, const WindowSum<T>& sum, void* workspace, Stream stream) {
    if (sum.image.pixels == 0 || sum.columns == 0) return;
    with_tile<T>(plan, [&](auto tile) {
        run_window_gemm<typename decltype(tile)::T>(sum, channels_in_chunks(sum.image), workspace, stream);
    });
}

template <class T>
void run_forward(const ConvProblem& problem, const ConvPlan& plan, const Tensor& input, const Tensor& weight,
                 const Tensor& bias, const Tensor& output, void* workspace, Stream stream) {
    const Epilogue<T> epilogue(bias, problem.relu);
    for (int64_t first = 0; first < problem.batch; first += plan.images) {
        const int64_t count = std::min(plan.images, problem.batch - first);
        const Tensor images = input.images(sizeof(T), first, count), result = output.images(sizeof(T), first, count);
        if (plan.method == ConvMethod::direct) {
            Direct<T>(problem, images, weight, false, result, epilogue, static_cast<T*>(workspace), stream)
                .run_forward(problem.h, problem.w);
            continue;
        }
        WindowSum<T> sum =
            window_sum<T>(forward_axis(problem.h), forward_axis(problem.w), problem.groups, problem.group_in(),
                          problem.group_out(), images, weight, false, result, problem.padding_value);
        sum.epilogue = epilogue;
        run_window_sum(plan, sum, workspace, stream);
    }
}

// A phase of each axis is a window sum of its own; phases without a tap are sums of nothing, zeros.
template <class T>
void run_adjoint(const ConvProblem& problem, const ConvPlan& plan, const Axis& h, const Axis& w,
                 const Tensor& grad_output, const Tensor& weight, const Tensor& bias, const Tensor& grad_input,
                 void* workspace, Stream stream) {
    const Epilogue<T> epilogue(bias, false);
    if (plan.method == ConvMethod::direct)
        return Direct<T>(problem, grad_output, weight, true, grad_input, epilogue, static_cast<T*>(workspace), stream)
            .run_adjoint(h, w);
    for (int64_t phase_h = 0; phase_h < h.phases(); ++phase_h)
        for (int64_t phase_w = 0; phase_w < w.phases(); ++phase_w) {
            WindowSum<T> sum =
                window_sum<T>(adjoint_axis(h, phase_h), adjoint_axis(w, phase_w), problem.groups, problem.group_out(),
                              problem.group_in(), grad_output, weight, true, grad_input, 0.0);
            sum.epilogue = epilogue;
            run_window_sum(plan, sum, workspace, stream);
        }
}

template <class T>
void run_grad_input(const ConvProblem& problem, const ConvPlan& plan, const Tensor& grad_output, const Tensor& weight,
                    const Tensor& bias, const Tensor& grad_input, void* workspace, Stream stream) {
    const Axis h = problem.h.unfolded(), w = problem.w.unfolded();
    for (int64_t first = 0; first < problem.batch; first += plan.images) {
        const int64_t count = std::min(plan.images, problem.batch - first);
        const Tensor grads = grad_output.images(sizeof(T), first, count);
        const Tensor result = grad_input.images(sizeof(T), first, count);
        if (plan.unfolded_bytes == 0) {
            run_adjoint<T>(problem, plan, h, w, grads, weight, bias, result, workspace, stream);
            continue;
        }
        const std::array<int64_t, 4> shape{count, problem.in_channels, h.input, w.input};
        const Tensor padded{static_cast<char*>(workspace) + plan.panel_bytes, shape, dense_strides(shape, false), true};
        run_adjoint<T>(problem, plan, h, w, grads, weight, {}, padded, workspace, stream);
        fold<T>(problem, padded, result, stream);
    }
}

template <class T>
void run_grad_weight(const ConvProblem& problem, const ConvPlan& plan, const Tensor& grad_output, const Tensor& input,
                     const Tensor& grad_weight, void* workspace, Stream stream, const Carried& carried) {
    if (problem.in_channels == 0) return;
    const bool channels_adjacent = grad_output.stride[1] == 1 && input.stride[1] == 1;
    const int steps_of_part = static_cast<int>(plan.steps_of_part);
    int64_t first = 0;
    do {  // once also where there is no image: a gradient of zeros
        const int64_t count = std::min(plan.images, problem.batch - first);
        auto grad =
            pixel_sum<T>(problem, grad_output.images(sizeof(T), first, count), input.images(sizeof(T), first, count),
                         grad_weight, workspace, static_cast<int>(plan.parts));
        grad.carried = static_cast<Sum<T>*>(carried.sums);
        if (!grad.carried && plan.carried_bytes)
            grad.carried = reinterpret_cast<Sum<T>*>(static_cast<char*>(workspace) + plan.partial_bytes);
        grad.first = carried.first && first == 0;
        grad.last = carried.last && first + count == problem.batch;
        grad.is_exact = plan.method == ConvMethod::direct;
        if (plan.method == ConvMethod::direct)
            run_direct_grad_weight(grad, channels_adjacent, steps_of_part, stream);
        else
            with_tile<T>(plan, [&](auto tile) {
                run_gemm_grad_weight<typename decltype(tile)::T>(grad, channels_adjacent, steps_of_part, stream);
            });
        launch_each<256, 4>(grad.elements(), AddParts<T>{grad}, stream);
        first += count;
    } while (first < problem.batch);
}

template <class T>
ConvPasses conv_passes_of() {
    return {&run_forward<T>, &run_grad_input<T>, &run_grad_weight<T>, &run_grad_bias<T>};
}

}  // namespace convx::cuda
