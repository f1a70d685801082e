"""One runner for each library: it turns a case into calls as a user of that library would write them.

The name of a runner may have variants: `torch-cl` (channels_last), `convx-nhwc`, `convx-prepared` (weights packed
ahead, as inference libraries do), `convx-separate` (the fused operation as three), `convx@avx2` (instruction set
forced). Every runner has its own process.
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
    "numpy": "benchmarks.runners.numpy",
    "reference": "benchmarks.runners.convx",
}
# The candidates for the best peer: the other libraries at their fastest, and NumPy's own functions.
PEERS = ("torch", "torch-cl", "onnxruntime", "openvino", "numpy")


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


def create(name: str, threads: int) -> Runner:
    """The runner of that name; the instruction set after `@` is set in the environment of the process."""
    variant = name.partition("@")[0]
    if variant not in MODULES:
        raise ValueError(f"no runner {name!r}; there are {', '.join(MODULES)}")
    runner: Runner = importlib.import_module(MODULES[variant]).create(variant, threads)
    return runner
