"""The speed floor: figures that the library has to reach, measured in one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rich.table import Table
from rich.text import Text

from benchmarks.cases import Case, layer_cases, overhead_cases, relu_cases
from benchmarks.machine import last_level_cache
from benchmarks.problems import ConvProblem, Pair, Problem
from benchmarks.report import table
from benchmarks.results import Cell, Results

LISTS = ("resnet50", "vgg19")
BATCH = 8
LEAST_CHANNELS = 64
KERNELS = ((3, 3), (1, 1))
# Share of the FMA peak, median over the layers.
LEAST_SHARE = {"forward": 0.70, "grad_input": 0.65, "grad_weight": 0.55}
# Speed of AVX2 over that of AVX-512, median over the layers, where their peaks are equal to within SAME_PEAK.
LEAST_AVX2, SAME_PEAK = 0.90, 0.05
LEAST_POOL_RATIO = 8.0
LEAST_RELU_SHARE = 0.80
MOST_OVERHEAD_SECONDS = 2e-6

Value = Callable[[Cell], float | None]


@dataclass(frozen=True)
class Figure:
    """A line of the summary: the measured value (None where the run has none) with its description, and the bound."""

    what: str
    found: tuple[float | None, str]
    bound: float
    unit: str

    @property
    def value(self) -> float | None:
        return self.found[0]

    @property
    def met(self) -> bool | None:
        """None without a value. The bound is the largest of seconds, the smallest of shares and ratios."""
        if self.value is None:
            return None
        return self.value <= self.bound if self.unit == "us" else self.value >= self.bound

    def write(self, value: float | None) -> str:
        if value is None:
            return "-"
        return {"%": f"{100 * value:.0f} %", "x": f"{value:.2f}x", "us": f"{1e6 * value:.2f} us"}[self.unit]


def counts(problem: Problem, kernels: Sequence[Pair] = KERNELS) -> bool:
    """Whether the floor covers the layer: dense, 1x1 or 3x3, with enough input channels, strided or not."""
    if not isinstance(problem, ConvProblem):
        return False
    return problem.groups == 1 and problem.c >= LEAST_CHANNELS and problem.kernel in kernels


def cases() -> list[Case]:
    convolutions = layer_cases("conv2d", LISTS, [BATCH], list(LEAST_SHARE))
    pools = layer_cases("max_pool2d", ["pool_2x2"], [BATCH], ["forward", "forward_codes"])
    # Input and output are each twice the last-level cache.
    beyond_cache = 2 * last_level_cache() // 4
    tiny = [case for case in overhead_cases() if case.op == "relu" and case.passname == "forward"]
    return [*(case for case in convolutions if counts(case.problem)), *pools, *relu_cases([beyond_cache]), *tiny]


def median_over(cells: Sequence[Cell], value: Value) -> tuple[float | None, str]:
    """The lower of two medians, over distinct layers and weighted by occurrence, and a description of both."""
    pairs = [(each, sum(cell.case.occurrences.values())) for cell in cells if (each := value(cell)) is not None]
    if not cells:
        return None, "not in this run"
    if len(pairs) < len(cells):
        return None, f"{len(cells) - len(pairs)} of {len(cells)} layers have no time"
    distinct = statistics.median(each for each, _ in pairs)
    occurring = statistics.median(each for each, times in pairs for _ in range(times))
    worst = min(pairs)[0]
    words = f"{len(pairs)} cells: median {distinct:.2f}, by occurrence {occurring:.2f}, lowest {worst:.2f}"
    return min(distinct, occurring), words


def figures(results: Results) -> list[Figure]:
    def cells_of(op: str, passname: str, kind: Callable[[Problem], bool] = lambda _: True) -> list[Cell]:
        chosen = [cell for cell in results.cells if (cell.case.op, cell.case.passname) == (op, passname)]
        return [cell for cell in chosen if cell.case.kind != "overhead" and kind(cell.case.problem)]

    found = []
    for passname, bound in LEAST_SHARE.items():
        for kernels in (KERNELS, *((kernel,) for kernel in KERNELS)):  # all layers, then each kind alone
            layers = cells_of("conv2d", passname, partial(counts, kernels=kernels))
            what = f"conv2d {passname} {' and '.join(f'{r}x{s}' for r, s in kernels)}, share of the FMA peak"
            found.append(Figure(what, median_over(layers, results.of_peak), bound, "%"))
    everything = [cell for passname in LEAST_SHARE for cell in cells_of("conv2d", passname, counts)]
    found.append(Figure("conv2d, AVX2's speed over AVX-512's", avx2(results, everything), LEAST_AVX2, "x"))
    for passname in ("forward", "forward_codes"):
        ratio = median_over(cells_of("max_pool2d", passname), lambda cell: cell.ratio(["torch"]))
        found.append(Figure(f"max_pool2d 2x2 {passname}, ratio to PyTorch NCHW", ratio, LEAST_POOL_RATIO, "x"))
    for passname in ("forward", "forward_out", "backward"):
        share = median_over(cells_of("relu", passname), results.of_bandwidth)
        what = f"relu {passname} beyond the cache, share of the copy bandwidth"
        found.append(Figure(what, share, LEAST_RELU_SHARE, "%"))
    found.append(Figure("relu of 8 floats, one call", overhead(results), MOST_OVERHEAD_SECONDS, "us"))
    return found


def avx2(results: Results, cells: Sequence[Cell]) -> tuple[float | None, str]:
    """The ratio of AVX-512's time to AVX2's over all passes of the floor's layers, each instruction set forced."""

    def ratio(cell: Cell) -> float | None:
        wide, narrow = cell.seconds("convx@avx512"), cell.seconds("convx@avx2")
        return wide / narrow if wide and narrow else None

    if not {"convx@avx512", "convx@avx2"} <= set(results.runners):
        return None, "this machine does not run both"
    peaks = results.about["isa_peaks"]
    of_wide = peaks["avx2"] / peaks["avx512"]
    if abs(of_wide - 1) > SAME_PEAK:
        return None, f"the floor does not apply: AVX2's FMA peak is {of_wide:.2f} of AVX-512's"
    return median_over(cells, ratio)


def overhead(results: Results) -> tuple[float | None, str]:
    tiny = [cell for cell in results.cells if cell.case.kind == "overhead" and cell.case.op == "relu"]
    if not tiny:
        return None, "not in this run"
    others = {name: tiny[0].seconds(name) for name in ("torch", "numpy")}
    words = ", ".join(f"{name} {1e6 * seconds:.2f} us" for name, seconds in others.items() if seconds)
    return tiny[0].seconds("convx"), f"median; {words}"


def summary(results: Results) -> Table:
    sampled = results.about["settings"].get("deadline") is not None
    title = "Speed floor, on a sample of the layers only (--quick)" if sampled else "Speed floor"
    made = table(title, ["figure", "measured", "floor", "", "how"], left=1)
    made.columns[4].justify = "left"
    verdicts = {
        True: Text("met", style="green"),
        False: Text("MISSED", style="bold red"),
        None: Text("not measured", style="yellow"),
    }
    for figure in figures(results):
        measured, bound = figure.write(figure.value), figure.write(figure.bound)
        made.add_row(figure.what, measured, bound, verdicts[figure.met], figure.found[1])
    return made
