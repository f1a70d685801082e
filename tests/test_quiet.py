"""No operation warns or raises for huge, denormal, infinite and NaN values.

In every test NumPy raises for each floating-point event, and each warning is an error. All results are linear in the
data: with weights of one, data of one give whole numbers, and data of v give v times these.
"""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import convx
from convx import nn, optim, reference
from support import assert_equal

pytestmark = pytest.mark.filterwarnings("error")

VALUES = ("max", "smallest_subnormal", "smallest_normal", "inf", "nan")
each_value = pytest.mark.parametrize("value", VALUES)


@pytest.fixture(autouse=True)
def every_event_raises():
    with np.errstate(all="raise"):
        yield


def number(value, dtype):
    return float(getattr(np.finfo(dtype), value, np.nan)) if value != "inf" else np.inf


def times(ones, v, dtype):
    """Scale whole numbers by v; None stays None."""
    with np.errstate(all="ignore"):
        return np.where(ones == 0, 0.0, ones.astype("f8") * v).astype(dtype)


def assert_scaled(actual, ones, v, dtype):
    for position, (one, other) in enumerate(zip(actual, ones, strict=True)):
        assert one.dtype == dtype
        assert_equal(one, times(other, v, dtype), f"result {position}")


def assert_close(actual, expected, context=""):
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7, err_msg=context)


LAYERS = {
    "Conv2d": (lambda dtype: nn.Conv2d(2, 4, 3, padding=1, dtype=dtype), (2, 2, 6, 6)),
    "Winograd's": (lambda dtype: nn.Conv2d(32, 16, 3, padding=1, dtype=dtype), (1, 32, 12, 12)),
    "ConvTranspose2d": (lambda dtype: nn.ConvTranspose2d(2, 4, 3, 2, 1, dtype=dtype), (2, 2, 4, 4)),
    "Linear": (lambda dtype: nn.Linear(12, 5, dtype=dtype), (3, 12)),
    "ReLU": (lambda dtype: nn.ReLU(), (2, 3, 5)),
    "MaxPool2d": (lambda dtype: nn.MaxPool2d(2), (1, 2, 4, 6)),
    "MaxPool2d by indices": (lambda dtype: nn.MaxPool2d(16), (1, 1, 20, 20)),
    "Flatten": (lambda dtype: nn.Flatten(), (2, 3, 4)),
    "Sequential": (
        lambda dtype: nn.Sequential(
            nn.Conv2d(1, 2, 3, dtype=dtype), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3, dtype=dtype)
        ),
        (2, 1, 6, 6),
    ),
}


def run(layer, x, g):
    """The output for x, and the gradients of two backward passes of g."""
    for parameter in layer.parameters():
        parameter.value[...] = parameter.name == "weight"
    layer.zero_grad()
    output = layer(np.full(x[0], x[1], x[2]))
    assert_equal(layer.forward(np.full(*x))[0], output, "forward")
    _, context = layer.forward(np.ones(x[0], x[2]))
    grad = np.full(output.shape, g, x[2])
    layer.backward(grad, context)
    return output, layer.backward(grad, context), *(parameter.grad for parameter in layer.parameters())


# The transforms of Winograd's method round denormal numbers.
@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in LAYERS for value in VALUES if "Winograd" not in name or "smallest" not in value],
)
def test_layers(name, value, dtype):
    make, shape = LAYERS[name]
    if name == "Winograd's" and value.startswith("smallest"):
        value = "eps"  # its transforms round denormal numbers
    v = number(value, dtype)
    assert_scaled(run(make(dtype), (shape, v, dtype), v), run(make("f8"), (shape, 1.0, "f8"), 1.0), v, dtype)


def functions(m, v, dtype, layout="NCHW"):
    """The results of a module's functions on data scaled by v."""

    def images(*shape, of=v):
        return np.full(shape if layout == "NCHW" else (shape[0], *shape[2:], shape[1]), of, dtype)

    x, w, bias = images(2, 4, 6, 5), np.ones((6, 2, 3, 3), dtype), np.full(6, v, dtype)
    ones, pooled, options = images(2, 4, 6, 5, of=1.0), images(2, 4, 3, 2), dict(layout=layout)
    conv, g = dict(padding=1, groups=2), images(2, 6, 6, 5)
    constant = dict(conv, padding_mode="constant", padding_value=v)
    _, codes = m.max_pool2d(ones, 2, return_codes=True, **options)
    _, indices = m.max_pool2d(ones, 2, return_indices=True, **options)
    block, saved = m.conv2d_relu_max_pool2d(ones, w, pool_kernel_size=2, **conv, **options)
    assert m.conv2d_grad_norms(g, x, w.shape, **conv, **options)[0].shape == (2,)
    return [
        m.conv2d(x, w, bias, **conv, **options),
        m.conv2d(x, w, bias, activation="relu", **constant, **options),
        *m.conv2d_backward(g, ones, w, **conv, **options),
        *m.conv2d_backward(g, ones, w, **conv, per_sample=True, **options),
        m.conv_transpose2d(g, w, None, 2, 1, groups=2, **options),
        *m.conv_transpose2d_backward(images(2, 4, 11, 9), images(2, 6, 6, 5, of=1.0), w, 2, 1, groups=2, **options),
        m.relu(x),
        *(m.relu_backward(x, each) for each in m.relu(ones, return_mask=True)),
        m.max_pool2d(x, 2, **options),
        m.max_pool2d_backward(pooled, codes, x.shape, 2, **options),
        m.max_pool2d_backward(pooled, indices, x.shape, 2, **options),
        m.conv2d_relu_max_pool2d(x, w, pool_kernel_size=2, **conv, **options)[0],
        *m.conv2d_relu_max_pool2d_backward(np.full_like(block, v), saved),
    ]


@each_value
@pytest.mark.parametrize("module", [convx, reference], ids=lambda module: module.__name__)
def test_functions(module, value, dtype, layout):
    v = number(value, dtype)
    assert_scaled(functions(module, v, dtype, layout), functions(reference, 1.0, "f8", layout), v, dtype)


def bridged(library, v, dtype):
    """The results of convx.torch or convx.jax on data scaled by v, and the gradients."""
    m = importlib.import_module(f"convx.{library}")
    x, w = np.full((2, 4, 6, 5), v, dtype), np.ones((6, 2, 3, 3), dtype)

    def total(x, w):
        y = m.conv2d(x, w, padding=1, groups=2, activation="relu")
        block = m.conv2d_relu_max_pool2d(x, w, padding=1, groups=2, pool_kernel_size=2)
        return m.max_pool2d(m.relu(y), 2), block, m.conv_transpose2d(y, w, None, 2, groups=2)

    if library == "torch":
        import torch

        leaves = [torch.from_numpy(np.ones_like(x)).requires_grad_(), torch.from_numpy(w).requires_grad_()]
        outputs = total(torch.from_numpy(x), leaves[1])
        torch.autograd.backward(total(*leaves), [torch.full_like(each, v) for each in outputs])
        return [each.detach().numpy() for each in (*outputs, leaves[0].grad)]
    import jax

    with jax.enable_x64(dtype == "float64"):
        outputs = total(jax.numpy.asarray(x), jax.numpy.asarray(w))
        _, pull_back = jax.vjp(total, jax.numpy.ones_like(x), jax.numpy.asarray(w))
        grad_input, _ = pull_back(tuple(jax.numpy.full_like(each, v) for each in outputs))
    return [*map(np.asarray, (*outputs, grad_input))]


@pytest.mark.parametrize(
    ("library", "value"),
    [(name, value) for name in ("torch", "jax") for value in VALUES if (name, value) != ("jax", "smallest_subnormal")],
)  # XLA flushes denormal numbers to zero
def test_bridges(library, value, dtype):
    pytest.importorskip(library)
    v = number(value, dtype)
    assert_scaled(bridged(library, v, dtype), bridged(library, 1.0, "float64"), v, dtype)


@each_value
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss(reduction, sign, value, dtype):
    """Extreme scores (one, a row, all; right and wrong): PyTorch's results, without a warning."""
    torch = pytest.importorskip("torch")
    scores, labels = np.random.default_rng(0).standard_normal((5, 4)).astype(dtype), np.array([0, 1, 2, 3, 0])
    criterion = nn.CrossEntropyLoss(reduction)
    for where in ((0, 0), (0, 1), (slice(0, 2), 2), 0, slice(None)):
        x = scores.copy()
        x[where] = sign * number(value, dtype)
        loss, context = criterion.forward(x, labels)
        leaf = torch.from_numpy(x).requires_grad_()
        expected = torch.nn.functional.cross_entropy(leaf, torch.from_numpy(labels), reduction=reduction)
        expected.backward()
        assert_close(loss, expected.item())
        assert_close(criterion.backward(context), leaf.grad.numpy())


OPTIMIZERS = {
    "SGD": dict(lr=0.5),
    "SGD with everything": dict(lr=1e30, momentum=0.9, weight_decay=0.1, nesterov=True),
    "Adam": dict(lr=0.1),
    "Adam with everything": dict(lr=1.0, betas=(0.0, 0.9), eps=0.0, weight_decay=0.1),
}


@each_value
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name, value, dtype):
    torch = pytest.importorskip("torch")
    kind, options = name.split()[0], OPTIMIZERS[name]
    v = number(value, dtype)
    start, grads = np.array([1.0, -1.0, v], dtype), [np.array([v, 1.0, -1.0], dtype), np.array([-v, 0.0, 1.0], dtype)]
    ours, theirs = nn.Parameter(start.copy()), torch.nn.Parameter(torch.tensor(start))
    pair = getattr(optim, kind)([ours], **options), getattr(torch.optim, kind)([theirs], **options)
    for grad in grads:
        ours.zero_grad()
        ours.accumulate(grad)
        theirs.grad = torch.tensor(grad)
        for optimizer in pair:
            optimizer.step()
        assert_close(ours.value, theirs.detach().numpy(), f"{grad}")


def test_sums_and_conversions():
    """Gradients and a bias that cancel; a denormal mean; states of float64 beyond float32."""
    linear = nn.Linear(1, 1)
    linear.weight.value[...], linear.bias.value[...] = 1, -np.inf
    assert np.isnan(linear(np.full((1, 1), np.inf, np.float32))).all()
    criterion = nn.CrossEntropyLoss()
    context = criterion.forward(np.array([[0, -100], [0, 0]], np.float32), np.array([0, 1]))[1]
    assert 0 < criterion.backward(context)[0, 1] < 1e-43
    parameter = nn.Parameter(np.zeros(2, np.float32))
    for grad in ([np.inf, 3e38], [-np.inf, 3e38]):
        parameter.accumulate(np.array(grad, np.float32))
    np.testing.assert_array_equal(parameter.grad, [np.nan, np.inf])
    layer = nn.Linear(1, 2)
    layer.load_state_dict({"weight": np.array([[1e300], [1e-300]]), "bias": np.array([-1e300, np.nan])})
    np.testing.assert_array_equal(layer.weight.value, [[np.inf], [0]])
    optimizer = optim.SGD([parameter], 0.1, 0.9)
    optimizer.load_state_dict(optimizer.state_dict() | {"0.momentum_buffer": np.array([1e300, -1e300])})
    np.testing.assert_array_equal(optimizer.state[0]["momentum_buffer"], [np.inf, -np.inf])
    x, w = np.ones((1, 1, 2, 2), np.float32), np.ones((1, 1, 3, 3), np.float32)
    for module in (convx, reference):
        y = module.conv2d(x, w, padding=1, padding_mode="constant", padding_value=1e300)
        assert np.isinf(y).all()


@pytest.mark.parametrize(
    "value", [1j, np.complex64(1), np.complex128(1), np.array([1.0]), np.True_, True, "1", None], ids=repr
)
def test_what_would_lose_a_part(value):
    """NumPy converts most of these to a float with at most a warning."""
    x, w = np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3))
    calls = [
        lambda: convx.conv2d(x, w, padding_mode="constant", padding_value=value),
        lambda: convx.explain("conv2d", x.shape, w.shape, padding_value=value),
        lambda: nn.Conv2d(1, 1, 3, padding_mode="constant", padding_value=value),
        lambda: reference.conv2d(x, w, padding=1, padding_mode="constant", padding_value=value),
    ]
    if importlib.util.find_spec("torch"):
        import torch

        import convx.torch

        for device in ("cpu", "meta"):
            tensors = torch.ones(1, 1, 3, 3, device=device), torch.ones(1, 1, 3, 3, device=device)
            calls.append(lambda tensors=tensors: convx.torch.conv2d(*tensors, padding_value=value))
    for call in calls:
        with pytest.raises(TypeError, match=r"padding_value is .*, expected a number"):
            call()
