// A function of handles as a plain C function of the module: called without pybind11's dispatcher, whose list of
// overloads and casts cost 0.2 to 0.4 us a call, more than all checks of an operation.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>

namespace convx {

namespace py = pybind11;

template <auto function>
struct FastCall;

template <class Result, class... Arguments, Result (*function)(Arguments...)>
struct FastCall<function> {
    static PyObject* call(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
        constexpr Py_ssize_t expected = sizeof...(Arguments);
        if (count != expected) return PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", expected, count);
        try {
            return run(arguments, std::index_sequence_for<Arguments...>()).release().ptr();
        } catch (py::error_already_set& error) {
            error.restore();
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
    template <size_t... i>
    static Result run(PyObject* const* arguments, std::index_sequence<i...>) {
        return function(py::handle(arguments[i])...);
    }
};

// Ends with an empty entry; Python keeps pointing at it.
template <size_t count>
void add_functions(py::module_& module, PyMethodDef (&functions)[count]) {
    if (PyModule_AddFunctions(module.ptr(), functions) != 0) throw py::error_already_set();
}

}  // namespace convx
