"""OpenCV's dnn module on the CPU: one net for each copy of the weights, forward only, IEEE float32."""

from __future__ import annotations

from functools import partial
from typing import Any

import cv2
import numpy as np

from benchmarks.cases import Case
from benchmarks.data import Array
from benchmarks.runners import Calls, Runner, inference_only
from benchmarks.runners.onnx_model import model


class OpenCvRunner(Runner):
    outputs = "allocated by every call"

    def __init__(self, variant: str, threads: int) -> None:
        super().__init__(variant, threads)
        cv2.setNumThreads(threads)

    def describe(self) -> dict[str, Any]:
        layout = "NCHW in and out, weights packed ahead"
        return {"version": cv2.__version__, "threads": cv2.getNumThreads(), "layout": layout}

    def logical(self, case: Case, result: Any) -> Array:
        array: Array = result
        return array

    def calls(self, case: Case, arrays: dict[str, Array], copies: int) -> Calls:
        inference_only(case)
        serialised = np.frombuffer(model(case, arrays), np.uint8)
        return [partial(run, cv2.dnn.readNetFromONNX(serialised), arrays["input"]) for _ in range(copies)]


def run(net: cv2.dnn.Net, x: Array) -> Any:
    net.setInput(x)
    return net.forward()


def create(variant: str, threads: int) -> Runner:
    return OpenCvRunner(variant, threads)
