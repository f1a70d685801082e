#include "bindings/arguments.h"

#include <algorithm>
#include <iterator>

#include "bindings/default_algorithm.h"

namespace convx {

namespace {

// Of a NumPy array, none of anything else: one without axes is a single number.
py::ssize_t axes_of(py::handle object) {
    return py::isinstance<py::array>(object) ? py::reinterpret_borrow<py::array>(object).ndim() : 0;
}
bool is_sequence(py::handle object) {
    return PyTuple_Check(object.ptr()) || PyList_Check(object.ptr()) || axes_of(object) > 0;
}
size_t length(py::handle sequence) {
    const py::ssize_t size = PySequence_Size(sequence.ptr());
    if (size < 0) throw py::error_already_set();
    return static_cast<size_t>(size);
}
// Owned and checked: a list may change while one of its items is asked for its value.
py::object item(py::handle sequence, size_t i) {
    PyObject* found = PySequence_GetItem(sequence.ptr(), static_cast<py::ssize_t>(i));
    if (!found) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(found);
}

bool is_text(py::handle object) { return PyUnicode_Check(object.ptr()); }
bool is_word(py::handle text, const char* word) { return PyUnicode_CompareWithASCIIString(text.ptr(), word) == 0; }

[[noreturn]] void wrong_value(const std::string& op, ArgumentName name, py::handle object,
                              const std::string& expected) {
    throw ShapeError(op + ": " + name.text() + " is " + repr_of(object) + ", expected " + expected);
}

// Everything that says that it is one: NumPy's integers, and arrays and tensors without an axis.
bool is_integer(py::handle object) {
    if (PyLong_CheckExact(object.ptr())) return true;
    return PyIndex_Check(object.ptr()) && axes_of(object) == 0 && !PyBool_Check(object.ptr());
}

// A tensor looks like an integer and says only when it is asked that it has too many elements or fractions, in words
// that name no argument. Errors of another class are the object's own: JAX's explain why a traced value is none.
int64_t to_int64(const std::string& op, ArgumentName name, py::handle object, const char* expected) {
    const py::object index =
        py::reinterpret_steal<py::object>(returned([object] { return PyNumber_Index(object.ptr()); }));
    if (!index) {
        py::error_already_set error;
        if (!error.type().is(py::handle(PyExc_TypeError))) throw error;
        wrong_type(op, name, object, expected);
    }
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
    if (overflow) wrong_value(op, name, object, "a number of at most 64 bits");
    return value;
}

// NumPy turns bools, complex numbers and arrays with axes into a float too, the last two with no more than a warning.
bool is_real(py::handle object) {
    if (PyFloat_Check(object.ptr()) || PyLong_Check(object.ptr())) return !PyBool_Check(object.ptr());
    const py::object numpy = object_returned([] { return PyImport_ImportModule("numpy"); });
    if (!py::isinstance<py::array>(object) && !py::isinstance(object, numpy.attr("generic"))) return true;
    const std::string kind = object.attr("dtype").attr("kind").cast<std::string>();
    return axes_of(object) == 0 && (kind == "f" || kind == "i" || kind == "u");
}

}  // namespace

void wrong_type(const std::string& op, ArgumentName name, py::handle object, const std::string& expected) {
    throw TypeError(op + ": " + name.text() + " is " + type_text(object) + ", expected " + expected);
}

std::string type_text(py::handle object) {
    if (object.is_none()) return "None";
    const py::handle type = py::type::handle_of(object);
    const std::string module = py::str(type.attr("__module__")).cast<std::string>();
    const std::string name = py::str(type.attr("__qualname__")).cast<std::string>();
    const std::string full = module == "builtins" ? name : module + "." + name;
    return (std::string("aeiouAEIOU").find(full[0]) == std::string::npos ? "a " : "an ") + full;
}

int64_t integer(const std::string& op, ArgumentName name, py::handle object) {
    if (!is_integer(object)) wrong_type(op, name, object, "an integer");
    return to_int64(op, name, object, "an integer");
}

double number(const std::string& op, ArgumentName name, py::handle object) {
    if (!is_real(object)) wrong_type(op, name, object, "a number");
    const double value = returned([object] { return PyFloat_AsDouble(object.ptr()); });
    if (value == -1.0 && PyErr_Occurred()) {
        const bool overflow = PyErr_ExceptionMatches(PyExc_OverflowError);
        PyErr_Clear();
        if (overflow) wrong_value(op, name, object, "a number in the range of float64");
        wrong_type(op, name, object, "a number");
    }
    return value;
}

Shape sizes(const std::string& op, const char* name, py::handle object) {
    if (!is_sequence(object) || axes_of(object) > 1) wrong_type(op, name, object, "a tuple of integers");
    int64_t values[Shape::most_axes];
    const size_t count = length(object);
    if (count > Shape::most_axes)
        throw ShapeError(op + ": " + name + " has " + std::to_string(count) + " dimensions, expected at most " +
                         std::to_string(Shape::most_axes));
    for (size_t i = 0; i < count; ++i) values[i] = integer(op, name, item(object, i));
    const Shape shape(values, values + count);
    if (std::any_of(shape.begin(), shape.end(), [](int64_t size) { return size < 0; }))
        throw ShapeError(op + ": " + name + " is " + shape_text(shape) + ", expected sizes >= 0");
    return shape;
}

Pair pair(const std::string& op, ArgumentName name, py::handle object) {
    const char* expected = "an integer or a pair of integers (height, width)";
    if (is_integer(object)) {
        const int64_t value = to_int64(op, name, object, expected);
        return {value, value};
    }
    if (!is_sequence(object)) wrong_type(op, name, object, expected);
    const size_t count = length(object);
    if (count != 1 && count != 2) wrong_value(op, name, object, expected);
    const int64_t height = integer(op, name, item(object, 0));
    return {height, count == 1 ? height : integer(op, name, item(object, 1))};  // one is for both axes, as in PyTorch
}

std::optional<Pair> optional_pair(const std::string& op, ArgumentName name, py::handle object) {
    if (object.is_none() || (is_sequence(object) && length(object) == 0)) return std::nullopt;
    return pair(op, name, object);
}

PaddingOption padding(const std::string& op, ArgumentName name, py::handle object) {
    const char* expected =
        "an integer, (height, width), ((top, bottom), (left, right)), \"valid\", \"same\" or \"same_lower\"";
    PaddingOption option;
    if (is_integer(object)) {
        const int64_t side = to_int64(op, name, object, expected);
        option.sides = {Pair{side, side}, Pair{side, side}};
    } else if (is_text(object)) {
        if (is_word(object, "same"))
            option.rule = PaddingOption::Rule::same;
        else if (is_word(object, "same_lower"))
            option.rule = PaddingOption::Rule::same_lower;
        else if (!is_word(object, "valid"))
            wrong_value(op, name, object, expected);
    } else {
        if (!is_sequence(object)) wrong_type(op, name, object, expected);
        const size_t count = length(object);
        if (count == 1 && !is_sequence(item(object, 0))) {
            const int64_t side = integer(op, name, item(object, 0));
            option.sides = {Pair{side, side}, Pair{side, side}};
        } else {
            if (count != 2) wrong_value(op, name, object, expected);
            option.sides = {pair(op, name, item(object, 0)), pair(op, name, item(object, 1))};
        }
    }
    return option;
}

std::array<PaddingMode, 2> padding_mode(const std::string& op, py::handle object) {
    const char* expected = "\"zeros\", \"constant\", \"reflect\", \"replicate\", \"circular\", or a pair of these";
    const auto mode = [&](py::handle word) {
        if (!is_text(word)) wrong_type(op, "padding_mode", word, expected);
        const auto* found = std::find_if(std::begin(padding_mode_names), std::end(padding_mode_names),
                                         [&](const char* name) { return is_word(word, name); });
        if (found == std::end(padding_mode_names)) wrong_value(op, "padding_mode", object, expected);
        return static_cast<PaddingMode>(found - std::begin(padding_mode_names));
    };
    if (!is_sequence(object)) {
        const PaddingMode both = mode(object);
        return {both, both};
    }
    if (length(object) != 2) wrong_value(op, "padding_mode", object, expected);
    return {mode(item(object, 0)), mode(item(object, 1))};
}

bool channels_last(const std::string& op, py::handle layout) {
    if (!is_text(layout)) wrong_type(op, "layout", layout, "\"NCHW\" or \"NHWC\"");
    if (is_word(layout, "NCHW")) return false;
    if (!is_word(layout, "NHWC")) wrong_value(op, "layout", layout, "\"NCHW\" or \"NHWC\"");
    return true;
}

bool relu_activation(const std::string& op, py::handle activation) {
    if (activation.is_none()) return false;
    if (!is_text(activation)) wrong_type(op, "activation", activation, "None or \"relu\"");
    if (!is_word(activation, "relu")) wrong_value(op, "activation", activation, "None or \"relu\"");
    return true;
}

Algorithm conv_algorithm(const std::string& op, py::handle algorithm) {
    const char* expected = "\"auto\", \"direct\", \"winograd\" or a method of convx.explain";
    if (!is_text(algorithm)) wrong_type(op, "algorithm", algorithm, expected);
    if (is_word(algorithm, "auto")) return default_algorithm();
    for (size_t i = 1; i < algorithm_names().size(); ++i)
        if (is_word(algorithm, algorithm_names()[i])) return static_cast<Algorithm>(i);
    wrong_value(op, "algorithm", algorithm, expected);
}

Algorithm default_algorithm_option(const std::string& op, py::handle algorithm) {
    const char* expected = "\"auto\" or \"direct\"";
    if (!is_text(algorithm)) wrong_type(op, "algorithm", algorithm, expected);
    if (is_word(algorithm, "auto")) return Algorithm::automatic;
    if (is_word(algorithm, "direct")) return Algorithm::direct;
    wrong_value(op, "algorithm", algorithm, expected);
}

bool truth(const std::string& op, const char* name, py::handle object) {
    if (PyBool_Check(object.ptr())) return object.ptr() == Py_True;
    const std::string type = py::str(py::type::handle_of(object).attr("__name__")).cast<std::string>();
    if (type != "bool" && type != "bool_") wrong_type(op, name, object, "a bool");
    return py::bool_(py::reinterpret_borrow<py::object>(object));
}

std::array<bool, 3> output_mask(const std::string& op, py::handle object) {
    const char* expected = "three bools: (grad_input, grad_weight, grad_bias)";
    if (!is_sequence(object)) wrong_type(op, "output_mask", object, expected);
    if (length(object) != 3) wrong_value(op, "output_mask", object, expected);
    std::array<bool, 3> mask{};
    for (size_t i = 0; i < 3; ++i) mask[i] = truth(op, "output_mask", item(object, i));
    return mask;
}

}  // namespace convx
