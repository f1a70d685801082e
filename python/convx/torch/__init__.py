"""convx for PyTorch: the operations on tensors, recorded by autograd, for eager and compiled programs.

>>> import torch
>>> import convx.torch
>>> images = torch.randn(8, 3, 32, 32)
>>> weight = torch.randn(16, 3, 3, 3, requires_grad=True)
>>> y = convx.torch.conv2d(images, weight, padding=1, activation="relu")
>>> convx.torch.max_pool2d(y, 2).sum().backward()
>>> weight.grad.shape
torch.Size([16, 3, 3, 3])

Nothing of it is compiled against PyTorch: it works with the version that is installed. Import it by name; `import
convx` alone does not load PyTorch.
"""

import ctypes
import os
import sys
from pathlib import Path

import torch

from .. import _cpu, _devices
from . import _tensors
from ._library import decompositions
from .convert import Conversion, convert, revert
from .functional import conv2d, conv2d_relu_max_pool2d, conv_transpose2d, max_pool2d, relu
from .modules import Conv2d, ConvTranspose2d, MaxPool2d, ReLU, ReLU6, Sequential

__all__ = [
    "Conv2d",
    "ConvTranspose2d",
    "Conversion",
    "MaxPool2d",
    "ReLU",
    "ReLU6",
    "Sequential",
    "conv2d",
    "conv2d_relu_max_pool2d",
    "conv_transpose2d",
    "convert",
    "decompositions",
    "max_pool2d",
    "relu",
    "revert",
]

_OPENMP = ("GOMP_parallel", "omp_get_thread_num", "omp_get_max_threads")


def _adopt_threads() -> bool:
    """Let convx run in the threads that PyTorch has loaded; False, and nothing changes, where there are none such.

    A model runs operations of both in turn. Threads of OpenMP poll for some milliseconds after each operation, and two
    pools share the processors then: on four threads of two cores a training step of MobileNetV2 took 1.5 times as long.
    ``CONVX_OPENMP=0`` in the environment leaves both with their own.
    """
    if not sys.platform.startswith("linux") or os.environ.get("CONVX_OPENMP") == "0":
        return False
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        # Already loaded; a name is looked up in it and in what it was linked with, so it is PyTorch's own OpenMP.
        loaded = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        functions = [getattr(loaded, name) for name in _OPENMP]
    except (OSError, AttributeError):
        return False
    addresses = [ctypes.cast(function, ctypes.c_void_p).value for function in functions]
    _cpu.use_team(*(address or 0 for address in addresses))
    return True


_adopt_threads()
_devices.of_tensors.update(_tensors.entry_points)
