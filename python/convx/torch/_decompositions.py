"""The operations that forward passes consist of, made of PyTorch's own: for exporters that know no others.

`torch.onnx.export` finds them in PyTorch's table of decompositions; `torch.export` keeps convx's operations unless it
is handed `decompositions`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._decomp import register_decomposition

from . import _library, _options, _shapes

__all__ = ["decompositions"]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return what `torch.export.ExportedProgram.run_decompositions` takes to put PyTorch's operations for convx's.

    Returns
    -------
    dict of torch._ops.OpOverload to callable
        For convolution, transposed convolution, ReLU, max-pooling and the fused operation, forward.

    Notes
    -----
    ``torch.onnx.export(model, ..., dynamo=True)`` needs none of this.

    Examples
    --------
    >>> import torch
    >>> import convx.torch
    >>> program = torch.export.export(convx.torch.ReLU(), (torch.ones(3),))
    >>> program = program.run_decompositions(convx.torch.decompositions())
    >>> [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    ['aten.relu.default']
    """
    return {getattr(_library, name): function for name, function in _DECOMPOSITIONS.items()}


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    relu: bool,
    stride: Any,
    padding: Sequence[Any],
    dilation: Any,
    groups: Any,
    padding_mode: str,
    padding_value: float,
    *_: Any,
) -> Tensor:
    modes = padding_mode.split(",") * (1 if "," in padding_mode else 2)
    top, bottom, left, right = padding
    within = (0, 0)
    if modes == ["zeros", "zeros"] and (top, left) == (bottom, right):
        within = (top, left)
    else:
        for mode, sides in zip(modes, ((0, 0, top, bottom), (left, right, 0, 0)), strict=True):
            input = _padded(input, sides, mode, padding_value)
    result = F.conv2d(input, weight, bias, stride, within, dilation, groups)
    return F.relu(result) if relu else result


def _padded(input: Tensor, sides: Sequence[Any], mode: str, value: float) -> Tensor:
    if sides == (0, 0, 0, 0):
        return input
    if mode in ("zeros", "constant"):
        return F.pad(input, sides, value=value if mode == "constant" else 0.0)
    return F.pad(input, sides, mode)


def _conv2d_grad_input(
    grad: Tensor,
    weight: Tensor,
    size: Sequence[Any],
    last: bool,
    stride: Any,
    padding: Sequence[Any],
    dilation: Any,
    groups: Any,
    padding_mode: str,
    *_: Any,
) -> Any:
    if set(padding_mode.split(",")) - {"zeros", "constant"}:
        return NotImplemented  # only gradients have it: a transposed convolution knows no other borders
    top, bottom, left, right = padding
    within, extra = [], []
    for axis, (before, after) in enumerate(((top, bottom), (left, right))):
        cut = before if before == after else 0
        reach = (grad.shape[2 + axis] - 1) * stride[axis] + dilation[axis] * (weight.shape[2 + axis] - 1) + 1
        within.append(cut)
        extra.append(size[2 + axis] + before + after - reach)
    result = F.conv_transpose2d(grad, weight, None, stride, within, extra, groups, dilation)
    for axis, (before, cut) in enumerate(zip((top, left), within, strict=True)):
        if before != cut or padding[2 * axis + 1] != cut:
            result = result.narrow(2 + axis, before, size[2 + axis])
    return result


def _max_pool2d(
    input: Tensor, kernel_size: Any, stride: Any, padding: Sequence[Any], dilation: Any, ceil_mode: bool
) -> Tensor:
    input, within, size = _pool_border(input, kernel_size, stride, padding, dilation, ceil_mode)
    result = F.max_pool2d(input, kernel_size, stride, within, dilation, ceil_mode)
    return result if size is None else result[:, :, : size[2], : size[3]]


def _pool_border(
    input: Tensor, kernel_size: Any, stride: Any, padding: Sequence[Any], dilation: Any, ceil_mode: bool
) -> tuple[Tensor, tuple[Any, Any], tuple[Any, ...] | None]:
    """Return the input, with a border of its own where PyTorch's pooling has none like it, and what is left to pad.

    The size of the output is the third where the border lets it grow, so that it is to be cut; else None.
    """
    top, bottom, left, right = padding
    if (top, left) == (bottom, right) and 2 * top <= kernel_size[0] and 2 * left <= kernel_size[1]:
        return input, (top, left), None
    size = _options.pool_output_size(input.shape, kernel_size, stride, padding, dilation, ceil_mode)
    return F.pad(input, (left, right, top, bottom), value=-float("inf")), (0, 0), size if ceil_mode else None


def _max_pool2d_with_choice(input: Tensor, kernel_size: Any, *options: Any) -> tuple[Tensor, Tensor]:
    *pool, indices = options
    stride, padding, dilation, ceil_mode = pool
    padded, within, size = _pool_border(input, kernel_size, *pool)
    output, found = F.max_pool2d_with_indices(padded, kernel_size, stride, within, dilation, ceil_mode)
    if size is not None:
        output, found = output[:, :, : size[2], : size[3]], found[:, :, : size[2], : size[3]]
    if indices and padded is input:
        return output, found
    top, _, left, _ = padding
    row = found // padded.shape[3]
    column = found - row * padded.shape[3]  # exporters to ONNX know no remainder by a size that is not known
    row, column = row - (top - within[0]), column - (left - within[1])
    if indices:
        return output, row * input.shape[3] + column
    rows = torch.arange(output.shape[2], device=input.device)[:, None] * stride[0] - top
    columns = torch.arange(output.shape[3], device=input.device) * stride[1] - left
    tap = (row - rows) // dilation[0] * kernel_size[1] + (column - columns) // dilation[1]
    return output, tap.to(torch.uint8)


def _fused(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> tuple[Tensor, Tensor]:
    *conv, kernel_size, stride, padding, precision = options
    dense = _conv2d(input, weight, bias, True, *conv, "zeros", 0.0, "auto", precision)
    output, codes = _max_pool2d_with_choice(dense, kernel_size, stride, padding, (1, 1), False, False)
    return output, codes.masked_fill(output <= 0, 255)


def _relu(input: Tensor) -> Tensor:
    return F.relu(input)


_DECOMPOSITIONS: dict[str, Callable[..., Any]] = {
    "conv2d": _conv2d,
    "conv2d_grad_input": _conv2d_grad_input,
    "relu": _relu,
    "max_pool2d": _max_pool2d,
    "max_pool2d_with_choice": _max_pool2d_with_choice,
    "conv2d_relu_max_pool2d": _fused,
}
for _name, _function in _DECOMPOSITIONS.items():
    register_decomposition(getattr(_library, _name))(_function)
    # Where there is a decomposition and no entry for shapes, PyTorch takes the decomposition for fake tensors too.
    register_decomposition(getattr(_library, _name), type="meta")(_shapes.SHAPES[_name])
