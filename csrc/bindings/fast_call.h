// A function of handles as a plain C function of the module: called without pybind11's dispatcher, whose list of
// overloads and casts cost 0.2 to 0.4 us a call, more than all checks of an operation.
#pragma once

#include <cxxabi.h>

#include <cstring>
#include <tuple>
#include <type_traits>

#include "bindings/gil.h"
#include "bindings/tensor_memory.h"

namespace convx {

template <auto function>
struct FastCall;

template <class Result, class... Arguments, Result (*function)(Arguments...)>
struct FastCall<function> {
    static PyObject* call(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
        constexpr Py_ssize_t expected = (handles_in<Arguments> + ...);
        if (count != expected) return PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", expected, count);
        const ResultAllocator allocator(self);
        try {
            return std::apply(function, std::tuple<std::decay_t<Arguments>...>{take<Arguments>(arguments)...})
                .release()
                .ptr();
        } catch (py::error_already_set& error) {
            error.restore();
#ifdef __GLIBCXX__
        } catch (abi::__forced_unwind&) {  // NumPy or Python code that was called has been told to end the thread
            stop_thread();
#endif
        } catch (...) {
            py::detail::try_translate_exceptions();
        }
        return nullptr;
    }

    static PyMethodDef named(const char* name) {
        const auto pointer = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call));
        return {name, pointer, METH_FASTCALL, nullptr};
    }

private:
    // A handle, or a struct of handles alone (options.h); an empty struct has none.
    template <class T>
    static constexpr Py_ssize_t handles_in = sizeof(std::decay_t<T>) / sizeof(PyObject*);

    template <class T>
    static std::decay_t<T> take(PyObject* const*& arguments) {
        static_assert(std::is_trivially_copyable_v<std::decay_t<T>> && sizeof(py::handle) == sizeof(PyObject*));
        std::decay_t<T> value;
        if constexpr (handles_in<T> > 0) std::memcpy(static_cast<void*>(&value), arguments, sizeof value);
        arguments += handles_in<T>;
        return value;
    }
};

// Ends with an empty entry; Python keeps pointing at it.
template <size_t count>
void add_functions(py::module_& module, PyMethodDef (&functions)[count]) {
    if (PyModule_AddFunctions(module.ptr(), functions) != 0) throw py::error_already_set();
}

// The same functions as attributes of a namespace, with results in the memory that `allocate` gives.
template <size_t count>
py::object functions_with(py::handle allocate, PyMethodDef (&functions)[count]) {
    py::object space = py::module_::import("types").attr("SimpleNamespace")();
    for (size_t i = 0; i + 1 < count; ++i) {
        PyObject* const function = PyCFunction_NewEx(&functions[i], allocate.ptr(), nullptr);
        if (!function) throw py::error_already_set();
        py::setattr(space, functions[i].ml_name, py::reinterpret_steal<py::object>(function));
    }
    return space;
}

}  // namespace convx
