"""convx.jax: the bits of the functions for NumPy arrays; derivatives against PyTorch's and JAX's own operations.

Calls of kernels are tested on both dispatch paths, through XLA's foreign functions and through Python; the rules of
derivatives and of vmap on one. XLA's compilation of a program takes longer than its run, so one program has many cases.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types

import numpy as np
import pytest

import convx
from convx import ShapeError, _devices
from support import CONV_PROBLEMS, POOL_PROBLEMS, Conv, Pool, assert_equal, assert_same_bits, numbers, to_layout

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import convx.jax as cx  # noqa: E402
from convx.jax import _calls, functions  # noqa: E402

# The originals, which fixtures replace.
WHY_SLOW, WARN = _calls.slow_reason, _calls._warn_once.__wrapped__


@contextlib.contextmanager
def jax_settings(**settings):
    before = {name: jax.config.read(name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.fixture(autouse=True, scope="module")
def settings():
    """64-bit mode, and little optimisation of programs that run once."""
    with jax_settings(jax_enable_x64=True, jax_disable_most_optimizations=True):
        yield


class DispatchPath:
    """The dispatch path of compiled programs; a change clears JAX's caches."""

    last = None

    @staticmethod
    def change(path):
        if DispatchPath.last not in (path, None):
            jax.clear_caches()
        DispatchPath.last = path


@pytest.fixture(params=["ffi", "callback"])
def path(request, monkeypatch):
    """Both dispatch paths: XLA's foreign functions, Python callbacks."""
    if request.param == "callback":
        monkeypatch.setattr(_calls, "slow_reason", lambda: "this test asks for it")
        monkeypatch.setattr(_calls, "_warn_once", lambda reason: None)
    elif reason := WHY_SLOW():
        pytest.skip(reason)
    DispatchPath.change(request.param)
    return request.param


@pytest.fixture
def best_path(monkeypatch):
    """The faster available dispatch path, without the warning of the slow one."""
    monkeypatch.setattr(_calls, "_warn_once", lambda reason: None)
    DispatchPath.change("callback" if WHY_SLOW() else "ffi")


@pytest.fixture
def fast_path(best_path):
    if reason := WHY_SLOW():
        pytest.skip(reason)


def as_numpy(tree):
    return jax.tree.map(np.asarray, tree)


def as_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


def data(problem, dtype, layout, kind="normal"):
    """Input, weight, bias and a gradient of the output, NumPy arrays."""
    x = to_layout(numbers(problem.input_shape, kind, 1), layout).astype(dtype)
    w = numbers(problem.weight_shape, kind, 2).astype(dtype)
    b = numbers((problem.k,), kind, 3).astype(dtype)
    g = numbers(convx.conv2d(x, w, b, **problem.options, layout=layout).shape, kind, 4).astype(dtype)
    return x, w, b, g


# The same bits as without JAX.

KINDS = pytest.mark.parametrize("kind", [("float32", "NCHW"), ("float64", "NHWC")], ids="-".join)

SOME_CONV_PROBLEMS = [
    "3x3-pad1", "3x3-stride2", "dilation-2-3", "per-side-stride", "same-even-kernel", "same-lower-stride", "1x7",
    "groups3-odd", "depthwise-stride2", "reflect", "circular-stride-dilation", "constant-same-stride",
]  # fmt: skip


@KINDS
def test_conv2d_has_the_bits_of_the_numpy_functions(path, kind):
    dtype, layout = kind
    problems = {name: CONV_PROBLEMS[name] for name in SOME_CONV_PROBLEMS}
    problems["unbatched"] = Conv(c=3, h=6, w=5, k=4)
    options = {name: {**problem.options, "layout": layout} for name, problem in problems.items()}
    options["3x3-pad1"]["algorithm"] = "winograd"
    arrays = {name: data(problem, dtype, layout) for name, problem in problems.items()}
    x, w, b, g = arrays["unbatched"]
    arrays["unbatched"] = (x[0], w, b, g[0])

    @jax.jit
    def run(arrays):
        results = {}
        for name, (x, w, b, g) in arrays.items():
            y, pull_back = jax.vjp(functools.partial(cx.conv2d, **options[name]), x, w, b)
            activated = cx.conv2d(x, w, activation="relu", **options[name])
            results[name] = (y, pull_back(g), activated)
        return results

    actual = as_numpy(run(as_jax(arrays)))
    for name, (x, w, b, g) in arrays.items():
        expected = (
            convx.conv2d(x, w, b, **options[name]),
            convx.conv2d_backward(g, x, w, **options[name]),
            convx.conv2d(x, w, activation="relu", **options[name]),
        )
        assert_same_bits(actual[name], expected, name)


TRANSPOSED = {
    "plain": {},
    "strided": dict(stride=(2, 3), padding=((1, 0), (2, 1)), output_padding=(1, 2), groups=2),
    "dilated": dict(stride=(1, 2), padding=1, dilation=(2, 3)),
    "same": dict(stride=2, padding="same"),
}


@KINDS
def test_conv_transpose2d_has_the_bits_of_the_numpy_functions(path, kind):
    dtype, layout = kind
    x = to_layout(numbers((2, 6, 5, 4), "normal", 1), layout).astype(dtype)
    cases = {}
    for name, options in TRANSPOSED.items():
        w = numbers((6, 4 // options.get("groups", 1), 3, 3), "normal", 2).astype(dtype)
        b = numbers((4,), "normal", 3).astype(dtype)
        y = convx.conv_transpose2d(x, w, b, **options, layout=layout)
        cases[name] = w, b, numbers(y.shape, "normal", 4).astype(dtype), y

    @jax.jit
    def run(x, cases):
        results = {}
        for name, (w, b, g, _) in cases.items():
            conv = functools.partial(cx.conv_transpose2d, **TRANSPOSED[name], layout=layout)
            y, pull_back = jax.vjp(conv, x, w, b)
            results[name] = y, pull_back(g), conv(x, w), conv(x[0], w, b)
        return results

    actual = as_numpy(run(*as_jax((x, cases))))
    for name, (w, b, g, y) in cases.items():
        options = {**TRANSPOSED[name], "layout": layout}
        expected = (
            y,
            convx.conv_transpose2d_backward(g, x, w, **options),
            convx.conv_transpose2d(x, w, **options),
            convx.conv_transpose2d(x[0], w, b, **options),
        )
        assert_same_bits(actual[name], expected, name)


def test_conv_transpose2d_where_no_window_reaches(best_path):
    """Whole numbers: beyond the last window, without channels, without images."""
    options = dict(stride=1, dilation=3, output_padding=2)
    for n, c in ((2, 3), (2, 0), (0, 3)):
        x, w, b = (numbers(shape, "integer", 1) for shape in ((n, c, 4, 5), (c, 2, 2, 2), (2,)))
        y, pull_back = jax.vjp(functools.partial(cx.conv_transpose2d, **options), *as_jax((x, w, b)))
        expected = convx.conv_transpose2d(x, w, b, **options)
        assert_equal(np.asarray(y), expected, (n, c))
        g = numbers(expected.shape, "integer", 2)
        gradients = convx.conv_transpose2d_backward(g, x, w, **options)
        for one, other in zip(pull_back(jnp.asarray(g)), gradients, strict=True):
            assert_equal(np.asarray(one), other, (n, c))


def test_relu_in_every_bit(path, dtype):
    x = np.array([1.0, -1.0, 0.0, -0.0, np.inf, -np.inf, np.nan], dtype)
    g = np.linspace(1, 2, x.size).astype(dtype)
    y, pull_back = jax.vjp(cx.relu, jnp.asarray(x))
    assert_same_bits(np.asarray(y), convx.relu(x), "values")
    assert_same_bits(np.asarray(pull_back(jnp.asarray(g))[0]), convx.relu_backward(g, convx.relu(x)), "gradient")
    for shape in ((), (0, 3), (2, 3, 2, 1, 3)):
        y = cx.relu(jnp.ones(shape, dtype))
        assert y.shape == shape and y.dtype == dtype and (np.asarray(y) == 1).all()


def test_denormal_numbers_stay(fast_path):
    """XLA's threads flush denormal numbers to zero, convx's do not; results do not depend on the thread."""
    x = np.full((1, 1, 4, 4), 1e-40, np.float32)
    assert_same_bits(np.asarray(cx.conv2d(jnp.asarray(x), jnp.ones((1, 1, 1, 1), jnp.float32))), x, "conv2d")


SOME_POOL_PROBLEMS = {
    **{name: POOL_PROBLEMS[name] for name in ("2x2", "3x3-stride2-pad1", "dilation-padded", "per-side-ceil", "same")},
    **{name: POOL_PROBLEMS[name] for name in ("windows-without-taps", "widest-padding-ceil", "gaps", "gaps-both")},
    "gaps-stride-over-kernel": POOL_PROBLEMS["gaps-stride-over-kernel"],
    "more taps than codes": Pool(n=2, h=20, w=19, kernel_size=(16, 17), stride=2),
}


@KINDS
def test_max_pool2d_has_the_bits_of_the_numpy_functions(path, kind):
    dtype, layout = kind
    options = {name: {**problem.options, "layout": layout} for name, problem in SOME_POOL_PROBLEMS.items()}
    arrays = {}
    for name, problem in SOME_POOL_PROBLEMS.items():
        x = to_layout(numbers(problem.input_shape, "special", 1), layout).astype(dtype)
        arrays[name] = x, numbers(convx.max_pool2d(x, **options[name]).shape, "normal", 2).astype(dtype)

    @jax.jit
    def run(arrays):
        results = {}
        for name, (x, g) in arrays.items():
            y, pull_back = jax.vjp(functools.partial(cx.max_pool2d, **options[name]), x)
            pair = cx.max_pool2d(x, **options[name], return_indices=True)
            results[name] = (y, pull_back(g)[0], cx.max_pool2d(x, **options[name]), *pair)
        return results

    actual = as_numpy(run(as_jax(arrays)))
    with jax_settings(jax_enable_x64=dtype == "float64"):
        narrow = as_numpy(run(as_jax(arrays))) if dtype == "float32" else actual
    for name, (x, g) in arrays.items():
        y, indices = convx.max_pool2d(x, **options[name], return_indices=True)
        gradient = convx.max_pool2d_backward(g, indices, x.shape, **options[name])
        assert_same_bits(actual[name], (y, gradient, y, y, indices), name)
        expected = indices.astype(np.int32 if dtype == "float32" else np.int64)
        assert_same_bits(narrow[name], (y, gradient, y, y, expected), f"{name}, JAX as it comes")


FUSED = {
    "plain": (Conv(c=3, h=12, w=13, k=5, padding=1), dict(pool_kernel_size=2)),
    "strided groups": (
        Conv(c=4, h=15, w=14, k=6, stride=(1, 2), groups=2),
        dict(pool_kernel_size=(3, 2), pool_stride=1, pool_padding=(1, 0)),
    ),
    "widest padding": (Conv(c=3, h=9, w=8, k=5), dict(pool_kernel_size=(3, 4), pool_stride=2, pool_padding=(2, 3))),
}


@KINDS
def test_fused_block_has_the_bits_of_the_numpy_function(path, kind):
    dtype, layout = kind
    for name, (problem, pool) in FUSED.items():
        x, w, b, _ = data(problem, dtype, layout)
        window = {key: problem.options[key] for key in ("stride", "padding", "dilation", "groups")}
        block = functools.partial(cx.conv2d_relu_max_pool2d, **window, **pool, layout=layout)
        expected, saved = convx.conv2d_relu_max_pool2d(x, w, b, **window, **pool, layout=layout)
        g = numbers(expected.shape, "normal", 4).astype(dtype)

        @jax.jit
        def run(x, w, b, g, block=block):
            y, pull_back = jax.vjp(block, x, w, b)
            return y, pull_back(g), jax.vjp(lambda w: block(x, w), w)[1](g)

        grad_input, _, _ = convx.conv2d_relu_max_pool2d_backward(g, saved, output_mask=(True, False, False))
        _, grad_weight, grad_bias = convx.conv2d_relu_max_pool2d_backward(g, saved, output_mask=(False, True, True))
        saved = convx.conv2d_relu_max_pool2d(x, w, **window, **pool, layout=layout)[1]
        without_bias = convx.conv2d_relu_max_pool2d_backward(g, saved, output_mask=(False, True, False))[1]
        actual = as_numpy(run(*as_jax((x, w, b, g))))
        assert_same_bits(actual, (expected, (grad_input, grad_weight, grad_bias), (without_bias,)), name)


def test_large_arrays(path):
    """Arrays that XLA copies on other threads than the caller's."""
    x = jnp.asarray(numbers((8, 3, 224, 224), "normal", 1), jnp.float32)
    y = jax.jit(lambda x: cx.max_pool2d(cx.relu(x * 2), 2))(x)
    assert_same_bits(np.asarray(y), convx.max_pool2d(convx.relu(np.asarray(x) * 2), 2), "large")


def test_same_bits_for_any_number_of_threads(path):
    x, w, b, _ = as_jax(data(Conv(n=4, c=16, h=32, w=32, k=32, padding=1), "float32", "NCHW"))
    gradient = jax.jit(jax.grad(lambda x, w, b: cx.conv2d(x, w, b, padding=1).sum(), (0, 1, 2)))
    with convx.threads(1):
        expected = as_numpy(gradient(x, w, b))
    with convx.threads(4):
        assert_same_bits(as_numpy(gradient(x, w, b)), expected, "threads")


# Derivatives against PyTorch's, which have any order and need no compilation.

ONES, NONE = ((1, 1), (1, 1)), ((0, 0), (0, 0))
EVERYTHING = dict(stride=(2, 1), padding=((1, 2), (3, 0)), dilation=(2, 1), groups=2)
POOL = dict(pool_kernel_size=(3, 2), pool_stride=(2, 2), pool_padding=((1, 1), (0, 1)))
UNEQUAL = ((2, 1), (1, 2))
DERIVATIVES = {
    "conv2d": lambda m, x, w, b: m.conv2d(x, w, b, **EVERYTHING),
    "without bias": lambda m, x, w, b: m.conv2d(x, w, padding=ONES, groups=2) + b.sum(),
    "depthwise": lambda m, x, w, b: m.conv2d(x, w[:4, :1], b[:4], groups=4),
    "constant": lambda m, x, w, b: m.conv2d(
        x, w, b, padding=ONES, groups=2, padding_mode="constant", padding_value=2.0
    ),
    "reflect": lambda m, x, w, b: m.conv2d(x, w, b, padding=UNEQUAL, groups=2, padding_mode="reflect"),
    "replicate": lambda m, x, w, b: m.conv2d(x, w, b, padding=UNEQUAL, groups=2, padding_mode="replicate"),
    "circular": lambda m, x, w, b: m.conv2d(x, w, b, padding=UNEQUAL, groups=2, padding_mode="circular"),
    "activation": lambda m, x, w, b: m.conv2d(x, w, b, padding=ONES, groups=2, activation="relu"),
    "NHWC": lambda m, x, w, b: m.conv2d(m.moved(x), w, b, **EVERYTHING, layout="NHWC"),
    "transposed": lambda m, x, w, b: m.conv_transpose2d(
        x, w[:4, :1], b[:2], (2, 1), (1, 2), (1, 0), 2, layout="NCHW"
    ),
    "transposed NHWC": lambda m, x, w, b: m.conv_transpose2d(
        m.moved(x), w[:4, :1], b[:2], groups=2, dilation=(2, 1), layout="NHWC"
    ),
    "relu": lambda m, x, w, b: m.relu(x) * w.sum() + b.sum(),
    "max_pool2d": lambda m, x, w, b: m.max_pool2d(x * w.sum(), (3, 2), (1, 2), ONES, dilation=(2, 1)) + b.sum(),
    "max_pool2d NHWC": lambda m, x, w, b: m.max_pool2d(m.moved(x * w.sum()), (2, 2), (1, 1), layout="NHWC") + b.sum(),
    "max_pool2d without codes": lambda m, x, w, b: m.max_pool2d(
        (x * w.sum()).reshape(2, 1, 4, 30), (4, 29), (1, 1), ((1, 2), (9, 8))
    ) + b.sum(),
    "max_pool2d of more taps": lambda m, x, w, b: m.max_pool2d(
        (x * w.sum()).reshape(1, 1, 15, 16), (15, 18), (1, 1), ((1, 0), (3, 3))
    ) + b.sum(),
    "fused": lambda m, x, w, b: m.conv2d_relu_max_pool2d(x, w, b, padding=ONES, groups=2, **POOL),
    "fused NHWC": lambda m, x, w, b: m.conv2d_relu_max_pool2d(
        m.moved(x), w, groups=2, layout="NHWC", **POOL
    ) + b.sum(),
}  # fmt: skip
FACTORS = np.cos(np.arange(1000.0))


class Jax:
    """convx.jax, and the other functions of the cases."""

    conv2d, relu, max_pool2d, conv_transpose2d = cx.conv2d, cx.relu, cx.max_pool2d, cx.conv_transpose2d
    conv2d_relu_max_pool2d = cx.conv2d_relu_max_pool2d

    @staticmethod
    def moved(x):
        return jnp.moveaxis(x, 1, 3)


class Torch:
    """The same by PyTorch; `padding` as ((top, bottom), (left, right))."""

    @staticmethod
    def moved(x):
        return x.movedim(1, 3)

    @staticmethod
    def border(x, padding, mode="constant", value=0.0):
        (top, bottom), (left, right) = padding
        return torch.nn.functional.pad(x, (left, right, top, bottom), mode, value)

    @staticmethod
    def conv2d(
        x, w, b=None, stride=(1, 1), padding=NONE, dilation=(1, 1), groups=1, *,
        padding_mode="constant", padding_value=0.0, activation=None, layout="NCHW",
    ):  # fmt: skip
        x = Torch.border(x if layout == "NCHW" else x.movedim(3, 1), padding, padding_mode, padding_value)
        y = torch.nn.functional.conv2d(x, w, b, stride, 0, dilation, groups)
        y = y if layout == "NCHW" else y.movedim(1, 3)
        return Torch.relu(y) if activation else y

    @staticmethod
    def conv_transpose2d(x, w, b, stride=1, padding=0, output_padding=0, groups=1, dilation=1, *, layout):
        x = x if layout == "NCHW" else x.movedim(3, 1)
        y = torch.nn.functional.conv_transpose2d(x, w, b, stride, padding, output_padding, groups, dilation)
        return y if layout == "NCHW" else y.movedim(1, 3)

    @staticmethod
    def relu(x):
        return torch.relu(x)

    @staticmethod
    def max_pool2d(x, kernel_size, stride, padding=NONE, *, dilation=(1, 1), layout="NCHW"):
        x = Torch.border(x if layout == "NCHW" else x.movedim(3, 1), padding, value=-np.inf)
        y = torch.nn.functional.max_pool2d(x, kernel_size, stride, 0, dilation)
        return y if layout == "NCHW" else y.movedim(1, 3)

    @staticmethod
    def conv2d_relu_max_pool2d(x, w, b=None, *, pool_kernel_size, pool_stride, pool_padding, layout="NCHW", **conv):
        y = Torch.conv2d(x, w, b, activation="relu", layout=layout, **conv)
        return Torch.max_pool2d(y, pool_kernel_size, pool_stride, pool_padding, layout=layout)


def test_first_and_second_derivatives(best_path):
    """The derivatives of all cases in one program."""
    arrays = data(Conv(n=2, c=4, h=5, w=6, k=6, groups=2), "float64", "NCHW")[:3]

    def by_jax(function, *arrays):
        def value(*arrays):
            y = function(Jax, *arrays)
            return (y**3 * FACTORS[: y.size].reshape(y.shape)).sum(), y

        def directional(*arrays):
            gradients, y = jax.grad(value, (0, 1, 2), has_aux=True)(*arrays)
            flat = jnp.concatenate([gradient.ravel() for gradient in gradients])
            return (flat * FACTORS[: flat.size]).sum(), (gradients, y)

        second, (first, y) = jax.grad(directional, (0, 1, 2), has_aux=True)(*arrays)
        return y, *first, *second

    def by_torch(function):
        tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
        y = function(Torch, *tensors)
        value = (y**3 * torch.tensor(FACTORS[: y.numel()]).reshape(y.shape)).sum()
        first = torch.autograd.grad(value, tensors, create_graph=True)
        flat = torch.cat([gradient.ravel() for gradient in first])
        second = torch.autograd.grad((flat * torch.tensor(FACTORS[: flat.numel()])).sum(), tensors)
        return [tensor.detach().numpy() for tensor in (y, *first, *second)]

    program = jax.jit(lambda *a: {name: by_jax(function, *a) for name, function in DERIVATIVES.items()})
    results = as_numpy(program(*as_jax(arrays)))
    for name, function in DERIVATIVES.items():
        for i, (actual, expected) in enumerate(zip(results[name], by_torch(function), strict=True)):
            size = np.abs(expected).max()
            assert size > 1e-3
            np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12 * size, err_msg=f"{name}, {i}")


def test_hessian_and_third_derivative(best_path):
    x, w, _, _ = data(Conv(n=1, c=1, h=4, w=4, k=2), "float64", "NCHW")

    def value(w):
        return jnp.tanh(cx.conv2d(jnp.asarray(x), w)).sum()

    hessian = jax.jacrev(jax.jacrev(value))
    third = jax.grad(lambda w: (hessian(w) ** 2).sum())
    actual = jax.jit(lambda w: (hessian(w), third(w)))(jnp.asarray(w))

    tensor = torch.tensor(w, requires_grad=True)
    expected = torch.autograd.functional.hessian(
        lambda w: torch.tanh(torch.nn.functional.conv2d(torch.tensor(x), w)).sum(), tensor, create_graph=True
    )
    np.testing.assert_allclose(actual[0], expected.detach(), rtol=1e-10, atol=1e-12)
    (expected_third,) = torch.autograd.grad((expected**2).sum(), tensor)
    np.testing.assert_allclose(actual[1], expected_third, rtol=1e-10, atol=1e-12)


class Lax:
    """The operations in jax.lax."""

    @staticmethod
    def conv2d(x, w, b, stride=(1, 1), padding=NONE, dilation=(1, 1), groups=1, *, layout="NCHW"):
        y = jax.lax.conv_general_dilated(
            x, w, stride, padding, rhs_dilation=dilation, feature_group_count=groups,
            dimension_numbers=(layout, "OIHW", layout), precision="highest",
        )  # fmt: skip
        return y + (b[:, None, None] if layout == "NCHW" else b)

    @staticmethod
    def relu(x):
        return jnp.maximum(x, 0)

    @staticmethod
    def max_pool2d(x, kernel_size, stride, padding=NONE):
        window = ((1, 1, *kernel_size), (1, 1, *stride), (*NONE, *padding))
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *window)

    @staticmethod
    def conv2d_relu_max_pool2d(x, w, b, *, pool_kernel_size, pool_stride, pool_padding, **conv):
        return Lax.max_pool2d(Lax.relu(Lax.conv2d(x, w, b, **conv)), pool_kernel_size, pool_stride, pool_padding)


def test_values_and_gradients_against_lax(best_path):
    """Whole numbers, so results are equal."""
    x, w, b, _ = as_jax(data(Conv(n=2, c=4, h=9, w=8, k=6, groups=2), "float64", "NCHW", "integer"))
    cases = {
        "everything": lambda m, x, w, b: m.conv2d(x, w, b, **EVERYTHING),
        "NHWC": lambda m, x, w, b: m.conv2d(x.reshape(2, 9, 8, 4), w, b, **EVERYTHING, layout="NHWC"),
        "fused": lambda m, x, w, b: m.conv2d_relu_max_pool2d(x, w, b, padding=ONES, groups=2, **POOL),
    }

    def run(module):
        def gradients(case):
            return jax.value_and_grad(lambda *arrays: (case(module, *arrays) ** 2).sum(), (0, 1, 2))(x, w, b)

        return {name: gradients(case) for name, case in cases.items()}

    actual, expected = as_numpy(jax.jit(lambda: (run(cx), run(Lax)))())
    # JAX's pooling may select another tap at ties: only its values are compared.
    assert actual["fused"][0] == expected["fused"][0]
    for name in ("everything", "NHWC"):
        jax.tree.map(lambda one, other, name=name: assert_equal(one, other, name), actual[name], expected[name])


def test_forward_mode_says_so(best_path):
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(cx.relu, (jnp.ones(3),), (jnp.ones(3),))


# vmap


def conv_by_numpy(x, w, b, layout):
    """Value and gradients of the sum of squares, from the functions for NumPy arrays."""
    window = (2, 1, 1, 2)
    y = convx.conv2d(x, w, b, *window, activation="relu", layout=layout)
    return y, *convx.conv2d_backward(convx.relu_backward(2 * y, y), x, w, *window, layout=layout)


def transposed_by_numpy(x, w, b, layout):
    w, b = w[:4], b[:4]
    y = convx.conv_transpose2d(x, w, b, 2, groups=2, layout=layout)
    grad_input, grad_weight, grad_bias = convx.conv_transpose2d_backward(2 * y, x, w, 2, groups=2, layout=layout)
    unused = [np.concatenate([gradient, np.zeros((2, *gradient.shape[1:]))]) for gradient in (grad_weight, grad_bias)]
    return y, grad_input, *unused


def fused_by_numpy(x, w, b, layout):
    y, saved = convx.conv2d_relu_max_pool2d(x, w, b, padding=1, groups=2, pool_kernel_size=2, layout=layout)
    return y, *convx.conv2d_relu_max_pool2d_backward(2 * y, saved)


VMAP_OPS = {
    "conv2d": (
        lambda x, w, b, layout: cx.conv2d(x, w, b, 2, 1, groups=2, activation="relu", layout=layout),
        conv_by_numpy,
    ),
    "transposed": (
        lambda x, w, b, layout: cx.conv_transpose2d(x, w[:4], b[:4], 2, groups=2, layout=layout),
        transposed_by_numpy,
    ),
    "fused": (
        lambda x, w, b, layout: cx.conv2d_relu_max_pool2d(
            x, w, b, padding=1, groups=2, pool_kernel_size=2, layout=layout
        ),
        fused_by_numpy,
    ),
}
VMAP_AXES = [(1, None, None), (None, 0, None), (0, 1, 0), (0, None, 0), (None, None, 0)]


@pytest.mark.parametrize("op", VMAP_OPS)
def test_vmap_and_its_gradients(best_path, op, layout):
    """vmap of values, vmap of gradients, and gradients of vmap, on whole numbers, so results are equal."""
    function, by_numpy = VMAP_OPS[op]
    function = functools.partial(function, layout=layout)
    shapes = [to_layout(np.empty((2, 4, 5, 4)), layout).shape, (6, 2, 3, 3), (6,)]
    inputs = {
        axes: [
            numbers(shape if axis is None else (*shape[:axis], 3, *shape[axis:]), "integer", seed)
            for seed, (shape, axis) in enumerate(zip(shapes, axes, strict=True))
        ]
        for axes in VMAP_AXES
    }

    def gradients(function):
        return jax.grad(lambda *arrays: (function(*arrays) ** 2).sum(), (0, 1, 2))

    def run(axes, arrays):
        mapped = jax.vmap(function, axes)
        return mapped(*arrays), jax.vmap(gradients(function), axes)(*arrays), gradients(mapped)(*arrays)

    program = jax.jit(lambda every: [run(*one) for one in zip(VMAP_AXES, every, strict=True)])
    results = as_numpy(program(as_jax([*inputs.values()])))
    for (axes, arrays), (values, each, together) in zip(inputs.items(), results, strict=True):
        parts = [
            by_numpy(*(a if at is None else np.take(a, i, at) for a, at in zip(arrays, axes, strict=True)), layout)
            for i in range(3)
        ]
        expected, *expected_each = (np.stack(results) for results in zip(*parts, strict=True))
        assert_equal(values, expected, axes)
        for i, (one, other) in enumerate(zip(each, expected_each, strict=True)):
            assert_equal(one, other, (axes, i))
            summed = other.sum(0) if axes[i] is None else np.moveaxis(other, 0, axes[i])
            assert_equal(together[i], summed, (axes, i, "gradient of vmap"))


def test_vmap_of_pooling_relu_and_second_derivatives(best_path):
    x, w = jnp.asarray(numbers((3, 2, 4, 6, 6), "integer", 1)), jnp.asarray(numbers((3, 4, 4, 3, 3), "integer", 2))

    def penalty(x, w):
        def value(x):
            return (cx.max_pool2d(cx.relu(cx.conv2d(x, w)), 2) ** 2).sum()

        return (jax.grad(value)(x) ** 2).sum()

    run = jax.grad(penalty, (0, 1))
    actual, expected = jax.jit(lambda x, w: (jax.vmap(run)(x, w), [run(x[i], w[i]) for i in range(3)]))(x, w)
    for i in range(3):
        for one, other in zip(actual, expected[i], strict=True):
            np.testing.assert_allclose(one[i], other, rtol=1e-12)


NOTHING = {
    "conv2d": lambda x, w, b: cx.conv2d(x, w, b, groups=2),
    "conv_transpose2d": lambda x, w, b: cx.conv_transpose2d(x, w, b, groups=2),
    "max_pool2d": lambda x, w, b: cx.max_pool2d(x, 2) * w.sum() + b.sum(),
    "fused": lambda x, w, b: cx.conv2d_relu_max_pool2d(x, w, b, groups=2, pool_kernel_size=2),
    "relu": lambda x, w, b: cx.relu(x) * cx.relu(w).sum() + cx.relu(b).sum(),
}


@pytest.mark.parametrize("name", NOTHING)
def test_vmap_over_an_axis_of_length_0(best_path, name):
    """A mapped axis of length 0, forward and backward: empty results of the right shape."""
    arrays, function = [jnp.ones(shape) for shape in ((2, 4, 6, 5), (4, 2, 3, 3), (4,))], NOTHING[name]
    gradients = jax.grad(lambda *arrays: function(*arrays).sum(), (0, 1, 2))
    output = jax.eval_shape(function, *arrays)
    for axes in ((0, None, None), (None, 0, None), (None, None, 0), (0, 0, 0)):
        mapped = [a[None][:0] if axis == 0 else a for a, axis in zip(arrays, axes, strict=True)]
        y = jax.jit(jax.vmap(function, axes))(*mapped)
        assert (y.shape, y.dtype) == ((0, *output.shape), output.dtype), axes
        found = jax.eval_shape(jax.vmap(gradients, axes), *mapped)
        assert [each.shape for each in found] == [(0, *array.shape) for array in arrays], axes


def test_vmap_of_vmap(best_path):
    x, w = numbers((3, 2, 2, 4, 6, 5), "integer", 1), numbers((3, 4, 4, 3, 3), "integer", 2)
    both = jax.jit(jax.vmap(jax.vmap(cx.conv2d, (0, None)), (0, 0)))
    expected = [[convx.conv2d(x[i, j], w[i]) for j in range(2)] for i in range(3)]
    assert_equal(np.asarray(both(jnp.asarray(x), jnp.asarray(w))), np.array(expected), "vmap of vmap")


def calls_in(function, *arrays):
    """The number of kernel calls in the program."""
    text = str(jax.make_jaxpr(function)(*arrays))
    return text.count("ffi_call[") + text.count("pure_callback[")


def test_vmap_is_one_call(best_path):
    x, w = jnp.ones((5, 1, 4, 6, 6)), jnp.ones((4, 4, 3, 3))
    per_example = jax.vmap(jax.grad(lambda w, x: cx.conv2d(x, w).sum()), (None, 0))
    assert calls_in(jax.jit(jax.vmap(cx.conv2d, (0, None))), x, w) == 1
    assert per_example(w, x).shape == (5, 4, 4, 3, 3)
    assert calls_in(per_example, w, x) == 3  # forward and both gradients, before XLA drops unused ones


# Programs


def test_gradients_that_nobody_asked_for_cost_nothing(fast_path):
    """The compiled program has no call for the gradient of the first layer's images, which are data."""
    x, w = jnp.ones((2, 4, 6, 6)), jnp.ones((4, 4, 3, 3))
    gradient = jax.jit(jax.grad(lambda w: cx.conv2d(x, w, activation="relu").sum()))
    text = gradient.lower(w).compile().as_text()
    assert 'custom_call_target="convx.conv2d_grad_weight"' in text
    assert "convx.conv2d_grad_input" not in text


def test_other_transformations(best_path):
    """checkpoint, scan and cond take the functions like any other."""
    x, w = jnp.asarray(numbers((2, 4, 6, 6), "normal", 1)), jnp.asarray(numbers((4, 4, 3, 3), "normal", 2) / 6)

    def step(x):
        return cx.conv2d(x, w, padding=1, activation="relu")

    def scanned(x):
        return jax.lax.scan(lambda x, _: (jax.checkpoint(step)(x), None), x, None, length=3)[0].sum()

    def unrolled(x):
        return step(step(step(x))).sum()

    one, other = jax.jit(lambda x: (jax.grad(scanned)(x), jax.grad(unrolled)(x)))(x)
    assert_same_bits(np.asarray(one), np.asarray(other), "scan of checkpoint")
    branch = jax.jit(lambda flag, x: jax.lax.cond(flag, step, lambda x: x, x))
    assert_same_bits(np.asarray(branch(True, x)), np.asarray(step(x)), "cond")


def test_training_steps_follow_those_of_lax(best_path):
    rng = np.random.default_rng(0)
    images, labels = jnp.asarray(rng.standard_normal((32, 1, 8, 8))), rng.integers(0, 10, 32)
    shapes = ((8, 1, 3, 3), (8,), (16, 8, 3, 3), (16,), (64, 10))
    start = [jnp.asarray(rng.standard_normal(shape) / 4) for shape in shapes]
    pool = dict(pool_kernel_size=(2, 2), pool_stride=(2, 2), pool_padding=NONE)

    def losses(module):
        def loss(p):
            y = module.conv2d_relu_max_pool2d(images, p[0], p[1], padding=ONES, **pool)
            y = module.max_pool2d(module.relu(module.conv2d(y, p[2], p[3], padding=ONES)), (2, 2), (2, 2))
            scores = jax.nn.log_softmax(y.reshape(32, -1) @ p[4])
            return -scores[jnp.arange(32), labels].mean()

        @jax.jit
        def step(p):
            value, gradients = jax.value_and_grad(loss)(p)
            return value, [a - 0.1 * g for a, g in zip(p, gradients, strict=True)]

        p, values = start, []
        for _ in range(8):
            value, p = step(p)
            values.append(float(value))
        return values

    actual = losses(cx)
    np.testing.assert_allclose(actual, losses(Lax), rtol=1e-10)
    assert actual[-1] < 0.9 * actual[0]


# Errors

x4, w4 = np.zeros((2, 4, 6, 7), np.float32), np.zeros((6, 2, 3, 3), np.float32)

SHAPE_ERRORS = {
    "channels": (
        lambda x: cx.conv2d(x, jnp.asarray(w4)),
        "conv2d: weight has 2 input channels per group, expected 4 (input channels 4 / groups 1)",
    ),
    "stride": (
        lambda x: cx.conv2d(x, jnp.asarray(w4), stride=0, groups=2),
        "conv2d: stride is (0, 0), expected positive numbers",
    ),
    "window": (
        lambda x: cx.max_pool2d(x, 8),
        "max_pool2d: the window spans 8 cells in height, expected at most 6 (input 6 + padding 0 + 0)",
    ),
    "pool padding": (
        lambda x: cx.conv2d_relu_max_pool2d(x, jnp.asarray(w4), groups=2, pool_kernel_size=2, pool_padding=2),
        "conv2d_relu_max_pool2d: pool_padding is 2 in height, expected at most 1 (one less than the window's 2 cells)",
    ),
}
TYPE_ERRORS = {
    "numpy": (
        lambda x: cx.conv2d(x, w4),
        "conv2d: weight is a numpy.ndarray, expected a jax.Array: pass jax.numpy.asarray(weight)",
    ),
    "list": (lambda x: cx.relu([1.0]), "relu: input is a list, expected a jax.Array: pass jax.numpy.asarray(input)"),
    "integers": (
        lambda x: cx.relu(x.astype(jnp.int32)),
        "relu: input has dtype int32, expected float32 or float64",
    ),
    "half": (
        lambda x: cx.max_pool2d(x.astype(jnp.bfloat16), 2),
        "max_pool2d: input has dtype bfloat16, expected float32 or float64",
    ),
    "two dtypes": (
        lambda x: cx.conv2d(x, jnp.asarray(w4, jnp.float64), groups=2),
        "conv2d: weight has dtype float64, expected float32 as input has",
    ),
    "None": (
        lambda x: cx.conv2d_relu_max_pool2d(x, None, pool_kernel_size=2),
        "conv2d_relu_max_pool2d: weight is None, expected a jax.Array: pass jax.numpy.asarray(weight)",
    ),
    "indices": (
        lambda x: cx.max_pool2d(x, 2, return_indices=1),
        "max_pool2d: return_indices is 1, expected a bool",
    ),
    "option": (lambda x: cx.max_pool2d(x, "2"), "max_pool2d: kernel_size is a str, expected *"),
}


@pytest.mark.parametrize("name", [*SHAPE_ERRORS, *TYPE_ERRORS])
def test_bad_arguments_raise_where_the_call_is_traced(name):
    call, message = {**SHAPE_ERRORS, **TYPE_ERRORS}[name]
    start, _, rest = message.partition("*")
    for run in (call, jax.jit(call), functools.partial(jax.eval_shape, call), jax.grad(lambda x: call(x).sum())):
        with pytest.raises(ShapeError if name in SHAPE_ERRORS else TypeError) as error:
            run(jnp.asarray(x4))
        assert str(error.value).startswith(start) and str(error.value).endswith(rest)


def test_symbolic_shapes_are_refused():
    n = jax.export.symbolic_shape("n, 4, 6, 6")
    with pytest.raises(TypeError, match=r"^max_pool2d: input has the symbolic shape \(n, 4, 6, 6\), expected sizes"):
        jax.eval_shape(lambda x: cx.max_pool2d(x, 2), jax.ShapeDtypeStruct(n, jnp.float32))


def test_a_traced_option_is_named_by_jax(fast_path):
    """JAX's own error, which explains tracing."""
    with pytest.raises(jax.errors.TracerIntegerConversionError):
        jax.jit(lambda x, stride: cx.max_pool2d(x, 2, stride))(jnp.asarray(x4), 1)


def test_an_exported_program_runs(fast_path):
    """JAX's exporter needs an option that allows the custom calls; the recipe of docs/from/jax.md."""
    allowed = [jax.export.DisabledSafetyCheck.custom_call("convx.relu")]
    exported = jax.export.export(jax.jit(cx.relu), disabled_checks=allowed)(jnp.asarray(x4))
    y = exported.call(jnp.asarray(x4))
    assert_same_bits(np.asarray(y), convx.relu(x4), "exported")


def test_arrays_elsewhere_are_refused(monkeypatch):
    class Device:
        platform = "gpu"

        def __str__(self):
            return "cuda:0"

    monkeypatch.setattr(functions, "_devices_of", lambda array: {Device()})
    with pytest.raises(ValueError, match=r"^relu: input is on cuda:0, expected the CPU, .* jax.device_put\(input, "):
        cx.relu(jnp.ones(3))


def test_the_functions_for_numpy_point_here():
    x, w = jnp.asarray(x4), jnp.asarray(w4)
    with pytest.raises(TypeError, match=r"expected a numpy.ndarray .*; convx\.jax\.conv2d takes JAX arrays"):
        convx.conv2d(x, w, groups=2)
    with pytest.raises(TypeError, match=r"convx\.jax\.relu"):
        convx.relu_backward(x, x)
    with pytest.raises(TypeError, match=r"convx\.jax\.max_pool2d"):
        jax.jit(lambda x: convx.max_pool2d(x, 2))(x)
    with pytest.raises(TypeError, match=r"weight is a jaxlib.*, expected a numpy.ndarray"):
        convx.conv2d(x4, w, groups=2)


def test_what_is_for_numpy_alone_sends_nobody_to_a_function_that_does_not_exist():
    x, w = jnp.asarray(x4), jnp.asarray(w4)
    calls = {
        "prepare_weight": lambda: convx.prepare_weight(w, x4.shape, groups=2),
        "conv2d_grad_norms": lambda: convx.conv2d_grad_norms(x, x, w4.shape),
    }
    for op, call in calls.items():
        with pytest.raises(TypeError, match=rf"^{op}: .*; convx\.jax has no {op}; .* numpy\.asarray\(\w+\)$"):
            call()
    assert set(_devices._IN_JAX) == set(cx.__all__)


def test_errors_of_the_kernels_arrive(path):
    """A call with wrong shapes, which convx.jax never makes: XLA's error has convx's message."""

    def run(dtype, size):
        result = jax.ShapeDtypeStruct((size,), dtype)
        return jax.block_until_ready(jax.jit(lambda x: _calls.call("relu", [result], [x], {}))(jnp.ones(4, dtype)))

    if path == "ffi":
        with pytest.raises(jax.errors.JaxRuntimeError, match=r"relu: output has shape \(3,\), expected \(4,\)"):
            run(jnp.float32, 3)
    else:
        with pytest.raises(jax.errors.JaxRuntimeError, match="relu: input has dtype float16, expected float32"):
            run(jnp.float16, 4)


# The choice of the dispatch path


def test_slow_path_warns_once(monkeypatch):
    DispatchPath.change("callback")
    monkeypatch.setattr(_calls, "slow_reason", lambda: "for a reason")
    monkeypatch.setattr(_calls, "_warn_once", functools.cache(WARN))
    x = [jnp.ones(size, jnp.float32) for size in (101, 102)]  # sizes that were not compiled before
    with pytest.warns(RuntimeWarning, match=r"goes through jax\.pure_callback, .*: for a reason$"):
        cx.relu(x[0])
    cx.relu(x[1])  # a second warning would be an error


def test_without_the_module_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "convx._jax", None)
    monkeypatch.delattr(convx, "_jax", raising=False)
    assert "CONVX_JAX=ON" in WHY_SLOW.__wrapped__()


def test_a_runtime_that_is_too_old_is_named(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("versions differ")

    module = types.SimpleNamespace(handlers={"relu": None}, ffi_api_version=(0, 99))
    monkeypatch.setitem(sys.modules, "convx._jax", module)
    monkeypatch.setattr(convx, "_jax", module, raising=False)
    monkeypatch.setattr(jax.ffi, "register_ffi_target", refuse)
    reason = WHY_SLOW.__wrapped__()
    assert "built for version 0.99 of XLA" in reason and "versions differ" in reason
