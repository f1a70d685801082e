"""Options as the dispatcher's operations take them: resolved, from all the forms that a user may write.

The compiled modules read the user's forms themselves; this is for programs that are traced or transformed. What is
wrong with the numbers is found later, by the check that all have in common.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .._cpu import ShapeError
from .._devices import described

_RULES = ("valid", "same", "same_lower")


def conv_options(
    op: str,
    input_size: Sequence[Any],
    weight_size: Sequence[Any],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: Any,
    padding_value: float,
    algorithm: str,
    precision: str,
) -> tuple[Any, ...]:
    """Resolve the options of a convolution of 4-D images."""
    stride, dilation = pair(op, "stride", stride), pair(op, "dilation", dilation)
    padding = sides(op, "padding", padding, input_size, weight_size[2:], stride, dilation)
    mode = padding_mode if isinstance(padding_mode, str) else ",".join(map(str, padding_mode))
    groups = integer(op, "groups", groups)
    return stride, padding, dilation, groups, mode, number(op, "padding_value", padding_value), algorithm, precision


def pool_options(
    op: str, input_size: Sequence[Any], kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[Any, ...]:
    """Resolve the options of a pooling of 4-D images."""
    kernel = pair(op, "kernel_size", kernel_size)
    stride = _or_kernel(op, "stride", stride, kernel)
    dilation = pair(op, "dilation", dilation)
    return kernel, stride, sides(op, "padding", padding, input_size, kernel, stride, dilation), dilation, ceil_mode


def fused_options(
    op: str,
    input_size: Sequence[Any],
    weight_size: Sequence[Any],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    pool_kernel_size: Any,
    pool_stride: Any,
    pool_padding: Any,
    precision: str,
) -> tuple[Any, ...]:
    """Resolve the options of conv2d_relu_max_pool2d for 4-D images."""
    conv = conv_options(
        op, input_size, weight_size, stride, padding, dilation, groups, "zeros", 0.0, "auto", precision
    )[:4]
    kernel = pair(op, "pool_kernel_size", pool_kernel_size)
    pool_stride = _or_kernel(op, "pool_stride", pool_stride, kernel)
    size = conv_output_size(input_size, weight_size, *conv[:3])
    pool_padding = sides(op, "pool_padding", pool_padding, size, kernel, pool_stride, (1, 1))
    return *conv, kernel, pool_stride, pool_padding, precision


def transposed(
    op: str,
    input_size: Sequence[Any],
    weight_size: Sequence[Any],
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
    algorithm: str,
    precision: str,
) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, Any]]:
    """Return the convolution whose input gradient a transposed convolution is: the size of its input, and its options.

    Its padding at the end is less by `output_padding`, so that every window fits exactly. Where that would be less than
    none, nothing reaches the last rows and columns of the output: they are the third result, and not part of the size.
    """
    n, c, *pixels = input_size
    if weight_size[0] != c:
        raise ShapeError(f"{op}: weight has {weight_size[0]} input channels, expected {c} as input has")
    stride, dilation = pair(op, "stride", stride), pair(op, "dilation", dilation)
    extra = pair(op, "output_padding", output_padding)
    reached = [n, c, *(size * step for size, step in zip(pixels, stride, strict=True))]
    around = sides(op, "padding", padding, reached, weight_size[2:], stride, dilation)
    groups = integer(op, "groups", groups)
    size, cut, beyond = [n, weight_size[1] * groups], [], []
    for axis in (0, 1):
        if not 0 <= extra[axis] < max(stride[axis], dilation[axis]):
            raise ShapeError(
                f"{op}: output_padding is {extra}, expected numbers from 0, smaller than stride {stride} or "
                f"dilation {dilation}"
            )
        before, after = around[2 * axis], around[2 * axis + 1] - extra[axis]
        beyond.append(max(0, -after))
        after = max(0, after)
        out = (pixels[axis] - 1) * stride[axis] + dilation[axis] * (weight_size[2 + axis] - 1) + 1 - before - after
        if out < 1:
            raise ShapeError(f"{op}: the output has {out} rows or columns, expected at least 1")
        size.append(out)
        cut.append((before, after))
    options = (stride, tuple(cut), dilation, groups, "zeros", 0.0, algorithm, precision)
    return tuple(size), options, (beyond[0], beyond[1])


def conv_output_size(
    input_size: Sequence[Any], weight_size: Sequence[Any], stride: Any, padding: Any, dilation: Any
) -> tuple[Any, ...]:
    """Return (N, K, P, Q); sizes may be symbolic."""
    result = [input_size[0], weight_size[0]]
    for axis in (0, 1):
        padded = input_size[2 + axis] + padding[2 * axis] + padding[2 * axis + 1]
        result.append((padded - dilation[axis] * (weight_size[2 + axis] - 1) - 1) // stride[axis] + 1)
    return tuple(result)


def pool_output_size(
    input_size: Sequence[Any], kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[Any, ...]:
    """Return (N, C, P, Q); sizes may be symbolic."""
    result = list(input_size[:2])
    for axis in (0, 1):
        size, before, after = input_size[2 + axis], padding[2 * axis], padding[2 * axis + 1]
        span = size + before + after - dilation[axis] * (kernel[axis] - 1) - 1
        out = (span + (stride[axis] - 1 if ceil_mode else 0)) // stride[axis] + 1
        if ceil_mode and (out - 1) * stride[axis] >= size + before:
            out -= 1
        result.append(out)
    return tuple(result)


def pair(op: str, name: str, value: Any) -> tuple[Any, Any]:
    """Return (h, w)."""
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
    if not isinstance(value, (str, bool, np.bool_, np.complexfloating)):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    raise TypeError(f"{op}: {name} is {described(type(value))}, expected a number")


def sizes(op: str, name: str, value: Any) -> tuple[Any, ...]:
    """Return a shape."""
    entries = _entries(value)
    if entries is None or getattr(value, "ndim", 1) > 1:
        raise TypeError(f"{op}: {name} is {described(type(value))}, expected a tuple of integers")
    return tuple(integer(op, name, size) for size in entries)


def torch_pair(value: Any) -> Any:
    """Return an option of a layer of torch.nn as (h, w), from every form that PyTorch broadcasts; all else as it is.

    Layers keep what they were made with: integers of Python, NumPy and 0-d tensors, alone or in sequences of 1 or 2.
    """
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int:
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
) -> tuple[Any, ...]:
    """Return (top, bottom, left, right) for images of a 4-D `size`."""
    if isinstance(value, str):
        if value not in _RULES:
            raise ShapeError(f'{op}: {name} is {value!r}, expected "valid", "same" or "same_lower"')
        if value == "valid":
            return 0, 0, 0, 0
        found: list[Any] = []
        for axis in (0, 1):
            out = (size[2 + axis] + stride[axis] - 1) // stride[axis]
            covered = (out - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1
            # max() of a symbol would decide, and torch.export refuses a decision that not all sizes share.
            total = torch.sym_max(0, covered - size[2 + axis])
            smaller = total // 2
            found += [smaller, total - smaller] if value == "same" else [total - smaller, smaller]
        return tuple(found)
    expected = "an integer, (height, width), ((top, bottom), (left, right)) or a rule"
    entries = _entries(value)
    if entries is None or (len(entries) == 1 and _entries(entries[0]) is None):
        return (integer(op, name, value if entries is None else entries[0], expected),) * 4
    if len(entries) != 2:
        raise ShapeError(f"{op}: {name} is {value!r}, expected {expected}")
    return (*pair(op, name, entries[0]), *pair(op, name, entries[1]))


def expect_half_windows(op: str, padding: Any, kernel_size: Any, dilation: Any = 1) -> None:
    """Raise in PyTorch's words where padding is more than half of the window; `convx.max_pool2d` takes more.

    What is no padding or no size at all is left to the check that all have in common.
    """
    if isinstance(padding, str):  # the rules never pad more
        return
    try:
        kernel, steps = pair(op, "kernel_size", kernel_size), pair(op, "dilation", dilation)
        around = sides(op, "padding", padding, (), kernel, (1, 1), steps)
    except (TypeError, ShapeError):
        return
    for index, side in enumerate(around):
        size, step = kernel[index // 2], steps[index // 2]
        if size > 0 and step > 0 and side > (step * (size - 1) + 1) // 2:
            raise ShapeError(
                f"{op}: pad should be at most half of effective kernel size, but got pad={side}, "
                f"kernel_size={size} and dilation={step}"
            )


def _entries(value: Any) -> Sequence[Any] | None:
    """Return what stands for the axes, where `value` is a tuple, a list or an array with axes; None for all else."""
    if isinstance(value, (tuple, list)):
        return value
    return tuple(value) if isinstance(value, np.ndarray) and value.ndim else None


def _or_kernel(op: str, name: str, stride: Any, kernel: tuple[Any, Any]) -> tuple[Any, Any]:
    entries = _entries(stride)
    return kernel if stride is None or (entries is not None and len(entries) == 0) else pair(op, name, stride)
