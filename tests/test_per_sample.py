"""Gradients of single images and their norms: the bits of a call for each image, the sums of the reference."""

from __future__ import annotations

import numpy as np
import pytest

import convx
from convx import _cpu, reference
from support import (
    CONV_PROBLEMS,
    GRADIENTS,
    Conv,
    assert_equal,
    assert_same_bits,
    conv_data,
    conv_expected,
    exact_algorithm,
    numbers,
    to_layout,
    views,
)

# One or two problems for each method of grad_weight.
SOME = ("3x3-pad1", "1x1", "3x3-stride2", "first-layer-7x7", "depthwise", "groups3-odd", "photo", "small-planes-many",
        "circular-stride-dilation", "constant-same-stride", "per-side-stride", "reduction-of-pixels")  # fmt: skip
# Problems of the ghost norm: few pixels and many channels, with and without each kind of border.
FEW_PIXELS = {
    "one-pixel": Conv(n=5, c=70, h=1, w=1, k=90, r=1, s=1),
    "one-window": Conv(n=5, c=20, h=3, w=4, k=90, r=3, s=4),
    "5x5": Conv(n=5, c=60, h=5, w=5, k=70, padding=1),
    "strided-1x1": Conv(n=5, c=90, h=9, w=8, k=70, r=1, s=1, stride=(2, 3)),
    "strided": Conv(n=5, c=64, h=6, w=7, k=70, stride=2, padding=(1, 2)),
    "dilated": Conv(n=5, c=64, h=6, w=7, k=70, stride=(1, 2), dilation=(2, 1), padding=((0, 3), (2, 0))),
    "groups": Conv(n=5, c=128, h=3, w=4, k=140, groups=2, padding=1),
    "constant": Conv(n=5, c=60, h=3, w=4, k=70, padding=2, padding_mode="constant", padding_value=-2.0),
    "zeros-and-constant": Conv(
        n=5, c=60, h=3, w=4, k=70, padding=2, padding_mode=("zeros", "constant"), padding_value=3.0
    ),
    "reflect": Conv(n=5, c=60, h=3, w=4, k=70, padding=2, padding_mode="reflect"),
    "replicate": Conv(n=5, c=60, h=3, w=4, k=70, padding=(3, 1), stride=(1, 2), padding_mode="replicate"),
    "circular": Conv(n=5, c=60, h=3, w=4, k=70, padding=2, padding_mode=("circular", "zeros")),
    "border-over-image": Conv(n=5, c=60, h=2, w=2, k=70, r=5, s=5, padding=3),
    "300-channels": Conv(n=2, c=300, h=2, w=3, k=520, r=1, s=2),
}


def arrays_of(problem, kind, dtype, layout):
    expected = conv_expected(problem, kind)
    x, w, g = (getattr(expected, name).astype(dtype) for name in "xwg")
    return to_layout(x, layout), w, to_layout(g, layout), problem.options | dict(layout=layout)


@pytest.mark.core
@pytest.mark.parametrize("name", SOME)
def test_gradients_are_those_of_every_image_alone(name, isa, dtype, layout):
    problem = CONV_PROBLEMS[name].replace(n=5)
    x, w, g, options = arrays_of(problem, "normal", dtype, layout)
    grads = convx.conv2d_backward(g, x, w, per_sample=True, **options)
    assert grads[1].shape == (5, *problem.weight_shape)
    assert grads[2].shape == (5, problem.k)
    assert_same_bits(grads[0], convx.conv2d_backward(g, x, w, **options)[0], "grad_input")
    for image in range(5):
        alone = convx.conv2d_backward(g[image : image + 1], x[image : image + 1], w, **options)
        assert_same_bits(grads[1][image], alone[1], f"grad_weight of image {image}")
        assert_same_bits(grads[2][image], alone[2], f"grad_bias of image {image}")
        unbatched = convx.conv2d_backward(g[image], x[image], w, per_sample=True, **options)
        assert_same_bits(unbatched[1:], alone[1:], f"image {image} without a batch axis")


@pytest.mark.parametrize("name", CONV_PROBLEMS)
def test_gradients_of_whole_numbers(name, isa, dtype, layout):
    problem = CONV_PROBLEMS[name]
    x, w, g, options = arrays_of(problem, "integer", dtype, layout)
    options["algorithm"] = exact_algorithm(problem)
    grads = convx.conv2d_backward(g, x, w, per_sample=True, **options)
    expected = conv_expected(problem, "integer")
    wanted = reference.conv2d_backward(expected.g, expected.x, expected.w, per_sample=True, **problem.options)
    for gradient, truth, gradient_name in zip(grads[1:], wanted[1:], GRADIENTS[1:], strict=True):
        assert_equal(gradient, truth, f"{gradient_name} of {name}")


@pytest.mark.parametrize("name", CONV_PROBLEMS)
def test_norms_of_whole_numbers(name, isa, dtype, layout):
    """Sums of squares of integers below 2**53 are exact in any order, so every bit counts."""
    problem = CONV_PROBLEMS[name]
    x, w, g, options = arrays_of(problem, "integer", dtype, layout)
    options["algorithm"] = exact_algorithm(problem)
    check_norms(problem, convx.conv2d_grad_norms(g, x, w.shape, **options), "integer")


def check_norms(problem, norms, kind):
    __tracebackhide__ = True
    expected = conv_expected(problem, kind)
    wanted = reference.conv2d_grad_norms(expected.g, expected.x, expected.w.shape, **problem.options)
    assert max(each.max(initial=0) for each in wanted if np.isfinite(each).all()) < 2**53
    for got, truth, name in zip(norms, wanted, ("weight_norms", "bias_norms"), strict=True):
        assert got.dtype == np.float64
        assert_equal(got, truth, name)


@pytest.mark.core
@pytest.mark.parametrize("name", FEW_PIXELS)
def test_norms_by_products_of_pixels(name, isa, dtype, layout):
    problem = FEW_PIXELS[name]
    plans = convx.explain(
        "conv2d_grad_norms", problem.input_shape, problem.weight_shape, dtype=dtype, **problem.options
    )
    assert plans[0].algorithm == "ghost norm", plans[0]
    x, w, g, options = arrays_of(problem, "integer", dtype, layout)
    check_norms(problem, convx.conv2d_grad_norms(g, x, w.shape, **options), "integer")


@pytest.mark.parametrize("name", ["5x5", "dilated", "groups", "reflect"])
def test_both_ways_to_a_norm(name, isa, dtype):
    """The ghost norm against the float64 reference and the norm of the gradient, each within its own bound."""
    problem = FEW_PIXELS[name]
    x, w, g, options = arrays_of(problem, "normal", dtype, "NCHW")
    expected = conv_expected(problem)
    truth = reference.conv2d_grad_norms(expected.g, expected.x, w.shape, **problem.options)[0]
    by_pixels = convx.conv2d_grad_norms(g, x, w.shape, **options)[0]
    terms = problem.input_shape[1] * np.prod(g.shape[2:]) ** 2 * problem.r * problem.s
    sizes = (
        np.square(expected.g).sum(axis=(1, 2, 3)) * np.square(expected.x).sum(axis=(1, 2, 3)) * problem.r * problem.s
    )
    assert (np.abs(by_pixels - truth) <= 2.0**-53 * terms * sizes).all()
    assert (np.abs(by_pixels - truth) <= 1e-12 * truth).all()  # the actual error: no cancellation in normal numbers
    by_gradient = convx.conv2d_grad_norms(g, x, w.shape, algorithm="direct", **options)[0]
    rounding = 2.0**-24 if dtype == "float32" else 2.0**-53
    assert (np.abs(by_gradient - truth) <= 2 * rounding * np.sqrt(sizes * truth) * np.prod(g.shape[2:])).all()
    if dtype == "float32":
        assert (by_gradient != by_pixels).any()


def test_a_norm_where_everything_cancels(isa, dtype):
    """Two pixels of opposite gradients over equal inputs: both algorithms give zero, never a negative number."""
    x = np.ones((3, 200, 1, 2), dtype) * np.arange(1, 4, dtype=dtype)[:, None, None, None] / 3
    g = np.full((3, 210, 1, 2), 0.1, dtype)
    g[..., 1] = -g[..., 0]
    norms = convx.conv2d_grad_norms(g, x, (210, 200, 1, 1))[0]
    assert (norms >= 0).all()
    assert (norms <= 2.0**-53 * 4 * 400 * np.square(g).sum() * np.square(x).sum()).all()


@pytest.mark.core
@pytest.mark.parametrize("name", ["5x5", "dilated", "constant", "3x3-pad1", "depthwise"])
def test_inf_and_nan(name, isa, dtype, layout):
    """Inf and NaN reach exactly the norms of the images whose gradient has them."""
    problem = FEW_PIXELS.get(name) or CONV_PROBLEMS[name].replace(n=5)
    expected = conv_expected(problem, "integer")
    x, w, g = expected.x.copy(), expected.w, expected.g.copy()
    x[1, 3, 0, 1] = np.inf
    g[2, 0, 0, 0] = np.nan
    g[3, 5, -1, -1] = -np.inf
    x[3, 2] = 0
    options = problem.options | dict(layout=layout, algorithm=exact_algorithm(problem))
    arrays = [to_layout(array.astype(dtype), layout) for array in (g, x)]
    norms = convx.conv2d_grad_norms(*arrays, w.shape, **options)
    wanted = reference.conv2d_grad_norms(g, x, w.shape, **problem.options)
    assert not np.isfinite(wanted[0][1:3]).any() and np.isfinite(wanted[0][[0, 4]]).all()
    assert_equal(norms[0], wanted[0], f"weight_norms of {name}")
    assert_equal(norms[1], wanted[1], f"bias_norms of {name}")


def test_what_overflows_as_a_product_of_pixels_alone(isa):
    """1e160 squared overflows float64; the square of the gradient, 1e80, does not."""
    x, g = np.full((1, 40, 1, 1), 1e-80), np.full((1, 50, 1, 1), 1e160)
    norms = convx.conv2d_grad_norms(g, x, (50, 40, 1, 1))[0]
    np.testing.assert_allclose(norms, 2000 * 1e160, rtol=1e-12)


LARGE = {
    "winograd": Conv(n=7, c=32, h=28, w=28, k=32, padding=1),
    "gemm": Conv(n=6, c=64, h=15, w=14, k=80, r=1, s=1),
    "strided": Conv(n=5, c=24, h=45, w=47, k=32, stride=2, padding=1),
    "few channels": Conv(n=5, c=3, h=65, w=67, k=40, r=7, s=7, stride=2, padding=3),
    "depthwise": Conv(n=5, c=34, h=61, w=63, k=34, groups=34, padding=1),
    "groups": Conv(n=6, c=48, h=25, w=26, k=60, groups=6, padding=1),
    "pixels": Conv(n=7, c=96, h=5, w=6, k=100, padding=1),
}


def large_arrays(problem, dtype, layout):
    """As arrays_of, without the slow results of the reference."""
    options = problem.options | dict(layout=layout)
    x = to_layout(numbers(problem.input_shape, "normal", 1).astype(dtype), layout)
    w = numbers(problem.weight_shape, "normal", 2).astype(dtype)
    return x, w, numbers(convx.conv2d(x, w, **options).shape, "normal", 3).astype(dtype), options


@pytest.mark.parametrize("name", LARGE)
def test_the_same_bits(name, isa, dtype, layout):
    """For any number of threads, for any distribution of images, alone or in a batch, and for views."""
    problem = LARGE[name]
    x, w, g, options = large_arrays(problem, dtype, layout)

    def everything(g, x):
        mask = (False, True, True)
        grads = convx.conv2d_backward(g, x, w, per_sample=True, output_mask=mask, **options)
        return *grads[1:], *convx.conv2d_grad_norms(g, x, w.shape, **options)

    with convx.threads(1):
        expected = everything(g, x)
    for threads in (2, 3, 4):
        with convx.threads(threads):
            assert_same_bits(everything(g, x), expected, f"{name}, {threads} threads")
    for image in (0, problem.n - 1):
        part = slice(image, image + 1)
        alone = everything(g[part], x[part])
        assert_same_bits(alone, tuple(each[part] for each in expected), f"{name}, image {image}")
    mirrored = [np.flip(np.flip(array, (0, 2)).copy(), (0, 2)) for array in (g, x)]
    assert_same_bits(everything(*mirrored), expected, f"{name}, views")


@pytest.mark.core
@pytest.mark.parametrize("name", ["5x5", "3x3-stride2"])
def test_views(name, isa, layout):
    problem = (FEW_PIXELS.get(name) or CONV_PROBLEMS[name]).replace(n=2)
    x, w, g, options = arrays_of(problem, "normal", "float32", layout)
    grads = convx.conv2d_backward(g, x, w, per_sample=True, **options)
    norms = convx.conv2d_grad_norms(g, x, w.shape, **options)
    for view_name, view in views(x):
        assert_same_bits(convx.conv2d_backward(g, view, w, per_sample=True, **options), grads, view_name)
        assert_same_bits(convx.conv2d_grad_norms(g, view, w.shape, **options), norms, view_name)
    for view_name, view in views(g):
        assert_same_bits(convx.conv2d_backward(view, x, w, per_sample=True, **options), grads, view_name)
        assert_same_bits(convx.conv2d_grad_norms(view, x, w.shape, **options), norms, view_name)


@pytest.mark.core
def test_sizes_of_zero_and_masks(isa, dtype, layout):
    w = np.ones((4, 3, 3, 3), dtype)
    x, g = to_layout(np.zeros((0, 3, 6, 7), dtype), layout), to_layout(np.zeros((0, 4, 4, 5), dtype), layout)
    grads = convx.conv2d_backward(g, x, w, layout=layout, per_sample=True)
    assert [grad.shape for grad in grads] == [x.shape, (0, 4, 3, 3, 3), (0, 4)]
    assert [norms.shape for norms in convx.conv2d_grad_norms(g, x, w.shape, layout=layout)] == [(0,), (0,)]
    x, w = to_layout(np.zeros((2, 0, 6, 7), dtype), layout), np.ones((4, 0, 3, 3), dtype)
    g = to_layout(np.ones((2, 4, 4, 5), dtype), layout)
    grads = convx.conv2d_backward(g, x, w, layout=layout, per_sample=True, output_mask=(False, True, True))
    assert grads[0] is None and grads[1].shape == (2, 4, 0, 3, 3)
    assert_equal(grads[2], np.full((2, 4), 20.0), "grad_bias")
    norms = convx.conv2d_grad_norms(g, x, w.shape, layout=layout)
    assert_equal(norms[0], np.zeros(2), "norms of no weights")
    assert_equal(norms[1], np.full(2, 1600.0), "norms of the bias")
    assert [each.shape for each in convx.conv2d_grad_norms(g[0], x[0], w.shape, layout=layout)] == [(), ()]


@pytest.mark.parametrize("name", LARGE)
def test_explain(name, isa, dtype):
    problem = LARGE[name]
    shapes = problem.input_shape, problem.weight_shape
    with convx.threads(3):
        whole = convx.explain("conv2d_backward", *shapes, dtype=dtype, **problem.options)
        apart = convx.explain("conv2d_backward", *shapes, per_sample=True, dtype=dtype, **problem.options)
        norms = convx.explain("conv2d_grad_norms", *shapes, dtype=dtype, **problem.options)
    assert [plan.name for plan in apart] == list(GRADIENTS)
    assert apart[0] == whole[0]
    assert apart[1].algorithm == whole[1].algorithm
    assert (apart[1].flops, apart[1].tasks, apart[1].threads) == (whole[1].flops, problem.n, 3)
    assert [plan.name for plan in norms] == ["weight_norms", "bias_norms"]
    assert (norms[0].algorithm == "ghost norm") == (name == "pixels")
    assert norms[0].tasks == problem.n and norms[0].threads == 3


@pytest.mark.parametrize("name", LARGE)
def test_the_scratch_is_what_a_call_takes(name, isa):
    """As in test_explain.py, for one thread, which runs the images in sequence."""
    problem = LARGE[name]
    x, w, g, options = large_arrays(problem, "float32", "NCHW")
    with convx.threads(1):
        (plan, _) = convx.explain("conv2d_grad_norms", x.shape, w.shape, **problem.options)
        _cpu.workspace_release()
        convx.conv2d_grad_norms(g, x, w.shape, **options)
        taken = _cpu.config()["workspace_cached_bytes"]
    assert plan.scratch_bytes <= taken <= plan.scratch_bytes * 9 / 8 + 2**16, plan


def test_the_sum_over_images_is_the_gradient():
    """Per-sample gradients add up to the gradient, and the norms are theirs, on exact numbers."""
    problem = CONV_PROBLEMS["3x3-stride2"].replace(n=4)
    x, w, _ = conv_data(problem, "integer")
    g = numbers(convx.conv2d(x, w, **problem.options).shape, "integer", 9)
    whole = convx.conv2d_backward(g, x, w, **problem.options)
    apart = convx.conv2d_backward(g, x, w, per_sample=True, **problem.options)
    for one, other in zip(whole[1:], apart[1:], strict=True):
        assert_equal(other.sum(axis=0), one, "sum")
    norms = convx.conv2d_grad_norms(g, x, w.shape, **problem.options)
    for one, other in zip(norms, apart[1:], strict=True):
        assert_equal(np.square(other).reshape(4, -1).sum(axis=1), one, "squares")
