"""Plots of a result file: the ratio to the best peer by layer, and the roofline."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks import training
from benchmarks.cases import CLASSES
from benchmarks.display import duration
from benchmarks.report import NetworkTotal, network_totals
from benchmarks.results import Cell, Results
from benchmarks.runners import PEERS

# One colour for each class, in the order of CLASSES: neighbours differ, the 3x3 classes form a ramp.
COLOURS = dict(
    zip(
        CLASSES,
        ("#8c564b", "#08306b", "#08519c", "#2171b5", "#4292c6", "#6baed6", "#2ca02c", "#ff7f0e", "#9467bd", "#e377c2",
         "#7f7f7f", "#bcbd22", "#dbab00", "#393b79", "#d62728", "#17becf", "#0e7c86", "#9edae5", "#637939", "#444444",
         "#c49c94"),
        strict=True,
    )
)  # fmt: skip


def draw(results: Results, stem: Path) -> list[Path]:
    """Write STEM-ratio-OP.png, -networks.png, -training.png and -roofline.png, those for which there are cells."""
    written = []
    for op in dict.fromkeys(cell.case.op for cell in results.cells):
        cells = [
            cell for cell in results.cells if cell.case.op == op and cell.case.kind not in ("overhead", "training")
        ]
        if any(cell.ratio() for cell in cells):
            written.append(ratio_plot(results, op, cells, stem.with_name(f"{stem.name}-ratio-{op}.png")))
    if totals := [each for each in network_totals(results) if each.ratio]:
        written.append(network_plot(results, totals, stem.with_name(f"{stem.name}-networks.png")))
    if path := training.plot(results, subtitle(results), stem.with_name(f"{stem.name}-training.png")):
        written.append(path)
    if on_the_roof(results):
        written.append(roofline(results, stem.with_name(f"{stem.name}-roofline.png")))
    return written


def subtitle(results: Results) -> str:
    about = results.about
    peers = ", ".join(f"{name} {about['libraries'][name]['version']}" for name in results.runners if name in PEERS)
    threads = about["settings"]["threads"]
    isa = about["libraries"].get("convx", {}).get("isa", "")
    run = ", ".join(
        filter(
            None, [about["machine"]["cpu"], f"{threads} thread{'s' if threads > 1 else ''}", isa, about["date"][:10]]
        )
    )
    return textwrap.fill(f"{run}; against {peers}", 100) if peers else run


def row_label(cell: Cell) -> str:
    dtype = " float64" if cell.case.dtype == "float64" else ""
    return f"{cell.case.problem.describe()}{dtype}"


def ratio_plot(results: Results, op: str, cells: Sequence[Cell], path: Path) -> Path:
    """A panel for each pass, a bar for each layer: the time of the fastest peer over that of convx."""
    passes = [name for name in dict.fromkeys(c.case.passname for c in cells) if any(
        c.ratio() for c in cells if c.case.passname == name)]  # fmt: skip
    order = sorted(cells, key=lambda cell: CLASSES.index(cell.case.kind))
    rows = list(dict.fromkeys((row_label(cell), cell.case.kind) for cell in order if cell.ratio()))
    position = {label: index for index, (label, _) in enumerate(rows)}
    figure, axes = plt.subplots(
        1, len(passes), sharex=True, sharey=True, squeeze=False, layout="constrained",
        figsize=(4.2 + 2.6 * len(passes), 1.5 + 0.2 * len(rows)),
    )  # fmt: skip
    values = [ratio for cell in cells if (ratio := cell.ratio())]
    low, high = min(*values, 0.8), max(*values, 1.25)
    for axis, passname in zip(axes[0], passes, strict=True):
        panel = [(cell, ratio) for cell in order if cell.case.passname == passname and (ratio := cell.ratio())]
        for cell, ratio in panel:
            y = position[row_label(cell)]
            axis.barh(y, ratio - 1, left=1, height=0.78, color=COLOURS[cell.case.kind])
            axis.annotate(
                f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:.0f}", (ratio, y), (3 if ratio >= 1 else -3, 0),
                textcoords="offset points", va="center", ha="left" if ratio >= 1 else "right", fontsize=6.5,
            )  # fmt: skip
        mean = float(np.exp(np.mean(np.log([ratio for _, ratio in panel]))))
        axis.set_title(f"{passname}\ngeomean {mean:.2f}x", fontsize=10)
        axis.axvline(1, color="black", linewidth=0.9)
        axis.set_xscale("log")
        axis.set_xlim(low / 1.45, high * 1.45)
        ratio_ticks(axis, low / 1.45, high * 1.45)
        axis.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=7)
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", which="major", color="#dddddd", linewidth=0.7)
        axis.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    figure.suptitle(f"{op}: times faster than the fastest peer (log axis)\n{subtitle(results)}", fontsize=9)
    kinds = dict.fromkeys(kind for _, kind in rows)
    handles = [Patch(color=COLOURS[kind]) for kind in kinds]
    if len(kinds) > 1:
        figure.legend(handles, kinds, loc="outside lower center", ncols=min(6, len(kinds)), fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def network_plot(results: Results, totals: Sequence[NetworkTotal], path: Path) -> Path:
    """A group of bars for each network: the time of each library for all its layers, over that of convx."""
    names = [name for name in results.runners if name != "reference" and any(name in each.seconds for each in totals)]
    colours = dict(zip(names, plt.get_cmap("tab20").colors, strict=False))  # type: ignore[attr-defined]
    colours["convx"] = "#222222"
    height = 0.8 / len(names)
    figure, axis = plt.subplots(figsize=(8.5, 1.6 + 0.2 * len(names) * len(totals)), layout="constrained")
    for row, network in enumerate(totals):
        for index, name in enumerate(each for each in names if each in network.seconds):
            share = network.seconds[name] / network.seconds["convx"]
            y = row - 0.4 + (index + 0.5) * height
            axis.barh(y, share, height=0.92 * height, color=colours[name])
            text = f"{duration(network.seconds[name])}  {share:.2f}"
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
            axis.annotate(text, (share, y), (3, 0), textcoords="offset points", va="center", fontsize=6.5, bbox=box)
    axis.axvline(1, color="black", linewidth=0.9)
    labels = [f"{each.name}\n{each.label.partition('.')[2]}" for each in totals]
    axis.set_yticks(range(len(totals)), labels, fontsize=7.5)
    axis.set_ylim(len(totals) - 0.5, -0.5)
    axis.set_xlim(0, 1.18 * max(max(each.seconds.values()) / each.seconds["convx"] for each in totals))
    axis.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    figure.suptitle(f"All convolutions of a network: time over that of convx\n{subtitle(results)}", fontsize=9)
    handles = [Patch(color=colours[name]) for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(names)), fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def ratio_ticks(axis: Axes, low: float, high: float) -> None:
    """Ticks at 1, 2, 5 times powers of ten (or finer on a short axis), written as plain numbers."""
    steps = (1, 1.5, 2, 3, 5, 7) if high / low < 8 else (1, 2, 5) if high / low < 100 else (1,)
    ticks = [step * 10.0**power for power in range(-3, 4) for step in steps]
    axis.set_xticks([tick for tick in ticks if low <= tick <= high])
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelsize=8)


def on_the_roof(results: Results) -> list[Cell]:
    """The cells of the roofline: those with counted FLOPs and a time of convx."""
    return [
        cell for cell in results.cells
        if cell.case.dtype == "float32" and cell.case.kind != "overhead" and results.of_peak(cell)
    ]  # fmt: skip


def roofline(results: Results, path: Path) -> Path:
    """GFLOP/s over FLOP per byte, under the two measured bounds: convx filled, the best peer hollow."""
    peak, bandwidth = results.peak("float32"), results.bandwidth
    assert peak is not None and bandwidth is not None
    cells = on_the_roof(results)
    passes = list(dict.fromkeys((cell.case.op, cell.case.passname) for cell in cells))
    columns = min(2, len(passes))
    lines = -(-len(passes) // columns)
    figure, axes = plt.subplots(
        lines, columns, sharex=True, sharey=True, squeeze=False, layout="constrained",
        figsize=(max(1 + 5 * columns, 9.5), 1.2 + 3.6 * lines),
    )  # fmt: skip
    intensity = [cell.case.flops / cell.case.bytes for cell in cells]
    x = np.geomspace(min(*intensity, peak / bandwidth / 4) / 1.6, max(*intensity, peak / bandwidth * 4) * 1.6, 200)
    for axis, (op, passname) in zip(axes.flat, passes, strict=False):
        axis.plot(x, np.minimum(peak, x * bandwidth) / 1e9, color="black", linewidth=1.2)
        for cell in (cell for cell in cells if (cell.case.op, cell.case.passname) == (op, passname)):
            case, best, ours = cell.case, cell.best_peer(), cell.seconds("convx")
            assert ours is not None
            at, colour = case.flops / case.bytes, COLOURS[case.kind]
            if best:
                both = [case.flops / ours / 1e9, case.flops / best[1] / 1e9]
                axis.plot([at, at], both, color=colour, linewidth=0.6, alpha=0.5, zorder=2)
                axis.plot(at, both[1], "o", markersize=4.5, markerfacecolor="white", markeredgecolor=colour, zorder=3)
            axis.plot(at, case.flops / ours / 1e9, "o", markersize=4.5, color=colour, zorder=4)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(f"{op}.{passname}", fontsize=10)
        axis.grid(which="major", color="#dddddd", linewidth=0.7)
        for each in (axis.xaxis, axis.yaxis):
            each.set_major_locator(LogLocator(subs=(1, 3) if each is axis.xaxis else (1, 2, 5)))
            each.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            each.set_minor_formatter(NullFormatter())
    for axis in axes.flat[len(passes) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("FLOP per byte that must move", fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("GFLOP/s", fontsize=9)
    figure.suptitle(
        f"Roofline: {peak / 1e9:.0f} GFLOP/s FMA (median next to the cells), {bandwidth / 1e9:.1f} GB/s copy; "
        f"filled: convx, hollow: the best peer\n{subtitle(results)}",
        fontsize=9,
    )
    kinds = [kind for kind in CLASSES if any(cell.case.kind == kind for cell in cells)]
    handles = [Line2D([], [], marker="o", linestyle="", color=COLOURS[kind]) for kind in kinds]
    figure.legend(handles, kinds, loc="outside lower center", ncols=min(6, len(kinds)), fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
