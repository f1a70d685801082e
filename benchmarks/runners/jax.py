"""JAX on the CPU, jitted, in NCHW; gradients are those of jax.vjp, one at a time, without the forward pass.

Arrays are in JAX's memory before the clock starts. The gradient of max-pooling starts from the saved input, since XLA
has no indices.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.cases import Case
from benchmarks.data import Array, ring
from benchmarks.problems import ConvProblem, PoolProblem
from benchmarks.runners import Calls, Runner, Unsupported


class JaxRunner(Runner):
    outputs = "allocated by every call (XLA's allocator)"

    def __init__(self, variant: str, threads: int) -> None:
        super().__init__(variant, threads)
        # The first request starts the threads.
        self.platform = jax.devices()[0].platform
        self.pool = pool_size()

    def describe(self) -> dict[str, Any]:
        return {"version": jax.__version__, "threads": self.pool, "layout": "NCHW"}

    def logical(self, case: Case, result: Any) -> Array:
        return np.asarray(result)

    def calls(self, case: Case, arrays: dict[str, Array], copies: int) -> Calls:
        if self.platform != "cpu":
            raise Unsupported(f"JAX runs on {self.platform}, not on the CPU")
        if self.pool != self.threads:
            raise Unsupported(f"XLA has {self.pool} threads, not {self.threads}: NPROC was not set before it started")
        return super().calls(case, arrays, copies)

    def conv2d_forward(self, case: Case, data: dict[str, Array], copies: int, relu: bool = False) -> Calls:
        convolve = convolution(case)

        def forward(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
            output = convolve(x, weight) + bias[:, None, None]
            return jnp.maximum(output, 0) if relu else output

        compiled, x, bias = jax.jit(forward), jnp.asarray(data["input"]), jnp.asarray(data["bias"])
        return [partial(finished, compiled, x, jnp.asarray(weight), bias) for weight in ring(data["weight"], copies)]

    def conv2d_forward_relu(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        return self.conv2d_forward(case, data, copies, relu=True)

    def conv2d_grad_input(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        convolve = convolution(case)

        def grad_input(grad: jax.Array, x: jax.Array, weight: jax.Array) -> Any:
            return jax.vjp(lambda each: convolve(each, weight), x)[1](grad)[0]

        compiled, grad, x = jax.jit(grad_input), jnp.asarray(data["grad_output"]), jnp.asarray(data["input"])
        return [partial(finished, compiled, grad, x, jnp.asarray(weight)) for weight in ring(data["weight"], copies)]

    def conv2d_grad_weight(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        assert isinstance(case.problem, ConvProblem)
        if 1 < case.problem.groups < case.problem.c:
            raise Unsupported("grouped weights, unless depthwise: XLA takes up to seconds for a call")
        convolve = convolution(case)

        def grad_weight(grad: jax.Array, x: jax.Array, weight: jax.Array) -> Any:
            return jax.vjp(lambda each: convolve(x, each), weight)[1](grad)[0]

        compiled, grad, weight = jax.jit(grad_weight), jnp.asarray(data["grad_output"]), jnp.asarray(data["weight"])
        return [partial(finished, compiled, grad, jnp.asarray(x), weight) for x in ring(data["input"], copies)]

    def max_pool2d_forward(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        return [partial(finished, jax.jit(pooling(case)), jnp.asarray(data["input"]))] * copies

    def max_pool2d_backward(self, case: Case, data: dict[str, Array], copies: int) -> Calls:
        pool = pooling(case)

        def backward(grad: jax.Array, x: jax.Array) -> Any:
            return jax.vjp(pool, x)[1](grad)[0]

        compiled, grad = jax.jit(backward), jnp.asarray(data["grad_output"])
        return [partial(finished, compiled, grad, jnp.asarray(x)) for x in ring(data["input"], copies)]


def finished(compiled: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    return compiled(*arrays).block_until_ready()


def pool_size() -> int:
    """The number of threads that XLA computes with, by the name that it gives them."""
    names = (path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
    return sum(name == "tf_XLAEigen" for name in names)


def convolution(case: Case) -> Callable[[jax.Array, jax.Array], jax.Array]:
    problem = case.problem
    assert isinstance(problem, ConvProblem)
    return partial(
        lax.conv_general_dilated,
        window_strides=problem.stride,
        padding=[(pad, pad) for pad in problem.padding],
        rhs_dilation=problem.dilation,
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
        feature_group_count=problem.groups,
    )


def pooling(case: Case) -> Callable[[jax.Array], jax.Array]:
    problem = case.problem
    assert isinstance(problem, PoolProblem)
    sides = zip(
        problem.input_shape[2:], problem.output_shape[2:], problem.kernel, problem.stride, problem.padding, strict=True
    )
    # Rounded up, the last window may reach beyond the padding.
    ends = [max(pad, (out - 1) * stride + kernel - size - pad) for size, out, kernel, stride, pad in sides]
    padding = [(0, 0), (0, 0), *zip(problem.padding, ends, strict=True)]
    return lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 1, *problem.kernel), (1, 1, *problem.stride), padding
    )  # fmt: skip


def create(variant: str, threads: int) -> Runner:
    return JaxRunner(variant, threads)
