// NumPy's arrays, as the operations of convx._cpu take and make them (py_array.h).
#pragma once

#include "bindings/py_array.h"

namespace convx {

class HostArrays : public CallArrays<HostArrays> {
public:
    struct Library {};    // the arguments that only the functions of convx._cuda have
    struct Precision {};  // (fast_call.h counts the handles of a struct: none)

    HostArrays(const std::string& op, Library) : CallArrays(op) {}

    // float32 or float64 in native byte order, in elements that can be addressed by whole strides. Elements that cannot
    // (fields of packed records) are copied first, the only copy of an input that convx makes.
    PyArray input(const char* name, py::handle object);
    // The same, or bytes that lie side by side (a mask).
    PyArray input_or_bytes(const char* name, py::handle object);
    PyArray codes(const char* name, py::handle object);
    PyArray indices_or_codes(const char* name, py::handle object);
    // An array that is written. Without a copy: exact shape, writeable, no element twice.
    PyArray output(py::handle object, const ArrayInfo& like, const Shape& shape);
    bool shares_memory(const PyArray& out, const PyArray& input);

    // In NumPy's memory, or in that of the running operation's allocator (tensor_memory.h).
    PyArray empty(DType dtype, const Shape& shape);
    PyArray empty_like(const PyArray& like);  // with its memory order
    PyArray empty_bytes(const Shape& shape);
    PyArray empty_indices(const Shape& shape);

    // Runs work() while other Python threads may go on, unless it is over before one could start: up to this many
    // elements and multiplications, about a microsecond, of which giving up the interpreter and getting it back would
    // be 60 ns.
    static constexpr int64_t tiny_work = 4096;
    template <class Work>
    void run(int64_t amount, const Work& work) {
        if (amount <= tiny_work) return work();
        const WithoutGil release;
        work();
    }

private:
    PyArray integers(const char* name, py::handle object, bool indices_too, const char* expected);
};

}  // namespace convx
