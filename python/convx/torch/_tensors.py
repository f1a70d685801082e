"""The tensors of a call: its dispatch path, the checks, autocast, and the layout of images.

Plain eager calls go past PyTorch's dispatcher, straight to the kernels or by way of an autograd.Function. The
dispatcher costs an operation of 13 arguments several microseconds, more than the convolution of a tiny image. It is
needed where something watches or changes what runs: tracing, tensor subclasses, functorch's transforms, dispatch modes
(profilers of shapes, fake tensors, selective checkpointing), forward-mode AD.

The kernels read and write a tensor's memory in place. Images have a layout: "NCHW" and "NHWC" as `convx.conv2d` has
them, and CHANNELS_LAST, whose axes are N, C, H, W while the memory is that of "NHWC", whose kernels it goes to.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C import (
    DispatchKey,
    DispatchKeySet,
    _dispatch_tls_local_include_set,
    _get_tracing_state,
    _is_any_autocast_enabled,
)
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version
from torch.compiler import is_compiling

from .._cpu import ShapeError

_F = TypeVar("_F", bound=Callable[..., Any])


entry_points: dict[str, Callable[..., Any]] = {}


def entry_point(function: _F) -> _F:
    """Let `convx.<name>` hand tensors to a function; it takes the arguments of the CUDA module's behind the library."""
    entry_points[function.__name__] = function
    return function


# The dispatch path


class Path(enum.Enum):
    """Where a call goes."""

    UNCHECKED = enum.auto()
    """To the dispatcher, or nowhere: whether the tensors can be used is still to be checked."""
    DISPATCHER = enum.auto()
    KERNEL = enum.auto()
    RECORDED = enum.auto()
    """To the kernel too, by way of an autograd.Function."""


UNCHECKED, DISPATCHER, KERNEL, RECORDED = Path
PAST_DISPATCHER = (KERNEL, RECORDED)

TYPES = (Tensor, torch.nn.Parameter)
"""Subclasses have a say of their own in what is done with them."""

_ON_CPU = (torch.float32, torch.float64)
_ELSEWHERE = (*_ON_CPU, torch.float16, torch.bfloat16)
_STRIDED = torch.strided

# Every watcher adds a key of its own to this thread's set, so that one look finds all, those of versions to come
# included. With autograd in general there are two keys, in inference mode one.
_eager_keys = DispatchKeySet(DispatchKey.BackendSelect) | DispatchKeySet(DispatchKey.ADInplaceOrView)
_EAGER = {_eager_keys.raw_repr(), DispatchKeySet(DispatchKey.BackendSelect).raw_repr()}


def eager() -> bool:
    """Tell whether nothing watches; autocast and the tensors are still to be looked at."""
    return (
        not is_compiling() and _dispatch_tls_local_include_set().raw_repr() in _EAGER and forward_ad._current_level < 0
    )


def path_of(first: Any, *others: Any) -> Path:
    """Tell where a call goes: past the dispatcher if it is eager, with dense tensors that fit each other.

    Half of the time that a call of a tiny operation takes beside the kernel is spent here and in making NumPy views.
    """
    if type(first) not in TYPES or is_compiling():
        return UNCHECKED
    on_cpu, dtype, recorded = first.is_cpu, first.dtype, first.requires_grad
    if first.layout is not _STRIDED or first.is_nested or dtype not in (_ON_CPU if on_cpu else _ELSEWHERE):
        return UNCHECKED
    for other in others:
        if (
            type(other) not in TYPES
            or other.dtype is not dtype
            or other.is_cpu is not on_cpu
            or other.layout is not _STRIDED
            or other.is_nested
        ):
            return UNCHECKED
        recorded = recorded or other.requires_grad
    if not on_cpu and not all(each.is_cuda for each in (first, *others)):
        return UNCHECKED
    if _is_any_autocast_enabled() and _autocast_changes(on_cpu, dtype):
        return UNCHECKED
    if _dispatch_tls_local_include_set().raw_repr() not in _EAGER or forward_ad._current_level >= 0:
        return DISPATCHER if on_cpu and _get_tracing_state() is None else UNCHECKED
    return RECORDED if recorded and torch.is_grad_enabled() else KERNEL


def is_plain(tensor: object) -> bool:
    """Tell whether this is a dense tensor of no subclass, with memory on the CPU or on CUDA."""
    if type(tensor) not in TYPES:
        return False
    assert isinstance(tensor, Tensor)
    return (tensor.is_cpu or tensor.is_cuda) and tensor.layout is _STRIDED and not tensor.is_nested


def plain(gradient: Tensor) -> bool:
    """Tell whether a backward pass may go to the kernels: it need not be recorded either."""
    return not torch.is_grad_enabled() and is_plain(gradient) and eager()


# Checks


def checked(op: str, **named: Any) -> tuple[list[Any], bool]:
    """Return the tensors as autocast on CUDA wants them, and whether it converted one; raise for unusable ones.

    The first one decides the device and dtype of all; `bias` may be None.
    """
    if _get_tracing_state() is not None:
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
    if kind == "cuda" and torch.is_autocast_enabled(kind):
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
    """Return what max-pooling selected if it is a tensor beside `like` of a dtype of `expected`, which says why."""
    wanted = " or ".join(f"{str(dtype).removeprefix('torch.')} ({meaning})" for dtype, meaning in expected.items())
    tensor = expect_tensor(op, name, value, f" of {wanted}")
    _expect_dense(op, name, tensor)
    if tensor.dtype not in expected:
        raise TypeError(f"{op}: {name} has dtype {_name(tensor)}, expected {wanted}")
    if tensor.device != like.device:
        raise ShapeError(f"{op}: {name} is on device {tensor.device}, expected {like.device} as {first} is")
    return tensor


def expect_images(op: str, **named: Tensor) -> None:
    """Refuse what has not the four axes of a batch of images."""
    for name, tensor in named.items():
        if tensor.dim() != 4:
            raise ShapeError(f"{op}: {name} has {tensor.dim()} dimensions, expected 4, or 3 (unbatched) in all")


def expect_layout(op: str, layout: object) -> None:
    """Refuse other words than "NCHW" and "NHWC"."""
    if layout not in ("NCHW", "NHWC"):
        raise ShapeError(f"{op}: layout is {layout!r}, expected 'NCHW' or 'NHWC'")


def expect_tensor(op: str, name: str, value: object, of: str = "") -> Tensor:
    """Return `value` if it is a tensor; `of` tells in the message of which kind it should be."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} is a {_kind(value)}, expected a torch.Tensor{of}")
    return value


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


def unrecorded(op: str, out: Any, **named: Any) -> dict[str, Any]:
    """Return the tensors, by name, of an operation that autograd and traces know nothing of, or raise."""
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


def written(out: Tensor) -> Tensor:
    """Let autograd know that `out` has changed: what keeps it for a backward pass then raises."""
    increment_version(out)
    return out


def refuse_out(op: str, out: object) -> None:
    """Refuse `out` where the call does not go straight to the kernels."""
    if out is not None:
        raise TypeError(
            f"{op}: out is given, expected None where the call is recorded by autograd, traced or transformed"
        )


def _expect_dense(op: str, name: str, tensor: Tensor) -> None:
    if tensor.layout is not _STRIDED:
        raise TypeError(f"{op}: {name} has layout {tensor.layout}, expected torch.strided: pass tensor.to_dense()")
    if tensor.is_nested:
        raise TypeError(f"{op}: {name} is a nested tensor, expected one of a single shape: pass its parts one by one")


def _nature(tensor: Tensor) -> str:
    """Tell what keeps a tensor from being plain."""
    if tensor.layout is not _STRIDED:
        return f"of layout {tensor.layout}"
    if tensor.is_nested:
        return "a nested tensor"
    return f"on device {tensor.device}" if type(tensor) in TYPES else f"a {_kind(tensor)}"


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


# Autocast
#
# On the CPU results have the dtypes that PyTorch's operations give, and are computed in float32: convx has no 16-bit
# arithmetic there. Tensors of 16 bits are widened and the result is rounded once, at the end, both recorded by
# autograd: gradients arrive in the dtype of what they are gradients of. float64 stays as it is.
#
# Sources: PyTorch's lists of operations ("Automatic Mixed Precision package", CPU Op-Specific Behavior), where
# convolutions run in the lower precision, ReLU and max-pooling in the dtype of their input.

LOWER = -1
"""For `in_float32`: the dtype of autocast."""

_HALF = (torch.float16, torch.bfloat16)


def autocasts(tensor: object) -> bool:
    """Tell whether an operation on this tensor is to run by way of `in_float32`."""
    return torch.is_autocast_enabled("cpu") and isinstance(tensor, Tensor) and tensor.device.type == "cpu"


def in_float32(
    op: str, function: Callable[..., Any], dtypes: tuple[int, ...], *args: Any, out: Tensor | None = None
) -> Any:
    """Call ``function(*args, out)`` with autocast off and tensors of 16 bits widened.

    `dtypes` says for each result which argument has its dtype; `LOWER`: that of autocast. `out` is where the first
    result goes.
    """
    targets = [_target(args, position) for position in dtypes]
    into = None if isinstance(out, Tensor) and out.dtype in _HALF else out
    with torch.autocast("cpu", enabled=False):
        found = function(*map(_widened, args), into)
        if out is not None:
            return _copied(op, out, found)
        if not isinstance(found, tuple):
            return _rounded(found, targets[0])
        return *map(_rounded, found, targets), *found[len(targets) :]


def _autocast_changes(on_cpu: bool, dtype: torch.dtype) -> bool:
    """Tell whether autocast has to do with tensors of this kind. On CUDA it leaves its own dtype and float64."""
    if on_cpu:
        return torch.is_autocast_enabled("cpu")
    return torch.is_autocast_enabled("cuda") and dtype not in (torch.float64, torch.get_autocast_dtype("cuda"))


def _target(args: Any, position: int) -> torch.dtype | None:
    """Return the dtype that a result is to have; None where it stays as it is computed."""
    like = args[max(position, 0)]
    if not isinstance(like, Tensor) or like.dtype not in (torch.float32, *_HALF):
        return None
    return torch.get_autocast_dtype("cpu") if position == LOWER else like.dtype


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALF else value


def _rounded(found: Any, dtype: torch.dtype | None) -> Any:
    return found if found is None or dtype is None or found.dtype != torch.float32 else found.to(dtype)


def _copied(op: str, out: Tensor, found: Any) -> Any:
    """Return the results with `out` as the first: written already, unless it has 16 bits."""
    first, *rest = found if isinstance(found, tuple) else (found,)
    if first is not out:
        if out.shape != first.shape:
            raise ShapeError(f"{op}: out has shape {tuple(out.shape)}, expected {tuple(first.shape)}")
        out.copy_(first)
    return (out, *rest) if rest else out


def _cast(op: str, tensor: Tensor | None) -> Tensor | None:
    """Convert a floating tensor as autocast on CUDA asks for; float64 stays, as in PyTorch's own operations.

    A convolution runs in the dtype of autocast, the rest in its own.
    """
    if tensor is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype("cuda")) if "conv" in op else tensor


# Layouts

CHANNELS_LAST = "channels_last"


AXES = {"NCHW": "NCHW", "NHWC": "NHWC", CHANNELS_LAST: "NHWC"}
"""The layout for the kernels."""


def layout_of(images: Tensor, axes: str = "NCHW") -> str:
    """Return the layout of images whose axes are "NCHW" or "NHWC".

    Whether N, C, H, W lie with their channels adjacent is decided as PyTorch decides it for its own convolutions. Its
    question `is_contiguous` has two right answers where there is one channel; strides have one.
    """
    if axes != "NCHW":
        return axes
    stride = images.stride()
    if stride[1] != 1:
        return "NCHW"
    _, c, h, w = images.shape
    return CHANNELS_LAST if stride[3] >= c and (c > 1 or h * w > 1) else "NCHW"


def nchw(images: Any, layout: str) -> Any:
    """Permute images of "NHWC", 4-D or 3-D, to N, C, H, W, which moves nothing; what is none is left to the checks."""
    if layout != "NHWC" or not isinstance(images, Tensor) or images.dim() not in (3, 4):
        return images
    return images.movedim(-1, -3)


def nchw_size(size: tuple[Any, ...], layout: str) -> tuple[Any, ...]:
    """Return the size of images, likewise."""
    return (*size[:-3], size[-1], size[-3], size[-2]) if layout == "NHWC" and len(size) >= 3 else size


def restored(images: Any, layout: str) -> Any:
    """Permute N, C, H, W to the axes of the layout."""
    return images.movedim(-3, -1) if layout == "NHWC" and images is not None else images
