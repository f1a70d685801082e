#include "bindings/arguments.h"

#include <algorithm>
#include <cmath>

namespace convx {

namespace {

bool is_sequence(py::handle object) { return py::isinstance<py::tuple>(object) || py::isinstance<py::list>(object); }

[[noreturn]] void wrong_type(const std::string& op, const char* name, py::handle object, const std::string& expected) {
    throw TypeError(op + ": " + name + " is " + type_text(object) + ", expected " + expected);
}

[[noreturn]] void wrong_value(const std::string& op, const char* name, py::handle object, const std::string& expected) {
    throw ShapeError(op + ": " + name + " is " + py::repr(object).cast<std::string>() + ", expected " + expected);
}

bool is_integer(py::handle object) { return PyIndex_Check(object.ptr()) && !PyBool_Check(object.ptr()); }

int64_t to_int64(const std::string& op, const char* name, py::handle object) {
    const py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
    if (!index) throw py::error_already_set();
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
    if (overflow) wrong_value(op, name, object, "a number of at most 64 bits");
    return value;
}

py::array numpy_array(const std::string& op, const char* name, py::handle object) {
    if (!py::isinstance<py::array>(object)) wrong_type(op, name, object, "a numpy.ndarray");
    // A mask would be ignored, which loses what it says.
    if (Py_TYPE(object.ptr()) != py::detail::npy_api::get().PyArray_Type_ && py::hasattr(object, "mask"))
        wrong_type(op, name, object, "a numpy.ndarray without a mask");
    return py::reinterpret_borrow<py::array>(object);
}

DType float_dtype(const std::string& op, const char* name, const py::array& array) {
    const py::dtype dtype = array.dtype();
    const bool native = dtype.byteorder() != '>' && dtype.byteorder() != '!';
    if (native && dtype.num() == py::dtype::num_of<float>()) return DType::float32;
    if (native && dtype.num() == py::dtype::num_of<double>()) return DType::float64;
    throw TypeError(op + ": " + name + " has dtype " + py::str(dtype).cast<std::string>() +
                    (native ? "" : " (byte-swapped)") + ", expected float32 or float64");
}

// Strides in whole elements and aligned data.
bool is_addressable(const py::array& array) {
    const py::ssize_t item = array.itemsize();
    if (reinterpret_cast<uintptr_t>(array.data()) % static_cast<size_t>(item) != 0) return false;
    for (py::ssize_t axis = 0; axis < array.ndim(); ++axis)
        if (array.shape(axis) > 1 && array.strides(axis) % item != 0) return false;
    return true;
}

// Two indices of one array at the same address. Sufficient for every view that slicing and transposing can make: each
// axis steps over everything that the smaller axes span.
bool may_overlap_itself(const py::array& array) {
    std::vector<std::pair<py::ssize_t, py::ssize_t>> axes;  // |stride|, size
    for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
        if (array.shape(axis) == 0) return false;
        if (array.shape(axis) > 1) axes.emplace_back(std::abs(array.strides(axis)), array.shape(axis));
    }
    std::sort(axes.begin(), axes.end());
    py::ssize_t span = array.itemsize();
    for (const auto& [stride, size] : axes) {
        if (stride < span) return true;
        span += stride * (size - 1);
    }
    return false;
}

}  // namespace

std::string type_text(py::handle object) {
    if (object.is_none()) return "None";
    const py::handle type = py::type::handle_of(object);
    const std::string module = py::str(type.attr("__module__")).cast<std::string>();
    const std::string name = py::str(type.attr("__qualname__")).cast<std::string>();
    const std::string full = module == "builtins" ? name : module + "." + name;
    return (std::string("aeiouAEIOU").find(full[0]) == std::string::npos ? "a " : "an ") + full;
}

std::vector<int64_t> shape_of(const py::array& array) { return {array.shape(), array.shape() + array.ndim()}; }

FloatArray float_array(const std::string& op, const char* name, py::handle object) {
    py::array array = numpy_array(op, name, object);
    const DType dtype = float_dtype(op, name, array);
    if (!is_addressable(array)) array = array.attr("copy")();
    return {array, {name, dtype, shape_of(array)}};
}

FloatArray output_array(const std::string& op, py::handle object, const ArrayInfo& like,
                        const std::vector<int64_t>& shape) {
    const py::array array = numpy_array(op, "out", object);
    FloatArray out{array, {"out", float_dtype(op, "out", array), shape_of(array)}};
    check_dtype(op, out.info, like);
    check_shape(op, out.info, shape);
    if (!array.writeable()) throw ShapeError(op + ": out is read-only, expected a writeable array");
    if (!is_addressable(array)) throw ShapeError(op + ": out is not aligned, expected strides of whole elements");
    if (may_overlap_itself(array))
        throw ShapeError(op +
                         ": out has elements that share memory with each other, expected an array without overlap");
    return out;
}

void check_no_overlap(const std::string& op, const py::array& out, const FloatArray& input, bool in_place_legal) {
    const py::module_ numpy = py::module_::import("numpy");
    if (!numpy.attr("may_share_memory")(out, input.array).cast<bool>()) return;
    if (in_place_legal && out.data() == input.array.data() &&
        std::equal(out.strides(), out.strides() + out.ndim(), input.array.strides()))
        return;
    if (numpy.attr("shares_memory")(out, input.array).cast<bool>())
        throw ShapeError(op + ": out shares memory with " + input.info.name + ", expected memory of its own");
}

py::array integer_array(const std::string& op, const char* name, py::handle object, std::initializer_list<int> dtypes,
                        const char* expected) {
    py::array array = numpy_array(op, name, object);
    const py::dtype dtype = array.dtype();
    const bool native = dtype.byteorder() != '>' && dtype.byteorder() != '!';
    if (!native || std::find(dtypes.begin(), dtypes.end(), dtype.num()) == dtypes.end())
        throw TypeError(op + ": " + name + " has dtype " + py::str(dtype).cast<std::string>() + ", expected " +
                        expected);
    if (!is_addressable(array)) array = array.attr("copy")();
    return array;
}

int64_t integer(const std::string& op, const char* name, py::handle object) {
    if (!is_integer(object)) wrong_type(op, name, object, "an integer");
    return to_int64(op, name, object);
}

double number(const std::string& op, const char* name, py::handle object) {
    const double value = PyBool_Check(object.ptr()) ? -1.0 : PyFloat_AsDouble(object.ptr());
    if (PyBool_Check(object.ptr()) || PyErr_Occurred()) {
        PyErr_Clear();
        wrong_type(op, name, object, "a number");
    }
    return value;
}

std::vector<int64_t> integers(const std::string& op, const char* name, py::handle object) {
    if (!is_sequence(object)) wrong_type(op, name, object, "a tuple of integers");
    std::vector<int64_t> values;
    for (const py::handle item : object) values.push_back(integer(op, name, item));
    return values;
}

Pair pair(const std::string& op, const char* name, py::handle object) {
    if (is_integer(object)) {
        const int64_t value = to_int64(op, name, object);
        return {value, value};
    }
    if (!is_sequence(object)) wrong_type(op, name, object, "an integer or a pair of integers (height, width)");
    const std::vector<int64_t> values = integers(op, name, object);
    if (values.size() != 2) wrong_value(op, name, object, "an integer or a pair of integers (height, width)");
    return {values[0], values[1]};
}

PaddingOption padding(const std::string& op, const char* name, py::handle object) {
    const char* expected =
        "an integer, (height, width), ((top, bottom), (left, right)), \"valid\", \"same\" or \"same_lower\"";
    PaddingOption option;
    if (py::isinstance<py::str>(object)) {
        const std::string word = object.cast<std::string>();
        if (word == "same")
            option.rule = PaddingOption::Rule::same;
        else if (word == "same_lower")
            option.rule = PaddingOption::Rule::same_lower;
        else if (word != "valid")
            wrong_value(op, name, object, expected);
        return option;
    }
    if (is_integer(object)) {
        const int64_t side = to_int64(op, name, object);
        option.sides = {Pair{side, side}, Pair{side, side}};
        return option;
    }
    if (!is_sequence(object)) wrong_type(op, name, object, expected);
    if (py::len(object) != 2) wrong_value(op, name, object, expected);
    size_t axis = 0;
    for (const py::handle item : object) option.sides[axis++] = pair(op, name, item);
    return option;
}

std::array<PaddingMode, 2> padding_mode(const std::string& op, py::handle object) {
    const char* expected = "\"zeros\", \"constant\", \"reflect\", \"replicate\", \"circular\", or a pair of these";
    const auto mode = [&](py::handle word) {
        if (!py::isinstance<py::str>(word)) wrong_type(op, "padding_mode", word, expected);
        const std::string text = word.cast<std::string>();
        const auto* found = std::find(std::begin(padding_mode_names), std::end(padding_mode_names), text);
        if (found == std::end(padding_mode_names)) wrong_value(op, "padding_mode", object, expected);
        return static_cast<PaddingMode>(found - std::begin(padding_mode_names));
    };
    if (!is_sequence(object)) {
        const PaddingMode both = mode(object);
        return {both, both};
    }
    if (py::len(object) != 2) wrong_value(op, "padding_mode", object, expected);
    return {mode(object[py::int_(0)]), mode(object[py::int_(1)])};
}

bool channels_last(const std::string& op, py::handle layout) {
    if (!py::isinstance<py::str>(layout)) wrong_type(op, "layout", layout, "\"NCHW\" or \"NHWC\"");
    const std::string word = layout.cast<std::string>();
    if (word != "NCHW" && word != "NHWC") wrong_value(op, "layout", layout, "\"NCHW\" or \"NHWC\"");
    return word == "NHWC";
}

bool relu_activation(const std::string& op, py::handle activation) {
    if (activation.is_none()) return false;
    if (!py::isinstance<py::str>(activation)) wrong_type(op, "activation", activation, "None or \"relu\"");
    if (activation.cast<std::string>() != "relu") wrong_value(op, "activation", activation, "None or \"relu\"");
    return true;
}

Algorithm conv_algorithm(const std::string& op, py::handle algorithm) {
    const char* expected = "\"auto\", \"direct\" or \"winograd\"";
    if (!py::isinstance<py::str>(algorithm)) wrong_type(op, "algorithm", algorithm, expected);
    const std::string word = algorithm.cast<std::string>();
    if (word == "auto") return Algorithm::automatic;
    if (word == "direct") return Algorithm::direct;
    if (word == "winograd") return Algorithm::winograd;
    wrong_value(op, "algorithm", algorithm, expected);
}

bool truth(const std::string& op, const char* name, py::handle object) {
    const std::string type = py::str(py::type::handle_of(object).attr("__name__")).cast<std::string>();
    if (!PyBool_Check(object.ptr()) && type != "bool" && type != "bool_") wrong_type(op, name, object, "a bool");
    return py::bool_(py::reinterpret_borrow<py::object>(object));
}

std::array<bool, 3> output_mask(const std::string& op, py::handle object) {
    const char* expected = "three bools: (grad_input, grad_weight, grad_bias)";
    if (!is_sequence(object)) wrong_type(op, "output_mask", object, expected);
    if (py::len(object) != 3) wrong_value(op, "output_mask", object, expected);
    std::array<bool, 3> mask{};
    size_t i = 0;
    for (const py::handle item : object) mask[i++] = truth(op, "output_mask", item);
    return mask;
}

}  // namespace convx
