// From Python objects to the plain words of common/check.h. A wrong type is a TypeError that names the operation, the
// argument, what it got and what it expected; whether the values make sense is for check.cpp.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "bindings/gil.h"
#include "common/check.h"

namespace convx {

namespace py = pybind11;

// "a list", "a torch.Tensor": for messages.
std::string type_text(py::handle object);

// An argument's name in messages; put together only where there is a message.
struct ArgumentName {
    ArgumentName(const char* whole) : ArgumentName("", whole) {}
    ArgumentName(const char* first, const char* rest) : prefix(first), name(rest) {}
    std::string text() const { return std::string(prefix) + name; }
    const char* prefix;
    const char* name;
};

[[noreturn]] void wrong_type(const std::string& op, ArgumentName name, py::handle object, const std::string& expected);

int64_t integer(const std::string& op, ArgumentName name, py::handle object);
double number(const std::string& op, ArgumentName name, py::handle object);
Pair pair(const std::string& op, ArgumentName name, py::handle object);
// Nothing for None and for an empty sequence.
std::optional<Pair> optional_pair(const std::string& op, ArgumentName name, py::handle object);
PaddingOption padding(const std::string& op, ArgumentName name, py::handle object);
std::array<PaddingMode, 2> padding_mode(const std::string& op, py::handle object);
bool channels_last(const std::string& op, py::handle layout);
bool relu_activation(const std::string& op, py::handle activation);
Algorithm conv_algorithm(const std::string& op, py::handle algorithm);  // "auto": the default (default_algorithm.h)
Algorithm default_algorithm_option(const std::string& op, py::handle algorithm);  // "auto" or "direct"
bool truth(const std::string& op, const char* name, py::handle object);
std::array<bool, 3> output_mask(const std::string& op, py::handle object);
Shape sizes(const std::string& op, const char* name, py::handle object);

}  // namespace convx
