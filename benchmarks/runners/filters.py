"""Filters of images, for convolutions of one channel that keep the size: cv2.filter2D, scipy.ndimage.correlate.

They take one image at a time, and one plane: another layout of several channels would be another operation.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from functools import partial
from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.data import Array
from benchmarks.problems import ConvProblem
from benchmarks.runners import Calls, Runner, Unsupported


class FilterRunner(Runner):
    outputs = "allocated by every call"

    def logical(self, case: Case, result: Any) -> Array:
        array: Array = result
        return array

    def conv2d_forward(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        assert isinstance(case.problem, ConvProblem)
        require_filter(case.problem)
        return [partial(self.batch, data["input"], data["weight"][0, 0], float(data["bias"][0]))] * copies

    def batch(self, x: Array, kernel: Array, bias: float) -> Array:
        output = np.empty_like(x)
        for image, place in zip(x[:, 0], output[:, 0], strict=True):
            self.image(image, kernel, bias, place)
        return output

    @abstractmethod
    def image(self, image: Array, kernel: Array, bias: float, place: Array) -> None:
        """Write the filtered image, plus the bias, into `place`."""


class Filter2dRunner(FilterRunner):
    def __init__(self, variant: str, threads: int) -> None:
        super().__init__(variant, threads)
        self.cv2 = importlib.import_module("cv2")
        self.cv2.setNumThreads(threads)

    def describe(self) -> dict[str, Any]:
        return {"version": self.cv2.__version__, "threads": self.cv2.getNumThreads()}

    def image(self, image: Array, kernel: Array, bias: float, place: Array) -> None:
        self.cv2.filter2D(image, -1, kernel, dst=place, delta=bias, borderType=self.cv2.BORDER_CONSTANT)


class ScipyRunner(FilterRunner):
    def __init__(self, variant: str, threads: int) -> None:
        super().__init__(variant, threads)
        self.scipy = importlib.import_module("scipy")
        self.ndimage = importlib.import_module("scipy.ndimage")

    def describe(self) -> dict[str, Any]:
        return {"version": self.scipy.__version__, "threads": 1}

    def image(self, image: Array, kernel: Array, bias: float, place: Array) -> None:
        self.ndimage.correlate(image, kernel, output=place, mode="constant")
        place += bias


def require_filter(problem: ConvProblem) -> None:
    """Raises Unsupported for what these functions do not compute."""
    if (problem.c, problem.k) != (1, 1):
        raise Unsupported("one channel and one filter only")
    if problem.stride != (1, 1) or problem.dilation != (1, 1):
        raise Unsupported("stride 1 and dilation 1 only")
    if any(2 * pad + 1 != kernel for pad, kernel in zip(problem.padding, problem.kernel, strict=True)):
        raise Unsupported("images keep their size: padding of half an odd kernel only")


def create(variant: str, threads: int) -> Runner:
    return Filter2dRunner(variant, threads) if variant == "filter2d" else ScipyRunner(variant, threads)
