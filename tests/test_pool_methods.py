"""Every method of max-pooling on every problem that it supports, whatever the choice would be."""

from __future__ import annotations

import numpy as np
import pytest

import convx
from convx import _cpu, reference
from support import POOL_PROBLEMS, Pool, assert_equal, assert_same_bits, from_layout, numbers, to_layout
from test_max_pool2d import fits_codes, pool_data

pytestmark = pytest.mark.core

# Rows and channels of more than a vector; more planes than one takes side by side, and some that are left over.
LARGER = {
    "wide-2x2": Pool(n=1, c=3, h=34, w=70),
    "wide-3x3": Pool(n=1, c=5, h=20, w=37, kernel_size=3, stride=1, padding=1),
    "narrow-3x3-stride2": Pool(n=3, c=19, h=14, w=14, kernel_size=3, stride=2, padding=1),
    "row-of-7": Pool(n=2, c=17, h=7, w=14, kernel_size=(1, 7), stride=1),
    "row-of-6-padded": Pool(n=2, c=16, h=5, w=11, kernel_size=(1, 6), stride=1, padding=(0, 2)),
    "many-channels": Pool(n=1, c=37, h=5, w=6, kernel_size=5, stride=1, padding=2),
}
PROBLEMS = {**POOL_PROBLEMS, **LARGER}


@pytest.fixture
def method():
    """Choose the method of every pass that it supports."""
    yield _cpu.set_max_pool2d_method
    _cpu.set_max_pool2d_method("")


def candidates(op, problem, dtype, layout, **options):
    shape = to_layout(np.empty(problem.input_shape, dtype), layout).shape
    (plan,) = convx.explain(op, shape, **problem.options, **options, dtype=dtype, layout=layout)
    assert [each.name for each in plan.candidates if each.reason == "chosen"] == [plan.algorithm]
    return plan, [each.name for each in plan.candidates if each.supported]


def argmax_options(problem):
    return [{"return_indices": True}, *([{"return_codes": True}] if fits_codes(problem) else [])]


def test_a_method_is_known_by_its_name(method):
    """A plan has the method that was asked for, where that supports the problem; it says why others do not."""
    for op in ("max_pool2d", "max_pool2d_backward"):
        (plan,) = convx.explain(op, (2, 3, 8, 8), 2)
        assert any(not each.supported and each.reason.startswith("needs ") for each in plan.candidates)
        for each in plan.candidates:
            method(each.name)
            (named,) = convx.explain(op, (2, 3, 8, 8), 2)
            assert named.algorithm == (each.name if each.supported else plan.algorithm)
        method("")
    text = str(plan)
    assert all(each.name in text and each.reason in text for each in plan.candidates if each.reason != "chosen")


@pytest.mark.parametrize("kind", ["ties", "special"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_forward(name, kind, isa, dtype, layout, method):
    problem = PROBLEMS[name]
    x = pool_data(problem.input_shape, kind)
    array = to_layout(x, layout).astype(dtype)
    for options in [{}, *argmax_options(problem)]:
        expected = reference.max_pool2d(x, **options, **problem.options)
        for each in candidates("max_pool2d", problem, dtype, layout, **options)[1]:
            method(each)
            found = convx.max_pool2d(array, layout=layout, **options, **problem.options)
            context = f"{each}, {options}"
            if not options:
                assert_same_bits(from_layout(found, layout), expected.astype(dtype), context)
            else:
                assert_same_bits(from_layout(found[0], layout), expected[0].astype(dtype), context)
                assert_equal(from_layout(found[1], layout), expected[1], context)
        method("")


@pytest.mark.parametrize("kind", ["ties", "special"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_backward(name, kind, isa, dtype, layout, method):
    """Whole numbers exactly, and sums that depend on the order in the same bits by all methods."""
    problem = PROBLEMS[name]
    x = pool_data(problem.input_shape, kind)
    shape = to_layout(x, layout).shape
    for options in argmax_options(problem):
        output, argmax = reference.max_pool2d(x, **options, **problem.options)
        plan, methods = candidates("max_pool2d_backward", problem, dtype, layout, **options)
        for data in ("integer", "normal"):
            g = numbers(output.shape, data, 9)
            arrays = to_layout(g, layout).astype(dtype), to_layout(argmax, layout)

            def compute(name):
                method(name)
                return convx.max_pool2d_backward(*arrays, shape, layout=layout, **problem.options)  # noqa: B023

            expected = compute(plan.algorithm)
            if data == "integer":
                truth = reference.max_pool2d_backward(g, argmax, x.shape, **problem.options)
                assert_equal(from_layout(expected, layout), truth, f"{plan.algorithm}, {options}")
            for each in methods:
                assert_same_bits(compute(each), expected, f"{each}, {options}")
        method("")


@pytest.mark.parametrize("argmax", [np.int64(1000), np.int64(-2), np.uint8(77)])
def test_illegal_indices_and_codes_are_refused(argmax, isa, dtype, layout, method):
    problem = Pool(n=2, c=19, h=9, w=9, kernel_size=3, stride=2, padding=1)
    x = to_layout(pool_data(problem.input_shape, "normal"), layout).astype(dtype)
    options = {"return_codes": True} if argmax.dtype == np.uint8 else {"return_indices": True}
    output, given = convx.max_pool2d(x, layout=layout, **options, **problem.options)
    given[1, 2, 3, 4] = argmax
    for each in candidates("max_pool2d_backward", problem, dtype, layout, **options)[1]:
        method(each)
        with pytest.raises(convx.ShapeError, match="indices_or_codes has"):
            convx.max_pool2d_backward(output, given, x.shape, layout=layout, **problem.options)
