"""convx, called as in its documentation."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np

import convx
import convx.reference
from benchmarks.cases import Case
from benchmarks.data import Array, ring
from benchmarks.problems import ConvProblem, FusedProblem, PoolProblem, ReluProblem
from benchmarks.runners import Calls, Runner, Unsupported
from convx import _cpu


def conv_options(problem: ConvProblem) -> dict[str, Any]:
    return {
        "stride": problem.stride,
        "padding": problem.padding,
        "dilation": problem.dilation,
        "groups": problem.groups,
    }


def pool_options(problem: PoolProblem) -> dict[str, Any]:
    return {"stride": problem.stride, "padding": problem.padding, "ceil_mode": problem.ceil_mode}


class ConvxRunner(Runner):
    outputs = "allocated by every call (NumPy's allocator), except relu forward_out"
    # The module whose functions are called.
    library: Any = convx

    def __init__(self, variant: str, threads: int) -> None:
        super().__init__(variant, threads)
        self.layout = "NHWC" if variant == "convx-nhwc" else "NCHW"
        convx.set_num_threads(threads)

    def describe(self) -> dict[str, Any]:
        config: dict[str, Any] = dict(_cpu.config())
        return {
            "version": convx.__version__,
            "threads": convx.get_num_threads(),
            "isa": config["isa"],
            "isas": list(config["isas"]),
            "forced": os.environ.get("CONVX_ISA"),
            "compiler": config.get("compiler"),
            "layout": self.layout,
        }

    def arrange(self, array: Array) -> Array:
        return array if self.layout == "NCHW" else np.ascontiguousarray(array.transpose(0, 2, 3, 1))

    def logical(self, case: Case, result: Any) -> Array:
        if case.op == "training":
            return np.asarray(result)
        values, is_weight = result, False
        if isinstance(result, tuple):
            chosen = next(i for i, each in enumerate(result) if each is not None)
            values, is_weight = result[chosen], chosen == 1
        channels_last = self.layout == "NHWC" and values.ndim == 4 and not is_weight
        array: Array = values.transpose(0, 3, 1, 2) if channels_last else values
        return array

    def conv2d_forward(self, case: Case, data: dict[str, Array], copies: int, **more: Any) -> Calls:
        assert isinstance(case.problem, ConvProblem)
        x, options = self.arrange(data["input"]), conv_options(case.problem)
        return [
            partial(self.library.conv2d, x, weight, data["bias"], layout=self.layout, **options, **more)
            for weight in ring(data["weight"], copies)
        ]

    def conv2d_forward_relu(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        return self.conv2d_forward(case, data, copies, activation="relu")

    def conv2d_backward(self, case: Case, data: dict[str, Array], copies: int, mask: tuple[bool, bool, bool]) -> Calls:
        assert isinstance(case.problem, ConvProblem)
        grad, x, weight = self.arrange(data["grad_output"]), self.arrange(data["input"]), data["weight"]
        if mask[0]:
            pairs = [(x, each) for each in ring(weight, copies)]
        else:
            pairs = [(each, weight) for each in ring(x, copies)]
        options = {**conv_options(case.problem), "layout": self.layout, "output_mask": mask}
        return [partial(self.library.conv2d_backward, grad, *pair, **options) for pair in pairs]

    def conv2d_grad_input(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        return self.conv2d_backward(case, data, copies, (True, False, False))

    def conv2d_grad_weight(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        return self.conv2d_backward(case, data, copies, (False, True, False))

    def max_pool2d_forward(self, case: Case, data: dict[str, Array], copies: int, **more: Any) -> Calls:
        assert isinstance(case.problem, PoolProblem)
        options = {**pool_options(case.problem), "layout": self.layout, **more}
        return [partial(self.library.max_pool2d, self.arrange(data["input"]), case.problem.kernel, **options)] * copies

    def max_pool2d_forward_codes(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        return self.max_pool2d_forward(case, data, copies, return_codes=True)

    def max_pool2d_forward_indices(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        return self.max_pool2d_forward(case, data, copies, return_indices=True)

    def max_pool2d_backward(self, case: Case, data: dict[str, Array], copies: int, kind: str = "codes") -> Calls:
        assert isinstance(case.problem, PoolProblem)
        problem, options = case.problem, {**pool_options(case.problem), "layout": self.layout}
        x = self.arrange(data["input"])
        selection = self.library.max_pool2d(x, problem.kernel, **options, **{f"return_{kind}": True})[1]
        grad = self.arrange(data["grad_output"])
        return [
            partial(self.library.max_pool2d_backward, grad, saved, x.shape, problem.kernel, **options)
            for saved in ring(selection, copies)
        ]

    def max_pool2d_backward_indices(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        return self.max_pool2d_backward(case, data, copies, "indices")

    def relu_forward(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        return [partial(self.library.relu, data["input"])] * copies

    def relu_forward_out(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        return [partial(self.library.relu, data["input"], out=np.empty_like(data["input"]))] * copies

    def relu_backward(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        assert isinstance(case.problem, ReluProblem)
        output = self.library.relu(data["input"])
        return [partial(self.library.relu_backward, data["grad_output"], saved) for saved in ring(output, copies)]

    def conv2d_relu_max_pool2d_forward(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        x = self.arrange(data["input"])
        return [
            partial(self.library.conv2d_relu_max_pool2d, x, weight, data["bias"], **self.fused_options(case))
            for weight in ring(data["weight"], copies)
        ]

    def conv2d_relu_max_pool2d_backward(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        assert isinstance(case.problem, FusedProblem)
        grad, mask = self.arrange(data["grad_output"]), (case.problem.needs_grad_input, True, True)
        saved = [
            self.library.conv2d_relu_max_pool2d(x, weight, data["bias"], **self.fused_options(case))[1]
            for x, weight in zip(
                ring(self.arrange(data["input"]), copies), ring(data["weight"], copies), strict=True
            )
        ]  # fmt: skip
        return [partial(self.library.conv2d_relu_max_pool2d_backward, grad, each, output_mask=mask) for each in saved]

    def training_step(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        import torch

        import convx.torch
        from benchmarks.runners.training import Step

        torch.set_num_threads(self.threads)
        layout = torch.channels_last if self.layout == "NHWC" else torch.contiguous_format
        self.step = Step(case, data, layout, partial(convx.torch.convert, verbose=False))
        return [self.step]

    def notes(self, case: Case) -> dict[str, Any]:
        return self.step.saved() if case.op == "training" else {}

    def fused_options(self, case: Case) -> dict[str, Any]:
        assert isinstance(case.problem, FusedProblem)
        problem = case.problem
        return {
            **conv_options(problem.conv),
            "pool_kernel_size": problem.pool_kernel,
            "pool_stride": problem.pool_stride,
            "pool_padding": problem.pool_padding,
            "layout": self.layout,
        }


class PreparedRunner(ConvxRunner):
    """Forward with weights packed before the clock starts, as in ONNX Runtime and OpenVINO."""

    def calls(self, case: Case, arrays: dict[str, Array], copies: int) -> Calls:
        if case.op != "conv2d" or not case.passname.startswith("forward"):
            raise Unsupported("weights are prepared for conv2d forward only")
        return super().calls(case, arrays, copies)

    def conv2d_forward(self, case: Case, data: dict[str, Array], copies: int, **more: Any) -> Calls:
        assert isinstance(case.problem, ConvProblem)
        options, x = conv_options(case.problem), data["input"]
        weights = [convx.prepare_weight(weight, x.shape, **options) for weight in ring(data["weight"], copies)]
        return [partial(convx.conv2d, x, weight, data["bias"], **options, **more) for weight in weights]


class SeparateRunner(ConvxRunner):
    """The fused operation as separate calls of conv2d, relu and max_pool2d, to measure the gain of fusion."""

    def calls(self, case: Case, arrays: dict[str, Array], copies: int) -> Calls:
        if case.op != "conv2d_relu_max_pool2d":
            raise Unsupported("only the fused operation has separate calls")
        return super().calls(case, arrays, copies)

    def conv2d_relu_max_pool2d_forward(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        assert isinstance(case.problem, FusedProblem)
        problem = case.problem
        conv, pool = conv_options(problem.conv), {**pool_options(problem.pool), "return_codes": True}

        def separate(weight: Array) -> tuple[Array, Array, Array]:
            output = self.library.conv2d(data["input"], weight, data["bias"], **conv)
            self.library.relu(output, out=output)
            pooled, codes = self.library.max_pool2d(output, problem.pool_kernel, **pool)
            return pooled, codes, output

        return [partial(separate, weight) for weight in ring(data["weight"], copies)]

    def conv2d_relu_max_pool2d_backward(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        assert isinstance(case.problem, FusedProblem)
        problem = case.problem
        conv, pool = conv_options(problem.conv), pool_options(problem.pool)
        mask = (problem.needs_grad_input, True, True)

        def separate(x: Array, weight: Array, codes: Array, output: Array) -> Any:
            grad = data["grad_output"]
            grad = self.library.max_pool2d_backward(grad, codes, output.shape, problem.pool_kernel, **pool)
            self.library.relu_backward(grad, output, out=grad)
            return self.library.conv2d_backward(grad, x, weight, output_mask=mask, **conv)

        _, codes, output = self.conv2d_relu_max_pool2d_forward(case, data, 1)[0]()
        rings = (ring(array, copies) for array in (data["input"], data["weight"], codes, output))
        return [partial(separate, *arrays) for arrays in zip(*rings, strict=True)]


class ReferenceRunner(ConvxRunner):
    """convx.reference on small cases, for scale."""

    outputs = "allocated by every call (NumPy's allocator)"
    library = convx.reference
    # The limit of FLOPs and of bytes; larger cases take too long.
    most_work = 100_000_000

    def describe(self) -> dict[str, Any]:
        return {"version": f"convx {convx.__version__}, NumPy {np.__version__}", "layout": self.layout}

    def calls(self, case: Case, arrays: dict[str, Array], copies: int) -> Calls:
        if max(case.flops, case.bytes) > self.most_work:
            raise Unsupported("left out: too large for plain NumPy")
        if case.passname == "forward_out" or case.op == "training" or not hasattr(self.library, case.op):
            raise Unsupported("not part of the reference")
        return super().calls(case, arrays, 1)


VARIANTS = {"convx-prepared": PreparedRunner, "convx-separate": SeparateRunner, "reference": ReferenceRunner}


def create(variant: str, threads: int) -> Runner:
    return VARIANTS.get(variant, ConvxRunner)(variant, threads)
