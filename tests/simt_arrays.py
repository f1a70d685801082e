"""convx._simt (the CUDA kernels over the shim of tests/simt), and two array libraries for it.

`HOST` is a library object whose "device" memory is NumPy's: the shortest dispatch path to a kernel. `fake_cupy()` makes
a module with the parts of CuPy's interface that convx uses, so that the public functions, the layers and the commands
run the same code as on a GPU. With CONVX_TEST_DEVICE=cuda, tests through `HOST` run on a GPU (cuda_mirror.py).
"""

from __future__ import annotations

import os
import types
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.lib.mixins import NDArrayOperatorsMixin

import cuda_mirror

ON_GPU = os.environ.get("CONVX_TEST_DEVICE") == "cuda"
try:
    if ON_GPU:
        from convx import _cuda

        _simt: Any = cuda_mirror.MirroredModule(_cuda)
    else:
        from convx import _simt
except ImportError:
    _simt = None

needs_simt = pytest.mark.skipif(_simt is None, reason="convx._simt is not built: install with CONVX_SIMT=ON")
DTYPES = ("float32", "float64", "float16", "bfloat16")
# Every combination of dtype and precision.
WAYS = (
    ("float32", "ieee"), ("float32", "tf32x3"), ("float32", "tf32"),
    ("float64", "ieee"), ("float16", "ieee"), ("bfloat16", "ieee"),
)  # fmt: skip
# Bits of the significand, with the hidden bit: of the stored numbers, and of the factors of a product.
STORED_BITS = {"float32": 24, "float64": 53, "float16": 11, "bfloat16": 8}
FACTOR_BITS = {"tf32": 11, "tf32x3": 21}


def numpy_dtype(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


class Host:
    """NumPy arrays as device memory. New ones are full of 0xff, NaN in every type, until a kernel writes them."""

    array_type = "numpy.ndarray"

    def __init__(self) -> None:
        self.allocated: list[np.ndarray] = []

    def describe(self, array: object) -> tuple[Any, ...] | None:
        if not isinstance(array, np.ndarray):
            return None
        strides = tuple(stride // array.itemsize for stride in array.strides)
        address = array.__array_interface__["data"][0]
        return address, array.shape, strides, array.dtype.name, 0, array.flags.writeable

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> np.ndarray:
        assert device == 0
        array = np.frombuffer(
            b"\xff" * (int(np.prod(shape)) * numpy_dtype(dtype).itemsize), numpy_dtype(dtype)
        ).reshape(shape).copy()  # fmt: skip
        self.allocated.append(array)
        return array

    def stream(self, device: int) -> int:
        return 0


if ON_GPU:

    class Host(cuda_mirror.Mirror, Host):  # type: ignore[no-redef]
        """NumPy arrays mirrored on a GPU."""

        memory = cuda_mirror.CudaMemory()


HOST = Host()

_CONV_DEFAULTS = dict(stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros", padding_value=0.0)


def conv2d(
    x: Any, w: Any, b: Any = None, *, activation: Any = None, layout: str = "NCHW", algorithm: str = "auto",
    precision: str = "ieee", out: Any = None, library: Any = HOST, **options: Any,
) -> Any:  # fmt: skip
    values = (_CONV_DEFAULTS | options).values()
    return _simt.conv2d(library, x, w, b, *values, activation, layout, algorithm, precision, out)


def conv2d_backward(
    g: Any, x: Any, w: Any, *, layout: str = "NCHW", algorithm: str = "auto", precision: str = "ieee",
    output_mask: Any = (True, True, True), per_sample: Any = False, library: Any = HOST, **options: Any,
) -> Any:  # fmt: skip
    values = (_CONV_DEFAULTS | options).values()
    return _simt.conv2d_backward(library, g, x, w, *values, layout, algorithm, precision, output_mask, per_sample)


def conv2d_grad_norms(
    g: Any, x: Any, weight_shape: Any, *, layout: str = "NCHW", algorithm: str = "auto", precision: str = "ieee",
    library: Any = HOST, **options: Any,
) -> Any:  # fmt: skip
    values = (_CONV_DEFAULTS | options).values()
    return _simt.conv2d_grad_norms(library, g, x, weight_shape, *values, layout, algorithm, precision)


_TRANSPOSE_DEFAULTS = dict(stride=1, padding=0, output_padding=0, groups=1, dilation=1)


def conv_transpose2d(
    x: Any, w: Any, b: Any = None, *, layout: str = "NCHW", algorithm: str = "auto", precision: str = "ieee",
    out: Any = None, library: Any = HOST, **options: Any,
) -> Any:  # fmt: skip
    values = (_TRANSPOSE_DEFAULTS | options).values()
    return _simt.conv_transpose2d(library, x, w, b, *values, layout, algorithm, precision, out)


def conv_transpose2d_backward(
    g: Any, x: Any, w: Any, *, layout: str = "NCHW", algorithm: str = "auto", precision: str = "ieee",
    output_mask: Any = (True, True, True), library: Any = HOST, **options: Any,
) -> Any:  # fmt: skip
    values = (_TRANSPOSE_DEFAULTS | options).values()
    return _simt.conv_transpose2d_backward(library, g, x, w, *values, layout, algorithm, precision, output_mask)


class FakeArray(NDArrayOperatorsMixin):
    """An array "on the device", like CuPy's: NumPy's functions and operators work on it, and only get() makes it a
    NumPy array."""

    __module__ = "cupy"
    __qualname__ = "ndarray"

    def __init__(self, host: np.ndarray, device: int = 0) -> None:
        self.host = host
        self.device = types.SimpleNamespace(id=device)

    def get(self) -> np.ndarray:
        return self.host.copy()

    def __array__(self, *args: object, **kwargs: object) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        address = self.host.__array_interface__["data"][0]
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (address, False), "version": 3}

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self.host.__array_interface__["data"][0])

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **kwargs: Any) -> Any:
        inputs = tuple(_host(value) for value in inputs)
        if out:
            kwargs["out"] = tuple(value.host for value in out)
        result = getattr(ufunc, method)(*inputs, **kwargs)
        return out[0] if out else FakeArray(np.asarray(result))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        result = function(*map(_host, args), **{name: _host(value) for name, value in kwargs.items()})
        return FakeArray(np.asarray(result))

    def __getitem__(self, key: Any) -> FakeArray:
        return FakeArray(np.asarray(self.host[_indices(key)]))

    def __setitem__(self, key: Any, value: Any) -> None:
        self.host[_indices(key)] = _host(value)

    def __len__(self) -> int:
        return len(self.host)

    def __float__(self) -> float:
        return float(self.host)

    def __bool__(self) -> bool:
        return bool(self.host)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.host, name)
        if not callable(value):
            return FakeArray(value) if isinstance(value, np.ndarray) else value

        def method(*args: Any, **kwargs: Any) -> Any:
            result = value(*map(_host, args), **kwargs)
            return FakeArray(np.asarray(result)) if isinstance(result, (np.ndarray, np.generic)) else result

        return method


def _host(value: Any) -> Any:
    """The memory of a fake array; a NumPy array raises, as in CuPy."""
    if isinstance(value, FakeArray):
        return value.host
    assert not isinstance(value, np.ndarray) or value.ndim == 0, "a NumPy array among arrays of the device"
    return value


def _indices(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(map(_host, key))
    return _host(key)


def fake_cupy() -> types.ModuleType:
    cupy = types.ModuleType("cupy")
    state = types.SimpleNamespace(device=0)

    class Device:
        def __init__(self, device: int) -> None:
            self.device = device

        def __enter__(self) -> None:
            self.before, state.device = state.device, self.device

        def __exit__(self, *error: object) -> None:
            state.device = self.before

    def empty(shape: Any, dtype: Any) -> FakeArray:
        return FakeArray(HOST.empty(shape, np.dtype(dtype).name, 0), state.device)

    def asarray(array: Any) -> FakeArray:
        return array if isinstance(array, FakeArray) else FakeArray(np.asarray(array).copy(), state.device)

    runtime = types.SimpleNamespace(getDevice=lambda: state.device)
    cupy.ndarray = FakeArray
    cupy.empty = empty
    cupy.asarray = asarray
    cupy.arange = lambda n: FakeArray(np.arange(n), state.device)
    cupy.cuda = types.SimpleNamespace(
        Device=Device, runtime=runtime, get_current_stream=lambda device: types.SimpleNamespace(ptr=0)
    )
    return cupy
