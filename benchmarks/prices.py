"""Fit the prices of the methods' work to measured times, for csrc/cpu/conv2d/prices.cpp.

`python -m benchmarks choices --fit FILE...` reads the times that `--output` has kept, asks convx for the work of every
method, and prints the file's text. Of several files of one processor each cell has the least time: other work on the
machine only adds to one. Processors count alike, each by its own regrets; their times are scaled to those of the first.
What counts is the choice: the loss is the regret that is expected of a choice at random among the predictions, weighted
by a softmax of them, and its share over 10 %; a part of the error of the predicted times themselves keeps the methods
comparable where they never compete.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import choices
from benchmarks.cases import Case

KINDS = (
    "calls", "cycles", "tiles", "copies", "transposes", "runs", "lines", "weights", "transforms", "spills",
)  # fmt: skip
GENERAL = np.array([2000, 0.25, 5, 1, 1, 10, 3, 1, 20, 3], np.float64)
WIDTHS = {"avx512": 16, "avx512_emulated": 16, "avx2": 8, "portable": 4}  # floats of a vector
STEPS = 3000
RATE = 0.03
SHARPNESS = (8.0, 40.0)  # of the softmax, in units of log time: first and last step
MOST_SHARE = 0.5  # of the regrets over the aim
ERROR_SHARE = 0.03
PRIOR_SHARE = 1e-4


@dataclass
class Cells:
    """Cells as rows: the methods' work [cell, method, kind], their times [cell, method], and which prices they have."""

    keys: list[tuple[str, str]] = field(default_factory=list)  # (pass, method)
    work: list[np.ndarray] = field(default_factory=list)
    seconds: list[np.ndarray] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def add(self, label: str, passname: str, plans: dict[str, Any], seconds: dict[str, float], threads: int) -> None:
        names = list(plans)
        if len(names) < 2 or not seconds:
            return
        # A method that the first turn found hopeless has no time: it is at least so long.
        hopeless = choices.HOPELESS * min(seconds.values())
        for name in names:
            if (passname, name) not in self.keys:
                self.keys.append((passname, name))
        self.labels.append(label)
        self.rows.append(np.array([self.keys.index((passname, name)) for name in names]))
        self.work.append(np.array([[plans[name].work[kind] for kind in KINDS] for name in names]))
        self.seconds.append(np.array([seconds.get(name, hopeless) for name in names]) * threads)

    def padded(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row indices, work and nanoseconds for one image; cells of fewer methods repeat their slowest."""
        most = max(map(len, self.rows))
        rows, work, times = [], [], []
        for row, each, seconds in zip(self.rows, self.work, self.seconds, strict=True):
            worst = int(np.argmax(seconds))
            index = list(range(len(row))) + [worst] * (most - len(row))
            rows.append(row[index])
            work.append(each[index])
            times.append(seconds[index] * 1e9)
        return np.array(rows), np.array(work), np.array(times)


def together(parts: Iterable[Cells]) -> Cells:
    """The cells of all parts, which have the same keys."""
    parts = list(parts)
    joined = Cells(parts[0].keys)
    for name in ("work", "seconds", "rows", "labels"):
        setattr(joined, name, [each for part in parts for each in getattr(part, name)])
    return joined


Times = dict[tuple[str, str], dict[str, float]]  # (case, layout) -> method -> seconds


def least_times(files: Sequence[dict[str, Any]]) -> dict[str, Times]:
    """The least time of every method of every cell, by processor."""
    found: dict[str, Times] = {}
    for file in files:
        least = found.setdefault(file["about"]["cpu"], {})
        for each in file["choices"]:
            times = least.setdefault((each["case"], each["layout"]), {})
            for name, seconds in each["seconds"].items():
                times[name] = min(seconds, times.get(name, seconds))
    return found


def scale(times: Times, first: Times) -> float:
    """What brings times of a processor to those of the first one: the median of what both have measured."""
    ratios = [
        first[cell][name] / seconds
        for cell, methods in times.items() if cell in first
        for name, seconds in methods.items() if name in first[cell]
    ]  # fmt: skip
    return float(np.median(ratios)) if ratios else 1.0


def read(files: Sequence[dict[str, Any]], cases: Mapping[str, Case]) -> dict[str, Cells]:
    """The cells of every processor, from files of one instruction set, which must be active, and one number of threads.

    All have the same `keys`.
    """
    by_cpu = least_times(files)
    keys: list[tuple[str, str]] = []
    found: dict[str, Cells] = {}
    first = next(iter(by_cpu.values()))
    for cpu, least in by_cpu.items():
        cells = found[cpu] = Cells(keys)
        to_first = scale(least, first)
        for (key, layout), times in least.items():
            case = cases.get(key)
            if case is None:
                continue
            plans = {plan.name: plan for plan in choices.plan_of(case, layout, "auto").candidates if plan.supported}
            batch = case.problem.input_shape[0]
            seconds = {name: value * to_first / batch for name, value in times.items() if name in plans}
            cells.add(f"{case.key} {layout}", case.passname, plans, seconds, files[0]["about"]["threads"])
    return found


def fit(cells: Cells, weight: np.ndarray) -> np.ndarray:
    """Prices [key, kind] in nanoseconds; `weight` is what each cell counts for."""
    import torch

    rows_, work_, times_ = cells.padded()
    rows, work = torch.as_tensor(rows_), torch.as_tensor(work_)
    times = torch.as_tensor(times_)
    of_cell = torch.as_tensor(weight / weight.sum())
    ratio = times / times.min(1, keepdim=True).values - 1
    regret = ratio.clamp(max=2.0) + MOST_SHARE * torch.sigmoid((ratio - choices.MOST_REGRET) / 0.02)
    near = torch.exp(-2 * ratio)
    start = torch.log(torch.as_tensor(GENERAL)).repeat(len(cells.keys), 1)
    log_price = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([log_price], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        optimizer.zero_grad()
        predicted = torch.log((torch.exp(log_price)[rows] * work).sum(-1))
        sharpness = SHARPNESS[0] * (SHARPNESS[1] / SHARPNESS[0]) ** (step / STEPS)
        share = torch.softmax(-sharpness * predicted, 1)
        error = ((predicted - torch.log(times)) ** 2 * near).sum(1) / near.sum(1)
        choice = (of_cell * ((share * regret).sum(1) + ERROR_SHARE * error)).sum()
        loss = choice + PRIOR_SHARE * ((log_price - start) ** 2).sum(1).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    return torch.exp(log_price).detach().numpy()


def regrets(cells: Cells, prices: np.ndarray) -> np.ndarray:
    """The regret of every cell by these prices."""
    rows, work, times = cells.padded()
    chosen = (prices[rows] * work).sum(-1).argmin(1)
    return np.asarray(times[np.arange(len(times)), chosen] / times.min(1) - 1)


def table(cells: Cells, prices: np.ndarray) -> str:
    """The rows of a table of prices.cpp; work that no cell of a method has keeps the general price."""
    used: dict[int, np.ndarray] = {}
    for row, work in zip(cells.rows, cells.work, strict=True):
        for index, each in zip(row, work, strict=True):
            used[index] = used.get(index, np.zeros(len(KINDS))) + each
    lines = []
    for (passname, name), index in sorted((key, i) for i, key in enumerate(cells.keys)):
        numbers = [value if used[index][k] else GENERAL[k] for k, value in enumerate(prices[index])]
        text = ", ".join(f"{value:.3g}" for value in numbers)
        lines.append(f'    {{"{name}", ConvPass::{passname}, {{{text}}}}},')
    return "\n".join(lines)


SOURCE = """// What a piece of work takes, in nanoseconds of one thread: for each method and width of vectors.
//
// Written by `python -m benchmarks choices --fit FILE...` from measured times (benchmarks/prices.py), one table for a
// number of floats in a vector. Regret is what the choice costs over the fastest method of a cell.
//
{origins}
//
// A method that is not in a table, because nobody has measured it yet, has the general prices.
#include <cstring>

#include "cpu/conv2d/cost.h"

namespace convx {{

namespace {{

using Prices = std::array<double, work_kinds>;

struct Row {{
    const char* method;
    ConvPass pass;
    Prices prices;
}};

// {kinds}
constexpr Prices general{{{general}}};

// clang-format off: a line each
{tables}
// clang-format on

template <size_t size>
const Prices& find(const Row (&rows)[size], const char* method, ConvPass pass) {{
    for (const Row& row : rows)
        if (row.pass == pass && std::strcmp(row.method, method) == 0) return row.prices;
    return general;
}}

}}  // namespace

double predicted_time(const char* method, ConvPass pass, const Work& work, const Kernels& kernels) {{
{unused}    const Prices& prices = {choice};
    double time = 0;
    for (size_t kind = 0; kind < work_kinds; ++kind) time += prices[kind] * work.count[kind];
    return time;
}}

}}  // namespace convx
"""


def source(paths: Sequence[Path], cases: Sequence[Case]) -> str:
    """The text of prices.cpp."""
    from convx import _cpu

    by_key = {case.key: case for case in cases}
    files: dict[int, list[dict[str, Any]]] = {}
    for path in paths:
        file = json.loads(path.read_text())
        files.setdefault(WIDTHS[file["about"]["isa"]], []).append(file)
    notes, tables = [], []
    for lanes in sorted(files, reverse=True):
        about = files[lanes][0]["about"]
        isa = about["isa"]
        _cpu.set_isa(isa if isa in _cpu.config()["isas"] else f"{isa}_emulated")
        by_cpu = read(files[lanes], by_key)
        cells = together(by_cpu.values())
        weight = np.concatenate([np.full(len(each.rows), 1 / len(each.rows)) for each in by_cpu.values()])
        prices = fit(cells, weight)
        for cpu, each in by_cpu.items():
            found = regrets(each, prices)
            share = f"{np.mean(found > choices.MOST_REGRET):.1%} of {len(found)} cells over 10 %"
            notes.append(f"//   {lanes:>2} floats: {cpu} ({isa}, {about['threads']} threads); regret: {share}, "
                         f"mean {found.mean():.1%}")  # fmt: skip
        tables.append(f"constexpr Row floats_{lanes}[] = {{\n{table(cells, prices)}\n}};")
    *wide, least = sorted(files, reverse=True)
    choice = "".join(f"kernels.f32.lanes >= {n} ? find(floats_{n}, method, pass) : " for n in wide)
    unused = "" if wide else "    (void)kernels;\n"
    choice += f"find(floats_{least}, method, pass)"
    return SOURCE.format(
        origins="\n".join(notes), kinds=", ".join(KINDS), tables="\n\n".join(tables), choice=choice, unused=unused,
        general=", ".join(f"{value:g}" for value in GENERAL),
    )  # fmt: skip
