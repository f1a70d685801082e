"""The three gradients of conv2d: every problem of test_conv2d, masks, adjoint identities, finite differences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import convx
from convx import reference
from support import (
    CONV_PROBLEMS,
    GRADIENTS,
    PADDING_MODES,
    TILES,
    Conv,
    assert_equal,
    assert_same_bits,
    assert_within,
    broadcasts,
    conv_bound,
    conv_expected,
    depthwise_windows,
    exact_algorithm,
    freeze,
    from_layout,
    numbers,
    straddle,
    to_layout,
    views,
)


def backward(problem, kind, dtype, layout="NCHW", **options):
    """The gradients of `problem` from convx by name, grad_input in NCHW; each must have `dtype`."""
    expected = conv_expected(problem, kind)
    x, w, g = (getattr(expected, name).astype(dtype) for name in "xwg")
    if kind == "integer":
        options.setdefault("algorithm", exact_algorithm(problem))
    gradients = convx.conv2d_backward(
        to_layout(g, layout), to_layout(x, layout), w, layout=layout, **problem.options, **options
    )
    assert isinstance(gradients, tuple)
    for gradient in gradients:
        assert isinstance(gradient, np.ndarray)
        assert gradient.dtype == dtype
        assert gradient.flags.c_contiguous
    grad_input, grad_weight, grad_bias = gradients
    return dict(grad_input=from_layout(grad_input, layout), grad_weight=grad_weight, grad_bias=grad_bias)


def check_exact(problem, dtype, layout):
    __tracebackhide__ = True
    gradients = backward(problem, "integer", dtype, layout)
    for name in GRADIENTS:
        assert_equal(gradients[name], getattr(conv_expected(problem, "integer"), name), f"{name} of {problem}")


@pytest.mark.core
@pytest.mark.parametrize("name", CONV_PROBLEMS)
def test_exact(name, isa, dtype, layout):
    check_exact(CONV_PROBLEMS[name], dtype, layout)


@pytest.mark.parametrize("name", CONV_PROBLEMS)
def test_rounding(name, isa, dtype, layout):
    problem = CONV_PROBLEMS[name]
    expected = conv_expected(problem)
    gradients = backward(problem, "normal", dtype, layout)
    for name in GRADIENTS:
        bound = conv_bound(expected, name, dtype)
        assert_within(gradients[name], getattr(expected, name), bound, f"{name} of {problem}")


@pytest.mark.core
@pytest.mark.parametrize(
    "window",
    [
        pytest.param(dict(r=1, s=1), id="1x1"),
        pytest.param(dict(padding=1), id="3x3"),
        pytest.param(dict(padding=1, stride=2), id="3x3-stride2"),
    ],
)
def test_channels_and_pixels_straddle_tiles(window, isa, dtype, layout):
    sizes = straddle(*TILES)
    for c, k in itertools.product(sizes, (1, 5, 16)):
        check_exact(Conv(n=1, c=c, h=3, w=4, k=k, **window), dtype, layout)
        check_exact(Conv(n=1, c=k, h=3, w=4, k=c, **window), dtype, layout)
    for width in sizes:
        check_exact(Conv(n=2, c=5, h=2, w=width, k=7, **window), dtype, layout)


@pytest.mark.core
@pytest.mark.parametrize("r", [1, 3])
def test_reductions_straddle_chunks(r, isa, dtype, layout):
    """grad_input sums over K*R*S, grad_weight over N*P*Q."""
    for k in straddle(28, 57, 64, 85, 128, 256):
        check_exact(Conv(n=1, c=5, h=3, w=4, k=k, r=r, s=r, padding=r // 2), dtype, layout)
    for n, h, w in [(1, 1, 255), (1, 1, 256), (1, 1, 257), (3, 8, 8), (5, 7, 7), (1, 16, 16), (1, 17, 31), (2, 32, 33)]:
        check_exact(Conv(n=n, c=3, h=h, w=w, k=5, r=r, s=r, padding=r // 2), dtype, layout)


@pytest.mark.parametrize("kernel", [1, 3])
def test_group_sizes_straddle_tiles(kernel, isa, dtype, layout):
    sizes = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17)
    for group_in, group_out in itertools.product(sizes, sizes):
        problem = Conv(n=1, c=2 * group_in, h=3, w=4, k=2 * group_out, r=kernel, s=kernel, padding=1, groups=2)
        check_exact(problem, dtype, layout)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [3, 5])
def test_depthwise_straddles_tiles(kernel, stride, isa, dtype, layout):
    sizes = straddle(4, 8, 16, 32)
    for channels, width in [*((c, 11) for c in sizes), *((9, w) for w in sizes)]:
        problem = Conv(
            n=1, c=channels, h=6, w=width, k=channels, r=kernel, s=kernel,
            stride=stride, padding=kernel // 2, groups=channels,
        )  # fmt: skip
        check_exact(problem, dtype, layout)


@pytest.mark.core
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_depthwise_windows(kernel, stride, isa, dtype, layout):
    for problem in depthwise_windows(kernel, stride):
        check_exact(problem, dtype, layout)


@pytest.mark.parametrize("stride", range(1, 7))
@pytest.mark.parametrize("dilation", range(1, 7))
def test_every_pair_of_stride_and_dilation(stride, dilation, isa, layout):
    """Coprime or not: the inputs that a tap reaches depend on the greatest common divisor."""
    for kernel in (1, 2, 3):
        problem = Conv(
            n=1, c=3, h=17, w=19, k=4, r=kernel, s=kernel, stride=(stride, 1 + stride % 4), dilation=dilation, padding=2
        )
        check_exact(problem, "float32", layout)


@pytest.mark.parametrize("modes", list(itertools.product(PADDING_MODES, repeat=2)), ids="-".join)
def test_padding_modes(modes, isa, dtype, layout):
    for stride, dilation, padding in [(1, 1, 1), (2, 1, (2, 3)), (1, 2, ((3, 1), (0, 4))), ((3, 2), (1, 3), 4)]:
        problem = Conv(
            c=3, h=5, w=6, k=5, stride=stride, dilation=dilation, padding=padding, padding_mode=modes, padding_value=2.0
        )
        check_exact(problem, dtype, layout)


@pytest.mark.core
@pytest.mark.parametrize("name", ["3x3-pad1", "1x1", "depthwise", "groups3-odd", "3x3-stride2", "reflect"])
def test_unbatched(name, isa, dtype, layout):
    problem = CONV_PROBLEMS[name].replace(n=1)
    expected = conv_expected(problem, "integer")
    x, w, g = (getattr(expected, name).astype(dtype) for name in "xwg")
    gradients = convx.conv2d_backward(
        to_layout(g[0], layout), to_layout(x[0], layout), w, layout=layout, **problem.options
    )
    assert_equal(from_layout(gradients[0], layout), expected.grad_input[0], f"grad_input of {problem}")
    assert_equal(gradients[1], expected.grad_weight, f"grad_weight of {problem}")
    assert_equal(gradients[2], expected.grad_bias, f"grad_bias of {problem}")


@pytest.mark.core
@pytest.mark.parametrize("name", ["3x3-pad1", "1x1", "depthwise", "groups3-odd", "3x3-stride2", "circular-widest"])
def test_output_mask(name, isa, dtype, layout):
    """Each gradient has the same bits for every mask, and is None where the mask is False."""
    problem = CONV_PROBLEMS[name]
    expected = conv_expected(problem)
    x, w, g = (getattr(expected, name).astype(dtype) for name in "xwg")
    arrays = to_layout(g, layout), to_layout(x, layout), w
    everything = convx.conv2d_backward(*arrays, layout=layout, **problem.options)
    for mask in itertools.product((False, True), repeat=3):
        some = convx.conv2d_backward(*arrays, layout=layout, output_mask=mask, **problem.options)
        wanted = tuple(gradient if asked else None for gradient, asked in zip(everything, mask, strict=True))
        assert_same_bits(some, wanted, f"{problem}, output_mask {mask}")


@pytest.mark.parametrize("name", CONV_PROBLEMS)
def test_adjoint_identities(name, isa, dtype):
    """<conv(x, w), g> = <x, grad_input(g, w)> = <w, grad_weight(g, x)>, exact in whole numbers."""
    problem = CONV_PROBLEMS[name]
    x, w, g = (getattr(conv_expected(problem, "integer"), name).astype(dtype) for name in "xwg")
    algorithm = exact_algorithm(problem)
    y = convx.conv2d(x, w, algorithm=algorithm, **problem.options)
    grad_input, grad_weight, grad_bias = convx.conv2d_backward(g, x, w, algorithm=algorithm, **problem.options)
    product = np.vdot(y.astype("float64"), g)
    if problem.padding_mode != "constant":  # conv(x, w) is linear in x only if x = 0 gives 0
        assert np.vdot(x, grad_input.astype("float64")) == product, f"<x, grad_input> of {problem}"
    assert np.vdot(w, grad_weight.astype("float64")) == product, f"<w, grad_weight> of {problem}"
    ones = np.ones_like(grad_bias)
    assert np.vdot(ones, grad_bias.astype("float64")) == g.sum(dtype="float64"), f"<b, grad_bias> of {problem}"


@pytest.mark.parametrize("name", [name for name, problem in CONV_PROBLEMS.items() if max(problem.c, problem.k) < 20])
def test_finite_differences(name, isa):
    """Central differences along random directions: only rounding error, since conv2d is linear in each argument."""
    problem = CONV_PROBLEMS[name]
    expected = conv_expected(problem)
    x, w, b, g = (getattr(expected, name) for name in "xwbg")
    gradients = convx.conv2d_backward(g, x, w, **problem.options)
    for position, (argument, gradient) in enumerate(zip((x, w, b), gradients, strict=True)):
        direction = numbers(argument.shape, "normal", 77 + position)

        def loss(step, argument=argument, direction=direction, position=position):
            arrays = [x, w, b]
            arrays[position] = argument + step * direction
            return np.vdot(convx.conv2d(*arrays, **problem.options), g)

        difference = (loss(0.5) - loss(-0.5)) / 1.0
        slope = np.vdot(gradient, direction)
        # Each loss is a sum of terms * |g| products; their magnitude bounds the rounding of both sides.
        scale = np.abs(g).sum() * expected.magnitude["output"].max() * (1 + np.abs(direction).max())
        assert abs(difference - slope) <= 1e-13 * scale, (
            f"{GRADIENTS[position]} of {problem}: {difference} against {slope}"
        )


def test_inputs_that_no_window_reaches_get_no_gradient(isa, dtype, layout):
    problem = Conv(c=5, h=13, w=14, k=9, r=2, s=2, stride=(4, 3))
    grad_input = backward(problem, "integer", dtype, layout)["grad_input"]
    reached = np.zeros((13, 14), bool)
    for h, w in itertools.product(range(3), range(5)):
        reached[4 * h : 4 * h + 2, 3 * w : 3 * w + 2] = True
    assert (grad_input[:, :, ~reached] == 0).all()
    assert (grad_input[:, :, reached] != 0).any()


@pytest.mark.core
@pytest.mark.parametrize("name", ["3x3-pad1", "1x1", "3x3-stride2", "depthwise", "groups3-odd", "circular-widest"])
def test_views(name, isa, dtype, layout):
    problem = CONV_PROBLEMS[name]
    expected = conv_expected(problem)
    x, w, g = (getattr(expected, name).astype(dtype) for name in "xwg")
    arrays = [to_layout(g, layout), to_layout(x, layout), w]
    contiguous = convx.conv2d_backward(*arrays, layout=layout, **problem.options)
    for position, argument in enumerate(("grad_output", "input", "weight")):
        for what, view in views(arrays[position]):
            strided = list(arrays)
            strided[position] = view
            gradients = convx.conv2d_backward(*strided, layout=layout, **problem.options)
            assert_same_bits(gradients, contiguous, f"{problem}, {argument} {what}")


@pytest.mark.core
@pytest.mark.parametrize("name", ["3x3-pad1", "1x1", "depthwise", "groups3-odd"])
def test_broadcast_views(name, isa, dtype, layout):
    """Views with stride 0: the gradient of a sum is one value broadcast over all of grad_output."""
    problem = CONV_PROBLEMS[name]
    expected = conv_expected(problem)
    x, w, g = (getattr(expected, name).astype(dtype) for name in "xwg")
    arrays = [to_layout(g, layout), to_layout(x, layout), w]
    for position, argument in enumerate(("grad_output", "input", "weight")):
        for what, view in broadcasts(arrays[position]):
            strided, dense = list(arrays), list(arrays)
            strided[position], dense[position] = view, view.copy()
            assert_same_bits(
                convx.conv2d_backward(*strided, layout=layout, **problem.options),
                convx.conv2d_backward(*dense, layout=layout, **problem.options),
                f"{problem}, {argument} {what}",
            )


@pytest.mark.core
@pytest.mark.parametrize("groups", [1, 4])
def test_no_images(groups, isa, dtype, layout):
    """grad_input is empty, grad_weight and grad_bias are zero."""
    x_shape, g_shape = ((0, 4, 6, 7), (0, 8, 3, 4)) if layout == "NCHW" else ((0, 6, 7, 4), (0, 3, 4, 8))
    w = np.ones((8, 4 // groups, 3, 3), dtype)
    grad_input, grad_weight, grad_bias = convx.conv2d_backward(
        np.ones(g_shape, dtype), np.ones(x_shape, dtype), w, 2, 1, groups=groups, layout=layout
    )
    assert grad_input.shape == x_shape
    assert_equal(grad_weight, np.zeros(w.shape), "grad_weight")
    assert_equal(grad_bias, np.zeros(8), "grad_bias")
    assert {grad_input.dtype, grad_weight.dtype, grad_bias.dtype} == {np.dtype(dtype)}


@pytest.mark.core
def test_no_input_channels(isa, dtype, layout):
    """Only the bias has a gradient."""
    g = numbers((2, 5, 4, 5), "integer", 3)
    x_shape = (2, 0, 6, 7) if layout == "NCHW" else (2, 6, 7, 0)
    grad_input, grad_weight, grad_bias = convx.conv2d_backward(
        to_layout(g, layout).astype(dtype), np.ones(x_shape, dtype), np.ones((5, 0, 3, 3), dtype), layout=layout
    )
    assert grad_input.shape == x_shape
    assert grad_weight.shape == (5, 0, 3, 3)
    assert_equal(grad_bias, g.sum((0, 2, 3)), "grad_bias")


BORDERS = {
    "3x3": Conv(c=5, h=6, w=9, k=9, padding=1),
    "5x5-stride2": Conv(c=3, h=7, w=8, k=5, r=5, s=5, stride=2, padding=2),
    "stride-dilation": Conv(c=3, h=9, w=8, k=5, stride=2, dilation=2, padding=2),
    "depthwise": Conv(c=9, h=6, w=17, k=9, groups=9, padding=1),
    "groups": Conv(c=6, h=6, w=7, k=8, groups=2, padding=1),
    "photo": Conv(n=1, c=1, h=6, w=19, k=1, padding=1),
    "kernel-over-image": Conv(n=1, c=2, h=2, w=3, k=9, r=5, s=7, padding=(2, 3)),
    "stride-over-kernel": Conv(c=3, h=9, w=11, k=5, r=2, s=2, stride=3, padding=1),
    "1x1": Conv(c=9, h=5, w=6, k=17, r=1, s=1),
    "zeros-reflect": Conv(c=3, h=5, w=6, k=5, padding=1, padding_mode=("zeros", "reflect")),
    "replicate-zeros": Conv(c=3, h=5, w=6, k=5, padding=1, padding_mode=("replicate", "zeros")),
    "zeros-constant": Conv(c=3, h=5, w=6, k=5, padding=1, padding_mode=("zeros", "constant"), padding_value=2.0),
    "constant": Conv(c=3, h=5, w=6, k=5, padding=1, padding_mode="constant", padding_value=2.0),
    "constant-zero": Conv(c=3, h=5, w=6, k=5, padding=1, padding_mode="constant"),
    "constant-inf": Conv(c=3, h=5, w=6, k=5, padding=1, padding_mode="constant", padding_value=np.inf),
    "circular": Conv(c=3, h=5, w=6, k=5, stride=2, padding=2, padding_mode="circular"),
}


def check_non_finite(problem, x, w, g, dtype, layout, context):
    __tracebackhide__ = True
    x, w, g = (a.astype(dtype) for a in (x, w, g))
    gradients = convx.conv2d_backward(to_layout(g, layout), to_layout(x, layout), w, layout=layout, **problem.options)
    expected = reference.conv2d_backward(*(a.astype("float64") for a in (g, x, w)), **problem.options)
    for name, gradient, truth in zip(GRADIENTS, gradients, expected, strict=True):
        actual = from_layout(gradient, layout) if name == "grad_input" else gradient
        assert_equal(actual, truth, f"{name} of {problem}, {context}")
    return expected


@pytest.mark.core
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", BORDERS)
def test_taps_outside_the_image_are_skipped(name, value, isa, dtype, layout):
    """An inf or NaN reaches a gradient only through taps that lie inside the image."""
    problem = BORDERS[name]
    data = conv_expected(problem.replace(padding_value=0.0), "integer")
    x, w, g = data.x, data.w, data.g
    for r, s in {(0, 0), (problem.r - 1, 0), (problem.r // 2, problem.s - 1)}:
        poisoned = w.copy()
        poisoned[:, 0, r, s] = value
        check_non_finite(problem, x, poisoned, g, dtype, layout, f"weight[:, 0, {r}, {s}] = {value}")
    for index in [(0, 0, 0, 0), (-1, -1, -1, -1), (0, -1, 0, -1), (0, 0, g.shape[2] // 2, g.shape[3] // 2)]:
        poisoned = g.copy()
        poisoned[index] = value
        gradients = check_non_finite(problem, x, w, poisoned, dtype, layout, f"grad_output[{index}] = {value}")
        assert not np.isfinite(gradients[2]).all()
    for index in [(0, 0, 0, 0), (-1, -1, -1, -1), (0, 0, problem.h // 2, problem.w // 2)]:
        poisoned = x.copy()
        poisoned[index] = value
        check_non_finite(problem, poisoned, w, g, dtype, layout, f"input[{index}] = {value}")


def test_inputs_are_left_alone(isa, dtype):
    problem = CONV_PROBLEMS["3x3-pad1"]
    arrays = [getattr(conv_expected(problem), name).astype(dtype) for name in "gxw"]
    copies = [a.copy() for a in arrays]
    freeze(*arrays)
    convx.conv2d_backward(*arrays, **problem.options)
    for array, copy in zip(arrays, copies, strict=True):
        assert_same_bits(array, copy, problem)


def test_positional_arguments_stand_in_the_documented_order(isa):
    problem = Conv(c=4, k=6, stride=2, padding=1, dilation=(1, 2), groups=2)
    expected = conv_expected(problem, "integer")
    x, w, g = (getattr(expected, name).astype("float32") for name in "xwg")
    gradients = convx.conv2d_backward(g, x, w, 2, 1, (1, 2), 2)
    for name, gradient in zip(GRADIENTS, gradients, strict=True):
        assert_equal(gradient, getattr(expected, name), f"{name} of {problem}")
