"""Arrays on a CUDA device: their library, its allocator and its current stream.

C++ never owns device memory. Every call passes it one of the objects below, which describes arrays and allocates new
ones from the library's memory pool, in the order of its current stream. CuPy and PyTorch are looked up among the loaded
modules only: a caller who passes their arrays has imported them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np

from . import cuda
from ._cpu import ShapeError

Description: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...], str, int, bool]
"""Address, shape, strides in elements, name of the dtype, device, and whether the array is writeable."""


class Library(Protocol):
    """The interface that csrc/bindings/cuda_arrays.h needs of an array library."""

    array_type: str
    """The name of the accepted arrays in error messages."""

    def describe(self, array: Any) -> Description | None:
        """Describe `array`; None where it is not an array of this library on a CUDA device."""

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        """Allocate a new array, in the order of the current stream."""

    def stream(self, device: int) -> int:
        """Return the device's current stream, a ``cudaStream_t``; 0 is the legacy default stream."""


class CuPy:
    """CuPy's arrays, and other objects with ``__cuda_array_interface__``."""

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
        # NumPy knows this dtype by object only; an array of it was made with ml_dtypes.
        return sys.modules["ml_dtypes"].bfloat16 if name == "bfloat16" else name


class PyTorch:
    """PyTorch's tensors on CUDA. convx.torch, which calls this class, computes the gradients."""

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

of_tensors: dict[str, Callable[..., Any]] = {}
"""The functions that compute each operation for PyTorch's tensors, once convx.torch is imported."""

# convx.jax.__all__, copied since an import would import JAX.
_IN_JAX = ("conv2d", "conv2d_relu_max_pool2d", "conv_transpose2d", "max_pool2d", "relu")


def operation(op: str, argument: str, value: Any) -> Callable[..., Any]:
    """Return the function that computes `op` for arrays of the library of `value`, which is not NumPy.

    It takes the arguments of those of `convx._cuda` after the library.

    Raises
    ------
    TypeError, RuntimeError
        As `dispatch` does.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        try:
            return of_tensors[op]
        except KeyError:  # torch.compile, which follows statements alone, does not see the table change
            from .torch import _tensors

            return _tensors.entry_points[op]
    library, module = dispatch(op, argument, value)
    return functools.partial(getattr(module, op), library)


def dispatch(op: str, argument: str, value: Any) -> tuple[Library, Any]:
    """Return the library of `value` and the compiled module that works on its arrays.

    Raises
    ------
    TypeError
        Where `value` is not an array on a CUDA device.
    RuntimeError
        Where it is one and CUDA cannot be used; the message has the reason.
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
    """Test the type only: a tensor's attribute raises where the tensor cannot be exported."""
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
    """Return the name of a type for messages: "a list", "a torch.Tensor"."""
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def unsupported(op: str, argument: str, value: object, *, numpy_alone: bool = False) -> TypeError:
    """Make the error for an unsupported first argument; `numpy_alone`: the operation takes only NumPy arrays."""
    kind = type(value)
    expected = f"{op}: {argument} is {described(kind)}, expected a numpy.ndarray of float32 or float64"
    module = kind.__module__.partition(".")[0]
    if module in ("jax", "jaxlib"):
        forward = op.removesuffix("_backward")
        if forward in _IN_JAX:
            return TypeError(f"{expected}; convx.jax.{forward} takes JAX arrays and has gradients")
        return TypeError(f"{expected}; convx.jax has no {op}; outside of jit, pass numpy.asarray({argument})")
    if numpy_alone:
        return TypeError(f"{expected}; conv2d packs weights of other libraries in every call")
    if kind.__module__.startswith("torch.fx."):
        return TypeError(f"{expected}, or an array of CuPy or PyTorch; programs traced by torch.fx call convx.torch")
    if hasattr(kind, "__cuda_array_interface__") and not hasattr(value, "is_cuda"):
        return TypeError(f"{expected}, or a cupy.ndarray; import cupy, so that it can allocate the results")
    return TypeError(f"{expected}, or an array of CuPy or PyTorch")


def namespace_of(array: Any) -> Any:
    """Return the module whose functions take `array`: NumPy, or the loaded CuPy."""
    if isinstance(array, (np.ndarray, np.generic)):
        return np
    return sys.modules.get(type(array).__module__.partition(".")[0], np)


def moved(array: Any, xp: Any) -> Any:
    """Return `array` as an array of the module `xp`, without a copy where it is one."""
    if xp is np and hasattr(array, "get"):  # CuPy copies to the host only on request
        return array.get()
    return xp.asarray(array)


def moved_like(array: Any, like: Any) -> Any:
    """Return `array` as an array of the library of `like`."""
    return array if type(array) is type(like) else moved(array, namespace_of(like))
