"""What `convx.conv2d` and its sisters do with tensors of PyTorch: there the layout is an argument.

``layout="NHWC"`` means that the axes are N, H, W, C. The tensors are then permuted, which moves nothing, and lie as the
kernels for NHWC want them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import increment_version

from .._cpu import ShapeError
from . import _calls


def conv2d(input: Tensor, weight: Any, bias: Any, *options: Any) -> Any:
    """As `convx._cpu.conv2d`, with precision behind the algorithm."""
    *geometry, activation, layout, algorithm, precision, out = options
    last = _last("conv2d", layout)
    image = _nchw(input, last)
    result = _calls.conv2d(image, weight, bias, activation, *geometry, algorithm, precision, out=_nchw(out, last))
    return _restored(result, last) if out is None else _written(out)


def conv2d_backward(grad_output: Tensor, input: Any, weight: Any, *options: Any) -> Any:
    """As `convx._cpu.conv2d_backward`, with precision behind the algorithm."""
    *geometry, layout, algorithm, precision, mask = options
    last = _last("conv2d_backward", layout)
    gradients = _calls.conv2d_backward(
        _nchw(grad_output, last), _nchw(input, last), weight, mask, *geometry, algorithm, precision
    )
    return None if gradients[0] is None else _restored(gradients[0], last), *gradients[1:]


def conv_transpose2d(input: Tensor, weight: Any, bias: Any, *options: Any) -> Tensor:
    """As `convx.conv_transpose2d`, its options in their order."""
    *geometry, layout, algorithm, precision = options
    last = _last("conv_transpose2d", layout)
    return _restored(_calls.conv_transpose2d(_nchw(input, last), weight, bias, *geometry, algorithm, precision), last)


def conv_transpose2d_backward(grad_output: Tensor, input: Any, weight: Any, *options: Any) -> Any:
    """As `convx.conv_transpose2d_backward`, its options in their order."""
    *geometry, layout, algorithm, precision, mask = options
    last = _last("conv_transpose2d_backward", layout)
    gradients = _calls.conv_transpose2d_backward(
        _nchw(grad_output, last), _nchw(input, last), weight, mask, *geometry, algorithm, precision
    )
    return None if gradients[0] is None else _restored(gradients[0], last), *gradients[1:]


def relu(input: Tensor, out: Any) -> Tensor:
    """As `convx._cpu.relu`."""
    result = _calls.relu(input, out)
    return result if out is None else _written(out)


def relu_backward(grad_output: Tensor, output: Any, out: Any) -> Tensor:
    """As `convx._cpu.relu_backward`."""
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
