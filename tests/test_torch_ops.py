"""convx.torch against PyTorch: values and gradients over random options, memory formats, dispatch."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys

import numpy as np
import pytest

import convx
from convx import reference
from support import POOL_PROBLEMS

torch = pytest.importorskip("torch")

import convx.torch as ct  # noqa: E402
from convx.torch import _library, _memory, _tensors  # noqa: E402
from torch_cases import (  # noqa: E402
    F,
    as_channels_last,
    assert_all_equal,
    conv_by_torch,
    conv_case,
    gradients,
    normal,
    pool_case,
    whole,
)

DTYPES = (torch.float32, torch.float64)
ROUNDS = range(25)
both_formats = pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # its OpenMP threads would wait for busy processors
    yield
    torch.set_num_threads(before)


def formatted(x, last):
    return as_channels_last(x) if last else x


@both_formats
@pytest.mark.parametrize("seed", ROUNDS)
def test_conv2d(seed, last):
    case = conv_case(seed)
    leaves = [
        formatted(whole(case.input_shape, 1, DTYPES[seed % 2]), last),
        whole(case.weight_shape, 2, DTYPES[seed % 2]),
    ]
    if case.bias:
        leaves.append(whole((case.k,), 3, DTYPES[seed % 2]))
    actual = gradients(lambda x, w, b=None: ct.conv2d(x, w, b, **case.options), *leaves)
    expected = gradients(lambda x, w, b=None: conv_by_torch(x, w, b, **case.options), *leaves)
    assert_all_equal(actual, expected, case)


@both_formats
@pytest.mark.parametrize("seed", ROUNDS)
def test_conv_transpose2d(seed, last):
    rng = np.random.default_rng(seed)
    draw = lambda low, high: int(rng.integers(low, high))  # noqa: E731
    groups, stride, dilation = draw(1, 4), (draw(1, 4), draw(1, 4)), (draw(1, 4), draw(1, 4))
    r, s = draw(1, 4), draw(1, 4)
    options = dict(
        stride=stride,
        padding=(draw(0, 3), draw(0, 3)),
        output_padding=tuple(draw(0, max(pair)) for pair in zip(stride, dilation, strict=True)),
        groups=groups,
        dilation=dilation,
    )
    shape = (draw(1, 4), groups * draw(1, 4), draw(4, 7), draw(4, 7))
    k = groups * draw(1, 4)
    leaves = [formatted(whole(shape, 1), last), whole((shape[1], k // groups, r, s), 2), whole((k,), 3)]
    actual = gradients(lambda x, w, b: ct.conv_transpose2d(x, w, b, **options), *leaves)
    expected = gradients(lambda x, w, b: F.conv_transpose2d(x, w, b, **options), *leaves)
    assert_all_equal(actual, expected, options)
    without_bias = ct.conv_transpose2d(leaves[0], leaves[1], **options)
    assert torch.equal(without_bias, F.conv_transpose2d(leaves[0], leaves[1], **options))
    values = (stride, options["padding"], options["output_padding"], groups, dilation)
    g = whole(without_bias.shape, 99)
    for layout, axes in (("NCHW", (0, 1, 2, 3)), ("NHWC", (0, 2, 3, 1))):
        images = g.permute(axes), leaves[0].permute(axes)
        found = convx.conv_transpose2d_backward(*images, leaves[1], *values, layout=layout)
        assert_all_equal([found[0].permute([axes.index(i) for i in range(4)]), *found[1:]], expected[1:], options)


def test_conv_transpose2d_same():
    """The output has the size of an image that `conv2d` with this padding maps to the input."""
    x, w = whole((2, 3, 4, 5)), whole((3, 2, 3, 4), 1)
    y = ct.conv_transpose2d(x, w, stride=(2, 3), padding="same")
    assert y.shape == (2, 2, 8, 15)
    image = whole(y.shape, 2).requires_grad_()
    ct.conv2d(image, w, stride=(2, 3), padding="same").backward(x)
    assert torch.equal(y, image.grad)
    uneven = ct.conv_transpose2d(x, w, padding=((1, 0), (0, 2)))
    assert torch.equal(uneven, F.conv_transpose2d(x, w)[:, :, 1:, :-2])
    mask = (True, False, False)
    grads = convx.conv_transpose2d_backward(y[0], x[0], w, (2, 3), "same", output_mask=mask)
    assert torch.equal(grads[0], ct.conv2d(y, w, stride=(2, 3), padding="same")[0])
    assert grads[1] is None and grads[2] is None


@both_formats
@pytest.mark.parametrize("seed", ROUNDS)
def test_max_pool2d(seed, last):
    shape, options = pool_case(seed)
    x = formatted(whole(shape, seed, DTYPES[seed % 2]), last)
    assert_all_equal(
        gradients(lambda x: ct.max_pool2d(x, **options), x), gradients(lambda x: F.max_pool2d(x, **options), x), options
    )
    indices = dict(return_indices=True, **options)
    assert_all_equal(ct.max_pool2d(x, **indices), F.max_pool2d(x, **indices), options)
    recorded = x.detach().requires_grad_()
    output, chosen = ct.max_pool2d(recorded, **indices)
    assert output.requires_grad
    assert not chosen.requires_grad
    assert_all_equal(
        gradients(lambda x: ct.max_pool2d(x, **indices)[0], x), gradients(lambda x: F.max_pool2d(x, **options), x)
    )


SIDES = (0, 1, 2, 3)


@pytest.mark.parametrize("padding", [*SIDES, *itertools.permutations(SIDES, 2)], ids=str)
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, (2, 3), (4, 1)], ids=str)
def test_padding_as_pytorch_limits_it(kernel, padding):
    """PyTorch's limit of half the window, with its message, in functions, layers and fused runs."""
    x, w, conv = whole((1, 2, 9, 9)), whole((3, 2, 2, 2), 1), torch.nn.Conv2d(2, 3, 2)
    plain = torch.nn.MaxPool2d(kernel, 1, padding)
    converted = ct.convert(torch.nn.Sequential(conv, torch.nn.ReLU(), plain), inplace=False, verbose=False)
    calls = [
        lambda: ct.max_pool2d(x, kernel, 1, padding),
        lambda: ct.max_pool2d(x.clone().requires_grad_(), kernel, 1, padding),
        lambda: ct.max_pool2d(x.to("meta"), kernel, 1, padding),
        lambda: ct.conv2d_relu_max_pool2d(x, w, pool_kernel_size=kernel, pool_stride=1, pool_padding=padding),
        lambda: ct.convert(torch.nn.MaxPool2d(kernel, 1, padding), verbose=False)(x),
        lambda: converted(x),
    ]
    if (2 * np.broadcast_to(padding, 2) <= np.broadcast_to(kernel, 2)).all():
        expected, behind = plain(x), plain(conv(x)).shape[2:]
        for call in calls:
            assert call().shape[2:] in (expected.shape[2:], behind)
        for call in (*calls[:2], lambda: ct.MaxPool2d(kernel, 1, padding)(x)):
            assert torch.equal(call(), expected)
        return
    words = "pad should be at most half of effective kernel size, but got pad="
    with pytest.raises(RuntimeError, match=f"^{words}"):
        plain(x)
    for call in calls:
        with pytest.raises(convx.ShapeError, match=rf"^\w+: {words}"):
            call()
    with pytest.raises(convx.ShapeError, match=rf"^(MaxPool2d: padding is|max_pool2d: {words})"):
        ct.MaxPool2d(kernel, 1, padding)


@both_formats
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # PyTorch's jvp uses it
@pytest.mark.parametrize("name", ["gaps", "gaps-ceil", "gaps-stride-over-kernel", "widest-padding-ceil"])
def test_windows_without_a_cell(name, last):
    """Windows without a tap, in `convx.max_pool2d` alone: -inf, index -1, code 255, and no gradient of any order."""
    problem = POOL_PROBLEMS[name]
    x = formatted(whole(problem.input_shape, 1, torch.float64), last)
    pool = functools.partial(convx.max_pool2d, **problem.options)
    expected, indices = reference.max_pool2d(x.numpy(), **problem.options, return_indices=True)
    codes = reference.max_pool2d(x.numpy(), **problem.options, return_codes=True)[1]
    g = whole(expected.shape, 2, torch.float64)
    grad_input = reference.max_pool2d_backward(g.numpy(), indices, x.shape, **problem.options)
    expected, indices, codes, grad_input = map(torch.from_numpy, (expected, indices, codes, grad_input))
    empty = expected == -torch.inf
    assert empty.any() == name.startswith("gaps")
    assert_all_equal(pool(x, return_indices=True), (expected, indices))
    assert_all_equal(pool(x, return_codes=True), (expected, codes))
    leaf, direction = x.detach().requires_grad_(), g.clone().requires_grad_()
    output = pool(leaf)
    (grad,) = torch.autograd.grad(output, leaf, direction, create_graph=True)
    assert_all_equal((output.detach(), grad.detach()), (expected, grad_input))
    assert torch.equal(torch.autograd.grad(grad.sum(), direction)[0], (~empty).double())
    tangent = torch.func.jvp(pool, (x,), (x,))[1]
    assert torch.equal(tangent, expected.masked_fill(empty, 0))
    assert torch.equal(torch.func.vmap(pool)(x[None])[0], expected)
    assert torch.equal(torch.func.vmap(torch.func.vjp(pool, x)[1])(g[None])[0][0], grad_input)
    assert pool(x.to("meta")).shape == expected.shape


def test_windows_too_large_for_codes():
    x = whole((2, 3, 20, 19))
    assert_all_equal(gradients(lambda x: ct.max_pool2d(x, 16, 2), x), gradients(lambda x: F.max_pool2d(x, 16, 2), x))


@both_formats
def test_relu(last):
    x = formatted(whole((2, 3, 5, 6)), last)
    x.flatten()[::7] = 0
    assert_all_equal(gradients(ct.relu, x), gradients(torch.relu, x))
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0])
    assert torch.equal(ct.relu(special).nan_to_num(9), torch.relu(special).nan_to_num(9))
    for shape in [(), (0, 3), (7,), (2, 1, 3, 2, 2)]:
        assert torch.equal(ct.relu(-torch.ones(shape)), torch.zeros(shape))


@both_formats
@pytest.mark.parametrize("seed", range(12))
def test_fused_block(seed, last):
    case = conv_case(seed)
    conv = {name: case.options[name] for name in ("stride", "padding", "dilation", "groups")}
    leaves = [formatted(whole(case.input_shape, 1), last), whole(case.weight_shape, 2), whole((case.k,), 3)]
    pool = dict(pool_kernel_size=(2, 1), pool_stride=(1, 2))
    actual = gradients(lambda *tensors: ct.conv2d_relu_max_pool2d(*tensors, **conv, **pool), *leaves)
    by_torch = dict(conv, padding_mode="zeros", activation="relu")
    expected = gradients(lambda *tensors: F.max_pool2d(conv_by_torch(*tensors, **by_torch), (2, 1), (1, 2)), *leaves)
    assert_all_equal(actual, expected, case)


def test_same_padding():
    x, w = whole((2, 3, 8, 9)), whole((4, 3, 3, 2), 1)
    strided = ct.conv2d(x, w, stride=2, padding="same")
    assert torch.equal(strided, torch.from_numpy(convx.conv2d(x.numpy(), w.numpy(), stride=2, padding="same")))
    assert strided.shape == (2, 4, 4, 5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: ct.conv2d(x, whole((4, 3, 3, 3), 1), padding=1),
        lambda x: ct.conv_transpose2d(x, whole((3, 4, 3, 3), 1), stride=2),
        lambda x: ct.max_pool2d(x, 2),
        lambda x: ct.max_pool2d(x, 2, return_indices=True)[1],
        ct.relu,
        lambda x: ct.conv2d_relu_max_pool2d(x, whole((4, 3, 3, 3), 1), pool_kernel_size=2),
    ],
    ids=["conv2d", "conv_transpose2d", "max_pool2d", "indices", "relu", "fused"],
)
class TestMemory:
    def test_channels_last_comes_back(self, function):
        """Results and gradients have the memory format of the input, and the input is not copied."""
        x = whole((2, 3, 8, 9))
        for last, wanted in ((False, torch.contiguous_format), (True, torch.channels_last)):
            leaf = formatted(x, last).requires_grad_()
            y = function(leaf)
            assert y.is_contiguous(memory_format=wanted)
            assert torch.equal(y, function(x))
            if y.requires_grad:
                y.sum().backward()
                assert leaf.grad.is_contiguous(memory_format=wanted)

    def test_views(self, function):
        x = whole((4, 6, 17, 19))[::2, ::2, 1::2, :9]
        assert torch.equal(function(x), function(x.contiguous()))
        expanded = whole((1, 3, 1, 9)).expand(2, 3, 8, 9)
        assert torch.equal(function(expanded), function(expanded.contiguous()))

    def test_one_image(self, function):
        x = whole((3, 8, 9)).requires_grad_()
        y = function(x)
        assert torch.equal(y, function(x[None])[0])
        if y.requires_grad:
            y.sum().backward()
            assert x.grad.shape == x.shape

    def test_no_images(self, function):
        x = torch.zeros(0, 3, 8, 9, requires_grad=True)
        y = function(x)
        assert y.shape == (0, *function(torch.zeros(1, 3, 8, 9)).shape[1:])
        if y.requires_grad:
            y.sum().backward()
            assert x.grad.shape == x.shape

    def test_memory_out_of_step(self, function):
        """Addresses that are no multiple of an element's size, as from `torch.frombuffer`."""
        x = whole((2, 3, 8, 9))
        memory = bytearray(b"." + x.numpy().tobytes())
        odd = torch.frombuffer(memory, dtype=torch.float32, offset=1).view(x.shape)
        assert odd.data_ptr() % 4
        assert torch.equal(function(odd), function(x))

    def test_subclasses(self, function):
        """Subclasses come back, recorded or not, as from PyTorch's own operations."""

        class Subclass(torch.Tensor):
            pass

        x = whole((2, 3, 8, 9))
        found = function(x.as_subclass(Subclass))
        assert type(found) is Subclass
        assert torch.equal(found.as_subclass(torch.Tensor), function(x))
        leaf = x.clone().requires_grad_()
        recorded = function(leaf.as_subclass(Subclass))
        if recorded.requires_grad:
            recorded.sum().backward()
            assert_all_equal([leaf.grad.as_subclass(torch.Tensor)], torch.autograd.grad(function(leaf).sum(), leaf))

    def test_inference_mode(self, function):
        """Tensors without a version, as results and as inputs."""
        x = whole((2, 3, 8, 9))
        with torch.inference_mode():
            found = function(x * 1)
        assert found.is_inference()
        assert torch.equal(found, function(x))

    def test_zeros_without_memory(self, function):
        zeros = torch._efficientzerotensor((2, 3, 8, 9))
        assert torch.equal(function(zeros), function(torch.zeros(2, 3, 8, 9)))

    def test_negations_still_to_be_done(self, function):
        x = whole((2, 3, 8, 9))
        assert torch.equal(function(torch._neg_view(x)), function(-x))


def test_one_channel_as_channels_last():
    """Such an image is contiguous in both formats; PyTorch's convolutions follow the strides, as convx does."""
    x, w = whole((2, 1, 8, 9)), as_channels_last(whole((4, 1, 3, 3), 1))
    last = torch.empty(2, 1, 8, 9, memory_format=torch.channels_last).copy_(x)
    for image in (x, last):
        wanted = F.conv2d(image, w if image is last else w.contiguous())
        actual = ct.conv2d(image, w)
        assert actual.stride() == wanted.stride()
        assert torch.equal(actual, wanted)


def test_zero_copy():
    """The kernels read and write PyTorch's memory: a change of the tensor shows in their view."""
    x = as_channels_last(whole((2, 3, 8, 9)))
    view = _memory.array_of(x, _tensors.CHANNELS_LAST)
    assert view.flags.c_contiguous
    x[1, 2, 3, 4] = 77
    assert view[1, 3, 4, 2] == 77


class TestPaths:
    """Plain eager calls bypass the dispatcher, all others pass through it, with the same bits."""

    @pytest.fixture
    def watcher(self):
        from torch.utils._python_dispatch import TorchDispatchMode

        class Watcher(TorchDispatchMode):
            def __init__(self):
                super().__init__()
                self.seen = []

            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                self.seen.append(function)
                return function(*args, **(kwargs or {}))

        return Watcher()

    def step(self):
        x, w, b = whole((2, 4, 9, 9)), whole((4, 4, 3, 3), 1), whole((4,), 2)

        def network(x, w, b):
            y = ct.max_pool2d(ct.relu(ct.conv2d(x, w, b, padding=1, activation="relu")), 2)
            return ct.conv2d_relu_max_pool2d(ct.conv_transpose2d(y, w, b), w, b, pool_kernel_size=2)

        return gradients(network, x, w, b)

    def test_same_bits(self, watcher, monkeypatch):
        calls, call = [], _library.Operation.__call__
        monkeypatch.setattr(_library.Operation, "__call__", lambda self, *args: calls.append(self) or call(self, *args))
        straight = self.step()
        assert calls == []
        with watcher:
            watched = self.step()
        assert calls
        assert_all_equal(watched, straight)
        ops = torch.ops.convx
        assert {ops.conv2d.default, ops.max_pool2d_with_choice.default, ops.relu.default} <= set(watcher.seen)
        assert ops.conv2d_grad_weight.default in watcher.seen
        assert ops.conv2d_relu_max_pool2d_backward.default in watcher.seen

    def test_modes_of_torch_function_see_calls(self):
        """The mode sees the calls, as those of torch.nn.functional, and its return value is the result."""
        from torch.overrides import TorchFunctionMode

        functions = [ct.conv2d, ct.relu, ct.max_pool2d, ct.conv_transpose2d, ct.conv2d_relu_max_pool2d]
        seen = []

        class Tenfold(TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                result = function(*args, **(kwargs or {}))
                if function not in functions:
                    return result
                seen.append(function)
                return 10 * result

        straight = self.step()
        with Tenfold():
            changed = self.step()
        assert seen == functions
        assert not torch.equal(changed[0], straight[0])
        seen.clear()
        layer = ct.MaxPool2d(2)
        with Tenfold():
            y = layer(whole((1, 2, 4, 4)))
        assert seen == [ct.max_pool2d]
        assert torch.equal(y, 10 * F.max_pool2d(whole((1, 2, 4, 4)), 2))

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_nothing_recorded(self, mode, monkeypatch):
        monkeypatch.setattr(_library.Operation, "__call__", None)
        x, w = whole((2, 3, 8, 9)).requires_grad_(), whole((4, 3, 3, 3), 1).requires_grad_()
        with mode():
            y = ct.conv2d(x, w)
            assert not y.requires_grad
            assert not ct.max_pool2d(y, 2).requires_grad
            assert not ct.conv2d_relu_max_pool2d(x, w, pool_kernel_size=2).requires_grad

    def test_only_what_is_needed(self):
        """Frozen tensors get no gradient, and arrays that only their gradients need are not kept."""
        x, w, b = whole((2, 3, 8, 9)), whole((4, 3, 3, 3), 1), whole((4,), 2)
        kept = []
        for leaf, other in ((x, w), (w, x), (b, None)):
            leaf.requires_grad_()
            with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
                y = ct.conv2d(x, w, b)
            assert [tensor.data_ptr() for tensor in kept] == ([] if other is None else [other.data_ptr()])
            y.backward(torch.ones_like(y))
            assert leaf.grad is not None
            leaf.requires_grad_(False)
            kept.clear()
        assert len({id(each.grad) for each in (x, w, b)}) == 3

    def test_saved_bytes(self):
        """One byte for each pooled element; the fused block keeps no output of the convolution."""
        x, w = whole((2, 3, 8, 8)).requires_grad_(), whole((4, 3, 3, 3), 1).requires_grad_()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            ct.max_pool2d(x, 2)
            assert [(t.dtype, t.numel()) for t in kept] == [(torch.uint8, 2 * 3 * 4 * 4)]
            kept.clear()
            ct.conv2d_relu_max_pool2d(x, w, pool_kernel_size=2)
        assert sorted(t.numel() * t.element_size() for t in kept) == sorted([x.nbytes, w.nbytes, 2 * 4 * 3 * 3])

    def test_changed_in_place(self):
        x, w = whole((2, 3, 8, 9)).requires_grad_(), whole((4, 3, 3, 3), 1).requires_grad_()
        for function in (
            lambda: ct.conv2d(x, w),
            lambda: ct.conv_transpose2d(ct.conv2d(x, w), w),
            lambda: ct.conv2d_relu_max_pool2d(x, w, pool_kernel_size=2),
        ):
            y = function()
            with torch.no_grad():
                w.add_(1)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.sum().backward()
        y = ct.relu(x)
        y.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()

    def test_twice_backward(self):
        y = ct.conv2d(whole((2, 3, 8, 9)), whole((4, 3, 3, 3), 1).requires_grad_())
        y.sum().backward()
        with pytest.raises(RuntimeError, match="second time"):
            y.sum().backward()

    def test_threads(self):
        """The backward pass may run in another thread than the forward pass."""
        import threading

        expected = self.step()
        found = []
        threads = [threading.Thread(target=lambda: found.append(self.step())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        for each in found:
            assert_all_equal(each, expected)


class TestRoutes:
    """Tensors given to the functions of convx itself."""

    @pytest.mark.parametrize("axes", [4, 3])
    def test_every_function(self, layout, axes):
        """The results of NumPy arrays, with and without recording."""
        shape = (2, 8, 9, 3) if layout == "NHWC" else (2, 3, 8, 9)
        x, w, b = whole(shape[4 - axes :]), whole((4, 3, 3, 3), 1), whole((4,), 2)
        conv = dict(padding=1, layout=layout)
        arrays = {}
        for kind in ("array", "tensor", "recorded"):
            convert = (lambda t: t.numpy()) if kind == "array" else (lambda t: t.clone())
            xs, ws, bs = (convert(each) for each in (x, w, b))
            if kind == "recorded":
                xs.requires_grad_()
            y = convx.conv2d(xs, ws, bs, activation="relu", **conv)
            g = convert(whole(y.shape, 3))
            pooled, codes = convx.max_pool2d(y, 2, layout=layout, return_codes=True)
            indexed, indices = convx.max_pool2d(y, 2, layout=layout, return_indices=True)
            scattered = convx.max_pool2d_backward(pooled, codes, y.shape, 2, layout=layout)
            by_index = convx.max_pool2d_backward(pooled, indices, y.shape, 2, layout=layout)
            fused, saved = convx.conv2d_relu_max_pool2d(xs, ws, bs, pool_kernel_size=2, **conv)
            some = convx.conv2d_relu_max_pool2d_backward(fused, saved, output_mask=(True, False, True))
            arrays[kind] = [
                y,
                *convx.conv2d_backward(g, xs, ws, **conv),
                convx.relu(xs),
                convx.relu_backward(g, y),
                convx.max_pool2d(y, 2, layout=layout),
                pooled,
                codes,
                indexed,
                indices,
                scattered,
                by_index,
                fused,
                saved.codes,
                *convx.conv2d_relu_max_pool2d_backward(fused, saved),
                some[0],
                some[2],
            ]
            assert some[1] is None
            if kind == "recorded":
                assert all(each.requires_grad for each in (y, pooled, indexed, scattered, by_index, fused, some[0]))
                assert not any(each.requires_grad for each in (codes, indices, saved.codes))
        for index, array in enumerate(arrays["array"]):
            for kind in ("tensor", "recorded"):
                tensor = arrays[kind][index].detach()
                np.testing.assert_array_equal(tensor.numpy(), array, err_msg=f"result {index} of {kind}")

    def test_gradients_are_recorded(self):
        x, w = normal(2, 3, 6, 7), normal(4, 3, 3, 3, seed=1)
        g = normal(2, 4, 4, 5, seed=2)
        y = convx.conv2d(x, w)
        by_convx = convx.conv2d_backward(g, x, w, output_mask=(True, True, False))
        by_torch = torch.autograd.grad(F.conv2d(x, w), (x, w), g, create_graph=True)
        assert by_convx[2] is None
        of_these = torch.autograd.grad([t.sin().sum() for t in by_convx[:2]], (g, x, w))
        of_those = torch.autograd.grad([t.sin().sum() for t in by_torch], (g, x, w))
        for one, other in zip(of_these, of_those, strict=True):
            torch.testing.assert_close(one, other)
        gradient = convx.relu_backward(y, convx.relu(y))
        torch.testing.assert_close(
            torch.autograd.grad(gradient.sum(), x), torch.autograd.grad(F.relu(F.conv2d(x, w)).sum(), x)
        )

    def test_out(self):
        x, w = whole((2, 3, 8, 9)), whole((4, 3, 3, 3), 1)
        for image in (x, as_channels_last(x)):
            out = torch.zeros(2, 4, 6, 7)
            assert convx.conv2d(image, w, out=out) is out
            assert torch.equal(out, F.conv2d(x, w))
        nhwc = torch.zeros(6, 7, 4)
        assert convx.conv2d(x[0].permute(1, 2, 0), w, layout="NHWC", out=nhwc) is nhwc
        assert torch.equal(nhwc.permute(2, 0, 1), F.conv2d(x[0], w))
        y = x.clone()
        assert convx.relu(y, out=y) is y
        assert torch.equal(y, torch.relu(x))
        g = whole(x.shape, 5)
        wanted = convx.relu_backward(g, y)
        assert convx.relu_backward(g, y, out=g) is g
        assert torch.equal(g, wanted)

    def unrecorded(self, layout, change=lambda t: t):
        """Operations without a rule in autograd, and transposed convolutions that PyTorch does not have."""
        shape = (2, 8, 9, 3) if layout == "NHWC" else (2, 3, 8, 9)
        x, w, g = change(whole(shape)), change(whole((4, 3, 3, 3), 1)), change(whole((2, 4, 6, 7), 2))
        if layout == "NHWC":
            g = g.transpose(0, 2, 3, 1) if isinstance(g, np.ndarray) else g.permute(0, 2, 3, 1)
        y, mask = convx.relu(x, return_mask=True)
        return {
            "conv2d_backward": lambda: convx.conv2d_backward(g, x, w, layout=layout, per_sample=True),
            "conv2d_grad_norms": lambda: convx.conv2d_grad_norms(g, x, w.shape, layout=layout),
            "conv_transpose2d": lambda: convx.conv_transpose2d(g, w, padding=((1, 0), (0, 1)), layout=layout),
            "conv_transpose2d plain": lambda: convx.conv_transpose2d(g, w, stride=2, layout=layout),
            "conv_transpose2d_backward": lambda: convx.conv_transpose2d_backward(x, g, w, layout=layout),
            "relu": lambda: (y, mask),
            "relu_backward": lambda: convx.relu_backward(x, mask),
        }

    def test_what_is_not_recorded(self, layout):
        arrays = self.unrecorded(layout, lambda t: t.numpy())
        for name, call in self.unrecorded(layout).items():
            found, expected = call(), arrays[name]()
            pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
            for tensor, array in pairs:
                assert isinstance(tensor, torch.Tensor)
                np.testing.assert_array_equal(tensor.numpy(), array, err_msg=name)

    def test_what_is_not_recorded_is_refused(self):
        x, w = whole((1, 1, 3, 3)), whole((1, 1, 2, 2), 1)
        recorded = x.clone().requires_grad_()
        with pytest.raises(TypeError, match="and this operation is not recorded"):
            convx.relu(recorded, return_mask=True)
        with torch.no_grad():
            assert convx.relu(recorded, return_mask=True)[1].dtype == torch.uint8
        with pytest.raises(TypeError, match="conv2d_grad_norms: grad_output is on device meta, expected a dense"):
            convx.conv2d_grad_norms(x.to("meta"), x, (1, 1, 1, 1))
        out = torch.zeros(1, 1, 4, 4)
        assert convx.conv_transpose2d(x, w, out=out) is out
        assert torch.equal(out, F.conv_transpose2d(x, w))

    def test_prepared_weight(self):
        x, w = whole((2, 64, 8, 9)), whole((64, 64, 1, 1), 1)
        ready = convx.prepare_weight(w.numpy(), x.shape)
        assert torch.equal(convx.conv2d(x, ready), F.conv2d(x, w))
        assert torch.equal(convx.conv2d(x[0], ready), F.conv2d(x[0], w))
        out = torch.zeros(64, 8, 9)
        assert convx.conv2d(x[0], ready, out=out) is out
        assert torch.equal(out, F.conv2d(x[0], w))
        for recorded in (x.clone().requires_grad_(), x.to("meta"), x.bfloat16()):
            with pytest.raises(TypeError, match=r"conv2d: weight is a convx\.PreparedWeight"):
                convx.conv2d(recorded, ready)
        with torch.no_grad():
            assert torch.equal(convx.conv2d(x.clone().requires_grad_(), ready), F.conv2d(x, w))

    def test_saved_prints(self):
        _, saved = convx.conv2d_relu_max_pool2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 1, 1), pool_kernel_size=2)
        assert "input=float32(1, 1, 4, 4) 64 bytes" in repr(saved)


def test_pytorch_is_not_imported():
    code = "import sys, convx, numpy; convx.relu(numpy.ones(3)); print('torch' in sys.modules, hasattr(convx, 'torch'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
