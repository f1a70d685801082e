"""What `convx.conv2d` and its sisters do with tensors of PyTorch: there the layout is an argument.

``layout="NHWC"`` means that the axes are N, H, W, C. The tensors are then permuted, which moves nothing, and lie as the
kernels for NHWC want them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import _cpu, _devices
from .._cpu import ShapeError
from ..ops import check_precision
from . import _calls
from ._eager import eager, is_plain


def conv2d(input: Tensor, weight: Any, bias: Any, *options: Any) -> Any:
    """As `convx._cpu.conv2d`, with precision behind the algorithm."""
    *geometry, activation, layout, algorithm, precision, out = options
    last = _last("conv2d", layout)
    image = _nchw(input, last)
    result = _calls.conv2d(image, weight, bias, activation, *geometry, algorithm, precision, out=_nchw(out, last))
    return _restored(result, last) if out is None else _written(out)


def conv2d_backward(grad_output: Tensor, input: Any, weight: Any, *options: Any) -> Any:
    """As `convx._cpu.conv2d_backward`, with precision behind the algorithm."""
    *geometry, layout, algorithm, precision, mask, per_sample = options
    if per_sample is not False:
        before, after = (grad_output, input, weight, *geometry, layout, algorithm), (mask, per_sample)
        return _unrecorded("conv2d_backward", "grad_output", before, precision, after)
    last = _last("conv2d_backward", layout)
    gradients = _calls.conv2d_backward(
        _nchw(grad_output, last), _nchw(input, last), weight, mask, *geometry, algorithm, precision
    )
    return None if gradients[0] is None else _restored(gradients[0], last), *gradients[1:]


def conv2d_grad_norms(grad_output: Tensor, *rest: Any) -> Any:
    """As `convx._cpu.conv2d_grad_norms`, with precision at the end."""
    *before, precision = rest
    return _unrecorded("conv2d_grad_norms", "grad_output", (grad_output, *before), precision)


def conv_transpose2d(input: Tensor, weight: Any, bias: Any, *options: Any) -> Any:
    """As `convx._cpu.conv_transpose2d`, with precision behind the algorithm."""
    *geometry, layout, algorithm, precision, out = options
    if out is not None:
        before = (input, weight, bias, *geometry, layout, algorithm)
        return _unrecorded("conv_transpose2d", "input", before, precision, (out,))
    last = _last("conv_transpose2d", layout)
    return _restored(_calls.conv_transpose2d(_nchw(input, last), weight, bias, *geometry, algorithm, precision), last)


def conv_transpose2d_backward(grad_output: Tensor, input: Any, weight: Any, *options: Any) -> Any:
    """As `convx._cpu.conv_transpose2d_backward`, with precision behind the algorithm."""
    *geometry, layout, algorithm, precision, mask = options
    last = _last("conv_transpose2d_backward", layout)
    gradients = _calls.conv_transpose2d_backward(
        _nchw(grad_output, last), _nchw(input, last), weight, mask, *geometry, algorithm, precision
    )
    return None if gradients[0] is None else _restored(gradients[0], last), *gradients[1:]


def relu(input: Tensor, return_mask: Any, out: Any) -> Any:
    """As `convx._cpu.relu`."""
    if return_mask is not False:
        return _unrecorded("relu", "input", (input, return_mask, out))
    result = _calls.relu(input, out)
    return result if out is None else _written(out)


def relu_backward(grad_output: Tensor, output: Any, out: Any) -> Tensor:
    """As `convx._cpu.relu_backward`."""
    if isinstance(output, Tensor) and output.dtype == torch.uint8:
        return _unrecorded("relu_backward", "grad_output", (grad_output, output, out))  # type: ignore[no-any-return]
    result = _calls.relu_backward(grad_output, output, out)
    return result if out is None else _written(out)


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


def max_pool2d_backward(grad_output: Tensor, choice: Any, input_shape: Sequence[int], *options: Any) -> Tensor:
    """As `convx._cpu.max_pool2d_backward`."""
    *pool, layout = options
    last = _last("max_pool2d_backward", layout)
    size = tuple(input_shape)
    if last and len(size) >= 3:
        size = (*size[:-3], size[-1], size[-3], size[-2])
    return _restored(_calls.max_pool2d_backward(_nchw(grad_output, last), _nchw(choice, last), size, *pool), last)


def conv2d_relu_max_pool2d(input: Tensor, weight: Any, bias: Any, *options: Any) -> Any:
    """As `convx._cpu.conv2d_relu_max_pool2d`, with precision at the end."""
    *fused, layout, precision = options
    last = _last("conv2d_relu_max_pool2d", layout)
    output, codes = _calls.conv2d_relu_max_pool2d(_nchw(input, last), weight, bias, *fused, precision)
    return _restored(output, last), _restored(codes, last)


def conv2d_relu_max_pool2d_backward(grad_output: Tensor, input: Any, weight: Any, codes: Any, *options: Any) -> Any:
    """As `convx._cpu.conv2d_relu_max_pool2d_backward`, with precision in front of the mask."""
    *fused, layout, precision, mask = options
    last = _last("conv2d_relu_max_pool2d_backward", layout)
    images = _nchw(grad_output, last), _nchw(input, last), weight, _nchw(codes, last)
    gradients = _calls.conv2d_relu_max_pool2d_backward(*images, mask, *fused, precision)
    return None if gradients[0] is None else _restored(gradients[0], last), *gradients[1:]


def _unrecorded(
    op: str,
    first: str,
    before: Sequence[Any],
    precision: str | None = None,
    after: Sequence[Any] = (),
) -> Any:
    """Run an operation that autograd has no rule for, on plain tensors of which none requires grad.

    `precision` stands between the arguments `before` and `after` it, on CUDA alone; None where there is none.
    """
    tensors = [each for each in (*before, *after) if isinstance(each, Tensor)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise TypeError(
            f"{op}: a torch.Tensor requires grad, and this operation is not recorded by autograd: pass "
            "tensor.detach(), or call under torch.no_grad()"
        )
    if not (eager() and all(is_plain(tensor) for tensor in tensors)):
        raise TypeError(
            f"{op}: {first} is neither traced nor transformed in this operation: expected dense tensors with memory on "
            "the CPU or on CUDA, outside of torch.compile, torch.func and fake modes"
        )
    if not tensors[0].is_cpu:
        library, cuda = _devices.dispatch(op, first, tensors[0])
        words = () if precision is None else (precision,)
        return getattr(cuda, op)(library, *before, *words, *after)
    if precision not in (None, "ieee"):
        check_precision(op, precision)
    shared = {id(each): each.detach().numpy() for each in tensors}
    found = getattr(_cpu, op)(*(shared.get(id(each), each) for each in (*before, *after)))
    written = {id(shared[id(each)]): each for each in tensors}  # `out` is returned as it was given
    if isinstance(found, tuple):
        return tuple(_tensor_of(each, written) for each in found)
    return _tensor_of(found, written)


def _tensor_of(found: Any, written: dict[int, Tensor]) -> Tensor | None:
    if found is None:
        return None
    if id(found) in written:
        return _written(written[id(found)])
    return torch.from_numpy(np.asarray(found))


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
