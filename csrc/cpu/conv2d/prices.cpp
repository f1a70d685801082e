// What a piece of work takes, in nanoseconds of one thread: for each method and width of vectors.
//
// Written by `python -m benchmarks choices --fit FILE...` from measured times (benchmarks/prices.py), one table for a
// number of floats in a vector. Regret is what the choice costs over the fastest method of a cell.
//
//   16 floats: Intel(R) Xeon(R) Processor (avx512, 2 threads); regret: 4.6% of 1116 cells over 10 %, mean 1.6%
//   16 floats: AMD EPYC (avx512, 2 threads); regret: 6.2% of 1116 cells over 10 %, mean 2.0%
//    8 floats: Intel(R) Xeon(R) Processor (avx2, 2 threads); regret: 5.6% of 1116 cells over 10 %, mean 1.6%
//    8 floats: AMD EPYC (avx2, 2 threads); regret: 5.0% of 1116 cells over 10 %, mean 1.6%
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
    {"depthwise", ConvPass::forward, {1.42e+03, 0.173, 1.24, 9.38, 0.526, 1.77, 2.14, 0.6, 20, 3}},
    {"direct-channels", ConvPass::forward, {1.49e+03, 0.411, 64.9, 3.21, 0.419, 1.95, 1.51, 0.525, 20, 2.3}},
    {"direct-spatial", ConvPass::forward, {1.61e+03, 0.468, 5.64, 7.43, 0.395, 5.92, 1.13, 2.34, 20, 8.24}},
    {"dot-products", ConvPass::forward, {1.61e+03, 0.757, 3.88, 1, 0.485, 10, 6.23, 0.0482, 20, 0.428}},
    {"implicit-gemm", ConvPass::forward, {4.01e+03, 0.263, 33.5, 3.75, 1.1, 0.626, 2.51, 0.29, 20, 1.49}},
    {"winograd-channels", ConvPass::forward, {1.06e+03, 0.135, 1.8, 1, 1, 2.51, 2.61, 0.257, 373, 2.7}},
    {"winograd-tiles", ConvPass::forward, {2.64e+03, 0.147, 8.73, 1, 1, 10.1, 23.9, 0.562, 27.2, 3.27}},
    {"col2im", ConvPass::grad_input, {5.14e+03, 0.423, 4.04, 1, 0.187, 1.8, 38.4, 0.0611, 20, 0.887}},
    {"depthwise", ConvPass::grad_input, {1.24e+03, 0.16, 0.785, 25.5, 1, 1.31, 2.47, 0.497, 20, 3}},
    {"direct-channels", ConvPass::grad_input, {4.4e+03, 0.392, 26.8, 5.39, 0.773, 3.45, 3.07, 0.34, 20, 2.1}},
    {"direct-spatial", ConvPass::grad_input, {1.63e+03, 0.379, 14.2, 0.809, 0.44, 4.07, 4.63, 1.17, 20, 9.62}},
    {"implicit-gemm", ConvPass::grad_input, {3.01e+03, 0.349, 57.3, 2.64, 1.94, 2.22, 1.16, 0.176, 20, 0.703}},
    {"winograd-channels", ConvPass::grad_input, {1.24e+03, 0.0738, 2.82, 1, 1, 19.7, 3.35, 0.643, 442, 0.616}},
    {"winograd-tiles", ConvPass::grad_input, {2.88e+03, 0.104, 12.2, 1, 1, 9.71, 29, 0.878, 25.2, 2.32}},
    {"depthwise", ConvPass::grad_weight, {1.87e+03, 0.618, 1.6, 1, 0.742, 1.83, 1.61, 0.963, 20, 3}},
    {"depthwise-pixels", ConvPass::grad_weight, {1.93e+03, 1.4, 5.58, 1, 0.99, 10, 1.95, 1.17, 20, 3}},
    {"direct-channels", ConvPass::grad_weight, {2.41e+03, 0.567, 4.28, 1.57, 0.129, 12.9, 0.371, 0.128, 20, 22.3}},
    {"direct-spatial", ConvPass::grad_weight, {2.99e+03, 0.771, 1.2, 0.4, 0.136, 2.74, 1.5, 1.44, 20, 3}},
    {"implicit-gemm", ConvPass::grad_weight, {3.47e+03, 0.405, 3.53, 4.59, 0.484, 0.498, 2.63, 0.763, 20, 4.25}},
    {"outer-products", ConvPass::grad_weight, {1.75e+03, 0.295, 3.54, 0.984, 0.558, 5.03, 5.63, 0.208, 20, 0.705}},
    {"patch-products", ConvPass::grad_weight, {2.99e+03, 0.373, 3.73, 1, 0.341, 0.547, 18.8, 0.237, 20, 8.72}},
    {"winograd-tiles", ConvPass::grad_weight, {1.31e+03, 0.0628, 1.64, 1, 1, 2.69, 25.6, 0.98, 4.25, 0.815}},
};

constexpr Row floats_8[] = {
    {"depthwise", ConvPass::forward, {1.25e+03, 0.216, 1.16, 9.88, 0.634, 1.22, 1.67, 0.4, 20, 3}},
    {"direct-channels", ConvPass::forward, {1.16e+03, 0.212, 32.9, 8.12, 0.616, 1.58, 0.296, 1.49, 20, 5.47}},
    {"direct-spatial", ConvPass::forward, {943, 0.224, 19.6, 2.09, 0.0618, 3.24, 5.95, 3.33, 20, 6.63}},
    {"dot-products", ConvPass::forward, {1.05e+03, 0.283, 19.5, 1, 3.88, 10, 5.85, 0.0504, 20, 0.408}},
    {"implicit-gemm", ConvPass::forward, {3.91e+03, 0.197, 29, 1.8, 1.11, 1.15, 4.51, 0.523, 20, 1.42}},
    {"winograd-channels", ConvPass::forward, {1.43e+03, 0.157, 1.44, 1, 1, 2.46, 3.05, 0.351, 211, 4.17}},
    {"winograd-tiles", ConvPass::forward, {8.46e+03, 0.321, 14, 1, 1, 8.98, 15.4, 0.507, 23.5, 2.31}},
    {"col2im", ConvPass::grad_input, {3.86e+03, 0.65, 2.88, 1, 0.142, 1.55, 2.33, 0.121, 20, 0.669}},
    {"depthwise", ConvPass::grad_input, {1.31e+03, 0.281, 0.9, 14.1, 1, 1.25, 1.52, 0.438, 20, 3}},
    {"direct-channels", ConvPass::grad_input, {1.58e+03, 0.364, 22.2, 0.304, 0.57, 21, 0.779, 0.358, 20, 1.89}},
    {"direct-spatial", ConvPass::grad_input, {6.13e+03, 0.396, 6.32, 0.979, 0.199, 7.86, 3.81, 1.29, 20, 5.73}},
    {"implicit-gemm", ConvPass::grad_input, {1.45e+03, 0.32, 16.3, 2.85, 1.15, 2.15, 1.46, 0.303, 20, 1.29}},
    {"winograd-channels", ConvPass::grad_input, {3.61e+03, 0.108, 2.27, 1, 1, 3.17, 2.92, 0.156, 218, 8.73}},
    {"winograd-tiles", ConvPass::grad_input, {8.55e+03, 0.476, 51.1, 1, 1, 4.89, 2.75, 0.471, 18, 2}},
    {"depthwise", ConvPass::grad_weight, {942, 1.34, 0.781, 1, 0.195, 0.561, 1.28, 0.358, 20, 3}},
    {"depthwise-pixels", ConvPass::grad_weight, {1.84e+03, 0.599, 5.26, 1, 0.912, 10, 1.67, 1.04, 20, 3}},
    {"direct-channels", ConvPass::grad_weight, {1.91e+03, 0.35, 2.39, 7.12, 0.263, 15.8, 0.923, 0.146, 20, 34.2}},
    {"direct-spatial", ConvPass::grad_weight, {2.2e+03, 0.428, 0.627, 0.217, 0.125, 10.4, 0.417, 3.29, 20, 3.23}},
    {"implicit-gemm", ConvPass::grad_weight, {3.52e+03, 0.241, 7.35, 3.54, 0.691, 0.18, 2.34, 0.23, 20, 9.82}},
    {"outer-products", ConvPass::grad_weight, {1.63e+03, 0.296, 2.12, 0.596, 2.25, 1.42, 2.13, 0.118, 20, 0.7}},
    {"patch-products", ConvPass::grad_weight, {3.34e+03, 0.516, 3.52, 1, 0.305, 0.744, 9.26, 0.311, 20, 1.12}},
    {"winograd-tiles", ConvPass::grad_weight, {1.12e+03, 0.0957, 1.89, 1, 1, 2.68, 29.5, 1.31, 8.74, 0.963}},
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
