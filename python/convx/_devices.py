"""Arrays on a CUDA device: whose they are, and how that library allocates and orders work.

C++ never owns device memory. For every call it is handed one of the objects below, which says where an array lies and
makes new ones, so that the library's memory pool and current stream stay in charge. CuPy and PyTorch are only ever
looked up among the modules that are already loaded: whoever passes an array of theirs has imported them.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np

from . import cuda
from ._cpu import ShapeError

Description: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...], str, int, bool]
"""Address, shape, strides in elements, name of the dtype, device, and whether the array may be written."""


class Library(Protocol):
    """What csrc/bindings/cuda_arrays.h asks of an array library."""

    array_type: str
    """How an error message names the arrays that are accepted."""

    def describe(self, array: Any) -> Description | None:
        """Tell where `array` lies; None where it is not an array of this library on a CUDA device."""

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        """Allocate a new array, in the order of the current stream."""

    def stream(self, device: int) -> int:
        """Return the device's current stream, a ``cudaStream_t``; 0 is the legacy default stream."""


class CuPy:
    """CuPy's arrays, and those that say no more of themselves than ``__cuda_array_interface__``."""

    array_type = "cupy.ndarray"

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy

    def describe(self, array: Any) -> Description | None:
        """See :class:`Library`."""
        writeable = True
        if not isinstance(array, self._cupy.ndarray):
            if not _has_interface(array):
                return None
            writeable = not array.__cuda_array_interface__["data"][1]
            array = self._cupy.asarray(array)  # no copy; waits for the stream that the interface names
        dtype, item = array.dtype, array.dtype.itemsize
        name = dtype.name if dtype.isnative else f"byte-swapped {dtype.name}"
        return array.data.ptr, array.shape, _elements(array.strides, item), name, array.device.id, writeable

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        """See :class:`Library`."""
        if self._cupy.cuda.runtime.getDevice() == device:
            return self._cupy.empty(shape, self._dtype(dtype))
        with self._cupy.cuda.Device(device):
            return self._cupy.empty(shape, self._dtype(dtype))

    def stream(self, device: int) -> int:
        """See :class:`Library`."""
        return int(self._cupy.cuda.get_current_stream(device).ptr)

    @staticmethod
    def _dtype(name: str) -> Any:
        # NumPy knows this dtype by object alone; an array that has it was made with ml_dtypes.
        return sys.modules["ml_dtypes"].bfloat16 if name == "bfloat16" else name


class PyTorch:
    """PyTorch's tensors on CUDA. Gradients are the business of convx.torch, through which all of them come."""

    array_type = "torch.Tensor on a CUDA device"

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        names = ("float32", "float64", "float16", "bfloat16", "int64", "uint8")
        self._names = {getattr(torch, name): name for name in names}

    def describe(self, array: Any) -> Description | None:
        """See :class:`Library`."""
        if not isinstance(array, self._torch.Tensor) or not array.is_cuda or array.layout is not self._torch.strided:
            return None
        name = self._names.get(array.dtype, str(array.dtype))
        return array.data_ptr(), tuple(array.shape), array.stride(), name, array.get_device(), True

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        """See :class:`Library`."""
        return self._torch.empty(shape, dtype=getattr(self._torch, dtype), device=self._torch.device("cuda", device))

    def stream(self, device: int) -> int:
        """See :class:`Library`."""
        return int(self._torch.cuda.current_stream(device).cuda_stream)


_libraries: dict[type, Library] = {}
# What convx.jax.__all__ has; importing it here would import JAX.
_IN_JAX = ("conv2d", "conv2d_relu_max_pool2d", "conv_transpose2d", "max_pool2d", "relu")


def operation(op: str, argument: str, value: Any) -> Callable[..., Any]:
    """Return the function that computes `op` for arrays of the library of `value`, which is not NumPy.

    It takes what those of `convx._cuda` take behind the library.

    Raises
    ------
    TypeError, RuntimeError
        As `dispatch` does.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        routes = importlib.import_module("convx.torch._routes")
        return getattr(routes, op)  # type: ignore[no-any-return]
    library, module = dispatch(op, argument, value)
    return functools.partial(getattr(module, op), library)


def dispatch(op: str, argument: str, value: Any) -> tuple[Library, Any]:
    """Return the library of `value` and the compiled module that works on its arrays.

    Raises
    ------
    TypeError
        Where `value` is no array on a CUDA device.
    RuntimeError
        Where it is one and nothing here can work on it; the message has the reason.
    """
    library = _libraries.get(type(value)) or _recognise(value)
    if library is None or not _on_cuda(value):
        raise unsupported(op, argument, value)
    if reason := cuda.unavailable_reason():
        raise RuntimeError(f"{op}: {argument} is {described(type(value))}, but CUDA cannot be used: {reason}")
    _libraries[type(value)] = library
    return library, cuda.module()


def _recognise(value: Any) -> Library | None:
    cupy, torch = sys.modules.get("cupy"), sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return PyTorch(torch)
    if cupy is not None and _has_interface(value):
        return CuPy(cupy)
    return None


def _has_interface(value: Any) -> bool:
    """Look at the type alone: a tensor's attribute raises for what it cannot export."""
    torch = sys.modules.get("torch")
    return hasattr(type(value), "__cuda_array_interface__") and not (torch and isinstance(value, torch.Tensor))


def _on_cuda(value: Any) -> bool:
    return bool(getattr(value, "is_cuda", True))


def _elements(strides: tuple[int, ...], item: int) -> tuple[int, ...]:
    for stride in strides:
        if stride % item:
            raise ShapeError(f"convx: an array has strides {strides} in bytes, expected multiples of its item's {item}")
    return tuple(stride // item for stride in strides)


def described(kind: type) -> str:
    """Name a type as messages do: "a list", "a torch.Tensor"."""
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def unsupported(op: str, argument: str, value: object, *, numpy_alone: bool = False) -> TypeError:
    """Make the error for a first argument that the operation does not work on; `numpy_alone`: it knows no others."""
    kind = type(value)
    expected = f"{op}: {argument} is {described(kind)}, expected a numpy.ndarray of float32 or float64"
    module = kind.__module__.partition(".")[0]
    if module in ("jax", "jaxlib"):
        forward = op.removesuffix("_backward")
        if forward in _IN_JAX:
            return TypeError(f"{expected}; for JAX's there is convx.jax.{forward}, with its gradients")
        return TypeError(f"{expected}; convx.jax has no {op}: outside of jit pass numpy.asarray({argument})")
    if numpy_alone:
        return TypeError(f"{expected}: weights of other libraries are packed in every call")
    if hasattr(kind, "__cuda_array_interface__") and not hasattr(value, "is_cuda"):
        return TypeError(f"{expected}, or a cupy.ndarray: import cupy, which then allocates the results")
    return TypeError(f"{expected}, or an array of CuPy or PyTorch")


def namespace_of(array: Any) -> Any:
    """Return the module whose functions work on `array`: NumPy, or the loaded CuPy."""
    if isinstance(array, (np.ndarray, np.generic)):
        return np
    return sys.modules.get(type(array).__module__.partition(".")[0], np)


def moved(array: Any, xp: Any) -> Any:
    """Return `array` as one of the module `xp`: itself where it is one already."""
    if xp is np and hasattr(array, "get"):  # CuPy never copies to the host unasked
        return array.get()
    return xp.asarray(array)


def moved_like(array: Any, like: Any) -> Any:
    """Return `array` as one of the library of `like`."""
    return array if type(array) is type(like) else moved(array, namespace_of(like))
