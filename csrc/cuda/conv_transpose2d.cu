#include "cuda/conv_transpose2d.h"

#include "cuda/cells.cuh"

namespace convx::cuda {

namespace {

template <class T>
struct Fill {
    Cells cells;
    Strided4<T> output;
    const T* bias;  // or none: zeros
    int64_t bias_stride;
};

// One thread a cell.
template <class T>
__global__ void __launch_bounds__(256) fill_kernel(Fill<T> fill) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (index >= fill.cells.count) return;
    const Cell cell = fill.cells.at(static_cast<int>(index));
    *fill.output.at(cell) = fill.bias ? fill.bias[cell.c * fill.bias_stride] : T{};
}

// Rows and columns from these on, to the end of the other axis: the bias alone.
void fill_with_bias(DType dtype, const DeviceTensor& output, const DeviceTensor& bias, int64_t first_row,
                    int64_t first_column, Stream stream) {
    with_type(dtype, [&](auto type) {
        using T = typename decltype(type)::T;
        DeviceTensor part = output;
        part.data = static_cast<T*>(output.data) + first_row * output.stride[2] + first_column * output.stride[3];
        part.shape[2] -= first_row;
        part.shape[3] -= first_column;
        Fill<T> fill{};
        fill.output = Strided4<T>(part);
        fill.bias = static_cast<const T*>(bias.data);
        fill.bias_stride = bias.stride[1];
        for_each_launch(part.shape, part.stride[1] == 1, 1, [&](const Cells& cells) {
            fill.cells = cells;
            launch(fill_kernel<T>, dim3(static_cast<unsigned>((int64_t{cells.count} + 255) / 256)), 256, 0, stream,
                   fill);
        });
    });
}

// The rows and columns that the convolution has as its input.
DeviceTensor reached(const ConvTransposeProblem& problem, DeviceTensor output) {
    output.shape[2] = problem.conv.h.input;
    output.shape[3] = problem.conv.w.input;
    return output;
}

}  // namespace

void conv_transpose2d_forward(const ConvTransposeProblem& problem, const ConvPlan& plan, const DeviceTensor& input,
                              const DeviceTensor& weight, const DeviceTensor& bias, const DeviceTensor& output,
                              void* workspace, Stream stream) {
    const ConvProblem& conv = problem.conv;
    if (problem.is_empty()) return fill_with_bias(conv.dtype, output, bias, 0, 0, stream);
    conv2d_grad_input(conv, plan, input, weight, reached(problem, output), workspace, stream, bias);
    if (conv.h.input < problem.out_h) fill_with_bias(conv.dtype, output, bias, conv.h.input, 0, stream);
    if (conv.w.input < problem.out_w) fill_with_bias(conv.dtype, output, bias, 0, conv.w.input, stream);
}

void conv_transpose2d_grad_input(const ConvTransposeProblem& problem, const ConvPlan& plan,
                                 const DeviceTensor& grad_output, const DeviceTensor& weight,
                                 const DeviceTensor& grad_input, void* workspace, Stream stream) {
    if (problem.is_empty()) return fill_with_bias(problem.conv.dtype, grad_input, {}, 0, 0, stream);
    conv2d_forward(problem.conv, plan, reached(problem, grad_output), weight, {}, grad_input, workspace, stream);
}

void conv_transpose2d_grad_weight(const ConvTransposeProblem& problem, const ConvPlan& plan,
                                  const DeviceTensor& grad_output, const DeviceTensor& input,
                                  const DeviceTensor& grad_weight, void* workspace, Stream stream) {
    if (problem.is_empty()) return fill_with_bias(problem.conv.dtype, grad_weight, {}, 0, 0, stream);
    conv2d_grad_weight(problem.conv, plan, input, reached(problem, grad_output), grad_weight, workspace, stream);
}

}  // namespace convx::cuda
