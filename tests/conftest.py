"""Fixtures of all tests, and the hypothesis profiles."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

import convx
from convx import _cpu
from support import DTYPES, ISAS, LAYOUTS

# ci runs the same examples every time, dev new ones on every run, sanitizer the first few of ci for slow builds.
hypothesis.settings.register_profile("ci", max_examples=1000, deadline=None, derandomize=True)
hypothesis.settings.register_profile("dev", max_examples=1000, deadline=None)
hypothesis.settings.register_profile("sanitizer", max_examples=40, deadline=None, derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", ISAS, indirect=True)
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES)
    if "layout" in metafunc.fixturenames:
        metafunc.parametrize("layout", LAYOUTS)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine, selected during the test."""
    before = _cpu.config()["isa"]
    _cpu.set_isa(request.param)
    assert _cpu.config()["isa"] == request.param
    yield request.param
    _cpu.set_isa(before)


@pytest.fixture(autouse=True)
def same_number_of_threads() -> Iterator[None]:
    before = convx.get_num_threads()
    yield
    if convx.get_num_threads() != before:
        convx.set_num_threads(before)
