#include "bindings/jax_calls.h"

#include <algorithm>
#include <string_view>

#include "bindings/options.h"

namespace convx::jax {

namespace {

// Where no message of check.cpp fits: only a caller other than python/convx/jax gets here.
[[noreturn]] void wrong(const std::string& what) { throw ShapeError("convx: " + what); }

Array described(const ffi::AnyBuffer& buffer, const char* name) {
    const auto sizes = buffer.dimensions();
    const ffi::DataType type = buffer.element_type();
    Array array = dense_array(name, {sizes.begin(), sizes.end()}, buffer.untyped_data(),
                              type == ffi::DataType::F64 ? DType::float64 : DType::float32);
    if (type == ffi::DataType::U8) array.item_bytes = 1;
    if (type == ffi::DataType::U32) array.item_bytes = 8;  // two of them are an index
    return array;
}

template <size_t count>
size_t index_of(const char* const (&names)[count], std::string_view name) {
    const auto* const found = std::find(std::begin(names), std::end(names), name);
    if (found == std::end(names)) wrong("an XLA call has the word " + std::string(name));
    return static_cast<size_t>(found - std::begin(names));
}

}  // namespace

Array dense_array(const char* name, const Shape& shape, void* data, DType dtype) {
    int64_t stride[Shape::most_axes], dense = 1;
    for (size_t axis = shape.size(); axis-- > 0; dense *= shape[axis]) stride[axis] = dense;
    return {{name, dtype, shape}, {stride, stride + shape.size()}, data};
}

Array Call::argument(size_t i, const char* name) const {
    const auto found = arguments_.get<ffi::AnyBuffer>(i);
    if (!found.has_value()) wrong(std::string("an XLA call lacks ") + name);
    return described(*found, name);
}

Array Call::result(size_t i, const char* name) const {
    auto found = results_.get<ffi::AnyBuffer>(i);
    if (!found.has_value()) wrong(std::string("an XLA call lacks ") + name);
    return described(**found, name);
}

template <class T>
T Call::attribute(const std::string& name) const {
    auto found = attributes_.get<T>(name);
    if (!found.has_value()) wrong("an XLA call has no attribute " + name + " of the right type");
    return *found;
}

Pair Call::pair(const std::string& name) const {
    const auto values = attribute<ffi::Span<const int64_t>>(name);
    if (values.size() != 2) wrong("an XLA call has a " + name + " of " + std::to_string(values.size()) + " numbers");
    return {values[0], values[1]};
}

PaddingOption Call::padding(const std::string& name) const {
    const auto sides = attribute<ffi::Span<const int64_t>>(name);
    if (sides.size() != 4) wrong("an XLA call has a " + name + " of " + std::to_string(sides.size()) + " numbers");
    PaddingOption option;
    option.sides = {Pair{sides[0], sides[1]}, Pair{sides[2], sides[3]}};
    return option;
}

ConvOptions Call::conv_options() const {
    ConvOptions options;
    options.stride = pair("stride");
    options.padding = padding("padding");
    options.dilation = pair("dilation");
    options.groups = attribute<int64_t>("groups");
    options.padding_mode = {
        static_cast<PaddingMode>(index_of(padding_mode_names, attribute<std::string_view>("padding_mode_h"))),
        static_cast<PaddingMode>(index_of(padding_mode_names, attribute<std::string_view>("padding_mode_w")))};
    options.padding_value = attribute<double>("padding_value");
    options.relu = attribute<bool>("relu");
    options.channels_last = attribute<bool>("channels_last");
    if (!cpu->find_algorithm(attribute<std::string_view>("algorithm"), options.algorithm))
        throw ShapeError("algorithm: unknown");
    return options;
}

PoolOptions Call::pool_options(const std::string& prefix) const {
    PoolOptions options;
    options.kernel = pair(prefix + "kernel_size");
    options.stride = pair(prefix + "stride");
    options.padding = padding(prefix + "padding");
    options.dilation = pair(prefix + "dilation");
    options.ceil_mode = attribute<bool>(prefix + "ceil_mode");
    options.channels_last = attribute<bool>("channels_last");
    return options;
}

}  // namespace convx::jax
