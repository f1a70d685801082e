"""Winograd's method: its error bound, edges of tiles, inf and NaN, and the same bits for every call."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import convx
from convx import reference
from support import (
    GRADIENTS,
    PADDING_MODES,
    Conv,
    assert_equal,
    assert_same_bits,
    assert_within,
    conv_data,
    conv_expected,
    from_layout,
    numbers,
    straddle,
    to_layout,
    views,
    winograd_bound,
)

# A tile is 4 x 4 outputs, a panel 8 to 32 tiles, a chunk of the sum 64 to 128 channels.
PROBLEMS = {
    "one-tile": Conv(n=1, c=3, h=6, w=6, k=2),
    "one-output": Conv(n=1, c=5, h=3, w=3, k=7),
    "one-pixel": Conv(n=3, c=5, h=1, w=1, k=7, padding=1),
    "row": Conv(n=2, c=5, h=1, w=150, k=7, padding=1),
    "column": Conv(n=2, c=5, h=150, w=1, k=7, padding=1),
    "panel-spans-rows-and-images": Conv(n=5, c=17, h=9, w=11, k=33, padding=1),
    "many-panels": Conv(n=3, c=20, h=37, w=41, k=19, padding=1),
    "complete-tiles": Conv(n=2, c=16, h=16, w=32, k=24, padding=1),
    "valid": Conv(n=2, c=9, h=13, w=14, k=10),
    "per-side": Conv(n=2, c=9, h=10, w=11, k=10, padding=((2, 0), (1, 5))),
    "same": Conv(n=2, c=9, h=10, w=11, k=10, padding="same"),
    "padding-over-kernel": Conv(n=2, c=4, h=5, w=6, k=5, padding=7),
    "groups": Conv(n=2, c=36, h=9, w=10, k=44, groups=2, padding=1),
    "groups-of-one": Conv(n=1, c=6, h=9, w=10, k=6, groups=6, padding=1),
    "mixed-border": Conv(c=5, h=6, w=7, k=6, padding=2, padding_mode=("zeros", "constant"), padding_value=2.0),
    **{mode: Conv(n=2, c=5, h=6, w=7, k=6, padding=2, padding_mode=mode, padding_value=-1.5) for mode in PADDING_MODES},
    **{f"reduction-{c}": Conv(n=1, c=c, h=5, w=6, k=c, padding=1) for c in (127, 128, 129, 257)},
    "shared-inputs": Conv(n=1, c=150, h=20, w=20, k=200, padding=1),
    "few-tiles": Conv(n=3, c=150, h=7, w=14, k=200, padding=1),
    "few-tiles-of-all-kinds": Conv(n=2, c=67, h=13, w=11, k=35, padding=1),
    "few-tiles-groups": Conv(n=2, c=36, h=16, w=15, k=44, groups=2, padding=1),
    "one-tile-too-many": Conv(n=2, c=18, h=16, w=17, k=20, padding=1),
    "many-small-images": Conv(n=70, c=17, h=7, w=8, k=18, padding=1),
    "shared-weights": Conv(n=2, c=65, h=33, w=70, k=50, padding=1),
}


def convolve(x, w, b, g, layout, problem, **options):
    """Output, grad_input and grad_weight of the method, the first two in NCHW."""
    options = dict(layout=layout, algorithm="winograd", **problem.options, **options)
    y = convx.conv2d(x, w, b, **options)
    grad_input, grad_weight, _ = convx.conv2d_backward(g, x, w, output_mask=(True, True, False), **options)
    return from_layout(y, layout), from_layout(grad_input, layout), grad_weight


def arrays_of(problem, layout, dtype, kind="normal"):
    expected = conv_expected(problem, kind)
    x, w, b, g = (getattr(expected, name).astype(dtype) for name in "xwbg")
    return to_layout(x, layout), w, b, to_layout(g, layout)


@pytest.mark.core
@pytest.mark.parametrize("name", PROBLEMS)
def test_rounding(name, isa, dtype, layout):
    problem = PROBLEMS[name]
    expected = conv_expected(problem)
    results = convolve(*arrays_of(problem, layout, dtype), layout, problem)
    for result, what in zip(results, ("output", *GRADIENTS), strict=False):
        assert result.dtype == dtype
        assert_within(result, getattr(expected, what), winograd_bound(expected, what, dtype), f"{what} of {name}")


@pytest.mark.core
def test_sizes_straddle_tiles(isa, dtype, layout):
    for h, w in itertools.product(straddle(4, 8), straddle(4, 8)):
        problem = Conv(n=2, c=3, h=h, w=w, k=5, padding=1)
        expected = conv_expected(problem)
        results = convolve(*arrays_of(problem, layout, dtype), layout, problem)
        for result, what in zip(results, ("output", *GRADIENTS), strict=False):
            assert_within(result, getattr(expected, what), winograd_bound(expected, what, dtype), f"{what}, {problem}")


def test_channels_straddle_tiles(isa, dtype, layout):
    sizes = straddle(4, 6, 8, 12, 16)
    for c, k in itertools.product(sizes, sizes):
        problem = Conv(n=1, c=c, h=5, w=9, k=k, padding=1)
        expected = conv_expected(problem)
        results = convolve(*arrays_of(problem, layout, dtype), layout, problem)
        for result, what in zip(results, ("output", *GRADIENTS), strict=False):
            assert_within(result, getattr(expected, what), winograd_bound(expected, what, dtype), f"{what}, {problem}")


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(
    "name", ["panel-spans-rows-and-images", "complete-tiles", "groups", "shared-inputs", "few-tiles"]
)
def test_fused_bias_and_relu(name, with_bias, activation, isa, dtype, layout):
    problem = PROBLEMS[name]
    expected = conv_expected(problem)
    x, w, b, _ = arrays_of(problem, layout, dtype)
    options = dict(layout=layout, algorithm="winograd", activation=activation, **problem.options)
    y = from_layout(convx.conv2d(x, w, b if with_bias else None, **options), layout)
    truth = expected.output if with_bias else expected.output - expected.b[:, None, None]
    truth = np.maximum(truth, 0) if activation else truth
    assert_within(y, truth, winograd_bound(expected, "output", dtype), name)


@pytest.mark.parametrize(("c", "bound"), [(64, 2.5e-6), (512, 5e-6)])
def test_the_error_that_the_documentation_states(c, bound, isa, dtype):
    """Relative to the largest value, normal data; the bound for float64 is that of float32 times 2 ** -29."""
    bound *= 1 if dtype == "float32" else 2.0**-29
    forward = Conv(n=2, c=c, h=28, w=28, k=16, padding=1)
    backward = Conv(n=2, c=16, h=28, w=28, k=c, padding=1)
    passes = ("output", "grad_input", "grad_weight")
    for problem, what in ((forward, "output"), (backward, "grad_input"), (backward, "grad_weight")):
        truth = getattr(conv_expected(problem), what)
        result = convolve(*arrays_of(problem, "NCHW", dtype), "NCHW", problem)[passes.index(what)]
        error = np.abs(result - truth).max() / np.abs(truth).max()
        assert error <= bound, f"{what} of {problem}: {error:.2e}"


@pytest.mark.core
@pytest.mark.parametrize(
    "name",
    [
        "panel-spans-rows-and-images",
        "many-panels",
        "groups",
        "shared-inputs",
        "few-tiles",
        "few-tiles-groups",
        "reflect",
    ],
)
def test_same_bits(name, isa, dtype):
    """Any layout, strides and threads, alone or in a batch."""
    problem = PROBLEMS[name]
    x, w, b, g = arrays_of(problem, "NCHW", dtype)
    with convx.threads(1):
        expected = convolve(x, w, b, g, "NCHW", problem)
    with convx.threads(3):
        assert_same_bits(convolve(x, w, b, g, "NCHW", problem), expected, f"{name}, 3 threads")
    nhwc = convolve(*(to_layout(a, "NHWC") if a.ndim == 4 and a is not w else a for a in (x, w, b, g)), "NHWC", problem)
    assert_same_bits(nhwc[:2], expected[:2], f"{name}, NHWC")
    for position, array in enumerate((x, w, b, g)):
        for what, view in views(array):
            arrays = [x, w, b, g]
            arrays[position] = view
            assert_same_bits(convolve(*arrays, "NCHW", problem), expected, f"{name}, argument {position} {what}")
    for image in range(problem.n):
        alone = convolve(x[image], w, b, g[image], "NCHW", problem)
        assert_same_bits(alone[0], expected[0][image], f"{name}, output of image {image}")
        assert_same_bits(alone[1], expected[1][image], f"{name}, grad_input of image {image}")


@pytest.mark.core
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
def test_an_image_with_inf_nan_or_overflow_is_computed_by_the_direct_method(value, isa, dtype, layout):
    problem = Conv(n=4, c=17, h=9, w=11, k=18, padding=1)
    if dtype == "float64" and value == 3e38:
        value = 1e308
    x, w, b, g = (a.copy() for a in arrays_of(problem, layout, dtype))
    clean = convolve(x, w, b, g, layout, problem)
    from_layout(x, layout)[2, 5, 4, 7] = value
    from_layout(g, layout)[2, 5, 4, 7] = value
    results = convolve(x, w, b, g, layout, problem)
    options = dict(layout=layout, algorithm="direct", **problem.options)
    grad_input, grad_weight, _ = convx.conv2d_backward(g, x, w, **options)
    assert_same_bits(results[2], grad_weight, f"grad_weight with {value}")
    direct = convx.conv2d(x, w, b, **options), grad_input
    for result, before, wanted in zip(results, clean, direct, strict=False):
        assert_same_bits(result[2], from_layout(wanted, layout)[2], f"image with {value}")
        others = [0, 1, 3]
        assert_same_bits(result[others], before[others], f"images beside the one with {value}")


@pytest.mark.core
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_inf_and_nan_weights(value, isa, dtype, layout):
    problem = Conv(n=2, c=17, h=9, w=11, k=18, padding=1)
    x, w, b = (a / 2 for a in conv_data(problem, "integer"))  # halves, since whole numbers take the direct method
    w[3, 4, 0, 0] = value
    options = dict(layout=layout, algorithm="winograd", **problem.options)
    y = convx.conv2d(to_layout(x, layout).astype(dtype), w.astype(dtype), b.astype(dtype), **options)
    assert_equal(from_layout(y, layout), reference.conv2d(x, w, b, **problem.options), f"weight {value}")


def test_auto_takes_it_where_it_is_faster(isa):
    def algorithm(op="conv2d", **changes):
        problem = Conv(n=1, c=64, h=28, w=28, k=64, padding=1).replace(**changes)
        return convx.explain(op, problem.input_shape, problem.weight_shape, **problem.options)[0].algorithm

    for chosen in (algorithm(), algorithm("conv2d_backward"), algorithm(groups=2), algorithm(c=512, h=7, w=7, k=512)):
        assert chosen.startswith("winograd")
    for changes in (dict(stride=2), dict(dilation=2), dict(r=5, s=5), dict(c=1), dict(groups=64)):
        assert not algorithm(**changes).startswith("winograd"), changes


def test_no_images(isa, dtype):
    w = np.ones((20, 18, 3, 3), dtype)
    assert convx.conv2d(np.ones((0, 18, 9, 9), dtype), w, algorithm="winograd").shape == (0, 20, 7, 7)


@pytest.mark.parametrize("name", ["shared-inputs", "shared-weights", "few-tiles"])
def test_the_scratch_is_what_a_call_takes(name, layout, isa):
    from convx import _cpu

    problem = PROBLEMS[name]
    x, w, b, g = arrays_of(problem, layout, "float32")
    options = dict(layout=layout, algorithm="winograd", **problem.options)
    with convx.threads(1):
        plans = [
            *convx.explain("conv2d", x.shape, w.shape, **options),
            *convx.explain("conv2d_backward", x.shape, w.shape, **options)[:2],
        ]
        for plan in plans:
            assert plan.algorithm.startswith("winograd")
            _cpu.workspace_release()
            if plan.name == "forward":
                convx.conv2d(x, w, b, **options)
            else:
                mask = (plan.name == "grad_input", plan.name == "grad_weight", False)
                convx.conv2d_backward(g, x, w, output_mask=mask, **options)
            taken = _cpu.config()["workspace_cached_bytes"]
            assert plan.scratch_bytes <= taken <= plan.scratch_bytes * 9 / 8, plan


def test_numbers_of_very_different_size(isa):
    """As documented, the error follows the largest input of a tile, not the terms of the output."""
    x = numbers((1, 16, 12, 12), "normal", 3).astype("float32")
    x[..., 0, 0] = 1e6
    w = numbers((16, 16, 3, 3), "normal", 4).astype("float32")
    truth = reference.conv2d(x.astype("float64"), w.astype("float64"), padding=1)
    far = np.abs(convx.conv2d(x, w, padding=1, algorithm="winograd") - truth)[..., 4:, 4:]
    assert far.max() < 1e-4  # other tiles keep their accuracy
