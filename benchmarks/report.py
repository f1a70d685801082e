"""Tables of a result file: a description of the run, all cells by class, the summaries by class and by network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.cases import available_lists, problems
from benchmarks.display import duration
from benchmarks.problems import ReluProblem
from benchmarks.results import Cell, Results, geometric_mean, median
from benchmarks.runners import PEERS

# The width in a log or a file; it holds every column.
FILE_WIDTH = 280
# A cell with a ratio below this is lost to a peer, beyond noise.
LEVEL = 0.95
# With a load average above this before the run, its times are not to be trusted.
BUSY = 0.7


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}" if value >= 0.0995 else f"{100 * value:.1f}"


def times(value: float | None) -> Text:
    """A ratio, coloured: green from 1 up."""
    if value is None:
        return Text("")
    return Text(f"{value:.2f}" if value < 9.995 else f"{value:.1f}", style="green" if value >= 1 else "red")


def table(title: str, columns: Sequence[str], left: int = 1) -> Table:
    """A table whose first `left` columns are text and the others numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        made.add_column(name, justify="left" if index < left else "right", overflow="fold", no_wrap=index >= left)
    return made


def header(results: Results) -> list[RenderableType]:
    about, machine = results.about, results.about["machine"]
    cache = ", ".join(f"{name} {size >> 10} KiB" for name, size in machine["caches"].items())
    commit = about["git"]["commit"][:12] or "no commit"
    lines = [
        f"{about['command']}",
        f"{about['date']}, {about['seconds']} s; commit {commit}{' with changes' if about['git']['changed'] else ''}",
        f"{machine['cpu']} at {float(machine['clock_mhz'] or 'nan'):.0f} MHz, {machine['cpus']} CPUs ({cache}); "
        f"{machine['system']}, Python {machine['python']}",
        f"{about['settings']['threads']} threads; load average {machine['load_average']:.1f} before, "
        f"{machine['load_average_after']:.1f} after",
    ]
    if machine["load_average"] > BUSY:
        lines.append("OTHER WORK WAS RUNNING ON THIS MACHINE: IT DISTURBS THE TIMES OF ALL LIBRARIES, AND NOT EQUALLY")
    lines += peak_lines(results)
    for name, library in about["libraries"].items():
        details = ", ".join(f"{library[key]}" for key in ("isa", "layout") if library.get(key))
        lines.append(f"{name} {library['version']}{f' ({details})' if details else ''}; outputs {library['outputs']}")
    lines += [f"{name}: missing ({why})" for name, why in about["missing"].items()]
    return [Text("\n".join(lines)), Text("")]


def peak_lines(results: Results) -> list[str]:
    lines = []
    for dtype in ("float32", "float64"):
        bursts, peak = results.peaks(dtype), results.peak(dtype)
        if bursts and peak:
            lowest, highest = min(burst["min"] for burst in bursts), max(burst["max"] for burst in bursts)
            lines.append(
                f"FMA peak {peak / 1e9:.0f} GFLOP/s {dtype}: median of {sum(int(burst['count']) for burst in bursts)} "
                f"bursts between the cells, {lowest / 1e9:.0f} to {highest / 1e9:.0f}; each cell counts against its own"
            )
    peaks = results.about["peaks"]
    if peaks:
        runs = [each["fma"]["float32"]["all"] / 1e9 for each in peaks]
        one, copy = max(each["fma"]["float32"]["one"] for each in peaks) / 1e9, [p["copy"]["all"] / 1e9 for p in peaks]
        lines.append(
            f"Longer measurements, {len(peaks)} in the run: FMA {min(runs):.0f} to {max(runs):.0f} GFLOP/s float32 "
            f"({one:.0f} on one thread); copy {max(copy):.1f} GB/s (lowest {min(copy):.1f})"
        )
    return lines


def cell_table(results: Results, kind: str, cells: Sequence[Cell]) -> Table:
    """One class: a row for each layer and pass, with the figures of convx, then the time of every other library."""
    others = [name for name in results.runners if name != "convx" and any("median" in c.timings[name] for c in cells)]
    counted = any(cell.case.flops for cell in cells) and kind != "overhead"
    moved = any(cell.case.bytes for cell in cells) and kind != "overhead"
    columns = ["layer", "problem", "pass", "convx", "+-%"]
    columns += (["GFLOP/s", "% peak"] if counted else []) + (["% copy"] if moved else [])
    made = table(kind, [*columns, "ratio", "best peer", *others], left=3)
    before = None
    for cell in sorted(cells, key=lambda cell: cell.case.dtype):
        case = cell.case
        # The name and the sizes of a layer stand in its first row only.
        same, before = before == (case.name, case.problem), (case.name, case.problem)
        ours, best = cell.seconds("convx"), cell.best_peer()
        made.add_row(
            "" if same else case.name,
            "" if same else case.problem.describe(),
            f"{case.op}.{case.passname}" if kind == "overhead" else case.passname,
            entry(cell, "convx"),
            percent(cell.spread("convx")) if ours else "",
            *([f"{case.flops / ours / 1e9:.0f}" if ours else "", percent(results.of_peak(cell))] if counted else []),
            *([percent(results.of_bandwidth(cell))] if moved else []),
            times(cell.ratio()),
            best[0] if best else "",
            *(entry(cell, name) for name in others),
        )
    return made


def entry(cell: Cell, name: str) -> Text:
    """The time of a runner, or a dash; failures and wrong results in red."""
    timing = cell.timings.get(name, {})
    if "error" in timing:
        return Text("failed", style="bold red")
    if "median" not in timing:
        return Text("-", style="dim")
    if not timing.get("agrees", True):
        return Text(f"{duration(timing['median'])} wrong", style="bold red")
    return Text(duration(timing["median"]))


def class_summary(results: Results) -> Table:
    """By class and pass: the ratio to the best peer and to each peer, and the shares of peak and copy bandwidth."""
    peers = [name for name in results.runners if name in PEERS]
    columns = ["class", "pass", "cells", "geomean", "worst", "in layer", f"under {LEVEL}"]
    made = table(
        "Ratio to the best peer and to each (geomean), by class (above 1: convx is faster)",
        [*columns, *peers, "% peak (median)", "lowest", "% copy (median)"], left=2,
    )  # fmt: skip
    made.columns[columns.index("in layer")].justify = "left"
    for kind, cells in results.by_class().items():
        first = True
        for op, passname in dict.fromkeys((cell.case.op, cell.case.passname) for cell in cells):
            chosen = [cell for cell in cells if (cell.case.op, cell.case.passname) == (op, passname)]
            ratios = [(ratio, where(cell)) for cell in chosen if (ratio := cell.ratio()) is not None]
            worst, shares = min(ratios, default=None), [share for cell in chosen if (share := results.of_peak(cell))]
            machine = kind not in ("overhead", "training")
            made.add_row(
                kind if first else "",
                f"{op}.{passname}",
                str(len(chosen)),
                times(geometric_mean(ratio for ratio, _ in ratios)),
                times(worst[0] if worst else None),
                worst[1] if worst else "",
                str(sum(ratio < LEVEL for ratio, _ in ratios)) if ratios else "",
                *(times(geometric_mean(each for cell in chosen if (each := cell.ratio([name])))) for name in peers),
                percent(median(shares)) if machine else "",
                percent(min(shares, default=None)) if machine else "",
                percent(median(map(results.of_bandwidth, chosen))) if machine else "",
            )
            first = False
    return made


def where(cell: Cell) -> str:
    """The name of the layer without that of its network, and the batch size."""
    if isinstance(cell.case.problem, ReluProblem):
        return cell.case.problem.describe()
    return f"{cell.case.name.rpartition(':')[2]} N={batch(cell)}"


@dataclass(frozen=True)
class NetworkTotal:
    """Seconds of all layers of a list, weighted by occurrence, for each runner that ran every layer."""

    name: str
    label: str
    seconds: dict[str, float]

    @property
    def best_peer(self) -> str | None:
        """The one library with the least time for the whole network."""
        return min((name for name in PEERS if name in self.seconds), key=self.seconds.__getitem__, default=None)

    @property
    def ratio(self) -> float | None:
        ours, best = self.seconds.get("convx"), self.best_peer
        return self.seconds[best] / ours if ours and best else None


def network_totals(results: Results) -> list[NetworkTotal]:
    """The sums of the lists that were timed completely."""
    groups: dict[tuple[str, str, str, str, int], list[Cell]] = {}
    for cell in results.cells:
        case = cell.case
        for name in case.occurrences:
            if name in available_lists():
                groups.setdefault((name, case.op, case.passname, case.dtype, batch(cell)), []).append(cell)
    found = []
    for (name, op, passname, dtype, n), cells in groups.items():
        measured = sum(cell.case.occurrences[name] for cell in cells)
        rows = [times for _, times, problem in problems(op, name, n) if not isinstance(problem, str)]
        if len(rows) > 1 and measured == sum(rows):
            sums = {runner: amount for runner in results.runners if (amount := total(cells, name, runner)) is not None}
            found.append(NetworkTotal(name, f"{op}.{passname} {dtype} N={n}", sums))
    return found


def network_summary(results: Results) -> Table | None:
    columns = ["list", "pass", "ratio", "best peer", *results.runners]
    made = table("All layers of a list, each as often as it occurs (one library for all layers)", columns, left=2)
    for row in network_totals(results):
        entries = (duration(row.seconds[name]) if name in row.seconds else "-" for name in results.runners)
        made.add_row(row.name, row.label, times(row.ratio), row.best_peer or "", *entries)
    return made if made.row_count else None


def batch(cell: Cell) -> int:
    return int(cell.case.problem.input_shape[0])


def total(cells: Iterable[Cell], name: str, runner: str) -> float | None:
    amount = 0.0
    for cell in cells:
        seconds = cell.seconds(runner)
        if seconds is None:
            return None
        amount += seconds * cell.case.occurrences[name]
    return amount


def troubles(results: Results) -> list[str]:
    """A line for each failure; for each library a line about its wrong results."""
    failed, wrong = list[str](), dict[str, list[tuple[float, str]]]()
    for cell in results.cells:
        for name, timing in cell.timings.items():
            if "error" in timing:
                failed.append(f"{name} failed in {cell.case.key}: {timing['error']}")
            elif not timing.get("agrees", True):
                wrong.setdefault(name, []).append((timing["difference"], cell.case.key))
    return failed + [
        f"{name} is wrong by {worst:.1e} of the largest value in {key}; {len(cells)} of its results do not count"
        for name, cells in wrong.items()
        for worst, key in [max(cells)]
    ]


def left_out(results: Results) -> list[str]:
    """The rows and cells that were not timed: one line for each reason."""
    left, found = results.about["left_out"], list[str]()
    for reason in dict.fromkeys(left.values()):
        keys = [key for key, why in left.items() if why == reason]
        found.append(f"Left out ({reason}): {len(keys)}, the first is {keys[0]}")
    return found


def unsupported(results: Results) -> list[str]:
    """The passes that a library did not run: one line for each library and reason."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for cell in results.cells:
        for name, timing in cell.timings.items():
            if "unsupported" in timing:
                found.setdefault((name, timing["unsupported"]), {})[f"{cell.case.op}.{cell.case.passname}"] = None
    return [f"Not compared: {name} without {', '.join(passes)}: {why}" for (name, why), passes in found.items()]


def show(results: Results, console: Console, more: Sequence[RenderableType] = ()) -> None:
    """Print all tables and notes; `more` stands before the notes."""
    parts: list[Any] = header(results)
    parts += [cell_table(results, kind, cells) for kind, cells in results.by_class().items()]
    parts += [class_summary(results), network_summary(results), *more]
    for part in parts:
        if part is not None:
            console.print(part)
    for text in (*unsupported(results), *left_out(results)):
        console.print(Text(text, style="dim"), soft_wrap=True)
    for text in troubles(results):
        console.print(Text(text, style="bold red"), soft_wrap=True)


def compare(before: Results, after: Results, console: Console) -> None:
    """Compare convx in two files, cell by cell; a change counts where the ranges of the quartiles do not overlap."""
    for label, results in (("A", before), ("B", after)):
        about = results.about
        console.print(f"{label}: {about['command']}, {about['date']}, {about['machine']['cpu']}", highlight=False)
    old, new = ({cell.case.key: cell for cell in results.cells} for results in (before, after))
    made = table(
        "convx in A and B, and its ratio to the best peer of each run",
        ["layer", "cell", "A", "B", "A/B", "% peak A", "% peak B", "ratio A", "ratio B", ""],
        left=2,
    )
    changes: dict[str, list[float]] = {}
    for key, cell in new.items():
        match = old.get(key)
        a, b = match.seconds("convx") if match else None, cell.seconds("convx")
        if match is None or a is None or b is None:
            continue
        first, second = match.timings["convx"], cell.timings["convx"]
        apart = first["p25"] > second["p75"] or first["p75"] < second["p25"]
        changes.setdefault(f"{cell.case.op}.{cell.case.passname}", []).append(a / b)
        made.add_row(
            cell.case.name,
            key,
            duration(a),
            duration(b),
            times(a / b) if apart else Text(f"{a / b:.2f}", style="dim"),
            percent(before.of_peak(match)),
            percent(after.of_peak(cell)),
            times(match.ratio()),
            times(cell.ratio()),
            "" if not apart else "faster" if a > b else "slower",
        )
    console.print(made)
    for name, ratios in changes.items():
        mean, ends = geometric_mean(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}"
        console.print(f"{name}: A/B {mean:.3f} (geomean of {len(ratios)} cells, {ends})", highlight=False)
    both = sum(map(len, changes.values()))
    only = f"{len(old.keys() - new.keys())} cells only in A, {len(new.keys() - old.keys())} only in B"
    console.print(f"{both} cells compared, {only}", highlight=False)
