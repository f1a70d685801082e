"""convx.explain: true algorithm, tile, scratch and reason for every layer of the lists in benchmarks/shapes."""

from __future__ import annotations

import math

import numpy as np
import pytest

import convx
from convx import _cpu
from support import CONV_PROBLEMS, conv_data, layer_list, numbers

PASSES = {"conv2d": ["forward"], "conv2d_backward": ["grad_input", "grad_weight", "grad_bias"]}


def conv_arguments(layer, layout="NCHW", n=None):
    """Input shape, weight shape and options of a row of the lists."""
    n = n or layer["n"]
    shape = (n, layer["c"], layer["h"], layer["w"]) if layout == "NCHW" else (n, layer["h"], layer["w"], layer["c"])
    weight_shape = (layer["k"], layer["c"] // layer["groups"], layer["r"], layer["s"])
    options = dict(
        stride=(layer["stride_h"], layer["stride_w"]),
        padding=(layer["pad_h"], layer["pad_w"]),
        dilation=(layer["dil_h"], layer["dil_w"]),
        groups=layer["groups"],
        layout=layout,
    )
    return shape, weight_shape, options


def output_size(layer, axis):
    kernel, dilation = layer["rs"[axis == "w"]], layer.get(f"dil_{axis}", 1)
    return (layer[axis] + 2 * layer[f"pad_{axis}"] - dilation * (kernel - 1) - 1) // layer[f"stride_{axis}"] + 1


def max_pools(layer):
    """Whether PyTorch's max-pooling takes the padding: that of some average poolings exceeds half the window."""
    return 2 * layer["pad_h"] <= layer["r"] and 2 * layer["pad_w"] <= layer["s"]


def check_plan(plan, context):
    __tracebackhide__ = True
    assert plan.isa == _cpu.config()["isa"], context
    assert plan.algorithm, context
    assert plan.tile, context
    assert len(plan.reason.split()) >= 3, f"{context}: {plan.reason!r} is no reason"
    assert plan.scratch_bytes >= 0, context
    assert plan.tasks >= 1, context
    assert 1 <= plan.threads <= convx.get_num_threads(), context
    text = str(plan)
    for value in (plan.name, plan.algorithm, plan.isa, plan.tile, plan.reason):
        assert value in text, context


def test_the_lists_are_here():
    assert len(layer_list("conv")) > 150
    assert len(layer_list("pool")) > 100


@pytest.mark.core
@pytest.mark.parametrize("op", PASSES)
def test_every_convolution_of_the_lists(op, isa, dtype, layout):
    for layer in layer_list("conv"):
        shape, weight_shape, options = conv_arguments(layer, layout)
        p, q = output_size(layer, "h"), output_size(layer, "w")
        plans = convx.explain(op, shape, weight_shape, dtype=dtype, **options)
        assert [plan.name for plan in plans] == PASSES[op]
        outputs = layer["n"] * layer["k"] * p * q
        item = np.dtype(dtype).itemsize
        arrays = item * (math.prod(shape) + math.prod(weight_shape) + outputs)
        for plan in plans:
            context = f"{op} {layer['name']} {plan.name}"
            check_plan(plan, context)
            if plan.name != "grad_bias":
                assert plan.flops == 2 * outputs * math.prod(weight_shape[1:]), context
                assert plan.bytes == arrays, context


@pytest.mark.parametrize("op", PASSES)
def test_the_choice_does_not_depend_on_the_batch(op, isa, dtype, layout):
    """Forward and grad_input have the same method for any number of images, since their bits must not differ."""
    for layer in layer_list("conv"):
        choices = set()
        for n in (1, 2, 7, 16, 256):
            shape, weight_shape, options = conv_arguments(layer, layout, n)
            plan = convx.explain(op, shape, weight_shape, dtype=dtype, **options)[0]
            # The outputs of a task may depend on the batch; the order of a sum must not.
            choices.add((plan.algorithm, plan.tile, plan.block[plan.block.index("sums of") :]))
        assert len(choices) == 1, f"{op} {layer['name']}: {choices}"


@pytest.mark.parametrize("op", PASSES)
def test_the_choice_does_not_depend_on_the_threads(op, isa):
    for layer in layer_list("conv"):
        shape, weight_shape, options = conv_arguments(layer)
        choices = []
        for threads in (1, 3, 64):
            with convx.threads(threads):
                plans = convx.explain(op, shape, weight_shape, **options)
            choices.append([(plan.algorithm, plan.tile, plan.block, plan.tasks) for plan in plans])
            assert all(plan.threads <= threads for plan in plans)
        assert choices[0] == choices[1] == choices[2], f"{op} {layer['name']}"


@pytest.mark.core
@pytest.mark.parametrize("op", ["max_pool2d", "max_pool2d_backward"])
def test_every_pooling_of_the_lists(op, isa, dtype, layout):
    layers = [layer for layer in layer_list("pool") if max_pools(layer)]
    assert len(layers) > 90
    for layer in layers:
        n, c, h, w = (layer[size] for size in "nchw")
        shape = (n, c, h, w) if layout == "NCHW" else (n, h, w, c)
        plans = convx.explain(
            op, shape, (layer["r"], layer["s"]), (layer["stride_h"], layer["stride_w"]),
            (layer["pad_h"], layer["pad_w"]), ceil_mode=True, layout=layout, dtype=dtype,
        )  # fmt: skip
        assert len(plans) == 1
        check_plan(plans[0], f"{op} {layer['name']}")
        assert plans[0].bytes >= np.dtype(dtype).itemsize * n * c * h * w


@pytest.mark.core
@pytest.mark.parametrize("op", ["relu", "relu_backward"])
def test_relu(op, isa, dtype):
    for shape in [(), (1,), (8, 64, 56, 56), (3, 5)]:
        (plan,) = convx.explain(op, shape, dtype=dtype)
        check_plan(plan, f"{op} {shape}")
        assert plan.bytes == np.dtype(dtype).itemsize * math.prod(shape) * (2 if op == "relu" else 3)


def test_fused(isa, dtype, layout):
    layers = [layer for layer in layer_list("conv") if "pool_r" in layer]
    assert layers
    for layer in layers:
        shape, weight_shape, options = conv_arguments(layer, layout)
        pool = dict(
            pool_kernel_size=(layer["pool_r"], layer["pool_s"]),
            pool_stride=(layer["pool_stride_h"], layer["pool_stride_w"]),
            pool_padding=(layer["pool_pad_h"], layer["pool_pad_w"]),
        )
        forward = convx.explain("conv2d_relu_max_pool2d", shape, weight_shape, dtype=dtype, **options, **pool)
        backward = convx.explain("conv2d_relu_max_pool2d_backward", shape, weight_shape, dtype=dtype, **options, **pool)
        assert len(forward) >= 1
        assert {"grad_input", "grad_weight", "grad_bias"} <= {plan.name for plan in backward}
        for plan in (*forward, *backward):
            check_plan(plan, f"fused {layer['name']} {plan.name}")


def test_masked_gradients_have_no_plan():
    for mask in [(True, False, False), (False, True, False), (False, False, True), (True, True, False), (False,) * 3]:
        plans = convx.explain("conv2d_backward", (8, 64, 56, 56), (64, 64, 3, 3), output_mask=mask)
        names = [name for name, asked in zip(PASSES["conv2d_backward"], mask, strict=True) if asked]
        assert [plan.name for plan in plans] == names


def test_nothing_is_computed_or_allocated():
    """A problem of 10**18 multiplications on arrays of terabytes."""
    plans = convx.explain("conv2d", (10**6, 1024, 512, 512), (1024, 1024, 3, 3), padding=1)
    assert plans[0].flops == 2 * 10**6 * 1024**2 * 512**2 * 9


@pytest.mark.parametrize(
    "name", ["3x3-pad1", "1x1", "depthwise", "groups-narrow", "first-layer-7x7", "reduction-1x1-513"]
)
def test_the_scratch_is_what_a_call_takes(name, layout, isa):
    """With an empty workspace and one thread, the workspace holds the plan's scratch after the call, plus at most 1/8.

    A strided grad_input is stride * stride convolutions of different sizes; the plan shows the largest.
    """
    problem = CONV_PROBLEMS[name].replace(h=64, w=64)
    x, w, _ = (a.astype("float32") for a in conv_data(problem))
    x = x if layout == "NCHW" else np.moveaxis(x, 1, -1).copy()
    g_shape = convx.conv2d(x, w, layout=layout, **problem.options).shape
    g = numbers(g_shape, "normal", 1).astype("float32")
    with convx.threads(1):
        plans = [
            *convx.explain("conv2d", x.shape, w.shape, layout=layout, **problem.options),
            *convx.explain("conv2d_backward", x.shape, w.shape, layout=layout, **problem.options),
        ]
        for plan in plans:
            _cpu.workspace_release()
            if plan.name == "forward":
                convx.conv2d(x, w, layout=layout, **problem.options)
            else:
                mask = tuple(plan.name == gradient for gradient in PASSES["conv2d_backward"])
                convx.conv2d_backward(g, x, w, layout=layout, output_mask=mask, **problem.options)
            taken = _cpu.config()["workspace_cached_bytes"]
            parts = problem.stride**2 if plan.name == "grad_input" else 1
            least = 2**15 if plan.scratch_bytes else 0  # the smallest buffer of the workspace
            assert plan.scratch_bytes <= taken <= parts * max(plan.scratch_bytes * 9 / 8, least), plan


def test_text():
    """The value of `convx.explain(...)` at a prompt prints all plans."""
    text = repr(convx.explain("conv2d_backward", (8, 64, 56, 56), (64, 64, 3, 3), padding=1))
    for word in ("grad_input", "grad_weight", "grad_bias", "tile", "scratch", "reason", "GFLOP"):
        assert word in text


@pytest.mark.parametrize("op", ["conv2d_backward", "conv_transpose2d_backward", "conv2d_relu_max_pool2d_backward"])
def test_output_mask_selects_the_plans(op):
    """Each gradient alone and all together, with the plan that it has beside the others."""
    names = ["grad_input", "grad_weight", "grad_bias"]
    shapes = (2, 6, 9, 8), (6, 6, 3, 3)
    options = dict(pool_kernel_size=2) if "pool" in op else {}
    every = {plan.name: plan for plan in convx.explain(op, *shapes, **options)}
    assert [name for name in every if name in names] == names
    for wanted in range(8):
        mask = tuple(bool(wanted >> i & 1) for i in range(3))
        plans = convx.explain(op, *shapes, output_mask=mask, **options)
        found = {plan.name: plan for plan in plans if plan.name in names}
        assert list(found) == [name for name, here in zip(names, mask, strict=True) if here], mask
        assert all(every[name] == plan for name, plan in found.items()), mask


@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("op", ["conv2d", "conv2d_backward"])
def test_an_empty_batch_by_every_method(op, window, layout):
    shape = (0, 4, 5, 5) if layout == "NCHW" else (0, 5, 5, 4)
    weight = (4, 4, window, window)
    for plan in convx.explain(op, shape, weight, layout=layout):
        for candidate in plan.candidates:
            if candidate.supported:
                plans = convx.explain(op, shape, weight, layout=layout, algorithm=candidate.name)
                assert candidate.name in [each.algorithm for each in plans]
