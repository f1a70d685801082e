// The entry point of an extension module, for PYBIND11_MODULE: in a sub-interpreter the module raises ImportError.
// pybind11 would wait there for ever (it asks for the interpreter by PyGILState_Ensure, which knows the main one
// alone), and what a module keeps in statics belongs to the interpreter that imported it first.
#pragma once

#include <pybind11/pybind11.h>

namespace convx {

inline bool is_main_interpreter() {
    if (PyInterpreterState_Get() == PyInterpreterState_Main()) return true;
    PyErr_SetString(PyExc_ImportError,
                    "convx does not work in sub-interpreters, expected the main interpreter of the process. Under "
                    "mod_wsgi the directive `WSGIApplicationGroup %{GLOBAL}` runs an application there; elsewhere "
                    "processes or threads take the place of sub-interpreters.");
    return false;
}

}  // namespace convx

// The check comes with the execution of the module, because Python 3.13 and later enter PyInit_* in the main
// interpreter first; pybind11's own PyInit_* would wait before it.
#define CONVX_PYTHON_MODULE(name, variable)                                                                         \
    static int PYBIND11_CONCAT(pybind11_exec_, name)(PyObject*);                                                    \
    static int PYBIND11_CONCAT(convx_exec_, name)(PyObject * module) {                                              \
        return convx::is_main_interpreter() ? PYBIND11_CONCAT(pybind11_exec_, name)(module) : -1;                   \
    }                                                                                                               \
    PYBIND11_PLUGIN_IMPL(name) {                                                                                    \
        PYBIND11_CHECK_PYTHON_VERSION                                                                               \
        static PyModuleDef_Slot slots[] = {                                                                         \
            {Py_mod_exec, reinterpret_cast<void*>(&PYBIND11_CONCAT(convx_exec_, name))}, {0, nullptr}};             \
        static PyModuleDef definition{                                                                              \
            PyModuleDef_HEAD_INIT, PYBIND11_TOSTRING(name), nullptr, 0, nullptr, slots, nullptr, nullptr, nullptr}; \
        return PyModuleDef_Init(&definition);                                                                       \
    }                                                                                                               \
    PYBIND11_MODULE_EXEC(name, variable)
