"""NumPy's own functions, for operations of a single call."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.data import Array
from benchmarks.runners import Calls, Runner


class NumpyRunner(Runner):
    outputs = "allocated by every call, except relu forward_out"

    def describe(self) -> dict[str, Any]:
        return {"version": np.__version__, "threads": 1}

    def logical(self, case: Case, result: Any) -> Array:
        array: Array = result
        return array

    def relu_forward(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        return [partial(np.maximum, data["input"], data["input"].dtype.type(0))] * copies

    def relu_forward_out(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        x = data["input"]
        return [partial(np.maximum, x, x.dtype.type(0), out=np.empty_like(x))] * copies


def create(variant: str, threads: int) -> Runner:
    return NumpyRunner(variant, threads)
