// What a piece of work takes, in nanoseconds of one thread: for each method and width of vectors.
//
// Written by `python -m benchmarks choices --fit FILE...` from measured times (benchmarks/prices.py), one table for a
// number of floats in a vector. Regret is what the choice costs over the fastest method of a cell.
//
//   16 floats: Intel Xeon with AMX (avx512, 2 threads); regret: 5.1% of 1360 cells over 10 %, mean 2.2%
//    8 floats: Intel Xeon with AMX (avx2, 2 threads); regret: 6.3% of 1360 cells over 10 %, mean 2.3%
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
    {"depthwise", ConvPass::forward, {1.27e+03, 0.188, 1.77, 12.3, 0.672, 2.14, 1.85, 0.401, 20, 3}},
    {"direct-channels", ConvPass::forward, {1.3e+03, 0.498, 50.8, 6.67, 0.393, 1.41, 1.54, 0.552, 20, 2.21}},
    {"direct-spatial", ConvPass::forward, {1.61e+03, 0.506, 6.62, 5.95, 0.308, 7.55, 2.16, 1.53, 20, 6.43}},
    {"dot-products", ConvPass::forward, {911, 0.632, 19.4, 1, 1.6, 10, 7.45, 0.0677, 20, 0.191}},
    {"implicit-gemm", ConvPass::forward, {2.31e+03, 0.282, 31.8, 3.4, 0.84, 2.91, 3.25, 0.174, 20, 1.12}},
    {"winograd-channels", ConvPass::forward, {837, 0.095, 0.929, 1, 1, 1.45, 5.72, 0.356, 440, 1.23}},
    {"winograd-tiles", ConvPass::forward, {5.86e+03, 0.118, 13.1, 1, 1, 11, 30.8, 0.93, 36.5, 2.48}},
    {"col2im", ConvPass::grad_input, {1.6e+03, 0.626, 2.05, 1, 0.151, 4.21, 0.14, 0.0629, 20, 0.178}},
    {"depthwise", ConvPass::grad_input, {1.09e+03, 0.175, 1.14, 13.4, 1, 1.78, 2.28, 0.361, 20, 3}},
    {"direct-channels", ConvPass::grad_input, {4.29e+03, 0.297, 13.3, 1.45, 0.409, 3.78, 8, 0.619, 20, 2.28}},
    {"direct-spatial", ConvPass::grad_input, {1.55e+03, 0.421, 15.2, 1.71, 0.174, 6.41, 4.1, 1.14, 20, 7.78}},
    {"implicit-gemm", ConvPass::grad_input, {1.66e+03, 0.273, 21.8, 0.959, 1.05, 3.5, 3.62, 0.213, 20, 0.957}},
    {"winograd-channels", ConvPass::grad_input, {1.3e+03, 0.119, 0.967, 1, 1, 1.5, 5.11, 0.284, 389, 2.26}},
    {"winograd-tiles", ConvPass::grad_input, {4.15e+03, 0.0983, 15.8, 1, 1, 11.3, 25.9, 1.18, 33.3, 2.86}},
    {"depthwise", ConvPass::grad_weight, {1.88e+04, 0.484, 1.48, 1, 0.276, 1.55, 1.26, 0.611, 20, 3}},
    {"depthwise-pixels", ConvPass::grad_weight, {2.09e+03, 1.26, 7.97, 1, 1.14, 10, 1.62, 1.44, 20, 3}},
    {"direct-channels", ConvPass::grad_weight, {2.37e+03, 0.805, 2.89, 1.47, 0.071, 2.68, 0.29, 0.273, 20, 5.97}},
    {"direct-spatial", ConvPass::grad_weight, {2.71e+03, 1.24, 1.59, 0.552, 0.182, 2.09, 1, 1.81, 20, 3.54}},
    {"implicit-gemm", ConvPass::grad_weight, {1.62e+04, 0.436, 4.32, 3.26, 0.771, 1.75, 1.84, 0.45, 20, 0.671}},
    {"outer-products", ConvPass::grad_weight, {1.11e+03, 0.316, 1.85, 1.7, 0.319, 7.32, 4.01, 0.165, 20, 0.56}},
    {"winograd-tiles", ConvPass::grad_weight, {2.05e+03, 0.0677, 1.05, 1, 1, 1.58, 45.2, 0.594, 3.34, 0.334}},
};

constexpr Row floats_8[] = {
    {"depthwise", ConvPass::forward, {1.24e+03, 0.18, 1.63, 8.66, 0.723, 1.86, 1.69, 0.352, 20, 3}},
    {"direct-channels", ConvPass::forward, {1.63e+03, 0.362, 18.9, 10, 0.597, 1.87, 0.484, 0.826, 20, 3.8}},
    {"direct-spatial", ConvPass::forward, {1.57e+03, 0.414, 5.78, 1.97, 0.254, 9.59, 3.57, 1.58, 20, 4.17}},
    {"dot-products", ConvPass::forward, {850, 0.301, 21.2, 1, 2.31, 10, 10.8, 0.0791, 20, 0.219}},
    {"implicit-gemm", ConvPass::forward, {1.82e+03, 0.21, 33.1, 0.86, 1.13, 15.6, 4.4, 0.24, 20, 2.01}},
    {"winograd-channels", ConvPass::forward, {1.14e+03, 0.131, 0.867, 1, 1, 1.37, 7.96, 0.338, 244, 2.58}},
    {"winograd-tiles", ConvPass::forward, {1.52e+04, 0.345, 20.4, 1, 1, 8.45, 18.2, 0.477, 29.9, 2.3}},
    {"col2im", ConvPass::grad_input, {2.6e+03, 0.507, 1.85, 1, 0.168, 4.18, 0.173, 0.0669, 20, 0.204}},
    {"depthwise", ConvPass::grad_input, {1.08e+03, 0.24, 1.3, 8.52, 1, 1.57, 1.48, 0.341, 20, 3}},
    {"direct-channels", ConvPass::grad_input, {7.2e+03, 0.278, 14.2, 2.48, 0.731, 5.19, 0.897, 0.732, 20, 9.27}},
    {"direct-spatial", ConvPass::grad_input, {3.06e+03, 0.349, 13.3, 1.13, 0.219, 8.23, 3.19, 1.47, 20, 6.11}},
    {"implicit-gemm", ConvPass::grad_input, {3.15e+03, 0.226, 10.9, 0.331, 1.01, 4.58, 4.86, 0.244, 20, 0.917}},
    {"winograd-channels", ConvPass::grad_input, {1.79e+03, 0.139, 1.3, 1, 1, 1.83, 4.65, 0.253, 233, 4.3}},
    {"winograd-tiles", ConvPass::grad_input, {168, 0.239, 3.31, 1, 1, 1.46, 20.9, 1.95, 11.1, 2.38}},
    {"depthwise", ConvPass::grad_weight, {3.16e+04, 0.728, 1.14, 1, 0.841, 0.831, 0.716, 0.355, 20, 3}},
    {"depthwise-pixels", ConvPass::grad_weight, {1.91e+03, 0.741, 5.81, 1, 1.12, 10, 1.81, 1.06, 20, 3}},
    {"direct-channels", ConvPass::grad_weight, {1.85e+03, 0.565, 2.85, 1.28, 0.353, 2.62, 0.758, 0.46, 20, 4.38}},
    {"direct-spatial", ConvPass::grad_weight, {2.38e+03, 0.574, 3.43, 0.251, 0.316, 2.17, 0.351, 2.19, 20, 3.97}},
    {"implicit-gemm", ConvPass::grad_weight, {2.7e+03, 0.25, 4.98, 3.54, 0.749, 3.92, 2.59, 0.473, 20, 1.71}},
    {"outer-products", ConvPass::grad_weight, {1.12e+03, 0.28, 1.42, 0.744, 1.49, 3.79, 1.95, 0.198, 20, 0.59}},
    {"winograd-tiles", ConvPass::grad_weight, {9.68e+03, 0.215, 0.962, 1, 1, 1.26, 24.3, 0.571, 6.09, 0.757}},
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
