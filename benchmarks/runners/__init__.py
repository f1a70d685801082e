"""One runner per library: turns a case into calls as a user of that library would write them.

A runner's name may carry variants: `torch-cl` (channels_last), `convx-nhwc`, `convx-prepared` (weights packed
ahead, as inference libraries do), `convx-separate` (three operations of the fused one), `convx@avx2` (instruction set
forced). Every runner lives in a process of its own.
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
# Those that "the best peer" is chosen from: other people's libraries at their fastest, NumPy's own functions included.
PEERS = ("torch", "torch-cl", "onnxruntime", "openvino", "numpy")


class Unsupported(Exception):
    """The library, or this way of using it, does not offer the pass; the text says why."""


class Runner(ABC):
    """Methods named OP_PASS take (case, arrays, copies) and return one ready call per copy; see `calls`."""

    # How the library's outputs come to be, stated in every result file.
    outputs: ClassVar[str]

    def __init__(self, variant: str, threads: int) -> None:
        self.variant = variant
        self.threads = threads

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Version, threads and whatever else decides the speed; raises ImportError where the library is missing."""

    @abstractmethod
    def logical(self, case: Case, result: Any) -> Array:
        """The primary result of a call as an NCHW NumPy array."""

    def notes(self, case: Case) -> dict[str, Any]:
        """What else is known of the case, once its calls were made: it goes into the result beside the times."""
        return {}

    def calls(self, case: Case, arrays: dict[str, Array], copies: int) -> Calls:
        """Zero-argument callables, one for each copy of the stored arrays (see Case.rotate)."""
        method = getattr(self, f"{case.op}_{case.passname}", None)
        if method is None:
            raise Unsupported("the library has no such operation")
        calls: Calls = method(case, arrays, copies)
        return calls


def create(name: str, threads: int) -> Runner:
    """The runner of that name; an instruction set after `@` is for the process's environment, not for the runner."""
    variant = name.partition("@")[0]
    if variant not in MODULES:
        raise ValueError(f"no runner {name!r}; there are {', '.join(MODULES)}")
    runner: Runner = importlib.import_module(MODULES[variant]).create(variant, threads)
    return runner
