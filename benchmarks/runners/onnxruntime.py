"""ONNX Runtime on the CPU: one session for each copy of the weights, forward only."""

from __future__ import annotations

from functools import partial
from typing import Any

import onnxruntime

from benchmarks.cases import Case
from benchmarks.data import Array
from benchmarks.runners import Calls, Runner, Unsupported
from benchmarks.runners.onnx_model import model


class OnnxRuntimeRunner(Runner):
    outputs = "allocated by every session.run from the runtime's arena; returned as NumPy arrays without a copy"

    def describe(self) -> dict[str, Any]:
        return {"version": onnxruntime.__version__, "threads": self.threads, "layout": "NCHW, weights packed ahead"}

    def logical(self, case: Case, result: Any) -> Array:
        array: Array = result[0]
        return array

    def calls(self, case: Case, arrays: dict[str, Array], copies: int) -> Calls:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        serialised, feed = model(case, arrays), {"x": arrays["input"]}
        try:
            sessions = [
                onnxruntime.InferenceSession(serialised, options, providers=["CPUExecutionProvider"])
                for _ in range(copies)
            ]
        except Exception as error:
            if "NOT_IMPLEMENTED" in str(error):
                raise Unsupported(f"no kernel for {case.dtype}") from None
            raise
        return [partial(session.run, None, feed) for session in sessions]


def create(variant: str, threads: int) -> Runner:
    return OnnxRuntimeRunner(variant, threads)
