"""Input arrays of a case: random (zeros are cheaper to multiply and to branch on), and equal in every process."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import Case
from benchmarks.problems import ConvProblem, FusedProblem, NetworkProblem, PoolProblem, ReluProblem, Shape

Array = NDArray[Any]

# Results of the libraries are compared at this many positions, drawn with the seed below; one in BORDERS lies
# at each of the four borders of a plane, where padding matters.
PROBES = 512
BORDERS = 16
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


def positions(shape: Shape) -> list[tuple[int, ...]]:
    """PROBES fixed random positions in a result of that shape."""
    drawn = np.random.default_rng(SEED).integers(0, shape, (PROBES, len(shape)))
    if len(shape) == 4:
        for first, (axis, place) in enumerate(((2, 0), (2, shape[2] - 1), (3, 0), (3, shape[3] - 1))):
            drawn[first::BORDERS, axis] = place
    return [tuple(map(int, position)) for position in drawn]


def probe(values: Array) -> list[float]:
    """The values of the result (NCHW) at these positions, to compare the libraries."""
    return [float(values[position]) for position in positions(values.shape)]


def ring(array: Array, copies: int) -> list[Array]:
    """`array` and copies of it at other addresses, `copies` in all."""
    return [array] + [array.copy() for _ in range(copies - 1)]
