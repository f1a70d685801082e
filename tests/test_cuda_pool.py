"""ReLU, max-pooling and the fused operation in the sources of the CUDA backend, run by the shim: see simt_arrays.py."""

from __future__ import annotations

import numpy as np
import pytest

import convx
import simt_arrays as cuda
from convx import reference
from simt_arrays import HOST, WAYS, numpy_dtype
from support import (
    CONV_PROBLEMS,
    POOL_PROBLEMS,
    assert_equal,
    assert_same_bits,
    conv_data,
    from_layout,
    numbers,
    to_layout,
    views,
)

pytestmark = cuda.needs_simt
each_type = pytest.mark.parametrize("kind", cuda.DTYPES)
SHAPES = [(), (1,), (7,), (4096,), (33, 65), (2, 3, 5, 7), (0, 3), (2, 1, 3, 1, 2, 3)]


def special(shape, kind, seed=0):
    """Whole numbers, zeros of both signs, infinities, NaN: exact in every type."""
    values = numbers(shape, "integer", seed)
    rng = np.random.default_rng(seed)
    odd = rng.choice([0.0, -0.0, np.inf, -np.inf, np.nan], shape)
    return np.where(rng.random(shape) < 0.3, odd, values).astype(numpy_dtype(kind))


def wide(array):
    return array.astype(np.float64)


@pytest.mark.core
@each_type
class TestRelu:
    def test_values(self, kind):
        for shape in SHAPES:
            x, y = special(shape, kind), special(shape, kind, 1)
            assert_equal(wide(cuda._simt.relu(HOST, x, False, None)), reference.relu(wide(x)), shape)
            wanted = reference.relu_backward(wide(x), wide(y))
            assert_equal(wide(cuda._simt.relu_backward(HOST, x, y, None)), wanted, shape)

    def test_no_zero_is_negative(self, kind):
        y = wide(cuda._simt.relu(HOST, special((999,), kind), False, None))
        assert not np.signbit(y[y == 0]).any()

    def test_views_and_out(self, kind):
        x, y = special((3, 4, 5), kind), special((3, 4, 5), kind, 1)
        wanted, grad = cuda._simt.relu(HOST, x, False, None), cuda._simt.relu_backward(HOST, x, y, None)
        if kind != "bfloat16":  # NumPy has no views of records with bfloat16
            for name, view in views(x):
                if view.flags.aligned and not any(stride % view.itemsize for stride in view.strides):
                    assert_same_bits(cuda._simt.relu(HOST, view, False, None), wanted, name)
                    assert_same_bits(cuda._simt.relu_backward(HOST, view, y, None), grad, name)
        mirrored = np.zeros((6, 4, 10), x.dtype)[::-2, :, ::-2]
        assert cuda._simt.relu(HOST, x, False, mirrored) is mirrored
        assert_equal(wide(mirrored), wide(wanted), "out")
        in_place = x.copy()
        cuda._simt.relu(HOST, in_place, False, in_place)
        assert_equal(wide(in_place), wide(wanted), "in place")


def with_mask(x, out=None):
    return cuda._simt.relu(HOST, x, True, out)


@pytest.mark.core
@each_type
class TestReluMask:
    def test_values(self, kind):
        for shape in [*SHAPES, (127,), (128,), (1031,), (5, 1, 300)]:
            x, g = special(shape, kind), special(shape, kind, 1)
            y, mask = with_mask(x)
            wanted, wanted_mask = reference.relu(wide(x), return_mask=True)
            assert_equal(wide(y), wanted, shape)
            assert_same_bits(mask, wanted_mask, shape)
            grad = wide(cuda._simt.relu_backward(HOST, g, mask, None))
            assert_equal(grad, reference.relu_backward(wide(g), mask), shape)
            assert_same_bits(cuda._simt.relu(HOST, x, False, None), y, shape)

    def test_views_and_out(self, kind):
        x, g = special((3, 4, 50), kind), special((3, 4, 50), kind, 1)
        y, mask = with_mask(x)
        grad = cuda._simt.relu_backward(HOST, g, mask, None)
        if kind != "bfloat16":
            for name, view in views(x):
                if view.flags.aligned and not any(stride % view.itemsize for stride in view.strides):
                    assert_same_bits(with_mask(view), (y, mask), name)
            for name, view in views(g):
                if view.flags.aligned and not any(stride % view.itemsize for stride in view.strides):
                    assert_same_bits(cuda._simt.relu_backward(HOST, view, mask, None), grad, name)
        for name, view in views(mask):
            assert_same_bits(cuda._simt.relu_backward(HOST, g, view, None), grad, name)
        mirrored = np.zeros((6, 4, 100), x.dtype)[::-2, :, ::-2]
        assert with_mask(x, mirrored)[0] is mirrored
        assert_equal(wide(mirrored), wide(y), "out")
        assert cuda._simt.relu_backward(HOST, g, mask, mirrored) is mirrored
        assert_equal(wide(mirrored), wide(grad), "out of backward")
        in_place = x.copy()
        assert_same_bits(with_mask(in_place, in_place), (y, mask), "in place")

    def test_every_order_of_threads(self, kind, monkeypatch):
        x = special((3, 1031), kind)
        expected = with_mask(x)
        for seed in ("2", "3"):
            monkeypatch.setenv("CONVX_SIMT_SEED", seed)
            assert_same_bits(with_mask(x), expected, seed)

    def test_errors(self, kind):
        g = np.zeros((3, 5), numpy_dtype(kind))
        mask = np.zeros(2, np.uint8)
        cases = [
            (TypeError, "relu: return_mask is an int", lambda: cuda._simt.relu(HOST, g, 1, None)),
            (TypeError, "relu: input has dtype uint8, expected float32, float64, float16 or bfloat16",
             lambda: with_mask(mask)),
            (TypeError, "relu_backward: output has dtype bool, expected float32",
             lambda: cuda._simt.relu_backward(HOST, g, mask.astype(bool), None)),
            (convx.ShapeError, r"relu_backward: output is a mask of shape \(1,\), expected \(2,\): one bit for each",
             lambda: cuda._simt.relu_backward(HOST, g, mask[:1], None)),
            (convx.ShapeError, "relu_backward: out shares memory with output",
             lambda: cuda._simt.relu_backward(HOST, g.copy(), g.reshape(-1).view(np.uint8)[3:5], g)),
        ]  # fmt: skip
        for error, message, call in cases:
            with pytest.raises(error, match=message):
                call()


def pooled(problem, x, layout, **chosen):
    options = dict(return_indices=False, return_codes=False) | chosen
    return cuda._simt.max_pool2d(HOST, x, *problem.options.values(), layout, *options.values())


@pytest.mark.core
@pytest.mark.parametrize("name", POOL_PROBLEMS)
@each_type
def test_max_pool2d(name, kind, layout):
    problem = POOL_PROBLEMS[name]
    x = special(problem.input_shape, kind)
    wanted, indices = reference.max_pool2d(wide(x), **problem.options, return_indices=True)
    codes = reference.max_pool2d(wide(x), **problem.options, return_codes=True)[1]
    x = to_layout(x, layout)
    values = pooled(problem, x, layout)
    assert_equal(wide(from_layout(values, layout)), wanted, name)
    for chosen, expected in (("return_indices", indices), ("return_codes", codes)):
        again, selection = pooled(problem, x, layout, **{chosen: True})
        assert_equal(wide(again), wide(values), name)
        assert_same_bits(from_layout(selection, layout), expected, f"{chosen} of {name}")
        g = numbers(wanted.shape, "integer", 5)
        grad = cuda._simt.max_pool2d_backward(
            HOST, to_layout(g.astype(numpy_dtype(kind)), layout), selection, x.shape, *problem.options.values(), layout
        )
        expected_grad = reference.max_pool2d_backward(g, indices, problem.input_shape, **problem.options)
        assert_equal(wide(from_layout(grad, layout)), expected_grad, f"gradient by {chosen} of {name}")


def test_max_pool2d_of_nothing(layout):
    x = to_layout(np.zeros((0, 3, 6, 8), "float32"), layout)
    y, codes = cuda._simt.max_pool2d(HOST, x, 2, None, 0, 1, False, layout, False, True)
    assert from_layout(y, layout).shape == (0, 3, 3, 4)
    assert cuda._simt.max_pool2d_backward(HOST, y, codes, x.shape, 2, None, 0, 1, False, layout).shape == x.shape


def test_max_pool2d_of_views(layout):
    problem = POOL_PROBLEMS["3x3-stride2-pad1"]
    x = to_layout(special(problem.input_shape, "float32"), layout)
    wanted = pooled(problem, x, layout, return_codes=True)
    g = to_layout(numbers(from_layout(wanted[0], layout).shape, "normal", 1).astype("float32"), layout)
    tail = (x.shape, *problem.options.values(), layout)
    grad = cuda._simt.max_pool2d_backward(HOST, g, wanted[1], *tail)
    for number, array in enumerate((x, g, wanted[1])):
        for name, view in views(array):
            if not view.flags.aligned or any(stride % view.itemsize for stride in view.strides):
                continue
            if number == 0:
                assert_same_bits(pooled(problem, view, layout, return_codes=True), wanted, name)
            else:
                pair = (view, wanted[1]) if number == 1 else (g, view)
                assert_same_bits(cuda._simt.max_pool2d_backward(HOST, *pair, *tail), grad, name)


def test_errors_of_pooling():
    x = np.zeros((1, 1, 4, 4), "float32")
    with pytest.raises(convx.ShapeError, match="return_indices and return_codes are both True"):
        cuda._simt.max_pool2d(HOST, x, 2, None, 0, 1, False, "NCHW", True, True)
    with pytest.raises(TypeError, match="indices_or_codes has dtype int32, expected int64"):
        cuda._simt.max_pool2d_backward(HOST, x, x.astype("int32"), (1, 1, 8, 8), 2, None, 0, 1, False, "NCHW")


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("name", ["3x3-pad1", "3x3-stride2", "groups3-odd", "depthwise", "per-side", "first-layer-7x7"])
def test_fused(name, way, layout):
    """Whole numbers: equal to the three in sequence, codes included."""
    dtype, precision = way
    problem = CONV_PROBLEMS[name].replace(n=3)
    x, w, b = conv_data(problem, "integer")
    options = dict(stride=problem.stride, padding=problem.padding, dilation=problem.dilation, groups=problem.groups)
    pool = dict(pool_kernel_size=(3, 2), pool_stride=2, pool_padding=((2, 0), (1, 0)))
    wanted, saved = reference.conv2d_relu_max_pool2d(x, w, b, **options, **pool)
    small = np.abs(wanted).max() <= 256  # above 256 bfloat16 rounds, and other taps tie
    if dtype == "bfloat16" and not small:
        pytest.skip("sums beyond the whole numbers of bfloat16")
    kind = numpy_dtype(dtype)
    x, w, b = (array.astype(kind) for array in (x, w, b))
    tail = (*options.values(), *pool.values(), layout, precision)
    output, codes = cuda._simt.conv2d_relu_max_pool2d(HOST, to_layout(x, layout), w, b, *tail)
    assert_equal(wide(from_layout(output, layout)), wanted, name)
    assert_same_bits(from_layout(codes, layout), saved.codes, f"codes of {name}")
    g = numbers(wanted.shape, "integer", 9)
    expected = reference.conv2d_relu_max_pool2d_backward(g, saved)
    for mask in ((True, True, True), (True, False, False), (False, True, True)):
        grads = cuda._simt.conv2d_relu_max_pool2d_backward(
            HOST, to_layout(g.astype(kind), layout), to_layout(x, layout), w, codes, *tail, mask
        )
        assert [grad is not None for grad in grads] == list(mask)
        if mask[0]:
            assert_equal(wide(from_layout(grads[0], layout)), wide(expected[0].astype(kind)), "grad_input")
        for grad, other in zip(grads[1:], expected[1:], strict=True):
            if grad is not None:
                assert_equal(wide(grad), wide(other.astype(kind)), "gradient of weight or bias")
