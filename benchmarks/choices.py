"""The regret of convx's choice of methods: every supported method of every layer is timed.

The regret of a cell is the time of the chosen method over that of the fastest one, less one. Methods take turns in this
process. A method that takes more than `HOPELESS` times as long as the best in the first turn gets no other turn; one
that is predicted to take more than `UNTRIED` times as long as the chosen one gets none, for where a window fills its
plane it would take a minute. A file of times judges the choices of another build without new measurements (`judged`).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import machine
from benchmarks.cases import Case
from benchmarks.problems import ConvProblem
from benchmarks.timing import sample

LAYOUTS = ("NCHW", "NHWC")
PASSES = ("forward", "grad_input", "grad_weight")
HOPELESS = 2.0
UNTRIED = 50.0
MOST_REGRET = 0.10
MOST_SHARE = 0.05


@dataclass(frozen=True)
class Choice:
    """A cell: the chosen method, and the seconds of every method in the order of the list."""

    case: str
    kind: str
    layout: str
    chosen: str
    seconds: dict[str, float]

    @property
    def best(self) -> str:
        return min(self.seconds, key=lambda name: self.seconds[name])

    @property
    def regret(self) -> float:
        return self.seconds[self.chosen] / self.seconds[self.best] - 1


def arrays(problem: ConvProblem, dtype: str, layout: str) -> list[np.ndarray]:
    """Input, weight and gradient of the output."""
    rng = np.random.default_rng(0)
    found = [rng.standard_normal(shape, np.float32).astype(dtype) for shape in
             (problem.input_shape, problem.weight_shape, problem.output_shape)]  # fmt: skip
    if layout == "NHWC":
        found[0], found[2] = (np.ascontiguousarray(each.transpose(0, 2, 3, 1)) for each in (found[0], found[2]))
    return found


def call(case: Case, layout: str, given: Sequence[np.ndarray], method: str) -> Any:
    import convx

    problem: Any = case.problem
    x, w, g = given
    options = {
        "stride": problem.stride, "padding": problem.padding, "dilation": problem.dilation, "groups": problem.groups,
        "layout": layout, "algorithm": method,
    }  # fmt: skip
    if case.passname == "forward":
        return lambda: convx.conv2d(x, w, None, **options)
    mask = (case.passname == "grad_input", case.passname == "grad_weight", False)
    return lambda: convx.conv2d_backward(g, x, w, output_mask=mask, **options)


def plan_of(case: Case, layout: str, algorithm: str) -> Any:
    import convx

    problem: Any = case.problem
    n, c, h, w = problem.input_shape
    op = "conv2d" if case.passname == "forward" else "conv2d_backward"
    [plan] = [
        plan
        for plan in convx.explain(
            op, (n, c, h, w) if layout == "NCHW" else (n, h, w, c), problem.weight_shape, problem.stride,
            problem.padding, problem.dilation, problem.groups, layout=layout, dtype=case.dtype, algorithm=algorithm,
        )
        if plan.name == case.passname
    ]  # fmt: skip
    return plan


def candidates(case: Case, layout: str, algorithm: str) -> tuple[str, dict[str, float]]:
    """The chosen method, and the predicted microseconds of all that can compute the case."""
    plan = plan_of(case, layout, algorithm)
    return plan.algorithm, {each.name: each.microseconds for each in plan.candidates if each.supported}


def measure(case: Case, layout: str, algorithm: str, seconds: float, rounds: int) -> Choice | None:
    """Time the methods of a case in turns; None where there is no choice."""
    chosen, predicted = candidates(case, layout, algorithm)
    names = [name for name, time in predicted.items() if time <= UNTRIED * predicted[chosen]]
    if algorithm == "direct":
        names = [name for name in names if not name.startswith("winograd")]
    if len(names) < 2:
        return None
    given = arrays(case.problem, case.dtype, layout)  # type: ignore[arg-type]
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names:
            found, _ = sample([call(case, layout, given, name)], seconds / (rounds + 1) / len(names), 1)
            times[name].append(statistics.median(found))
        if turn == 0:  # the warm-up, which also excludes hopeless methods
            best = min(value[0] for value in times.values())
            names = [name for name in names if times[name][0] <= HOPELESS * best or name == chosen]
            times |= {name: [] for name in names}
    return Choice(case.key, case.kind, layout, chosen, {name: min(each) for name, each in times.items()})


def judged(cases: Sequence[Case], layouts: Sequence[str], algorithm: str, path: Path) -> Iterator[Choice]:
    """Judge the choices of this build by the times of a file; cells that the file lacks are left out."""
    saved = {(each["case"], each["layout"]): each["seconds"] for each in json.loads(path.read_text())["choices"]}
    for case in cases:
        for layout in layouts:
            if case.passname not in PASSES or (case.key, layout) not in saved:
                continue
            chosen, _ = candidates(case, layout, algorithm)
            seconds = saved[case.key, layout]
            if chosen not in seconds:  # it was out of the question in the first turn
                seconds[chosen] = HOPELESS * min(seconds.values())
            yield Choice(case.key, case.kind, layout, chosen, seconds)


def run(
    cases: Sequence[Case], layouts: Sequence[str], algorithm: str, seconds: float, rounds: int, console: Console
) -> Iterator[Choice]:
    cells = [(case, layout) for case in cases for layout in layouts if case.passname in PASSES]
    for case, layout in track(cells, "methods", console=console, disable=not console.is_terminal):
        found = measure(case, layout, algorithm, seconds, rounds)
        if found is not None:
            yield found


def save(choices: Sequence[Choice], about: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"about": about, "choices": [asdict(each) for each in choices]}, indent=1))


def about(threads: int, algorithm: str) -> dict[str, Any]:
    import convx
    from convx import _cpu

    config = _cpu.config()
    return {
        "convx": convx.__version__, "cpu": config["cpu"], "isa": config["isa"], "threads": threads,
        "algorithm": algorithm, "compiler": config["compiler"], "cores": machine.cpu_count(),
    }  # fmt: skip


def show(choices: Sequence[Choice], console: Console, most: int = 60) -> None:
    """Print the cells with the largest regret, and the regret by class and in all."""
    worst = sorted((each for each in choices if each.regret > 0.02), key=lambda each: -each.regret)
    table = Table("pass and problem", "class", "layout", "chosen", "fastest", "regret", title="largest regrets")
    for each in worst[:most]:
        table.add_row(each.case, each.kind, each.layout, each.chosen, each.best, percent(each.regret))
    console.print(table)
    by_kind = Table("class", "cells", "median regret", "over 10 %", "worst", title="regret by class")
    for kind in sorted({each.kind for each in choices}):
        count, median, over, _, largest = summary([each.regret for each in choices if each.kind == kind])
        by_kind.add_row(kind, str(count), percent(median), str(over), percent(largest))
    console.print(by_kind)
    count, median, over, mean, _ = summary([each.regret for each in choices])
    console.print(
        f"{count} cells: median regret {percent(median)}, mean {percent(mean)};"
        f" {over} of them, {percent(over / count)}, over {percent(MOST_REGRET)}"
        f" (the aim: {percent(MOST_SHARE)} at most)"
    )


def summary(regrets: Sequence[float]) -> tuple[int, float, int, float, float]:
    """Count, median, number over MOST_REGRET, mean, largest."""
    over = sum(each > MOST_REGRET for each in regrets)
    return len(regrets), statistics.median(regrets), over, statistics.fmean(regrets), max(regrets)


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"
