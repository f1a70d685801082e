"""A run: one process for each library; every case goes to each in turn, in several rounds."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from math import prod
from typing import Any, Protocol

from benchmarks import agreement, machine, runners, timing
from benchmarks.cases import ITEMSIZE, Case
from benchmarks.results import FORMAT, Cell, Results

# The pause before a turn: worker threads of the other libraries spin for a while after their last call.
PAUSE_SECONDS = 0.01
# Signals that end a run and keep its results.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# glibc keeps freed memory, so that no library pays page faults for each large output (see README.md).
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


@dataclass(frozen=True)
class Settings:
    threads: int
    # Wall time for each cell and library, over all rounds.
    seconds: float = 0.5
    rounds: int = 5
    # Limit of the warm-up, once for each cell and library.
    warm_up: float = 2.0
    isa: str | None = None
    # "keep": freed memory is reused (see KEEP_MEMORY); "default": the allocators are unchanged.
    memory: str = "keep"
    # Limit of the rotating copies of stored arrays (see Case.copies); 1 leaves everything in cache.
    most_copies: int = 8
    peak_seconds: float = 0.3
    # The FMA burst before each turn of the libraries, the peak of the cell.
    burst_seconds: float = 0.03
    # The interval between measurements of the peaks, since clocks and neighbours change.
    peak_interval: float = 120.0
    # No cell starts after this many seconds; the report lists those left out.
    deadline: float | None = None


class Display(Protocol):
    def start(self, total: int, runners: dict[str, dict[str, Any]], missing: dict[str, str]) -> None: ...
    def begin(self, case: Case) -> None: ...
    def busy(self, runner: str) -> None: ...
    def finish(self, cell: Cell) -> None: ...


class ChildDied(Exception):
    """The process ended or hung; the message has the status and the end of its output."""


class Child:
    """The process of one runner."""

    # Longer than any cell: a process that takes longer is killed and reported.
    TIMEOUT = 300.0

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.settings = name, settings
        self.log = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 (lives as long as the process)
        self.process = self.spawn()

    def spawn(self) -> subprocess.Popen[str]:
        count = str(self.settings.threads)
        names = ("CONVX_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        # start_new_session keeps the terminal's Ctrl-C away from the child; the parent ends it.
        environment = {**os.environ, **dict.fromkeys(names, count)}
        if self.settings.memory == "keep":
            environment |= KEEP_MEMORY
        environment |= runners.environment(self.name, self.settings.threads)
        isa = self.name.partition("@")[2] or self.settings.isa
        if isa:
            environment["CONVX_ISA"] = isa
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.child", self.name, count],
            cwd=machine.CHECKOUT, env=environment, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, start_new_session=True,
        )  # fmt: skip

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send one request and return its answer; raises ChildDied."""
        assert self.process.stdin is not None and self.process.stdout is not None
        watchdog = threading.Timer(self.TIMEOUT, self.process.kill)
        watchdog.start()
        try:
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watchdog.cancel()
        if not line:
            raise ChildDied(f"the process ended with status {self.process.wait()} in {do!r}: {self.last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def last_words(self) -> str:
        self.log.seek(0)
        return self.log.read()[-600:].strip() or "it wrote nothing"

    def restart(self) -> None:
        self.stop()
        self.process = self.spawn()
        self.ask("describe")

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()

    def close(self) -> None:
        self.stop()
        self.log.close()


class Session:
    """The runners' processes, alive from `with` to its end."""

    def __init__(self, names: Sequence[str], settings: Settings, display: Display) -> None:
        self.names, self.settings, self.display = names, settings, display
        self.children: dict[str, Child] = {}
        self.libraries: dict[str, dict[str, Any]] = {}
        self.missing: dict[str, str] = {}
        self.peaks: list[dict[str, Any]] = []
        self.cache = machine.last_level_cache()
        self.began = time.monotonic()
        self.chance = random.Random(0)

    def __enter__(self) -> Session:
        # All processes start at once: importing a framework takes seconds.
        started = {name: Child(name, self.settings) for name in self.names}
        for name, child in started.items():
            try:
                answer = child.ask("describe")
            except ChildDied as error:
                answer = {"missing": str(error)}
            if "ok" in answer:
                self.children[name], self.libraries[name] = child, answer["ok"]
            else:
                self.missing[name] = answer.get("missing") or answer.get("error", "")
                child.close()
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children.values():
            child.close()

    def run(self, cases: Sequence[Case], kind: str, command: str, left_out: Mapping[str, str]) -> Results:
        self.display.start(len(cases), self.libraries, self.missing)
        started = datetime.now(timezone.utc)
        description, cells, skipped = machine.describe(), list[Cell](), dict(left_out)
        isa_peaks = self.isa_peaks()
        self.measure_peaks()
        # A shell that starts the run in the background ignores SIGINT; this handler replaces it.
        stop_signals = {number: signal.signal(number, signal.default_int_handler) for number in STOP_SIGNALS}
        try:
            for case in cases:
                if self.settings.deadline is not None and time.monotonic() - self.began > self.settings.deadline:
                    skipped[case.key] = "time limit"
                    continue
                self.display.begin(case)
                cells.append(self.cell(case))
                self.display.finish(cells[-1])
                if time.time() - self.peaks[-1]["time"] > self.settings.peak_interval:
                    self.measure_peaks()
            self.measure_peaks()
        except KeyboardInterrupt:
            # The results so far are kept. The processes may be in the middle of an answer: no more requests.
            skipped |= dict.fromkeys((case.key for case in cases[len(cells) :]), "interrupted")
        finally:
            for number, handler in stop_signals.items():
                signal.signal(number, handler)
        about = {
            "format": FORMAT,
            "kind": kind,
            "command": command,
            "date": started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self.began, 1),
            "git": machine.revision(),
            "machine": {**description, "load_average_after": os.getloadavg()[0]},
            "settings": vars(self.settings),
            "libraries": self.libraries,
            "missing": self.missing,
            "left_out": skipped,
            "isa_peaks": isa_peaks,
            "peaks": self.peaks,
        }
        return Results(about, cells)

    def measure_peaks(self) -> None:
        """Adds a measurement; fails only where there is none before it."""
        answer = self.ask_for_peaks("convx")
        if "ok" in answer:
            self.peaks.append(answer["ok"])
        elif not self.peaks:
            raise RuntimeError(f"the peaks of this machine could not be measured: {answer}")

    def ask_for_peaks(self, name: str) -> dict[str, Any]:
        size = max(4 * self.cache, 256 << 20)
        return self.ask(name, "peaks", seconds=self.settings.peak_seconds, bytes=size)

    def isa_peaks(self) -> dict[str, float]:
        """FLOP/s in float32 of each instruction set that a runner forces with `@`."""
        forced = [name for name in self.children if "@" in name]
        return {name.partition("@")[2]: self.ask_for_peaks(name)["ok"]["fma"]["float32"]["all"] for name in forced}

    def cell(self, case: Case) -> Cell:
        """Time one case with every runner, interleaved where memory suffices for all of them at once."""
        copies = case.copies(self.cache, self.settings.most_copies)
        # Inputs, output, a second output that the allocator may keep, and the copies.
        size = ITEMSIZE[case.dtype] * prod(case.problem.output_shape) + 2 * case.bytes + copies * case.stored_bytes
        together = size * len(self.children) < machine.available_memory() / 2
        cell = Cell(case, {}, copies, together)
        bursts: list[float] = []
        copies_per_second: list[float] = []
        probes: dict[str, list[float]] = {}
        names = list(self.children)
        for group in [names] if together else [[name] for name in names]:
            self.time_group(cell, group, probes, bursts, copies_per_second)
        cell.peak, cell.copy = spread_of(bursts), spread_of(copies_per_second)
        cell.timings = {name: cell.timings[name] for name in names if name in cell.timings}
        for name, verdict in agreement.judge(case, probes).items():
            cell.timings[name] |= verdict
        return cell

    def time_group(
        self, cell: Cell, names: Sequence[str], probes: dict[str, list[float]], bursts: list[float], copied: list[float]
    ) -> None:
        rounds: dict[str, list[list[float]]] = {}
        notes: dict[str, dict[str, Any]] = {}
        faults: dict[str, float] = {}
        limit = self.settings.warm_up
        for name in names:
            self.display.busy(name)
            answer = self.ask(name, "prepare", case=cell.case.to_json(), copies=cell.copies, warm_up=limit)
            if "ok" in answer:
                probes[name], notes[name], rounds[name] = answer["ok"]["probe"], answer["ok"]["notes"], []
            else:
                cell.timings[name] = answer
        for _ in range(self.settings.rounds):
            order = list(rounds)
            if cell.case.flops:
                answer = self.ask("convx", "burst", seconds=self.settings.burst_seconds, dtype=cell.case.dtype)
                bursts += [answer["ok"]] if "ok" in answer else []
            elif cell.case.bytes > 2 * self.cache:
                answer = self.ask(
                    "convx", "copy", seconds=self.settings.burst_seconds, bytes=max(4 * self.cache, 256 << 20)
                )
                copied += [answer["ok"]] if "ok" in answer else []
            # In random order, so that spinning threads and the clock after one library affect all others alike.
            for name in self.chance.sample(order, len(order)):
                self.display.busy(name)
                time.sleep(PAUSE_SECONDS)
                answer = self.ask(name, "sample", seconds=self.settings.seconds / self.settings.rounds)
                if "ok" in answer:
                    rounds[name].append(answer["ok"]["samples"])
                    faults[name] = answer["ok"]["page_faults"]
                else:
                    cell.timings[name] = answer
                    del rounds[name], probes[name]
        for name, samples in rounds.items():
            cell.timings[name] = {**timing.summarise(samples), "page_faults": faults[name], **notes[name]}
            self.ask(name, "release")

    def ask(self, name: str, do: str, **request: Any) -> dict[str, Any]:
        """As Child.ask; a death becomes an error of this cell, and the process restarts for the next one."""
        if name not in self.children:
            return {"error": self.missing[name]}
        try:
            return self.children[name].ask(do, **request)
        except ChildDied as error:
            try:
                self.children[name].restart()
            except ChildDied as again:
                self.missing[name] = f"died and could not be started again: {again}"
                del self.children[name]
            return {"error": str(error)}


def instruction_sets(settings: Settings) -> list[str]:
    """The instruction sets that convx can run here; empty where convx is missing."""
    child = Child("convx", settings)
    try:
        return list(child.ask("describe").get("ok", {}).get("isas", []))
    finally:
        child.close()


def spread_of(bursts: Sequence[float]) -> dict[str, float] | None:
    if not bursts:
        return None
    return {"min": min(bursts), "median": statistics.median(bursts), "max": max(bursts), "count": len(bursts)}
