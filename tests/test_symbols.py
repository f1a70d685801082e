"""The objects of the instruction sets share no symbols.

An inline function or a template compiled with -mavx512f becomes a weak symbol. The linker keeps one copy for the whole
module, perhaps this one, and an older CPU then stops with SIGILL in code without AVX-512. So every object under
csrc/cpu/isa defines its table of kernels as the only visible symbol, and runs no code at load.
"""

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]


def run(*command):
    environment = os.environ | {"PATH": sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def violations(object_file):
    """Return the symbols of the object file beyond its one global symbol, as readable lines."""
    defined = run("nm", "--demangle", "--format=posix", "--defined-only", object_file)
    symbols = re.findall(r"^(.+) ([A-Za-z])(?: [0-9a-f]*)*$", defined, re.M)
    weak = [f"weak symbol: {name}" for name, kind in symbols if kind in "WVuwv"]
    strong = [name for name, kind in symbols if kind.isupper() and kind not in "WV"]
    spare = [] if len(strong) == 1 else [f"one global symbol expected, not {len(strong)}: {', '.join(strong)}"]
    sections = run("readelf", "--section-headers", "--wide", object_file)
    initialisers = re.findall(r"\s(\.(?:init_array|ctors)\S*)\s", sections)
    return weak + spare + [f"static initialiser: {name}" for name in initialisers]


def test_isa_objects_share_nothing(tmp_path):
    """Compiled without optimisation, which takes most of the time and could hide an inline function."""
    options = ("-DCONVX_PYTHON=OFF", "-DCONVX_AVX512_EMULATION=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O0")
    run("cmake", "-S", CHECKOUT, "-B", tmp_path, "-G", "Ninja", *options)
    run("cmake", "--build", tmp_path, "--target", "convx_isas")
    objects = {path.relative_to(tmp_path).parts[1]: path for path in tmp_path.glob("CMakeFiles/*/csrc/cpu/isa/*.o")}
    names = {re.fullmatch(r"convx_(\w+)_(float|double)\.dir", folder).groups() for folder in objects}
    sets = {name for name, _ in names}
    assert {"portable", "avx2", "avx512"} <= sets or sets == {"portable"}
    assert len(names) == 2 * len(sets)
    assert {name: violations(path) for name, path in objects.items()} == {name: [] for name in objects}


KERNEL = "namespace { int kernel(int x) { return x + 1; } } "
TABLE = KERNEL + "extern int (*const table)(int); int (*const table)(int) = kernel; "


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (TABLE, None),
        (TABLE + "inline int f(int x) { return x; } static auto* volatile use = f;", "weak symbol: f(int)"),
        (TABLE + "template <class T> T f(T x) { return x; } template int f(int);", "weak symbol: int f<int>(int)"),
        (TABLE + "inline int& f() { static int n; return n; } static auto* volatile use = f;", "weak symbol: f()::n"),
        (TABLE + "int second;", "one global symbol expected, not 2"),
        (KERNEL + "static auto* volatile use = kernel;", "one global symbol expected, not 0"),
        (TABLE + "int start(); static int volatile started = start();", "static initialiser: .init_array"),
    ],
)
def test_the_gate_sees(tmp_path, source, complaint):
    (tmp_path / "planted.cpp").write_text(source)
    run(os.environ.get("CXX", "g++"), "-O2", "-fPIC", "-c", tmp_path / "planted.cpp", "-o", tmp_path / "planted.o")
    found = violations(tmp_path / "planted.o")
    assert found == [] if complaint is None else any(line.startswith(complaint) for line in found)
