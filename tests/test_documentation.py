"""The examples of the documentation run as printed: those in the docstrings and the Python blocks of README.md."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import convx

README = Path(__file__).parents[1] / "README.md"
PUBLIC_MODULES = ["convx"] + [
    module.name for module in pkgutil.walk_packages(convx.__path__, "convx.") if "._" not in module.name
]


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_examples_in_docstrings(name):
    if name.startswith("convx.torch"):
        pytest.importorskip("torch")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(importlib.import_module(name), optionflags=flags).failed == 0


def test_every_public_function_has_an_example():
    functions = [getattr(convx, name) for name in convx.__all__ if inspect.isfunction(getattr(convx, name))]
    assert [function.__name__ for function in functions if ">>>" not in (function.__doc__ or "")] == []


def test_python_blocks_of_the_readme(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.+?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, str(README), "exec"), {"__name__": "readme"})
