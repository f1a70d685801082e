// The functions of convx._cpu: Python objects in, arrays out. One file an operation; cpu_module.cpp names them.
#pragma once

#include "bindings/options.h"
#include "bindings/tensor_memory.h"

namespace convx {

// Calls work(T{}) with the element type.
template <class Work>
void dispatch(DType dtype, const Work& work) {
    if (dtype == DType::float32)
        work(float{});
    else
        work(double{});
}

// An uninitialised array in C order; pybind11's own constructors make vectors of the sizes and strides first.
template <class T>
py::array new_array(const Shape& shape) {
    if (ResultAllocator::running()) return new_tensor_array(shape, py::dtype::num_of<T>());
    const auto& numpy = py::detail::npy_api::get();
    Py_intptr_t sizes[Shape::most_axes];
    std::copy(shape.begin(), shape.end(), sizes);
    PyObject* array =
        numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, numpy.PyArray_DescrFromType_(py::dtype::num_of<T>()),
                                    static_cast<int>(shape.size()), sizes, nullptr, nullptr, 0, nullptr);
    if (!array) throw py::error_already_set();
    return py::reinterpret_steal<py::array>(array);
}
inline py::array new_array(DType dtype, const Shape& shape) {
    return dtype == DType::float32 ? new_array<float>(shape) : new_array<double>(shape);
}

inline py::tuple to_tuple(const Shape& shape) {
    py::tuple result(shape.size());
    for (size_t axis = 0; axis < shape.size(); ++axis) result[axis] = shape[axis];
    return result;
}

// Runs work() while other Python threads may go on, unless it is over before one could start: up to this many elements
// and multiplications, about a microsecond, of which giving up the interpreter and getting it back would be 60 ns.
constexpr int64_t tiny_work = 4096;
template <class Work>
void without_gil(int64_t amount, const Work& work) {
    if (amount <= tiny_work) return work();
    const WithoutGil release;
    work();
}
template <class Problem>
int64_t elements_of(const Problem& problem) {
    const auto count = [](const std::array<int64_t, 4>& s) { return s[0] * s[1] * s[2] * s[3]; };
    return count(problem.input_shape()) + count(problem.output_shape());
}

py::array conv2d_op(py::handle input, py::handle weight, py::handle bias, const ConvHandles& given,
                    py::handle activation, py::handle layout, py::handle algorithm, py::handle out);
py::tuple conv2d_backward_op(py::handle grad_output, py::handle input, py::handle weight, const ConvHandles& given,
                             py::handle layout, py::handle algorithm, py::handle output_mask, py::handle per_sample);
py::tuple conv2d_grad_norms_op(py::handle grad_output, py::handle input, py::handle weight_shape,
                               const ConvHandles& given, py::handle layout, py::handle algorithm);

py::array conv_transpose2d_op(py::handle input, py::handle weight, py::handle bias, const TransposeHandles& given,
                              py::handle out);
py::tuple conv_transpose2d_backward_op(py::handle grad_output, py::handle input, py::handle weight,
                                       const TransposeHandles& given, py::handle output_mask);

py::object relu_op(py::handle input, py::handle return_mask, py::handle out);
py::array relu_backward_op(py::handle grad_output, py::handle output, py::handle out);

py::object max_pool2d_op(py::handle input, const PoolHandles& given, py::handle return_indices,
                         py::handle return_codes);
py::array max_pool2d_backward_op(py::handle grad_output, py::handle indices_or_codes, py::handle input_shape,
                                 const PoolHandles& given);

py::tuple conv2d_relu_max_pool2d_op(py::handle input, py::handle weight, py::handle bias, const FusedHandles& given);
py::tuple conv2d_relu_max_pool2d_backward_op(py::handle grad_output, py::handle input, py::handle weight,
                                             py::handle codes, const FusedHandles& given, py::handle output_mask);

// The checks alone, for libraries that ask for the shape of a result before there are numbers.
py::tuple resolve_conv2d_op(py::handle input, py::handle weight, py::handle bias, const ConvHandles& given,
                            py::handle activation, py::handle layout, py::handle algorithm);
py::tuple resolve_conv_transpose2d_op(py::handle input, py::handle weight, py::handle bias,
                                      const TransposeHandles& given);
py::tuple resolve_relu_op(py::handle input);
py::tuple resolve_max_pool2d_op(py::handle input, const PoolHandles& given);
py::tuple resolve_conv2d_relu_max_pool2d_op(py::handle input, py::handle weight, py::handle bias,
                                            const FusedHandles& given);

// The checks of a layer's constructor, from the name of the layer and its arguments to the shape of its weight, or of
// the window; and those of single arguments.
py::tuple resolve_conv2d_layer_op(py::handle layer, py::handle in_channels, py::handle out_channels,
                                  py::handle kernel_size, py::handle bias, py::handle dtype, const ConvHandles& given,
                                  py::handle layout, py::handle algorithm);
py::tuple resolve_conv_transpose2d_layer_op(py::handle layer, py::handle in_channels, py::handle out_channels,
                                            py::handle kernel_size, py::handle bias, py::handle dtype,
                                            const TransposeHandles& given);
py::tuple resolve_max_pool2d_layer_op(py::handle layer, const PoolHandles& given);
py::tuple resolve_linear_layer_op(py::handle layer, py::handle in_features, py::handle out_features, py::handle bias,
                                  py::handle dtype);
py::object truth_op(py::handle owner, py::handle name, py::handle value);
py::object integer_op(py::handle owner, py::handle name, py::handle value);

// The addresses of entry_points.h.
py::capsule entry_points_capsule();

py::list explain_op(const std::string& op, py::handle input_shape, py::handle weight_shape_or_kernel_size,
                    const py::dict& options, const std::string& dtype);

}  // namespace convx
