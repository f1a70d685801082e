"""The options of operations, resolved from all the forms that a user may write.

The compiled modules read the user's forms themselves; resolved ones are for programs that are traced or transformed.
Padding is ``((top, bottom), (left, right))`` here and for the compiled modules, and four numbers in a row for the
dispatcher, which knows no pairs of pairs. What is wrong with the numbers is found later, by the check that all have in
common. Sizes may be symbolic; images are N, C, H, W in shape.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from .._cpu import ShapeError
from .._devices import described

Size: TypeAlias = tuple[Any, ...]
Sides: TypeAlias = tuple[tuple[Any, Any], tuple[Any, Any]]

_RULES = ("valid", "same", "same_lower")


class ConvOptions(NamedTuple):
    """Of a convolution."""

    stride: tuple[Any, Any]
    padding: Sides
    dilation: tuple[Any, Any]
    groups: Any
    padding_mode: str | tuple[str, ...]
    padding_value: float
    algorithm: str
    precision: str

    def output_size(self, input_size: Size, weight_size: Size) -> Size:
        """Return (N, K, P, Q)."""
        result = [input_size[0], weight_size[0]]
        for axis in (0, 1):
            padded = input_size[2 + axis] + sum(self.padding[axis])
            result.append((padded - self.dilation[axis] * (weight_size[2 + axis] - 1) - 1) // self.stride[axis] + 1)
        return tuple(result)

    def linear(self) -> ConvOptions:
        """Return the options of its derivative: without the constant outside the image."""
        return self._replace(padding_value=0.0)


class TransposeOptions(NamedTuple):
    """Of a transposed convolution."""

    stride: tuple[Any, Any]
    padding: Sides
    output_padding: tuple[Any, Any]
    groups: Any
    dilation: tuple[Any, Any]
    algorithm: str
    precision: str

    def output_size(self, input_size: Size, weight_size: Size) -> Size:
        """Return (N, K, P, Q)."""
        spans = (self._span(axis, input_size, weight_size) for axis in (0, 1))
        pixels = (
            span - sum(sides) + extra
            for span, sides, extra in zip(spans, self.padding, self.output_padding, strict=True)
        )
        return input_size[0], weight_size[1] * self.groups, *pixels

    def convolution(self, input_size: Size, weight_size: Size) -> tuple[Size, ConvOptions]:
        """Return the convolution whose input gradient this is: the size of its input, and its options.

        Output padding is taken back from the padding at the end; what is left of it are rows and columns behind all
        windows, fewer than the stride of which the convolution may have in its input without having one more window.
        """
        size, padding = [input_size[0], weight_size[1] * self.groups], []
        for axis in (0, 1):
            (before, after), extra, behind = self.padding[axis], self.output_padding[axis], 0
            if extra != 0:
                behind, after = torch.sym_max(0, extra - after), torch.sym_max(0, after - extra)
            padding.append((before, after))
            reached = self._span(axis, input_size, weight_size) - before - after
            size.append(reached + torch.sym_min(behind, self.stride[axis] - 1))
        options = (self.stride, tuple(padding), self.dilation, self.groups)
        return tuple(size), ConvOptions(*options, "zeros", 0.0, self.algorithm, self.precision)  # type: ignore[arg-type]

    def _span(self, axis: int, input_size: Size, weight_size: Size) -> Any:
        """Return the rows or columns from the first tap of the first window to the last one of the last."""
        return (input_size[2 + axis] - 1) * self.stride[axis] + self.dilation[axis] * (weight_size[2 + axis] - 1) + 1


class PoolOptions(NamedTuple):
    """Of a max-pooling."""

    kernel_size: tuple[Any, Any]
    stride: tuple[Any, Any]
    padding: Sides
    dilation: tuple[Any, Any]
    ceil_mode: bool

    def output_size(self, input_size: Size) -> Size:
        """Return (N, C, P, Q)."""
        result = list(input_size[:2])
        for axis in (0, 1):
            size, (before, after), stride = input_size[2 + axis], self.padding[axis], self.stride[axis]
            span = size + before + after - self.dilation[axis] * (self.kernel_size[axis] - 1) - 1
            out = (span + (stride - 1 if self.ceil_mode else 0)) // stride + 1
            if self.ceil_mode and (out - 1) * stride >= size + before:
                out -= 1
            result.append(out)
        return tuple(result)


class FusedOptions(NamedTuple):
    """Of conv2d_relu_max_pool2d."""

    stride: tuple[Any, Any]
    padding: Sides
    dilation: tuple[Any, Any]
    groups: Any
    pool_kernel_size: tuple[Any, Any]
    pool_stride: tuple[Any, Any]
    pool_padding: Sides
    precision: str

    def parts(self) -> tuple[ConvOptions, PoolOptions]:
        """Return the options of its convolution and of its pooling."""
        conv = ConvOptions(*self[:4], "zeros", 0.0, "auto", self.precision)
        return conv, PoolOptions(*self[4:7], (1, 1), False)

    def output_size(self, input_size: Size, weight_size: Size) -> Size:
        """Return (N, K, P', Q')."""
        conv, pool = self.parts()
        return pool.output_size(conv.output_size(input_size, weight_size))


def resolve_conv(op: str, input_size: Size, weight_size: Size, options: Sequence[Any]) -> ConvOptions:
    """Resolve the options of a convolution."""
    stride, padding, dilation, groups, padding_mode, padding_value, algorithm, precision = options
    stride, dilation = pair(op, "stride", stride), pair(op, "dilation", dilation)
    padding = sides(op, "padding", padding, input_size, weight_size[2:], stride, dilation)
    mode = padding_mode if isinstance(padding_mode, str) else tuple(map(str, padding_mode))
    groups, value = integer(op, "groups", groups), number(op, "padding_value", padding_value)
    return ConvOptions(stride, padding, dilation, groups, mode, value, algorithm, precision)


def resolve_transpose(op: str, input_size: Size, weight_size: Size, options: Sequence[Any]) -> TransposeOptions:
    """Resolve the options of a transposed convolution."""
    stride, padding, output_padding, groups, dilation, algorithm, precision = options
    stride, dilation = pair(op, "stride", stride), pair(op, "dilation", dilation)
    extra, groups = pair(op, "output_padding", output_padding), integer(op, "groups", groups)
    if (
        isinstance(padding, str) and padding != "valid" and extra != (0, 0)
    ):  # numbers in their place would pass the check behind
        found, axis = (extra[0], "height") if extra[0] != 0 else (extra[1], "width")
        raise ShapeError(
            f'{op}: output_padding is {found} in {axis}, expected 0: padding "same" or "same_lower" makes the output '
            "stride times as large as the input"
        )
    reached = (*input_size[:2], *(size * step for size, step in zip(input_size[2:], stride, strict=True)))
    padding = sides(op, "padding", padding, reached, weight_size[2:], stride, dilation)
    return TransposeOptions(stride, padding, extra, groups, dilation, algorithm, precision)


def resolve_pool(op: str, input_size: Size, options: Sequence[Any]) -> PoolOptions:
    """Resolve the options of a max-pooling."""
    kernel_size, stride, padding, dilation, ceil_mode = options
    kernel = pair(op, "kernel_size", kernel_size)
    stride = _or_kernel(op, "stride", stride, kernel)
    dilation = pair(op, "dilation", dilation)
    padding = sides(op, "padding", padding, input_size, kernel, stride, dilation)
    return PoolOptions(kernel, stride, padding, dilation, ceil_mode)


def resolve_fused(op: str, input_size: Size, weight_size: Size, options: Sequence[Any]) -> FusedOptions:
    """Resolve the options of conv2d_relu_max_pool2d."""
    *geometry, pool_kernel_size, pool_stride, pool_padding, precision = options
    conv = resolve_conv(op, input_size, weight_size, (*geometry, "zeros", 0.0, "auto", precision))
    kernel = pair(op, "pool_kernel_size", pool_kernel_size)
    pool_stride = _or_kernel(op, "pool_stride", pool_stride, kernel)
    size = conv.output_size(input_size, weight_size)
    pool_padding = sides(op, "pool_padding", pool_padding, size, kernel, pool_stride, (1, 1))
    return FusedOptions(*conv[:4], kernel, pool_stride, pool_padding, precision)


def pair(op: str, name: str, value: Any) -> tuple[Any, Any]:
    """Return (h, w)."""
    if type(value) is int:
        return value, value
    if _are_integers(value):
        return value  # type: ignore[no-any-return]
    expected = "an integer or a pair of integers (height, width)"
    entries = _entries(value)
    if entries is None:
        number = integer(op, name, value, expected)
        return number, number
    if len(entries) not in (1, 2):
        raise ShapeError(f"{op}: {name} is {value!r}, expected {expected}")
    return integer(op, name, entries[0]), integer(op, name, entries[-1])


def integer(op: str, name: str, value: Any, expected: str = "an integer") -> Any:
    """Return the number that stands for an integer of Python, NumPy or a tensor; a symbol stays what it is."""
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{op}: {name} is {described(type(value))}, expected {expected}")


def number(op: str, name: str, value: Any) -> float:
    """Return a number of Python, NumPy or a tensor as a float."""
    if type(value) is float:
        return value
    if not isinstance(value, (str, bool, np.bool_, np.complexfloating)):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    raise TypeError(f"{op}: {name} is {described(type(value))}, expected a number")


def sizes(op: str, name: str, value: Any) -> Size:
    """Return a shape."""
    entries = _entries(value)
    if entries is None or getattr(value, "ndim", 1) > 1:
        raise TypeError(f"{op}: {name} is {described(type(value))}, expected a tuple of integers")
    return tuple(integer(op, name, size) for size in entries)


def torch_pair(value: Any) -> Any:
    """Return an option of a layer of torch.nn as (h, w), from every form that PyTorch broadcasts; all else as it is.

    Layers keep what they were made with: integers of Python, NumPy and 0-d tensors, alone or in sequences of 1 or 2.
    """
    if type(value) is int:
        return value, value
    if _are_integers(value):
        return value
    entries = value if isinstance(value, (tuple, list)) else (value,)
    if len(entries) not in (1, 2) or any(isinstance(each, bool) for each in entries):
        return value
    try:
        numbers = [each if isinstance(each, torch.SymInt) else operator.index(each) for each in entries]
    except TypeError:
        return value
    return numbers[0], numbers[-1]


def taps(op: str, kernel_size: Any) -> int:
    """Return how many taps a window has."""
    height, width = pair(op, "kernel_size", kernel_size)
    return int(height * width)


def sides(
    op: str, name: str, value: Any, size: Sequence[Any], kernel: Sequence[Any], stride: Any, dilation: Any
) -> Sides:
    """Return ((top, bottom), (left, right)) for images of a 4-D `size`."""
    if type(value) is int:
        return (value, value), (value, value)
    if isinstance(value, str):
        if value not in _RULES:
            raise ShapeError(f'{op}: {name} is {value!r}, expected "valid", "same" or "same_lower"')
        if value == "valid":
            return (0, 0), (0, 0)
        found: list[Any] = []
        for axis in (0, 1):
            out = (size[2 + axis] + stride[axis] - 1) // stride[axis]
            covered = (out - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1
            # max() of a symbol would decide, and torch.export refuses a decision that not all sizes share.
            total = torch.sym_max(0, covered - size[2 + axis])
            smaller = total // 2
            found.append((smaller, total - smaller) if value == "same" else (total - smaller, smaller))
        return found[0], found[1]
    expected = "an integer, (height, width), ((top, bottom), (left, right)) or a rule"
    entries = _entries(value)
    if entries is None or (len(entries) == 1 and _entries(entries[0]) is None):
        side = integer(op, name, value if entries is None else entries[0], expected)
        return (side, side), (side, side)
    if len(entries) != 2:
        raise ShapeError(f"{op}: {name} is {value!r}, expected {expected}")
    return pair(op, name, entries[0]), pair(op, name, entries[1])


def expect_half_windows(op: str, padding: Any, kernel_size: Any, dilation: Any = 1) -> None:
    """Raise in PyTorch's words where padding is more than half of the window; `convx.max_pool2d` takes more.

    What is no padding or no size at all is left to the check that all have in common.
    """
    none = padding == 0 if type(padding) is int else _are_integers(padding) and padding == (0, 0)
    if none or isinstance(padding, str):  # the rules never pad more
        return
    try:
        kernel, steps = pair(op, "kernel_size", kernel_size), pair(op, "dilation", dilation)
        around = sides(op, "padding", padding, (), kernel, (1, 1), steps)
    except (TypeError, ShapeError):
        return
    for size, step, both in zip(kernel, steps, around, strict=True):
        for side in both:
            if size > 0 and step > 0 and side > (step * (size - 1) + 1) // 2:
                raise ShapeError(
                    f"{op}: pad should be at most half of effective kernel size, but got pad={side}, "
                    f"kernel_size={size} and dilation={step}"
                )


def _are_integers(value: Any) -> bool:
    """Tell whether `value` is a pair as it is used: most are, and every other form takes 0.5 us."""
    return type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int


def _entries(value: Any) -> Sequence[Any] | None:
    """Return what stands for the axes, where `value` is a tuple, a list or an array with axes; None for all else."""
    if isinstance(value, (tuple, list)):
        return value
    return tuple(value) if isinstance(value, np.ndarray) and value.ndim else None


def _or_kernel(op: str, name: str, stride: Any, kernel: tuple[Any, Any]) -> tuple[Any, Any]:
    entries = _entries(stride)
    return kernel if stride is None or (entries is not None and len(entries) == 0) else pair(op, name, stride)
