"""conv2d and its gradients in the sources of the CUDA backend, run by the shim of tests/simt: see simt_arrays.py.

Every dtype and precision runs every problem of `support.CONV_PROBLEMS`. Results on whole numbers must agree in every
bit, since these and their sums are exact in every dtype or rounded once at the end.
"""

from __future__ import annotations

import numpy as np
import pytest

import convx
import simt_arrays as cuda
from convx import reference
from simt_arrays import DTYPES, HOST, WAYS, numpy_dtype
from support import (
    CONV_PROBLEMS,
    Conv,
    assert_equal,
    assert_same_bits,
    assert_within,
    broadcasts,
    conv_expected,
    conv_results,
    from_layout,
    to_layout,
    views,
)

pytestmark = cuda.needs_simt
GRADIENTS = ("grad_input", "grad_weight", "grad_bias")
# A few of each kind: stride, dilation, groups, depthwise, mirrored borders.
SOME = ("3x3-pad1", "per-side-stride", "stride-dilation-coprime", "groups3-odd", "depthwise-dilation",
        "circular-stride-dilation", "constant-same-stride", "reduction-1x1-257")  # fmt: skip


def rounded(array, dtype):
    """Round to the element type and back: the expected value of a result that was exact before its last rounding."""
    with np.errstate(over="ignore"):
        return array.astype(numpy_dtype(dtype)).astype(np.float64)


def run(problem, data, dtype, layout, precision, library=HOST):
    """The output and the three gradients as float64 in NCHW."""
    x, w, b, g = (data[name].astype(numpy_dtype(dtype)) for name in "xwbg")
    x, g = to_layout(x, layout), to_layout(g, layout)
    options = problem.options | dict(layout=layout, precision=precision, library=library)
    output = cuda.conv2d(x, w, b, **options)
    grad_input, grad_weight, grad_bias = cuda.conv2d_backward(g, x, w, **options)
    results = dict(
        output=from_layout(output, layout), grad_input=from_layout(grad_input, layout), grad_weight=grad_weight,
        grad_bias=grad_bias,
    )  # fmt: skip
    for name, result in results.items():
        assert result.dtype == numpy_dtype(dtype), name
    return {name: result.astype(np.float64) for name, result in results.items()}


def exact(expected, dtype, name):
    """Whether every partial result is exact in the type of the sum."""
    return expected.magnitude[name].max(initial=0) < 2.0 ** (53 if dtype == "float64" else 24)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("name", CONV_PROBLEMS)
def test_whole_numbers(name, way, layout):
    dtype, precision = way
    problem = CONV_PROBLEMS[name]
    expected = conv_expected(problem, "integer")
    results = run(problem, vars(expected), dtype, layout, precision)
    for result_name, result in results.items():
        assert exact(expected, dtype, result_name)
        wanted = rounded(getattr(expected, result_name), dtype)
        assert_equal(result, wanted, f"{result_name} of {name}, {dtype} {precision} {layout}")


@pytest.mark.core
@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("name", SOME)
def test_inf_and_nan(name, way, layout):
    """Inf and NaN reach the results of the formula: taps over a border of zeros are skipped."""
    dtype, precision = way
    problem = CONV_PROBLEMS[name]
    expected = conv_expected(problem, "special")
    results = run(problem, vars(expected), dtype, layout, precision)
    for result_name, result in results.items():
        wanted = rounded(getattr(expected, result_name), dtype)
        assert_equal(result, wanted, f"{result_name} of {name}, {dtype} {precision} {layout}")


def bound(expected, name, dtype, precision):
    """The bound: rounding of the factors for the tensor cores, of the partial sums, and of the stored result."""
    terms, magnitude = expected.terms[name], expected.magnitude[name]
    sum_unit = 2.0**-53 if dtype == "float64" else 2.0**-24
    factor = 0.0
    if dtype == "float32" and precision != "ieee" and name != "grad_bias":
        factor = 2 * 2.0 ** -cuda.FACTOR_BITS[precision]
    # + 3: the bias, separate roundings of a product and its sum, and split-K, whose slices are terms of another sum.
    result = magnitude * (factor * (1 + factor) + sum_unit * (terms + 3)) * 1.01
    stored = 2.0 ** -cuda.STORED_BITS[dtype]
    return result + np.abs(getattr(expected, name)) * stored * 1.01


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("name", [*SOME, "3x3", "reduction-1x1-513", "reduction-of-pixels"])
def test_normal_numbers(name, way, layout):
    dtype, precision = way
    problem = CONV_PROBLEMS[name]
    expected = conv_expected(problem, "normal")
    if dtype in ("float16", "bfloat16"):
        expected = conv_results(problem, *(rounded(getattr(expected, each), dtype) for each in "xwbg"))
    results = run(problem, vars(expected), dtype, layout, precision)
    for result_name, result in results.items():
        assert_within(
            result, getattr(expected, result_name), bound(expected, result_name, dtype, precision),
            f"{result_name} of {name}, {dtype} {precision} {layout}",
        )  # fmt: skip


def test_tf32x3_is_nearly_as_exact_as_ieee():
    """The mean error of a sum of 4608 products: 3xTF32 is near that of IEEE float32, TF32 is not."""
    problem = Conv(n=1, c=512, h=6, w=6, k=16)
    expected = conv_expected(problem, "normal")
    errors = {}
    for precision in ("ieee", "tf32x3", "tf32"):
        output = run(problem, vars(expected), "float32", "NCHW", precision)["output"]
        errors[precision] = np.abs(output - expected.output).mean()
    assert errors["tf32x3"] < 3 * errors["ieee"] < errors["tf32"] / 20


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_large_tiles(way, layout):
    """Tiles of 128 x 128 need more than 64 channels and enough blocks for half a GPU, or such a weight gradient."""
    dtype, precision = way
    problem = Conv(n=1, c=3, h=97, w=179, k=70, r=1, s=2)
    (plan,) = explain("conv2d", problem, dtype, layout, precision)
    assert plan["tile"].startswith("64 x" if dtype == "float64" else "128 x 128"), plan
    assert plan["blocks"] > 132
    check_all(problem, dtype, precision, layout)
    problem = Conv(n=2, c=13, h=9, w=11, k=130, padding=1)
    (plan,) = explain("conv2d_backward", problem, dtype, layout, precision, output_mask=(False, True, False))
    assert plan["tile"].startswith("64 x" if dtype == "float64" else "128 x 128"), plan
    check_all(problem, dtype, precision, layout)


def test_a_weight_gradient_in_parts(layout):
    problem = Conv(n=2, c=4, h=67, w=61, k=5, padding=1)
    (plan,) = explain("conv2d_backward", problem, "float32", layout, "ieee", output_mask=(False, True, False))
    assert plan["parts"] > 10
    check_all(problem, "float32", "ieee", layout)


def explain(op, problem, dtype, layout, precision, **options):
    shape = problem.input_shape if layout == "NCHW" else tuple(problem.input_shape[i] for i in (0, 2, 3, 1))
    values = problem.options | dict(algorithm="auto", activation=None, layout=layout, precision=precision) | options
    return cuda._simt.explain(op, shape, problem.weight_shape, values, dtype)


def check_all(problem, dtype, precision, layout):
    expected = conv_expected(problem, "integer")
    for name, result in run(problem, vars(expected), dtype, layout, precision).items():
        assert_equal(result, rounded(getattr(expected, name), dtype), f"{name}, {dtype} {precision} {layout}")


def test_plans_of_the_networks():
    """Every layer of ResNet-50 and VGG-19 has enough blocks and a workspace of a few MiB; nothing runs."""
    for shape, weight in [((32, 64, 56, 56), (64, 64, 3, 3)), ((32, 512, 7, 7), (512, 512, 3, 3)),
                          ((32, 3, 224, 224), (64, 3, 7, 7)), ((32, 256, 56, 56), (64, 256, 1, 1))]:  # fmt: skip
        for precision in ("ieee", "tf32"):
            values = dict(stride=1, padding=weight[2] // 2, dilation=1, groups=1, padding_mode="zeros",
                          padding_value=0.0, algorithm="auto", activation=None, layout="NCHW", precision=precision,
                          output_mask=(True, True, True))  # fmt: skip
            plans = cuda._simt.explain("conv2d", shape, weight, values, "float32")
            plans += cuda._simt.explain("conv2d_backward", shape, weight, values, "float32")
            assert [plan["pass"] for plan in plans] == ["forward", *GRADIENTS]
            for plan in plans:
                assert plan["reason"] and plan["flops"] > 0 and plan["bytes"] > 0
                assert plan["workspace_bytes"] < 2**26, plan
                if plan["pass"] != "grad_bias":
                    assert plan["blocks"] >= 98, plan


@pytest.mark.parametrize("name", ["3x3-pad1", "groups3-odd", "circular-stride-dilation", "depthwise-stride2"])
@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_same_bits_alone_and_in_a_batch(name, way, layout):
    dtype, precision = way
    problem = CONV_PROBLEMS[name].replace(n=3)
    data = vars(conv_expected(problem, "normal"))
    whole = run(problem, data, dtype, layout, precision)
    for image in range(3):
        alone = {each: data[each][image : image + 1] for each in "xg"} | {each: data[each] for each in "wb"}
        results = run(problem.replace(n=1), alone, dtype, layout, precision)
        for each in ("output", "grad_input"):
            assert_same_bits(results[each], whole[each][image : image + 1], f"{each} of image {image}")


@pytest.mark.parametrize("name", ["3x3-pad1", "groups3-odd", "circular-stride-dilation", "depthwise-stride2"])
@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_same_bits_for_every_order_of_threads(name, way, monkeypatch):
    """The seed determines the order of threads and blocks in the shim; a race would change bits."""
    dtype, precision = way
    problem = CONV_PROBLEMS[name]
    data = vars(conv_expected(problem, "normal"))
    first = run(problem, data, dtype, "NHWC", precision)
    for seed in ("2", "3", "4"):
        monkeypatch.setenv("CONVX_SIMT_SEED", seed)
        for each, result in run(problem, data, dtype, "NHWC", precision).items():
            assert_same_bits(result, first[each], f"{each}, seed {seed}")


def aligned(array):
    """Whether the strides of a view are whole numbers of elements."""
    return array.flags.aligned and all(stride % array.itemsize == 0 for stride in array.strides)


@pytest.mark.core
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("name", ["3x3-pad1", "per-side-stride", "groups-narrow", "reflect"])
def test_views(name, precision, layout):
    """Results have the same bits for any strides."""
    problem = CONV_PROBLEMS[name]
    expected = conv_expected(problem, "normal")
    x, w, b, g = (getattr(expected, each).astype("float32") for each in "xwbg")
    options = problem.options | dict(layout=layout, precision=precision)
    x, g = to_layout(x, layout), to_layout(g, layout)
    output, grads = cuda.conv2d(x, w, b, **options), cuda.conv2d_backward(g, x, w, **options)
    for number, array in enumerate((x, w, b, g)):
        for view_name, view in views(array):
            if not aligned(view):
                continue
            some = [view if i == number else other for i, other in enumerate((x, w, b, g))]
            context = f"{'xwbg'[number]} {view_name}"
            assert_same_bits(cuda.conv2d(*some[:3], **options), output, context)
            assert_same_bits(cuda.conv2d_backward(some[3], *some[:2], **options), grads, context)
    for view_name, view in broadcasts(x):
        assert_same_bits(cuda.conv2d(view, w, b, **options), cuda.conv2d(view.copy(), w, b, **options), view_name)


@pytest.mark.parametrize("kind", DTYPES)
def test_out_and_activation(kind, layout):
    problem = CONV_PROBLEMS["3x3-pad1"]
    expected = conv_expected(problem, "integer")
    x, w, b = (getattr(expected, each).astype(numpy_dtype(kind)) for each in "xwb")
    x = to_layout(x, layout)
    options = problem.options | dict(layout=layout, activation="relu")
    wanted = rounded(np.maximum(expected.output, 0), kind)
    output = cuda.conv2d(x, w, b, **options)
    assert_equal(from_layout(output, layout).astype(np.float64), wanted, "relu")
    larger = np.full([2 * size for size in output.shape], 7, output.dtype)
    out = larger[tuple(slice(None, None, -2) for _ in output.shape)]
    assert cuda.conv2d(x, w, b, out=out, **options) is out
    assert_same_bits(out.copy(), output, "out")
    assert (larger == 7).sum() >= larger.size - out.size


@pytest.mark.parametrize("kind", DTYPES)
def test_sizes_of_zero(kind, layout):
    def zeros(*shape):
        return to_layout(np.zeros(shape, numpy_dtype(kind)), layout) if len(shape) > 2 else np.zeros(shape)

    w, b = np.ones((4, 3, 3, 3), numpy_dtype(kind)), np.arange(4).astype(numpy_dtype(kind))
    x, g = zeros(0, 3, 6, 7), zeros(0, 4, 4, 5)
    assert cuda.conv2d(x, w, b, layout=layout).shape == g.shape
    grads = cuda.conv2d_backward(g, x, w, layout=layout)
    assert grads[0].shape == x.shape
    assert not grads[1].astype(float).any() and not grads[2].astype(float).any()
    x, w = zeros(2, 0, 6, 7), np.ones((4, 0, 3, 3), numpy_dtype(kind))
    output = from_layout(cuda.conv2d(x, w, b, layout=layout), layout)
    assert_equal(output.astype(float), np.broadcast_to(np.arange(4.0)[:, None, None], (2, 4, 4, 5)), "C = 0")
    grads = cuda.conv2d_backward(to_layout(np.ones((2, 4, 4, 5), numpy_dtype(kind)), layout), x, w, layout=layout)
    assert grads[0].shape == x.shape and grads[1].shape == w.shape
    assert_equal(grads[2].astype(float), np.full(4, 40.0), "grad_bias at C = 0")


PER_SAMPLE = ("3x3-pad1", "1x1", "groups3-odd", "depthwise-stride2", "circular-stride-dilation", "photo",
              "constant-same-stride", "reduction-of-pixels")  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("name", PER_SAMPLE)
def test_gradients_of_every_image(name, way, layout):
    """Each gradient has the bits of a call for its image alone, in one launch or in one for each image."""
    dtype, precision = way
    problem = CONV_PROBLEMS[name].replace(n=3)
    data = vars(conv_expected(problem, "normal"))
    x, w, g = (data[each].astype(numpy_dtype(dtype)) for each in "xwg")
    x, g = to_layout(x, layout), to_layout(g, layout)
    options = problem.options | dict(layout=layout, precision=precision)
    grads = cuda.conv2d_backward(g, x, w, per_sample=True, **options)
    norms = cuda.conv2d_grad_norms(g, x, w.shape, **options)
    assert_same_bits(grads[0], cuda.conv2d_backward(g, x, w, **options)[0], "grad_input")
    mirrored = [np.flip(np.flip(array, 0).copy(), 0) for array in (g, x)]  # a launch for each image
    assert_same_bits(cuda.conv2d_backward(*mirrored, w, per_sample=True, **options), grads, "views")
    assert_same_bits(cuda.conv2d_grad_norms(*mirrored, w.shape, **options), norms, "norms of views")
    for image in range(3):
        part = slice(image, image + 1)
        alone = cuda.conv2d_backward(g[part], x[part], w, **options)
        assert_same_bits(grads[1][image], alone[1], f"grad_weight of image {image}")
        assert_same_bits(grads[2][image], alone[2], f"grad_bias of image {image}")
        unbatched = cuda.conv2d_backward(g[image], x[image], w, per_sample=True, **options)
        assert_same_bits(unbatched[1:], alone[1:], f"image {image} without a batch axis")
        alone = cuda.conv2d_grad_norms(g[part], x[part], w.shape, **options)
        assert_same_bits(alone, tuple(each[part] for each in norms), f"norms of image {image}")
        assert [each.shape for each in cuda.conv2d_grad_norms(g[image], x[image], w.shape, **options)] == [(), ()]


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("name", PER_SAMPLE)
def test_norms_of_whole_numbers(name, way, layout):
    """Sums are exact in float32, their squares in float64; gradients never round to 16 bits, which would overflow."""
    dtype, precision = way
    problem = CONV_PROBLEMS[name]
    expected = conv_expected(problem, "integer")
    x, g = (to_layout(getattr(expected, each).astype(numpy_dtype(dtype)), layout) for each in "xg")
    norms = cuda.conv2d_grad_norms(g, x, problem.weight_shape, layout=layout, precision=precision, **problem.options)
    wanted = reference.conv2d_grad_norms(expected.g, expected.x, problem.weight_shape, **problem.options)
    for got, truth, which in zip(norms, wanted, ("weight_norms", "bias_norms"), strict=True):
        assert got.dtype == np.float64
        assert_equal(got, truth, f"{which} of {name}")


def test_norms_of_several_blocks(layout, monkeypatch):
    problem = Conv(n=2, c=70, h=3, w=4, k=60)
    assert np.prod(problem.weight_shape) > 2 * 16384
    expected = conv_expected(problem, "integer")
    x, g = (to_layout(getattr(expected, each).astype("float32"), layout) for each in "xg")
    wanted = reference.conv2d_grad_norms(expected.g, expected.x, problem.weight_shape, **problem.options)
    for seed in ("1", "2"):
        monkeypatch.setenv("CONVX_SIMT_SEED", seed)
        norms = cuda.conv2d_grad_norms(g, x, problem.weight_shape, layout=layout, **problem.options)
        assert_equal(norms[0], wanted[0], "weight_norms")


def test_per_sample_memory(layout):
    """The array library allocates the results and the workspace of the plans."""
    problem = CONV_PROBLEMS["3x3-pad1"]
    expected = conv_expected(problem, "integer")
    x, w, g = (getattr(expected, each).astype("float32") for each in "xwg")
    x, g = to_layout(x, layout), to_layout(g, layout)
    for op, call in [
        ("conv2d_backward", lambda library: cuda.conv2d_backward(
            g, x, w, per_sample=True, output_mask=(False, True, True), layout=layout, library=library,
            **problem.options)[1:]),
        ("conv2d_grad_norms", lambda library: cuda.conv2d_grad_norms(
            g, x, w.shape, layout=layout, library=library, **problem.options)),
    ]:  # fmt: skip
        library = cuda.Host()
        results = call(library)
        plans = explain(op, problem, "float32", layout, "ieee", output_mask=(False, True, True), per_sample=True)
        workspace = sum(plan["workspace_bytes"] for plan in plans)
        assert sum(array.nbytes for array in library.allocated) == workspace + sum(each.nbytes for each in results)
    assert [plan["pass"] for plan in plans] == ["weight_norms", "bias_norms"]


def test_per_sample_sizes_of_zero(layout):
    w = np.ones((4, 3, 3, 3), "float32")
    x, g = to_layout(np.zeros((0, 3, 6, 7), "float32"), layout), to_layout(np.zeros((0, 4, 4, 5), "float32"), layout)
    grads = cuda.conv2d_backward(g, x, w, layout=layout, per_sample=True)
    assert [grad.shape for grad in grads] == [x.shape, (0, 4, 3, 3, 3), (0, 4)]
    assert [norms.shape for norms in cuda.conv2d_grad_norms(g, x, w.shape, layout=layout)] == [(0,), (0,)]
    x, g = to_layout(np.zeros((2, 0, 6, 7), "float32"), layout), to_layout(np.ones((2, 4, 4, 5), "float32"), layout)
    norms = cuda.conv2d_grad_norms(g, x, (4, 0, 3, 3), layout=layout)
    assert_equal(norms[0], np.zeros(2), "norms of no weights")
    assert_equal(norms[1], np.full(2, 1600.0), "norms of the bias")


def test_unbatched(layout):
    problem = CONV_PROBLEMS["3x3-pad1"].replace(n=1)
    expected = conv_expected(problem, "integer")
    x, w, b, g = (getattr(expected, each).astype("float32") for each in "xwbg")
    x, g = to_layout(x[0], layout), to_layout(g[0], layout)
    output = cuda.conv2d(x, w, b, layout=layout, **problem.options)
    assert_equal(from_layout(output, layout), expected.output[0], "output")
    grads = cuda.conv2d_backward(g, x, w, layout=layout, **problem.options)
    assert_equal(from_layout(grads[0], layout), expected.grad_input[0], "grad_input")


def test_output_mask_and_memory():
    """Only requested gradients are computed, in memory of the array library: results and the plan's workspace."""
    problem = CONV_PROBLEMS["circular-stride-dilation"]
    expected = conv_expected(problem, "integer")
    x, w, b, g = (getattr(expected, each).astype("float32") for each in "xwbg")
    for mask in [(True, False, False), (False, True, False), (False, False, True), (False, False, False)]:
        library = cuda.Host()
        grads = cuda.conv2d_backward(g, x, w, output_mask=mask, library=library, **problem.options)
        assert [grad is not None for grad in grads] == list(mask)
        plans = explain("conv2d_backward", problem, "float32", "NCHW", "ieee", output_mask=mask)
        results = sum(grad.nbytes for grad in grads if grad is not None)
        workspace = sum(plan["workspace_bytes"] for plan in plans)
        assert sum(array.nbytes for array in library.allocated) == results + workspace
    library = cuda.Host()
    output = cuda.conv2d(x, w, b, library=library, **problem.options)
    (plan,) = explain("conv2d", problem, "float32", "NCHW", "ieee")
    assert sum(array.nbytes for array in library.allocated) == output.nbytes + plan["workspace_bytes"]


def test_errors():
    x, w = np.zeros((1, 2, 5, 5), "float32"), np.zeros((3, 2, 3, 3), "float32")
    g = np.zeros((1, 3, 3, 3), "float32")
    cases = [
        (TypeError, r"conv2d: weight is a list, expected a numpy\.ndarray as the first array is",
         lambda: cuda.conv2d(x, [1])),
        (TypeError, "conv2d: input has dtype int32, expected float32, float64, float16 or bfloat16",
         lambda: cuda.conv2d(x.astype("int32"), w)),
        (TypeError, "conv2d: weight has dtype float64", lambda: cuda.conv2d(x, w.astype("float64"))),
        (convx.ShapeError, "conv2d: precision is 'exact', expected 'ieee', 'tf32x3' or 'tf32'",
         lambda: cuda.conv2d(x, w, precision="exact")),
        (convx.ShapeError, "conv2d: algorithm is 'winograd', expected 'auto' or 'direct' on CUDA",
         lambda: cuda.conv2d(x, w, algorithm="winograd")),
        (convx.ShapeError, "conv2d_backward: grad_output has shape", lambda: cuda.conv2d_backward(g[:, :2], x, w)),
        (convx.ShapeError, "conv2d: weight has 2 input channels per group, expected 4",
         lambda: cuda.conv2d(np.zeros((1, 4, 5, 5), "float32"), w)),
    ]  # fmt: skip
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()


def test_out_that_cannot_be_written():
    x, w = np.zeros((1, 3, 5, 5), "float32"), np.zeros((3, 3, 1, 1), "float32")
    frozen = np.zeros_like(x)
    frozen.flags.writeable = False
    for out, message in [
        (x, "out shares memory with input"),
        (frozen, "out is read-only"),
        (np.broadcast_to(np.zeros((1, 1, 5, 5), "float32"), x.shape), "out has elements that share memory|read-only"),
        (np.zeros((1, 3, 5, 4), "float32"), "out has shape"),
    ]:
        with pytest.raises(convx.ShapeError, match=message):
            cuda.conv2d(x, w, out=out)


def test_two_devices():
    class Second(cuda.Host):
        def describe(self, array):
            *rest, _, writeable = super().describe(array)
            return *rest, int(array.shape[0] == 3), writeable

    x, w = np.zeros((1, 2, 5, 5), "float32"), np.zeros((3, 2, 3, 3), "float32")
    with pytest.raises(convx.ShapeError, match="conv2d: weight is on device 1, expected device 0 as input is"):
        cuda.conv2d(x, w, library=Second())


def test_reference_is_the_judge():
    """The bounds above depend on the reference: one product by hand."""
    x, w = np.full((1, 1, 1, 1), 3.0), np.full((1, 1, 1, 1), 5.0)
    assert cuda.conv2d(x, w).item() == reference.conv2d(x, w).item() == 15
