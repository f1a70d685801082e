#include "common/check.h"

#include <algorithm>

namespace convx {

namespace {

const char* axis_word(int axis) { return axis == 0 ? "height" : "width"; }

std::string pair_text(const Pair& pair) { return "(" + std::to_string(pair[0]) + ", " + std::to_string(pair[1]) + ")"; }

int64_t checked_product(const std::string& op, const char* what, int64_t a, int64_t b) {
    int64_t product;
    if (__builtin_mul_overflow(a, b, &product))
        throw ShapeError(op + ": " + what + " of " + std::to_string(a) + " x " + std::to_string(b) +
                         " does not fit 64 bits");
    return product;
}

// Elements and bytes of a tensor have to be countable.
void check_size(const std::string& op, const char* what, const std::array<int64_t, 4>& shape, DType dtype) {
    int64_t bytes = item_size(dtype);
    for (const int64_t size : shape)
        if (size != 0) bytes = checked_product(op, what, bytes, size);
}

std::array<int64_t, 4> nchw_shape(const std::string& op, const ArrayInfo& array, bool channels_last) {
    const Shape& s = array.shape;
    if (s.size() != 3 && s.size() != 4)
        throw ShapeError(op + ": " + array.name + " has " + std::to_string(s.size()) +
                         " dimensions, expected 4 or 3 (unbatched)");
    const size_t first = s.size() - 3;
    const int64_t n = first ? s[0] : 1;
    if (channels_last) return {n, s[first + 2], s[first], s[first + 1]};
    return {n, s[first], s[first + 1], s[first + 2]};
}

void check_size_limit(const std::string& op, int axis, int64_t size) {
    if (size > size_limit)
        throw ShapeError(op + ": a size of " + std::to_string(size) + " in " + axis_word(axis) + ", expected at most " +
                         std::to_string(size_limit));
}

void check_window(const std::string& op, int axis, const Axis& result) {
    for (const int64_t size : {result.kernel, result.stride, result.dilation, result.input})
        check_size_limit(op, axis, size);
    checked_product(op, "dilated kernel", result.dilation, result.kernel);
    if (result.extent() > size_limit)
        throw ShapeError(op + ": the window spans " + std::to_string(result.extent()) + " cells in " + axis_word(axis) +
                         ", expected at most " + std::to_string(size_limit));
}

const Pair& checked_sides(const std::string& op, int axis, const PaddingOption& padding, const char* prefix) {
    const Pair& sides = padding.sides[static_cast<size_t>(axis)];
    for (const int64_t side : sides)
        if (side < 0 || side > size_limit)
            throw ShapeError(op + ": " + prefix + "padding is " + pair_text(sides) + " in " + axis_word(axis) +
                             ", expected numbers from 0 to " + std::to_string(size_limit));
    return sides;
}

// Kernel, stride, dilation and padding of one axis, and that at least one window fits.
Axis check_axis(const std::string& op, int axis, Axis result, const PaddingOption& padding, const char* prefix = "") {
    check_window(op, axis, result);
    const int64_t extent = result.extent();
    if (padding.rule == PaddingOption::Rule::explicit_sides) {
        const Pair& sides = checked_sides(op, axis, padding, prefix);
        result.pad_before = sides[0];
        result.pad_after = sides[1];
    } else {
        const int64_t out = (result.input + result.stride - 1) / result.stride;
        const int64_t total = std::max<int64_t>(0, (out - 1) * result.stride + extent - result.input);
        const bool lower = padding.rule == PaddingOption::Rule::same_lower;
        result.pad_before = lower ? total - total / 2 : total / 2;
        result.pad_after = total - result.pad_before;
    }
    if (result.output() < 1)
        throw ShapeError(op + ": the window spans " + std::to_string(extent) + " cells in " + axis_word(axis) +
                         ", expected at most " + std::to_string(result.padded()) + " (input " +
                         std::to_string(result.input) + " + padding " + std::to_string(result.pad_before) + " + " +
                         std::to_string(result.pad_after) + ")");
    return result;
}

// The axis of the convolution whose input gradient a transposed one is: `result` has its kernel, stride and dilation,
// and as input what is its output, `size` cells of the transposed convolution's input. `out` becomes the output's size.
Axis check_transposed_axis(const std::string& op, int axis, Axis result, int64_t output_padding,
                           const PaddingOption& padding, int64_t& out) {
    check_window(op, axis, result);
    const int64_t size = result.input, most = std::max(result.stride, result.dilation) - 1;
    if (output_padding < 0 || output_padding > most)
        throw ShapeError(op + ": output_padding is " + std::to_string(output_padding) + " in " + axis_word(axis) +
                         ", expected 0 to " + std::to_string(most) + " (less than the larger of stride " +
                         std::to_string(result.stride) + " and dilation " + std::to_string(result.dilation) + ")");
    const int64_t strided = checked_product(op, "strided input", size, result.stride);
    check_size_limit(op, axis, strided);
    if (padding.rule != PaddingOption::Rule::explicit_sides) {
        if (output_padding != 0)
            throw ShapeError(op + ": output_padding is " + std::to_string(output_padding) + " in " + axis_word(axis) +
                             ", expected 0: padding \"same\" or \"same_lower\" makes the output stride times as "
                             "large as the input");
        result.input = out = strided;
        return check_axis(op, axis, result, padding);
    }
    const Pair& sides = checked_sides(op, axis, padding, "");
    const int64_t span = strided - result.stride + result.extent();  // of all windows
    out = span - sides[0] - sides[1] + output_padding;
    if (out < 1)
        throw ShapeError(op + ": padding is " + pair_text(sides) + " in " + axis_word(axis) + ", expected at most " +
                         std::to_string(span + output_padding - 1) + " in all (the windows span " +
                         std::to_string(span) + " cells, output_padding adds " + std::to_string(output_padding) + ")");
    // Output padding is taken back from the padding at the end; what is left of it are cells behind all windows, fewer
    // than the stride of which the convolution may have in its input without having one more window there.
    result.pad_before = sides[0];
    result.pad_after = std::max<int64_t>(0, sides[1] - output_padding);
    const int64_t behind = std::max<int64_t>(0, output_padding - sides[1]);
    result.input =
        std::max<int64_t>(0, span - result.pad_before - result.pad_after + std::min(behind, result.stride - 1));
    return result;
}

void check_border(const std::string& op, int axis, const Axis& checked) {
    int64_t most;
    if (checked.mode == PaddingMode::reflect)
        most = checked.input - 1;
    else if (checked.mode == PaddingMode::circular)
        most = checked.input;
    else
        return;
    const int64_t pad = std::max(checked.pad_before, checked.pad_after);
    if (pad > most)
        throw ShapeError(op + ": padding is " + std::to_string(pad) + " in " + axis_word(axis) + ", expected at most " +
                         std::to_string(most) + " (padding_mode \"" +
                         padding_mode_names[static_cast<size_t>(checked.mode)] + "\", input " +
                         std::to_string(checked.input) + ")");
}

void check_winograd(const std::string& op, const Axis& h, const Axis& w, const ConvOptions& options) {
    if (options.algorithm != Algorithm::winograd) return;
    const Pair kernel{h.kernel, w.kernel};
    if (kernel != Pair{3, 3} || options.stride != Pair{1, 1} || options.dilation != Pair{1, 1})
        throw ShapeError(op + ": algorithm is \"winograd\" with kernel " + pair_text(kernel) + ", stride " +
                         pair_text(options.stride) + " and dilation " + pair_text(options.dilation) +
                         ", expected (3, 3), (1, 1) and (1, 1)");
}

// The weight of a convolution and the options that need no groups; `channels`: its first two axes.
void check_weight(const std::string& op, const ArrayInfo& weight, const ArrayInfo& input, const ConvOptions& options,
                  const char* channels) {
    if (weight.shape.size() != 4)
        throw ShapeError(op + ": weight has " + std::to_string(weight.shape.size()) + " dimensions, expected 4: (" +
                         channels + " / groups, kernel height, kernel width)");
    check_dtype(op, weight, input);
    check_positive(op, "", "stride", options.stride);
    check_positive(op, "", "dilation", options.dilation);
}

void check_sizes_and_bias(const std::string& op, const ArrayInfo& input, const ArrayInfo& weight, const ArrayInfo* bias,
                          int64_t least, int64_t out_channels) {
    if (std::min({least, weight.shape[2], weight.shape[3]}) < 1)
        throw ShapeError(op + ": input " + shape_text(input.shape) + " and weight " + shape_text(weight.shape) +
                         " have a size of zero, expected zero only for the batch or the input channels");
    if (!bias) return;
    check_dtype(op, *bias, input);
    check_shape(op, *bias, {out_channels});
}

}  // namespace

void check_positive(const std::string& op, const char* prefix, const char* name, const Pair& pair) {
    if (pair[0] < 1 || pair[1] < 1)
        throw ShapeError(op + ": " + prefix + name + " is " + pair_text(pair) + ", expected positive numbers");
}

void check_groups(const std::string& op, int64_t groups, int64_t in_channels, int64_t out_channels) {
    if (groups < 1) throw ShapeError(op + ": groups is " + std::to_string(groups) + ", expected a positive number");
    if (in_channels % groups != 0)
        throw ShapeError(op + ": groups is " + std::to_string(groups) + ", expected a divisor of the " +
                         std::to_string(in_channels) + " input channels");
    if (out_channels % groups != 0)
        throw ShapeError(op + ": groups is " + std::to_string(groups) + ", expected a divisor of the " +
                         std::to_string(out_channels) + " output channels");
}

namespace {

// The axes are yet to be checked.
ConvProblem problem_of(const ArrayInfo& input, const ArrayInfo& weight, const ConvOptions& options, int64_t batch,
                       int64_t in_channels, int64_t out_channels, const Pair& sizes) {
    ConvProblem problem;
    problem.dtype = input.dtype;
    problem.batch = batch;
    problem.in_channels = in_channels;
    problem.out_channels = out_channels;
    problem.groups = options.groups;
    problem.padding_value = options.padding_value;
    problem.relu = options.relu;
    problem.algorithm = options.algorithm;
    problem.channels_last = options.channels_last;
    for (const size_t i : {0, 1}) {
        Axis& axis = i == 0 ? problem.h : problem.w;
        axis.input = sizes[i];
        axis.kernel = weight.shape[i + 2];
        axis.stride = options.stride[i];
        axis.dilation = options.dilation[i];
        axis.mode = options.padding_mode[i];
    }
    return problem;
}

}  // namespace

Checked<ConvProblem> check_conv2d(const std::string& op, const ArrayInfo& input, const ArrayInfo& weight,
                                  const ArrayInfo* bias, const ConvOptions& options) {
    const auto [n, c, h, w] = nchw_shape(op, input, options.channels_last);
    check_weight(op, weight, input, options, "out channels, in channels");
    const int64_t k = weight.shape[0], groups = options.groups;
    check_groups(op, groups, c, k);
    if (weight.shape[1] != c / groups)
        throw ShapeError(op + ": weight has " + std::to_string(weight.shape[1]) +
                         " input channels per group, expected " + std::to_string(c / groups) + " (input channels " +
                         std::to_string(c) + " / groups " + std::to_string(groups) + ")");
    check_sizes_and_bias(op, input, weight, bias, std::min({h, w, k}), k);

    Checked<ConvProblem> checked{problem_of(input, weight, options, n, c, k, {h, w}), input.shape.size() == 3};
    ConvProblem& problem = checked.problem;
    for (const int axis : {0, 1}) {
        Axis& own = axis == 0 ? problem.h : problem.w;
        own = check_axis(op, axis, own, options.padding);
        check_border(op, axis, own);
    }
    check_winograd(op, problem.h, problem.w, options);
    check_size(op, "padded input", {n, c, problem.h.padded(), problem.w.padded()}, problem.dtype);
    check_size(op, "output", problem.output_shape(), problem.dtype);
    return checked;
}

Checked<ConvTransposeProblem> check_conv_transpose2d(const std::string& op, const ArrayInfo& input,
                                                     const ArrayInfo& weight, const ArrayInfo* bias,
                                                     const ConvTransposeOptions& transpose) {
    const ConvOptions& options = transpose.conv;
    const auto [n, c, h, w] = nchw_shape(op, input, options.channels_last);
    check_weight(op, weight, input, options, "in channels, out channels");
    const int64_t groups = options.groups;
    check_groups(op, groups, c, groups);  // the weight has its output channels by groups
    if (weight.shape[0] != c)
        throw ShapeError(op + ": weight has " + std::to_string(weight.shape[0]) + " input channels, expected " +
                         std::to_string(c) + " as input has");
    const int64_t k = checked_product(op, "output channels", weight.shape[1], groups);
    check_sizes_and_bias(op, input, weight, bias, std::min({h, w, k}), k);

    Checked<ConvTransposeProblem> checked{{}, input.shape.size() == 3};
    ConvTransposeProblem& problem = checked.problem;
    problem.input_shape = {n, c, h, w};
    ConvProblem& conv = problem.conv;
    conv = problem_of(input, weight, options, n, k, c, {h, w});
    conv.h = check_transposed_axis(op, 0, conv.h, transpose.output_padding[0], options.padding, problem.out_h);
    conv.w = check_transposed_axis(op, 1, conv.w, transpose.output_padding[1], options.padding, problem.out_w);
    check_winograd(op, conv.h, conv.w, options);
    check_size(op, "padded output", {n, k, conv.h.padded(), conv.w.padded()}, conv.dtype);
    check_size(op, "output", problem.output_shape(), conv.dtype);
    return checked;
}

Checked<PoolProblem> check_max_pool2d(const std::string& op, const ArrayInfo& input, const PoolOptions& options) {
    const auto [n, c, h, w] = nchw_shape(op, input, options.channels_last);
    if (std::min({c, h, w}) < 1)
        throw ShapeError(op + ": " + input.name + " " + shape_text(input.shape) +
                         " has a size of zero, expected zero only for the batch");
    check_positive(op, options.prefix, "kernel_size", options.kernel);
    check_positive(op, "", "dilation", options.dilation);
    const Pair stride = options.stride.value_or(options.kernel);
    check_positive(op, options.prefix, "stride", stride);

    Checked<PoolProblem> checked{{}, input.shape.size() == 3};
    PoolProblem& problem = checked.problem;
    problem.dtype = input.dtype;
    problem.batch = n;
    problem.channels = c;
    problem.channels_last = options.channels_last;
    const std::array<int64_t, 2> sizes{h, w};
    for (const int axis : {0, 1}) {
        const size_t i = static_cast<size_t>(axis);
        Axis result;
        result.input = sizes[i];
        result.kernel = options.kernel[i];
        result.stride = stride[i];
        result.dilation = options.dilation[i];
        result.ceil_mode = options.ceil_mode;
        result = check_axis(op, axis, result, options.padding, options.prefix);
        const int64_t most = result.extent() - 1;
        const int64_t pad = std::max(result.pad_before, result.pad_after);
        if (pad > most)
            throw ShapeError(op + ": " + options.prefix + "padding is " + std::to_string(pad) + " in " +
                             axis_word(axis) + ", expected at most " + std::to_string(most) +
                             " (one less than the window's " + std::to_string(result.extent()) + " cells)");
        (axis == 0 ? problem.h : problem.w) = result;
    }
    check_size(op, "padded input", {n, c, problem.h.covered(), problem.w.covered()}, problem.dtype);
    check_size(op, "output", problem.output_shape(), DType::float64);  // its indices have 8 bytes each
    checked_product(op, "window", problem.h.kernel, problem.w.kernel);
    return checked;
}

PoolProblem check_pool_behind(const std::string& op, const Checked<ConvProblem>& conv, const PoolOptions& options) {
    const ConvProblem& problem = conv.problem;
    const ArrayInfo output{"convolution output", problem.dtype,
                           user_shape(problem.output_shape(), problem.channels_last, conv.unbatched)};
    const PoolProblem pool = check_max_pool2d(op, output, options).problem;
    check_codes_fit(op, pool);
    return pool;
}

Checked<FusedProblem> check_conv2d_relu_max_pool2d(const std::string& op, const ArrayInfo& input,
                                                   const ArrayInfo& weight, const ArrayInfo* bias,
                                                   const ConvOptions& conv, const PoolOptions& pool) {
    const Checked<ConvProblem> checked = check_conv2d(op, input, weight, bias, conv);
    return {{checked.problem, check_pool_behind(op, checked, pool)}, checked.unbatched};
}

void check_relu_mask(const std::string& op, const Shape& mask, int64_t elements) {
    const Shape expected{relu_mask_bytes(elements)};
    if (mask != expected)
        throw ShapeError(op + ": output is a mask of shape " + shape_text(mask) + ", expected " + shape_text(expected) +
                         ": one bit for each of the " + std::to_string(elements) + " elements of grad_output");
}

void check_codes_fit(const std::string& op, const PoolProblem& problem) {
    if (problem.taps() > max_code_taps)
        throw ShapeError(op + ": the window has " + std::to_string(problem.taps()) + " taps, expected at most " +
                         std::to_string(max_code_taps) + " for one-byte codes");
}

void check_dtype(const std::string& op, const ArrayInfo& array, const ArrayInfo& like) {
    if (array.dtype != like.dtype)
        throw TypeError(op + ": " + array.name + " has dtype " + dtype_name(array.dtype) + ", expected " +
                        dtype_name(like.dtype) + " as " + like.name + " has");
}

void check_shape(const std::string& op, const ArrayInfo& array, const Shape& expected) {
    if (array.shape != expected)
        throw ShapeError(op + ": " + array.name + " has shape " + shape_text(array.shape) + ", expected " +
                         shape_text(expected));
}

Shape user_shape(const std::array<int64_t, 4>& nchw, bool channels_last, bool unbatched) {
    const auto [n, c, h, w] = nchw;
    const std::array<int64_t, 4> sizes =
        channels_last ? std::array<int64_t, 4>{n, h, w, c} : std::array<int64_t, 4>{n, c, h, w};
    return {sizes.begin() + (unbatched ? 1 : 0), sizes.end()};
}

Shape per_sample_shape(int64_t batch, const Shape& shape, bool unbatched) {
    if (unbatched) return shape;
    int64_t sizes[Shape::most_axes];
    sizes[0] = batch;
    std::copy(shape.begin(), shape.end(), sizes + 1);
    return {sizes, sizes + 1 + shape.size()};
}

std::string shape_text(const Shape& shape) {
    std::string text = "(";
    for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + (shape.size() == 1 ? ",)" : ")");
}

const char* dtype_name(DType dtype) {
    constexpr const char* names[] = {"float32", "float64", "float16", "bfloat16"};
    return names[static_cast<int>(dtype)];
}

}  // namespace convx
