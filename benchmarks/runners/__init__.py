"""One runner for each library: it turns a case into calls as a user of that library would write them.

The name of a runner may have variants: `torch-cl` (channels_last), `convx-nhwc`, `convx-prepared` (weights packed
ahead, as inference libraries do), `convx-separate` (the fused operation as three), `convx@avx2` (instruction set
forced), `mnn-f2` (the smallest tile of Winograd's method). Every runner has its own process.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from benchmarks.cases import Case
from benchmarks.data import Array

Calls = list[Callable[[], Any]]

MODULES = {
    "convx": "benchmarks.runners.convx",
    "convx-nhwc": "benchmarks.runners.convx",
    "convx-prepared": "benchmarks.runners.convx",
    "convx-separate": "benchmarks.runners.convx",
    "torch": "benchmarks.runners.torch",
    "torch-cl": "benchmarks.runners.torch",
    "onnxruntime": "benchmarks.runners.onnxruntime",
    "openvino": "benchmarks.runners.openvino",
    "ncnn": "benchmarks.runners.ncnn",
    "mnn": "benchmarks.runners.mnn",
    "mnn-f2": "benchmarks.runners.mnn",
    "opencv": "benchmarks.runners.opencv",
    "jax": "benchmarks.runners.jax",
    "filter2d": "benchmarks.runners.filters",
    "scipy": "benchmarks.runners.filters",
    "numpy": "benchmarks.runners.numpy",
    "reference": "benchmarks.runners.convx",
}
# Those that run every operation; those for convolution and pooling; those that filter images of one channel.
GENERAL = ("torch", "torch-cl", "onnxruntime", "openvino")
CONVOLUTION = ("ncnn", "mnn", "mnn-f2", "opencv", "jax")
FILTERS = ("filter2d", "scipy")
# The candidates for the best peer: the other libraries at their fastest, and NumPy's own functions.
PEERS = (*GENERAL, *CONVOLUTION, *FILTERS, "numpy")


class Unsupported(Exception):
    """The runner does not have the pass; the message has the reason."""


class Runner(ABC):
    """Methods named OP_PASS take (case, arrays, copies) and return one call for each copy; see `calls`."""

    # How the library allocates outputs, for the result file.
    outputs: ClassVar[str]

    def __init__(self, variant: str, threads: int) -> None:
        self.variant = variant
        self.threads = threads

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Version, threads and other facts that determine the speed; raises ImportError without the library."""

    @abstractmethod
    def logical(self, case: Case, result: Any) -> Array:
        """The primary result of a call as an NCHW NumPy array."""

    def notes(self, case: Case) -> dict[str, Any]:
        """Other measurements of the case, made with its calls, for the result file."""
        return {}

    def calls(self, case: Case, arrays: dict[str, Array], copies: int) -> Calls:
        """Zero-argument callables, one for each copy of the stored arrays (see Case.rotate)."""
        method = getattr(self, f"{case.op}_{case.passname}", None)
        if method is None:
            raise Unsupported("the library has no such operation")
        calls: Calls = method(case, arrays, copies)
        return calls


def inference_only(case: Case) -> None:
    """Raises Unsupported for all but what a library for inference in float32 has."""
    if case.op not in ("conv2d", "max_pool2d"):
        raise Unsupported("conv2d and max_pool2d only")
    if case.passname not in ("forward", "forward_relu"):
        raise Unsupported("forward only, without codes or indices")
    if case.dtype != "float32":
        raise Unsupported("float32 only")


def environment(name: str, threads: int) -> dict[str, str]:
    """The variables that the process of this runner needs before its library is loaded."""
    variant = name.partition("@")[0]
    if variant == "ncnn":
        # GNU's OpenMP otherwise lets its threads spin for milliseconds, into the turn of another library.
        return {"OMP_WAIT_POLICY": "PASSIVE"}
    if variant == "jax":
        # XLA takes the size of its thread pool from NPROC and has no option for it.
        return {"NPROC": str(threads), "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
    return {}


def create(name: str, threads: int) -> Runner:
    """The runner of that name; the instruction set after `@` is set in the environment of the process."""
    variant = name.partition("@")[0]
    if variant not in MODULES:
        raise ValueError(f"no runner {name!r}; there are {', '.join(MODULES)}")
    runner: Runner = importlib.import_module(MODULES[variant]).create(variant, threads)
    return runner
