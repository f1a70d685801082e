// What a piece of work takes, in nanoseconds of one thread: for each method and width of vectors.
//
// Written by `python -m benchmarks choices --fit FILE...` from measured times (benchmarks/prices.py), one table for a
// number of floats in a vector. Regret is what the choice costs over the fastest method of a cell.
//
//   16 floats: Intel(R) Xeon(R) Processor (avx512, 2 threads); regret: 4.1% of 1376 cells over 10 %, mean 1.8%
//    8 floats: Intel(R) Xeon(R) Processor (avx2, 2 threads); regret: 5.6% of 1376 cells over 10 %, mean 2.0%
//
// A method that is not in a table, because nobody has measured it yet, has the general prices.
#include <cstring>

#include "cpu/conv2d/cost.h"

namespace convx {

namespace {

using Prices = std::array<double, work_kinds>;

struct Row {
    const char* method;
    ConvPass pass;
    Prices prices;
};

// calls, cycles, tiles, copies, transposes, runs, lines, weights, transforms, spills
constexpr Prices general{2000, 0.25, 5, 1, 1, 10, 3, 1, 20, 3};

// clang-format off: a line each
constexpr Row floats_16[] = {
    {"depthwise", ConvPass::forward, {1.47e+03, 0.225, 1.49, 9.41, 0.663, 1.75, 1.85, 0.568, 20, 3}},
    {"direct-channels", ConvPass::forward, {1.97e+03, 0.561, 10.6, 1.27, 0.486, 1.11, 0.747, 0.257, 20, 1.99}},
    {"direct-spatial", ConvPass::forward, {1.57e+03, 0.586, 5.21, 7.32, 0.39, 5.16, 0.974, 2.28, 20, 9.34}},
    {"dot-products", ConvPass::forward, {937, 0.487, 60.8, 1, 2, 10, 4.65, 0.0468, 20, 0.183}},
    {"implicit-gemm", ConvPass::forward, {1.29e+03, 0.263, 57.7, 0.931, 1.46, 10.4, 2.96, 0.113, 20, 0.898}},
    {"winograd-channels", ConvPass::forward, {196, 0.0451, 1.11, 1, 1, 1.77, 1.52, 0.463, 576, 0.876}},
    {"winograd-tiles", ConvPass::forward, {6.96e+03, 0.125, 7.68, 1, 1, 10.1, 29.8, 0.743, 27.8, 2.25}},
    {"col2im", ConvPass::grad_input, {777, 0.55, 4.75, 1, 0.319, 6.12, 0.192, 0.0425, 20, 0.142}},
    {"depthwise", ConvPass::grad_input, {1.24e+03, 0.163, 0.893, 26.7, 1, 1.34, 2.53, 0.467, 20, 3}},
    {"direct-channels", ConvPass::grad_input, {3.71e+03, 0.27, 5.43, 6.17, 0.582, 3.13, 9.85, 0.193, 20, 4.44}},
    {"direct-spatial", ConvPass::grad_input, {4.85e+03, 0.354, 8.1, 1.17, 0.297, 4.03, 5.14, 1.06, 20, 11.3}},
    {"implicit-gemm", ConvPass::grad_input, {660, 0.3, 81.7, 0.568, 1.8, 3.16, 1.88, 0.158, 20, 0.73}},
    {"winograd-channels", ConvPass::grad_input, {866, 0.0724, 1.18, 1, 1, 1.97, 2.8, 0.59, 401, 0.656}},
    {"winograd-tiles", ConvPass::grad_input, {2.57e+03, 0.109, 10.9, 1, 1, 9.97, 26.4, 0.815, 24.4, 2.43}},
    {"depthwise", ConvPass::grad_weight, {1.85e+03, 0.589, 1.65, 1, 0.632, 2.04, 1.58, 0.88, 20, 3}},
    {"depthwise-pixels", ConvPass::grad_weight, {2e+03, 1.54, 6.7, 1, 1.11, 10, 1.46, 1.31, 20, 3}},
    {"direct-channels", ConvPass::grad_weight, {875, 0.373, 210, 6.78, 0.158, 12.8, 0.411, 0.639, 20, 44.5}},
    {"direct-spatial", ConvPass::grad_weight, {1.02e+03, 0.672, 1.07, 1.17, 0.0731, 2.25, 1.77, 4.58, 20, 5.59}},
    {"implicit-gemm", ConvPass::grad_weight, {9.35e+03, 0.65, 7.05, 1.08, 0.239, 0.375, 0.57, 1.76, 20, 0.651}},
    {"outer-products", ConvPass::grad_weight, {1.28e+03, 0.28, 3.12, 0.627, 0.649, 6.52, 5.08, 0.126, 20, 1.04}},
    {"patch-products", ConvPass::grad_weight, {2.36e+03, 0.334, 4.41, 1, 2.06, 75.5, 5.46, 0.157, 20, 3.28}},
    {"winograd-tiles", ConvPass::grad_weight, {7.75e+03, 0.0668, 1.08, 1, 1, 1.44, 18.1, 0.344, 2.19, 1.96}},
};

constexpr Row floats_8[] = {
    {"depthwise", ConvPass::forward, {1.39e+03, 0.269, 1.3, 8.37, 0.818, 1.33, 1.39, 0.438, 20, 3}},
    {"direct-channels", ConvPass::forward, {1.39e+03, 0.241, 20.7, 12.1, 0.559, 1.74, 0.349, 1.15, 20, 15.2}},
    {"direct-spatial", ConvPass::forward, {1.07e+03, 0.233, 3.72, 0.874, 0.158, 16.7, 7.83, 2.19, 20, 20}},
    {"dot-products", ConvPass::forward, {1.02e+03, 0.293, 27.1, 1, 2.23, 10, 2.11, 0.0533, 20, 0.179}},
    {"implicit-gemm", ConvPass::forward, {1.75e+03, 0.216, 21.3, 1.19, 1.05, 10, 4.99, 0.186, 20, 3.77}},
    {"winograd-channels", ConvPass::forward, {1.32e+03, 0.166, 1.04, 1, 1, 1.77, 2.45, 0.325, 222, 2.76}},
    {"winograd-tiles", ConvPass::forward, {8.41e+03, 0.313, 12.2, 1, 1, 8.83, 17.6, 0.46, 21.7, 2.32}},
    {"col2im", ConvPass::grad_input, {1.15e+03, 0.29, 6.15, 1, 0.229, 8.53, 0.308, 0.0491, 20, 0.222}},
    {"depthwise", ConvPass::grad_input, {1.36e+03, 0.276, 1.02, 27, 1, 1.26, 1.43, 0.453, 20, 3}},
    {"direct-channels", ConvPass::grad_input, {2.8e+04, 0.191, 16.4, 0.825, 0.627, 22.2, 0.327, 0.475, 20, 7.64}},
    {"direct-spatial", ConvPass::grad_input, {1.13e+03, 0.308, 34.2, 0.58, 0.113, 3.8, 4.12, 1.87, 20, 6.72}},
    {"implicit-gemm", ConvPass::grad_input, {1.22e+03, 0.21, 43.7, 0.166, 1.79, 10.1, 2.61, 0.233, 20, 0.769}},
    {"winograd-channels", ConvPass::grad_input, {754, 0.059, 1.53, 1, 1, 2.66, 2.79, 0.817, 367, 0.703}},
    {"winograd-tiles", ConvPass::grad_input, {1.79e+03, 0.407, 34.1, 1, 1, 3.84, 3.43, 4.18, 22.4, 1.97}},
    {"depthwise", ConvPass::grad_weight, {3.22e+04, 0.682, 1.42, 1, 0.89, 0.733, 0.637, 0.399, 20, 3}},
    {"depthwise-pixels", ConvPass::grad_weight, {1.91e+03, 0.55, 6, 1, 1.13, 10, 1.62, 1.09, 20, 3}},
    {"direct-channels", ConvPass::grad_weight, {1.8e+03, 0.51, 4.76, 4.95, 0.374, 0.992, 0.954, 0.291, 20, 7.76}},
    {"direct-spatial", ConvPass::grad_weight, {2.28e+03, 0.582, 0.857, 0.189, 0.178, 1.91, 0.408, 2.68, 20, 3.05}},
    {"implicit-gemm", ConvPass::grad_weight, {2.17e+03, 0.28, 3.44, 0.921, 0.356, 9.12, 1.75, 0.272, 20, 5.53}},
    {"outer-products", ConvPass::grad_weight, {1.14e+03, 0.292, 1.72, 0.473, 1.78, 7.54, 1.22, 0.102, 20, 0.546}},
    {"patch-products", ConvPass::grad_weight, {2.54e+03, 0.391, 3.84, 1, 0.545, 52.9, 10.7, 0.132, 20, 2.07}},
    {"winograd-tiles", ConvPass::grad_weight, {1.02e+03, 0.0337, 1.46, 1, 1, 1.92, 46.9, 1.07, 4.55, 0.685}},
};
// clang-format on

template <size_t size>
const Prices& find(const Row (&rows)[size], const char* method, ConvPass pass) {
    for (const Row& row : rows)
        if (row.pass == pass && std::strcmp(row.method, method) == 0) return row.prices;
    return general;
}

}  // namespace

double predicted_time(const char* method, ConvPass pass, const Work& work, const Kernels& kernels) {
    const Prices& prices = kernels.f32.lanes >= 16 ? find(floats_16, method, pass) : find(floats_8, method, pass);
    double time = 0;
    for (size_t kind = 0; kind < work_kinds; ++kind) time += prices[kind] * work.count[kind];
    return time;
}

}  // namespace convx
