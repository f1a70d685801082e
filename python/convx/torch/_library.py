"""The operations as PyTorch's dispatcher knows them: ``torch.ops.convx``.

What traces, records or transforms a program (torch.compile, torch.export, torch.func, autograd with create_graph) sees
these, and every one of them has all that is asked of it: kernels, shapes (_shapes.py), derivatives (_autograd.py) and a
rule for batches (_vmap.py). They are closed under differentiation: the gradients of the three convolutions are
convolutions again, those of pooling are a scatter and a gather.

`torch.library.custom_op` would be shorter, but its calls take three times as long, and torch.func.grad refuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _kernels

_CONV = (
    "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, str padding_mode, float padding_value, "
    "str algorithm, str precision"
)
_POOL = "SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool ceil_mode"
_FUSED = (
    "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, SymInt[] pool_kernel_size, "
    "SymInt[] pool_stride, SymInt[] pool_padding, str precision"
)

# All options are resolved (_options.py): padding is (top, bottom, left, right), a pair of modes "h,w". Images are 4-D.
SCHEMAS = {
    "conv2d": f"(Tensor input, Tensor weight, Tensor? bias, bool relu, {_CONV}) -> Tensor",
    "conv2d_grad_input": (
        f"(Tensor grad_output, Tensor weight, SymInt[] input_size, bool channels_last, {_CONV}) -> Tensor"
    ),
    "conv2d_grad_weight": f"(Tensor grad_output, Tensor input, SymInt[] weight_size, {_CONV}) -> Tensor",
    "relu": "(Tensor input) -> Tensor",
    "relu_backward": "(Tensor grad_output, Tensor output) -> Tensor",
    "max_pool2d": f"(Tensor input, {_POOL}) -> Tensor",
    "max_pool2d_with_choice": f"(Tensor input, {_POOL}, bool indices) -> (Tensor, Tensor)",
    "max_pool2d_backward": f"(Tensor grad_output, Tensor choice, SymInt[] input_size, {_POOL}) -> Tensor",
    "max_pool2d_gather": f"(Tensor input, Tensor choice, {_POOL}) -> Tensor",
    "conv2d_relu_max_pool2d": f"(Tensor input, Tensor weight, Tensor? bias, {_FUSED}) -> (Tensor, Tensor)",
    # What output_mask leaves out is a tensor without elements.
    "conv2d_relu_max_pool2d_backward": (
        f"(Tensor grad_output, Tensor input, Tensor weight, Tensor codes, {_FUSED}, bool[] output_mask)"
        " -> (Tensor, Tensor, Tensor)"
    ),
}

library = torch.library.Library("convx", "DEF")
for _name, _schema in SCHEMAS.items():
    library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))

conv2d = torch.ops.convx.conv2d.default
conv2d_grad_input = torch.ops.convx.conv2d_grad_input.default
conv2d_grad_weight = torch.ops.convx.conv2d_grad_weight.default
relu = torch.ops.convx.relu.default
relu_backward = torch.ops.convx.relu_backward.default
max_pool2d = torch.ops.convx.max_pool2d.default
max_pool2d_with_choice = torch.ops.convx.max_pool2d_with_choice.default
max_pool2d_backward = torch.ops.convx.max_pool2d_backward.default
max_pool2d_gather = torch.ops.convx.max_pool2d_gather.default
conv2d_relu_max_pool2d = torch.ops.convx.conv2d_relu_max_pool2d.default
conv2d_relu_max_pool2d_backward = torch.ops.convx.conv2d_relu_max_pool2d_backward.default


def sides(padding: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return resolved padding in the form that the compiled modules read."""
    top, bottom, left, right = padding
    return (top, bottom), (left, right)


def user_options(stride: Any, padding: Any, dilation: Any, groups: Any, padding_mode: str, *rest: Any) -> Any:
    """Return resolved `ConvOptions` in the form that the compiled modules read."""
    mode = tuple(padding_mode.split(",")) if "," in padding_mode else padding_mode
    return stride, sides(padding), dilation, groups, mode, *rest


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    relu: bool,
    *options: Any,
) -> Tensor:
    return _kernels.conv2d(input, weight, bias, relu, *user_options(*options))


def _conv2d_grad_input(
    grad_output: Tensor, weight: Tensor, input_size: list[int], channels_last: bool, *options: Any
) -> Tensor:
    return _kernels.conv2d_grad_input(grad_output, weight, tuple(input_size), channels_last, *user_options(*options))


def _conv2d_grad_weight(grad_output: Tensor, input: Tensor, weight_size: list[int], *options: Any) -> Tensor:
    return _kernels.conv2d_grad_weight(grad_output, input, tuple(weight_size), *user_options(*options))


def _max_pool2d(input: Tensor, kernel_size: list[int], stride: list[int], padding: list[int], *options: Any) -> Tensor:
    return _kernels.max_pool2d(input, kernel_size, stride, sides(padding), *options)


def _max_pool2d_with_choice(
    input: Tensor, kernel_size: list[int], stride: list[int], padding: list[int], *options: Any
) -> tuple[Tensor, Tensor]:
    return _kernels.max_pool2d_with_choice(input, kernel_size, stride, sides(padding), *options)


def _max_pool2d_backward(
    grad_output: Tensor,
    choice: Tensor,
    input_size: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    *options: Any,
) -> Tensor:
    return _kernels.max_pool2d_backward(
        grad_output, choice, tuple(input_size), kernel_size, stride, sides(padding), *options
    )


def _max_pool2d_gather(
    input: Tensor,
    choice: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> Tensor:
    """Take from `input` the cells that were chosen; 0 for code 255, and for index -1 of a window without a cell."""
    h, w = input.shape[2:]
    dead = None
    if choice.dtype == torch.uint8:
        dead = choice == 255
        tap = choice.masked_fill(dead, 0).long()
        rows = torch.arange(choice.shape[2], device=choice.device)[:, None] * stride[0] - padding[0]
        columns = torch.arange(choice.shape[3], device=choice.device) * stride[1] - padding[2]
        row = rows + torch.div(tap, kernel_size[1], rounding_mode="floor") * dilation[0]
        column = columns + tap % kernel_size[1] * dilation[1]
        # Dead windows may have no tap inside the image; what is read for them is not used.
        choice = row.clamp(0, h - 1) * w + column.clamp(0, w - 1)
    elif tuple(dilation) != (1, 1):  # only dilation carries a window over the image
        dead = choice < 0
        choice = choice.clamp(min=0)
    result = input.flatten(2).gather(2, choice.flatten(2)).reshape(choice.shape)
    if dead is not None:
        result.masked_fill_(dead, 0)
    return result.contiguous()


def _conv2d_relu_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    pool_kernel_size: list[int],
    pool_stride: list[int],
    pool_padding: list[int],
    precision: str,
) -> tuple[Tensor, Tensor]:
    pool = (pool_kernel_size, pool_stride, sides(pool_padding))
    return _kernels.conv2d_relu_max_pool2d(
        input, weight, bias, stride, sides(padding), dilation, groups, *pool, precision
    )


def _conv2d_relu_max_pool2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    codes: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    pool_kernel_size: list[int],
    pool_stride: list[int],
    pool_padding: list[int],
    precision: str,
    output_mask: list[bool],
) -> tuple[Tensor, ...]:
    pool = (pool_kernel_size, pool_stride, sides(pool_padding))
    images = grad_output, input, weight, codes, input.shape, weight.shape, _kernels.channels_last(input)
    gradients = _kernels.conv2d_relu_max_pool2d_backward(
        *images, stride, sides(padding), dilation, groups, *pool, precision, output_mask
    )
    return tuple(grad_output.new_empty(0) if each is None else each for each in gradients)


_KERNELS: dict[str, Callable[..., Any]] = {
    "conv2d": _conv2d,
    "conv2d_grad_input": _conv2d_grad_input,
    "conv2d_grad_weight": _conv2d_grad_weight,
    "relu": _kernels.relu,
    "relu_backward": _kernels.relu_backward,
    "max_pool2d": _max_pool2d,
    "max_pool2d_with_choice": _max_pool2d_with_choice,
    "max_pool2d_backward": _max_pool2d_backward,
    "max_pool2d_gather": _max_pool2d_gather,
    "conv2d_relu_max_pool2d": _conv2d_relu_max_pool2d,
    "conv2d_relu_max_pool2d_backward": _conv2d_relu_max_pool2d_backward,
}
for _name, _kernel in _KERNELS.items():
    for _key in ("CPU", "CUDA"):
        library.impl(_name, _kernel, _key)
