"""Timing of one prepared call inside a runner's process."""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

# The least duration of a sample (shorter calls are repeated in it): 1000 times the cost of reading the clock.
SAMPLE_SECONDS = 100e-6
# The warm-up ends after CALM_CALLS calls in a row without a page fault, or at its limits.
CALM_CALLS = 2
WARM_UP_CALLS = 20


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def run_for(calls: Sequence[Callable[[], Any]], seconds: float) -> float:
    """Run the calls in turn for `seconds`, at least one; return the duration of the last one, in seconds."""
    begin, count = time.perf_counter(), 0
    while True:
        start = time.perf_counter()
        calls[count % len(calls)]()
        now = time.perf_counter()
        count += 1
        if now - begin >= seconds:
            return now - start


def warm_up(calls: Sequence[Callable[[], Any]], limit: float) -> None:
    """Run every copy, then more calls until they cause no page faults or `limit` seconds are over."""
    begin, calm = time.perf_counter(), 0
    for count in range(max(len(calls), WARM_UP_CALLS)):
        faults = page_faults()
        calls[count % len(calls)]()
        calm = calm + 1 if page_faults() == faults else 0
        if count + 1 >= len(calls) and (calm >= CALM_CALLS or time.perf_counter() - begin >= limit):
            return


def sample(calls: Sequence[Callable[[], Any]], seconds: float, least: int = 3) -> tuple[list[float], float]:
    """Durations of one call in seconds, for about `seconds` of wall time, and page faults per call.

    An untimed warm-up (a quarter of `seconds`, at most 20 ms, at least one call) brings back clock, caches and threads
    after the turn of another library. The copies take turns. The result of a call is released before the next one, and
    the release is timed, as it occurs in every use.
    """
    last = run_for(calls, min(0.02, seconds / 4))
    repeat = max(1, round(SAMPLE_SECONDS / max(last, 1e-9)))
    position, samples, clock = 0, list[float](), time.perf_counter
    collecting = gc.isenabled()
    gc.disable()
    try:
        faults, begin = page_faults(), clock()
        while len(samples) < least or clock() - begin < seconds:
            batch = [calls[(position + i) % len(calls)] for i in range(repeat)]
            position = (position + repeat) % len(calls)
            start = clock()
            for call in batch:
                call()
            samples.append((clock() - start) / repeat)
            if samples[-1] * repeat > seconds:
                break
        faults = page_faults() - faults
    finally:
        if collecting:
            gc.enable()
    return samples, faults / (len(samples) * repeat)


def rounded(seconds: float) -> float:
    """Round to six significant digits: finer than the clock, and half the size of a result file."""
    return float(f"{seconds:.6g}")


def summarise(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Median, quartiles and minimum over all samples, in seconds, and the median of each round, which shows drift."""
    samples = sorted(value for round_ in rounds for value in round_)
    if len(samples) == 1:
        quartiles = [samples[0]] * 3
    else:
        quartiles = statistics.quantiles(samples, n=4, method="inclusive")
    return {
        "median": rounded(quartiles[1]),
        "p25": rounded(quartiles[0]),
        "p75": rounded(quartiles[2]),
        "min": rounded(samples[0]),
        "count": len(samples),
        "round_medians": [rounded(statistics.median(round_)) for round_ in rounds if round_],
    }
