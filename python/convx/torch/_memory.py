"""The memory of tensors as the kernels see it: NumPy's arrays on the CPU, the library's own on CUDA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _cpu, _devices
from .._types import check_precision
from ._tensors import CHANNELS_LAST, written


def _make_empty(size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="cpu")


# What programs of torch.compile allocate by takes 0.6 us, torch.FloatTensor 1.1 us, torch.empty_strided 1.6 us. It is
# no part of PyTorch's public face, so there may be versions that lack it.
_empty: Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], Tensor]
_empty = getattr(torch._C._dynamo.guards, "_empty_strided_cpu", _make_empty)

_NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.int64: np.dtype(np.int64),
    torch.uint8: np.dtype(np.uint8),
}
_TORCH = {numpy: torch for torch, numpy in _NUMPY.items()}


def _allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    """Return an uninitialised tensor in C order."""
    if len(shape) == 4:  # 0.3 us less than by the loop
        _, c, h, w = shape
        return _empty(shape, (c * h * w, h * w, w, 1), _TORCH[dtype])
    stride, step = [], 1
    for size in reversed(shape):
        stride.append(step)
        step *= size
    return _empty(shape, tuple(reversed(stride)), _TORCH[dtype])


def _allocate_channels_last(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    """Return a tensor whose memory is an array (N, H, W, C) and whose axes are N, C, H, W."""
    n, h, w, c = shape
    return _empty((n, c, h, w), (h * w * c, 1, w * c, c), _TORCH[dtype])


cpu: Any = _cpu.operations_with(_allocate)
"""The operations of `convx._cpu` with results that are allocated by PyTorch: `tensor_of` returns their tensors."""

cpu_for: dict[str, Any] = {"NCHW": cpu, "NHWC": cpu, CHANNELS_LAST: _cpu.operations_with(_allocate_channels_last)}
"""The same for operations whose results are all images of this layout."""


_array_at = _cpu.array_at
# An array, not bytes: torch.compile follows the base of every array that it meets where it gives up tracing.
_ELEMENT = np.zeros(8, np.uint8)
_ADDRESS = _ELEMENT.ctypes.data


def on_cpu(tensor: Tensor) -> bool:
    """Tell whether the tensor goes to the kernels of the CPU."""
    return tensor.is_cpu


def array_of(tensor: Tensor, layout: str = "NCHW") -> Any:
    """Return a NumPy array of the same memory; of images, with the axes of the kernels."""
    if tensor.is_neg():  # a negation that is still to be done
        tensor = tensor.resolve_neg()
    try:
        address = tensor.data_ptr()
    except RuntimeError:  # what was left over of a transform of torch.func that has ended
        tensor = tensor.detach()
        address = tensor.data_ptr()
    if not address and tensor.numel():
        if not tensor._is_zerotensor():  # PyTorch's copy of such a one is a segmentation fault
            raise RuntimeError(f"convx: a tensor of shape {tuple(tensor.shape)} has no memory: its storage was freed")
        tensor = tensor.clone()  # zeros without memory, as derivatives are that PyTorch knows to be 0
        address = tensor.data_ptr()
    shape, stride = tensor.shape, tensor.stride()
    if layout is CHANNELS_LAST:
        (n, c, h, w), (of_n, of_c, of_h, of_w) = shape, stride
        shape, stride = (n, h, w, c), (of_n, of_h, of_w, of_c)  # type: ignore[assignment]
    return _array_at(address, shape, stride, _NUMPY[tensor.dtype], tensor)


def tensor_of(array: Any) -> Tensor:
    """Return the tensor that was allocated for a result."""
    return array.base  # type: ignore[no-any-return]


def gradients_of(arrays: Any, layout: str) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the tensors of three gradients, where they are there, of which the first one is an image."""
    grad_input, grad_weight, grad_bias = [None if each is None else each.base for each in arrays]
    if layout is CHANNELS_LAST and grad_input is not None:
        n, h, w, c = grad_input.shape
        grad_input.as_strided_((n, c, h, w), (h * w * c, 1, w * c, c))
    return grad_input, grad_weight, grad_bias


def nothing(shape: tuple[int, ...], like: Tensor, layout: str = "NCHW") -> Any:
    """Make an array of this shape that takes the place of one that is not read: a single element."""
    if layout is CHANNELS_LAST:
        n, c, h, w = shape
        shape = (n, h, w, c)
    return _array_at(_ADDRESS, shape, (0,) * len(shape), _NUMPY[like.dtype], _ELEMENT)


# Memory on CUDA


def on_device(op: str, name: str, layout: str, images: Sequence[Any], others: Sequence[Any], *args: Any) -> Any:
    """Run an operation by the CUDA kernels, with what the CPU's take and the precision behind the algorithm.

    `name` is that of the first tensor in messages. Of `images` and `others` each may be None.
    """
    library, cuda = _devices.dispatch(op, name, images[0])
    tensors = (*(image_on_device(each, layout) for each in images), *map(plain_memory, others))
    return getattr(cuda, op)(library, *tensors, *args)


def plain_memory(tensor: Any) -> Any:
    """Return the numbers themselves: without a graph, and with a negation done that is still to be done."""
    return tensor.detach().resolve_neg() if isinstance(tensor, Tensor) else tensor


def image_on_device(tensor: Any, layout: str) -> Any:
    """Return images as the kernels take them."""
    tensor = plain_memory(tensor)
    return tensor.permute(0, 2, 3, 1) if tensor is not None and layout is CHANNELS_LAST else tensor


def image_from_device(tensor: Any, layout: str) -> Any:
    """Return images that a kernel made, with the axes of their layout.

    Not as a view: autograd refuses what changes a view in place that one of its functions returned, such as an in-place
    ReLU after a convolution.
    """
    if layout is not CHANNELS_LAST or tensor is None:
        return tensor
    n, h, w, c = tensor.shape
    return tensor.new_empty(0).set_(tensor.untyped_storage(), 0, (n, c, h, w), (h * w * c, 1, w * c, c))


# Operations that autograd and traces know nothing of


def run_unrecorded(
    op: str,
    tensors: dict[str, Any],
    rest: Sequence[Any],
    precision: str | None = None,
    after: Sequence[Any] = (),
) -> Any:
    """Run an operation that autograd has no rule for.

    `precision` stands between the arguments `rest` and `after`, on CUDA alone; None where there is none. A tensor in
    either of them is `out`: it is written, and returned as it was given.
    """
    name, first = next(iter(tensors.items()))
    outs = {id(each): each for each in (*rest, *after) if isinstance(each, Tensor)}
    if not on_cpu(first):
        words = () if precision is None else (precision,)
        found = on_device(op, name, "NCHW", tuple(tensors.values()), (), *rest, *words, *after)
    else:
        if precision not in (None, "ieee"):
            check_precision(op, precision)
        arrays = [array_of(each) if isinstance(each, Tensor) else each for each in tensors.values()]
        shared = {number: array_of(each) for number, each in outs.items()}
        found = getattr(cpu, op)(*arrays, *(shared.get(id(each), each) for each in (*rest, *after)))
        outs = {id(shared[number]): each for number, each in outs.items()}
    if isinstance(found, tuple):
        return tuple(_result(each, outs) for each in found)
    return _result(found, outs)


def _result(found: Any, outs: dict[int, Tensor]) -> Tensor | None:
    if id(found) in outs:
        return written(outs[id(found)])
    return found if found is None or isinstance(found, Tensor) else tensor_of(found)
