"""Every method of conv2d, by name, on every problem that it supports."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

import convx
from convx import _cpu, reference
from support import (
    CONV_PROBLEMS,
    DTYPES,
    GRADIENTS,
    ISAS,
    LAYOUTS,
    Conv,
    assert_equal,
    assert_same_bits,
    assert_within,
    conv_bound,
    conv_expected,
    from_layout,
    to_layout,
)
from test_properties import convolutions

pytestmark = pytest.mark.core

PASSES = ("output", *GRADIENTS[:2])


def candidates(problem, name, **options):
    """The candidates of a pass, by their names."""
    op, index = ("conv2d", 0) if name == "output" else ("conv2d_backward", PASSES.index(name) - 1)
    shape = problem.input_shape
    if options.get("layout") == "NHWC":
        shape = (shape[0], *shape[2:], shape[1])
    plan = convx.explain(op, shape, problem.weight_shape, **problem.options, **options)[index]
    found = {each.name: each for each in plan.candidates}
    assert len(found) == len(plan.candidates)
    assert [each.name for each in plan.candidates if each.reason == "chosen"] == [plan.algorithm]
    return found


def compute(problem, name, arrays, dtype, layout, method):
    x, w, b, g = (each.astype(dtype) for each in arrays)
    x, g = to_layout(x, layout), to_layout(g, layout)
    options = {**problem.options, "layout": layout, "algorithm": method}
    if name == "output":
        return from_layout(convx.conv2d(x, w, b, **options), layout)
    mask = tuple(name == each for each in GRADIENTS)
    gradient = convx.conv2d_backward(g, x, w, output_mask=mask, **options)[GRADIENTS.index(name)]
    return gradient if name == "grad_weight" else from_layout(gradient, layout)


def given_arrays(expected):
    return expected.x, expected.w, expected.b, expected.g


@pytest.mark.parametrize("problem_name", CONV_PROBLEMS)
def test_whole_numbers_are_exact(problem_name, isa, dtype, layout):
    problem = CONV_PROBLEMS[problem_name]
    expected = conv_expected(problem, "integer")
    for name in PASSES:
        for method, candidate in candidates(problem, name, dtype=dtype, layout=layout).items():
            context = f"{name} by {method}"
            if candidate.supported:
                found = compute(problem, name, given_arrays(expected), dtype, layout, method)
                assert_equal(found, getattr(expected, name), context)
            else:
                with pytest.raises(convx.ShapeError, match=f'algorithm is "{method}", which {candidate.reason}'):
                    compute(problem, name, given_arrays(expected), dtype, layout, method)


@pytest.mark.parametrize("operand", ["input", "weight", "grad_output"])
@pytest.mark.parametrize("problem_name", CONV_PROBLEMS)
def test_inf_appears_where_the_formula_has_it(problem_name, operand, isa, layout):
    """An infinite value adds nothing outside the image, whichever method multiplies the border."""
    problem = CONV_PROBLEMS[problem_name]
    x, w, b, g = (each.copy() for each in given_arrays(conv_expected(problem, "integer")))
    {"input": x, "weight": w, "grad_output": g}[operand].flat[:1] = np.inf
    gradients = reference.conv2d_backward(g, x, w, **problem.options)[:2]
    expected = dict(zip(PASSES, (reference.conv2d(x, w, b, **problem.options), *gradients), strict=True))
    for name in PASSES:
        for method, candidate in candidates(problem, name, layout=layout).items():
            if candidate.supported:
                found = compute(problem, name, (x, w, b, g), "float32", layout, method)
                assert_equal(found, expected[name], f"{name} by {method}")


@given(st.data(), convolutions(), st.sampled_from(ISAS), st.sampled_from(DTYPES), st.sampled_from(LAYOUTS))
@settings(max_examples=150)
def test_drawn_problems(data, problem, isa, dtype, layout):
    """A random method: within the bound of the direct sum, and the same bits for an image alone."""
    before = _cpu.config()["isa"]
    _cpu.set_isa(isa)
    try:
        name = data.draw(st.sampled_from(PASSES))
        supported = [
            method
            for method, each in candidates(problem, name, dtype=dtype, layout=layout).items()
            if each.supported and not method.startswith("winograd")
        ]
        method = data.draw(st.sampled_from(supported))
        note(f"{name} of {problem} by {method} on {isa}, {dtype}, {layout}")
        expected = conv_expected(problem)
        arrays = given_arrays(expected)
        found = compute(problem, name, arrays, dtype, layout, method)
        assert_within(found, getattr(expected, name), conv_bound(expected, name, dtype), method)
        if name != "grad_weight":
            x, w, b, g = arrays
            single = compute(problem.replace(n=1), name, (x[-1:], w, b, g[-1:]), dtype, layout, method)
            assert_same_bits(single, found[-1:], method)
    finally:
        _cpu.set_isa(before)


def test_a_method_of_another_pass_stands_for_its_family(isa):
    """A layer has one algorithm for all of its passes."""
    problem = Conv(n=2, c=32, h=9, w=9, k=32, padding=1)
    shapes = (problem.input_shape, problem.weight_shape)
    for method, family in (("outer-products", "direct"), ("winograd-channels", "winograd")):
        names = {each.name for each in convx.explain("conv2d", *shapes)[0].candidates}
        op, index = ("conv2d_backward", 1) if method in names else ("conv2d", 0)
        plan, other = (
            convx.explain(op, *shapes, padding=1, algorithm=word)[index].algorithm for word in (method, family)
        )
        assert plan == other != method


def test_names_are_refused_in_words():
    x, w = np.zeros((1, 2, 5, 5), "f"), np.zeros((3, 2, 3, 3), "f")
    with pytest.raises(convx.ShapeError, match='algorithm is \'gemm\', expected "auto", "direct", "winograd" or a'):
        convx.conv2d(x, w, algorithm="gemm")
    with pytest.raises(convx.ShapeError, match='conv_transpose2d: algorithm is "depthwise", which needs one channel'):
        convx.conv_transpose2d(x, np.zeros((2, 3, 3, 3), "f"), algorithm="depthwise")
    with pytest.raises(convx.ShapeError, match='prepare_weight: algorithm is "winograd-tiles", which needs a window'):
        convx.prepare_weight(w, x.shape, stride=2, algorithm="winograd-tiles")
