// Arrays on a CUDA device, of whichever library the caller uses. A library is a Python object
// (python/convx/_devices.py) that says what an array is and allocates new ones; C++ never owns device memory, so that
// the caller's pool and its stream order stay in charge.
#pragma once

#include "bindings/arguments.h"
#include "cuda/device_tensor.h"
#include "cuda/stream.h"

namespace convx {

struct DeviceArray {
    ArrayInfo info;
    Shape stride;  // elements
    void* data;
    int device;
    bool writeable;
    py::object array;
    int64_t item_bytes = 0;  // of codes, indices and masks
};

// The arrays of one call: all of one library, all on the device of the first.
class DeviceArrays {
public:
    DeviceArrays(const std::string& op, py::handle library) : op_(op), library_(library) {}

    // Raises TypeError for what is no array of the library or no float array, ShapeError for another device.
    DeviceArray input(const char* name, py::handle object);
    // The same, or an array of bytes, which has item_bytes 1.
    DeviceArray input_or_bytes(const char* name, py::handle object);
    // An array that is written: of the given shape and dtype, without overlaps.
    DeviceArray output(py::handle object, const ArrayInfo& like, const Shape& shape);
    void check_no_overlap(const DeviceArray& out, const DeviceArray& in, bool in_place_legal = false) const;
    DeviceArray empty(DType dtype, const Shape& shape);
    // The same memory order where the library can (its empty_like), row-major order otherwise.
    DeviceArray empty_like(const DeviceArray& like);
    // Any array with one of the given dtypes, for codes and indices.
    DeviceArray integers(const char* name, py::handle object, std::initializer_list<const char*> dtypes,
                         const char* expected);
    DeviceArray empty_integers(const char* dtype, const Shape& shape);
    // Memory for the length of the call's work on the stream; none for 0 bytes.
    void* workspace(int64_t bytes);

    int device() const { return device_; }
    cuda::Stream stream() const;

private:
    static py::tuple shape_tuple(const Shape& shape);
    DeviceArray described(const char* name, py::handle object, std::string& dtype);
    [[noreturn]] void wrong_dtype(const char* name, const std::string& dtype, const char* expected) const;

    const std::string& op_;
    py::handle library_;
    int device_ = -1;
    std::string first_name_;
    py::list workspaces_;
};

// In logical N, C, H, W order.
cuda::DeviceTensor image_tensor(const DeviceArray& array, bool channels_last);
cuda::DeviceTensor plain_tensor(const DeviceArray& array);
cuda::DeviceTensor vector_tensor(const DeviceArray& array);

}  // namespace convx
