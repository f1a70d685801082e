"""max_pool2d and its backward: values, indices and codes of a loop over each window."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import convx
from convx import reference
from support import (
    POOL_PROBLEMS,
    Pool,
    assert_equal,
    assert_same_bits,
    broadcasts,
    from_layout,
    numbers,
    straddle,
    to_layout,
    views,
)

KINDS = ("normal", "ties", "special", "dead")


def pool_data(shape, kind, seed=0):
    """normal: no ties. ties: three values. special: NaN, infinities, zeros of both signs. dead: mostly -inf."""
    rng = np.random.default_rng(seed)
    if kind == "normal":
        return rng.permutation(np.prod(shape)).reshape(shape) - np.prod(shape) / 2
    if kind == "ties":
        return rng.integers(-1, 2, shape).astype(float)
    if kind == "special":
        return rng.choice(
            [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0], shape, p=[0.1, 0.1, 0.3, 0.15, 0.15, 0.1, 0.1]
        )
    return rng.choice([-np.inf, -3.0, np.nan], shape, p=[0.9, 0.08, 0.02])


def fits_codes(problem):
    size = problem.kernel_size
    taps = size * size if isinstance(size, int) else size[0] * size[1]
    return taps <= 255


def check_forward(problem, x, dtype, layout, context=""):
    __tracebackhide__ = True
    array = to_layout(x, layout).astype(dtype)
    expected, indices = reference.max_pool2d(x, return_indices=True, **problem.options)
    output = convx.max_pool2d(array, layout=layout, **problem.options)
    assert isinstance(output, np.ndarray)
    assert_same_bits(from_layout(output, layout), expected.astype(dtype), f"output of {problem} {context}")
    again, actual = convx.max_pool2d(array, layout=layout, return_indices=True, **problem.options)
    assert_same_bits(again, output, f"output beside indices of {problem} {context}")
    assert actual.dtype == np.int64
    assert_equal(from_layout(actual, layout), indices, f"indices of {problem} {context}")
    if fits_codes(problem):
        codes = reference.max_pool2d(x, return_codes=True, **problem.options)[1]
        again, actual = convx.max_pool2d(array, layout=layout, return_codes=True, **problem.options)
        assert_same_bits(again, output, f"output beside codes of {problem} {context}")
        assert actual.dtype == np.uint8
        assert_equal(from_layout(actual, layout), codes, f"codes of {problem} {context}")


@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", POOL_PROBLEMS)
def test_forward(name, kind, isa, dtype, layout):
    problem = POOL_PROBLEMS[name]
    check_forward(problem, pool_data(problem.input_shape, kind), dtype, layout, kind)


@pytest.mark.core
@pytest.mark.parametrize("kind", ["normal", "ties"])
@pytest.mark.parametrize("name", POOL_PROBLEMS)
def test_backward(name, kind, isa, dtype, layout):
    """From indices and from codes, on whole numbers, so that overlapping windows add up exactly."""
    problem = POOL_PROBLEMS[name]
    x = pool_data(problem.input_shape, kind)
    output, indices = reference.max_pool2d(x, return_indices=True, **problem.options)
    g = numbers(output.shape, "integer", 9)
    expected = reference.max_pool2d_backward(g, indices, x.shape, **problem.options)
    shape = to_layout(x, layout).shape
    chosen = [indices]
    if fits_codes(problem):
        chosen.append(reference.max_pool2d(x, return_codes=True, **problem.options)[1])
    for tap in chosen:
        grad_input = convx.max_pool2d_backward(
            to_layout(g, layout).astype(dtype), to_layout(tap, layout), shape, layout=layout, **problem.options
        )
        assert grad_input.dtype == dtype
        assert_equal(from_layout(grad_input, layout), expected, f"{tap.dtype} of {problem}")


@pytest.mark.parametrize("name", POOL_PROBLEMS)
def test_indices_and_codes_give_the_same_bits(name, isa, dtype, layout):
    """Overlapping windows add in the same order from indices and from codes, on numbers whose sum depends on it."""
    problem = POOL_PROBLEMS[name]
    if not fits_codes(problem):
        problem = problem.replace(kernel_size=(15, 17))
    x = to_layout(pool_data(problem.input_shape, "ties"), layout).astype(dtype)
    output, indices = convx.max_pool2d(x, layout=layout, return_indices=True, **problem.options)
    codes = convx.max_pool2d(x, layout=layout, return_codes=True, **problem.options)[1]
    g = numbers(output.shape, "normal", 3).astype(dtype)
    assert_same_bits(
        convx.max_pool2d_backward(g, codes, x.shape, layout=layout, **problem.options),
        convx.max_pool2d_backward(g, indices, x.shape, layout=layout, **problem.options),
        problem,
    )


@pytest.mark.core
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(2, 2, 0), (3, 2, 1), (3, 2, 0), (3, 1, 1), (2, 1, 0), (3, 3, 0), (5, 1, 2), (2, 3, 1)],
)
def test_sizes_straddle_vectors(kernel, stride, padding, isa, dtype, layout):
    sizes = straddle(4, 8, 16, 32, 64)
    for width in sizes:
        if width + 2 * padding >= kernel:
            problem = Pool(n=1, c=2, h=5, w=width, kernel_size=kernel, stride=stride, padding=padding)
            for kind in ("ties", "special"):
                check_forward(problem, pool_data(problem.input_shape, kind, width), dtype, layout, kind)
    for channels in sizes:
        problem = Pool(n=1, c=channels, h=5, w=6, kernel_size=kernel, stride=stride, padding=padding)
        check_forward(problem, pool_data(problem.input_shape, "special", channels), dtype, layout)


@pytest.mark.core
def test_backward_sizes_straddle_vectors(isa, dtype, layout):
    for kernel, stride, padding in [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0)]:
        for channels, width in [*((2, w) for w in straddle(8, 16, 32, 64)), *((c, 7) for c in straddle(4, 8, 16, 32))]:
            problem = Pool(n=1, c=channels, h=5, w=width, kernel_size=kernel, stride=stride, padding=padding)
            x = pool_data(problem.input_shape, "ties", width)
            output, codes = reference.max_pool2d(x, return_codes=True, **problem.options)
            g = numbers(output.shape, "integer", channels)
            grad_input = convx.max_pool2d_backward(
                to_layout(g, layout).astype(dtype),
                to_layout(codes, layout),
                to_layout(x, layout).shape,
                layout=layout,
                **problem.options,
            )
            expected = reference.max_pool2d_backward(g, codes, x.shape, **problem.options)
            assert_equal(from_layout(grad_input, layout), expected, problem)


@pytest.mark.core
def test_ties_go_to_the_first_tap(isa, dtype, layout):
    x = np.full((1, 20, 6, 40), 3, dtype)
    codes = convx.max_pool2d(to_layout(x, layout), 2, layout=layout, return_codes=True)[1]
    assert (codes == 0).all()
    zeros = np.zeros((1, 20, 6, 40), dtype)
    zeros[..., ::2] = -0.0
    output, codes = convx.max_pool2d(to_layout(zeros, layout), 2, layout=layout, return_codes=True)
    assert (codes == 0).all(), "-0.0 and 0.0 are equal"
    assert np.signbit(output).all(), "the value is the first tap's own"


@pytest.mark.core
def test_the_last_nan_is_chosen(isa, dtype, layout):
    for first, last in itertools.combinations_with_replacement(range(9), 2):
        window = np.full(9, 5.0)
        window[[first, last]] = np.nan
        x = np.tile(window.reshape(3, 3), (1, 19, 2, 21)).astype(dtype)
        output, codes = convx.max_pool2d(to_layout(x, layout), 3, layout=layout, return_codes=True)
        assert np.isnan(output).all()
        assert (codes == last).all(), f"NaN at {first} and {last}"


@pytest.mark.core
def test_all_minus_infinity_gives_the_first_valid_tap(isa, dtype, layout):
    x = np.full((1, 3, 7, 9), -np.inf, dtype)
    for padding, dilation in [(1, 1), (0, 1), (1, 2), (2, 2)]:
        problem = Pool(n=1, h=7, w=9, kernel_size=3, stride=2, padding=padding, dilation=dilation)
        check_forward(problem, x.astype("float64"), dtype, layout)
        output, indices = convx.max_pool2d(to_layout(x, layout), layout=layout, return_indices=True, **problem.options)
        assert (output == -np.inf).all()
        phase = -padding % dilation if padding else 0
        assert from_layout(indices, layout)[0, 0, 0, 0] == phase * 9 + phase


@pytest.mark.core
def test_windows_keep_the_phase_of_dilated_taps(isa, dtype):
    """Padding 1, dilation 2: the first tap inside is row 1, not row 0."""
    x = np.zeros((1, 1, 6, 6), dtype)
    x[0, 0, 0, 0] = 9
    output, indices = convx.max_pool2d(x, 2, 1, 1, dilation=2, return_indices=True)
    assert output[0, 0, 0, 0] == 0
    assert indices[0, 0, 0, 0] == 1 * 6 + 1
    assert convx.max_pool2d(x, 2, 1, 1, dilation=2, return_codes=True)[1][0, 0, 0, 0] == 3


@pytest.mark.core
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "floor", "ceil"),
    [
        (5, 2, 2, 1, 3, 3), (5, 2, 2, 0, 2, 3), (6, 3, 2, 0, 2, 3), (7, 3, 2, 1, 4, 4), (8, 3, 2, 1, 4, 5),
        (6, 2, 3, 1, 3, 3), (4, 1, 3, 0, 2, 2), (5, 1, 3, 0, 2, 2), (2, 1, 2, 0, 1, 1), (10, 3, 4, 1, 3, 3),
        (3, 3, 7, 1, 1, 1), (9, 2, 2, 1, 5, 5), (11, 4, 3, 2, 4, 5), (2, 5, 1, 2, 2, 2), (1, 2, 5, 1, 1, 1),
    ],
)  # fmt: skip
def test_output_size(size, kernel, stride, padding, floor, ceil):
    """Sizes by hand from the formula; with ceil_mode no window starts in the bottom or right padding."""
    x = np.zeros((1, 1, size, size), np.float32)
    assert convx.max_pool2d(x, kernel, stride, padding).shape == (1, 1, floor, floor)
    assert convx.max_pool2d(x, kernel, stride, padding, ceil_mode=True).shape == (1, 1, ceil, ceil)


@pytest.mark.core
@pytest.mark.parametrize("name", ["2x2", "3x3-stride2-pad1", "dilation-padded"])
def test_unbatched(name, isa, dtype, layout):
    problem = POOL_PROBLEMS[name]
    x = pool_data(problem.input_shape, "ties")
    expected, indices = reference.max_pool2d(x, return_indices=True, **problem.options)
    array = to_layout(x[1], layout).astype(dtype)
    output, actual = convx.max_pool2d(array, layout=layout, return_indices=True, **problem.options)
    assert_equal(from_layout(output, layout), expected[1], problem)
    assert_equal(from_layout(actual, layout), indices[1], problem)
    codes = convx.max_pool2d(array, layout=layout, return_codes=True, **problem.options)[1]
    g = numbers(output.shape, "integer", 2).astype(dtype)
    truth = reference.max_pool2d_backward(from_layout(g, layout), indices[1], x.shape[1:], **problem.options)
    for chosen in (actual, codes):
        grad_input = convx.max_pool2d_backward(g, chosen, array.shape, layout=layout, **problem.options)
        assert_equal(from_layout(grad_input, layout), truth, problem)


@pytest.mark.core
@pytest.mark.parametrize("name", ["2x2", "3x3-stride2-pad1", "3x3-stride1", "dilation-padded", "2x3-stride-1-2"])
def test_views(name, isa, dtype, layout):
    problem = POOL_PROBLEMS[name]
    x = to_layout(pool_data(problem.input_shape, "special"), layout).astype(dtype)
    expected = convx.max_pool2d(x, layout=layout, return_codes=True, **problem.options)
    for what, view in views(x):
        actual = convx.max_pool2d(view, layout=layout, return_codes=True, **problem.options)
        assert_same_bits(actual, expected, f"{problem}, input {what}")
    for what, view in broadcasts(x):
        assert_same_bits(
            convx.max_pool2d(view, layout=layout, return_indices=True, **problem.options),
            convx.max_pool2d(view.copy(), layout=layout, return_indices=True, **problem.options),
            f"{problem}, input {what}",
        )


@pytest.mark.core
@pytest.mark.parametrize("name", ["2x2", "3x3-stride2-pad1", "3x3-stride1", "dilation-padded", "2x3-stride-1-2"])
def test_views_backward(name, isa, dtype, layout):
    problem = POOL_PROBLEMS[name]
    x = to_layout(pool_data(problem.input_shape, "ties"), layout).astype(dtype)
    output, codes = convx.max_pool2d(x, layout=layout, return_codes=True, **problem.options)
    indices = convx.max_pool2d(x, layout=layout, return_indices=True, **problem.options)[1]
    g = numbers(output.shape, "normal", 5).astype(dtype)
    expected = convx.max_pool2d_backward(g, codes, x.shape, layout=layout, **problem.options)
    for what, view in views(g):
        grad_input = convx.max_pool2d_backward(view, codes, x.shape, layout=layout, **problem.options)
        assert_same_bits(grad_input, expected, f"{problem}, grad_output {what}")
    for what, view in broadcasts(g):
        assert_same_bits(
            convx.max_pool2d_backward(view, codes, x.shape, layout=layout, **problem.options),
            convx.max_pool2d_backward(view.copy(), codes, x.shape, layout=layout, **problem.options),
            f"{problem}, grad_output {what}",
        )
    for chosen in (codes, indices):
        for what, view in views(chosen):
            grad_input = convx.max_pool2d_backward(g, view, x.shape, layout=layout, **problem.options)
            assert_same_bits(grad_input, expected, f"{problem}, {chosen.dtype} {what}")


@pytest.mark.core
def test_no_images(isa, dtype, layout):
    shape = (0, 3, 7, 9) if layout == "NCHW" else (0, 7, 9, 3)
    out_shape = (0, 3, 3, 4) if layout == "NCHW" else (0, 3, 4, 3)
    x = np.ones(shape, dtype)
    assert convx.max_pool2d(x, 2, layout=layout).shape == out_shape
    for chosen, kind in [("return_indices", np.int64), ("return_codes", np.uint8)]:
        output, taps = convx.max_pool2d(x, 2, layout=layout, **{chosen: True})
        assert output.shape == taps.shape == out_shape
        assert taps.dtype == kind
        assert convx.max_pool2d_backward(output, taps, shape, 2, layout=layout).shape == shape


@pytest.mark.core
def test_code_255_adds_no_gradient(isa, dtype, layout):
    for size, kernel in [(6, 2), (15 * 3, (15, 17))]:
        x = np.arange(2 * size * 51, dtype=dtype).reshape(1, 2, size, 51)
        output, codes = convx.max_pool2d(to_layout(x, layout), kernel, layout=layout, return_codes=True)
        codes[...] = np.where(np.arange(codes.size).reshape(codes.shape) % 3 == 0, 255, codes)
        g = np.full(output.shape, np.inf, dtype)
        grad_input = convx.max_pool2d_backward(g, codes, to_layout(x, layout).shape, kernel, layout=layout)
        assert np.isinf(grad_input).sum() == (codes != 255).sum()
        assert not np.isnan(grad_input).any()


def test_inputs_that_no_window_chose_get_no_gradient(isa, dtype, layout):
    problem = Pool(h=11, w=13, kernel_size=2, stride=(3, 5))
    x = pool_data(problem.input_shape, "normal")
    output, indices = reference.max_pool2d(x, return_indices=True, **problem.options)
    g = np.full(output.shape, np.nan, dtype)
    grad_input = convx.max_pool2d_backward(
        to_layout(g, layout), to_layout(indices, layout), to_layout(x, layout).shape, layout=layout, **problem.options
    )
    assert np.isnan(grad_input).sum() == output.size
    assert (grad_input[~np.isnan(grad_input)] == 0).all()


def test_backward_is_the_adjoint_of_taking_the_maximum(isa, layout):
    """<pool(x + d) - pool(x), g> = <d, grad_input> for a step d too small to change the selection."""
    for name in ("3x3-stride2-pad1", "2x2-ceil", "dilation-padded", "per-side"):
        problem = POOL_PROBLEMS[name]
        x = to_layout(pool_data(problem.input_shape, "normal"), layout)
        d = to_layout(np.random.default_rng(4).integers(-3, 4, problem.input_shape) / 16.0, layout)
        output, codes = convx.max_pool2d(x, layout=layout, return_codes=True, **problem.options)
        g = numbers(output.shape, "integer", 6)
        moved = convx.max_pool2d(x + d, layout=layout, **problem.options)
        grad_input = convx.max_pool2d_backward(g, codes, x.shape, layout=layout, **problem.options)
        assert np.vdot(moved - output, g) == np.vdot(d, grad_input), problem


def test_indices_beyond_what_a_float_can_hold(isa):
    """Offsets of 2^24 and more within a window, which a vector of floats cannot hold."""
    width = 1 << 23
    x = np.zeros((1, 1, 3, width), np.float32)
    x[0, 0, 2, [0, 4711, width - 1]] = 1
    output, indices = convx.max_pool2d(x, (3, 1), return_indices=True)
    expected = np.arange(width)
    expected[[0, 4711, width - 1]] += 2 * width
    assert_equal(indices[0, 0, 0], expected, "indices")
    assert_equal(output[0, 0], x.max(axis=2)[0], "output")


@pytest.mark.core
@pytest.mark.parametrize("name", ["planes-38", "planes-38-stride2", "channels-33"])
def test_indices_that_are_no_taps(name, isa, dtype, layout):
    """An index may name any pixel of the plane, inside its window or not."""
    problem = POOL_PROBLEMS[name]
    shape = problem.input_shape
    _, indices = reference.max_pool2d(pool_data(shape, "normal"), return_indices=True, **problem.options)
    g = numbers(indices.shape, "integer", 3)
    cells = shape[2] * shape[3]
    for position in (0, indices.size // 2, indices.size - 1):
        for index in (0, 1, shape[3] - 1, cells - 1):
            moved = indices.copy()
            moved.flat[position] = index
            expected = np.zeros((shape[0] * shape[1], cells))
            for plane, (at, grads) in enumerate(
                zip(moved.reshape(len(expected), -1), g.reshape(len(expected), -1), strict=True)
            ):
                np.add.at(expected[plane], at, grads)
            actual = convx.max_pool2d_backward(
                to_layout(g.astype(dtype), layout),
                np.ascontiguousarray(to_layout(moved, layout)),
                to_layout(np.zeros(shape), layout).shape,
                layout=layout,
                **problem.options,
            )
            assert_equal(from_layout(actual, layout).reshape(expected.shape), expected, f"{problem}, {index}")
