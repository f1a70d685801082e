#include "bindings/tensor_memory.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "bindings/gil.h"

namespace convx {

namespace {

Py_intptr_t integer_of(PyObject* object) {
    const Py_ssize_t value = PyLong_AsSsize_t(object);
    if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
    return value;
}

uintptr_t address_of(py::handle integer) {
    const uintptr_t address = PyLong_AsSize_t(integer.ptr());
    if (PyErr_Occurred()) throw py::error_already_set();
    return address;
}

// `dtype` is taken over.
py::array new_array_over(uintptr_t address, int axes, Py_intptr_t* sizes, Py_intptr_t* strides, PyObject* dtype,
                         py::handle owner) {
    const auto& numpy = py::detail::npy_api::get();
    PyObject* array =
        numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, dtype, axes, sizes, strides, reinterpret_cast<void*>(address),
                                    py::detail::npy_api::NPY_ARRAY_WRITEABLE_, nullptr);
    if (!array) throw py::error_already_set();
    auto result = py::reinterpret_steal<py::array>(array);
    if (numpy.PyArray_SetBaseObject_(array, owner.inc_ref().ptr()) != 0) throw py::error_already_set();
    return result;
}

// As NumPy does with its own arrays: of fresh memory each page costs a fault, and pages of 2 MiB 512 times fewer.
void ask_for_huge_pages([[maybe_unused]] uintptr_t address, [[maybe_unused]] size_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr size_t threshold = size_t{4} << 20, page = 4096;
    if (bytes < threshold) return;
    const size_t skipped = (page - address % page) % page;
    madvise(reinterpret_cast<void*>(address + skipped), bytes - skipped, MADV_HUGEPAGE);
#endif
}

}  // namespace

thread_local PyObject* ResultAllocator::running_ = nullptr;

py::array array_at_op(py::handle address, py::handle shape, py::handle strides, py::handle dtype, py::handle owner) {
    constexpr Py_ssize_t most_axes = 32;  // of every version of NumPy
    if (!PyTuple_Check(shape.ptr()) || !PyTuple_Check(strides.ptr()) || !py::isinstance<py::dtype>(dtype))
        throw TypeError("array_at: expected (int, tuple, tuple, numpy.dtype, object)");
    const Py_ssize_t axes = PyTuple_GET_SIZE(shape.ptr());
    if (axes != PyTuple_GET_SIZE(strides.ptr()) || axes > most_axes)
        throw ShapeError("array_at: the tensor has " + std::to_string(axes) + " dimensions, expected at most 32");
    const Py_intptr_t item = py::reinterpret_borrow<py::dtype>(dtype).itemsize();
    Py_intptr_t sizes[most_axes], steps[most_axes];
    for (Py_ssize_t axis = 0; axis < axes; ++axis) {
        sizes[axis] = integer_of(PyTuple_GET_ITEM(shape.ptr(), axis));
        steps[axis] = integer_of(PyTuple_GET_ITEM(strides.ptr(), axis)) * item;
    }
    return new_array_over(address_of(address), static_cast<int>(axes), sizes, steps, dtype.inc_ref().ptr(), owner);
}

py::array new_tensor_array(const Shape& shape, int dtype) {
    static PyObject* const data_ptr = PyUnicode_InternFromString("data_ptr");
    py::tuple axes(shape.size());
    Py_intptr_t sizes[Shape::most_axes];
    size_t elements = 1;
    for (size_t axis = 0; axis < shape.size(); ++axis) {
        axes[axis] = shape[axis];
        sizes[axis] = shape[axis];
        elements *= static_cast<size_t>(shape[axis]);
    }
    const py::dtype type(dtype);
    const py::object tensor = object_returned(
        [&] { return PyObject_CallFunctionObjArgs(ResultAllocator::running(), axes.ptr(), type.ptr(), nullptr); });
    const uintptr_t address =
        address_of(object_returned([&] { return PyObject_CallMethodNoArgs(tensor.ptr(), data_ptr); }));
    ask_for_huge_pages(address, elements * static_cast<size_t>(type.itemsize()));
    return new_array_over(address, static_cast<int>(shape.size()), sizes, nullptr, type.inc_ref().ptr(), tensor);
}

}  // namespace convx
