"""Compile the CPU kernels and check the loops of their register tiles; needs g++, CMake, Ninja and binutils.

    python tests/cpu_kernel_gate.py [--build FOLDER] [--markdown]

For AVX2 and AVX-512, float and double, the files of csrc/cpu/isa are compiled as the project compiles them, and the
innermost loop with the FMAs of each kernel is found in the disassembly. It must spill no vector, enough of its
instructions must be FMAs, and llvm-mca must predict few enough cycles for each FMA: kernel_table.py has the bounds.
llvm-mca comes with the extra `mca`; one on the PATH will do. Without it the cycles are not checked, and a line says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from kernel_loops import Loop, fma_loops, functions
from kernel_table import ELEMENTS, KERNELS, MACHINES, NO_SPILLS, Kernel, Machine, Tile, tile_of

CHECKOUT = Path(__file__).parents[1]
README = CHECKOUT / "csrc" / "README.md"
MARKS = ("<!-- cpu_kernel_gate: begin -->\n", "<!-- cpu_kernel_gate: end -->\n")
ITERATIONS = 1000  # the pipeline fills and drains in some 15 cycles, 0.3 % of 1000 rounds of the shortest loop
TOLERANCE = 0.02  # between the figures of README.md and those of the same compiler


class Row(NamedTuple):
    """What was found of one kernel: the worst of its loops."""

    isa: str
    element: str
    kernel: Kernel
    tile: Tile
    loops: list[Loop]
    cycles: dict[str, float]  # for each FMA, by machine

    @property
    def worst(self) -> Loop:
        return min(self.loops, key=lambda loop: loop.share)

    def problems(self) -> list[str]:
        where = f"{self.isa} {self.element}, {self.kernel.name}"
        if not self.loops:
            return [f"{where}: no loop of {self.kernel.fma(self.tile)} FMAs in {self.kernel.symbols}"]
        found = []
        least = self.kernel.share[self.isa == "avx512"]
        if self.worst.share < least:
            found.append(f"{where}: FMAs are {self.worst.share:.2f} of the instructions, less than {least:.2f}")
        for machine in MACHINES:
            most = self.kernel.bound(machine)
            if machine.isa == self.isa and self.cycles.get(machine.cpu, 0) > most:
                found.append(
                    f"{where}: {self.cycles[machine.cpu]:.2f} cycles an FMA on {machine.cpu}, more than {most:.2f}"
                )
        return found


def run(*command: str | Path, text: str | None = None) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    words = [str(word) for word in command]
    done = subprocess.run(
        words, capture_output=True, text=True, input=text, env=os.environ | {"PATH": path}, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def compile_kernels(build: Path) -> None:
    """Compile the objects of both instruction sets, with the project's own rules."""
    targets = sorted(f"convx_{isa}_{element}" for isa in ("avx2", "avx512") for element in ELEMENTS)
    if not (build / "CMakeCache.txt").exists():
        run("cmake", "-S", CHECKOUT, "-B", build, "-G", "Ninja", "-DCONVX_PYTHON=OFF")
    run("cmake", "--build", build, "--target", *targets)


def object_file(build: Path, isa: str, element: str) -> Path:
    return build / "CMakeFiles" / f"convx_{isa}_{element}.dir" / "csrc" / "cpu" / "isa" / f"{isa}.cpp.o"


def compiler_of(build: Path) -> str:
    """Return the compiler's name and version, as it writes them into an object."""
    comment = run("readelf", "-p", ".comment", object_file(build, "avx2", "float"))
    found = re.search(r"GCC: \(.*?\) (\d+\.\d+)", comment) or re.search(r"clang version (\d+\.\d+)", comment)
    return f"{'g++' if 'GCC' in comment else 'clang'} {found[1]}" if found else "an unknown compiler"


def short_name(symbol: str) -> str:
    """Return a demangled name without namespaces, casts and arguments: rolling_pair<float,1,0,0,true>."""
    name = re.sub(r"\((?:Edge|long|int)\)(?=-?\d)", "", re.sub(r"\(anonymous namespace\)::|convx::", "", symbol))
    return re.sub(r"\(.*", "", name).replace(" ", "").removeprefix("void")


def loops_of(build: Path, isa: str, element: str) -> list[Loop]:
    """Return all innermost loops with FMAs of one object, under the short names of their functions."""
    options = ("--disassemble", "--demangle", "--no-show-raw-insn")
    text = run("objdump", *options, object_file(build, isa, element))
    found = []
    for name, code in functions(text).items():
        if any(each.is_fma for each in code):
            found += fma_loops(short_name(name), code)
    return found


def find_mca() -> Path | None:
    """Return the llvm-mca of the extra `mca` (a package called llvm), or the newest on the PATH."""
    package = importlib.util.find_spec("llvm")
    if package and package.origin and (tool := Path(package.origin).parent / "bin" / "llvm-mca").exists():
        return tool
    names = ("llvm-mca", *(f"llvm-mca-{version}" for version in range(30, 13, -1)))
    for found in filter(None, map(shutil.which, names)):
        return Path(found)
    return None


def version_of(mca: Path) -> str:
    return re.search(r"LLVM version (\d+\.\d+)", run(mca, "--version"))[1]


def knows(mca: Path, machine: Machine) -> bool:
    """Tell whether this version has a model of the machine: for unknown ones it only prints a warning."""
    command = [str(mca), "-mtriple=x86_64", f"-mcpu={machine.cpu}"]
    done = subprocess.run(command, capture_output=True, text=True, input="nop\n", check=False)
    return "not a recognized processor" not in done.stderr and done.returncode == 0


def predict(mca: Path, machine: Machine, loops: list[Loop]) -> list[float]:
    """Return the cycles of one round of each loop, in the state that it settles into."""
    regions = [f"# LLVM-MCA-BEGIN\n{machine.describe(loop.assembly())}\n# LLVM-MCA-END" for loop in loops]
    options = ("-mtriple=x86_64", f"-mcpu={machine.cpu}", f"-iterations={ITERATIONS}", "-all-views=0", "-summary-view")
    text = run(mca, *options, text="\n".join(regions) + "\n")
    cycles = [int(each) / ITERATIONS for each in re.findall(r"^Total Cycles: +(\d+)", text, re.M)]
    assert len(cycles) == len(loops), f"{mca} answered for {len(cycles)} of {len(loops)} loops"
    return cycles


def measure(isa: str, element: str, loops: list[Loop], mca: Path | None, machines: list[Machine]) -> list[Row]:
    tile = tile_of(isa)
    rows = []
    for kernel in KERNELS:
        mine = [each for each in loops if kernel.matches(each.function, each.fma, element, tile)]
        if kernel.inside:
            mine = sorted(mine, key=lambda loop: loop.share)[-1:]
        rows.append(Row(isa, element, kernel, tile, mine, {}))
    every = [loop for row in rows for loop in row.loops]
    for machine in machines if mca else ():
        cycles = iter(predict(mca, machine, every))
        for row in rows:
            row.cycles[machine.cpu] = max((next(cycles) / loop.fma for loop in row.loops), default=0)
    return rows


def spilling(isa: str, element: str, loops: list[Loop]) -> list[str]:
    """Return a line for each loop that stores vectors on the stack, tails included."""
    return [
        f"{isa} {element}, {loop.function}: a loop of {loop.fma} FMAs spills vectors ({loop.spills} accesses)"
        for loop in loops
        if loop.spills and re.match(NO_SPILLS, loop.function)
    ]


def text_table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        if not row.loops:
            continue
        worst = row.worst
        cycles = "  ".join(
            f"{machine.cpu} {row.cycles[machine.cpu]:.2f} ({row.kernel.bound(machine):.2f})"
            for machine in MACHINES
            if machine.isa == row.isa and machine.cpu in row.cycles
        )
        lines.append(
            f"{row.isa:<7} {row.element:<7} {row.kernel.name:<36} {worst.fma:>3} FMA of {len(worst.body):>4}, "
            f"on the stack {worst.spills:>2} spills {worst.constants:>2} constants {worst.scalars:>2} scalars  {cycles}"
        )
    return "\n".join(lines)


def markdown(rows: list[Row], compiler: str, mca: str) -> str:
    """Return the table of README.md: the loops of float."""
    machines = {isa: [each.cpu for each in MACHINES if each.isa == isa] for isa in ("avx2", "avx512")}
    head = ["kernel", "AVX2: FMA", *machines["avx2"], "AVX-512: FMA", *machines["avx512"], "bound by"]
    lines = [f"Figures of {compiler} and llvm-mca {mca}, float:", "", "| " + " | ".join(head) + " |"]
    lines.append("|---" * len(head) + "|")
    for kernel in KERNELS:
        cells = [kernel.name]
        for isa in machines:
            row = next(each for each in rows if (each.isa, each.element, each.kernel) == (isa, "float", kernel))
            cells.append(f"{row.worst.fma} of {len(row.worst.body)}")
            cells += [f"{row.cycles[cpu]:.2f}" for cpu in machines[isa]]
        lines.append("| " + " | ".join([*cells, kernel.why]) + " |")
    return "\n".join(lines) + "\n"


def differences(stated: str, found: str) -> list[str]:
    """Return what README.md says otherwise: other kernels, or other figures of the same compiler and llvm-mca."""
    ours, theirs = found.splitlines(), stated.splitlines()

    def first(lines: list[str]) -> list[str]:
        return [line.split("|")[1] for line in lines if line.startswith("|")]

    if first(ours) != first(theirs):
        return ["csrc/README.md lists other kernels: run tests/cpu_kernel_gate.py --markdown"]
    if ours[0] != theirs[0]:  # another compiler; the bounds are checked all the same
        return []
    pairs = zip(re.findall(r"\d+(?:\.\d+)?", stated), re.findall(r"\d+(?:\.\d+)?", found), strict=True)
    if any(abs(float(old) - float(new)) > TOLERANCE * float(new) for old, new in pairs):
        return ["csrc/README.md has other figures: run tests/cpu_kernel_gate.py --markdown"]
    return []


def check_readme(table: str, *, write: bool) -> list[str]:
    before, rest = README.read_text().split(MARKS[0])
    stated, after = rest.split(MARKS[1])
    if write:
        README.write_text(before + MARKS[0] + table + MARKS[1] + after)
        return []
    return differences(stated, table)


def check(build: Path, *, write: bool) -> list[str]:
    """Compile, print the table, and return what is wrong."""
    start = time.perf_counter()
    compile_kernels(build)
    print(f"compiled with {compiler_of(build)} in {time.perf_counter() - start:.0f} s")
    mca = find_mca()
    known = [each for each in MACHINES if mca and knows(mca, each)]
    objects = [(isa, element) for isa in ("avx2", "avx512") for element in ELEMENTS]

    def of_object(which: tuple[str, str]) -> tuple[list[Row], list[str]]:
        loops = loops_of(build, *which)
        machines = [each for each in known if each.isa == which[0]]
        return measure(*which, loops, mca, machines), spilling(*which, loops)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        done = list(pool.map(of_object, objects))
    rows = [row for found, _ in done for row in found]
    wrong = [line for _, found in done for line in found] + [line for row in rows for line in row.problems()]
    print(text_table(rows))
    if mca is None:
        print("cycles not checked: no llvm-mca; pip install 'convx[mca]' brings one")
    elif missing := [each.cpu for each in MACHINES if each not in known]:
        print(f"cycles not checked for {', '.join(missing)}: {mca} does not know them")
    elif all(row.loops for row in rows):
        wrong += check_readme(markdown(rows, compiler_of(build), version_of(mca)), write=write)
    return wrong


def main() -> int:
    """Print the table and what breaks a bound; return 1 where something does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, help="a build tree to compile in, kept (default: a temporary one)")
    parser.add_argument("--markdown", action="store_true", help="write the table into csrc/README.md")
    options = parser.parse_args()
    if platform.machine() not in ("x86_64", "AMD64"):
        print("skipped: these kernels are for x86-64")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        wrong = check(options.build or Path(folder), write=options.markdown)
    print("\n".join(wrong) or "all kernels within their bounds")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
