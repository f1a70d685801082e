"""Integers and pairs in every accepted form: of NumPy, of PyTorch, lists, sequences of length 1."""

from __future__ import annotations

import collections
import enum
import functools
import importlib.util

import numpy as np
import pytest

import convx
from convx import nn, reference
from support import assert_same_bits

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 4, 13, 12)).astype("float32")
W = RNG.standard_normal((6, 2, 3, 2)).astype("float32")

WIDTHS = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)
INTEGERS = {**{kind.__name__: kind for kind in WIDTHS}, "0-d array": np.array}


def forms_of_two(integer):
    """The forms of (2, 2)."""
    two = integer(2)
    return [two, [two], (two,), [two, two], (two, 2), (2, two)]


def calls(module, two, one, groups):
    """Results of every function, with (2, 2) for each pair."""
    conv = dict(stride=two, padding=one, dilation=two, groups=groups)
    pool = dict(stride=two, padding=one, dilation=two)
    fused = dict(stride=two, padding=two, groups=groups, pool_kernel_size=two, pool_stride=two, pool_padding=one)
    transposed = dict(stride=two, padding=two, output_padding=one, dilation=two, groups=groups)
    y = module.conv2d(X, W, **conv)
    z = module.conv_transpose2d(y, W, **transposed)
    pooled, codes = module.max_pool2d(X, two, **pool, return_codes=True)
    block, saved = module.conv2d_relu_max_pool2d(X, W, **fused)
    return (
        y,
        *module.conv2d_backward(y, X, W, **conv)[:2],
        *module.conv2d_grad_norms(y, X, W.shape, **conv),
        z,
        *module.conv_transpose2d_backward(z, y, W, **transposed)[:2],
        pooled,
        module.max_pool2d_backward(pooled, codes, X.shape, two, **pool),
        block,
        module.conv2d_relu_max_pool2d_backward(block, saved)[0],
    )


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("module", [convx, reference], ids=lambda module: module.__name__)
def test_functions(module, name):
    integer = INTEGERS[name]
    expected = calls(module, 2, 1, 2)
    for two, one in zip(forms_of_two(integer), forms_of_two(lambda _: integer(1)), strict=True):
        one = integer(1) if isinstance(two, list) else tuple(1 for _ in two) if isinstance(two, tuple) else one
        assert_same_bits(calls(module, two, one, integer(2)), expected, f"{module.__name__}, {two!r}")
    assert_same_bits(calls(module, np.array([2, 2]), np.array([1, 1]), 2), expected, "arrays of two")


@pytest.mark.parametrize("module", [convx, reference], ids=lambda module: module.__name__)
@pytest.mark.parametrize("empty", [[], ()], ids=repr)
def test_an_empty_stride_of_a_pool_is_the_window(module, empty):
    assert_same_bits(module.max_pool2d(X, (3, 2), empty), module.max_pool2d(X, (3, 2)), "max_pool2d")
    fused = [
        module.conv2d_relu_max_pool2d(X, W, groups=2, pool_kernel_size=3, pool_stride=stride)[0]
        for stride in (empty, None)
    ]
    assert_same_bits(*fused, "fused")


@pytest.mark.parametrize(
    "padding",
    [[[1, 2], [0, 3]], np.array([[1, 2], [0, 3]]), ((np.int8(1), 2), [0, np.array(3)]), [np.array([1, 2]), (0, 3)]],
    ids=repr,
)
def test_padding_per_side(padding):
    expected = convx.conv2d(X, W, groups=2, padding=((1, 2), (0, 3)))
    assert_same_bits(convx.conv2d(X, W, groups=2, padding=padding), expected, "convx")
    assert_same_bits(
        reference.conv2d(X, W, groups=2, padding=padding),
        reference.conv2d(X, W, groups=2, padding=((1, 2), (0, 3))),
        "reference",
    )


@pytest.mark.parametrize("name", INTEGERS)
def test_layers_and_what_they_keep(name):
    integer = INTEGERS[name]
    for two in forms_of_two(integer):
        conv = nn.Conv2d(integer(4), integer(6), two, stride=two, dilation=two, groups=integer(2))
        assert conv.weight.value.shape == (6, 2, 2, 2)
        plain = nn.Conv2d(4, 6, 2, stride=2, dilation=2, groups=2)
        plain.weight.value[...] = conv.weight.value
        assert_same_bits(conv(X), plain(X), f"Conv2d, {two!r}")
        transposed = nn.ConvTranspose2d(integer(4), integer(6), two, stride=two, output_padding=integer(1))
        same = nn.ConvTranspose2d(4, 6, 2, stride=2, output_padding=1)
        same.weight.value[...] = transposed.weight.value
        assert_same_bits(transposed(X), same(X), f"ConvTranspose2d, {two!r}")
        assert_same_bits(nn.MaxPool2d(two, two)(X), nn.MaxPool2d(2)(X), f"MaxPool2d, {two!r}")
    assert nn.Linear(integer(3), integer(5)).weight.value.shape == (5, 3)


@pytest.mark.parametrize("name", INTEGERS)
def test_explain_and_prepared_weights(name):
    integer = INTEGERS[name]
    for two in forms_of_two(integer):
        options = dict(stride=two, padding=two, groups=integer(2))
        plans = convx.explain("conv2d", list(X.shape), np.array(W.shape), **options)
        assert plans == convx.explain("conv2d", X.shape, W.shape, stride=2, padding=2, groups=2)
        assert convx.explain("max_pool2d", X.shape, two) == convx.explain("max_pool2d", X.shape, 2)
        prepared = convx.prepare_weight(W, list(X.shape), **options)
        expected = convx.conv2d(X, W, stride=2, padding=2, groups=2)
        assert_same_bits(convx.conv2d(X, prepared, **options), expected, f"prepared, {two!r}")


FORMS_OF_PYTORCH = {
    "torch.Size": lambda torch: torch.Size([2, 2]),
    "0-d tensor": lambda torch: torch.tensor(2),
    "[0-d tensor]": lambda torch: [torch.tensor(2)],
    "0-d tensor and int": lambda torch: (torch.tensor(2), 2),
    "(NumPy's,)": lambda torch: (np.int8(2),),
    "list of NumPy's": lambda torch: [np.uint8(2), np.int64(2)],
    "0-d array": lambda torch: np.array(2),
    "array": lambda torch: np.array([2, 2]),
    "IntEnum": lambda torch: enum.IntEnum("Number", {"two": 2}).two,
    "named tuple": lambda torch: collections.namedtuple("Pair", ("h", "w"))(2, 2),
}


def of_tensors(torch, ct, x, two):
    """Results of every function of convx.torch, with (2, 2) for each pair."""
    w = torch.from_numpy(W)
    return (
        ct.conv2d(x, w, None, two, two, two, 2),
        ct.conv_transpose2d(x, w[:4], None, two, two, 1, 2, two),
        ct.max_pool2d(x, two, two, 1, dilation=two),
        ct.conv2d_relu_max_pool2d(
            x, w, None, two, two, groups=2, pool_kernel_size=two, pool_stride=two, pool_padding=1
        ),
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # PyTorch's jvp uses it
@pytest.mark.parametrize("name", FORMS_OF_PYTORCH)
def test_ways_of_pytorch(name):
    """Recorded, mapped, with tangents, per sample, without data: each resolves its options elsewhere."""
    torch = pytest.importorskip("torch")
    import convx.torch as ct

    two = FORMS_OF_PYTORCH[name](torch)
    x = torch.from_numpy(X)
    expected = of_tensors(torch, ct, x, 2)
    call = functools.partial(of_tensors, torch, ct, two=two)
    ways = {
        "eager": call(x),
        "recorded": call(x.clone().requires_grad_()),
        "vmap": [each[0] for each in torch.func.vmap(call)(x[None])],
        "jvp": torch.func.jvp(call, (x,), (x,))[0],
        "single images": [torch.stack(pair) for pair in zip(call(x[0]), call(x[1]), strict=True)],
    }
    for way, found in ways.items():
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other), way
    w = torch.from_numpy(W).to("meta")
    assert ct.conv2d(x.to("meta"), w, None, two, two, two, 2).shape == expected[0].shape


@pytest.mark.parametrize("name", ["torch.Size", "list of NumPy's", "IntEnum", "named tuple"])
def test_layers_of_pytorch(name):
    """Layers of PyTorch with every form, converted, alone and as a fused run; layers of convx.torch."""
    torch = pytest.importorskip("torch")
    import convx.torch as ct

    two, x = FORMS_OF_PYTORCH[name](torch), torch.from_numpy(X)
    for parts in (
        [("Conv2d", (4, 6, two, two)), ("ReLU", ()), ("MaxPool2d", (two, two))],
        [("ConvTranspose2d", (4, 6, two, two, two))],
        [("MaxPool2d", (two,))],
    ):
        theirs = torch.nn.Sequential(*(getattr(torch.nn, kind)(*args) for kind, args in parts))
        ours = torch.nn.Sequential(*(getattr(ct, kind)(*args) for kind, args in parts))
        ours.load_state_dict(theirs.state_dict())
        converted = ct.convert(theirs, inplace=False, verbose=False)
        assert bool(converted.conversion.fused) == (len(parts) > 1)
        expected = theirs(x)
        for model in (converted, ours, ct.convert(ours, verbose=False)):
            torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_symbolic_integers():
    """An option that is the size of a tensor, in one program for all sizes."""
    torch = pytest.importorskip("torch")
    import convx.torch as ct

    w = torch.from_numpy(W)

    def call(x, two):
        return ct.max_pool2d(ct.conv2d(x, w, None, two, two, two, 2), two, two)

    compiled = torch.compile(
        lambda x, sizes: call(x, tuple(sizes.shape)), fullgraph=True, dynamic=True, backend="eager"
    )
    for size in (2, 3, 4):
        x = torch.randn(1, 4, 20 + size, 21)
        torch.testing.assert_close(compiled(x, torch.empty(size, size)), call(x, size), rtol=1e-4, atol=1e-5)


def test_jax():
    jax = pytest.importorskip("jax")
    import convx.jax as cj

    x, w = jax.numpy.asarray(X), jax.numpy.asarray(W)

    def results(two, groups):
        return tuple(
            map(
                np.asarray,
                (
                    cj.conv2d(x, w, None, two, two, two, groups),
                    cj.conv_transpose2d(x, w[:4], None, two, two, 1, groups, two),
                    cj.max_pool2d(x, two, two),
                    cj.conv2d_relu_max_pool2d(
                        x, w, None, two, groups=groups, pool_kernel_size=two, pool_stride=two, pool_padding=1
                    ),
                ),
            )
        )

    expected = results(2, 2)
    for integer in (*INTEGERS.values(), jax.numpy.int32):
        for two in forms_of_two(integer):
            assert_same_bits(results(two, integer(2)), expected, f"{two!r}")
    assert_same_bits(np.asarray(cj.max_pool2d(x, 2, [])), expected[2], "an empty stride")
    with pytest.raises(jax.errors.TracerIntegerConversionError):
        jax.jit(lambda two: cj.max_pool2d(x, two))(2)


NONE = [True, np.True_, 2.0, np.float32(2), np.array(2.5), "2", None, np.array([2.0, 2.0]), np.array([True, True])]
NOTHING = [
    b"22",
    {2},
    {2: 2},
    range(2, 4),
    iter((2, 2)),
    memoryview(b"22"),
    2j,
    np.array([[2]]),
    float("nan"),
    object(),
]


@pytest.mark.parametrize("value", [*NONE, *NOTHING], ids=lambda value: repr(value).split(" at ")[0])
def test_what_is_no_integer_is_refused(value):
    calls = [
        lambda: convx.conv2d(X, W, stride=value, groups=2),
        lambda: convx.conv2d(X, W, stride=(value, 2), groups=2),
        lambda: convx.conv2d(X, W, groups=value),
        lambda: convx.max_pool2d(X, value),
        lambda: nn.Conv2d(4, 6, value),
        lambda: reference.conv2d(X, W, stride=value, groups=2),
        lambda: reference.max_pool2d(X, (2, value)),
    ]
    if importlib.util.find_spec("torch"):
        import torch

        import convx.torch as ct

        for x, w in [(torch.from_numpy(X), torch.from_numpy(W)), (torch.empty(X.shape, device="meta"),) * 2]:
            calls += [
                lambda x=x, w=w: ct.conv2d(x, w, stride=value, groups=2),
                lambda x=x, w=w: ct.conv2d(x, w, groups=value),
                lambda x=x: ct.max_pool2d(x, (value, 2)),
            ]
    for call in calls:
        with pytest.raises(TypeError, match="expected an integer"):
            call()
