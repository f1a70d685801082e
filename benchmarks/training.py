"""Tables and plot of `networks`: time and saved bytes of a training step, before and after convx.torch.convert."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.console import RenderableType
from rich.text import Text

from benchmarks.display import duration
from benchmarks.report import table, times
from benchmarks.results import Cell, Results

# Each library in NCHW and channels_last. The ratio of a row compares the better layouts.
OURS = ("convx", "convx-nhwc")
THEIRS = ("torch", "torch-cl")
# The table has no row for units that keep less than this in both libraries.
LEAST_BYTES = 1 << 10


def cells_of(results: Results) -> list[Cell]:
    return [cell for cell in results.cells if cell.case.op == "training"]


def best(cell: Cell, names: Sequence[str]) -> float | None:
    """Seconds of the faster layout."""
    return min((seconds for name in names if (seconds := cell.seconds(name)) is not None), default=None)


def ratio(cell: Cell) -> float | None:
    """The time of a step in PyTorch's better layout over that in convx's better layout: above 1, convx is faster."""
    theirs, ours = best(cell, THEIRS), best(cell, OURS)
    return theirs / ours if theirs and ours else None


def saved(cell: Cell, name: str) -> int | None:
    amount: int | None = cell.timings.get(name, {}).get("saved_bytes")
    return amount


def mebibytes(amount: int | None) -> str:
    return "-" if amount is None else f"{amount / (1 << 20):.2f}"


def saved_ratio(cell: Cell) -> float | None:
    theirs, ours = saved(cell, "torch"), saved(cell, "convx")
    return theirs / ours if theirs and ours else None


def tables(results: Results) -> list[RenderableType]:
    """The table of the steps, and the saved bytes layer by layer; empty where no network was trained."""
    cells = cells_of(results)
    if not cells:
        return []
    runners = [name for name in (*THEIRS, *OURS) if name in results.runners]
    columns = ["network", *runners, "ratio", "saved MiB: torch", "convx", "ratio"]
    steps = table("A training step (ratio: PyTorch's better layout over convx's better layout)", columns)
    for cell in cells:
        entries = (duration(seconds) if (seconds := cell.seconds(name)) else "-" for name in runners)
        amounts = (mebibytes(saved(cell, name)) for name in ("torch", "convx"))
        steps.add_row(cell.case.problem.describe(), *entries, times(ratio(cell)), *amounts, times(saved_ratio(cell)))
    return [steps, *(part for cell in cells for part in unit_table(cell))]


def unit_table(cell: Cell) -> list[RenderableType]:
    """A heading and the table; as its title, the heading would be wrapped to the width of the table."""
    made = table("", ["layer, with what follows it", "torch", "convx", "ratio"])
    theirs, ours = (cell.timings.get(name, {}).get("saved_by_unit", []) for name in ("torch", "convx"))
    for (name, before), (_, after) in zip(theirs, ours, strict=False):
        if max(before, after) >= LEAST_BYTES:
            made.add_row(name, mebibytes(before), mebibytes(after), times(before / after) if after else Text(""))
    return [Text(f"{cell.case.problem.describe()}: MiB kept for the backward pass, by layer", style="bold"), made]


def plot(results: Results, subtitle: str, path: Path) -> Path | None:
    """Draw the time of a step and the saved bytes of each network, relative to convx in NCHW."""
    cells = [cell for cell in cells_of(results) if cell.seconds("convx")]
    if not cells:
        return None
    runners = [name for name in (*THEIRS, *OURS) if name in results.runners]
    colours = dict(zip(runners, ("#d62728", "#ff9896", "#222222", "#888888"), strict=False))
    figure, axes = plt.subplots(1, 2, figsize=(10, 1.8 + 0.85 * len(cells)), layout="constrained", sharey=True)
    height = 0.8 / len(runners)
    for row, cell in enumerate(cells):
        values = {
            "time": {name: cell.seconds(name) for name in runners},
            "saved": {name: saved(cell, name) for name in runners},
        }
        for axis, (what, amounts) in zip(axes, values.items(), strict=True):
            unit = amounts["convx"] or 1
            for index, (name, amount) in enumerate(amounts.items()):
                if amount is None:
                    continue
                y, share = row - 0.4 + (index + 0.5) * height, amount / unit
                axis.barh(y, share, height=0.92 * height, color=colours[name])
                text = duration(amount) if what == "time" else f"{mebibytes(int(amount))} MiB"
                axis.annotate(
                    f"{text}  {share:.2f}", (share, y), (3, 0), textcoords="offset points", va="center", fontsize=7,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
                )  # fmt: skip
    for axis, title in zip(axes, ("time of a training step", "kept for the backward pass"), strict=True):
        axis.axvline(1, color="black", linewidth=0.9)
        axis.set_title(f"{title}, over that of convx", fontsize=9)
        axis.set_xlim(0, 1.35 * axis.get_xlim()[1])
        axis.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    axes[0].set_yticks(range(len(cells)), [cell.case.problem.describe().replace(" ", "\n") for cell in cells])
    axes[0].set_ylim(len(cells) - 0.5, -0.5)
    figure.suptitle(subtitle, fontsize=8)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    figure.legend(handles, runners, loc="outside lower center", ncols=len(runners), fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
