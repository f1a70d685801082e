// What a piece of work takes, in nanoseconds of one thread: for each method and width of vectors.
//
// Written by `python -m benchmarks choices --fit FILE...` from measured times (benchmarks/prices.py), one table for a
// number of floats in a vector. Regret is what the choice costs over the fastest method of a cell.
//
//   16 floats: Intel Xeon with AMX (avx512, 2 threads); regret: 6.0% of 1360 cells over 10 %, mean 4.7%
//    8 floats: Intel Xeon with AMX (avx2, 2 threads); regret: 7.0% of 1360 cells over 10 %, mean 3.3%
//
// The rows of dot-products and col2im are from a later fit than the others: one of all methods at once (5.1% and 6.3%)
// took Winograd for three channels, whose rounding nobody would expect there.
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
    {"depthwise", ConvPass::forward, {1.11e+03, 0.159, 1.37, 11.6, 0.534, 1.49, 1.64, 0.299, 20, 3}},
    {"direct-channels", ConvPass::forward, {1.68e+03, 0.393, 31, 6.21, 0.424, 4.49, 0.36, 0.341, 20, 8.97}},
    {"direct-spatial", ConvPass::forward, {2.5e+03, 0.453, 7.61, 3.51, 0.192, 8.24, 2.8, 1.46, 20, 6.56}},
    {"dot-products", ConvPass::forward, {911, 0.632, 19.4, 1, 1.6, 10, 7.45, 0.0677, 20, 0.191}},
    {"implicit-gemm", ConvPass::forward, {2.7e+03, 0.217, 47.7, 1.24, 0.661, 5.49, 3, 0.298, 20, 0.903}},
    {"winograd-channels", ConvPass::forward, {570, 0.23, 28.9, 1, 1, 232, 6.94, 0.256, 82.1, 1.54}},
    {"winograd-tiles", ConvPass::forward, {4.63e+03, 0.104, 15.5, 1, 1, 12.4, 22.6, 0.938, 32.1, 1.78}},
    {"depthwise", ConvPass::grad_input, {1.11e+03, 0.184, 1.03, 24.1, 1, 1.61, 1.98, 0.356, 20, 3}},
    {"direct-channels", ConvPass::grad_input, {2.69e+03, 0.439, 22.3, 2.82, 0.382, 3.04, 0.552, 0.499, 20, 3.52}},
    {"direct-spatial", ConvPass::grad_input, {1.44e+03, 0.434, 13.3, 1.32, 0.147, 7.57, 4.16, 1.45, 20, 9.86}},
    {"col2im", ConvPass::grad_input, {1.6e+03, 0.626, 2.05, 1, 0.151, 4.21, 0.14, 0.0629, 20, 0.178}},
    {"implicit-gemm", ConvPass::grad_input, {1.04e+03, 0.263, 66.8, 0.593, 1.26, 6.56, 1.55, 0.257, 20, 0.887}},
    {"winograd-channels", ConvPass::grad_input, {680, 0.289, 35.2, 1, 1, 258, 8.11, 0.281, 61.1, 1.46}},
    {"winograd-tiles", ConvPass::grad_input, {2.7e+03, 0.108, 13.5, 1, 1, 10, 24.7, 1.24, 24.2, 1.89}},
    {"depthwise", ConvPass::grad_weight, {1.6e+04, 0.455, 1.28, 1, 0.19, 1.44, 1.08, 0.622, 20, 3}},
    {"depthwise-pixels", ConvPass::grad_weight, {1.94e+03, 0.725, 6.27, 1, 0.828, 10, 1.72, 1.06, 20, 3}},
    {"direct-channels", ConvPass::grad_weight, {1.57e+03, 0.454, 3.91, 1.7, 0.091, 9.83, 0.772, 0.4, 20, 52.4}},
    {"direct-spatial", ConvPass::grad_weight, {1.29e+03, 0.835, 0.965, 0.767, 0.134, 2.11, 1.32, 4.99, 20, 5.44}},
    {"implicit-gemm", ConvPass::grad_weight, {6.84e+03, 0.601, 3.94, 1.86, 0.389, 0.375, 0.737, 0.404, 20, 0.78}},
    {"outer-products", ConvPass::grad_weight, {757, 0.329, 2.56, 0.828, 0.628, 1.09, 1.56, 0.18, 20, 0.635}},
    {"winograd-tiles", ConvPass::grad_weight, {1.25e+03, 0.329, 4.58, 1, 1, 264, 11.6, 0.402, 60, 0.965}},
};

constexpr Row floats_8[] = {
    {"depthwise", ConvPass::forward, {1.17e+03, 0.151, 1.44, 6.32, 0.559, 1.62, 1.66, 0.309, 20, 3}},
    {"direct-channels", ConvPass::forward, {1.38e+03, 0.284, 40.3, 2.64, 0.455, 5.4, 0.704, 0.356, 20, 16}},
    {"direct-spatial", ConvPass::forward, {1.54e+03, 0.329, 8.89, 2.44, 0.297, 6.16, 2.32, 1.18, 20, 5.17}},
    {"dot-products", ConvPass::forward, {850, 0.301, 21.2, 1, 2.31, 10, 10.8, 0.0791, 20, 0.219}},
    {"implicit-gemm", ConvPass::forward, {2.64e+03, 0.176, 21.5, 1.83, 0.956, 5.5, 1.92, 0.333, 20, 0.968}},
    {"winograd-channels", ConvPass::forward, {730, 0.183, 12.6, 1, 1, 307, 6.27, 0.331, 67.4, 1.83}},
    {"winograd-tiles", ConvPass::forward, {3.12e+03, 0.206, 15.5, 1, 1, 10.9, 18.7, 1.04, 42.5, 2.02}},
    {"depthwise", ConvPass::grad_input, {1.08e+03, 0.255, 1.13, 7.82, 1, 1.43, 1.22, 0.305, 20, 3}},
    {"direct-channels", ConvPass::grad_input, {8.86e+03, 0.3, 50.4, 0.847, 0.25, 2.36, 2.22, 0.307, 20, 14.4}},
    {"direct-spatial", ConvPass::grad_input, {2.37e+03, 0.322, 12.8, 1.61, 0.199, 7.75, 3.01, 1.32, 20, 8.21}},
    {"col2im", ConvPass::grad_input, {2.6e+03, 0.507, 1.85, 1, 0.168, 4.18, 0.173, 0.0669, 20, 0.204}},
    {"implicit-gemm", ConvPass::grad_input, {2.59e+03, 0.176, 20.5, 0.972, 1.17, 6.51, 2.2, 0.418, 20, 1.06}},
    {"winograd-channels", ConvPass::grad_input, {364, 0.106, 17.1, 1, 1, 88, 4.75, 0.462, 195, 1.92}},
    {"winograd-tiles", ConvPass::grad_input, {3.33e+03, 0.267, 48.7, 1, 1, 10.5, 6.25, 1.93, 21.9, 1.64}},
    {"depthwise", ConvPass::grad_weight, {2.35e+04, 0.558, 0.983, 1, 0.67, 0.845, 0.943, 0.373, 20, 3}},
    {"depthwise-pixels", ConvPass::grad_weight, {2.03e+03, 0.537, 5.4, 1, 0.821, 10, 2.17, 1.03, 20, 3}},
    {"direct-channels", ConvPass::grad_weight, {1.45e+03, 0.315, 3.41, 2.09, 0.139, 3.32, 3.21, 0.57, 20, 30.5}},
    {"direct-spatial", ConvPass::grad_weight, {1.52e+03, 0.433, 1.99, 0.336, 0.254, 2.92, 0.464, 5.2, 20, 3.23}},
    {"implicit-gemm", ConvPass::grad_weight, {3.97e+03, 0.217, 3.6, 3.41, 0.716, 0.651, 1.89, 0.511, 20, 2.42}},
    {"outer-products", ConvPass::grad_weight, {879, 0.232, 2.09, 0.357, 1.29, 3.63, 0.901, 0.222, 20, 0.78}},
    {"winograd-tiles", ConvPass::grad_weight, {1.51e+03, 0.289, 4.7, 1, 1, 289, 9.31, 0.402, 57.9, 1.06}},
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
