"""PyTorch on the CPU, eager, in NCHW (`torch`) or channels_last memory format (`torch-cl`).

Gradients are calls of torch.ops.aten with an output mask, so that exactly one is timed and no autograd graph is built.
Every max-pooling writes int64 indices, since PyTorch has no other kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.cases import Case
from benchmarks.data import Array, ring
from benchmarks.problems import ConvProblem, FusedProblem, PoolProblem
from benchmarks.runners import Calls, Runner
from benchmarks.runners.training import Step

aten = torch.ops.aten


class TorchRunner(Runner):
    outputs = "allocated by every call (PyTorch's allocator), except relu forward_out; ReLU after conv2d in place"

    def __init__(self, variant: str, threads: int) -> None:
        super().__init__(variant, threads)
        self.format = torch.channels_last if variant == "torch-cl" else torch.contiguous_format
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)

    def describe(self) -> dict[str, Any]:
        return {
            "version": torch.__version__,
            "threads": torch.get_num_threads(),
            "layout": "channels_last" if self.format is torch.channels_last else "NCHW",
            "capability": torch.backends.cpu.get_cpu_capability(),
        }

    def logical(self, case: Case, result: Any) -> Array:
        if isinstance(result, tuple):
            result = next(each for each in result if each is not None and each.numel())
        array: Array = result.numpy()
        return array

    def arrange(self, array: Array) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.contiguous(memory_format=self.format) if tensor.ndim == 4 else tensor

    def ring(self, array: Array, copies: int) -> list[torch.Tensor]:
        return [self.arrange(each) for each in ring(array, copies)]

    def conv_arguments(self, problem: ConvProblem) -> tuple[Any, ...]:
        return problem.stride, problem.padding, problem.dilation, problem.groups

    def conv2d_forward(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        assert isinstance(case.problem, ConvProblem)
        x, bias = self.arrange(data["input"]), torch.from_numpy(data["bias"])
        options = self.conv_arguments(case.problem)
        return [partial(F.conv2d, x, weight, bias, *options) for weight in self.ring(data["weight"], copies)]

    def conv2d_forward_relu(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        def conv_relu(conv: Callable[[], torch.Tensor]) -> torch.Tensor:
            return conv().relu_()

        return [partial(conv_relu, conv) for conv in self.conv2d_forward(case, data, copies)]

    def conv2d_backward(self, case: Case, data: dict[str, Array], copies: int, mask: list[bool]) -> Calls:
        assert isinstance(case.problem, ConvProblem)
        grad, problem = self.arrange(data["grad_output"]), case.problem
        options = (None, problem.stride, problem.padding, problem.dilation, False, [0, 0], problem.groups, mask)
        if mask[0]:
            x = self.arrange(data["input"])
            pairs = [(x, weight) for weight in self.ring(data["weight"], copies)]
        else:
            weight = self.arrange(data["weight"])
            pairs = [(x, weight) for x in self.ring(data["input"], copies)]
        return [partial(aten.convolution_backward.default, grad, x, weight, *options) for x, weight in pairs]

    def conv2d_grad_input(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        return self.conv2d_backward(case, data, copies, [True, False, False])

    def conv2d_grad_weight(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        return self.conv2d_backward(case, data, copies, [False, True, False])

    def pool_arguments(self, problem: PoolProblem) -> tuple[Any, ...]:
        return problem.kernel, problem.stride, problem.padding, (1, 1), problem.ceil_mode

    def max_pool2d_forward(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        assert isinstance(case.problem, PoolProblem)
        return [partial(F.max_pool2d, self.arrange(data["input"]), *self.pool_arguments(case.problem))] * copies

    def max_pool2d_forward_indices(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        assert isinstance(case.problem, PoolProblem)
        options = self.pool_arguments(case.problem)
        return [partial(aten.max_pool2d_with_indices.default, self.arrange(data["input"]), *options)] * copies

    max_pool2d_forward_codes = max_pool2d_forward_indices

    def max_pool2d_backward(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        assert isinstance(case.problem, PoolProblem)
        x, grad = self.arrange(data["input"]), self.arrange(data["grad_output"])
        options = self.pool_arguments(case.problem)
        indices = aten.max_pool2d_with_indices.default(x, *options)[1]
        saved = [indices] + [indices.clone() for _ in range(copies - 1)]
        return [partial(aten.max_pool2d_with_indices_backward.default, grad, x, *options, each) for each in saved]

    max_pool2d_backward_indices = max_pool2d_backward

    def relu_forward(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        return [partial(torch.relu, torch.from_numpy(data["input"]))] * copies

    def relu_forward_out(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        x = torch.from_numpy(data["input"])
        # Not aten.relu.out, which computes a new tensor and copies it; clamp_min treats NaN alike.
        return [partial(torch.clamp_min, x, 0, out=torch.empty_like(x))] * copies

    def relu_backward(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        grad, output = torch.from_numpy(data["grad_output"]), torch.relu(torch.from_numpy(data["input"]))
        saved = [output] + [output.clone() for _ in range(copies - 1)]
        return [partial(aten.threshold_backward.default, grad, each, 0) for each in saved]

    def conv2d_relu_max_pool2d_forward(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        assert isinstance(case.problem, FusedProblem)
        x, bias = self.arrange(data["input"]), torch.from_numpy(data["bias"])
        conv, pool = self.conv_arguments(case.problem.conv), self.pool_arguments(case.problem.pool)

        def three(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            output = F.conv2d(x, weight, bias, *conv).relu_()
            return (*aten.max_pool2d_with_indices.default(output, *pool), output)

        return [partial(three, weight) for weight in self.ring(data["weight"], copies)]

    def conv2d_relu_max_pool2d_backward(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        assert isinstance(case.problem, FusedProblem)
        problem, conv = case.problem, case.problem.conv
        pool, grad_output = self.pool_arguments(problem.pool), self.arrange(data["grad_output"])
        mask = [problem.needs_grad_input, True, True]
        options = ([conv.k], conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups, mask)

        def three(x: torch.Tensor, weight: torch.Tensor, indices: torch.Tensor, output: torch.Tensor) -> Any:
            grad = aten.max_pool2d_with_indices_backward.default(grad_output, output, *pool, indices)
            grad = aten.threshold_backward.default(grad, output, 0)
            return aten.convolution_backward.default(grad, x, weight, *options)

        _, indices, output = self.conv2d_relu_max_pool2d_forward(case, data, 1)[0]()
        saved = [(indices, output)] + [(indices.clone(), output.clone()) for _ in range(copies - 1)]
        inputs = zip(self.ring(data["input"], copies), self.ring(data["weight"], copies), strict=True)
        return [partial(three, *pair, *each) for pair, each in zip(inputs, saved, strict=True)]

    def training_step(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        self.step = Step(case, data, self.format)
        return [self.step]

    def notes(self, case: Case) -> dict[str, Any]:
        return self.step.saved() if case.op == "training" else {}


def create(variant: str, threads: int) -> Runner:
    return TorchRunner(variant, threads)
