"""The same bits for any number of threads, on every run, alone or in a batch, and for any strides.

The problems are large enough for several tasks (`test_the_work_is_cut`).
"""

from __future__ import annotations

import os

import numpy as np
import pytest

import convx
from support import Conv, Pool, assert_same_bits, numbers, to_layout

THREADS = (2, 3, max(4, os.cpu_count() or 1))  # compared with 1
RUNS = 3

CONV_PROBLEMS = {
    "3x3": Conv(n=2, c=40, h=28, w=30, k=40, padding=1),
    "3x3-stride2": Conv(n=2, c=24, h=45, w=47, k=32, stride=2, padding=1),
    "1x1": Conv(n=2, c=96, h=20, w=21, k=70, r=1, s=1),
    "1x1-small-image": Conv(n=4, c=300, h=7, w=7, k=170, r=1, s=1),
    "first-layer": Conv(n=2, c=3, h=65, w=67, k=40, r=7, s=7, stride=2, padding=3),
    "small-planes": Conv(n=30, c=6, h=14, w=14, k=16, r=5, s=5),
    "small-planes-many": Conv(n=70, c=36, h=4, w=4, k=40, padding=1),
    "many-pixels": Conv(n=2, c=4, h=150, w=161, k=6, padding=1),
    "photo": Conv(n=2, c=1, h=350, w=401, k=1, padding=1),
    "depthwise": Conv(n=2, c=34, h=61, w=63, k=34, groups=34, padding=1),
    "depthwise-stride2": Conv(n=2, c=34, h=77, w=79, k=34, r=5, s=5, groups=34, stride=2, padding=2),
    "depthwise-3x3-stride2": Conv(n=2, c=34, h=127, w=129, k=34, groups=34, stride=2, padding=1),
    "depthwise-narrow": Conv(n=3, c=600, h=14, w=14, k=600, groups=600, stride=2, padding=1),
    "depthwise-any-window": Conv(n=2, c=20, h=60, w=61, k=20, r=7, s=4, groups=20, dilation=(1, 2), padding=3),
    "depthwise-multiplier": Conv(n=2, c=20, h=60, w=61, k=60, groups=20, padding=1),
    "groups-of-4": Conv(n=2, c=48, h=75, w=76, k=48, groups=12, stride=2, padding=1),
    "groups": Conv(n=2, c=48, h=25, w=26, k=60, groups=6, padding=1),
    "reflect": Conv(n=2, c=20, h=30, w=31, k=24, padding=2, padding_mode="reflect"),
    "deep": Conv(n=2, c=180, h=9, w=9, k=70, padding=1),
}
CORE = ("groups",)
POOL_PROBLEMS = {
    "2x2": Pool(n=2, c=18, h=110, w=122),
    "3x3-stride2": Pool(n=2, c=18, h=97, w=101, kernel_size=3, stride=2, padding=1),
    "3x3-stride1": Pool(n=2, c=9, h=70, w=75, kernel_size=3, stride=1, padding=1),
}


def convolve(problem, layout, dtype, x, w, b, g):
    """Every pass of conv2d."""
    return (
        convx.conv2d(x, w, b, layout=layout, **problem.options),
        *convx.conv2d_backward(g, x, w, layout=layout, **problem.options),
    )


def arrays_of(problem, layout, dtype):
    x = to_layout(numbers(problem.input_shape, "normal", 1), layout).astype(dtype)
    w = numbers(problem.weight_shape, "normal", 2).astype(dtype)
    b = numbers((problem.k,), "normal", 3).astype(dtype)
    y = convx.conv2d(x, w, b, layout=layout, **problem.options)
    return x, w, b, numbers(y.shape, "normal", 4).astype(dtype)


def pool_all(problem, layout, x, g):
    """Every pass of max_pool2d."""
    output, indices = convx.max_pool2d(x, layout=layout, return_indices=True, **problem.options)
    codes = convx.max_pool2d(x, layout=layout, return_codes=True, **problem.options)[1]
    grad_input = convx.max_pool2d_backward(g, codes, x.shape, layout=layout, **problem.options)
    from_indices = convx.max_pool2d_backward(g, indices, x.shape, layout=layout, **problem.options)
    return output, indices, codes, grad_input, from_indices


def fused_all(problem, layout, x, w, b, g):
    output, saved = convx.conv2d_relu_max_pool2d(
        x, w, b, problem.stride, problem.padding, problem.dilation, problem.groups, pool_kernel_size=2, layout=layout
    )
    grad = np.resize(g, output.shape).astype(g.dtype)
    return output, saved.codes, *convx.conv2d_relu_max_pool2d_backward(grad, saved)


def same_for_all_threads(function, context):
    with convx.threads(1):
        expected = function()
    for count in THREADS:
        with convx.threads(count):
            assert convx.get_num_threads() == count
            for run in range(RUNS):
                assert_same_bits(function(), expected, f"{context}, {count} threads, run {run}")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.core if name in CORE else ()) for name in CONV_PROBLEMS]
)
def test_conv2d_threads(name, isa, dtype, layout):
    problem = CONV_PROBLEMS[name]
    arrays = arrays_of(problem, layout, dtype)
    same_for_all_threads(lambda: convolve(problem, layout, dtype, *arrays), f"{name} (output and the three gradients)")


@pytest.mark.parametrize("name", POOL_PROBLEMS)
def test_max_pool2d_threads(name, isa, dtype, layout):
    problem = POOL_PROBLEMS[name]
    x = to_layout(numbers(problem.input_shape, "normal", 1), layout).astype(dtype)
    g = numbers(convx.max_pool2d(x, layout=layout, **problem.options).shape, "normal", 2).astype(dtype)
    same_for_all_threads(lambda: pool_all(problem, layout, x, g), name)


@pytest.mark.parametrize("name", ["3x3", "first-layer", "depthwise", "many-pixels"])
def test_fused_threads(name, isa, dtype, layout):
    problem = CONV_PROBLEMS[name]
    arrays = arrays_of(problem, layout, dtype)
    same_for_all_threads(lambda: fused_all(problem, layout, *arrays), name)


def test_relu_threads(isa, dtype):
    x, g = numbers((3, 1_000_001), "normal", 1).astype(dtype), numbers((3, 1_000_001), "normal", 2).astype(dtype)
    mask = convx.relu(x, return_mask=True)[1]
    function = lambda: (convx.relu(x), convx.relu_backward(g, x), *convx.relu(x, return_mask=True))  # noqa: E731
    same_for_all_threads(lambda: (*function(), convx.relu_backward(g, mask), convx.relu_backward(g.T, mask)), "relu")


@pytest.mark.parametrize("op", ["conv2d", "conv2d_backward"])
@pytest.mark.parametrize("name", [name for name in CONV_PROBLEMS if name != "reflect"])
def test_the_work_is_cut(name, op, isa, dtype):
    """A precondition of the tests of this file."""
    problem = CONV_PROBLEMS[name]
    with convx.threads(4):
        for plan in convx.explain(op, problem.input_shape, problem.weight_shape, dtype=dtype, **problem.options):
            if plan.name != "grad_bias":
                assert plan.tasks > 1, plan
                assert plan.threads > 1, plan


@pytest.mark.parametrize("name", CONV_PROBLEMS)
def test_conv2d_alone_or_in_a_batch(name, isa, dtype, layout):
    """Output and grad_input of an image do not depend on other images of the batch, nor on the batch axis."""
    problem = CONV_PROBLEMS[name].replace(n=5 if CONV_PROBLEMS[name].h < 100 else 2)
    x, w, b, g = arrays_of(problem, layout, dtype)
    output, grad_input, *_ = convolve(problem, layout, dtype, x, w, b, g)
    for first, last in [(0, 1), (problem.n - 1, problem.n), (0, 2), (problem.n // 2, problem.n)]:
        part = slice(first, last)
        some = convx.conv2d(x[part], w, b, layout=layout, **problem.options)
        assert_same_bits(some, output[part], f"{name}, output of images {first} to {last}")
        some = convx.conv2d_backward(
            g[part], x[part], w, layout=layout, output_mask=(True, False, False), **problem.options
        )
        assert_same_bits(some[0], grad_input[part], f"{name}, grad_input of images {first} to {last}")
    alone = convx.conv2d(x[1], w, b, layout=layout, **problem.options)
    assert_same_bits(alone, output[1], f"{name}, unbatched output")
    alone = convx.conv2d_backward(g[1], x[1], w, layout=layout, output_mask=(True, False, False), **problem.options)
    assert_same_bits(alone[0], grad_input[1], f"{name}, unbatched grad_input")


@pytest.mark.parametrize("name", ["3x3", "first-layer", "depthwise"])
def test_fused_alone_or_in_a_batch(name, isa, dtype, layout):
    problem = CONV_PROBLEMS[name].replace(n=5)
    x, w, b, g = arrays_of(problem, layout, dtype)
    output, codes, grad_input, *_ = fused_all(problem, layout, x, w, b, g)
    grad = np.resize(g, output.shape).astype(dtype)
    for image in (0, 3, 4):
        own, saved = convx.conv2d_relu_max_pool2d(
            x[image],
            w,
            b,
            problem.stride,
            problem.padding,
            problem.dilation,
            problem.groups,
            pool_kernel_size=2,
            layout=layout,
        )
        assert_same_bits(own, output[image], f"{name}, output of image {image}")
        assert_same_bits(saved.codes, codes[image], f"{name}, codes of image {image}")
        mask = (True, False, False)
        own_grad = convx.conv2d_relu_max_pool2d_backward(grad[image], saved, output_mask=mask)[0]
        assert_same_bits(own_grad, grad_input[image], f"{name}, grad_input of image {image}")


def restrided(array):
    """Common strides: channels-last memory, a mirrored image, a crop, axes in reverse order."""
    yield "channels-last memory", np.moveaxis(np.moveaxis(array, -3, -1).copy(), -1, -3)
    yield "mirrored", np.flip(np.flip(array, (-1, -2)).copy(), (-1, -2))
    larger = np.full([size + 3 for size in array.shape], np.nan, array.dtype)
    crop = larger[tuple(slice(2, -1) for _ in array.shape)]
    crop[...] = array
    yield "crop", crop
    yield "reversed axes", array.T.copy().T


@pytest.mark.parametrize("name", CONV_PROBLEMS)
def test_conv2d_strides(name, isa, dtype, layout):
    problem = CONV_PROBLEMS[name]
    x, w, b, g = arrays_of(problem, layout, dtype)
    expected = convolve(problem, layout, dtype, x, w, b, g)
    for (what, x_view), (_, w_view), (_, g_view) in zip(restrided(x), restrided(w), restrided(g), strict=True):
        actual = convolve(problem, layout, dtype, x_view, w_view, b, g_view)
        assert_same_bits(actual, expected, f"{name}, {what}")
    for what, out in restrided(np.empty_like(expected[0])):
        convx.conv2d(x, w, b, layout=layout, out=out, **problem.options)
        assert_same_bits(out, expected[0], f"{name}, out {what}")


@pytest.mark.parametrize("name", POOL_PROBLEMS)
def test_max_pool2d_strides(name, isa, dtype, layout):
    problem = POOL_PROBLEMS[name]
    x = to_layout(numbers(problem.input_shape, "normal", 1), layout).astype(dtype)
    g = numbers(convx.max_pool2d(x, layout=layout, **problem.options).shape, "normal", 2).astype(dtype)
    expected = pool_all(problem, layout, x, g)
    for (what, x_view), (_, g_view) in zip(restrided(x), restrided(g), strict=True):
        assert_same_bits(pool_all(problem, layout, x_view, g_view), expected, f"{name}, {what}")


@pytest.mark.parametrize("name", CONV_PROBLEMS)
def test_both_layouts_give_one_output(name, isa, dtype):
    """A channels-last array and its transposed view give the same bits under their layouts by one method."""
    problem = CONV_PROBLEMS[name]
    x, w, b, _ = arrays_of(problem, "NHWC", dtype)
    options = {**problem.options, "algorithm": "implicit-gemm"}  # "auto" may choose another one for each layout
    output = convx.conv2d(x, w, b, layout="NHWC", **options)
    as_nchw = convx.conv2d(np.moveaxis(x, -1, 1), w, b, **options)
    assert_same_bits(np.moveaxis(output, -1, 1), as_nchw, name)
