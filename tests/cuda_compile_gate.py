"""Compile every CUDA kernel for every architecture and check the register budget; needs nvcc, no GPU.

    python tests/cuda_compile_gate.py [FILE.cu ...]

Every kernel must have no spills to local memory, a bound on its threads (__launch_bounds__), and few enough registers
for the promised number of blocks on one multiprocessor.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
ARCHITECTURES = ("80", "86", "89", "90a")
REGISTERS = 65536  # of a multiprocessor, all four architectures
NOT_FOUND = 0

REPORT = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<architecture>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.S,
)
ENTRY = re.compile(r"^\s*(?:\.visible |\.weak )*\.entry (\w+)\((.*?)^\{", re.M | re.S)


def nvcc() -> str | None:
    """Return the path of nvcc, found as cmake/cuda.cmake finds it."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    places = [str(Path(home) / "bin") for home in homes if home] + [os.environ.get("PATH", "")]
    return os.environ.get("CUDACXX") or shutil.which("nvcc", path=os.pathsep.join(places))


def demangled(names: set[str]) -> dict[str, str]:
    done = subprocess.run(["c++filt", *sorted(names)], capture_output=True, text=True, check=True)
    short = [
        re.sub(r">\(.*|convx::cuda::|\((?:Precision|Lines|Adjacent)\)", "", line) for line in done.stdout.splitlines()
    ]
    return dict(zip(sorted(names), short, strict=True))


def bounds(ptx: str) -> dict[str, tuple[int, int]]:
    """Return the most threads of a block and the fewest blocks on a multiprocessor, for each kernel of a PTX file."""
    found = {}
    for kernel, head in ENTRY.findall(ptx):
        threads = re.search(r"\.maxntid (\d+)", head)
        blocks = re.search(r"\.minnctapersm (\d+)", head)
        found[kernel] = (int(threads[1]) if threads else NOT_FOUND, int(blocks[1]) if blocks else 1)
    return found


def compile_file(compiler: str, path: Path) -> tuple[str, list[str]]:
    """Compile one file for all architectures; return a line for the table, and the errors."""
    start = time.perf_counter()
    name = str(path.relative_to(CHECKOUT)) if path.is_relative_to(CHECKOUT) else str(path)
    with tempfile.TemporaryDirectory() as folder:
        targets = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in ARCHITECTURES]
        command = [
            compiler, "-std=c++17", "-O3", "-fmad=false", *targets, "-Xptxas=-v", f"-I{CHECKOUT / 'csrc'}", "-c",
            str(path), "-o", f"{folder}/object.o", "--keep", f"--keep-dir={folder}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            first = "\n".join(done.stderr.splitlines()[:8])
            return f"{name:<40} does not compile", [f"{name}: {first}"]
        declared: dict[str, tuple[int, int]] = {}
        for ptx in Path(folder).glob("*.ptx"):
            declared |= bounds(ptx.read_text())
    reports = [match.groupdict() for match in REPORT.finditer(done.stderr)]
    readable = demangled({report["kernel"] for report in reports}) if reports else {}
    wrong, most, kernels = [], 0, defaultdict(set)
    for report in reports:
        registers = int(report["registers"])
        threads, blocks = declared[report["kernel"]]
        kernels[report["architecture"]].add(report["kernel"])
        most = max(most, registers)
        where = f"{name}, sm_{report['architecture']}: {readable[report['kernel']]}"
        if int(report["stores"]) or int(report["loads"]):
            wrong.append(f"{where}: spills {report['stores']} bytes of stores, {report['loads']} of loads")
        if threads == NOT_FOUND:
            wrong.append(f"{where}: has no __launch_bounds__")
        elif -(-registers // 8) * 8 * threads * blocks > REGISTERS:
            wrong.append(f"{where}: {registers} registers for {blocks} blocks of {threads} threads")
    counts = {len(found) for found in kernels.values()}
    if len(counts) > 1 or (declared and len(kernels) != len(ARCHITECTURES)):
        found = ", ".join(f"{len(names)} for sm_{each}" for each, names in kernels.items())
        wrong.append(f"{name}: ptxas reported on different numbers of kernels: {found}")
    seconds = time.perf_counter() - start
    return f"{name:<40} {max(counts, default=0):>3} kernels, at most {most:>3} registers, {seconds:.0f} s", wrong


def main(arguments: list[str]) -> int:
    """Compile the named files, by default all of csrc/cuda; return 1 where a kernel breaks its budget."""
    compiler = nvcc()
    if compiler is None:
        print("skipped: no nvcc in CUDACXX, CUDA_HOME, /usr/local/cuda or on the PATH")
        return 0
    files = [Path(each).resolve() for each in arguments] or list((CHECKOUT / "csrc" / "cuda").rglob("*.cu"))
    # The files with the longest compile times first.
    files.sort(key=lambda path: ("float" not in path.stem, path.name))
    wrong: list[str] = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for line, problems in pool.map(lambda path: compile_file(compiler, path), files):
            print(line, flush=True)
            wrong += problems
    print("\n".join(wrong) or f"no spills for {', '.join('sm_' + each for each in ARCHITECTURES)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
