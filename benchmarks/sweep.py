"""Drawn problems against PyTorch's better layout: what no list of layers has.

A problem is drawn with its pass and dtype; the same seed draws the same problems. Sizes are log-uniform, so that planes
of one pixel and of a photograph, one channel and many come equally often. Options that networks rarely use come in
a fifth to a third of the problems. The table has the worst cells of convx in either layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from rich.table import Table

from benchmarks import report
from benchmarks.cases import Case
from benchmarks.display import duration
from benchmarks.problems import ConvProblem, Pair
from benchmarks.results import Cell, Results, geometric_mean

SUBJECTS = {"convx": "NCHW", "convx-nhwc": "NHWC"}
PEERS = ("torch", "torch-cl")
RUNNERS = (*PEERS, "convx-nhwc")
PASSES = ("forward", "grad_input", "grad_weight")
WORST = 20
LEVELS = (1.0, 0.5)

MOST_PIXELS = 1 << 20  # N * H * W
MOST_CHANNELS = 1024
MOST_BATCH = 64
MOST_ELEMENTS = 1 << 25  # of each array: 128 MiB in float32
MOST_FLOPS = 4_000_000_000  # PyTorch's slowest passes run at some GFLOP/s
SQUARE_KERNELS = (1, 2, 3, 3, 4, 5, 7)
LARGE_KERNEL = 31
FLOAT64_SHARE = 0.2


class Draw:
    """The random choices of one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def size(self, most: int, least: int = 1) -> int:
        """Log-uniform in least..most."""
        return int(min(most, least * (most / least + 1) ** self.rng.random()))

    def channels(self, most: int = MOST_CHANNELS) -> int:
        """Log-uniform; a multiple of 8 in half of the cases, for these are common in networks."""
        found = self.size(most)
        return max(8, found // 8 * 8) if most >= 8 and self.chance(0.5) else found

    def kernel(self, plane: Pair) -> Pair:
        """Mostly square and small, sometimes of two lengths, as large as the plane, or of one row or column."""
        kind = self.rng.random()
        if kind < 0.70:
            side = int(self.rng.choice(SQUARE_KERNELS))
            return side, side
        if kind < 0.85:
            return int(self.rng.integers(1, 8)), int(self.rng.integers(1, 8))
        if kind < 0.90:
            return min(plane[0], LARGE_KERNEL), min(plane[1], LARGE_KERNEL)
        length = self.size(LARGE_KERNEL, 2)
        return (1, length) if self.chance(0.5) else (length, 1)

    def problem(self) -> ConvProblem:
        """Any problem with an output; the caller bounds its size."""
        n = self.size(MOST_BATCH)
        h = self.size(1 << 10)
        w = h if self.chance(0.6) else self.size(1 << 10)
        kernel = self.kernel((h, w))
        stride = self.pair(0.25, 2, 4)
        dilation = self.pair(0.15, 2, 5)
        extents = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        kind = self.rng.random()
        padding = [0, 0]
        if kind < 0.6:  # the output has the size of the input where the stride is 1
            padding = [extent // 2 for extent in extents]
        elif kind < 0.8:
            padding = [int(self.rng.integers(0, extent)) for extent in extents]
        groups = 1
        c, k = self.channels(), self.channels()
        if self.chance(0.15):  # depthwise, with one or two outputs for each input
            groups, k = c, c * (2 if self.chance(0.2) else 1)
        elif self.chance(0.15):
            groups = self.size(32, 2)
            c, k = (groups * self.channels(max(1, MOST_CHANNELS // groups)) for _ in range(2))
        return ConvProblem(n, c, h, w, k, kernel, stride, (padding[0], padding[1]), dilation, groups)

    def pair(self, share: float, least: int, most: int) -> Pair:
        """(1, 1), or with the probability `share` numbers below `most`, mostly the same for both axes."""
        if not self.chance(share):
            return 1, 1
        first = int(self.rng.integers(least, most))
        return (first, first) if self.chance(0.8) else (first, int(self.rng.integers(1, most)))


def fits(problem: ConvProblem) -> bool:
    shapes = problem.input_shape, problem.weight_shape, problem.output_shape
    return (
        min(problem.output_shape) > 0
        and problem.n * problem.h * problem.w <= MOST_PIXELS
        and max(map(prod, shapes)) <= MOST_ELEMENTS
        and problem.flops("forward") <= MOST_FLOPS
    )


def cases(seed: int, count: int) -> list[Case]:
    """`count` different cases."""
    draw, found = Draw(seed), dict[str, Case]()
    while len(found) < count:
        problem = draw.problem()
        if not fits(problem):
            continue
        passname = PASSES[int(draw.rng.integers(len(PASSES)))]
        dtype = "float64" if draw.chance(FLOAT64_SHARE) else "float32"
        case = Case("conv2d", passname, problem, dtype, "drawn", {"sweep": 1})
        found.setdefault(case.key, case)
    return list(found.values())


def kind(cell: Cell) -> str:
    """As the case's own, with float64 by its problems too."""
    case = cell.case
    return Case(case.op, case.passname, case.problem, "float32", case.name).kind


def ratios(cells: Sequence[Cell], subject: str) -> list[tuple[float, Cell]]:
    return [(ratio, cell) for cell in cells if (ratio := cell.ratio(PEERS, subject)) is not None]


def summary(results: Results) -> list[Table]:
    """The shares of lost cells, by pass and by class, and the worst cells."""
    if results.about["kind"] != "sweep":
        return []
    columns = ["", "cells", "geomean", *(f"under {level:g}" for level in LEVELS), "worst"]
    shares = report.table("PyTorch's time in its better layout over that of convx", columns)
    groups: dict[str, list[Cell]] = {"all": list(results.cells)}
    for cell in results.cells:
        for name in (cell.case.passname, cell.case.dtype, kind(cell)):
            groups.setdefault(name, []).append(cell)
    for name, cells in groups.items():
        found = [ratio for subject in SUBJECTS for ratio, _ in ratios(cells, subject)]
        if found:
            below = [report.percent(sum(ratio < level for ratio in found) / len(found)) + " %" for level in LEVELS]
            mean, least = report.times(geometric_mean(found)), report.times(min(found))
            shares.add_row(name, str(len(found)), mean, *below, least)
    worst = report.table(f"The worst {WORST}", ["problem", "layout", "convx", "PyTorch", "ratio"], left=2)
    both = [(ratio, subject, cell) for subject in SUBJECTS for ratio, cell in ratios(results.cells, subject)]
    for ratio, subject, cell in sorted(both, key=lambda each: each[0])[:WORST]:
        ours, best = cell.seconds(subject), cell.best_peer(PEERS)
        assert ours and best
        worst.add_row(cell.case.key, SUBJECTS[subject], duration(ours), duration(best[1]), report.times(ratio))
    return [shares, worst]
