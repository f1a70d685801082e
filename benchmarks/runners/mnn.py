"""MNN on the CPU: a module of one layer for each copy of the weights, forward only, precision "high" (IEEE float32).

`mnn` has MNN's defaults, whose Winograd tiles may be large. `mnn-f2` limits them to 2x2, with less rounding.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

# Not MNN.tools.mnnconvert, which is the same function: importing it installs packages with pip and opens connections.
import _tools
import MNN
from MNN import expr, nn

from benchmarks.cases import Case
from benchmarks.data import Array
from benchmarks.runners import Calls, Runner, Unsupported, inference_only
from benchmarks.runners.onnx_model import model

# MNN's Interpreter::HintMode, which Python does not have by name; every level below 3 allows only the smallest tile.
WINOGRAD_MEMORY_LEVEL = 3
SMALLEST_TILE = 1


class MnnRunner(Runner):
    outputs = "owned by the module and reused by every call; the input is copied"

    def __init__(self, variant: str, threads: int) -> None:
        super().__init__(variant, threads)
        self.small_tiles = variant == "mnn-f2"
        # Its threads wait for a signal between two calls.
        config = {"backend": "CPU", "precision": "high", "numThread": threads}
        self.manager = nn.create_runtime_manager((config,))
        if self.small_tiles:
            self.manager.set_hint(WINOGRAD_MEMORY_LEVEL, SMALLEST_TILE)

    def describe(self) -> dict[str, Any]:
        layout = f"NCHW in and out, weights packed ahead{', Winograd tiles of 2x2 only' if self.small_tiles else ''}"
        return {"version": MNN.version(), "threads": self.threads, "layout": layout}

    def logical(self, case: Case, result: Any) -> Array:
        array: Array = result[1]
        return array

    def calls(self, case: Case, arrays: dict[str, Array], copies: int) -> Calls:
        inference_only(case)
        if self.small_tiles and case.op != "conv2d":
            raise Unsupported("as mnn")
        with tempfile.TemporaryDirectory() as folder:
            source, converted = Path(folder) / "model.onnx", Path(folder) / "model.mnn"
            source.write_bytes(model(case, arrays))
            _tools.mnnconvert(
                ["", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(converted), "--bizCode", "benchmark"]
            )
            # No names of outputs: all of them.
            modules = [
                nn.load_module_from_file(str(converted), ["x"], [], runtime_manager=self.manager) for _ in range(copies)
            ]
        variable = expr.placeholder(list(arrays["input"].shape), expr.NCHW)
        return [partial(run, module, variable, arrays["input"]) for module in modules]


def run(module: Any, variable: Any, x: Array) -> tuple[Any, Array]:
    """The output and its values, which live as long as it."""
    variable.write(x)
    output = module.forward(variable)
    return output, output.read()


def create(variant: str, threads: int) -> Runner:
    return MnnRunner(variant, threads)
