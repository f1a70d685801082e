"""The package: one version, one requirement, a lean import, one exported symbol, a complete source archive."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import convx
from convx import _cpu

CHECKOUT = Path(__file__).parents[1]
try:
    DISTRIBUTION = importlib.metadata.distribution("convx")
except importlib.metadata.PackageNotFoundError:
    pytest.skip("convx is on the path but not installed", allow_module_level=True)


def output_of(*command, cwd):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout


def test_the_installed_package_is_under_test():
    assert Path(convx.__file__) == Path(DISTRIBUTION.locate_file("convx/__init__.py"))
    assert Path(_cpu.__file__).parent == Path(convx.__file__).parent


def test_version_is_the_same_everywhere():
    assert re.fullmatch(r"\d+\.\d+\.\d+", convx.__version__)
    assert DISTRIBUTION.version == _cpu.config()["version"] == convx.__version__


def test_numpy_is_the_only_requirement():
    required = [requirement for requirement in DISTRIBUTION.requires if "extra ==" not in requirement]
    assert [re.match(r"[\w-]+", requirement).group() for requirement in required] == ["numpy"]


def test_licence():
    assert DISTRIBUTION.metadata["License-Expression"] == "Apache-2.0"
    (installed,) = [file for file in DISTRIBUTION.files if file.name == "LICENSE"]
    assert installed.read_text() == (CHECKOUT / "LICENSE").read_text()


def test_every_source_of_the_package_is_installed():
    sources = [path for path in (CHECKOUT / "python").rglob("*") if path.suffix in {".py", ".pyi", ".typed"}]
    installed = {file.as_posix() for file in DISTRIBUTION.files}
    assert {path.relative_to(CHECKOUT / "python").as_posix() for path in sources} <= installed
    assert {"convx/py.typed", "convx/_cpu.pyi"} <= installed


def test_import_loads_nothing_but_numpy(tmp_path):
    program = (
        "import json, numpy, sys; before = {*sys.modules}; import convx; print(json.dumps([*{*sys.modules} - before]))"
    )
    loaded = {name.partition(".")[0] for name in json.loads(output_of(sys.executable, "-c", program, cwd=tmp_path))}
    assert loaded - set(sys.stdlib_module_names) - {"numpy"} == {"convx"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF")
def test_extension_module_exports_its_entry_and_needs_the_system_alone(tmp_path):
    defined = output_of("nm", "-D", "-P", "--defined-only", _cpu.__file__, cwd=tmp_path)
    assert re.findall(r"^(\S+) [A-TX-Z] ", defined, re.M) == ["PyInit__cpu"]
    needed = re.findall(r"\(NEEDED\).*\[(.+?)\.so", output_of("readelf", "-d", _cpu.__file__, cwd=tmp_path))
    assert set(needed) <= {"libstdc++", "libgcc_s", "libm", "libc", "libpthread", "ld-linux-x86-64"}


def test_source_archive_is_whole_and_clean(tmp_path):
    program = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    output_of(sys.executable, "-c", program, str(tmp_path), cwd=CHECKOUT)
    with tarfile.open(tmp_path / f"convx-{convx.__version__}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = [path for top in ("csrc", "python", "tests") for path in (CHECKOUT / top).rglob("*")]
    sources = [path for path in sources if path.suffix in {".cpp", ".h", ".cu", ".cuh", ".py", ".pyi"}]
    expected = {path.relative_to(CHECKOUT).as_posix() for path in sources}
    assert (
        expected
        | {
            "CMakeLists.txt",
            "LICENSE",
            "README.md",
            "pyproject.toml",
            "python/convx/py.typed",
            "cmake/cuda.cmake",
            "cmake/jax.cmake",
        }
        <= names
    )
    tops = {"CMakeLists.txt", "CONTRIBUTING.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    folders = {"benchmarks", "cmake", "csrc", "docs", "examples", "python", "tests"}
    assert {name.partition("/")[0] for name in names} - tops == folders
    assert not [name for name in names if re.search(r"\.so$|__pycache__|\.pyc$|^benchmarks/results/", name)]
