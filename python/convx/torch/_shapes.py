"""Shapes of results without data: for meta tensors, and for the fake ones of torch.compile and torch.export.

Where all sizes are numbers, the check is the one of the operations themselves, by way of `convx.explain`. Symbolic
sizes are checked when the compiled program runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _cpu
from .._cpu import ShapeError
from . import _kernels, _library, _options

_CONV_NAMES = ("stride", "padding", "dilation", "groups", "padding_mode", "padding_value", "algorithm")
_POOL_NAMES = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
_FUSED_NAMES = ("stride", "padding", "dilation", "groups", "pool_kernel_size", "pool_stride", "pool_padding")


def _conv2d(input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, *options: Any) -> Tensor:
    _check("conv2d", input.shape, weight.shape, _CONV_NAMES, options)
    size = _options.conv_output_size(input.shape, weight.shape, *options[:3])
    if bias is not None:
        _match("conv2d", "bias", bias.shape, weight.shape[:1])
    return _empty(input, size, _kernels.channels_last(input))


def _conv2d_grad_input(grad: Tensor, weight: Tensor, size: Any, last: bool, *options: Any) -> Tensor:
    _check_gradient("conv2d_backward", grad, size, weight.shape, options)
    return _empty(grad, size, last)


def _conv2d_grad_weight(grad: Tensor, input: Tensor, size: Any, *options: Any) -> Tensor:
    _check_gradient("conv2d_backward", grad, input.shape, size, options)
    return grad.new_empty(size)


def _check_gradient(op: str, grad: Tensor, input_size: Any, weight_size: Any, options: Any) -> None:
    _check(op, input_size, weight_size, _CONV_NAMES, options)
    _match(op, "grad_output", grad.shape, _options.conv_output_size(input_size, weight_size, *options[:3]))


def _relu(input: Tensor) -> Tensor:
    return torch.empty_like(input)


def _relu_backward(grad: Tensor, output: Tensor) -> Tensor:
    _match("relu_backward", "output", output.shape, grad.shape)
    return torch.empty_like(grad)


def _max_pool2d(input: Tensor, *options: Any) -> Tensor:
    _check("max_pool2d", input.shape, options[0], _POOL_NAMES, options)
    return _empty(input, _options.pool_output_size(input.shape, *options), _kernels.channels_last(input))


def _max_pool2d_with_choice(input: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    *pool, indices = options
    output = _max_pool2d(input, *pool)
    return output, torch.empty_like(output, dtype=torch.int64 if indices else torch.uint8)


def _max_pool2d_backward(grad: Tensor, choice: Tensor, size: Any, *options: Any) -> Tensor:
    op = "max_pool2d_backward"
    _check(op, size, options[0], _POOL_NAMES, options)
    expected = _options.pool_output_size(size, *options)
    _match(op, "grad_output", grad.shape, expected)
    _match(op, "indices_or_codes", choice.shape, expected)
    return _empty(grad, size, _kernels.channels_last(choice))


def _max_pool2d_gather(input: Tensor, choice: Tensor, *options: Any) -> Tensor:
    return input.new_empty(choice.shape)


def _fused(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> tuple[Tensor, Tensor]:
    op = "conv2d_relu_max_pool2d"
    _check(op, input.shape, weight.shape, _FUSED_NAMES, options)
    if bias is not None:
        _match(op, "bias", bias.shape, weight.shape[:1])
    output = _empty(input, _fused_size(input.shape, weight.shape, options), _kernels.channels_last(input))
    return output, torch.empty_like(output, dtype=torch.uint8)


def _fused_backward(
    grad: Tensor, input: Tensor, weight: Tensor, codes: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    op = "conv2d_relu_max_pool2d_backward"
    *fused, mask = options
    _check(op, input.shape, weight.shape, _FUSED_NAMES, fused)
    expected = _fused_size(input.shape, weight.shape, fused)
    _match(op, "grad_output", grad.shape, expected)
    _match(op, "codes", codes.shape, expected)
    return (
        _empty(grad, input.shape, _kernels.channels_last(input)) if mask[0] else grad.new_empty(0),
        grad.new_empty(weight.shape if mask[1] else 0),
        grad.new_empty(weight.shape[:1] if mask[2] else 0),
    )


def _fused_size(input_size: Any, weight_size: Any, options: Any) -> tuple[Any, ...]:
    size = _options.conv_output_size(input_size, weight_size, *options[:3])
    kernel_size, stride, padding = options[4:7]
    return _options.pool_output_size(size, kernel_size, stride, padding, (1, 1), False)


def _empty(like: Tensor, size: Any, last: bool) -> Tensor:
    return like.new_empty(size).to(memory_format=torch.channels_last) if last else like.new_empty(size)


def _check(op: str, input_size: Any, operand: Any, names: tuple[str, ...], options: Any) -> None:
    """Raise what the operation would raise for these shapes and options."""
    values = dict(zip(names, options, strict=False))
    numbers = [*input_size, *operand]
    for name, value in values.items():
        if isinstance(value, (list, tuple)):
            numbers += value
            if name in ("padding", "pool_padding"):
                values[name] = _library.sides(value)
    if "," in values.get("padding_mode", ""):
        values["padding_mode"] = values["padding_mode"].split(",")
    if any(isinstance(number, torch.SymInt) for number in (*numbers, values.get("groups"))):
        return
    _cpu.explain(op, tuple(input_size), tuple(operand), values | {"layout": "NCHW"}, "float32")


def _match(op: str, name: str, shape: Any, expected: Any) -> None:
    if tuple(shape) != tuple(expected):
        raise ShapeError(f"{op}: {name} has shape {tuple(shape)}, expected {tuple(expected)}")


SHAPES: dict[str, Callable[..., Any]] = {
    "conv2d": _conv2d,
    "conv2d_grad_input": _conv2d_grad_input,
    "conv2d_grad_weight": _conv2d_grad_weight,
    "relu": _relu,
    "relu_backward": _relu_backward,
    "max_pool2d": _max_pool2d,
    "max_pool2d_with_choice": _max_pool2d_with_choice,
    "max_pool2d_backward": _max_pool2d_backward,
    "max_pool2d_gather": _max_pool2d_gather,
    "conv2d_relu_max_pool2d": _fused,
    "conv2d_relu_max_pool2d_backward": _fused_backward,
}
for _name, _function in SHAPES.items():
    torch.library.register_fake(f"convx::{_name}", _function, lib=_library.library)
