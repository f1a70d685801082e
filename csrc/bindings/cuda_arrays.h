// Arrays on a CUDA device, of whichever library the caller uses, as the operations of convx._cuda take and make them
// (py_array.h). A library is a Python object (python/convx/_devices.py) that says what an array is and allocates new
// ones; C++ never owns device memory, so that the caller's pool and its stream order stay in charge.
#pragma once

#include "bindings/py_array.h"
#include "cuda/runtime.h"
#include "cuda/stream.h"

namespace convx {

// The arrays of one call: all of one library, all on the device of the first.
class DeviceArrays : public CallArrays<DeviceArrays> {
public:
    struct Library {
        py::handle object;
    };
    struct Precision {
        py::handle name;
    };

    DeviceArrays(const std::string& op, Library library) : CallArrays(op), library_(library.object) {}

    // Raises TypeError for what is no array of the library or no float array, ShapeError for another device.
    PyArray input(const char* name, py::handle object);
    PyArray input_or_bytes(const char* name, py::handle object);
    PyArray codes(const char* name, py::handle object);
    PyArray indices_or_codes(const char* name, py::handle object);
    PyArray output(py::handle object, const ArrayInfo& like, const Shape& shape);
    bool shares_memory(const PyArray&, const PyArray&) const { return true; }  // nothing asks more than the extents

    PyArray empty(DType dtype, const Shape& shape);
    // The same memory order where the library can (its empty_like), row-major order otherwise.
    PyArray empty_like(const PyArray& like);
    PyArray empty_bytes(const Shape& shape) { return empty_of(shape, "uint8"); }
    PyArray empty_indices(const Shape& shape) { return empty_of(shape, "int64"); }

    template <class Work>
    void run(int64_t, const Work& work) {
        const cuda::DeviceGuard guard(device_);
        work();
    }

protected:
    // Memory for the length of the call's work on the stream; none for 0 bytes.
    void* workspace(int64_t bytes);
    cuda::Stream stream() const;

private:
    struct Description {
        PyArray array;
        std::string dtype;
        bool writeable;
    };
    Description described(const char* name, py::handle object);
    Description described_float(const char* name, py::handle object, bool bytes_too);
    PyArray empty_of(const Shape& shape, const char* dtype);

    py::handle library_;
    int device_ = -1;
    std::string first_name_;
    py::list workspaces_;
};

}  // namespace convx
