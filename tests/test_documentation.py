"""The examples of the documentation run as printed: docstrings, and the Python blocks of README.md and docs/.

Where a page shows two libraries side by side (a container `pair`), both blocks run, and their variables must agree.
"""

import doctest
import importlib
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import convx
import simt_arrays

README = Path(__file__).parents[1] / "README.md"
PAGES = {path.relative_to(README.parent).as_posix(): path for path in (README.parent / "docs").rglob("*.md")}
BLOCK = re.compile(r"^```(?:python|\{code-block\} python\n(?::\w+:[^\n]*\n)*)\n(.+?)^```$", re.M | re.S)
PAIR = re.compile(r"^:{4}\{container\} pair$(.+?)^:{4}$", re.M | re.S)
INCLUDE = re.compile(r'^```\{include\} (\S+)\n:start-after: "(.+)"\n(?::end-before: "(.+)"\n)?```$', re.M)
PUBLIC_MODULES = ["convx"] + [
    module.name for module in pkgutil.walk_packages(convx.__path__, "convx.") if "._" not in module.name
]


@pytest.mark.filterwarnings("ignore:convx.jax goes through:RuntimeWarning")  # where _jax is not built
@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_examples_in_docstrings(name):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    optional = name.startswith(("convx.jax", "convx.torch"))
    module = pytest.importorskip(name) if optional else importlib.import_module(name)
    assert doctest.testmod(module, optionflags=flags).failed == 0


def test_every_public_function_has_an_example():
    functions = [getattr(convx, name) for name in convx.__all__ if inspect.isfunction(getattr(convx, name))]
    assert [function.__name__ for function in functions if ">>>" not in (function.__doc__ or "")] == []


def test_python_blocks_of_the_readme(tmp_path, monkeypatch):
    blocks = BLOCK.findall(README.read_text(encoding="utf-8"))
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        run(block, {"__name__": "readme"}, README)


def run(block, names, path):
    exec(compile(block, str(path), "exec"), names)


def with_included(path):
    """The text of a page with its included texts."""

    def included(match):
        text = (path.parent / match[1]).resolve().read_text(encoding="utf-8")
        begin = text.index(match[2]) + len(match[2])
        return text[begin : text.index(match[3], begin) if match[3] else None]

    return INCLUDE.sub(included, path.read_text(encoding="utf-8"))


def test_the_method_of_the_page_compiles(tmp_path):
    """The file on docs/adding-a-method.md compiles as printed."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    sources = README.parent / "csrc"
    if compiler is None or not sources.is_dir():
        pytest.skip("needs a compiler and the checkout")
    page = (README.parent / "docs/adding-a-method.md").read_text(encoding="utf-8")
    [text] = [block for block in re.findall(r"^```cpp\n(.+?)^```$", page, re.M | re.S) if "#include" in block]
    (tmp_path / "row_loops.cpp").write_text(text, encoding="utf-8")
    command = [compiler, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-I{sources}", "row_loops.cpp"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stderr == ""


@pytest.fixture
def libraries(monkeypatch, request):
    """The libraries that the pages import: a fake CuPy over the shim, the installed ones otherwise."""
    page = request.node.callspec.params["page"]
    for name in ("torch", "jax"):
        if f"import {name}\n" in PAGES[page].read_text(encoding="utf-8"):
            pytest.importorskip(name)
    if page.endswith("cupy.md"):
        if simt_arrays._simt is None:
            pytest.skip("convx._simt is not built: install with CONVX_SIMT=ON")
        cupy = simt_arrays.fake_cupy()
        cupy.einsum, cupy.ones_like, cupy.float32 = np.einsum, np.ones_like, np.float32
        cupy.zeros = lambda shape, dtype: cupy.asarray(np.zeros(shape, dtype))
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        monkeypatch.setattr(convx.cuda, "_module", simt_arrays._simt)
        monkeypatch.setattr(convx.cuda, "_ready", False)
        monkeypatch.setattr(convx._devices, "_libraries", {})


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("page", [name for name, path in PAGES.items() if BLOCK.search(with_included(path))])
def test_python_blocks_of_the_pages(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page", "np": np, "convx": convx}
    text, pairs = with_included(PAGES[page]), 0
    end = 0
    for pair in PAIR.finditer(text):
        for block in BLOCK.findall(text[end : pair.start()]):
            run(block, names, page)
        end = pair.end()
        sides = [dict(names), dict(names)]
        for block, side in zip(BLOCK.findall(pair[1]), sides, strict=True):
            run(block, side, page)
        compare(names, *sides, f"{page}: {pair[1]}")
        pairs += 1
    for block in BLOCK.findall(text[end:]):
        run(block, names, page)
    assert pairs == text.count("{container} pair")


def host(value):
    """A NumPy array for an array of any library; None for other values."""
    if isinstance(value, simt_arrays.FakeArray):
        return value.get()
    if type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach"):
        return value.detach().numpy()
    return np.asarray(value) if hasattr(value, "shape") and hasattr(value, "dtype") else None


def compare(before, left, right, context):
    """Compare every array that both sides made, within the rounding of sums of a few hundred float32 products."""
    compared = 0
    for name in left.keys() & right.keys():
        if left[name] is not before.get(name) and right[name] is not before.get(name):
            a, b = host(left[name]), host(right[name])
            if a is None or b is None:
                continue
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max(), err_msg=f"{name} in {context}")
            compared += 1
    assert compared, f"nothing is compared: {context}"


def test_every_public_name_has_its_place_in_the_api_pages():
    """Autosummary lists are written by hand, so that they can be grouped."""
    listed = {}
    for path in (README.parent / "docs" / "api").glob("*.rst"):
        current = None
        for line in path.read_text(encoding="utf-8").splitlines():
            if match := re.match(r"\.\. currentmodule:: (\S+)", line):
                current = match[1]
            elif match := re.match(r"   (\w+)$", line):
                listed.setdefault(current, set()).add(match[1])
    for name in ["convx", *sorted(listed.keys() - {None, "convx"})]:
        module = pytest.importorskip(name) if name in ("convx.jax", "convx.torch") else importlib.import_module(name)
        public = {each for each in module.__all__ if each != "__version__"}
        assert public - {each for each in public if inspect.ismodule(getattr(convx, each, None))} == listed[name], name
    modules = {name for name in PUBLIC_MODULES if name.count(".") < 2} - {"convx.ops", "convx.runtime"}
    assert modules == listed.keys() - {None}
