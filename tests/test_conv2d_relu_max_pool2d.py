"""The fused training operation: the values, the saved codes and the gradients of the three operations in sequence."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import convx
from convx import reference
from support import (
    GRADIENTS,
    Conv,
    assert_equal,
    assert_same_bits,
    assert_within,
    broadcasts,
    conv_bound,
    conv_data,
    conv_expected,
    from_layout,
    numbers,
    rounding_bound,
    straddle,
    to_layout,
    views,
)


def pool(kernel_size=2, stride=None, padding=0):
    return dict(pool_kernel_size=kernel_size, pool_stride=stride, pool_padding=padding)


PROBLEMS = {
    "lenet": (Conv(c=1, h=28, w=28, k=6, r=5, s=5, padding=2), pool()),
    "vgg": (Conv(c=12, h=12, w=14, k=32, padding=1), pool()),
    "winograd": (Conv(c=16, h=12, w=14, k=32, padding=1), pool()),
    "odd-sizes": (Conv(c=5, h=11, w=13, k=9, padding=1), pool()),
    "first-layer": (Conv(c=3, h=29, w=31, k=16, r=7, s=7, stride=2, padding=3), pool(3, 2, 1)),
    "pool-3x3-stride2": (Conv(c=4, h=12, w=13, k=7, padding=1), pool(3, 2)),
    "pool-3x3-stride1": (Conv(c=4, h=9, w=10, k=7, padding=1), pool(3, 1, 1)),
    "pool-3x3": (Conv(c=4, h=14, w=15, k=7, padding=1), pool(3)),
    "pool-2x3": (Conv(c=4, h=11, w=12, k=7), pool((2, 3), (2, 1), (1, 0))),
    "pool-stride-over-kernel": (Conv(c=4, h=13, w=15, k=7), pool(2, 3)),
    "pool-per-side": (Conv(c=4, h=9, w=10, k=7), pool(4, 2, ((2, 0), (1, 2)))),
    "pool-widest": (Conv(c=4, h=9, w=10, k=7), pool((3, 4), 2, ((2, 1), (3, 0)))),
    "pool-widest-stride-over-kernel": (Conv(c=4, h=9, w=10, k=7), pool(2, 3, 1)),
    "pool-same": (Conv(c=4, h=9, w=10, k=7), pool(3, 2, "same")),
    "pool-same-lower": (Conv(c=4, h=9, w=10, k=7), pool(2, 1, "same_lower")),
    "pool-1x1": (Conv(c=4, h=6, w=7, k=7), pool(1)),
    "pool-global": (Conv(c=4, h=9, w=8, k=7), pool((7, 6))),
    "pool-15x17": (Conv(n=1, c=2, h=20, w=21, k=3, padding=1), pool((15, 17), 2)),
    "1x1": (Conv(c=19, h=8, w=10, k=33, r=1, s=1), pool()),
    "conv-stride2": (Conv(c=6, h=17, w=18, k=8, stride=2, padding=1), pool()),
    "conv-dilation": (Conv(c=6, h=14, w=15, k=8, dilation=2, padding=((2, 1), (0, 3))), pool()),
    "conv-same-stride": (Conv(c=3, h=13, w=14, k=8, stride=2, padding="same"), pool()),
    "groups": (Conv(c=12, h=8, w=10, k=20, groups=4, padding=1), pool()),
    "depthwise": (Conv(c=17, h=10, w=12, k=17, groups=17, padding=1), pool()),
    "photo": (Conv(n=1, c=1, h=21, w=43, k=1, padding=1), pool()),
    "many-channels-5x5": (Conv(n=2, c=40, h=9, w=10, k=70, r=5, s=5, padding=2), pool()),
    "reduction-57": (Conv(n=1, c=57, h=6, w=6, k=9, padding=1), pool()),
}


def fused(problem, pooling, x, w, b, layout):
    conv_options = (problem.stride, problem.padding, problem.dilation, problem.groups)
    return convx.conv2d_relu_max_pool2d(x, w, b, *conv_options, layout=layout, **pooling)


def run(problem, pooling, arrays, layout, grad):
    """Output, codes and gradients from convx, all in NCHW."""
    x, w, b = arrays
    output, saved = fused(problem, pooling, to_layout(x, layout), w, b, layout)
    grad_input, *others = convx.conv2d_relu_max_pool2d_backward(to_layout(grad, layout), saved)
    return from_layout(output, layout), from_layout(saved.codes, layout), (from_layout(grad_input, layout), *others)


def truth_codes(conv, pooling):
    size, stride, padding = pooling.values()
    output, codes = reference.max_pool2d(np.maximum(conv, 0), size, stride, padding, return_codes=True)
    return np.where(output > 0, codes, 255)


def truth(problem, pooling, arrays):
    """Convolution, output and codes from the reference's three operations in sequence."""
    conv = reference.conv2d(*arrays, **problem.options)
    size, stride, padding = pooling.values()
    return conv, reference.max_pool2d(np.maximum(conv, 0), size, stride, padding), truth_codes(conv, pooling)


def true_gradients(problem, pooling, conv, codes, x, w, g):
    size, stride, padding = pooling.values()
    grad_relu = reference.max_pool2d_backward(g, codes, conv.shape, size, stride, padding)
    return reference.conv2d_backward(reference.relu_backward(grad_relu, np.maximum(conv, 0)), x, w, **problem.options)


@pytest.mark.core
@pytest.mark.parametrize("name", [name for name in PROBLEMS if name != "winograd"])  # its transforms round
def test_exact(name, isa, dtype, layout):
    """Whole numbers: values, codes (ties abound) and gradients are those of the three operations, in every bit."""
    problem, pooling = PROBLEMS[name]
    arrays = conv_data(problem, "integer")
    conv, output, codes = truth(problem, pooling, arrays)
    g = numbers(output.shape, "integer", 5)
    actual = run(problem, pooling, [a.astype(dtype) for a in arrays], layout, grad=g.astype(dtype))
    assert actual[0].dtype == dtype
    assert actual[1].dtype == np.uint8
    assert_equal(actual[0], output, f"output of {name}")
    assert_equal(actual[1], codes, f"codes of {name}")
    expected = true_gradients(problem, pooling, conv, codes, *arrays[:2], g)
    for gradient_name, gradient, wanted in zip(GRADIENTS, actual[2], expected, strict=True):
        assert gradient.dtype == dtype
        assert_equal(gradient, wanted, f"{gradient_name} of {name}")


@pytest.mark.parametrize("name", PROBLEMS)
def test_rounding(name, isa, dtype, layout):
    """Values within the bound of conv2d; gradients, for the saved taps, within that of conv2d_backward."""
    problem, pooling = PROBLEMS[name]
    expected = conv_expected(problem)
    x, w, b = expected.x, expected.w, expected.b
    conv, output, codes = truth(problem, pooling, (x, w, b))
    size, stride, padding = pooling.values()
    g = numbers(output.shape, "normal", 6)
    got, saved, gradients = run(problem, pooling, [a.astype(dtype) for a in (x, w, b)], layout, grad=g.astype(dtype))

    bound = conv_bound(expected, "output", dtype)
    assert_within(got, output, reference.max_pool2d(bound, size, stride, padding), f"output of {name}")
    clear = np.ones(codes.shape, bool)  # windows whose tap no rounding can change
    for seed in range(8):
        signs = np.random.default_rng(seed).choice((-1, 1), conv.shape)
        clear &= codes == truth_codes(conv + signs * bound, pooling)
    assert clear.mean() > 0.99
    assert_equal(saved[clear], codes[clear], f"codes of {name}")

    def through_pool(grad):
        return reference.max_pool2d_backward(grad, saved, conv.shape, size, stride, padding)

    wanted = reference.conv2d_backward(through_pool(g), x, w, **problem.options)
    terms = reference.conv2d_backward(
        through_pool(np.ones_like(g)), np.ones_like(x), np.ones_like(w), **problem.options
    )
    magnitude = reference.conv2d_backward(through_pool(np.abs(g)), np.abs(x), np.abs(w), **problem.options)
    for position, gradient_name in enumerate(GRADIENTS):
        allowed = rounding_bound(terms[position], magnitude[position], dtype)
        assert_within(gradients[position], wanted[position], allowed, f"{gradient_name} of {name}")


@pytest.mark.core
@pytest.mark.parametrize("name", PROBLEMS)
def test_value_has_the_bits_of_the_three_operations(name, isa, dtype, layout):
    problem, pooling = PROBLEMS[name]
    x, w, b = (a.astype(dtype) for a in conv_data(problem))
    x = to_layout(x, layout)
    size, stride, padding = pooling.values()
    relu = convx.relu(convx.conv2d(x, w, b, layout=layout, **problem.options))
    output, saved = fused(problem, pooling, x, w, b, layout)
    expected, codes = convx.max_pool2d(relu, size, stride, padding, layout=layout, return_codes=True)
    assert_same_bits(output, expected, f"output of {name}")
    assert_same_bits(saved.codes, np.where(expected > 0, codes, np.uint8(255)), f"codes of {name}")


# More than 1 MiB of convolution output, which is computed in row blocks.
BANDS = {
    "2x2": (Conv(n=2, c=3, h=96, w=110, k=28, padding=1), pool()),
    "3x3-stride2": (Conv(n=1, c=2, h=113, w=111, k=28, padding=1), pool(3, 2, 1)),
    "3x3-stride1": (Conv(n=1, c=2, h=90, w=130, k=28, padding=1), pool(3, 1, 1)),
    "first-layer": (Conv(n=1, c=3, h=224, w=224, k=24, r=7, s=7, stride=2, padding=3), pool(3, 2, 1)),
    "no-padding": (Conv(n=1, c=1, h=300, w=310, k=4, r=5, s=3), pool(2, 3)),
    "1x1-stride3": (Conv(n=1, c=2, h=300, w=310, k=32, r=1, s=1, stride=3), pool()),
    "dilation": (Conv(n=1, c=2, h=120, w=100, k=28, dilation=(3, 1), padding=(2, 1)), pool(5, 2, 2)),
}


@pytest.mark.parametrize("kind", ["normal", "integer"])
@pytest.mark.parametrize("name", BANDS)
def test_bands_have_the_bits_of_the_whole(name, kind, isa, dtype, layout):
    """Values, codes and grad_input have the same bits; for whole numbers also the sums over all rows."""
    problem, pooling = BANDS[name]
    x, w, b = (a.astype(dtype) for a in conv_data(problem, kind))
    x = to_layout(x, layout)
    size, stride, padding = pooling.values()
    relu = convx.relu(convx.conv2d(x, w, b, layout=layout, **problem.options))
    expected, codes = convx.max_pool2d(relu, size, stride, padding, layout=layout, return_codes=True)
    g = numbers(expected.shape, kind, 6).astype(dtype)
    grad = convx.relu_backward(
        convx.max_pool2d_backward(g, codes, relu.shape, size, stride, padding, layout=layout), relu
    )
    wanted = convx.conv2d_backward(grad, x, w, layout=layout, **problem.options)
    results = []
    for threads in (1, 3):
        with convx.threads(threads):
            output, saved = fused(problem, pooling, x, w, b, layout)
            results.append((output, saved.codes, *convx.conv2d_relu_max_pool2d_backward(g, saved)))
    assert_same_bits(results[1], results[0], f"{name}, 3 threads")
    assert_same_bits(results[0][0], expected, f"output of {name}")
    assert_same_bits(results[0][1], np.where(expected > 0, codes, np.uint8(255)), f"codes of {name}")
    assert_same_bits(results[0][2], wanted[0], f"grad_input of {name}")
    if kind == "integer":
        assert_same_bits(results[0][3:], wanted[1:], f"grad_weight and grad_bias of {name}")


def test_bands_and_an_infinite_weight(isa, dtype, layout):
    """The convolution then skips taps one by one; row blocks keep its order of sums."""
    problem, pooling = BANDS["2x2"]
    x, w, b = (a.astype(dtype) for a in conv_data(problem))
    w[3, 1, 0, 0] = np.inf
    x = to_layout(x, layout)
    relu = convx.relu(convx.conv2d(x, w, b, layout=layout, **problem.options))
    expected = convx.max_pool2d(relu, 2, layout=layout)
    output, _ = fused(problem, pooling, x, w, b, layout)
    assert_same_bits(output, expected, "output")


@pytest.mark.core
def test_channels_and_pixels_straddle_tiles(isa, dtype, layout):
    sizes = straddle(1, 4, 6, 8, 12, 14, 16, 24, 32)
    for k, width in [*((k, 10) for k in sizes), *((9, w) for w in straddle(8, 12, 16, 32, 64))]:
        problem, pooling = Conv(n=1, c=3, h=6, w=width, k=k, padding=1), pool()
        arrays = conv_data(problem, "integer")
        conv, output, codes = truth(problem, pooling, arrays)
        g = numbers(output.shape, "integer", 5)
        actual = run(problem, pooling, [a.astype(dtype) for a in arrays], layout, grad=g.astype(dtype))
        assert_equal(actual[0], output, problem)
        assert_equal(actual[1], codes, problem)
        expected = true_gradients(problem, pooling, conv, codes, *arrays[:2], g)
        for gradient_name, gradient, wanted in zip(GRADIENTS, actual[2], expected, strict=True):
            assert_equal(gradient, wanted, f"{gradient_name} of {problem}")


@pytest.mark.core
@pytest.mark.parametrize("name", ["vgg", "depthwise", "pool-3x3-stride2", "lenet", "many-channels-5x5"])
def test_output_mask_and_no_bias(name, isa, dtype, layout):
    problem, pooling = PROBLEMS[name]
    x, w, _ = (a.astype(dtype) for a in conv_data(problem))
    output, saved = fused(problem, pooling, to_layout(x, layout), w, None, layout)
    g = numbers(output.shape, "normal", 8).astype(dtype)
    everything = convx.conv2d_relu_max_pool2d_backward(g, saved)
    for mask in itertools.product((False, True), repeat=3):
        some = convx.conv2d_relu_max_pool2d_backward(g, saved, output_mask=mask)
        wanted = tuple(gradient if asked else None for gradient, asked in zip(everything, mask, strict=True))
        assert_same_bits(some, wanted, f"{name}, output_mask {mask}")


@pytest.mark.core
@pytest.mark.parametrize("name", ["vgg", "pool-3x3-stride2"])
def test_unbatched(name, isa, dtype, layout):
    problem, pooling = PROBLEMS[name]
    problem = problem.replace(n=1)
    x, w, b = (a.astype(dtype) for a in conv_data(problem))
    x = to_layout(x, layout)
    batch, saved_batch = fused(problem, pooling, x, w, b, layout)
    output, saved = fused(problem, pooling, x[0], w, b, layout)
    assert_same_bits(output, batch[0], name)
    assert_same_bits(saved.codes, saved_batch.codes[0], name)
    g = numbers(batch.shape, "normal", 8).astype(dtype)
    gradients = convx.conv2d_relu_max_pool2d_backward(g[0], saved)
    expected = convx.conv2d_relu_max_pool2d_backward(g, saved_batch)
    assert_same_bits(gradients, (expected[0][0], *expected[1:]), name)


@pytest.mark.core
@pytest.mark.parametrize("name", ["odd-sizes", "pool-3x3-stride1", "photo"])
def test_views(name, isa, dtype, layout):
    problem, pooling = PROBLEMS[name]
    arrays = [a.astype(dtype) for a in conv_data(problem)]
    arrays[0] = to_layout(arrays[0], layout)
    expected, saved = fused(problem, pooling, *arrays, layout)
    g = numbers(expected.shape, "normal", 8).astype(dtype)
    gradients = convx.conv2d_relu_max_pool2d_backward(g, saved)
    for position, argument in enumerate(("input", "weight", "bias")):
        for what, view in views(arrays[position]):
            strided = list(arrays)
            strided[position] = view
            output, saved_strided = fused(problem, pooling, *strided, layout)
            assert_same_bits(output, expected, f"{name}, {argument} {what}")
            assert_same_bits(saved_strided.codes, saved.codes, f"{name}, {argument} {what}, codes")
            actual = convx.conv2d_relu_max_pool2d_backward(g, saved_strided)
            assert_same_bits(actual, gradients, f"{name}, {argument} {what}, gradients")
    for what, view in views(g):
        actual = convx.conv2d_relu_max_pool2d_backward(view, saved)
        assert_same_bits(actual, gradients, f"{name}, grad_output {what}")
    for what, view in broadcasts(g):
        actual = convx.conv2d_relu_max_pool2d_backward(view, saved)
        expected = convx.conv2d_relu_max_pool2d_backward(view.copy(), saved)
        assert_same_bits(actual, expected, f"{name}, grad_output {what}")


@pytest.mark.core
def test_dead_windows_stop_every_gradient(isa, dtype, layout):
    """Where every tap is <= 0 the value is 0, the code 255 and the gradient 0, even for an upstream inf or NaN."""
    x = np.ones((1, 2, 8, 36), dtype)
    x[:, :, :, 18:] = -1
    w = np.ones((5, 2, 1, 1), dtype)
    output, saved = fused(Conv(n=1, c=2, r=1, s=1), pool(), to_layout(x, layout), w, None, layout)
    output, codes = from_layout(output, layout), from_layout(saved.codes, layout)
    assert (output[..., :9] == 2).all()
    assert (output[..., 9:] == 0).all()
    assert (codes[..., :9] == 0).all()
    assert (codes[..., 9:] == 255).all()
    g = np.ones(output.shape, dtype)
    g[..., 9::2], g[..., 10::2] = np.inf, np.nan
    grad_input, grad_weight, grad_bias = convx.conv2d_relu_max_pool2d_backward(to_layout(g, layout), saved)
    grad_input = from_layout(grad_input, layout)
    assert (grad_input[:, :, ::2, :18:2] == 5).all()
    assert np.count_nonzero(grad_input) == grad_input[:, :, ::2, :18:2].size
    assert (grad_weight == 4 * 9).all()
    assert (grad_bias == 4 * 9).all()


@pytest.mark.core
@pytest.mark.parametrize("name", ["lenet", "first-layer", "many-channels-5x5", "conv-dilation"])
@pytest.mark.parametrize("where", ["input", "grad_output"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_inf_and_nan_meet_pixels_that_were_not_chosen(value, where, name, isa, layout):
    """Dead windows have gradient zero, and zero times inf is NaN; taps in the border add nothing."""
    problem, pooling = PROBLEMS[name]
    x, w, b = (a.astype("float32") for a in conv_data(problem))
    output, saved = fused(problem, pooling, to_layout(x, layout), w, b, layout)
    g = from_layout(np.ones_like(output), layout).copy()
    if where == "input":
        x[0, 0, 4, 5] = value
        output, saved = fused(problem, pooling, to_layout(x, layout), w, b, layout)
    else:
        g[0, :, 0, 0] = value
    size, stride, padding = pooling.values()
    conv_shape = convx.conv2d(x, w, b, **problem.options).shape
    grad = convx.max_pool2d_backward(g, from_layout(saved.codes, layout), conv_shape, size, stride, padding)
    wanted = convx.conv2d_backward(grad, x, w, **problem.options)
    actual = convx.conv2d_relu_max_pool2d_backward(to_layout(g, layout), saved)
    for position in (1, 2):
        assert_equal(np.isnan(actual[position]), np.isnan(wanted[position]), GRADIENTS[position])
        assert_equal(np.isinf(actual[position]), np.isinf(wanted[position]), GRADIENTS[position])


@pytest.mark.core
@pytest.mark.parametrize("name", ["lenet", "first-layer", "many-channels-5x5"])
def test_gradients_whatever_the_batch_and_threads(name, isa, dtype, layout):
    problem, pooling = PROBLEMS[name]
    problem = problem.replace(n=19)
    x, w, b = (a.astype(dtype) for a in conv_data(problem))
    output, saved = fused(problem, pooling, to_layout(x, layout), w, b, layout)
    g = numbers(output.shape, "normal", 8).astype(dtype)
    results = []
    for threads in (1, 2, 4):
        with convx.threads(threads):
            results.append(convx.conv2d_relu_max_pool2d_backward(g, saved))
    assert_same_bits(results[1], results[0], f"{name}, 2 threads")
    assert_same_bits(results[2], results[0], f"{name}, 4 threads")
    _, saved_one = fused(problem.replace(n=1), pooling, to_layout(x, layout)[7:8], w, b, layout)
    one = convx.conv2d_relu_max_pool2d_backward(g[7:8], saved_one)
    assert_same_bits(one[0], results[0][0][7:8], f"{name}, one image, grad_input")


@pytest.mark.core
def test_nan_passes_value_and_gradient(isa, dtype, layout):
    x = np.ones((1, 1, 4, 34), dtype)
    x[0, 0, 1, 5], x[0, 0, 2, 20] = np.nan, np.nan
    output, saved = fused(
        Conv(n=1, c=1, r=1, s=1), pool(), to_layout(x, layout), np.ones((1, 1, 1, 1), dtype), None, layout
    )
    output, codes = from_layout(output, layout), from_layout(saved.codes, layout)
    assert np.argwhere(np.isnan(output)).tolist() == [[0, 0, 0, 2], [0, 0, 1, 10]]
    assert codes[0, 0, 0, 2] == 3
    assert codes[0, 0, 1, 10] == 0
    grad_input, _, grad_bias = convx.conv2d_relu_max_pool2d_backward(to_layout(np.ones_like(output), layout), saved)
    assert from_layout(grad_input, layout)[0, 0, 1, 5] == 1
    assert grad_bias == [2 * 17]


@pytest.mark.core
def test_no_images(isa, dtype, layout):
    shape = (0, 3, 8, 8) if layout == "NCHW" else (0, 8, 8, 3)
    w = np.ones((5, 3, 3, 3), dtype)
    output, saved = fused(Conv(padding=1), pool(), np.ones(shape, dtype), w, None, layout)
    assert output.shape == ((0, 5, 4, 4) if layout == "NCHW" else (0, 4, 4, 5))
    grad_input, grad_weight, grad_bias = convx.conv2d_relu_max_pool2d_backward(output, saved)
    assert grad_input.shape == shape
    assert_equal(grad_weight, np.zeros(w.shape), "grad_weight")
    assert_equal(grad_bias, np.zeros(5), "grad_bias")


def test_backward_accepts_what_the_reference_saved(isa, dtype, layout):
    problem, pooling = PROBLEMS["vgg"]
    x, w, b = (a.astype(dtype) for a in conv_data(problem, "integer"))
    x = to_layout(x, layout)
    options = dict(padding=problem.padding, layout=layout, **pooling)
    output, saved = convx.conv2d_relu_max_pool2d(x, w, b, **options)
    expected, saved_by_reference = reference.conv2d_relu_max_pool2d(x, w, b, **options)
    assert type(saved) is type(saved_by_reference)
    assert_equal(output, expected, "output")
    g = numbers(output.shape, "integer", 8).astype(dtype)
    assert_same_bits(
        convx.conv2d_relu_max_pool2d_backward(g, saved_by_reference),
        convx.conv2d_relu_max_pool2d_backward(g, saved),
        "gradients",
    )
