"""What `convx.conv2d` and its sisters do with tensors of PyTorch: there the layout is an argument.

``layout="NHWC"`` means that the axes are N, H, W, C. The tensors are then permuted, which moves nothing, and lie as the
kernels for NHWC want them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import _devices
from .._cpu import ShapeError
from ..ops import check_precision
from . import _calls, _kernels, _options
from ._arguments import selection, unrecorded
from ._autocast import LOWER, in_float32


@in_float32(LOWER, writes_out=True)
def conv2d(input: Tensor, weight: Any, bias: Any, *options: Any) -> Any:
    """As `convx._cpu.conv2d`, with precision behind the algorithm."""
    *geometry, activation, layout, algorithm, precision, out = options
    last = _last("conv2d", layout)
    image = _nchw(input, last)
    result = _calls.conv2d(image, weight, bias, activation, *geometry, algorithm, precision, out=_nchw(out, last))
    return _restored(result, last) if out is None else _written(out)


@in_float32(1, 2, 0)
def conv2d_backward(grad_output: Tensor, input: Any, weight: Any, *options: Any) -> Any:
    """As `convx._cpu.conv2d_backward`, with precision behind the algorithm."""
    *geometry, layout, algorithm, precision, mask, per_sample = options
    if per_sample is not False:
        tensors = unrecorded("conv2d_backward", None, grad_output=grad_output, input=input, weight=weight)
        rest, after = (*geometry, layout, algorithm), (mask, per_sample)
        return _unrecorded("conv2d_backward", tensors, rest, precision, after)
    last = _last("conv2d_backward", layout)
    gradients = _calls.conv2d_backward(
        _nchw(grad_output, last), _nchw(input, last), weight, mask, *geometry, algorithm, precision
    )
    return None if gradients[0] is None else _restored(gradients[0], last), *gradients[1:]


@in_float32(0)
def conv2d_grad_norms(grad_output: Tensor, input: Any, *options: Any) -> Any:
    """As `convx._cpu.conv2d_grad_norms`, with precision at the end."""
    *rest, precision = options
    tensors = unrecorded("conv2d_grad_norms", None, grad_output=grad_output, input=input)
    return _unrecorded("conv2d_grad_norms", tensors, rest, precision)


@in_float32(LOWER, writes_out=True)
def conv_transpose2d(input: Tensor, weight: Any, bias: Any, *options: Any) -> Any:
    """As `convx._cpu.conv_transpose2d`, with precision behind the algorithm."""
    *geometry, layout, algorithm, precision, out = options
    if out is not None:
        tensors = unrecorded("conv_transpose2d", out, input=input, weight=weight, bias=bias)
        return _unrecorded("conv_transpose2d", tensors, (*geometry, layout, algorithm), precision, (out,))
    last = _last("conv_transpose2d", layout)
    return _restored(_calls.conv_transpose2d(_nchw(input, last), weight, bias, *geometry, algorithm, precision), last)


@in_float32(1, 2, 0)
def conv_transpose2d_backward(grad_output: Tensor, input: Any, weight: Any, *options: Any) -> Any:
    """As `convx._cpu.conv_transpose2d_backward`, with precision behind the algorithm."""
    *geometry, layout, algorithm, precision, mask = options
    last = _last("conv_transpose2d_backward", layout)
    gradients = _calls.conv_transpose2d_backward(
        _nchw(grad_output, last), _nchw(input, last), weight, mask, *geometry, algorithm, precision
    )
    return None if gradients[0] is None else _restored(gradients[0], last), *gradients[1:]


@in_float32(0, writes_out=True)
def relu(input: Tensor, return_mask: Any, out: Any) -> Any:
    """As `convx._cpu.relu`."""
    if return_mask is not False:
        tensors = unrecorded("relu", out, input=input)
        return _unrecorded("relu", tensors, (return_mask, torch.empty_like(tensors["input"]) if out is None else out))
    result = _calls.relu(input, out)
    return result if out is None else _written(out)


@in_float32(0, writes_out=True)
def relu_backward(grad_output: Tensor, output: Any, out: Any) -> Tensor:
    """As `convx._cpu.relu_backward`."""
    if isinstance(output, Tensor) and output.dtype == torch.uint8:
        tensors = unrecorded("relu_backward", out, grad_output=grad_output)
        mask = selection("relu_backward", "output", output, grad_output, "grad_output", {torch.uint8: "a mask of relu"})
        out = torch.empty_like(tensors["grad_output"]) if out is None else out
        return _unrecorded("relu_backward", tensors | {"output": mask}, (out,))  # type: ignore[no-any-return]
    result = _calls.relu_backward(grad_output, output, out)
    return result if out is None else _written(out)


@in_float32(0)
def max_pool2d(input: Tensor, *options: Any) -> Any:
    """As `convx._cpu.max_pool2d`."""
    *pool, layout, indices, codes = options
    last = _last("max_pool2d", layout)
    if indices and codes:
        raise ShapeError("max_pool2d: return_indices and return_codes are both True, expected at most one")
    found = _calls.max_pool2d(_nchw(input, last), "indices" if indices else "codes" if codes else None, *pool)
    if isinstance(found, tuple):
        return _restored(found[0], last), _restored(found[1], last)
    return _restored(found, last)


@in_float32(0)
def max_pool2d_backward(grad_output: Tensor, choice: Any, input_shape: Sequence[int], *options: Any) -> Tensor:
    """As `convx._cpu.max_pool2d_backward`."""
    *pool, layout = options
    last = _last("max_pool2d_backward", layout)
    size = _options.sizes("max_pool2d_backward", "input_shape", input_shape)
    if last and len(size) >= 3:
        size = (*size[:-3], size[-1], size[-3], size[-2])
    return _restored(_calls.max_pool2d_backward(_nchw(grad_output, last), _nchw(choice, last), size, *pool), last)


@in_float32(LOWER)
def conv2d_relu_max_pool2d(input: Tensor, weight: Any, bias: Any, *options: Any) -> Any:
    """As `convx._cpu.conv2d_relu_max_pool2d`, with precision at the end."""
    *fused, layout, precision = options
    last = _last("conv2d_relu_max_pool2d", layout)
    output, codes = _calls.conv2d_relu_max_pool2d(_nchw(input, last), weight, bias, *fused, precision)
    return _restored(output, last), _restored(codes, last)


@in_float32(1, 2, 0)
def conv2d_relu_max_pool2d_backward(grad_output: Tensor, input: Any, weight: Any, codes: Any, *options: Any) -> Any:
    """As `convx._cpu.conv2d_relu_max_pool2d_backward`, with precision in front of the mask."""
    *fused, layout, precision, mask = options
    last = _last("conv2d_relu_max_pool2d_backward", layout)
    images = _nchw(grad_output, last), _nchw(input, last), weight, _nchw(codes, last)
    gradients = _calls.conv2d_relu_max_pool2d_backward(*images, mask, *fused, precision)
    return None if gradients[0] is None else _restored(gradients[0], last), *gradients[1:]


def _unrecorded(
    op: str, tensors: dict[str, Any], rest: Sequence[Any], precision: str | None = None, after: Sequence[Any] = ()
) -> Any:
    """Run an operation that autograd has no rule for, on tensors of which `unrecorded` says that it can.

    `precision` stands between the arguments `rest` and `after`, on CUDA alone; None where there is none. A tensor in
    either of them is `out`: it is written, and returned as it was given.
    """
    name, first = next(iter(tensors.items()))
    outs = {id(each): each for each in (*rest, *after) if isinstance(each, Tensor)}
    if not _kernels.on_cpu(first):
        library, cuda = _devices.dispatch(op, name, first)
        words = () if precision is None else (precision,)
        plain = [None if each is None else _kernels.plain_memory(each) for each in tensors.values()]
        found = getattr(cuda, op)(library, *plain, *rest, *words, *after)
    else:
        if precision not in (None, "ieee"):
            check_precision(op, precision)
        arrays = [None if each is None else _kernels.as_array(each) for each in tensors.values()]
        shared = {number: _kernels.as_array(each) for number, each in outs.items()}
        found = getattr(_kernels.cpu, op)(*arrays, *(shared.get(id(each), each) for each in (*rest, *after)))
        outs = {id(shared[number]): each for number, each in outs.items()}
    if isinstance(found, tuple):
        return tuple(_result(each, outs) for each in found)
    return _result(found, outs)


def _result(found: Any, outs: dict[int, Tensor]) -> Tensor | None:
    if id(found) in outs:
        return _written(outs[id(found)])
    return found if found is None or isinstance(found, Tensor) else _kernels.tensor_of(found)


def _last(op: str, layout: object) -> bool:
    if layout not in ("NCHW", "NHWC"):
        raise ShapeError(f"{op}: layout is {layout!r}, expected 'NCHW' or 'NHWC'")
    return layout == "NHWC"


def _written(out: Tensor) -> Tensor:
    """Let autograd know that `out` has changed: what keeps it for a backward pass then raises."""
    increment_version(out)
    return out


def _nchw(images: Any, last: bool) -> Any:
    """Permute images in NHWC; what is none is left to the checks."""
    if not last or not isinstance(images, Tensor) or images.dim() not in (3, 4):
        return images
    return images.movedim(-1, -3)


def _restored(images: Tensor, last: bool) -> Tensor:
    return images.movedim(-3, -1) if last else images
