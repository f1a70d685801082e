"""Progress of a run: a live bar with the latest results on a terminal, one line per case in a log."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.cases import Case
from benchmarks.results import Cell


def duration(seconds: float) -> str:
    """Three significant digits and a unit: 812 ns, 4.61 ms."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size * 0.9995:
            return f"{seconds / size:.3g} {unit}" if seconds / size < 999.5 else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def line(cell: Cell) -> str:
    """One case in one line: all times, and the ratio."""
    times = [
        f"{name} {duration(timing['median'])}" if "median" in timing else f"{name} -"
        for name, timing in cell.timings.items()
    ]
    ratio, best = cell.ratio(), cell.best_peer()
    verdict = f"  = {ratio:.2f}x {best[0]}" if ratio and best else ""
    wrong = [name for name, timing in cell.timings.items() if not timing.get("agrees", True)]
    wrong += [f"{name}: {timing['error']}" for name, timing in cell.timings.items() if "error" in timing]
    trouble = f"  WRONG OR FAILED: {'; '.join(wrong)}" if wrong else ""
    return f"{title(cell.case)}: {', '.join(times)}{verdict}{trouble}"


def title(case: Case) -> str:
    return f"{case.name} [{case.problem.describe()}] {case.op}.{case.passname} {case.dtype}"


class LiveDisplay:
    """session.Display on a rich console; a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False), console=console, disable=not console.is_terminal,
            transient=True,
        )  # fmt: skip
        self.task = self.progress.add_task("", total=None)
        self.current = ""
        self.done = self.total = 0
        self.began = time.monotonic()

    def __enter__(self) -> LiveDisplay:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def start(self, total: int, runners: dict[str, dict[str, Any]], missing: dict[str, str]) -> None:
        self.total = total
        self.progress.update(self.task, total=total)
        for name, about in runners.items():
            details = ", ".join(f"{key} {about[key]}" for key in ("threads", "isa", "layout") if about.get(key))
            self.say(f"{name}: {about['version']} ({details})")
        for name, why in missing.items():
            self.say(f"{name}: missing ({why})")

    def begin(self, case: Case) -> None:
        self.current = title(case)

    def busy(self, runner: str) -> None:
        self.progress.update(self.task, description=f"{self.current} {runner}")

    def finish(self, cell: Cell) -> None:
        self.done += 1
        self.progress.update(self.task, advance=1)
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        self.say(f"[{self.done}/{self.total} {minutes}:{seconds:02}] {line(cell)}")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
