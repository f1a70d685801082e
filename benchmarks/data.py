"""Input arrays of a case: random (zeros are cheaper to multiply and to branch on), and equal in every process."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import Case
from benchmarks.problems import ConvProblem, FusedProblem, NetworkProblem, PoolProblem, ReluProblem, Shape

Array = NDArray[Any]

# Results of the libraries are compared at this many positions, drawn with the seed below.
PROBES = 64
SEED = 20
# Every network of networks.py has at least this many classes.
LABELS = 10


def arrays(case: Case) -> dict[str, Array]:
    """The arrays that the pass reads, by name, in NCHW; weights have He's variance, so that results are of order 1."""
    rng = np.random.default_rng(SEED)
    dtype = np.dtype(case.dtype)

    def normal(shape: Shape) -> Array:
        values: Array = rng.standard_normal(shape, dtype=dtype.type)
        return values

    def weight(conv: ConvProblem) -> Array:
        values = normal(conv.weight_shape)
        values *= np.sqrt(2 / prod(conv.weight_shape[1:]))
        return values

    problem, backward = case.problem, not case.passname.startswith("forward")
    match problem:
        case ConvProblem():
            data = {"input": normal(problem.input_shape), "weight": weight(problem), "bias": normal((problem.k,))}
        case FusedProblem():
            conv = problem.conv
            data = {"input": normal(conv.input_shape), "weight": weight(conv), "bias": normal((conv.k,))}
        case PoolProblem():
            data = {"input": normal(problem.input_shape)}
        case ReluProblem():
            data = {"input": normal(problem.input_shape)}
        case NetworkProblem():
            return {"images": normal(problem.input_shape), "labels": rng.integers(0, LABELS, problem.n)}
    if backward:
        data["grad_output"] = normal(problem.output_shape)
    return data


def probe(values: Array) -> list[float]:
    """The values of the result (NCHW) at PROBES fixed random positions, to compare the libraries."""
    positions = np.random.default_rng(SEED).integers(0, values.size, PROBES)
    return [float(values[np.unravel_index(position, values.shape)]) for position in positions]


def ring(array: Array, copies: int) -> list[Array]:
    """`array` and copies of it at other addresses, `copies` in all."""
    return [array] + [array.copy() for _ in range(copies - 1)]
