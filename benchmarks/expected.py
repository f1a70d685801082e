"""The right values of a result at its probed positions, in float64, from the definition of the operation.

Each value is computed alone, so that the largest layers take milliseconds, and by no library, so that a run of two
libraries tells which of them is wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.cases import Case
from benchmarks.data import Array, positions
from benchmarks.problems import ConvProblem, FusedProblem, PoolProblem, ReluProblem, Shape, conv_size

Arrays = dict[str, Array]
# Indices of one axis that belong together: two arrays of equal lengths.
Match = tuple[Array, Array]
# (problem, arrays, *position) -> the value there.
Value = Callable[..., float]


def values(case: Case, data: Arrays) -> Array | None:
    """One value for each of data.positions; None for the passes that have no short definition."""
    found = definition(case)
    if found is None:
        return None
    shape, value = found
    wanted = positions(shape)
    # Each position once: filters of a photograph have fewer weights than there are probes.
    known = {position: value(case.problem, data, *position) for position in set(wanted)}
    return np.array([known[position] for position in wanted])


def definition(case: Case) -> tuple[Shape, Value] | None:
    """The shape of the primary result and the function of one value."""
    problem, passname = case.problem, case.passname
    forward = passname.startswith("forward")
    match problem:
        case ConvProblem() if forward:
            return problem.output_shape, rectified if passname == "forward_relu" else convolved
        case ConvProblem() if passname == "grad_input":
            return problem.input_shape, grad_input
        case ConvProblem():
            return problem.weight_shape, grad_weight
        case PoolProblem():
            return (problem.output_shape, pooled) if forward else (problem.input_shape, pool_grad)
        case ReluProblem():
            return problem.output_shape, relu if forward else relu_grad
        case FusedProblem() if forward:
            return problem.output_shape, fused
    return None


def reads(at: int, size: int, kernel: int, stride: int, padding: int, dilation: int) -> Match:
    """The pixels of one axis that the output pixel `at` reads, and the taps that read them."""
    taps = np.arange(kernel)
    pixels = at * stride - padding + taps * dilation
    inside = (pixels >= 0) & (pixels < size)
    return pixels[inside], taps[inside]


def readers(at: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> Match:
    """The output pixels of one axis that read the pixel `at`, and the taps by which they read it."""
    taps = np.arange(kernel)
    steps = at + padding - taps * dilation
    inside = (steps % stride == 0) & (steps >= 0) & (steps // stride < out)
    return steps[inside] // stride, taps[inside]


def pairs(tap: int, size: int, kernel: int, stride: int, padding: int, dilation: int) -> Match:
    """The output pixels of one axis that read a pixel by that tap, and these pixels."""
    outputs = np.arange(conv_size(size, kernel, stride, padding, dilation))
    pixels = outputs * stride - padding + tap * dilation
    inside = (pixels >= 0) & (pixels < size)
    return outputs[inside], pixels[inside]


def along(
    find: Callable[..., Match], at: tuple[int, int], problem: ConvProblem | PoolProblem, sizes: Shape
) -> list[Match]:
    """`find` for the rows and for the columns; `sizes` end with those of the plane that `find` asks for."""
    dilation = problem.dilation if isinstance(problem, ConvProblem) else (1, 1)
    sides = zip(at, sizes[2:], problem.kernel, problem.stride, problem.padding, dilation, strict=True)
    return [find(*side) for side in sides]


def dot(a: Array, b: Array) -> float:
    return float(np.sum(a.astype(np.float64) * b))


def convolved(problem: ConvProblem, data: Arrays, n: int, k: int, p: int, q: int) -> float:
    width = problem.c // problem.groups
    first = k // (problem.k // problem.groups) * width
    (rows, r), (columns, s) = along(reads, (p, q), problem, problem.input_shape)
    pixels = data["input"][n, first : first + width][:, rows][:, :, columns]
    return dot(pixels, data["weight"][k][:, r][:, :, s]) + float(data["bias"][k])


def rectified(problem: ConvProblem, data: Arrays, *position: int) -> float:
    return max(convolved(problem, data, *position), 0.0)


def grad_input(problem: ConvProblem, data: Arrays, n: int, c: int, h: int, w: int) -> float:
    width, filters = problem.c // problem.groups, problem.k // problem.groups
    group, channel = divmod(c, width)
    chosen = slice(group * filters, (group + 1) * filters)
    (rows, r), (columns, s) = along(readers, (h, w), problem, problem.output_shape)
    weight = data["weight"][chosen, channel][:, r][:, :, s]
    return dot(data["grad_output"][n, chosen][:, rows][:, :, columns], weight)


def grad_weight(problem: ConvProblem, data: Arrays, k: int, c: int, r: int, s: int) -> float:
    channel = k // (problem.k // problem.groups) * (problem.c // problem.groups) + c
    (rows, h), (columns, w) = along(pairs, (r, s), problem, problem.input_shape)
    return dot(data["grad_output"][:, k][:, rows][:, :, columns], data["input"][:, channel][:, h][:, :, w])


def pooled(problem: PoolProblem, data: Arrays, n: int, c: int, p: int, q: int) -> float:
    (rows, _), (columns, _) = along(reads, (p, q), problem, problem.input_shape)
    return float(data["input"][n, c][np.ix_(rows, columns)].max())


def pool_grad(problem: PoolProblem, data: Arrays, n: int, c: int, h: int, w: int) -> float:
    """The sum over the windows whose maximum is this pixel."""
    (rows, _), (columns, _) = along(readers, (h, w), problem, problem.output_shape)
    pixel, grad = data["input"][n, c, h, w], data["grad_output"][n, c]
    wins = ((p, q) for p in rows for q in columns if pixel == pooled(problem, data, n, c, p, q))
    return sum((float(grad[p, q]) for p, q in wins), 0.0)


def relu(problem: ReluProblem, data: Arrays, i: int) -> float:
    return max(float(data["input"][i]), 0.0)


def relu_grad(problem: ReluProblem, data: Arrays, i: int) -> float:
    return float(data["grad_output"][i]) if data["input"][i] > 0 else 0.0


def fused(problem: FusedProblem, data: Arrays, n: int, k: int, p: int, q: int) -> float:
    (rows, _), (columns, _) = along(reads, (p, q), problem.pool, problem.pool.input_shape)
    return max(rectified(problem.conv, data, n, k, row, column) for row in rows for column in columns)
