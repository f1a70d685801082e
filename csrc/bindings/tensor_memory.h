// The memory of PyTorch's tensors, for convx.torch: operations read and write it where it lies, and their results are
// allocated by PyTorch, so that everything that a tensor can do, they can (resize_, torch.cat(out=)).
//
// Tensor.numpy() and torch.from_numpy() would do with less text, but each tells the memory for good that it cannot be
// resized, the user's own too.
#pragma once

#include <pybind11/numpy.h>

#include "common/check.h"

namespace convx {

namespace py = pybind11;

// An array over the elements of a tensor: its address, sizes and strides (in elements), and the dtype of NumPy's.
py::array array_at_op(py::handle address, py::handle shape, py::handle strides, py::handle dtype, py::handle owner);

// An array in C order of this dtype number over a tensor that the running operation's allocator makes.
py::array new_tensor_array(const Shape& shape, int dtype);

// While an operation runs: `self`, what its PyCFunction is bound to, gives the results of this thread their memory.
// A module stands for NumPy; everything else is called as allocate(sizes, dtype) and returns a tensor.
class ResultAllocator {
public:
    explicit ResultAllocator(PyObject* self) : before_(running_) { running_ = PyModule_Check(self) ? nullptr : self; }
    ~ResultAllocator() { running_ = before_; }
    ResultAllocator(const ResultAllocator&) = delete;
    ResultAllocator& operator=(const ResultAllocator&) = delete;

    static PyObject* running() { return running_; }

private:
    static thread_local PyObject* running_;
    PyObject* const before_;
};

}  // namespace convx
