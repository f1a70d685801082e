"""The process of one library: it reads one JSON request a line and answers with one JSON line.

    {"do": "describe"}                                        -> {"ok": {version, threads, ...}} or {"missing": why}
    {"do": "prepare", "case": ..., "copies": n, "warm_up": s} -> {"ok": {"probe": [...], "notes": {...}}}
                                                              or {"unsupported": why}
    {"do": "sample", "seconds": s}                            -> {"ok": {"samples": [...], "page_faults": x}}
    {"do": "release"}                                         -> {"ok": null}
    {"do": "peaks", "seconds": s, "bytes": b}                 -> {"ok": {"fma": ..., "copy": ...}}, by convx's runner
    {"do": "burst", "seconds": s, "dtype": "float32"}         -> {"ok": FLOP/s}, by convx's runner
    {"do": "copy", "seconds": s, "bytes": b}                  -> {"ok": bytes/s}, by convx's runner

A failure is answered with {"error": what}; the process continues. session.py starts it as
`python -m benchmarks.child NAME THREADS`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

from benchmarks import data, runners, timing
from benchmarks.cases import Case


class Server:
    """The runner, and the calls of the prepared case."""

    def __init__(self, name: str, threads: int) -> None:
        self.name, self.threads = name, threads
        self.runner: runners.Runner | None = None
        self.calls: runners.Calls = []

    def describe(self) -> dict[str, Any]:
        self.runner = runners.create(self.name, self.threads)
        return {**self.runner.describe(), "outputs": self.runner.outputs}

    def prepare(self, case: dict[str, Any], copies: int, warm_up: float) -> dict[str, Any]:
        assert self.runner is not None
        self.release()
        wanted = Case.from_json(case)
        self.calls = self.runner.calls(wanted, data.arrays(wanted), copies)
        probe = data.probe(self.runner.logical(wanted, self.calls[0]()))
        timing.warm_up(self.calls, warm_up)
        return {"probe": probe, "notes": self.runner.notes(wanted)}

    def sample(self, seconds: float) -> dict[str, Any]:
        samples, faults = timing.sample(self.calls, seconds)
        return {"samples": samples, "page_faults": faults}

    def release(self) -> None:
        self.calls = []

    def peaks(self, seconds: float, bytes: int) -> dict[str, Any]:
        from benchmarks.machine import measure_peaks

        return measure_peaks(seconds, bytes)

    def burst(self, seconds: float, dtype: str) -> float:
        from benchmarks.machine import burst

        return burst(seconds, dtype)

    def copy(self, seconds: float, bytes: int) -> float:
        from benchmarks.machine import copy

        return copy(seconds, bytes)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"ok": getattr(self, request.pop("do"))(**request)}
        except ImportError as error:
            return {"missing": str(error)}
        except runners.Unsupported as error:
            return {"unsupported": str(error)}
        except Exception as error:
            traceback.print_exc()
            return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    # Libraries may print: their standard output goes to the standard error, away from the protocol.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    server = Server(sys.argv[1], int(sys.argv[2]))
    for line in sys.stdin:
        replies.write(json.dumps(server.answer(json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
