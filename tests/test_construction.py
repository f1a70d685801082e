"""Layers and optimizers refuse bad options at construction, and bad assignments at the next use.

convx.nn and convx.torch have the same messages, from one check.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import convx
from convx import nn, optim

NONE = "expected an integer"
REQUIRED: dict[str, dict[str, Any]] = {
    "Conv2d": dict(in_channels=4, out_channels=6, kernel_size=3),
    "ConvTranspose2d": dict(in_channels=4, out_channels=6, kernel_size=3),
    "MaxPool2d": dict(kernel_size=2),
}
CHANNELS = [
    (dict(in_channels=0), "in_channels is 0, expected a positive number"),
    (dict(in_channels="4"), f"in_channels is a str, {NONE}"),
    (dict(in_channels=4.0), f"in_channels is a float, {NONE}"),
    (dict(out_channels=-6), "out_channels is -6, expected a positive number"),
    (dict(out_channels=None), f"out_channels is None, {NONE}"),
    (dict(out_channels=(6,)), f"out_channels is a tuple, {NONE}"),
    (dict(kernel_size="3"), f"kernel_size is a str, {NONE} or a pair"),
    (dict(kernel_size=0), r"kernel_size is \(0, 0\), expected positive numbers"),
    (dict(kernel_size=(3, -1)), r"kernel_size is \(3, -1\), expected positive numbers"),
    (dict(kernel_size=(3, 3, 3)), r"kernel_size is \(3, 3, 3\), expected"),
    (dict(kernel_size=np.array(2.5)), f"kernel_size is a numpy.ndarray, {NONE}"),
    (dict(groups=3), "groups is 3, expected a divisor of the 4 input channels"),
    (dict(groups=4), "groups is 4, expected a divisor of the 6 output channels"),
    (dict(groups=0), "groups is 0, expected a positive number"),
    (dict(groups="2"), f"groups is a str, {NONE}"),
    (dict(bias="no"), "bias is a str, expected a bool"),
    (dict(stride=0), r"stride is \(0, 0\), expected positive numbers"),
    (dict(stride=1.5), f"stride is a float, {NONE}"),
    (dict(stride=[True, 1]), f"stride is a bool, {NONE}"),
    (dict(dilation=(1, -1)), r"dilation is \(1, -1\), expected positive numbers"),
    (dict(dilation=2**70), "dilation is .*, expected a number of at most 64 bits"),
    (dict(algorithm="fast"), "algorithm is .fast., expected"),
    (dict(algorithm="winograd", stride=2), 'algorithm is "winograd" with kernel'),
]
REFUSED = [
    *(("Conv2d", *each) for each in CHANNELS),
    ("Conv2d", dict(padding=-1), "padding is .*-1.*, expected"),
    ("Conv2d", dict(padding=(1, 2, 3)), r"padding is \(1, 2, 3\), expected"),
    ("Conv2d", dict(padding=1.5), "padding is a float, expected"),
    *(("ConvTranspose2d", *each) for each in CHANNELS),
    ("ConvTranspose2d", dict(padding=-1), "padding is .*-1.*, expected"),
    ("ConvTranspose2d", dict(output_padding=1), "output_padding is 1 in height, expected 0 to 0"),
    ("ConvTranspose2d", dict(stride=2, output_padding=(0, 2)), "output_padding is 2 in width, expected 0 to 1"),
    ("ConvTranspose2d", dict(output_padding="1"), f"output_padding is a str, {NONE}"),
    ("MaxPool2d", dict(kernel_size=0), r"kernel_size is \(0, 0\), expected positive numbers"),
    ("MaxPool2d", dict(kernel_size="2"), f"kernel_size is a str, {NONE}"),
    ("MaxPool2d", dict(stride=(1, 0)), r"stride is \(1, 0\), expected positive numbers"),
    ("MaxPool2d", dict(stride="2"), f"stride is a str, {NONE}"),
    ("MaxPool2d", dict(padding=2), "padding is 2 in height, expected at most 1"),
    ("MaxPool2d", dict(padding=-1), "padding is .*-1.*, expected"),
    ("MaxPool2d", dict(dilation=0), r"dilation is \(0, 0\), expected positive numbers"),
    ("MaxPool2d", dict(dilation=None), f"dilation is None, {NONE}"),
    ("MaxPool2d", dict(ceil_mode="yes"), "ceil_mode is a str, expected a bool"),
]
# The message names the layer or the function that it calls.
LATER = [
    ("Conv2d", "stride", 0, r"is \(0, 0\), expected positive numbers"),
    ("Conv2d", "stride", True, f"is a bool, {NONE}"),
    ("Conv2d", "padding", "SAME", "is 'SAME', expected"),
    ("Conv2d", "dilation", (1, 2, 3), r"is \(1, 2, 3\), expected"),
    ("Conv2d", "groups", 3, "is 3, expected a divisor"),
    ("Conv2d", "groups", "2", f"is a str, {NONE}"),
    ("Conv2d", "padding_mode", "wrap", "is 'wrap', expected"),
    ("Conv2d", "algorithm", "fast", "is .fast., expected"),
    ("ConvTranspose2d", "stride", "2", f"is a str, {NONE}"),
    ("ConvTranspose2d", "output_padding", 1, "is .*1.*, expected"),
    ("ConvTranspose2d", "groups", None, f"is a?.?None.*, {NONE}"),
    ("MaxPool2d", "kernel_size", "2", f"is a str, {NONE}"),
    ("MaxPool2d", "kernel_size", (2, 2, 2), r"is \(2, 2, 2\), expected"),
    ("MaxPool2d", "stride", 0, r"is \(0, 0\), expected positive numbers"),
    ("MaxPool2d", "padding", "half", "is 'half', expected"),
    ("MaxPool2d", "dilation", -1, r"is \(-1, -1\), expected positive numbers"),
    ("MaxPool2d", "ceil_mode", "yes", "is a str, expected a bool"),
]


def library(name):
    """The layers of convx.nn or convx.torch, and an image for them."""
    image = np.ones((1, 4, 7, 7), np.float32)
    if name == "nn":
        return nn, image
    torch = pytest.importorskip("torch")
    import convx.torch

    return convx.torch, torch.from_numpy(image)


each_library = pytest.mark.parametrize("name", ["nn", "torch"])


@each_library
@pytest.mark.parametrize(("kind", "options", "message"), REFUSED, ids=repr)
@pytest.mark.filterwarnings("error")
def test_constructors(name, kind, options, message):
    make = getattr(library(name)[0], kind)
    make(**REQUIRED[kind])
    with pytest.raises((TypeError, convx.ShapeError), match=f"^{kind}: {message}"):
        make(**REQUIRED[kind] | options)


@each_library
@pytest.mark.parametrize("kind", REQUIRED)
def test_arguments_that_there_are_not(name, kind):
    with pytest.raises(TypeError, match="unexpected keyword argument 'strides'"):
        getattr(library(name)[0], kind)(**REQUIRED[kind], strides=2)


@each_library
@pytest.mark.parametrize(("kind", "option", "value", "message"), LATER, ids=repr)
def test_what_is_assigned_later(name, kind, option, value, message):
    """Every call of the layer raises the message, and the layer works again with the previous option."""
    layers, image = library(name)
    operation = {"Conv2d": "conv2d", "ConvTranspose2d": "conv_transpose2d", "MaxPool2d": "max_pool2d"}[kind]
    layer = getattr(layers, kind)(**REQUIRED[kind])
    before = getattr(layer, option)
    expected = layer(image)
    for call in (layer, layer.forward):
        setattr(layer, option, value)
        with pytest.raises((TypeError, convx.ShapeError), match=f"^({kind}|{operation}): {option} {message}"):
            call(image)
        setattr(layer, option, before)
        assert (layer(image) == expected).all()


def test_options_of_convx_nn_are_attributes():
    """Options are taken in any form and kept as numbers, strings and tuples; assignments take effect."""
    image = np.ones((1, 4, 7, 7), np.float32)
    conv = nn.Conv2d(4, 6, 3, stride=np.array([2, 1]), padding=[np.int8(1)], padding_mode=["zeros", "reflect"])
    assert (conv.stride, conv.padding, conv.dilation, conv.groups) == ((2, 1), (1,), 1, 1)
    assert (conv.padding_mode, conv.padding_value, conv.layout, conv.algorithm) == (
        ("zeros", "reflect"), 0.0, "NCHW", "auto",
    )  # fmt: skip
    conv.stride = 3
    assert conv(image).shape == (1, 6, 3, 3)
    assert repr(conv).startswith("Conv2d(4, 6, (3, 3), stride=3, padding=(1,)")
    transposed = nn.ConvTranspose2d(4, 6, 3)
    transposed.stride, transposed.output_padding = 2, 1
    output, context = transposed.forward(image)
    assert output.shape == (1, 6, 16, 16)
    assert transposed.backward(output, context).shape == image.shape
    pool = nn.MaxPool2d(2)
    pool.kernel_size, pool.stride = 3, np.int8(1)
    output, context = pool.forward(image)
    assert output.shape == pool(image).shape == (1, 4, 5, 5)
    assert pool.backward(output, context).sum() == output.size
    assert repr(pool) == "MaxPool2d(3, stride=np.int8(1))"


@pytest.mark.parametrize("value", ["yes", 1.5, (1, 2), b""], ids=repr)
@pytest.mark.parametrize(
    ("kind", "option"), [("ReLU", "inplace"), ("ReLU6", "inplace"), ("MaxPool2d", "return_indices")]
)
def test_flags_of_layers_of_pytorch(kind, option, value):
    """Flags may be 0, 1 and None, as in PyTorch's own layers; other objects raise."""
    make = getattr(library("torch")[0], kind)
    for flag in (0, 1, None, True):
        make(**REQUIRED.get(kind, {}), **{option: flag})
    with pytest.raises(TypeError, match=f"^{kind}: {option} is a.*, expected a bool"):
        make(**REQUIRED.get(kind, {}), **{option: value})


def test_forms_that_pytorchs_constructors_iterate_over():
    torch = pytest.importorskip("torch")
    layers, image = library("torch")
    for two in (range(2, 4), torch.tensor([2, 3]), np.array([2, 3]), (each for each in (2, 3)), dict.fromkeys((2, 3))):
        layer = layers.Conv2d(4, 6, two)
        assert layer.kernel_size == (2, 3)
        assert layer(image).shape == (1, 6, 6, 5)
    for two in (np.array(2), torch.tensor(2), torch.tensor([2])):  # PyTorch's own layers raise for these
        layer = layers.ConvTranspose2d(4, 6, two, stride=two, padding=two, dilation=two)
        assert layer.kernel_size == layer.stride == (2, 2)
        assert layer(image).shape == (1, 6, 11, 11)


@pytest.mark.parametrize(
    ("start", "end", "error", "message"),
    [
        ("1", -1, TypeError, f"start_dim is a str, {NONE}"),
        (1, 2.0, TypeError, f"end_dim is a float, {NONE}"),
        (True, -1, TypeError, f"start_dim is a bool, {NONE}"),
        (3, 2, convx.ShapeError, "cannot join the axes 3 to 2"),
    ],
)
def test_flatten(start, end, error, message):
    with pytest.raises(error, match=f"^Flatten: {message}"):
        nn.Flatten(start, end)
    layer = nn.Flatten()
    layer.start_dim, layer.end_dim = start, end
    with pytest.raises(error, match=f"^Flatten: {message}"):
        layer(np.ones((1, 4, 7, 7)))


@pytest.mark.parametrize("reduction", ["none", "Mean", None, 1, ["mean"]])
def test_reduction_of_the_loss(reduction):
    message = "^CrossEntropyLoss: reduction is .*, expected one of mean, sum"
    with pytest.raises(convx.ShapeError, match=message):
        nn.CrossEntropyLoss(reduction)
    criterion = nn.CrossEntropyLoss()
    criterion.reduction = reduction
    with pytest.raises(convx.ShapeError, match=message):
        criterion(np.zeros((2, 3)), np.array([0, 1]))


def parameter():
    """A parameter with a gradient."""
    made = nn.Parameter(np.ones(3))
    made.accumulate(np.ones(3))
    return made


RATES = [
    (float("nan"), ValueError, "is nan, expected 0 <= "),
    (float("inf"), ValueError, "is inf, expected 0 <= "),
    (-1, ValueError, "is -1, expected 0 <= "),
    (10**400, ValueError, "is 10*, expected 0 <= "),
    (np.float16("nan"), ValueError, "is nan, expected 0 <= "),
    ("0.1", TypeError, "is '0.1', expected a number"),
    (None, TypeError, "is None, expected a number"),
    (True, TypeError, "is True, expected a number"),
    (np.True_, TypeError, r"is np\.True_, expected a number"),
    (np.array([0.1]), TypeError, r"is array\(\[0\.1\]\), expected a number"),
    (1j, TypeError, "is 1j, expected a number"),
]


@pytest.mark.parametrize(("value", "error", "message"), RATES, ids=repr)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("SGD", "lr"),
        ("SGD", "momentum"),
        ("SGD", "weight_decay"),
        ("Adam", "lr"),
        ("Adam", "eps"),
        ("Adam", "weight_decay"),
    ],
)
def test_hyperparameters(kind, name, value, error, message):
    """The constructor raises, and after an assignment the next step raises before it changes anything."""
    make = getattr(optim, kind)
    with pytest.raises(error, match=f"^{kind}: {name} {message}"):
        make([parameter()], **{"lr": 0.1, name: value})
    optimizer = make([parameter()], 0.1)
    setattr(optimizer, name, value)
    with pytest.raises(error, match=f"^{kind}: {name} {message}"):
        optimizer.step()
    assert optimizer.parameters[0].value.tolist() == [1, 1, 1]
    assert optimizer.state == [{}]


@pytest.mark.parametrize(
    ("betas", "error", "message"),
    [
        ((0.9,), TypeError, r"betas is \(0\.9,\), expected a pair"),
        ((0.9, float("nan")), ValueError, r"betas\[1\] is nan"),
        ((1, 0.9), ValueError, r"betas\[0\] is 1, expected 0 <= "),
        (("a", 0.9), TypeError, r"betas\[0\] is 'a', expected a number"),
    ],
)
def test_betas(betas, error, message):
    with pytest.raises(error, match=f"^Adam: {message}"):
        optim.Adam([parameter()], betas=betas)
    optimizer = optim.Adam([parameter()])
    optimizer.betas = betas
    with pytest.raises(error, match=f"^Adam: {message}"):
        optimizer.step()


def test_nesterov():
    with pytest.raises(TypeError, match=r"^SGD: nesterov is a str, expected a bool"):
        optim.SGD([parameter()], 0.1, 0.9, nesterov="yes")
    optimizer = optim.SGD([parameter()], 0.1, 0.9, nesterov=True)
    optimizer.momentum = 0
    with pytest.raises(ValueError, match=r"^SGD: nesterov needs a momentum above 0"):
        optimizer.step()


@pytest.mark.parametrize("rate", [np.float32(0.5), np.float16(0.5), np.array(0.5), np.float64(0.5), np.longdouble(0.5)])
def test_numbers_of_numpy(rate):
    optimizer = optim.SGD([parameter()], rate)
    optimizer.step()
    optimizer.lr = rate
    optimizer.step()
    assert optimizer.parameters[0].value.tolist() == [0, 0, 0]
    assert type(optimizer.lr) is float
