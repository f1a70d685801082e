"""NumPy arrays for the tests of the CUDA kernels, mirrored in the memory of a real device.

With CONVX_TEST_DEVICE=cuda, simt_arrays.py uses these instead of the shim; the same tests, with strided views, then run
convx._cuda on the GPU. An operation works on a copy of its arrays' memory with the same offsets between them, which is
copied back afterwards.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.lib.array_utils import byte_bounds


class Memory(Protocol):
    """The memory of a device."""

    def allocate(self, size: int) -> int: ...
    def free(self, pointer: int) -> None: ...
    def to_device(self, pointer: int, address: int, size: int) -> None: ...
    def to_host(self, address: int, pointer: int, size: int) -> None: ...
    def synchronize(self) -> None: ...


class CudaMemory:
    """Device memory through CuPy's runtime, on the legacy default stream."""

    def __init__(self) -> None:
        from cupy.cuda import runtime

        self._runtime = runtime

    def allocate(self, size: int) -> int:
        return int(self._runtime.malloc(size))

    def free(self, pointer: int) -> None:
        self._runtime.free(pointer)

    def to_device(self, pointer: int, address: int, size: int) -> None:
        self._runtime.memcpy(pointer, address, size, self._runtime.memcpyHostToDevice)

    def to_host(self, address: int, pointer: int, size: int) -> None:
        self._runtime.memcpy(address, pointer, size, self._runtime.memcpyDeviceToHost)

    def synchronize(self) -> None:
        self._runtime.deviceSynchronize()


class Mirror:
    """A mix-in for simt_arrays.Host: addresses are those of the mirror."""

    memory: Memory

    def __init__(self) -> None:
        super().__init__()
        # Lowest address of an array's memory -> (size, pointer, the array, which keeps the memory alive).
        self._mirrored: dict[int, tuple[int, int, np.ndarray]] = {}

    def describe(self, array: object) -> tuple[Any, ...] | None:
        described = super().describe(array)  # type: ignore[misc]
        if described is None:
            return None
        assert isinstance(array, np.ndarray)
        root = array
        while isinstance(root.base, np.ndarray):
            root = root.base
        low, high = byte_bounds(root)
        if low not in self._mirrored:
            pointer = self.memory.allocate(max(high - low, 1))
            self.memory.to_device(pointer, low, high - low)
            self._mirrored[low] = high - low, pointer, root
        return self._mirrored[low][1] + described[0] - low, *described[1:]

    def fetch(self) -> None:
        """Copy the mirrors back to the arrays, and drop them."""
        self.memory.synchronize()
        for low, (size, pointer, root) in self._mirrored.items():
            if root.flags.writeable:
                self.memory.to_host(low, pointer, size)
            self.memory.free(pointer)
        self._mirrored.clear()


class MirroredModule:
    """The compiled module; every operation is followed by `Mirror.fetch`."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)

        def call(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            finally:
                for argument in arguments:
                    if isinstance(argument, Mirror):
                        argument.fetch()

        return call
