"""OpenVINO on the CPU: one compiled model for each copy of the weights, latency hint, forward only, IEEE float32."""

from __future__ import annotations

from functools import partial
from typing import Any

import openvino

from benchmarks.cases import Case
from benchmarks.data import Array
from benchmarks.runners import Calls, Runner, Unsupported
from benchmarks.runners.onnx_model import model


class OpenVinoRunner(Runner):
    outputs = "owned by the infer request and reused by every call (inputs and outputs shared, nothing is copied)"

    def __init__(self, variant: str, threads: int) -> None:
        super().__init__(variant, threads)
        self.core = openvino.Core()
        self.settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
        }

    def describe(self) -> dict[str, Any]:
        version = openvino.get_version().partition("-")[0]
        return {"version": version, "threads": self.threads, "layout": "NCHW in and out, weights packed ahead"}

    def logical(self, case: Case, result: Any) -> Array:
        array: Array = result[0]
        return array

    def calls(self, case: Case, arrays: dict[str, Array], copies: int) -> Calls:
        if case.dtype != "float32":
            raise Unsupported("computes in float32 for every dtype of the model")
        serialised = model(case, arrays)
        requests = [
            self.core.compile_model(self.core.read_model(serialised), "CPU", self.settings).create_infer_request()
            for _ in range(copies)
        ]
        return [
            partial(request.infer, [arrays["input"]], share_inputs=True, share_outputs=True) for request in requests
        ]


def create(variant: str, threads: int) -> Runner:
    return OpenVinoRunner(variant, threads)
