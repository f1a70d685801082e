"""A prepared weight gives the bits of the plain one in every call; bad arguments raise."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import convx
import support
from convx import ShapeError, _cpu
from support import CONV_PROBLEMS, ISAS, Conv, conv_data, to_layout

pytestmark = pytest.mark.core

PROBLEM = Conv(c=32, h=9, w=10, k=192, padding=1, stride=2, groups=2)


def assert_same_bits(actual, expected):
    support.assert_same_bits(actual, expected, "prepared")


def arrays(problem, dtype="float32", kind="normal"):
    return [array.astype(dtype) for array in conv_data(problem, kind)]


def prepare(problem, weight, **options):
    return convx.prepare_weight(weight, problem.input_shape, **problem.options, **options)


@pytest.mark.parametrize("name", CONV_PROBLEMS)
def test_same_bits(name, isa, dtype, layout):
    problem = CONV_PROBLEMS[name]
    x, w, b = arrays(problem, dtype)
    x = to_layout(x, layout)
    options = {**problem.options, "layout": layout}
    ready = convx.prepare_weight(w, x.shape, **options)
    assert_same_bits(convx.conv2d(x, ready, b, **options), convx.conv2d(x, w, b, **options))
    (plan,) = convx.explain("conv2d", x.shape, w.shape, dtype=dtype, **options)
    assert (ready.algorithm, ready.isa) == (plan.algorithm, isa)


WINOGRAD_PROBLEMS = {
    "few-tiles": Conv(n=1, c=70, h=7, w=14, k=40, padding=1),
    "shared-inputs": Conv(n=1, c=150, h=20, w=20, k=200, padding=1),
    "shared-weights": Conv(n=2, c=33, h=33, w=34, k=20, padding=1),
    "groups": Conv(n=2, c=36, h=20, w=19, k=44, groups=2, padding=1),
}


@pytest.mark.parametrize("name", WINOGRAD_PROBLEMS)
def test_winograd(name, isa, dtype, layout):
    """The transformed weights are kept (36 / 9 of the weight's size) for any batch; NaN takes the direct method."""
    problem = WINOGRAD_PROBLEMS[name]
    _, w, b = arrays(problem, dtype)
    options = {**problem.options, "layout": layout, "algorithm": "winograd"}
    images = {n: to_layout(arrays(problem.replace(n=n), dtype)[0], layout) for n in (problem.n, 9)}
    ready = convx.prepare_weight(w, images[9].shape, **options)
    # The weight, four times its size, and the padding of panels.
    assert 5 * w.nbytes <= ready.nbytes <= 12 * w.nbytes
    for x in images.values():
        assert_same_bits(convx.conv2d(x, ready, b, **options), convx.conv2d(x, w, b, **options))
    w[3, 2, 0, 1] = np.nan
    ready = convx.prepare_weight(w, images[9].shape, **options)
    x = images[problem.n]
    assert_same_bits(convx.conv2d(x, ready, b, **options), convx.conv2d(x, w, b, **options))


def test_other_size_by_winograd(isa, dtype):
    """Small and large planes keep different forms."""
    small, large = (Conv(n=2, c=20, h=size, w=size, k=18, padding=1) for size in (8, 21))
    _, w, b = arrays(small, dtype)
    for made_for, used_for in ((small, large), (large, small)):
        x = arrays(used_for, dtype)[0]
        options = {**used_for.options, "algorithm": "winograd"}
        ready = prepare(made_for, w, algorithm="winograd")
        assert_same_bits(convx.conv2d(x, ready, b, **options), convx.conv2d(x, w, b, **options))


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("padding", [0, 1])
def test_weights_that_are_no_numbers(value, padding, isa, dtype):
    problem = PROBLEM.replace(padding=padding)
    x, w, b = arrays(problem, dtype)
    w[3, 2, 0, 1] = value
    # Prepared with and without a border: the call's border determines the result.
    for ready in (prepare(problem, w), prepare(problem.replace(padding=1 - padding), w)):
        assert_same_bits(convx.conv2d(x, ready, b, **problem.options), convx.conv2d(x, w, b, **problem.options))


@pytest.mark.parametrize(
    "other",
    [
        {"n": 5},
        {"h": 4, "w": 23},
        {"stride": 2},
        {"dilation": (1, 2)},
        {"padding": "same"},
        {"padding_mode": "circular"},
        {"groups": 1, "c": 16},
        {"groups": 3, "c": 48},
    ],
    ids=str,
)
def test_other_problems(other, isa):
    ready, problem = prepare(PROBLEM, arrays(PROBLEM)[1]), PROBLEM.replace(**other)
    x, _, b = arrays(problem)
    y = convx.conv2d(x, ready, b, activation="relu", **problem.options)
    assert_same_bits(y, convx.conv2d(x, ready.weight, b, activation="relu", **problem.options))


def test_other_layout(isa, layout):
    x, w, b = arrays(PROBLEM)
    ready = prepare(PROBLEM, w)
    options = {**PROBLEM.options, "layout": layout}
    x = to_layout(x, layout)
    assert_same_bits(convx.conv2d(x, ready, b, **options), convx.conv2d(x, w, b, **options))


@pytest.mark.parametrize("later", ISAS)
def test_other_instruction_set(later, isa):
    x, w, b = arrays(PROBLEM)
    ready = prepare(PROBLEM, w)
    _cpu.set_isa(later)
    assert_same_bits(convx.conv2d(x, ready, b, **PROBLEM.options), convx.conv2d(x, w, b, **PROBLEM.options))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads(threads):
    problem = Conv(n=3, c=40, h=20, w=20, k=70, padding=1)
    x, w, b = arrays(problem)
    convx.set_num_threads(threads)
    y = convx.conv2d(x, prepare(problem, w), b, **problem.options)
    convx.set_num_threads(1)
    assert_same_bits(y, convx.conv2d(x, w, b, **problem.options))


def test_strided_weight_and_out():
    x, w, b = arrays(PROBLEM)
    wide = np.zeros((*w.shape[:-1], 2 * w.shape[-1]), w.dtype)
    wide[..., ::2] = w
    expected = convx.conv2d(x, w, b, **PROBLEM.options)
    out = np.empty_like(expected)
    assert convx.conv2d(x, prepare(PROBLEM, wide[..., ::2]), b, out=out, **PROBLEM.options) is out
    assert_same_bits(out, expected)


def test_it_keeps_what_it_was_given():
    x, w, b = arrays(PROBLEM)
    expected = convx.conv2d(x, w, b, **PROBLEM.options)
    ready = prepare(PROBLEM, w)
    w[:] = 7
    assert_same_bits(convx.conv2d(x, ready, b, **PROBLEM.options), expected)
    assert not ready.weight.flags.writeable
    with pytest.raises(AttributeError):
        ready.weight = w


def test_description():
    w = arrays(PROBLEM)[1]
    ready = convx.prepare_weight(w, PROBLEM.input_shape, **PROBLEM.options, algorithm="implicit-gemm")
    assert (ready.shape, ready.dtype) == (PROBLEM.weight_shape, np.dtype("float32"))
    assert ready.nbytes >= 2 * ready.weight.nbytes
    assert repr(ready).startswith("PreparedWeight(float32(192, 16, 3, 3) for ")


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda ready: pickle.loads(pickle.dumps(ready))])
def test_pickle_and_copy(duplicate, layout):
    x, w, b = arrays(PROBLEM)
    x, options = to_layout(x, layout), {**PROBLEM.options, "layout": layout}
    again = duplicate(convx.prepare_weight(w, list(x.shape), **options))
    assert_same_bits(again.weight, w)
    assert_same_bits(convx.conv2d(x, again, b, **options), convx.conv2d(x, w, b, **options))


def test_no_input_channels_and_no_images():
    ready = convx.prepare_weight(np.zeros((3, 0, 2, 2), np.float32), (0, 0, 4, 4))
    bias = np.arange(3, dtype=np.float32)
    assert convx.conv2d(np.zeros((0, 0, 4, 4), np.float32), ready, bias).shape == (0, 3, 3, 3)
    assert (convx.conv2d(np.zeros((2, 0, 4, 4), np.float32), ready, bias)[:, 2] == 2).all()


X, W = np.zeros((2, 8, 6, 7), np.float32), np.zeros((4, 8, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (
            TypeError,
            lambda: convx.prepare_weight([1.0], X.shape),
            "weight is a list, expected a numpy.ndarray of float32 or float64; conv2d packs weights of other libraries",
        ),
        (TypeError, lambda: convx.prepare_weight(W.astype(int), X.shape), "weight has dtype int64, expected float32"),
        (TypeError, lambda: convx.prepare_weight(W, X), "input_shape is a numpy.ndarray, expected a tuple of integers"),
        (ShapeError, lambda: convx.prepare_weight(W, (6, 7)), "input_shape has 2 dimensions, expected 4 or 3"),
        (ShapeError, lambda: convx.prepare_weight(W, (2, -8, 6, 7)), "input_shape is (2, -8, 6, 7), expected sizes"),
        (ShapeError, lambda: convx.prepare_weight(W[0], X.shape), "weight has 3 dimensions, expected 4: (out"),
        (
            ShapeError,
            lambda: convx.prepare_weight(W, (2, 4, 6, 7)),
            "weight has 8 input channels per group, expected 4 (input channels 4 / groups 1)",
        ),
        (ShapeError, lambda: convx.prepare_weight(W, X.shape, 0), "stride is (0, 0), expected positive numbers"),
        (ShapeError, lambda: convx.prepare_weight(W, X.shape, layout="HWC"), "layout is 'HWC', expected \"NCHW\" or"),
    ],
)  # fmt: skip
def test_errors(error, call, message):
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value).startswith(f"prepare_weight: {message}")


def test_errors_of_calls():
    ready = convx.prepare_weight(W, X.shape)
    with pytest.raises(ShapeError) as wrong:
        convx.conv2d(X[:, :4], ready)
    assert str(wrong.value) == (
        "conv2d: weight has 8 input channels per group, expected 4 (input channels 4 / groups 1)"
    )
    with pytest.raises(TypeError) as wrong:
        convx.conv2d(X.astype(np.float64), ready)
    assert str(wrong.value) == "conv2d: weight has dtype float32, expected float64 as input has"
    with pytest.raises(TypeError) as wrong:
        convx.conv2d_backward(np.zeros((2, 4, 4, 5), np.float32), X, ready)
    assert str(wrong.value) == "conv2d_backward: weight is a convx.PreparedWeight, expected a numpy.ndarray"
    with pytest.raises(TypeError) as wrong:
        convx.prepare_weight(ready, X.shape)
    assert str(wrong.value).startswith("prepare_weight: weight is a convx.PreparedWeight, expected a numpy.ndarray")
    with pytest.raises(TypeError):
        convx.PreparedWeight()
