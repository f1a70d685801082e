"""conv_transpose2d and its gradients: every option, layout, view and `out`, inf and NaN, the same bits for every call.

The problems are the adjoints of all problems of conv2d, and some that are no adjoint of a convolution."""

from __future__ import annotations

import numpy as np
import pytest

import convx
from convx import reference
from support import (
    GRADIENTS,
    TRANSPOSE_PROBLEMS,
    Transpose,
    assert_equal,
    assert_same_bits,
    assert_within,
    broadcasts,
    conv_bound,
    exact_algorithm,
    from_layout,
    numbers,
    to_layout,
    transpose_expected,
    views,
    winograd_bound,
)

# A few of each kind: every method of conv2d's passes, and output padding beyond the last window.
SOME = ("3x3-pad1", "3x3-stride2", "1x1-stride", "per-side-stride", "groups3-odd", "depthwise-stride2", "depthwise",
        "first-layer-7x7", "stride-dilation-coprime", "output-padding-over-the-stride")  # fmt: skip
# Large enough for several tasks.
LARGE = {
    "decoder": Transpose(n=3, c=40, h=14, w=15, k=24, r=4, s=4, stride=2, padding=1),
    "3x3": Transpose(n=3, c=32, h=28, w=30, k=36, padding=1),
    "depthwise-stride2": Transpose(n=3, c=40, h=40, w=39, k=40, groups=40, stride=2, padding=1, output_padding=1),
    "groups": Transpose(n=3, c=48, h=30, w=31, k=48, groups=6, stride=2, padding=1),
    "to-a-picture": Transpose(n=3, c=32, h=33, w=34, k=3, r=4, s=4, stride=2, padding=1),
}


def run(problem, data, dtype, layout, algorithm="auto"):
    """The output and the three gradients in NCHW."""
    x, w, b, g = (getattr(data, name).astype(dtype) for name in "xwbg")
    x, g = to_layout(x, layout), to_layout(g, layout)
    options = problem.options | dict(layout=layout, algorithm=algorithm)
    results = dict(zip(GRADIENTS, convx.conv_transpose2d_backward(g, x, w, **options), strict=True))
    results["output"] = convx.conv_transpose2d(x, w, b, **options)
    for name, result in results.items():
        assert result.dtype == np.dtype(dtype), name
        if name in ("output", "grad_input"):
            results[name] = from_layout(result, layout)
    return results


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.core if name in SOME else ()) for name in TRANSPOSE_PROBLEMS]
)
def test_whole_numbers(name, isa, dtype, layout):
    problem = TRANSPOSE_PROBLEMS[name]
    expected = transpose_expected(problem, "integer")
    for result_name, result in run(problem, expected, dtype, layout, exact_algorithm(problem)).items():
        assert_equal(result, getattr(expected, result_name), f"{result_name} of {name}")


@pytest.mark.parametrize("name", [*SOME, "3x3", "1x1", "reduction-1x1-513", "small-planes-many", "upsampling-2x-3x3"])
def test_normal_numbers(name, isa, dtype, layout):
    problem = TRANSPOSE_PROBLEMS[name]
    expected = transpose_expected(problem)
    bound = winograd_bound if exact_algorithm(problem) == "direct" else conv_bound
    for result_name, result in run(problem, expected, dtype, layout).items():
        assert_within(
            result, getattr(expected, result_name), bound(expected, result_name, dtype), f"{result_name} of {name}"
        )


@pytest.mark.core
@pytest.mark.parametrize("name", SOME)
def test_inf_and_nan(name, isa, dtype, layout):
    """Inf and NaN reach the outputs of the formula: nothing is multiplied where the padding crops a window."""
    problem = TRANSPOSE_PROBLEMS[name]
    expected = transpose_expected(problem, "special")
    for result_name, result in run(problem, expected, dtype, layout).items():
        assert_equal(result, getattr(expected, result_name), f"{result_name} of {name}")


@pytest.mark.parametrize("name", ["3x3", "3x3-stride2", "depthwise", "groups-stride", "few"])
def test_it_is_the_input_gradient_of_conv2d(name, isa, dtype, layout):
    """The bits of grad_input of conv2d; and its own input gradient is conv2d."""
    problem = TRANSPOSE_PROBLEMS.get(name, Transpose(c=8, h=9, w=10, k=3, r=5, s=5, padding=2))
    expected = transpose_expected(problem)
    x, w, g = (getattr(expected, each).astype(dtype) for each in "xwg")
    x, g = to_layout(x, layout), to_layout(g, layout)
    options = problem.options | dict(layout=layout)
    output = convx.conv_transpose2d(x, w, **options)
    grads = convx.conv_transpose2d_backward(g, x, w, **options)
    del options["output_padding"]
    assert_same_bits(convx.conv2d_backward(x, g, w, **options)[0], output, "output")
    assert_same_bits(convx.conv2d(g, w, **options), grads[0], "grad_input")
    assert_same_bits(convx.conv2d_backward(x, g, w, **options)[1], grads[1], "grad_weight")


@pytest.mark.core
@pytest.mark.parametrize("name", ["3x3-stride2", "groups3-odd", "output-padding-over-the-stride", "1x1"])
def test_views(name, isa, layout):
    problem = TRANSPOSE_PROBLEMS[name]
    expected = transpose_expected(problem)
    x, w, b, g = (getattr(expected, each).astype("float32") for each in "xwbg")
    options = problem.options | dict(layout=layout)
    x, g = to_layout(x, layout), to_layout(g, layout)
    output = convx.conv_transpose2d(x, w, b, **options)
    grads = convx.conv_transpose2d_backward(g, x, w, **options)
    for number, array in enumerate((x, w, b, g)):
        for view_name, view in views(array):
            some = [view if i == number else other for i, other in enumerate((x, w, b, g))]
            context = f"{'xwbg'[number]} {view_name}"
            assert_same_bits(convx.conv_transpose2d(*some[:3], **options), output, context)
            assert_same_bits(convx.conv_transpose2d_backward(some[3], *some[:2], **options), grads, context)
    for view_name, view in broadcasts(x):
        copied = convx.conv_transpose2d(view.copy(), w, b, **options)
        assert_same_bits(convx.conv_transpose2d(view, w, b, **options), copied, view_name)
    for view_name, out in views(np.full_like(output, 7)):
        if out.flags.writeable and out.flags.aligned:
            assert convx.conv_transpose2d(x, w, b, out=out, **options) is out
            assert_same_bits(out, output, f"out {view_name}")


@pytest.mark.parametrize("name", LARGE)
def test_same_bits(name, isa, dtype, layout):
    """For any number of threads, and for an image alone or in a batch."""
    problem = LARGE[name]
    options = problem.options | dict(layout=layout)
    x = to_layout(numbers(problem.input_shape, "normal", 1).astype(dtype), layout)
    w, b = (numbers(shape, "normal", 2).astype(dtype) for shape in (problem.weight_shape, (problem.k,)))
    g = numbers(convx.conv_transpose2d(x, w, **options).shape, "normal", 3).astype(dtype)

    def everything():
        return convx.conv_transpose2d(x, w, b, **options), *convx.conv_transpose2d_backward(g, x, w, **options)

    results = []
    for threads in (1, 2, 3, 4):
        with convx.threads(threads):
            results.append(everything())
    for other in results[1:]:
        assert_same_bits(other, results[0], name)
    for image in range(problem.n):
        alone = convx.conv_transpose2d(x[image], w, b, **options)
        assert_same_bits(alone, results[0][0][image], f"output of image {image}")
        grads = convx.conv_transpose2d_backward(g[image], x[image], w, output_mask=(True, False, False), **options)
        assert_same_bits(grads[0], results[0][1][image], f"grad_input of image {image}")


def test_the_work_is_cut(isa, dtype):
    """A precondition of the test above."""
    for name, problem in LARGE.items():
        with convx.threads(4):
            (plan,) = convx.explain(
                "conv_transpose2d", problem.input_shape, problem.weight_shape, dtype=dtype, **problem.options
            )
        assert plan.tasks > 1 and plan.threads > 1, f"{name}: {plan}"


@pytest.mark.parametrize(("padding", "spec"), [("valid", 0), ((1, 2), ((1, 1), (2, 2))), (1, ((1, 1), (1, 1)))])
def test_padding_in_other_words(padding, spec, isa):
    x, w = numbers((2, 3, 6, 7), "normal", 0), numbers((3, 4, 4, 5), "normal", 1)
    for stride in (1, 2):
        expected = convx.conv_transpose2d(x, w, stride=stride, padding=spec)
        assert_same_bits(convx.conv_transpose2d(x, w, stride=stride, padding=padding), expected, padding)


@pytest.mark.parametrize("rule", ["same", "same_lower"])
def test_same_undoes_what_conv2d_makes_of_the_size(rule, isa):
    for kernel in range(1, 6):
        for stride in range(1, 5):
            x, w = numbers((1, 2, 5, 6), "integer", 0), numbers((2, 3, kernel, kernel), "integer", 1)
            y = convx.conv_transpose2d(x, w, stride=stride, padding=rule)
            assert y.shape == (1, 3, 5 * stride, 6 * stride)
            assert_equal(y, reference.conv_transpose2d(x, w, stride=stride, padding=rule), f"{rule} {kernel} {stride}")
            assert convx.conv2d(y, w, stride=stride, padding=rule).shape == x.shape


@pytest.mark.core
def test_sizes_of_zero(isa, dtype, layout):
    w, b = np.ones((3, 4, 3, 3), dtype), np.arange(4, dtype=dtype)
    x = to_layout(np.zeros((0, 3, 5, 6), dtype), layout)
    y = convx.conv_transpose2d(x, w, b, layout=layout)
    assert y.shape == to_layout(np.zeros((0, 4, 7, 8)), layout).shape
    grads = convx.conv_transpose2d_backward(y, x, w, layout=layout)
    assert grads[0].shape == x.shape
    assert not grads[1].any() and not grads[2].any()
    x, w = to_layout(np.zeros((2, 0, 5, 6), dtype), layout), np.ones((0, 4, 3, 3), dtype)
    y = convx.conv_transpose2d(x, w, b, layout=layout)
    assert_equal(from_layout(y, layout), np.broadcast_to(b[:, None, None], (2, 4, 7, 8)), "no input channel")
    grads = convx.conv_transpose2d_backward(np.ones_like(y), x, w, layout=layout)
    assert grads[0].shape == x.shape and grads[1].shape == w.shape
    assert_equal(grads[2], np.full(4, 112.0), "grad_bias without an input channel")


def test_output_mask(isa):
    expected = transpose_expected(TRANSPOSE_PROBLEMS["3x3-stride2"], "integer")
    options = TRANSPOSE_PROBLEMS["3x3-stride2"].options
    for mask in [(True, False, False), (False, True, False), (False, False, True), (False, False, False)]:
        grads = convx.conv_transpose2d_backward(expected.g, expected.x, expected.w, output_mask=mask, **options)
        assert [grad is not None for grad in grads] == list(mask)
        for name, grad in zip(GRADIENTS, grads, strict=True):
            if grad is not None:
                assert_equal(grad, getattr(expected, name), name)


def test_explain(isa):
    """The plans are those of conv2d's passes, under the names of the transposed operation."""
    shape, weight = (8, 64, 14, 14), (64, 32, 4, 4)
    options = dict(stride=2, padding=1)
    (plan,) = convx.explain("conv_transpose2d", shape, weight, **options)
    runs = convx.explain("conv2d_backward", (8, 32, 28, 28), weight, **options)
    assert plan.name == "forward"
    assert (plan.algorithm, plan.tile, plan.block, plan.flops) == (
        runs[0].algorithm, runs[0].tile, runs[0].block, runs[0].flops,
    )  # fmt: skip
    assert plan.reason == "the input gradient of a convolution: " + runs[0].reason
    plans = convx.explain("conv_transpose2d_backward", shape, weight, **options)
    assert [plan.name for plan in plans] == list(GRADIENTS)
    assert plans[1].block == runs[1].block
    assert plans[2].flops == 8 * 32 * 28 * 28
    (plan,) = convx.explain("conv_transpose2d", (1, 3, 1, 1), (3, 4, 1, 1), padding=1, dilation=4, output_padding=3)
    assert plan.algorithm == "fill"


def test_an_algorithm_by_name():
    problem = Transpose(c=8, h=12, w=12, k=8, padding=1)
    expected = transpose_expected(problem)
    results = {name: run(problem, expected, "float64", "NCHW", name)["output"] for name in ("direct", "winograd")}
    assert (results["direct"] != results["winograd"]).any()
    for result in results.values():
        assert_within(result, expected.output, winograd_bound(expected, "output", "float64"), "output")
