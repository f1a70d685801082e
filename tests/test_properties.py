"""hypothesis over all parameters together: sizes, options, layouts, views and values, against the float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, note
from hypothesis import strategies as st

import convx
from convx import _cpu, reference
from support import (
    DTYPES,
    GRADIENTS,
    ISAS,
    LAYOUTS,
    PADDING_MODES,
    Conv,
    Pool,
    assert_equal,
    assert_same_bits,
    assert_within,
    conv_bound,
    conv_expected,
    from_layout,
    numbers,
    to_layout,
)

pytestmark = pytest.mark.core

sizes = st.one_of(st.integers(1, 9), st.integers(1, 9), st.sampled_from((12, 15, 16, 17, 24, 31, 32, 33)))
channels = st.one_of(st.integers(1, 9), st.sampled_from((12, 13, 15, 16, 17, 24, 31, 33, 49)))
flags = st.booleans()


def pairs(low, high):
    """One number, or one for each axis."""
    number = st.integers(low, high)
    return st.one_of(number, st.tuples(number, number))


@st.composite
def paddings(draw, most):
    """Every form of padding with at most `most[axis]` pixels on each side of an axis."""
    rows, cols = (st.integers(0, limit) for limit in most)
    form = draw(st.sampled_from(("number", "pair", "sides")))
    if form == "number":
        return draw(st.integers(0, min(most)))
    return draw(st.tuples(rows, cols) if form == "pair" else st.tuples(st.tuples(rows, rows), st.tuples(cols, cols)))


def both(value):
    return (value, value) if isinstance(value, int) else value


@st.composite
def convolutions(draw):
    n, h, w = draw(st.integers(1, 3)), draw(sizes), draw(sizes)
    r, s = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    stride, dilation = draw(pairs(1, 4)), draw(pairs(1, 3))
    shape = draw(st.sampled_from(("dense", "dense", "groups", "depthwise")))
    groups = 1 if shape == "dense" else draw(st.integers(1, 5) if shape == "groups" else channels)
    group_in, group_out = (draw(channels), draw(channels)) if shape != "depthwise" else (1, draw(st.integers(1, 2)))
    mode = draw(st.one_of(st.sampled_from(PADDING_MODES), st.tuples(*[st.sampled_from(PADDING_MODES)] * 2)))
    modes = (mode, mode) if isinstance(mode, str) else mode
    extents = [d * (k - 1) + 1 for d, k in zip(both(dilation), (r, s), strict=True)]
    limits = [{"reflect": size - 1, "circular": size}.get(m, size + 4) for m, size in zip(modes, (h, w), strict=True)]
    padding = draw(
        st.one_of(paddings([min(limit, 6) for limit in limits]), st.sampled_from(("valid", "same", "same_lower")))
    )
    problem = Conv(
        n, group_in * groups, h, w, group_out * groups, r, s, stride, padding, dilation, groups, mode,
        float(draw(st.integers(-3, 3))),
    )  # fmt: skip
    for axis in (0, 1):  # a size that fits the window, and where "same" stays within the limit of the mode
        size = (h, w)[axis]
        before_and_after = 0 if isinstance(padding, str) else sum(both(both(padding)[axis]))
        least = extents[axis] - before_and_after
        if isinstance(padding, str) and padding != "valid":
            least = 1 if limits[axis] > size else extents[axis]
        if size < least:
            problem = problem.replace(**{"hw"[axis]: least})
    return problem


@st.composite
def poolings(draw):
    r, s = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    dilation = draw(pairs(1, 3))
    extents = [d * (k - 1) + 1 for d, k in zip(both(dilation), (r, s), strict=True)]
    padding = draw(
        st.one_of(paddings([extent - 1 for extent in extents]), st.sampled_from(("valid", "same", "same_lower")))
    )
    image = []
    for axis in (0, 1):  # down to one pixel, where padding and taps reach beyond it
        padded = 0 if isinstance(padding, str) else sum(both(both(padding)[axis]))
        least = 1 if padding in ("same", "same_lower") else max(1, extents[axis] - padded)
        image.append(least + draw(sizes) - 1)
    return Pool(
        draw(st.integers(1, 3)), draw(channels), *image, (r, s),
        draw(st.one_of(st.none(), pairs(1, 5))), padding, dilation, draw(flags),
    )  # fmt: skip


@st.composite
def views(draw, array):
    """The same values with random strides, in a random order and direction of the axes."""
    order = draw(st.permutations(range(array.ndim)))
    steps = [draw(st.sampled_from((1, 1, 1, 2, -1, -2))) for _ in order]
    starts = [draw(st.integers(0, 2)) for _ in order]
    storage = np.full(
        [array.shape[axis] * abs(step) + start for axis, step, start in zip(order, steps, starts, strict=True)],
        np.nan, array.dtype,
    )  # fmt: skip
    view = storage[
        tuple(
            slice(start, start + array.shape[axis] * abs(step), abs(step))
            for axis, step, start in zip(order, steps, starts, strict=True)
        )
    ]
    view = view[tuple(slice(None, None, -1 if step < 0 else 1) for step in steps)].transpose(np.argsort(order))
    assert view.shape == array.shape
    view[...] = array
    return view


@given(st.data(), convolutions(), st.sampled_from(ISAS), st.sampled_from(DTYPES), st.sampled_from(LAYOUTS))
def test_conv2d(data, problem, isa, dtype, layout):
    note(f"{problem} {isa} {dtype} {layout}")
    kind = data.draw(st.sampled_from(("integer", "normal", "special")), "kind")
    relu, with_bias, use_views = data.draw(flags, "relu"), data.draw(flags, "bias"), data.draw(flags, "views")
    expected = conv_expected(problem, kind)
    x, w, b, g = (getattr(expected, name).astype(dtype) for name in "xwbg")
    x, g = to_layout(x, layout), to_layout(g, layout)
    if use_views:
        x, w, g = (data.draw(views(array)) for array in (x, w, g))
    out = None
    if data.draw(flags, "out"):
        out = data.draw(views(np.zeros(g.shape, dtype)))
    before = _cpu.config()["isa"]
    _cpu.set_isa(isa)
    try:
        y = convx.conv2d(
            x,
            w,
            b if with_bias else None,
            activation="relu" if relu else None,
            layout=layout,
            out=out,
            **problem.options,
        )
        gradients = convx.conv2d_backward(g, x, w, layout=layout, **problem.options)
    finally:
        _cpu.set_isa(before)
    assert out is None or y is out
    truth = expected.output if with_bias else reference.conv2d(expected.x, expected.w, **problem.options)
    truth = np.maximum(truth, 0) if relu else truth
    results = dict(zip(GRADIENTS, gradients, strict=True), output=y)
    for name, wanted in [("output", truth), *((name, getattr(expected, name)) for name in GRADIENTS)]:
        actual = from_layout(results[name], layout) if name in ("output", "grad_input") else results[name]
        assert actual.dtype == dtype
        bound = conv_bound(expected, name, dtype) if kind == "normal" else 0
        assert_within(actual, wanted, bound, f"{name} of {problem}")


@given(st.data(), poolings(), st.sampled_from(ISAS), st.sampled_from(DTYPES), st.sampled_from(LAYOUTS))
def test_max_pool2d(data, problem, isa, dtype, layout):
    note(f"{problem} {isa} {dtype} {layout}")
    rng = np.random.default_rng(data.draw(st.integers(0, 100), "seed"))
    palette = data.draw(
        st.sampled_from(((-1, 0, 1), (np.nan, np.inf, -np.inf, 0.0, -0.0, 2.0), (-np.inf, -np.inf, 1.0)))
    )
    x = rng.choice(palette, problem.input_shape).astype(float)
    output, indices = reference.max_pool2d(x, return_indices=True, **problem.options)
    codes = reference.max_pool2d(x, return_codes=True, **problem.options)[1]
    g = numbers(output.shape, "integer", 1)
    grad_input = reference.max_pool2d_backward(g, indices, x.shape, **problem.options)
    array, grad = to_layout(x, layout).astype(dtype), to_layout(g, layout).astype(dtype)
    if data.draw(flags, "views"):
        array, grad = data.draw(views(array)), data.draw(views(grad))
    before = _cpu.config()["isa"]
    _cpu.set_isa(isa)
    try:
        plain = convx.max_pool2d(array, layout=layout, **problem.options)
        with_indices = convx.max_pool2d(array, layout=layout, return_indices=True, **problem.options)
        with_codes = convx.max_pool2d(array, layout=layout, return_codes=True, **problem.options)
        gradients = [
            convx.max_pool2d_backward(grad, chosen, array.shape, layout=layout, **problem.options)
            for chosen in (with_indices[1], with_codes[1])
        ]
    finally:
        _cpu.set_isa(before)
    for values in (plain, with_indices[0], with_codes[0]):
        assert_same_bits(from_layout(values, layout), output.astype(dtype), f"output of {problem}")
    assert_equal(from_layout(with_indices[1], layout), indices, f"indices of {problem}")
    assert_equal(from_layout(with_codes[1], layout), codes, f"codes of {problem}")
    for gradient, source in zip(gradients, ("indices", "codes"), strict=True):
        assert_equal(from_layout(gradient, layout), grad_input, f"grad_input from {source} of {problem}")


@given(
    st.data(),
    convolutions(),
    poolings(),
    st.sampled_from(ISAS),
    st.sampled_from(DTYPES),
    st.sampled_from(LAYOUTS),
    flags,
)
def test_conv2d_relu_max_pool2d(data, problem, pooling, isa, dtype, layout, with_bias):
    """A random pooling, reduced to fit the output of the convolution."""
    problem = problem.replace(padding_mode="zeros")
    expected = conv_expected(problem, "integer")
    conv = expected.output if with_bias else expected.output - expected.b[:, None, None]
    kernel = tuple(min(size, limit) for size, limit in zip(pooling.kernel_size, conv.shape[2:], strict=True))
    padding = pooling.padding if isinstance(pooling.padding, str) else data.draw(paddings([k - 1 for k in kernel]))
    options = dict(kernel_size=kernel, stride=pooling.stride, padding=padding)
    note(f"{problem} {options} {isa} {dtype} {layout}")
    pooled, codes = reference.max_pool2d(np.maximum(conv, 0), return_codes=True, **options)
    codes = np.where(pooled > 0, codes, np.uint8(255))
    g = numbers(pooled.shape, "integer", 1)
    grad_conv = reference.max_pool2d_backward(g, codes, conv.shape, **options)
    wanted = reference.conv2d_backward(grad_conv, expected.x, expected.w, **problem.options)
    x, w, b = (getattr(expected, name).astype(dtype) for name in "xwb")
    x, grad = to_layout(x, layout), to_layout(g, layout).astype(dtype)
    if data.draw(flags, "views"):
        x, w, grad = (data.draw(views(array)) for array in (x, w, grad))
    before = _cpu.config()["isa"]
    _cpu.set_isa(isa)
    try:
        output, saved = convx.conv2d_relu_max_pool2d(
            x, w, b if with_bias else None, problem.stride, problem.padding, problem.dilation, problem.groups,
            layout=layout, **{f"pool_{name}": value for name, value in options.items()},
        )  # fmt: skip
        gradients = convx.conv2d_relu_max_pool2d_backward(grad, saved)
    finally:
        _cpu.set_isa(before)
    assert_equal(from_layout(output, layout), pooled, f"output of {problem}")
    assert_equal(from_layout(saved.codes, layout), codes, f"codes of {problem}")
    for name, gradient, truth in zip(GRADIENTS, gradients, wanted, strict=True):
        actual = from_layout(gradient, layout) if name == "grad_input" else gradient
        assert_equal(actual, truth, f"{name} of {problem}")


@given(st.data(), st.lists(st.integers(0, 19), min_size=1, max_size=5), st.sampled_from(ISAS), st.sampled_from(DTYPES))
def test_relu(data, shape, isa, dtype):
    rng = np.random.default_rng(data.draw(st.integers(0, 100), "seed"))
    palette = (np.nan, np.inf, -np.inf, 0.0, -0.0, 2.0, -3.0, 1e-40)
    x, g = (rng.choice(palette, shape).astype(dtype) for _ in range(2))
    x, g = data.draw(views(x)), data.draw(views(g))
    expected, expected_gradient = reference.relu(x), reference.relu_backward(g, x)
    before = _cpu.config()["isa"]
    _cpu.set_isa(isa)
    try:
        out = data.draw(views(np.zeros(shape, dtype)))
        assert convx.relu(x, out=out) is out
        assert_equal(convx.relu(x), expected, "relu")
        assert_equal(out, expected, "relu into out")
        assert_equal(convx.relu_backward(g, x), expected_gradient, "relu_backward")
        assert convx.relu_backward(g, x, out=g) is g
        assert_equal(g, expected_gradient, "relu_backward in place")
        assert convx.relu(x, out=x) is x
        assert_equal(x, expected, "relu in place")
    finally:
        _cpu.set_isa(before)
