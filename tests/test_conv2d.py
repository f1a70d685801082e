"""conv2d forward: sizes on both sides of every tile, every option, layout, view and `out`."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import convx
from convx import reference
from support import (
    CONV_PROBLEMS,
    PADDING_MODES,
    TILES,
    Conv,
    assert_equal,
    assert_same_bits,
    assert_within,
    broadcasts,
    conv_bound,
    conv_data,
    conv_expected,
    depthwise_windows,
    exact_algorithm,
    from_layout,
    numbers,
    straddle,
    to_layout,
    views,
)


def forward(problem, kind, dtype, layout="NCHW", **options):
    """The output of `problem` from convx, in NCHW; it must have `dtype`."""
    x, w, b = (a.astype(dtype) for a in conv_data(problem, kind))
    if kind == "integer":
        options.setdefault("algorithm", exact_algorithm(problem))
    y = convx.conv2d(to_layout(x, layout), w, b, layout=layout, **problem.options, **options)
    assert isinstance(y, np.ndarray)
    assert y.dtype == dtype
    assert y.flags.c_contiguous
    return from_layout(y, layout)


@pytest.mark.core
@pytest.mark.parametrize("name", CONV_PROBLEMS)
def test_exact(name, isa, dtype, layout):
    problem = CONV_PROBLEMS[name]
    expected = conv_expected(problem, "integer").output
    assert_equal(forward(problem, "integer", dtype, layout), expected, problem)


@pytest.mark.parametrize("name", CONV_PROBLEMS)
def test_rounding(name, isa, dtype, layout):
    problem = CONV_PROBLEMS[name]
    expected = conv_expected(problem)
    bound = conv_bound(expected, "output", dtype)
    assert_within(forward(problem, "normal", dtype, layout), expected.output, bound, problem)


@pytest.mark.core
@pytest.mark.parametrize(
    "window",
    [
        pytest.param(dict(r=1, s=1, h=1), id="1x1"),
        pytest.param(dict(h=2, padding=1), id="3x3"),
        pytest.param(dict(h=3, padding=1, stride=2), id="3x3-stride2"),
    ],
)
def test_output_channels_and_pixels_straddle_tiles(window, isa, dtype, layout):
    sizes = straddle(*TILES)
    for width in sizes:
        widest = Conv(n=1, c=5, w=width, k=max(sizes), **window)
        x, w, b = (a.astype(dtype) for a in conv_data(widest, "integer"))
        x = to_layout(x, layout)
        expected = conv_expected(widest, "integer").output
        for k in sizes:  # the first k channels of the widest problem
            problem = widest.replace(k=k)
            y = convx.conv2d(x, w[:k], b[:k], layout=layout, **problem.options)
            assert_equal(from_layout(y, layout), expected[:, :k], problem)


@pytest.mark.core
@pytest.mark.parametrize("r", [1, 3])
def test_input_channels_straddle_tiles_and_reduction_chunks(r, isa, dtype, layout):
    """Depths around the tiles and around kc = 256: 28, 29 and 57 channels of 3x3, 256 of 1x1."""
    for c in straddle(*TILES, 28, 57, 64, 85, 128, 256):
        problem = Conv(n=1, c=c, h=3, w=6, k=7, r=r, s=r, padding=r // 2)
        assert_equal(forward(problem, "integer", dtype, layout), conv_expected(problem, "integer").output, problem)


@pytest.mark.parametrize("kernel", [1, 3])
def test_group_sizes_straddle_tiles(kernel, isa, dtype, layout):
    sizes = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17)
    for group_in, group_out in itertools.product(sizes, sizes):
        problem = Conv(n=1, c=3 * group_in, h=3, w=5, k=3 * group_out, r=kernel, s=kernel, padding=1, groups=3)
        assert_equal(forward(problem, "integer", dtype, layout), conv_expected(problem, "integer").output, problem)


@pytest.mark.core
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [3, 5])
def test_depthwise_straddles_tiles(kernel, stride, isa, dtype, layout):
    sizes = straddle(4, 8, 16, 32)
    for channels, width in [*((c, 11) for c in sizes), *((9, w) for w in sizes)]:
        problem = Conv(
            n=1, c=channels, h=6, w=width, k=channels, r=kernel, s=kernel,
            stride=stride, padding=kernel // 2, groups=channels,
        )  # fmt: skip
        assert_equal(forward(problem, "integer", dtype, layout), conv_expected(problem, "integer").output, problem)


@pytest.mark.core
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_depthwise_windows(kernel, stride, isa, dtype, layout):
    for problem in depthwise_windows(kernel, stride):
        assert_equal(forward(problem, "integer", dtype, layout), conv_expected(problem, "integer").output, problem)


@pytest.mark.parametrize("modes", list(itertools.product(PADDING_MODES, repeat=2)), ids="-".join)
def test_padding_modes(modes, isa, dtype, layout):
    for stride, dilation, padding in [(1, 1, 1), (2, 1, (2, 3)), (1, 2, ((3, 1), (0, 4))), ((3, 2), (1, 3), 4)]:
        problem = Conv(
            c=3, h=5, w=6, k=5, stride=stride, dilation=dilation, padding=padding, padding_mode=modes, padding_value=2.0
        )
        assert_equal(forward(problem, "integer", dtype, layout), conv_expected(problem, "integer").output, problem)


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("padding", ["same", "same_lower"])
def test_padding_rules_meet_every_mode(padding, mode, isa, dtype):
    for kernel, stride in itertools.product([(3, 3), (2, 4), (5, 1)], [1, 2, (3, 2)]):
        problem = Conv(
            c=2, h=7, w=8, k=3, r=kernel[0], s=kernel[1],
            stride=stride, padding=padding, padding_mode=mode, padding_value=-2.0,
        )  # fmt: skip
        y = forward(problem, "integer", dtype)
        pair = (stride, stride) if isinstance(stride, int) else stride
        assert y.shape[2:] == (-(-7 // pair[0]), -(-8 // pair[1]))
        assert_equal(y, conv_expected(problem, "integer").output, problem)


@pytest.mark.core
@pytest.mark.parametrize("name", ["3x3-pad1", "1x1", "depthwise", "groups3-odd", "3x3-stride2", "photo"])
def test_unbatched(name, isa, dtype, layout):
    problem = CONV_PROBLEMS[name]
    x, w, b = (a.astype(dtype) for a in conv_data(problem, "integer"))
    y = convx.conv2d(to_layout(x[-1], layout), w, b, layout=layout, **problem.options)
    assert_equal(from_layout(y, layout), conv_expected(problem, "integer").output[-1], problem)


@pytest.mark.core
@pytest.mark.parametrize(
    "name", ["3x3-pad1", "1x1", "depthwise", "groups-narrow", "reduction-1x1-513", "per-side-stride"]
)
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_fused_bias_and_relu(name, with_bias, activation, isa, dtype, layout):
    problem = CONV_PROBLEMS[name]
    x, w, b = (a.astype(dtype) for a in conv_data(problem, "integer"))
    y = convx.conv2d(
        to_layout(x, layout), w, b if with_bias else None, layout=layout, activation=activation, **problem.options
    )
    expected = conv_expected(problem, "integer").output
    if not with_bias:
        expected = expected - conv_data(problem, "integer")[2][:, None, None]
    assert_equal(from_layout(y, layout), np.maximum(expected, 0) if activation else expected, problem)


def test_positional_arguments_stand_in_the_documented_order(isa):
    problem = Conv(c=4, k=6, stride=2, padding=1, dilation=(1, 2), groups=2)
    x, w, b = (a.astype("float32") for a in conv_data(problem, "integer"))
    y = convx.conv2d(x, w, b, 2, 1, (1, 2), 2)
    assert_equal(y, conv_expected(problem, "integer").output, problem)


def test_algorithm_direct_is_always_there(isa, dtype):
    problem = CONV_PROBLEMS["3x3-pad1"]
    assert_equal(
        forward(problem, "integer", dtype, algorithm="direct"), conv_expected(problem, "integer").output, problem
    )


@pytest.mark.core
@pytest.mark.parametrize("name", ["3x3-pad1", "1x1", "3x3-stride2", "depthwise", "groups3-odd", "circular-widest"])
def test_views(name, isa, dtype, layout):
    """For any strides of input, weight and bias, the bits are those of contiguous arrays."""
    problem = CONV_PROBLEMS[name]
    x, w, b = (a.astype(dtype) for a in conv_data(problem))
    x = to_layout(x, layout)
    expected = convx.conv2d(x, w, b, layout=layout, **problem.options)
    for what, view in views(x):
        y = convx.conv2d(view, w, b, layout=layout, **problem.options)
        assert_same_bits(y, expected, f"{problem}, input {what}")
    for what, view in views(w):
        y = convx.conv2d(x, view, b, layout=layout, **problem.options)
        assert_same_bits(y, expected, f"{problem}, weight {what}")
    for what, view in views(b):
        y = convx.conv2d(x, w, view, layout=layout, **problem.options)
        assert_same_bits(y, expected, f"{problem}, bias {what}")


@pytest.mark.core
@pytest.mark.parametrize("name", ["3x3-pad1", "1x1", "depthwise", "groups3-odd"])
def test_broadcast_views(name, isa, dtype, layout):
    problem = CONV_PROBLEMS[name]
    arrays = [a.astype(dtype) for a in conv_data(problem)]
    arrays[0] = to_layout(arrays[0], layout)
    for position, argument in enumerate(("input", "weight", "bias")):
        for what, view in broadcasts(arrays[position]):
            strided, dense = list(arrays), list(arrays)
            strided[position], dense[position] = view, view.copy()
            assert_same_bits(
                convx.conv2d(*strided, layout=layout, **problem.options),
                convx.conv2d(*dense, layout=layout, **problem.options),
                f"{problem}, {argument} {what}",
            )


@pytest.mark.core
def test_strides_of_axes_with_one_element_mean_nothing(isa, dtype, layout):
    """The stride of an axis of length 1 may be any number, even one that is no multiple of the element's size."""
    for shape, weight_shape in [
        ((1, 1, 6, 7), (4, 1, 3, 3)),
        ((1, 5, 1, 9), (1, 5, 1, 3)),
        ((3, 8, 1, 1), (1, 8, 1, 1)),
    ]:
        x, w = (numbers(s, "integer", i).astype(dtype) for i, s in enumerate((shape, weight_shape)))
        x = to_layout(x, layout)
        expected = convx.conv2d(x, w, layout=layout)
        for odd in (0, 1, -3, 10**15):
            views = []
            for array in (x, w, np.zeros_like(expected)):
                strides = [
                    odd if size == 1 else stride for size, stride in zip(array.shape, array.strides, strict=True)
                ]
                views.append(np.lib.stride_tricks.as_strided(array, array.shape, strides))
            convx.conv2d(*views[:2], layout=layout, out=views[2])
            assert_same_bits(views[2], expected, f"{shape} * {weight_shape}, stride {odd}")


@pytest.mark.core
@pytest.mark.parametrize("name", ["3x3-pad1", "1x1", "depthwise", "groups3-odd", "photo"])
def test_out(name, isa, dtype, layout):
    """`out` may have any strides; it gets the bits of the allocating call, and the memory between stays unchanged."""
    problem = CONV_PROBLEMS[name]
    x, w, b = (a.astype(dtype) for a in conv_data(problem))
    x = to_layout(x, layout)
    expected = convx.conv2d(x, w, b, layout=layout, **problem.options)
    fresh = np.full_like(expected, np.nan)
    assert convx.conv2d(x, w, b, layout=layout, out=fresh, **problem.options) is fresh
    assert_same_bits(fresh, expected, problem)
    for what, out in views(np.full_like(expected, np.nan)):
        if not (out.flags.writeable and out.flags.aligned):  # these raise: see test_errors
            continue
        whole = out
        while whole.base is not None:
            whole = whole.base
        untouched = np.isnan(whole).sum() - out.size if whole.dtype == out.dtype else 0
        convx.conv2d(x, w, b, layout=layout, out=out, **problem.options)
        assert_same_bits(out, expected, f"{problem}, out {what}")
        if whole.dtype == out.dtype:
            assert np.isnan(whole).sum() == untouched, f"{problem}, out {what}: memory beside it was written"


@pytest.mark.core
def test_inputs_are_left_alone(isa, dtype):
    problem = CONV_PROBLEMS["3x3-pad1"]
    arrays = [a.astype(dtype) for a in conv_data(problem)]
    before = [a.copy() for a in arrays]
    convx.conv2d(*arrays, activation="relu", **problem.options)
    for array, copy in zip(arrays, before, strict=True):
        assert_same_bits(array, copy, problem)


def test_input_and_weight_may_be_one_array(isa):
    x = numbers((3, 3, 3, 3), "integer", 5)
    assert_equal(convx.conv2d(x, x, padding=1), reference.conv2d(x, x, padding=1), "x * x")


@pytest.mark.core
@pytest.mark.parametrize("activation", [None, "relu"])
def test_no_images(activation, isa, dtype, layout):
    shape = (0, 3, 6, 7) if layout == "NCHW" else (0, 6, 7, 3)
    x, w, b = np.ones(shape, dtype), np.ones((5, 3, 3, 3), dtype), np.ones(5, dtype)
    y = convx.conv2d(x, w, b, 2, 1, layout=layout, activation=activation)
    assert y.shape == ((0, 5, 3, 4) if layout == "NCHW" else (0, 3, 4, 5))
    assert y.dtype == dtype


@pytest.mark.core
@pytest.mark.parametrize("groups", [1, 2])
def test_no_input_channels_give_the_bias(groups, isa, dtype, layout):
    shape = (2, 0, 6, 7) if layout == "NCHW" else (2, 6, 7, 0)
    x, w, b = np.ones(shape, dtype), np.ones((4, 0, 3, 3), dtype), np.array([-1, 2, -3, 4], dtype)
    for bias, activation in itertools.product((b, None), (None, "relu")):
        y = from_layout(convx.conv2d(x, w, bias, groups=groups, layout=layout, activation=activation), layout)
        plane = np.zeros(4) if bias is None else np.maximum(b, 0) if activation else b
        assert_equal(y, np.broadcast_to(plane[:, None, None], (2, 4, 4, 5)), f"bias {bias}, {activation}")


BORDERS = {
    "3x3": Conv(c=5, h=6, w=9, k=9, padding=1),
    "5x5-stride2": Conv(c=3, h=7, w=8, k=5, r=5, s=5, stride=2, padding=2),
    "dilation": Conv(c=3, h=6, w=7, k=5, dilation=3, padding=3),
    "depthwise": Conv(c=9, h=6, w=17, k=9, groups=9, padding=1),
    "groups": Conv(c=6, h=6, w=7, k=8, groups=2, padding=1),
    "photo": Conv(n=1, c=1, h=6, w=19, k=1, padding=1),
    "kernel-over-image": Conv(n=1, c=2, h=2, w=3, k=9, r=5, s=7, padding=(2, 3)),
    "same": Conv(c=3, h=5, w=6, k=5, r=4, s=4, padding="same"),
    "zeros-reflect": Conv(c=3, h=5, w=6, k=5, padding=1, padding_mode=("zeros", "reflect")),
    "replicate-zeros": Conv(c=3, h=5, w=6, k=5, padding=1, padding_mode=("replicate", "zeros")),
    "zeros-constant": Conv(c=3, h=5, w=6, k=5, padding=1, padding_mode=("zeros", "constant"), padding_value=2.0),
}


@pytest.mark.core
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", BORDERS)
def test_taps_outside_the_image_are_skipped(name, value, isa, dtype, layout):
    """An inf or NaN weight adds nothing where its tap lies in the zero padding, and reaches every other output."""
    problem = BORDERS[name]
    x, w, b = (a.copy() for a in conv_data(problem, "integer"))
    spared = 0
    for r, s in {(0, 0), (problem.r - 1, 0), (problem.r // 2, problem.s - 1), (problem.r // 2, problem.s // 2)}:
        poisoned = w.copy()
        poisoned[:, 0, r, s] = value
        y = convx.conv2d(
            to_layout(x, layout).astype(dtype),
            poisoned.astype(dtype),
            b.astype(dtype),
            layout=layout,
            **problem.options,
        )
        expected = reference.conv2d(x, poisoned, b, **problem.options)
        spared += np.isfinite(expected).sum()
        assert_equal(from_layout(y, layout), expected, f"{problem}, weight[:, 0, {r}, {s}] = {value}")
    assert spared, "the case skips no tap"


@pytest.mark.parametrize("padding_value", [0.0, 2.0])
def test_taps_outside_count_under_constant_padding(padding_value, isa, dtype):
    """A border of the constant 0.0 is multiplied, unlike zero padding."""
    problem = BORDERS["3x3"].replace(padding_mode="constant", padding_value=padding_value)
    x, w, b = (a.copy() for a in conv_data(problem, "integer"))
    w[:, 0, 0, 0] = np.inf
    y = convx.conv2d(x.astype(dtype), w.astype(dtype), b.astype(dtype), **problem.options)
    expected = reference.conv2d(x, w, b, **problem.options)
    assert not np.isfinite(expected).any()
    assert_equal(y, expected, problem)


@pytest.mark.parametrize("padding_value", [np.inf, -np.inf, np.nan, -0.0, 2.0**-140])
@pytest.mark.parametrize("name", ["3x3", "depthwise", "groups", "5x5-stride2", "zeros-constant"])
def test_any_padding_value(name, padding_value, isa, dtype, layout):
    mode = "constant" if name != "zeros-constant" else ("zeros", "constant")
    problem = BORDERS[name].replace(padding_mode=mode, padding_value=padding_value)
    x, w, b = (a.copy() for a in conv_data(problem, "integer"))
    y = convx.conv2d(
        to_layout(x, layout).astype(dtype), w.astype(dtype), b.astype(dtype), layout=layout, **problem.options
    )
    assert_equal(from_layout(y, layout), reference.conv2d(x, w, b, **problem.options).astype(dtype), problem)


@pytest.mark.core
@pytest.mark.parametrize("name", BORDERS)
def test_inf_and_nan_in_the_input(name, isa, dtype, layout):
    """Inf and NaN reach exactly the outputs whose window has them."""
    problem = BORDERS[name]
    x, w, b = (a.copy() for a in conv_data(problem, "integer"))
    for index, value in zip(
        [(0, 0, 0, 0), (-1, -1, -1, -1), (0, 0, 1, 2), (-1, 0, 0, -1)], [np.inf, np.nan, -np.inf, np.inf], strict=True
    ):
        x[index] = value
    y = convx.conv2d(
        to_layout(x, layout).astype(dtype), w.astype(dtype), b.astype(dtype), layout=layout, **problem.options
    )
    expected = reference.conv2d(x, w, b, **problem.options)
    assert_equal(from_layout(y, layout), expected, problem)


def test_fused_relu_keeps_nan(isa, dtype):
    x = np.ones((1, 1, 1, 21), dtype)
    x[..., 3], x[..., 11], x[..., 20] = np.nan, -np.inf, np.inf
    y = convx.conv2d(x, np.ones((1, 1, 1, 1), dtype), activation="relu")
    assert np.isnan(y[0, 0, 0, 3])
    assert y[0, 0, 0, 11] == 0
    assert y[0, 0, 0, 20] == np.inf


def test_float32_is_ieee_float32(isa):
    """A product that TF32 or bfloat16 would round."""
    x = np.full((1, 64, 4, 4), 1 + 2.0**-20, np.float32)
    w = np.zeros((16, 64, 1, 1), np.float32)
    w[:, 0] = 1
    assert (convx.conv2d(x, w) == x[0, 0, 0, 0]).all()
