// Giving up the interpreter and getting it back, also from one that ends meanwhile.
//
// Python ends a daemon thread that asks for an interpreter which is shutting down, in versions before 3.14 by
// pthread_exit: that unwinds the thread's stack as an exception does. A frame that may not throw, or a catch (...) that
// does not throw again, then aborts the whole process, and a destructor that releases a Python object crashes it. So
// such a thread stops where it is, as those of 3.14 do, before any destructor runs, and the process ends without it.
#pragma once

#include <pybind11/pybind11.h>

#include <unistd.h>

#include <string>
#include <utility>

namespace convx {

namespace py = pybind11;

[[noreturn]] inline void stop_thread() {
    for (;;) pause();
}

// What a function of Python's returns that may give up the interpreter: one that runs Python code, or NumPy's loops.
// `call` must not throw, nor own anything.
template <class Call>
auto returned(const Call& call) {
    try {
        return call();
    } catch (...) {  // only pthread_exit comes here
        stop_thread();
    }
}
// The same as an object of one's own, or the error.
template <class Call>
py::object object_returned(const Call& call) {
    PyObject* const object = returned(call);
    if (!object) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(object);
}
template <class... Arguments>
py::object result_of(const py::object& function, Arguments&&... arguments) {
    const py::tuple tuple = py::make_tuple(std::forward<Arguments>(arguments)...);
    return object_returned([&] { return PyObject_Call(function.ptr(), tuple.ptr(), nullptr); });
}

// Those of dtypes are written in Python.
inline std::string repr_of(py::handle object) {
    return object_returned([object] { return PyObject_Repr(object.ptr()); }).cast<std::string>();
}
inline std::string str_of(py::handle object) {
    return object_returned([object] { return PyObject_Str(object.ptr()); }).cast<std::string>();
}

class WithoutGil {
public:
    WithoutGil() : state_(PyEval_SaveThread()) {}
    ~WithoutGil() {
        returned([this] { PyEval_RestoreThread(state_); });
    }
    WithoutGil(const WithoutGil&) = delete;
    WithoutGil& operator=(const WithoutGil&) = delete;

private:
    PyThreadState* const state_;
};

}  // namespace convx
