"""Which way a call takes, and whether its tensors are what the operations work on."""

from __future__ import annotations

import enum
from typing import Any

import torch
from torch import Tensor

from .._cpu import ShapeError
from ._eager import TYPES, eager, is_plain

_ON_CPU = (torch.float32, torch.float64)
_ELSEWHERE = (*_ON_CPU, torch.float16, torch.bfloat16)


class Way(enum.Enum):
    """Where a call goes."""

    DISPATCHER = enum.auto()
    KERNEL = enum.auto()
    RECORDED = enum.auto()
    """To the kernel too, by way of an autograd.Function."""


def way(first: Any, *others: Any) -> Way:
    """Tell where a call goes: past the dispatcher if it is eager, with dense tensors that fit each other.

    Half of the time that a call of a tiny operation takes beside the kernel is spent here and in making NumPy views.
    """
    if type(first) not in TYPES or not eager():
        return Way.DISPATCHER
    on_cpu, dtype = first.is_cpu, first.dtype
    recorded = first.requires_grad
    if first.layout is not torch.strided or first.is_nested or dtype not in (_ON_CPU if on_cpu else _ELSEWHERE):
        return Way.DISPATCHER
    for other in others:
        if type(other) not in TYPES or other.dtype is not dtype or other.is_cpu is not on_cpu:
            return Way.DISPATCHER
        if other.layout is not torch.strided or other.is_nested:
            return Way.DISPATCHER
        recorded = recorded or other.requires_grad
    if not on_cpu:
        if not all(each.is_cuda for each in (first, *others)):
            return Way.DISPATCHER
        # On CUDA autocast leaves its own dtype and float64.
        if torch.is_autocast_enabled("cuda") and dtype not in (torch.float64, torch.get_autocast_dtype("cuda")):
            return Way.DISPATCHER
    return Way.RECORDED if recorded and torch.is_grad_enabled() else Way.KERNEL


def destination(op: str, out: object, like: Tensor) -> Tensor:
    """Return `out`, which is to be written, if it is a tensor beside `like` that autograd lets be written."""
    out = expect_tensor(op, "out", out)
    expected = f"expected a dense torch.Tensor on device {like.device}"
    if not is_plain(out):
        raise TypeError(f"{op}: out is {_nature(out)}, {expected}")
    if out.is_neg():
        raise TypeError(f"{op}: out is the view of a negation, {expected}")
    if out.device != like.device:
        raise ShapeError(f"{op}: out is on device {out.device}, expected {like.device} as the other arguments are")
    if out.requires_grad and torch.is_grad_enabled():
        raise TypeError(f"{op}: out requires grad, expected a tensor that does not, or torch.no_grad()")
    return out


def checked(op: str, **named: Any) -> tuple[list[Any], bool]:
    """Return the tensors as autocast on CUDA wants them, and whether it converted one; raise for unusable ones.

    The first one decides the device and dtype of all; `bias` may be None.
    """
    if torch._C._get_tracing_state() is not None:
        raise NotImplementedError(
            f"{op}: torch.jit.trace does not know convx's operations: use torch.export, torch.onnx.export with "
            "dynamo=True, or convx.torch.revert for the model that is traced"
        )
    (first_name, first), *_ = named.items()
    for name, tensor in named.items():
        if tensor is None and name == "bias":
            continue
        expect_tensor(op, name, tensor)
        _expect_dense(op, name, tensor)
        if tensor.device != first.device:
            raise ShapeError(f"{op}: {name} is on device {tensor.device}, expected {first.device} as {first_name} is")
    kind = first.device.type
    tensors = list(named.values())
    if kind == "cuda" and torch.is_autocast_enabled(kind):  # on the CPU: _autocast.py
        tensors = [_cast(op, tensor) for tensor in tensors]
    dtype = tensors[0].dtype
    for name, tensor in zip(named, tensors, strict=True):
        if tensor is None:
            continue
        if tensor.dtype not in (_ON_CPU if kind == "cpu" else _ELSEWHERE):
            _refuse_dtype(op, name, tensor, kind)
        if tensor.dtype != dtype:
            raise TypeError(f"{op}: {name} has dtype {_name(tensor)}, expected {_name(tensors[0])} as {first_name} has")
    if "conv" in op or "pool" in op:
        if tensors[0].dim() not in (3, 4):
            dims = tensors[0].dim()
            raise ShapeError(f"{op}: {first_name} has {dims} dimensions, expected 4 or 3 (unbatched)")
        if "weight" in named and named["weight"].dim() != 4:
            raise ShapeError(f"{op}: weight has {named['weight'].dim()} dimensions, expected 4")
    return tensors, any(new is not old for new, old in zip(tensors, named.values(), strict=True))


def selection(op: str, name: str, value: object, like: Tensor, first: str, expected: dict[torch.dtype, str]) -> Tensor:
    """Return what max-pooling chose if it is a tensor beside `like` of a dtype that is `expected`, with its meaning."""
    wanted = " or ".join(f"{str(dtype).removeprefix('torch.')} ({meaning})" for dtype, meaning in expected.items())
    tensor = expect_tensor(op, name, value, f" of {wanted}")
    _expect_dense(op, name, tensor)
    if tensor.dtype not in expected:
        raise TypeError(f"{op}: {name} has dtype {_name(tensor)}, expected {wanted}")
    if tensor.device != like.device:
        raise ShapeError(f"{op}: {name} is on device {tensor.device}, expected {like.device} as {first} is")
    return tensor


def unrecorded(op: str, out: Any, **named: Any) -> dict[str, Any]:
    """Return the tensors, by name, for an operation that autograd and traces know nothing of, or raise."""
    if not eager():
        raise TypeError(
            f"{op}: this operation is neither traced nor transformed, expected a call outside of torch.compile, "
            "torch.func, forward-mode AD and dispatch modes"
        )
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            continue  # `checked` has the message
        if tensor.requires_grad and torch.is_grad_enabled():
            raise TypeError(
                f"{op}: {name} requires grad, and this operation is not recorded by autograd: pass {name}.detach(), or "
                "call under torch.no_grad()"
            )
        if not is_plain(tensor):
            raise TypeError(
                f"{op}: {name} is {_nature(tensor)}, expected a dense torch.Tensor with memory on the CPU or on CUDA: "
                "this operation is neither traced nor transformed"
            )
    tensors, _ = checked(op, **named)
    if out is not None:
        destination(op, out, tensors[0])
    return dict(zip(named, tensors, strict=True))


def expect_tensor(op: str, name: str, value: object, of: str = "") -> Tensor:
    """Return `value` if it is a tensor; `of` tells in the message of which kind it should be."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} is a {_kind(value)}, expected a torch.Tensor{of}")
    return value


def _expect_dense(op: str, name: str, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided:
        raise TypeError(f"{op}: {name} has layout {tensor.layout}, expected torch.strided: pass tensor.to_dense()")
    if tensor.is_nested:
        raise TypeError(f"{op}: {name} is a nested tensor, expected one of a single shape: pass its parts one by one")


def _nature(tensor: Tensor) -> str:
    """Tell what keeps a tensor from being plain."""
    if tensor.layout is not torch.strided:
        return f"of layout {tensor.layout}"
    if tensor.is_nested:
        return "a nested tensor"
    return f"on device {tensor.device}" if type(tensor) in TYPES else f"a {_kind(tensor)}"


def _cast(op: str, tensor: Tensor | None) -> Tensor | None:
    """Convert a floating tensor as autocast on CUDA asks for; float64 stays, as in PyTorch's own operations.

    A convolution runs in the dtype of autocast, the rest in its own.
    """
    if tensor is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype("cuda")) if "conv" in op else tensor


def _kind(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _refuse_dtype(op: str, name: str, tensor: Tensor, kind: str) -> None:
    message = f"{op}: {name} has dtype {_name(tensor)}, expected float32 or float64"
    if kind != "cpu":
        raise TypeError(f"{message}, float16 or bfloat16")
    if tensor.dtype in _ELSEWHERE:
        message += " on the CPU: pass tensor.float(), or call under torch.autocast, which converts"
    raise TypeError(message)
