"""The machine: its description, its FMA peak and its copy bandwidth, measured by convx's own native loops."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
# Assumed where the system does not tell: a common size for a server's last-level cache.
DEFAULT_CACHE = 32 << 20


def read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def cpu_field(name: str) -> str:
    for line in read("/proc/cpuinfo").splitlines():
        field, _, value = line.partition(":")
        if field.strip() == name:
            return value.strip()
    return ""


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def caches() -> dict[str, int]:
    """Bytes of each cache that CPU 0 sees, by name: L1d, L2, L3."""
    found = {}
    for index in range(8):
        folder = f"/sys/devices/system/cpu/cpu0/cache/index{index}"
        kind, size = read(f"{folder}/type"), read(f"{folder}/size")
        if kind in ("Data", "Unified") and size:
            unit = {"K": 1 << 10, "M": 1 << 20}.get(size[-1], 1)
            name = f"L{read(f'{folder}/level')}" + ("d" if kind == "Data" else "")
            found[name] = int(size.rstrip("KMB")) * unit
    return found


def last_level_cache() -> int:
    return max(caches().values(), default=DEFAULT_CACHE)


def available_memory() -> int:
    for line in read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) << 10
    return 8 << 30


def describe() -> dict[str, Any]:
    return {
        "cpu": cpu_field("model name") or platform.processor() or platform.machine(),
        "cpu_family_model": f"{cpu_field('cpu family')}/{cpu_field('model')}",
        "clock_mhz": cpu_field("cpu MHz"),
        "cpus": cpu_count(),
        "caches": caches(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "transparent_hugepages": read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def revision() -> dict[str, Any]:
    """Git revision of the checkout, and whether it has uncommitted changes."""

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True)
        except OSError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}


def burst(seconds: float, dtype: str) -> float:
    """FLOP/s of independent fused multiply-adds on all threads of convx."""
    from convx import _cpu

    return _cpu.fma_peak(dtype, seconds)


def copy(seconds: float, bytes: int) -> float:
    """Bytes/s (read + written) of a copy with non-temporal stores on all threads of convx."""
    from convx import _cpu

    return _cpu.copy_bandwidth(bytes, seconds)


def measure_peaks(seconds: float, bytes: int) -> dict[str, Any]:
    """FLOP/s of independent fused multiply-adds, and bytes/s (read + written) of a copy, on one and on all threads."""
    from convx import _cpu

    threads = _cpu.get_num_threads()
    peaks: dict[str, Any] = {"fma": {"float32": {}, "float64": {}}, "copy": {}, "time": time.time()}
    try:
        for label, count in (("all", threads), ("one", 1)):
            _cpu.set_num_threads(count)
            for dtype in peaks["fma"]:
                peaks["fma"][dtype][label] = _cpu.fma_peak(dtype, seconds)
            peaks["copy"][label] = _cpu.copy_bandwidth(bytes, seconds)
    finally:
        _cpu.set_num_threads(threads)
    return peaks
