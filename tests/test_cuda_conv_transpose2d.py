"""conv_transpose2d in the sources of the CUDA backend, run by the shim of tests/simt: see simt_arrays.py.

Its passes are those of conv2d, which test_cuda_conv2d.py runs in all dtypes. This file tests the exchanged arguments,
the bias, and outputs that no window reaches."""

from __future__ import annotations

import numpy as np
import pytest

import convx
import simt_arrays as cuda
from simt_arrays import HOST, WAYS, numpy_dtype
from support import (
    TRANSPOSE_PROBLEMS,
    Transpose,
    assert_equal,
    assert_same_bits,
    from_layout,
    to_layout,
    transpose_expected,
    views,
)

pytestmark = cuda.needs_simt
GRADIENTS = ("grad_input", "grad_weight", "grad_bias")
SOME = ("3x3-pad1", "3x3-stride2", "per-side-stride", "groups3-odd", "depthwise-stride2", "upsampling-2x",
        "stride-over-kernel-padded", "output-padding-over-the-stride", "output-padding-over-the-stride-per-side",
        "no-window-reaches")  # fmt: skip


def run(problem, data, dtype, layout, precision="ieee", library=HOST):
    """The output and the three gradients as float64 in NCHW."""
    x, w, b, g = (getattr(data, name).astype(numpy_dtype(dtype)) for name in "xwbg")
    x, g = to_layout(x, layout), to_layout(g, layout)
    options = problem.options | dict(layout=layout, precision=precision, library=library)
    results = dict(zip(GRADIENTS, cuda.conv_transpose2d_backward(g, x, w, **options), strict=True))
    results["output"] = cuda.conv_transpose2d(x, w, b, **options)
    for name, result in results.items():
        assert result.dtype == numpy_dtype(dtype), name
        result = from_layout(result, layout) if name in ("output", "grad_input") else result
        results[name] = result.astype(np.float64)
    return results


def check(name, dtype, layout, kind, precision="ieee"):
    problem = TRANSPOSE_PROBLEMS[name]
    expected = transpose_expected(problem, kind)
    for result_name, result in run(problem, expected, dtype, layout, precision).items():
        with np.errstate(over="ignore"):
            wanted = getattr(expected, result_name).astype(numpy_dtype(dtype)).astype(np.float64)
        assert_equal(result, wanted, f"{result_name} of {name}, {dtype} {precision} {layout}")


@pytest.mark.parametrize("name", TRANSPOSE_PROBLEMS)
def test_whole_numbers(name, layout):
    check(name, "float32", layout, "integer")


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("name", SOME)
def test_every_type(name, way, layout):
    check(name, way[0], layout, "integer", way[1])
    check(name, way[0], layout, "special", way[1])


@pytest.mark.core
def test_views_and_out(layout):
    problem = Transpose(c=4, k=6, stride=(2, 1), padding=(0, 1), dilation=(1, 3), output_padding=(1, 2))
    expected = transpose_expected(problem)
    x, w, b, g = (getattr(expected, each).astype("float32") for each in "xwbg")
    x, g = to_layout(x, layout), to_layout(g, layout)
    options = problem.options | dict(layout=layout)
    output, grads = cuda.conv_transpose2d(x, w, b, **options), cuda.conv_transpose2d_backward(g, x, w, **options)
    for number, array in enumerate((x, w, b, g)):
        for view_name, view in views(array):
            if view.flags.aligned and all(stride % view.itemsize == 0 for stride in view.strides):
                some = [view if i == number else other for i, other in enumerate((x, w, b, g))]
                assert_same_bits(cuda.conv_transpose2d(*some[:3], **options), output, view_name)
                assert_same_bits(cuda.conv_transpose2d_backward(some[3], *some[:2], **options), grads, view_name)
    larger = np.full([2 * size for size in output.shape], 7, output.dtype)
    out = larger[tuple(slice(None, None, -2) for _ in output.shape)]
    assert cuda.conv_transpose2d(x, w, b, out=out, **options) is out
    assert_same_bits(out.copy(), output, "out")
    assert (larger == 7).sum() >= larger.size - out.size


def test_sizes_of_zero(layout):
    w, b = np.ones((3, 4, 3, 3), "float32"), np.arange(4, dtype="float32")
    x = to_layout(np.zeros((0, 3, 5, 6), "float32"), layout)
    y = cuda.conv_transpose2d(x, w, b, layout=layout)
    grads = cuda.conv_transpose2d_backward(y, x, w, layout=layout)
    assert grads[0].shape == x.shape and not grads[1].any() and not grads[2].any()
    x, w = to_layout(np.zeros((2, 0, 5, 6), "float32"), layout), np.ones((0, 4, 3, 3), "float32")
    y = cuda.conv_transpose2d(x, w, b, layout=layout)
    assert_equal(from_layout(y, layout), np.broadcast_to(b[:, None, None], (2, 4, 7, 8)), "no input channel")
    grads = cuda.conv_transpose2d_backward(np.ones_like(y), x, w, layout=layout)
    assert grads[0].shape == x.shape and grads[1].shape == w.shape
    assert_equal(grads[2], np.full(4, 112.0), "grad_bias without an input channel")


def test_memory_is_what_the_plans_say():
    problem = TRANSPOSE_PROBLEMS["upsampling-2x"]
    data = transpose_expected(problem, "integer")
    library = cuda.Host()
    results = run(problem, data, "float32", "NCHW", library=library)
    values = problem.options | dict(algorithm="auto", layout="NCHW", precision="ieee", output_mask=(True,) * 3)
    plans = [
        *cuda._simt.explain("conv_transpose2d", problem.input_shape, problem.weight_shape, values, "float32"),
        *cuda._simt.explain("conv_transpose2d_backward", problem.input_shape, problem.weight_shape, values, "float32"),
    ]
    assert [plan["pass"] for plan in plans] == ["forward", *GRADIENTS]
    arrays = sum(4 * result.size for result in results.values())
    workspace = sum(plan["workspace_bytes"] for plan in plans)
    assert sum(array.nbytes for array in library.allocated) == arrays + workspace


def test_errors():
    x, w = np.zeros((1, 2, 5, 5), "float32"), np.zeros((2, 3, 3, 3), "float32")
    cases = [
        (TypeError, r"conv_transpose2d: weight is a list, expected a numpy\.ndarray as the first array is",
         lambda: cuda.conv_transpose2d(x, [1])),
        (convx.ShapeError, "conv_transpose2d: algorithm is 'winograd', expected 'auto' or 'direct' on CUDA",
         lambda: cuda.conv_transpose2d(x, w, algorithm="winograd")),
        (convx.ShapeError, "conv_transpose2d: output_padding is 1 in height, expected 0 to 0",
         lambda: cuda.conv_transpose2d(x, w, output_padding=1)),
        (convx.ShapeError, "conv_transpose2d: out shares memory with input",
         lambda: cuda.conv_transpose2d(x, w[:, :2, :1, :1].copy(), out=x)),
        (convx.ShapeError, "conv_transpose2d_backward: grad_output has shape",
         lambda: cuda.conv_transpose2d_backward(x, x, w)),
    ]  # fmt: skip
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
