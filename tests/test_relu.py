"""relu and relu_backward: bitwise against the definition, any shape, stride and `out`, in place too."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import convx
from convx import reference
from support import assert_equal, assert_same_bits, broadcasts, straddle, views

SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 3.4e38, -3.4e38)
SIZES = [0, *straddle(1, 4, 8, 16, 32, 64, 128), 1000, 4097]


def numbers(shape, dtype, seed=0):
    """Normal numbers with every special value among them."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape)
    special = rng.choice(SPECIAL, np.shape(values))
    return np.where(rng.random(np.shape(values)) < 0.4, special, values).astype(dtype)


@pytest.mark.core
def test_relu_of_every_length(isa, dtype):
    for size in SIZES:
        x = numbers((size,), dtype, size)
        assert_equal(convx.relu(x), reference.relu(x), f"relu of {size}")


@pytest.mark.core
def test_backward_of_every_length(isa, dtype):
    for size in SIZES:
        g, y = numbers((size,), dtype, size), numbers((size,), dtype, size + 1)
        assert_equal(convx.relu_backward(g, y), reference.relu_backward(g, y), f"relu_backward of {size}")


@pytest.mark.core
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 5), (2, 3, 5, 7), (2, 3, 2, 3, 2, 3), (4, 0, 5), (1,) * 9])
def test_any_number_of_axes(shape, isa, dtype):
    x, g = numbers(shape, dtype, 1), numbers(shape, dtype, 2)
    y = convx.relu(x)
    assert isinstance(y, np.ndarray)
    assert y.dtype == dtype
    assert_equal(y, reference.relu(x), f"relu of {shape}")
    assert_equal(convx.relu_backward(g, y), reference.relu_backward(g, y), f"relu_backward of {shape}")


@pytest.mark.core
def test_special_values(isa, dtype):
    """NaN stays NaN and passes the gradient; -inf gives 0; the gradient at 0 is 0, of either sign."""
    for lane in range(17):  # in every lane of a vector and in the tail
        x = np.full(17, 2.0, dtype)
        for value, y_expected, gradient in [
            (np.nan, np.nan, 5), (-np.inf, 0, 0), (np.inf, np.inf, 5), (0.0, 0, 0), (-0.0, 0, 0),
            (np.finfo(dtype).tiny, np.finfo(dtype).tiny, 5), (-np.finfo(dtype).tiny, 0, 0),
            (np.finfo(dtype).smallest_subnormal, np.finfo(dtype).smallest_subnormal, 5),
        ]:  # fmt: skip
            x[lane] = value
            y = convx.relu(x)
            assert_equal(y[lane : lane + 1], np.array([y_expected]), f"relu({value}) in lane {lane}")
            assert (np.delete(y, lane) == 2).all()
            g = convx.relu_backward(np.full(17, 5, dtype), y)
            assert g[lane] == gradient, f"gradient at {value}"
            assert (np.delete(g, lane) == 5).all()


def test_nan_gradient_is_stopped_where_the_output_is_dead(isa, dtype):
    g = np.full(17, np.nan, dtype)
    assert (convx.relu_backward(g, np.zeros(17, dtype)) == 0).all()
    assert (convx.relu_backward(np.full(17, np.inf, dtype), np.full(17, -0.0, dtype)) == 0).all()
    assert np.isnan(convx.relu_backward(g, np.ones(17, dtype))).all()


@pytest.mark.core
def test_views(isa, dtype):
    x, g = numbers((2, 5, 6, 19), dtype, 1), numbers((2, 5, 6, 19), dtype, 2)
    y = convx.relu(x)
    expected = convx.relu_backward(g, y)
    for what, view in views(x):
        assert_same_bits(convx.relu(view), y, f"input {what}")
    for what, view in views(g):
        assert_same_bits(convx.relu_backward(view, y), expected, f"grad_output {what}")
    for what, view in views(y):
        assert_same_bits(convx.relu_backward(g, view), expected, f"output {what}")


@pytest.mark.core
def test_broadcast_views(isa, dtype):
    x, g = numbers((2, 5, 6, 19), dtype, 1), numbers((2, 5, 6, 19), dtype, 2)
    for what, view in broadcasts(x):
        assert_same_bits(convx.relu(view), convx.relu(view.copy()), f"input {what}")
        assert_same_bits(convx.relu_backward(g, view), convx.relu_backward(g, view.copy()), f"output {what}")
    for what, view in broadcasts(g):
        assert_same_bits(convx.relu_backward(view, x), convx.relu_backward(view.copy(), x), f"grad_output {what}")


@pytest.mark.core
def test_out(isa, dtype):
    x, g = numbers((2, 5, 6, 19), dtype, 1), numbers((2, 5, 6, 19), dtype, 2)
    y = convx.relu(x)
    gradient = convx.relu_backward(g, y)
    fresh = np.full_like(x, np.nan)
    assert convx.relu(x, out=fresh) is fresh
    assert convx.relu_backward(g, y, out=fresh) is fresh
    for what, out in views(np.full_like(x, 7)):
        if out.flags.writeable and out.flags.aligned:
            convx.relu(x, out=out)
            assert_same_bits(out, y, f"relu, out {what}")
            convx.relu_backward(g, y, out=out)
            assert_same_bits(out, gradient, f"relu_backward, out {what}")


@pytest.mark.core
def test_in_place(isa, dtype):
    """`out` may be the input: relu(x, out=x), and relu_backward into either argument, for any strides."""
    x, g = numbers((2, 5, 6, 19), dtype, 1), numbers((2, 5, 6, 19), dtype, 2)
    y = convx.relu(x)
    gradient = convx.relu_backward(g, y)
    for what, array in itertools.chain([("contiguous", x.copy())], views(x)):
        if array.flags.writeable and array.flags.aligned:
            assert convx.relu(array, out=array) is array
            assert_same_bits(array, y, f"relu in place, {what}")
    for what, array in itertools.chain([("contiguous", g.copy())], views(g)):
        if array.flags.writeable and array.flags.aligned:
            convx.relu_backward(array, y, out=array)
            assert_same_bits(array, gradient, f"relu_backward into grad_output, {what}")
    for what, array in itertools.chain([("contiguous", y.copy())], views(y)):
        if array.flags.writeable and array.flags.aligned:
            convx.relu_backward(g, array, out=array)
            assert_same_bits(array, gradient, f"relu_backward into output, {what}")


def bits_of(y):
    return np.packbits(~(y <= 0), bitorder="little")


@pytest.mark.core
def test_mask_of_every_length(isa, dtype):
    for size in SIZES:
        x, g = numbers((size,), dtype, size), numbers((size,), dtype, size + 1)
        y, mask = convx.relu(x, return_mask=True)
        assert_same_bits(y, convx.relu(x), f"relu of {size}")
        assert_same_bits(mask, bits_of(y), f"mask of {size}")
        assert_same_bits(convx.relu_backward(g, mask), convx.relu_backward(g, y), f"relu_backward of {size}")


@pytest.mark.core
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 5), (2, 3, 5, 7), (2, 3, 2, 3, 2, 3), (4, 0, 5), (1,) * 9])
def test_mask_of_any_number_of_axes(shape, isa, dtype):
    x, g = numbers(shape, dtype, 1), numbers(shape, dtype, 2)
    y, mask = convx.relu(x, return_mask=True)
    assert_same_bits(y, convx.relu(x), f"relu of {shape}")
    assert_same_bits(mask, bits_of(y), f"mask of {shape}")
    assert_same_bits(mask, reference.relu(x, return_mask=True)[1], f"the reference's mask of {shape}")
    assert_same_bits(convx.relu_backward(g, mask), convx.relu_backward(g, y), f"relu_backward of {shape}")
    assert_equal(reference.relu_backward(g, mask), reference.relu_backward(g, y), f"the reference's of {shape}")


@pytest.mark.core
def test_every_bit_of_a_mask(isa, dtype):
    """One element at a time passes the gradient on, in every lane and byte; NaN does, zeros and -inf do not."""
    for place in range(200):
        x = np.where(np.arange(200) % 3 == 0, 0.0, np.where(np.arange(200) % 3 == 1, -0.0, -np.inf)).astype(dtype)
        x[place] = (np.nan, 1e-45 if dtype == "float32" else 5e-324, np.inf)[place % 3]
        mask = convx.relu(x, return_mask=True)[1]
        assert mask[place // 8] == 1 << place % 8
        assert np.count_nonzero(mask) == 1
        g = convx.relu_backward(np.full(200, np.nan, dtype), mask)
        assert np.isnan(g[place])
        assert not np.delete(g, place).any()


@pytest.mark.core
def test_mask_of_views(isa, dtype):
    """Bits follow the axes, not the memory."""
    for shape in [(2, 5, 6, 15), (3, 40, 70)]:  # within one buffer and over several
        x, g = numbers(shape, dtype, 1), numbers(shape, dtype, 2)
        y, mask = convx.relu(x, return_mask=True)
        gradient = convx.relu_backward(g, y)
        for what, view in itertools.chain(views(x), [("swapped", np.swapaxes(np.swapaxes(x, 0, -1).copy(), 0, -1))]):
            assert_same_bits(convx.relu(view, return_mask=True), (y, mask), f"input {what}")
        for what, view in views(g):
            assert_same_bits(convx.relu_backward(view, mask), gradient, f"grad_output {what}")
        for what, view in views(mask):
            assert_same_bits(convx.relu_backward(g, view), gradient, f"mask {what}")
        for what, view in broadcasts(x):
            assert_same_bits(convx.relu(view, return_mask=True), convx.relu(view.copy(), return_mask=True), what)
        for what, out in views(np.full_like(x, 7)):
            if out.flags.writeable and out.flags.aligned:
                result = convx.relu(x, return_mask=True, out=out)
                assert result[0] is out
                assert_same_bits((out, result[1]), (y, mask), f"relu, out {what}")
                assert convx.relu_backward(g, mask, out=out) is out
                assert_same_bits(out, gradient, f"relu_backward, out {what}")


@pytest.mark.core
def test_mask_in_place(isa, dtype):
    x, g = numbers((3, 5, 6, 37), dtype, 1), numbers((3, 5, 6, 37), dtype, 2)
    y, mask = convx.relu(x, return_mask=True)
    gradient = convx.relu_backward(g, y)
    for what, array in itertools.chain([("contiguous", x.copy())], views(x)):
        if array.flags.writeable and array.flags.aligned:
            assert_same_bits(convx.relu(array, return_mask=True, out=array), (y, mask), f"relu in place, {what}")
    for what, array in itertools.chain([("contiguous", g.copy())], views(g)):
        if array.flags.writeable and array.flags.aligned:
            convx.relu_backward(array, mask, out=array)
            assert_same_bits(array, gradient, f"relu_backward in place, {what}")


def test_masks_larger_than_the_cache(isa, dtype):
    """Outputs of the size of non-temporal stores, at every offset from a cache line, in several tasks."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(12_000_020, np.float32).astype(dtype)
    g, out = x[::-1].copy(), np.empty_like(x)
    whole = ~(x <= 0)
    for shift in range(0, 17, 3):
        size = x.size - 20
        result = convx.relu(x[:size], return_mask=True, out=out[shift : shift + size])
        assert (result[0] == np.maximum(x[:size], 0)).all(), shift
        assert_same_bits(result[1], np.packbits(whole[:size], bitorder="little"), f"mask, {shift}")
        gradient = convx.relu_backward(g[:size], result[1], out=out[shift : shift + size])
        assert (gradient == np.where(whole[:size], g[:size], 0)).all(), shift


def test_arrays_larger_than_the_cache(isa, dtype):
    """Outputs of the size of non-temporal stores, with a length and an address that are no multiple of a vector."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(12_000_001, np.float32).astype(dtype)[2:]
    y = convx.relu(x)
    assert_equal(y, np.maximum(x, 0), "relu")
    g = rng.standard_normal(x.size, np.float32).astype(dtype)
    assert_equal(convx.relu_backward(g, y), np.where(y <= 0, 0, g), "relu_backward")
    convx.relu(x, out=x)
    assert_same_bits(x, y, "relu in place")
