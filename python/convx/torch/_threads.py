"""One pool of threads for PyTorch and convx: PyTorch's, where that is OpenMP's.

A model runs operations of both in turn. Threads of OpenMP poll for some milliseconds after each operation, and two
pools share the processors then: on four threads of two cores a training step of MobileNetV2 took 1.5 times as long.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch

from .. import _cpu

ENTRY_POINTS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_max_threads")


def adopt() -> bool:
    """Let convx run in the threads that PyTorch has loaded; False, and nothing changes, where there are none such.

    ``CONVX_OPENMP=0`` in the environment leaves both with their own.
    """
    if not sys.platform.startswith("linux") or os.environ.get("CONVX_OPENMP") == "0":
        return False
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        # Already loaded; a name is looked up in it and in what it was linked with, so it is PyTorch's own OpenMP.
        loaded = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        functions = [getattr(loaded, name) for name in ENTRY_POINTS]
    except (OSError, AttributeError):
        return False
    addresses = [ctypes.cast(function, ctypes.c_void_p).value for function in functions]
    _cpu.use_team(*(address or 0 for address in addresses))
    return True
