"""Result files: a run as JSON, and the figures for tables and plots."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cases import CLASSES, Case
from benchmarks.runners import PEERS

FORMAT = 1
FOLDER = Path(__file__).parent / "results"


@dataclass
class Cell:
    """One case and its timing by runner: seconds as in timing.summarise, or {"unsupported" | "error": reason}."""

    case: Case
    timings: dict[str, dict[str, Any]]
    copies: int = 1
    together: bool = True
    # FLOP/s of FMA bursts between the turns of this cell: {"min", "median", "max", "count"}; None for cells without
    # multiplications.
    peak: dict[str, float] | None = None
    # The same in bytes/s of copies, for cells without multiplications whose arrays exceed the cache.
    copy: dict[str, float] | None = None

    def seconds(self, runner: str) -> float | None:
        """Median seconds of a call; None where the runner has no time or a wrong result."""
        timing = self.timings.get(runner, {})
        return timing["median"] if "median" in timing and timing.get("agrees", True) else None

    def spread(self, runner: str) -> float:
        """Distance between the quartiles over the median."""
        timing = self.timings[runner]
        return float((timing["p75"] - timing["p25"]) / timing["median"])

    def best_peer(self, peers: Sequence[str] = PEERS) -> tuple[str, float] | None:
        times = [(name, seconds) for name in peers if (seconds := self.seconds(name)) is not None]
        return min(times, key=lambda item: item[1], default=None)

    def ratio(self, peers: Sequence[str] = PEERS, subject: str = "convx") -> float | None:
        """Time of the fastest peer over that of convx: above 1, convx is faster."""
        ours, best = self.seconds(subject), self.best_peer(peers)
        return best[1] / ours if ours and best else None


class Results:
    """A run: `about` (machine, versions, settings, peaks) and its cells."""

    def __init__(self, about: dict[str, Any], cells: list[Cell]) -> None:
        if about.get("format") != FORMAT:
            raise ValueError(f"not a result file of format {FORMAT}: format is {about.get('format')!r}")
        self.about, self.cells = about, cells

    @property
    def runners(self) -> list[str]:
        return list(self.about["libraries"])

    def peaks(self, dtype: str) -> list[dict[str, float]]:
        """The bursts beside the cells of that dtype."""
        return [cell.peak for cell in self.cells if cell.peak and cell.case.dtype == dtype]

    def peak(self, dtype: str) -> float | None:
        """FLOP/s on the threads of the run: the median over the bursts beside the cells.

        The clock of a virtual machine drifts by 10 % and more within a run; most cells never had the clock of the
        highest burst. Without bursts: the median of the measurements before, during and after the run.
        """
        bursts = [burst["median"] for burst in self.peaks(dtype)]
        return median(bursts or [each["fma"][dtype]["all"] for each in self.about["peaks"]])

    @property
    def bandwidth(self) -> float | None:
        """Copy bandwidth in bytes/s (read + written) on the threads of the run: the highest measured."""
        return max((each["copy"]["all"] for each in self.about["peaks"]), default=None)

    def of_peak(self, cell: Cell, runner: str = "convx") -> float | None:
        """Share of the FMA peak measured beside the cell."""
        seconds = cell.seconds(runner)
        peak = cell.peak["median"] if cell.peak else self.peak(cell.case.dtype)
        return cell.case.flops / seconds / peak if seconds and peak and cell.case.flops else None

    def of_bandwidth(self, cell: Cell, runner: str = "convx") -> float | None:
        """Share of the copy bandwidth measured beside the cell, otherwise of the highest of the run."""
        seconds, bandwidth = cell.seconds(runner), cell.copy["median"] if cell.copy else self.bandwidth
        return cell.case.bytes / seconds / bandwidth if seconds and bandwidth else None

    def by_class(self) -> dict[str, list[Cell]]:
        """Cells in the order of CLASSES."""
        groups: dict[str, list[Cell]] = {kind: [] for kind in CLASSES}
        for cell in self.cells:
            groups[cell.case.kind].append(cell)
        return {kind: cells for kind, cells in groups.items() if cells}

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        cells = [
            {**vars(cell), "case": cell.case.to_json(), "flops": cell.case.flops, "bytes": cell.case.bytes}
            for cell in self.cells
        ]
        # One line for each cell, so that git shows readable differences.
        head = json.dumps(self.about, indent=1).removesuffix("\n}")
        path.write_text(head + ',\n "cells": [\n' + ",\n".join(map(json.dumps, cells)) + "\n]}\n")

    @staticmethod
    def load(path: Path) -> Results:
        about = json.loads(path.read_text())
        cells = [
            Cell(
                Case.from_json(cell["case"]),
                cell["timings"],
                cell["copies"],
                cell["together"],
                cell.get("peak"),
                cell.get("copy"),
            )
            for cell in about.pop("cells", [])
        ]
        return Results(about, cells)


def file_name(about: dict[str, Any]) -> str:
    """Machine, threads, date and command: `amd-epyc-4threads-2026-01-31-layers`."""
    cpu = re.sub(r"\((r|tm)\)|processor|cpu|@.*|\d+-core", "", about["machine"]["cpu"].lower())
    words = "-".join(re.findall(r"[a-z0-9]+", cpu)) or "machine"
    threads = about["settings"]["threads"]
    return f"{words}-{threads}threads-{about['date'][:10]}-{about['kind']}"


def geometric_mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return statistics.geometric_mean(values) if values else None


def median(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None
