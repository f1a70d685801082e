"""Layers of convx.torch, convert and revert: a converted model keeps its attributes and trains as before."""

# ruff: noqa: E402 (nothing here can be imported where PyTorch is not)
from __future__ import annotations

import copy
import functools
import io
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import convx.torch
from convx.torch import modules

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import networks

# Far above the rounding of some hundred terms in both libraries, far below the effect of a wrong tap.
CLOSE = {"float32": dict(rtol=1e-4, atol=1e-5), "float64": dict(rtol=1e-11, atol=1e-12)}


pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # PyTorch's


@pytest.fixture(autouse=True)
def calm_torch():
    torch.set_num_threads(1)  # its OpenMP threads would wait for busy processors
    torch.manual_seed(0)


LAYERS = {
    "conv": ("Conv2d", (6, 8, 3), {}),
    "conv stride": ("Conv2d", (6, 8, (3, 2)), dict(stride=2, padding=(1, 0), bias=False)),
    "conv dilation groups": ("Conv2d", (6, 8, 3), dict(dilation=2, groups=2, padding=2)),
    "conv depthwise": ("Conv2d", (6, 6, 3), dict(groups=6, padding=1)),
    "conv same": ("Conv2d", (6, 8, (4, 3)), dict(padding="same")),
    "conv valid": ("Conv2d", (6, 8, 3), dict(padding="valid")),
    "conv reflect": ("Conv2d", (6, 8, 3), dict(padding=2, padding_mode="reflect")),
    "conv replicate": ("Conv2d", (6, 8, 5), dict(padding="same", padding_mode="replicate")),
    "conv circular": ("Conv2d", (6, 8, (2, 4)), dict(padding="same", padding_mode="circular")),
    "transposed": ("ConvTranspose2d", (6, 8, 3), {}),
    "transposed stride": ("ConvTranspose2d", (6, 4, 3), dict(stride=2, padding=1, output_padding=1, groups=2)),
    "transposed dilation": ("ConvTranspose2d", (6, 4, 2), dict(stride=3, dilation=2, bias=False)),
    "relu": ("ReLU", (), {}),
    "relu in place": ("ReLU", (), dict(inplace=True)),
    "relu6": ("ReLU6", (), {}),
    "relu6 in place": ("ReLU6", (), dict(inplace=True)),
    "pool": ("MaxPool2d", (2,), {}),
    "pool ceil": ("MaxPool2d", (3, 2), dict(padding=1, ceil_mode=True)),
    "pool dilation": ("MaxPool2d", ((2, 3),), dict(stride=1, dilation=2)),
    "pool indices": ("MaxPool2d", (2,), dict(return_indices=True)),
    "conv sequences of 1": ("Conv2d", (6, 8, 3), dict(stride=[2], padding=(1,), dilation=[1])),
    "conv lists": ("Conv2d", (6, 8, [3, 2]), dict(stride=[2, 1], padding=[1, 0], dilation=[1, 2])),
    "conv integers of NumPy": (
        "Conv2d",
        (6, 8, np.int64(3)),
        dict(stride=np.int32(2), padding=(np.int8(1), np.uint8(0)), dilation=np.int64(2), groups=np.int64(2)),
    ),
    "conv 0-d": ("Conv2d", (6, 8, 3), dict(stride=(torch.tensor(2), 1), padding=(torch.tensor(1), 2))),
    "transposed sequences of 1": ("ConvTranspose2d", (6, 4, 3), dict(stride=(2,), padding=[1], dilation=(1,))),
    "transposed integers of NumPy": (
        "ConvTranspose2d",
        (6, 4, 3),
        dict(stride=np.int64(2), padding=(torch.tensor(1),), output_padding=[np.int64(1)]),
    ),
    "pool sequences of 1": ("MaxPool2d", ([3],), dict(stride=(2,), padding=[1], dilation=(1,))),
    "pool lists": ("MaxPool2d", ([3, 2],), dict(stride=[2, 1], padding=[1, 0], dilation=[1, 2])),
    "pool of no stride": ("MaxPool2d", (2,), dict(stride=[])),
    "pool integers of NumPy": ("MaxPool2d", (np.int64(3),), dict(stride=np.uint8(2), padding=np.int32(1))),
    "pool 0-d": ("MaxPool2d", (torch.tensor(2),), dict(padding=torch.tensor(1), dilation=(torch.tensor(1), 2))),
    "pool of 272": ("MaxPool2d", ((16, 17),), dict(stride=1, padding=8)),
}


def layers(name):
    """The layer of PyTorch and that of convx, with the same values."""
    kind, args, options = LAYERS[name]
    theirs, ours = getattr(nn, kind)(*args, **options), getattr(convx.torch, kind)(*args, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def run(layer, x):
    """Output, and the gradients of the input and the parameters."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    found = layer(x * 1)  # a layer in place cannot overwrite a leaf
    y, *rest = found if isinstance(found, tuple) else (found,)
    gradients = torch.autograd.grad((y * y).sum(), [x, *layer.parameters()])
    return [y.detach(), *rest, *gradients]


def assert_close(actual, expected, dtype="float32"):
    for one, other in zip(actual, expected, strict=True):
        scale = float(other.detach().abs().max()) if other.numel() else 1.0
        torch.testing.assert_close(one / scale, other / scale, **CLOSE[dtype])


def assert_same_bits(actual, expected):
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert actual[name].numpy().tobytes() == tensor.numpy().tobytes(), name


class TestLayers:
    @pytest.mark.parametrize("name", LAYERS)
    def test_the_interface_is_pytorchs(self, name):
        theirs, ours = layers(name)
        assert isinstance(ours, type(theirs))
        assert repr(ours) == repr(theirs)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        theirs.load_state_dict(ours.state_dict())

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("name", LAYERS)
    def test_values_and_gradients(self, name, memory_format):
        theirs, ours = layers(name)
        x = torch.randn(2, 6, 11, 10).contiguous(memory_format=memory_format)
        for dtype in CLOSE:
            pair = [layer.to(getattr(torch, dtype)) for layer in (theirs, ours)]
            scaled = 5 * x.to(getattr(torch, dtype))  # to reach ReLU6's bounds
            expected, actual = (run(layer, scaled) for layer in pair)
            assert_close(actual, expected, dtype)
            assert actual[0].is_contiguous(memory_format=memory_format)
        unbatched = (layer(x[0].double()) for layer in (ours, theirs))
        assert_close(*([each[0] if "indices" in name else each] for each in unbatched), "float64")

    def test_initial_values_follow_the_seed(self):
        theirs, ours = (torch.manual_seed(3) and kind(6, 8, 3) for kind in (nn.Conv2d, convx.torch.Conv2d))
        assert_same_bits(ours.state_dict(), theirs.state_dict())

    def test_relu_in_place_overwrites_its_input(self):
        x = torch.tensor([-1.0, 2.0])
        y = convx.torch.ReLU(inplace=True)(x)
        assert y is x
        assert x.tolist() == [0, 2]
        x = torch.tensor([-1.0, 2.0])
        assert convx.torch.ReLU()(x).tolist() == [0, 2]
        assert x.tolist() == [-1, 2]

    @pytest.mark.parametrize("inplace", [False, True])
    def test_relu6_at_its_bounds(self, inplace):
        x = torch.tensor([-1.0, -0.0, 0.0, 1e-30, 3.0, 6.0, 6.0001, float("inf"), float("-inf"), float("nan")])
        results = []
        for layer in (nn.ReLU6(inplace), convx.torch.ReLU6(inplace)):
            leaf = x.clone().requires_grad_()
            y = layer(leaf * 1)
            (grad,) = torch.autograd.grad(y, leaf, torch.arange(1.0, 11), create_graph=True)
            results.append((y, grad))
        for theirs, ours in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        between = torch.tensor([-2.0, 3, 7]).double().requires_grad_()
        assert torch.autograd.gradcheck(convx.torch.ReLU6(), between)
        assert torch.autograd.gradgradcheck(convx.torch.ReLU6(), between)

    def test_relu6_keeps_one_byte_an_element(self):
        for inplace in (False, True):
            x, kept = torch.randn(1000, requires_grad=True) * 1, []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
                y = convx.torch.ReLU6(inplace)(x)
            assert (y.data_ptr() == x.data_ptr()) is inplace
            assert [(each.dtype, each.nbytes) for each in kept] == [(torch.bool, 1000)]

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_relu_in_place_after_a_convolution(self, memory_format):
        x = torch.randn(2, 3, 8, 8).contiguous(memory_format=memory_format)
        for images in (x, x[0]):
            for relu in (nn.ReLU(inplace=True), nn.ReLU6(inplace=True)):
                plain = nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.MaxPool2d(2), relu)
                assert_close(
                    run(convx.torch.convert(plain, False, inplace=False, verbose=False), images), run(plain, images)
                )

    def test_algorithm(self):
        x = torch.randn(1, 64, 12, 12)
        for kind, function in ((convx.torch.Conv2d, convx.torch.conv2d), (convx.torch.ConvTranspose2d, None)):
            results = []
            for word in ("auto", "direct", "winograd", "implicit-gemm"):
                torch.manual_seed(1)
                layer = kind(64, 64, 3, padding=1, algorithm=word)
                assert ("algorithm" in repr(layer)) == (word != "auto")
                assert repr(layer).endswith(f", algorithm={word})") == (word != "auto")
                for again in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
                    assert again.algorithm == word
                results.append(layer(x))
                if function:
                    assert torch.equal(results[-1], function(x, layer.weight, layer.bias, padding=1, algorithm=word))
            assert torch.equal(results[0], results[2])
            assert not torch.equal(results[1], results[2])
            assert_close(results[:1], results[1:2])

    @pytest.mark.parametrize("kind", ["Conv2d", "ConvTranspose2d"])
    def test_algorithms_that_there_are_not(self, kind):
        make = getattr(convx.torch, kind)
        expected = 'expected "auto", "direct", "winograd" or a method of convx.explain$'
        with pytest.raises(convx.ShapeError, match=rf"^{kind}: algorithm is 'fft', {expected}"):
            make(3, 4, 3, algorithm="fft")
        with pytest.raises(TypeError, match=rf"^{kind}: algorithm is None, {expected}"):
            make(3, 4, 3, algorithm=None)
        for options in (dict(kernel_size=5), dict(stride=2), dict(dilation=[2]), dict(kernel_size=(3, 1))):
            with pytest.raises(
                convx.ShapeError, match=rf'^{kind}: algorithm is "winograd" with kernel .* expected \(3'
            ):
                make(3, 4, **{"kernel_size": 3, **options}, algorithm="winograd")

    def test_output_size_of_a_transposed_convolution(self):
        theirs, ours = layers("transposed dilation")
        x = torch.randn(2, 6, 5, 5)
        smallest = theirs(x).shape[-1]
        for size in (smallest, smallest + 2):
            expected = theirs(x, output_size=(size, size))
            assert_close([ours(x, output_size=(size, size))], [expected])
        with pytest.raises(ValueError, match="requested an output size"):
            ours(x, output_size=(smallest + 9, smallest))

    @pytest.mark.parametrize("value", ["text", (1, 2, 3), 1.5, None, [[1, 2], [3, 4]]])
    def test_options_that_are_none(self, value):
        """The operation raises the message; the layer passes unknown options on."""
        for name in ("stride", "dilation"):
            layer = convx.torch.Conv2d(6, 8, 3)
            setattr(layer, name, value)
            with pytest.raises((TypeError, convx.ShapeError), match=f"^conv2d: {name} "):
                layer(torch.randn(1, 6, 9, 9))

    @pytest.mark.parametrize("name", LAYERS)
    def test_copies(self, name):
        _, ours = layers(name)
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        x = torch.randn(1, 6, 9, 9)
        expected = run(ours, x)
        for again in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours), torch.load(file, weights_only=False)):
            assert type(again) is type(ours)
            assert repr(again) == repr(ours)
            assert_same_bits(again.state_dict(), ours.state_dict())
            for one, other in zip(run(again, x), expected, strict=True):
                assert torch.equal(one, other)

    def test_what_convx_has_no_kernels_for_is_pytorchs(self):
        x = torch.randn(1, 6, 9, 9)
        for name in LAYERS:
            theirs, ours = (layer.bfloat16() for layer in layers(name))
            for one, other in zip(run(ours, x.bfloat16()), run(theirs, x.bfloat16()), strict=True):
                assert torch.equal(one, other), name
        whole = torch.arange(16).reshape(1, 1, 4, 4)
        assert torch.equal(convx.torch.MaxPool2d(2)(whole), F.max_pool2d(whole, 2))
        assert torch.equal(convx.torch.ReLU()(whole - 5), F.relu(whole - 5))

    def test_meta_tensors(self):
        for name in LAYERS:
            theirs, ours = (layer.to("meta") for layer in layers(name))
            x = torch.empty(2, 6, 11, 10, device="meta")
            expected, actual = (layer(x)[0] if "indices" in name else layer(x) for layer in (theirs, ours))
            assert actual.shape == expected.shape

    def test_what_is_no_tensor(self):
        x = torch.randn(1, 6, 9, 9)
        for name in LAYERS:
            if name.startswith("relu6") or name == "relu in place":
                continue  # PyTorch's functions
            for value, kind in ((x.numpy(), r"numpy\.ndarray"), (None, "NoneType"), ([x], "list")):
                with pytest.raises(TypeError, match=rf"^\w+: input is a {kind}, expected a torch\.Tensor$"):
                    layers(name)[1](value)
        with pytest.raises(TypeError, match="conv2d_relu_max_pool2d: input is a list"):
            convx.torch.convert(block("crp"), inplace=False, verbose=False)([x])

    def test_errors_name_what_was_wrong(self):
        conv = convx.torch.Conv2d(6, 8, 3)
        with pytest.raises(convx.ShapeError, match=r"conv2d: .*input channels"):
            conv(torch.ones(1, 5, 9, 9))
        with pytest.raises(TypeError, match="conv2d: weight has dtype float32"):
            conv(torch.ones(1, 6, 9, 9, dtype=torch.float64))
        with pytest.raises(convx.ShapeError, match="on device meta"):
            conv.to("meta")(torch.ones(1, 6, 9, 9))


def block(order="cra", **options):
    """A Conv2d-ReLU-MaxPool2d run; `order` has the order of the layers, options begin with conv_ or pool_."""
    conv = {name.removeprefix("conv_"): value for name, value in options.items() if name.startswith("conv_")}
    pool = {name.removeprefix("pool_"): value for name, value in options.items() if name.startswith("pool_")}
    parts = {"c": nn.Conv2d(3, 8, 3, **conv), "r": nn.ReLU(), "p": nn.MaxPool2d(pool.pop("kernel_size", 2), **pool)}
    return nn.Sequential(*(parts[letter] for letter in order))


@pytest.fixture
def calls(monkeypatch):
    """The operations that layers call, in order."""
    made = []

    def counting(name, function):
        def count(*args, **options):
            made.append(name + ("+relu" if options.get("activation") else ""))
            return function(*args, **options)

        return count

    for name in ("conv2d", "relu", "max_pool2d", "conv2d_relu_max_pool2d"):
        monkeypatch.setattr(modules, name, counting(name, getattr(modules, name)))
    return made


class TestFusing:
    @pytest.mark.parametrize(
        ("order", "expected"),
        [
            ("crp", ["conv2d_relu_max_pool2d"]),
            ("cpr", ["conv2d_relu_max_pool2d"]),
            ("cr", ["conv2d+relu"]),
            ("cp", ["conv2d", "max_pool2d"]),
            ("rcp", ["relu", "conv2d", "max_pool2d"]),
            ("prc"[::-1], ["conv2d_relu_max_pool2d"]),
            ("crrp", ["conv2d+relu", "relu", "max_pool2d"]),
            ("prcrp"[2:], ["conv2d_relu_max_pool2d"]),
        ],
    )
    def test_runs_are_found(self, order, expected, calls):
        plain = block(order)
        fused, separate = (convx.torch.convert(plain, fuse, inplace=False, verbose=False) for fuse in (True, False))
        x = torch.randn(2, 3, 9, 8)
        assert_close(run(fused, x), run(plain, x))
        assert calls == expected
        assert type(fused) is (convx.torch.Sequential if len(expected) < len(order) else nn.Sequential)
        assert type(separate) is nn.Sequential
        assert list(fused.state_dict()) == list(plain.state_dict())

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            (dict(conv_padding=1, conv_padding_mode="circular"), "the fused operation has no padding_mode 'circular'"),
            (dict(pool_ceil_mode=True), "the fused operation has no ceil_mode"),
            (dict(pool_dilation=2), "the fused operation has no dilated pooling"),
            (dict(pool_dilation=(2,)), "the fused operation has no dilated pooling"),
            (dict(pool_dilation=np.int64(2)), "the fused operation has no dilated pooling"),
            (
                dict(pool_kernel_size=(16, 16), pool_padding=8),
                "the fused operation has windows of at most 255 elements",
            ),
            (dict(pool_return_indices=True), "the fused operation returns no indices"),
        ],
    )
    def test_what_the_fused_operation_lacks(self, options, reason, calls):
        plain = block("crp", **options)
        converted = convx.torch.convert(plain, inplace=False, verbose=False)
        assert converted.conversion.separate == {"0": f"Conv2d-ReLU-MaxPool2d: {reason}"}
        assert converted.conversion.fused == {"0": "Conv2d-ReLU"}
        x = torch.randn(2, 3, 12, 13)
        assert_close(run(converted, x), run(plain, x))
        assert calls == ["conv2d+relu", "max_pool2d"]

    @pytest.mark.parametrize(
        "options",
        [
            {},
            dict(conv_stride=2, conv_padding=1),
            dict(conv_padding="same", pool_kernel_size=3, pool_stride=2, pool_padding=1),
            dict(conv_dilation=2, conv_bias=False),
            dict(conv_stride=[2], conv_padding=(1,), pool_kernel_size=(2,), pool_stride=[]),
            dict(conv_dilation=(np.int64(2),), pool_kernel_size=np.int64(3), pool_padding=[1], pool_dilation=(1,)),
            dict(conv_stride=np.int32(2), pool_kernel_size=torch.tensor(2), pool_dilation=torch.tensor(1)),
        ],
    )
    @pytest.mark.parametrize("order", ["crp", "cpr"])
    def test_one_operation_is_the_three(self, order, options):
        """Whole numbers: every sum is exact, ties and windows without a positive value are frequent."""
        plain = block(order, **options).double()
        for parameter in plain.parameters():
            parameter.data = torch.randint(-2, 3, parameter.shape).double()
        x = torch.randint(-1, 2, (4, 3, 12, 13)).double()
        x[1, 0, 5, 5], x[2, 1, 3, 3] = float("inf"), float("nan")
        expected, actual = (run(each, x) for each in (plain, convx.torch.convert(plain, inplace=False, verbose=False)))
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)

    def test_hooks_are_called(self, calls):
        converted = convx.torch.convert(block("crp"), inplace=False, verbose=False)
        x, seen = torch.randn(1, 3, 8, 8), []
        fused = converted(x)
        handle = converted[1].register_forward_hook(lambda *args: seen.append(args[2]))
        separate = converted(x)
        assert calls == ["conv2d_relu_max_pool2d", "conv2d", "relu", "max_pool2d"]
        assert seen[0].shape == (1, 8, 6, 6)
        torch.testing.assert_close(fused, separate)
        handle.remove()
        assert torch.equal(converted(x), fused)

    def test_hooks_for_all_modules_see_every_layer(self, calls):
        converted = convx.torch.convert(block("crp"), inplace=False, verbose=False)
        x, seen = torch.randn(1, 3, 8, 8), []
        handle = register_module_forward_hook(lambda module, *_: seen.append(type(module)))
        separate = converted(x)
        handle.remove()
        assert seen == [convx.torch.Conv2d, convx.torch.ReLU, convx.torch.MaxPool2d, convx.torch.Sequential]
        torch.testing.assert_close(separate, converted(x))
        assert calls == ["conv2d", "relu", "max_pool2d", "conv2d_relu_max_pool2d"]

    def test_a_forward_replaced_later_is_called(self, calls):
        converted = convx.torch.convert(block("crp"), inplace=False, verbose=False)
        plain = converted[1].forward
        converted[1].forward = lambda x: 2 * plain(x)
        x = torch.randn(1, 3, 8, 8)
        assert_close([converted(x)], [2 * F.max_pool2d(F.relu(F.conv2d(x, converted[0].weight, converted[0].bias)), 2)])
        assert calls == ["conv2d", "relu", "max_pool2d"]
        del converted[1].forward
        converted(x)
        assert calls[3:] == ["conv2d_relu_max_pool2d"]

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_what_forward_of_a_convolution_calls(self, when, calls):
        """Seamless images: users replace `_conv_forward` to pad only the width circularly."""

        def wide(x, weight, bias):
            return F.conv2d(F.pad(x, (1, 1, 0, 0), "circular"), weight, bias)

        model, x = block("crp"), torch.randn(1, 3, 8, 8)
        expected = F.max_pool2d(F.relu(wide(x, model[0].weight, model[0].bias)), 2)
        for step in ("before", "convert", "after"):
            if step == when:
                model[0]._conv_forward = wide
            elif step == "convert":
                convx.torch.convert(model, verbose=False)
        torch.testing.assert_close(model(x), expected)
        assert calls == ["relu", "max_pool2d"]

    def test_layers_can_be_sliced_and_exchanged(self, calls):
        converted = convx.torch.convert(block("crp"), inplace=False, verbose=False)
        x = torch.randn(1, 3, 8, 8)
        assert converted[:2](x).shape == (1, 8, 6, 6)
        converted[2] = nn.AvgPool2d(2)
        converted(x)
        assert calls == ["conv2d+relu", "conv2d+relu"]

    def test_only_one_byte_is_kept_for_a_pooled_element(self):
        plain, x = block("crp"), torch.randn(4, 3, 34, 34)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            convx.torch.convert(plain, inplace=False, verbose=False)(x)
        known = {each.data_ptr() for each in (x, *plain.parameters())}
        assert sum(each.nbytes for each in kept if each.data_ptr() not in known) == 4 * 8 * 16 * 16


class Subclassed(nn.Conv2d):
    pass


class TestConvert:
    def test_parameters_and_buffers_are_shared(self):
        model = networks.resnet18(10, width=4)
        before = copy.deepcopy(model.state_dict())
        converted = convx.torch.convert(model, inplace=False, verbose=False)
        for kind in ("named_parameters", "named_buffers"):
            for (name, ours), (other, theirs) in zip(getattr(converted, kind)(), getattr(model, kind)(), strict=True):
                assert name == other
                assert ours is theirs
        assert {type(each) for each in model.modules() if isinstance(each, (nn.Conv2d, nn.ReLU))} == {
            nn.Conv2d,
            nn.ReLU,
        }
        assert_same_bits(converted.state_dict(), before)
        converted(torch.randn(2, 3, 32, 32))
        assert model.features[1].num_batches_tracked == 1

    def test_an_optimizer_made_before_goes_on(self):
        model = networks.lenet5()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        converted = convx.torch.convert(model, inplace=False, verbose=False)
        before = copy.deepcopy(model.state_dict())
        converted(torch.randn(2, 1, 28, 28)).sum().backward()
        optimizer.step()
        for name, value in converted.state_dict().items():
            assert value.data_ptr() == model.state_dict()[name].data_ptr()
            assert not torch.equal(value, before[name])

    def test_the_report(self, capsys):
        model = nn.Sequential(
            block("crp"), block("crp", pool_ceil_mode=True), Subclassed(8, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        )
        converted = convx.torch.convert(model)
        assert capsys.readouterr().out.splitlines() == [
            "converted in place",
            "swapped: 2 Conv2d, 2 ReLU, 2 MaxPool2d",
            "fused: 0.0: Conv2d-ReLU-MaxPool2d",
            "fused: 1.0: Conv2d-ReLU",
            "not fused: 1.0: Conv2d-ReLU-MaxPool2d: the fused operation has no ceil_mode",
            "skipped: 2: Subclassed: a subclass, test_torch_modules.Subclassed",
            "left to PyTorch: 2 BatchNorm2d",
        ]
        assert list(converted.conversion.swapped) == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]
        again = convx.torch.convert(converted, inplace=False, verbose=False)
        assert not again.conversion.swapped
        convx.torch.convert(nn.Linear(2, 2))
        assert capsys.readouterr().out == "converted in place\nswapped: nothing\nleft to PyTorch: 1 Linear\n"

    @pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (lambda conv: Subclassed(3, 4, 3), "a subclass, test_torch_modules.Subclassed"),
            (lambda conv: nn.LazyConv2d(4, 3), "lazy: its sizes are known after a first batch"),
            (parametrizations.weight_norm, "parametrized"),
            (lambda conv: conv.bfloat16(), "its weight is bfloat16 on cpu"),
            (lambda conv: conv.half(), "its weight is float16 on cpu"),
            (lambda conv: conv.register_forward_hook(print) and conv, "it has hooks"),
            (lambda conv: conv.register_full_backward_hook(print) and conv, "it has hooks"),
            (lambda conv: setattr(conv, "forward", F.relu) or conv, "its forward was replaced"),
            (lambda conv: setattr(conv, "_conv_forward", F.conv2d) or conv, "its forward was replaced"),
            (lambda conv: torch.ao.nn.quantized.Conv2d(3, 4, 3), "quantized"),
        ],
    )
    def test_what_is_left_alone(self, make, reason):
        model = nn.Sequential(make(nn.Conv2d(3, 4, 3)), nn.ReLU())
        kind = type(model[0])
        converted = convx.torch.convert(model, inplace=False, verbose=False)
        assert type(converted[0]) is kind
        assert converted.conversion.skipped == {"0": f"{kind.__name__}: {reason}"}
        assert converted.conversion.swapped == {"1": "ReLU"}
        assert not converted.conversion.fused

    @pytest.mark.parametrize("name", ["forward", "_conv_forward"])
    def test_a_class_of_pytorchs_that_was_changed(self, name, monkeypatch):
        plain = getattr(nn.Conv2d, name)
        monkeypatch.setattr(nn.Conv2d, name, functools.wraps(plain)(lambda *args: 2 * plain(*args)))
        model, x = block("crp"), torch.randn(1, 3, 8, 8)
        expected = model(x)
        converted = convx.torch.convert(model, verbose=False)
        assert converted.conversion.skipped == {"0": "Conv2d: its forward was replaced"}
        assert torch.equal(converted(x), expected)

    def test_models_that_are_one_layer(self):
        converted = convx.torch.convert(nn.ReLU(), inplace=False, verbose=False)
        assert type(converted) is convx.torch.ReLU
        assert type(convx.torch.revert(converted, inplace=False, verbose=False)) is nn.ReLU

    def test_one_layer_in_two_places(self):
        relu = nn.ReLU()
        model = nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), relu)
        converted = convx.torch.convert(model, inplace=False, verbose=False)
        assert converted[1] is converted[3]
        assert converted.conversion.fused == {"0": "Conv2d-ReLU", "2": "Conv2d-ReLU"}
        x = torch.randn(1, 3, 8, 8)
        assert_close(run(converted, x), run(model, x))

    def test_a_weight_that_a_hook_computes(self):
        with pytest.warns(FutureWarning, match="weight_norm"):
            conv = torch.nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
        model = nn.Sequential(conv, nn.ReLU())
        converted = convx.torch.convert(model, inplace=False, verbose=False)
        assert converted.conversion.skipped == {"0": "Conv2d: it has hooks"}
        x = torch.randn(1, 3, 8, 8)
        assert_close(run(converted, x), run(model, x))

    def test_weights_in_common(self):
        """One Parameter in two layers stays one, and so does one layer under two names."""
        first, second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        second.weight = first.weight
        half = nn.Sequential(first, nn.ReLU(), second)
        model = nn.Sequential(half, nn.ReLU(), half)
        converted = convx.torch.convert(model, inplace=False, verbose=False)
        assert converted[0] is converted[2]
        assert converted[0][0].weight is converted[0][2].weight is first.weight
        assert converted.conversion.fused == {"0.0": "Conv2d-ReLU"}
        x = torch.randn(2, 3, 8, 8)
        assert_close(run(converted, x), run(model, x))

    def test_parametrized_after_converting(self):
        x, plain = torch.randn(1, 3, 8, 8), block("cr")
        converted = convx.torch.convert(plain, inplace=False, verbose=False)
        parametrizations.weight_norm(converted[0])
        expected = converted(x)
        assert isinstance(converted[0], convx.torch.Conv2d)
        assert_close([expected], [plain(x)])
        reverted = convx.torch.revert(converted, inplace=False, verbose=False)
        assert isinstance(reverted[0], nn.Conv2d)
        assert not isinstance(reverted[0], convx.torch.Conv2d)
        assert isinstance(converted[0], convx.torch.Conv2d)
        assert_same_bits(reverted.state_dict(), converted.state_dict())
        assert_close([reverted(x)], [expected])
        parametrize.remove_parametrizations(reverted[0], "weight")
        assert type(reverted[0]) is nn.Conv2d
        assert_close([reverted(x)], [expected])

    def test_lazy_layers(self):
        """Lazy layers stay PyTorch's until initialised; copy and model share Parameters, whichever runs first."""
        model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU())
        converted = convx.torch.convert(model, inplace=False, verbose=False)
        x = torch.randn(1, 3, 8, 8)
        assert_close([converted(x)], [model(x)])
        assert converted[0].weight is model[0].weight
        assert convx.torch.convert(converted, inplace=False, verbose=False).conversion.swapped == {"0": "Conv2d"}

    @pytest.mark.parametrize("value", ["text", nn.Conv2d(3, 4, 3)])
    def test_an_attribute_of_the_name_of_the_report(self, value):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.conversion = value

        converted = convx.torch.convert(Model(), inplace=False, verbose=False)
        kind = convx.torch.Conv2d if isinstance(value, nn.Module) else str
        assert type(converted.conversion) is kind
        assert type(convx.torch.revert(converted, inplace=False, verbose=False).conversion) is type(value)

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
    def test_modules_of_torch_jit(self):
        """TorchScript modules cannot share Parameters with a copy: they are shared whole, or the model is refused."""
        model = nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.script(nn.Conv2d(4, 4, 3)), nn.ReLU())
        converted = convx.torch.convert(model, inplace=False, verbose=False)
        assert converted.conversion.skipped == {"1": "RecursiveScriptModule: made by torch.jit"}
        assert converted[1] is model[1]
        assert all(ours is theirs for ours, theirs in zip(converted.parameters(), model.parameters(), strict=True))
        x = torch.randn(1, 3, 8, 8)
        assert_close([converted(x)], [model(x)])
        with pytest.raises(TypeError, match=r"^convert: model was made by torch\.jit: convert the model that"):
            convx.torch.convert(model[1])

    def test_models_of_torch_fx(self):
        model = torch.fx.symbolic_trace(block("crp"))
        converted = convx.torch.convert(model, inplace=False, verbose=False)
        assert list(converted.conversion.swapped.values()) == ["Conv2d", "ReLU", "MaxPool2d"]
        x = torch.randn(1, 3, 8, 8)
        assert_close(run(converted, x), run(model, x))
        assert next(converted.parameters()) is next(model.parameters())

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch.compile's own imports
    def test_wrapped_models_are_refused(self):
        with pytest.raises(TypeError, match=r"convert: model is a list, expected a torch\.nn\.Module"):
            convx.torch.convert([])
        for wrapped in (torch.compile(nn.ReLU()), nn.Sequential(nn.DataParallel(nn.ReLU()))):
            for function in (convx.torch.convert, convx.torch.revert):
                message = f"{function.__name__}: model is wrapped in .*: {function.__name__} the model first"
                with pytest.raises(TypeError, match=message):
                    function(wrapped)

    def test_revert(self):
        model = networks.vgg11()
        converted = convx.torch.convert(model, inplace=False, verbose=False)
        assert type(converted.features) is convx.torch.Sequential
        loss = F.cross_entropy(converted(torch.randn(2, 3, 32, 32)), torch.tensor([1, 2]))
        loss.backward()
        torch.optim.SGD(converted.parameters(), 0.1).step()
        trained = copy.deepcopy(converted.state_dict())
        reverted = convx.torch.revert(converted, inplace=False, verbose=False)
        assert [type(each) for each in reverted.modules()] == [type(each) for each in model.modules()]
        assert repr(reverted) == repr(model)
        assert vars(reverted).keys() == vars(model).keys()
        assert_same_bits(reverted.state_dict(), trained)
        assert type(converted.features) is convx.torch.Sequential

    @pytest.mark.parametrize("name", ["lenet5", "vgg11", "mobilenet_v2"])
    def test_revert_gives_pytorchs_bits(self, name):
        """A reverted model has no layer of convx; outputs and gradients are those of the original."""
        model = getattr(networks, name)().eval()
        image = (1, 28, 28) if name == "lenet5" else (3, 32, 32)
        converted = convx.torch.convert(model, inplace=False, verbose=False)
        expected, ours, actual = (
            run(each, torch.randn(2, *image, generator=torch.Generator().manual_seed(1)))
            for each in (model, converted, convx.torch.revert(converted, inplace=False, verbose=False))
        )
        assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))
        assert not all(torch.equal(one, other) for one, other in zip(ours, expected, strict=True))

    def test_whole_models_are_saved_and_loaded(self, tmp_path):
        converted = convx.torch.convert(networks.lenet5(), inplace=False, verbose=False)
        torch.save(converted, tmp_path / "model.pt")
        again, x = torch.load(tmp_path / "model.pt", weights_only=False), torch.randn(2, 1, 28, 28)
        assert torch.equal(again(x), converted(x))
        assert str(again.conversion) == str(converted.conversion)
        torch.save(converted.state_dict(), tmp_path / "state.pt")
        plain = networks.lenet5()
        plain.load_state_dict(torch.load(tmp_path / "state.pt"))
        assert_same_bits(plain.state_dict(), converted.state_dict())


def curve(model, x, y, lr, dtype):
    """The losses of 20 steps of SGD on one batch, in the given type."""
    model, x = model.to(dtype), x.to(dtype)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def gradients(model, x):
    return torch.autograd.grad(model(x).square().sum(), list(model.parameters()))


TRAINED = {
    "lenet5": (networks.lenet5, (1, 28, 28), 0.2),
    "resnet18": (lambda: networks.resnet18(10, width=8), (3, 32, 32), 0.001),
}


class TestTraining:
    @pytest.mark.parametrize("name", TRAINED)
    def test_the_loss_curve_is_pytorchs(self, name):
        """In float64 to the last digits; in float32 as closely as PyTorch's float32 to its float64.

        Rounding alone keeps curves within 1e-5. But another order of additions may move a number near zero to the other
        side of a ReLU; the curves then diverge, PyTorch's too: about one of ten with ResNet-18. Most must agree.
        """
        build, image, lr = TRAINED[name]
        apart = []
        for seed in range(5):
            torch.manual_seed(seed)
            plain, x, y = build(), torch.randn(8, *image), torch.arange(8)
            ours32, theirs64, ours64 = (copy.deepcopy(plain) for _ in range(3))
            exact = curve(theirs64, x, y, lr, torch.float64)
            assert exact[-1] < exact[0]
            converted = convx.torch.convert(ours64, inplace=False, verbose=False)
            torch.testing.assert_close(curve(converted, x, y, lr, torch.float64), exact, rtol=1e-9, atol=0)
            assert_same_bits(
                convx.torch.revert(converted, inplace=False, verbose=False).state_dict(),
                copy.deepcopy(converted.state_dict()),
            )
            found = curve(convx.torch.convert(ours32, inplace=False, verbose=False), x, y, lr, torch.float32)
            apart.append(float((found - exact).abs().max()))
        assert sorted(apart)[len(apart) // 2] < 1e-5

    def test_activation_checkpointing(self):
        model = convx.torch.convert(networks.lenet5(), inplace=False, verbose=False)
        x = torch.randn(4, 1, 28, 28, requires_grad=True)
        found = []
        for features in (model.features, lambda x: checkpoint(model.features, x, use_reentrant=False)):
            loss = model.classifier(features(x)).square().sum()
            found.append(torch.autograd.grad(loss, [x, *model.parameters()]))
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own
    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_compiled(self, backend):
        """One program for batches of all sizes."""
        torch._dynamo.reset()
        model = convx.torch.convert(networks.lenet5(), inplace=False, verbose=False)
        compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
        for n in (4, 7, 3):
            x = torch.randn(n, 1, 28, 28)
            for one, other in zip(gradients(compiled, x), gradients(model, x), strict=True):
                torch.testing.assert_close(one, other)
        torch._dynamo.reset()

    @pytest.mark.filterwarnings("ignore::FutureWarning")  # PyTorch's own
    def test_exported(self):
        model, n = (
            convx.torch.convert(networks.lenet5(), inplace=False, verbose=False).eval(),
            torch.export.Dim("n", min=1),
        )
        program = torch.export.export(model, (torch.randn(2, 1, 28, 28),), dynamic_shapes=({0: n},))
        names = [str(node.target) for node in program.graph.nodes if "convx" in str(node.target)]
        assert names == ["convx.conv2d_relu_max_pool2d.default"] * 2 + ["convx.relu.default"] * 2
        for size in (1, 5):
            x = torch.randn(size, 1, 28, 28)
            assert torch.equal(program.module()(x), model(x))

    def test_functional_calls(self):
        """functional_call: an ensemble, and per-sample gradients."""
        models = [convx.torch.convert(networks.lenet5(), inplace=False, verbose=False) for _ in range(3)]
        values = torch.func.stack_module_state(models)
        call = lambda parameters, x: torch.func.functional_call(models[0], parameters, (x,))  # noqa: E731
        x = torch.randn(4, 1, 28, 28)
        outputs = torch.vmap(call, (0, None))(values[0], x)
        assert_close(outputs, [model(x) for model in models])
        parameters = dict(models[0].named_parameters())
        loss = lambda parameters, x: call(parameters, x[None]).square().sum()  # noqa: E731
        of_each = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
        assert_close([of_each[name].sum(0) for name in parameters], gradients(models[0], x))

    def test_scaled_gradients(self):
        """AMP as it is written for PyTorch: autocast and a GradScaler."""
        losses = []
        for change in (lambda model: model, lambda model: convx.torch.convert(model, inplace=False, verbose=False)):
            torch.manual_seed(0)
            model = change(networks.lenet5())
            optimizer, scaler = torch.optim.SGD(model.parameters(), 0.05), torch.amp.GradScaler("cpu")
            x, y, curve = torch.randn(8, 1, 28, 28), torch.arange(8), []
            for _ in range(20):
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = F.cross_entropy(model(x).float(), y)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                curve.append(loss.item())
            losses.append(torch.tensor(curve))
        assert losses[0][-1] < losses[0][0] - 0.1
        # PyTorch's convolutions also round their weights to bfloat16 (8 bits), convx's do not.
        torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=0.01)

    def test_16_bits_under_autocast(self):
        """A 16-bit input from the layer before runs PyTorch's own kernels."""
        x = torch.randn(1, 3, 8, 8)
        with torch.autocast("cpu", torch.bfloat16):
            for name in ("crp", "c"):
                converted = convx.torch.convert(block(name), inplace=False, verbose=False)
                assert converted(x).dtype == converted(x.bfloat16()).dtype == torch.bfloat16

    def test_autocast(self):
        """Convolutions compute in float32 and return 16 bits; parameters keep their gradients in float32."""
        model = convx.torch.convert(networks.lenet5(), inplace=False, verbose=False)
        x = torch.randn(4, 1, 28, 28)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = model.features(x)
            y = model.classifier(features)
        assert features.dtype == y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), model(x), rtol=0.05, atol=0.05)
        y.float().sum().backward()
        assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


class Filtered(torch.utils.data.Dataset):
    """Images and a gradient, computed by convx in the workers of a DataLoader."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        x = torch.full((1, 3, 8, 9), float(index), requires_grad=True)
        y = convx.torch.conv2d_relu_max_pool2d(x, torch.ones(4, 3, 3, 3), pool_kernel_size=2)
        y.sum().backward()
        return y.detach()[0], x.grad[0]


def forked_workers():
    """Forked workers of a DataLoader, which lack the threads of this process, make the same images."""
    expected = [Filtered()[index] for index in range(6)]  # starts this process's threads
    loader = torch.utils.data.DataLoader(Filtered(), 2, num_workers=2, multiprocessing_context="fork")
    found = [pair for batch in loader for pair in zip(*batch, strict=True)]
    assert len(found) == 6
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


@pytest.mark.skipif(sys.platform != "linux", reason="fork is how workers start on Linux")
def test_workers_of_a_data_loader():
    """In its own process, since this one may have loaded JAX, which warns of every fork."""
    code = "import convx, test_torch_modules as tests; convx.set_num_threads(2); tests.forked_workers(); print('equal')"
    tests = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=tests, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["equal"], done.stderr


def test_threads_that_train_one_model():
    model = convx.torch.convert(networks.lenet5(), inplace=False, verbose=False).double()
    x = torch.randn(4, 1, 28, 28).double()
    expected, found = gradients(model, x), []
    threads = [threading.Thread(target=lambda: found.append(gradients(model, x))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for each in found:
        assert all(torch.equal(one, other) for one, other in zip(each, expected, strict=True))


@pytest.mark.parametrize("build", [networks.lenet5, lambda: networks.resnet18(10, width=8)], ids=["lenet5", "resnet18"])
def test_operations_are_counted(build):
    """By PyTorch's counter: a converted model has the FLOPs of the original."""
    model = build()
    image = (2, 1, 28, 28) if build is networks.lenet5 else (2, 3, 32, 32)
    counts = []
    for each in (model, convx.torch.convert(model, inplace=False, verbose=False)):
        with FlopCounterMode(display=False) as counter:
            each(torch.randn(image)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 1e6


@pytest.mark.parametrize("frozen", ["neither", "weight", "input"])
def test_operations_of_single_calls_are_counted(frozen):
    counts = []
    for conv2d, fused in (
        (F.conv2d, lambda x, w: F.max_pool2d(F.relu(F.conv2d(x, w, None, 2, 1)), 2)),
        (convx.torch.conv2d, lambda x, w: convx.torch.conv2d_relu_max_pool2d(x, w, None, 2, 1, pool_kernel_size=2)),
    ):
        x, w = torch.randn(2, 3, 17, 16), torch.randn(4, 3, 3, 2)
        for name, leaf in (("input", x), ("weight", w)):
            leaf.requires_grad_(name != frozen)
        for function in (lambda x, w, conv2d=conv2d: conv2d(x, w, None, (2, 1), (1, 0), (1, 2)), fused):
            with FlopCounterMode(display=False) as counter:
                function(x, w).sum().backward()
            counts.append(counter.get_total_flops())
    assert counts[:2] == counts[2:]
    assert counts[0] == 2 * (2 * 4 * 9 * 14) * (3 * 3 * 2) * (3 if frozen == "neither" else 2)


def test_operations_of_transposed_convolutions_are_counted():
    x, w, b = torch.randn(2, 6, 5, 4), torch.randn(6, 2, 3, 2), torch.randn(4)
    with FlopCounterMode(display=False) as counter:
        convx.torch.conv_transpose2d(x, w, b, 2, groups=2)
    forward = counter.get_total_flops()
    assert forward == 2 * (2 * 6 * 5 * 4) * (2 * 3 * 2)
    x.requires_grad_(), w.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        convx.torch.conv_transpose2d(x, w, b, 2, groups=2).sum().backward()
    assert counter.get_total_flops() == 3 * forward


def data_parallel(rank, folder):
    """One of two processes: half of the batch, and the gradients that DistributedDataParallel leaves."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model, images, labels = torch.load(folder / "task.pt", weights_only=False)
    parallel = DistributedDataParallel(model)
    half = slice(rank, None, 2)
    F.cross_entropy(parallel(images[half]), labels[half]).backward()
    torch.save([parameter.grad for parameter in model.parameters()], folder / f"gradients-{rank}.pt")
    # Gloo aborts where one process closes its sockets while the other still works.
    deadline = time.monotonic() + 60
    while not (folder / f"gradients-{1 - rank}.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="PyTorch was built without torch.distributed")
def test_gradients_of_two_processes_are_those_of_one(tmp_path):
    model = convx.torch.convert(networks.lenet5(), inplace=False, verbose=False).double()
    images, labels = torch.randn(8, 1, 28, 28).double(), torch.arange(8)
    torch.save((model, images, labels), tmp_path / "task.pt")
    torch.multiprocessing.spawn(data_parallel, (tmp_path,), nprocs=2)
    F.cross_entropy(model(images), labels).backward()
    expected = [parameter.grad for parameter in model.parameters()]
    for rank in range(2):
        assert_close(torch.load(tmp_path / f"gradients-{rank}.pt"), expected, "float64")
