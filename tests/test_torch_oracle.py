"""PyTorch 2.13 as a second oracle: random problems over all its options, with the indices of max-pooling."""

from __future__ import annotations

import numpy as np
import pytest

import convx
from support import (
    CONV_PROBLEMS,
    GRADIENTS,
    POOL_PROBLEMS,
    TRANSPOSE_PROBLEMS,
    Conv,
    Pool,
    Transpose,
    assert_equal,
    assert_within,
    conv_bound,
    conv_expected,
    exact_algorithm,
    numbers,
    transpose_expected,
)

ROUNDS = 400


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    assert torch.__version__.startswith("2.13.")
    torch.set_num_threads(1)  # its OpenMP threads would wait for busy processors
    return torch


def padded_by_torch(torch, x, problem):
    """The image padded by torch.nn.functional.pad, for a convolution without padding."""
    padding = problem.padding
    if padding == "valid":
        padding = 0
    sides = [padding, padding] if isinstance(padding, int) else list(padding)
    (top, bottom), (left, right) = [(side, side) if isinstance(side, int) else side for side in sides]
    mode = {"zeros": "constant"}.get(problem.padding_mode, problem.padding_mode)
    value = dict(value=problem.padding_value) if problem.padding_mode == "constant" else {}
    return torch.nn.functional.pad(x, (left, right, top, bottom), mode, **value)


def conv_by_torch(torch, problem, dtype):
    expected = conv_expected(problem)
    x, w, b, g = (torch.tensor(getattr(expected, name), dtype=getattr(torch, dtype)) for name in "xwbg")
    for leaf in (x, w, b):
        leaf.requires_grad_()
    if problem.padding == "same":
        y = torch.nn.functional.conv2d(x, w, b, 1, "same", problem.dilation, problem.groups)
    else:
        padded = padded_by_torch(torch, x, problem)
        y = torch.nn.functional.conv2d(padded, w, b, problem.stride, 0, problem.dilation, problem.groups)
    y.backward(g)
    return dict(
        output=y.detach().numpy(), grad_input=x.grad.numpy(), grad_weight=w.grad.numpy(), grad_bias=b.grad.numpy()
    )


def check_conv(torch, problem, dtype):
    __tracebackhide__ = True
    expected = conv_expected(problem)
    x, w, b, g = (getattr(expected, name).astype(dtype) for name in "xwbg")
    actual = dict(zip(GRADIENTS, convx.conv2d_backward(g, x, w, **problem.options), strict=True))
    actual["output"] = convx.conv2d(x, w, b, **problem.options)
    for name, truth in conv_by_torch(torch, problem, "float64").items():
        assert_within(actual[name], truth, conv_bound(expected, name, dtype), f"{name} of {problem}, against PyTorch")


def supported(problem):
    """PyTorch's "same" has stride 1 only; it has no "same_lower"."""
    return problem.padding != "same_lower" and (problem.padding != "same" or problem.stride == 1)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", [name for name, problem in CONV_PROBLEMS.items() if supported(problem)])
def test_conv2d(name, torch, isa, dtype):
    check_conv(torch, CONV_PROBLEMS[name], dtype)


def test_random_conv2d(torch, isa, dtype):
    rng = np.random.default_rng(13)
    for _ in range(ROUNDS):
        draw = lambda low, high: int(rng.integers(low, high))  # noqa: E731
        groups = draw(1, 5)
        mode = str(rng.choice(["zeros", "zeros", "constant", "reflect", "replicate", "circular"]))
        r, s, dilation = draw(1, 6), draw(1, 6), (draw(1, 4), draw(1, 4))
        h, w = dilation[0] * (r - 1) + draw(4, 16), dilation[1] * (s - 1) + draw(4, 24)
        problem = Conv(
            n=draw(1, 4), c=groups * draw(1, 10), h=h, w=w, k=groups * draw(1, 18), r=r, s=s,
            stride=(draw(1, 5), draw(1, 5)), dilation=dilation, groups=groups, padding_mode=mode,
            padding_value=draw(-2, 3), padding=((draw(0, 4), draw(0, 4)), (draw(0, 4), draw(0, 4))),
        )  # fmt: skip
        check_conv(torch, problem, dtype)


def check_conv_transpose(torch, problem, dtype):
    """On whole numbers, so that all bits must agree."""
    __tracebackhide__ = True
    expected = transpose_expected(problem, "integer")
    leaves = [torch.tensor(getattr(expected, name), requires_grad=True) for name in "xwb"]
    y = torch.nn.functional.conv_transpose2d(*leaves, **problem.options)
    y.backward(torch.tensor(expected.g))
    x, w, b, g = (getattr(expected, name).astype(dtype) for name in "xwbg")
    options = problem.options | dict(algorithm=exact_algorithm(problem))
    output = convx.conv_transpose2d(x, w, b, **options)
    assert_equal(output, y.detach().numpy(), f"output of {problem}")
    gradients = convx.conv_transpose2d_backward(g, x, w, **options)
    for name, gradient, leaf in zip(GRADIENTS, gradients, leaves, strict=True):
        assert_equal(gradient, leaf.grad.numpy(), f"{name} of {problem}")


def transposed_by_torch(problem):
    """PyTorch crops both sides equally, and has no "same"."""
    return not isinstance(problem.padding, str) and np.shape(problem.padding) != (2, 2)


@pytest.mark.parametrize("name", [name for name, each in TRANSPOSE_PROBLEMS.items() if transposed_by_torch(each)])
def test_conv_transpose2d(name, torch, isa, dtype):
    check_conv_transpose(torch, TRANSPOSE_PROBLEMS[name], dtype)


def test_random_conv_transpose2d(torch, isa, dtype):
    rng = np.random.default_rng(17)
    for _ in range(ROUNDS):
        draw = lambda low, high: int(rng.integers(low, high))  # noqa: E731
        groups, stride, dilation = draw(1, 5), (draw(1, 5), draw(1, 5)), (draw(1, 4), draw(1, 4))
        taps, padding = (draw(1, 6), draw(1, 6)), (draw(0, 4), draw(0, 4))
        spans = [d * (t - 1) + 1 for d, t in zip(dilation, taps, strict=True)]
        size = [draw(1 + 2 * p // s, 9 + 2 * p // s) for p, s in zip(padding, stride, strict=True)]
        if any((n - 1) * s + e - 2 * p < 1 for n, s, e, p in zip(size, stride, spans, padding, strict=True)):
            continue
        problem = Transpose(
            n=draw(1, 4), c=groups * draw(1, 10), h=size[0], w=size[1], k=groups * draw(1, 12), r=taps[0], s=taps[1],
            stride=stride, padding=padding, groups=groups, dilation=dilation,
            output_padding=tuple(draw(0, max(s, d)) for s, d in zip(stride, dilation, strict=True)),
        )  # fmt: skip
        check_conv_transpose(torch, problem, dtype)


def pool_data(shape, kind, seed):
    rng = np.random.default_rng(seed)
    if kind == "ties":
        return rng.integers(-1, 2, shape).astype(float)
    return rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0], shape, p=[0.1, 0.1, 0.4, 0.15, 0.15, 0.1])


def check_pool(torch, problem, dtype, kind, seed):
    """Values and indices, then the gradient from PyTorch's indices."""
    __tracebackhide__ = True
    x = torch.tensor(pool_data(problem.input_shape, kind, seed), dtype=getattr(torch, dtype), requires_grad=True)
    y, indices = torch.nn.functional.max_pool2d(
        x,
        problem.kernel_size,
        problem.stride,
        problem.padding,
        problem.dilation,
        problem.ceil_mode,
        return_indices=True,
    )
    output, chosen = convx.max_pool2d(x.detach().numpy(), return_indices=True, **problem.options)
    assert_equal(output, y.detach().numpy(), f"output of {problem}")
    assert_equal(chosen, indices.numpy(), f"indices of {problem}")
    g = numbers(output.shape, "integer", seed)
    y.backward(torch.tensor(g, dtype=x.dtype))
    grad_input = convx.max_pool2d_backward(g.astype(dtype), chosen, x.shape, **problem.options)
    assert_equal(grad_input, x.grad.numpy(), f"grad_input of {problem}")


def pooled_by_torch(problem):
    """PyTorch pads both sides of an axis equally, by at most half of the kernel."""
    if isinstance(problem.padding, str) or np.shape(problem.padding) == (2, 2):
        return False
    return (2 * np.broadcast_to(problem.padding, 2) <= np.broadcast_to(problem.kernel_size, 2)).all()


@pytest.mark.parametrize("kind", ["ties", "special"])
@pytest.mark.parametrize("name", [name for name, problem in POOL_PROBLEMS.items() if pooled_by_torch(problem)])
def test_max_pool2d(name, kind, torch, isa, dtype):
    check_pool(torch, POOL_PROBLEMS[name], dtype, kind, 0)


def test_random_max_pool2d(torch, isa, dtype):
    rng = np.random.default_rng(31)
    for seed in range(ROUNDS):
        draw = lambda low, high: int(rng.integers(low, high))  # noqa: E731
        kernel, dilation = (draw(1, 6), draw(1, 6)), (draw(1, 4), draw(1, 4))
        problem = Pool(
            n=draw(1, 4), c=draw(1, 20), h=dilation[0] * (kernel[0] - 1) + draw(1, 14),
            w=dilation[1] * (kernel[1] - 1) + draw(1, 40), kernel_size=kernel, stride=(draw(1, 5), draw(1, 5)),
            padding=(draw(0, kernel[0] // 2 + 1), draw(0, kernel[1] // 2 + 1)), dilation=dilation,
            ceil_mode=bool(draw(0, 2)),
        )  # fmt: skip
        check_pool(torch, problem, dtype, ("ties", "special")[seed % 2], seed)


def test_relu(torch, isa, dtype):
    x = torch.tensor(pool_data((3, 5, 7, 33), "special", 0), dtype=getattr(torch, dtype), requires_grad=True)
    y = torch.relu(x)
    output = convx.relu(x.detach().numpy())
    assert_equal(output, y.detach().numpy(), "relu")
    g = numbers(y.shape, "integer", 1)
    y.backward(torch.tensor(g, dtype=x.dtype))
    assert_equal(convx.relu_backward(g.astype(dtype), output), x.grad.numpy(), "relu_backward")


def test_fused_block(torch, isa, dtype):
    """A block on whole numbers, against PyTorch's autograd through the three operations."""
    for seed, (name, pool) in enumerate(
        [("3x3-pad1", 2), ("depthwise", 3), ("first-layer-7x7", 2), ("groups3-odd", 2)]
    ):
        problem = CONV_PROBLEMS[name]
        expected = conv_expected(problem, "integer")
        x, w, b = (torch.tensor(getattr(expected, key), requires_grad=True) for key in "xwb")
        conv = torch.nn.functional.conv2d(x, w, b, problem.stride, problem.padding, problem.dilation, problem.groups)
        y = torch.nn.functional.max_pool2d(torch.relu(conv), pool, 2)
        g = numbers(y.shape, "integer", seed)
        y.backward(torch.tensor(g))
        arrays = [getattr(expected, key).astype(dtype) for key in "xwb"]
        output, saved = convx.conv2d_relu_max_pool2d(
            *arrays,
            problem.stride,
            problem.padding,
            problem.dilation,
            problem.groups,
            pool_kernel_size=pool,
            pool_stride=2,
        )
        assert_equal(output, y.detach().numpy(), name)
        gradients = convx.conv2d_relu_max_pool2d_backward(g.astype(dtype), saved)
        for gradient_name, gradient, leaf in zip(GRADIENTS, gradients, (x, w, b), strict=True):
            assert_equal(gradient, leaf.grad.numpy(), f"{gradient_name} of {name}")


def test_tensors_among_arrays_are_refused_by_name(torch):
    """Tensors among arrays raise, since a conversion would lose a gradient."""
    x, w = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3)
    for call in [
        lambda: convx.conv2d(x.numpy(), w),
        lambda: convx.conv2d(x.numpy(), w.numpy(), bias=torch.zeros(1)),
        lambda: convx.conv2d(x.numpy(), w.numpy(), out=torch.zeros(1, 1, 2, 2)),
        lambda: convx.relu_backward(x.numpy(), x),
    ]:
        with pytest.raises(TypeError, match=r"torch\.Tensor"):
            call()
