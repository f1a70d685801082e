"""Exact sums stay exact under ``algorithm="auto"``: signs, whole numbers, masks, float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import convx
from convx import reference
from support import Conv, assert_equal, assert_same_bits, from_layout, to_layout, views

# Problems for which "auto" takes Winograd's method, for each of its drivers.
PROBLEMS = {
    "vectors over tiles": Conv(n=2, c=66, h=33, w=30, k=68, padding=1),
    "few tiles": Conv(n=3, c=65, h=14, w=13, k=68, padding=1),
    "shared inputs": Conv(n=1, c=150, h=33, w=29, k=200, padding=1),
    "groups": Conv(n=2, c=130, h=17, w=18, k=132, groups=2, padding=1),
    "reflect": Conv(n=2, c=66, h=15, w=22, k=68, padding=1, padding_mode="reflect"),
}
GRADIENTS_TOO = ("output", "grad_input", "grad_weight")


def arrays(problem, seed, dtype="float32"):
    """Input, weight and grad_output of normal numbers."""
    rng = np.random.default_rng(seed)
    shapes = problem.input_shape, problem.weight_shape
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    return x, w, rng.standard_normal(reference.conv2d(x, w, **problem.options).shape).astype(dtype)


def passes(x, w, g, problem, layout="NCHW", algorithm="auto"):
    options = dict(layout=layout, algorithm=algorithm, **problem.options)
    x, g = to_layout(x, layout), to_layout(g, layout)
    y = convx.conv2d(x, w, **options)
    grad_input, grad_weight, _ = convx.conv2d_backward(g, x, w, output_mask=(True, True, False), **options)
    return from_layout(y, layout), from_layout(grad_input, layout), grad_weight


def sparse(a):
    """One value in fifty, the others zero: some sums are exactly 0, which a tile of Winograd's method does not give."""
    return np.where(np.random.default_rng(9).random(a.shape) < 0.02, np.abs(a), 0).astype(a.dtype)


def test_these_problems_go_to_winograd(isa):
    for name, problem in PROBLEMS.items():
        for op in ("conv2d", "conv2d_backward"):
            plans = convx.explain(op, problem.input_shape, problem.weight_shape, **problem.options)
            assert plans[0].algorithm.startswith("winograd"), f"{op} of {name}"


@pytest.mark.core
@pytest.mark.parametrize("signs", list(itertools.product([1, -1], repeat=3)))
@pytest.mark.parametrize("name", PROBLEMS)
def test_products_of_one_sign(name, signs, isa, layout):
    problem = PROBLEMS[name]
    x, w, g = arrays(problem, 1)
    x, w, g = (sign * a for sign, a in zip(signs, (sparse(x), np.abs(w), sparse(g)), strict=True))
    results = passes(x, w, g, problem, layout)
    wanted = signs[0] * signs[1], signs[2] * signs[1], signs[2] * signs[0]
    for result, sign, what in zip(results, wanted, GRADIENTS_TOO, strict=True):
        assert (sign * result >= 0).all(), f"{what} of {name}: {(sign * result).min()}"


@pytest.mark.parametrize("activation", [None, "relu"])
def test_no_result_passes_the_bias(activation, isa, layout):
    problem = PROBLEMS["vectors over tiles"]
    x, w, _ = arrays(problem, 2)
    x, w = to_layout(sparse(x), layout), np.abs(w)
    b = np.linspace(-2, 2, problem.k, dtype="float32")
    y = convx.conv2d(x, w, b, layout=layout, activation=activation, **problem.options)
    low = np.maximum(b, 0) if activation else b
    assert (from_layout(y, layout) >= low[:, None, None]).all()
    w[::2] *= -1
    y = from_layout(convx.conv2d(x, w, b, layout=layout, activation=activation, **problem.options), layout)
    assert (y[:, ::2] <= low[::2, None, None]).all()
    assert (y[:, 1::2] >= low[1::2, None, None]).all()


def test_signs_of_single_channels_and_images(isa):
    """Filters, images and channels of one sign among others of both signs."""
    problem = Conv(n=3, c=20, h=21, w=26, k=18, padding=1)
    x, w, g = arrays(problem, 3)
    x[1] = sparse(x[1])
    w[4] = np.abs(w[4])
    w[:, 7] = -np.abs(w[:, 7])
    w[4, 7] = 0
    g[1] = sparse(g[1])
    y, grad_input, _ = passes(x, w, g, problem)
    assert (y[1, 4] >= 0).all()
    assert (grad_input[1, 7] <= 0).all()
    x[:, 5], g[:, 3] = sparse(x[:, 5]), sparse(g[:, 3])
    assert (passes(x, w, g, problem)[2][3, 5] >= 0).all()


def test_a_constant_border_has_a_sign_too(isa):
    problem = Conv(n=1, c=20, h=21, w=26, k=18, padding=1, padding_mode="constant", padding_value=-3.0)
    x, w, g = arrays(problem, 4)
    y = passes(sparse(x), np.abs(w), g, problem)[0]
    truth = reference.conv2d(sparse(x).astype("float64"), np.abs(w).astype("float64"), **problem.options)
    assert (truth[..., 0, :] < 0).all()
    assert_equal(np.sign(y[..., 0, :]), np.sign(truth[..., 0, :]), "sign beside the border")


@pytest.mark.core
@pytest.mark.parametrize("name", PROBLEMS)
def test_whole_numbers_are_exact(name, isa, layout):
    problem = PROBLEMS[name]
    x, w, g = (np.round(4 * a) for a in arrays(problem, 5))
    wide = [a.astype("float64") for a in (x, w, g)]
    truth = (
        reference.conv2d(wide[0], wide[1], **problem.options),
        *reference.conv2d_backward(wide[2], wide[0], wide[1], **problem.options)[:2],
    )
    for result, wanted, what in zip(passes(x, w, g, problem, layout), truth, GRADIENTS_TOO, strict=True):
        assert_equal(result, wanted, f"{what} of {name}")


@pytest.mark.core
def test_whole_images_among_others_have_the_bits_that_they_have_alone(isa):
    problem = Conv(n=4, c=20, h=21, w=26, k=18, padding=1)
    x, w, g = arrays(problem, 6)
    w = np.round(4 * w)
    x[2], g[1] = np.round(x[2]), np.round(g[1])
    y, grad_input, _ = passes(x, w, g, problem)
    direct = passes(x, w, g, problem, algorithm="direct")
    assert_same_bits(y[2], direct[0][2], "output of the whole image")
    assert_same_bits(grad_input[1], direct[1][1], "grad_input of the whole image")
    for image in range(problem.n):
        alone = passes(x[image], w, g[image], problem)
        assert_same_bits(alone[0], y[image], f"output of image {image}")
        assert_same_bits(alone[1], grad_input[image], f"grad_input of image {image}")


@pytest.mark.core
@pytest.mark.parametrize("seen", [5, 4, 8, 1])
@pytest.mark.parametrize("name", PROBLEMS)
def test_masked_taps_are_not_seen(name, seen, isa, layout):
    """Causal convolutions (PixelCNN): taps from `seen` on are zero, and pixels under them have no effect."""
    problem = PROBLEMS[name]
    x, w, g = arrays(problem, 7)
    w.reshape(*w.shape[:2], 9)[..., seen:] = 0
    for result, direct, what in zip(
        passes(x, w, g, problem, layout)[:2],
        passes(x, w, g, problem, layout, "direct")[:2],
        GRADIENTS_TOO,
        strict=False,
    ):
        assert_same_bits(result, direct, f"{what} of {name}")


def test_prepared_weights_and_views_too(isa):
    problem = PROBLEMS["vectors over tiles"]
    x, w, g = arrays(problem, 8)
    for kind, weight in (("signs", np.abs(w)), ("whole", np.round(4 * w)), ("mask", np.where(np.arange(3) < 2, w, 0))):
        image = sparse(x) if kind == "signs" else np.round(x) if kind == "whole" else x
        weight = weight.astype("float32")
        expected = passes(image, weight, g, problem)
        prepared = convx.prepare_weight(weight, image.shape, **problem.options)
        assert_same_bits(convx.conv2d(image, prepared, **problem.options), expected[0], f"{kind}, prepared")
        for position, array in enumerate((image, weight)):
            for what, view in views(array):
                given = [image, weight]
                given[position] = view
                assert_same_bits(passes(*given, g, problem), expected, f"{kind}, argument {position} {what}")


def test_common_values_still_go_through_winograd(isa):
    """A precondition of the tests above."""
    problem = PROBLEMS["vectors over tiles"]
    x, w, g = arrays(problem, 10)
    for result, direct in zip(
        passes(x, np.abs(w), g, problem), passes(x, np.abs(w), g, problem, algorithm="direct"), strict=True
    ):
        assert not np.array_equal(result, direct)


def test_float64_is_a_direct_sum(isa):
    for op, index in (("conv2d", 0), ("conv2d_backward", 0), ("conv2d_backward", 1)):
        plan = convx.explain(op, (8, 64, 56, 56), (64, 64, 3, 3), padding=1, dtype="float64")[index]
        assert not plan.algorithm.startswith("winograd"), plan.name
    problem = PROBLEMS["vectors over tiles"]
    given = arrays(problem, 11, "float64")
    for result, direct in zip(passes(*given, problem), passes(*given, problem, algorithm="direct"), strict=True):
        assert_same_bits(result, direct, "float64")
