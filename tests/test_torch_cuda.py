"""The dispatch path of PyTorch's tensors to the CUDA kernels, without a GPU: the shim of tests/simt replaces CUDA.

Tensors on the CPU stand for those of a device, and the library object describes them as such. All code between the
public functions and the compiled module is that of a GPU.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import convx  # noqa: E402
import convx.torch as ct  # noqa: E402
import simt_arrays  # noqa: E402
from convx.torch import _memory, _tensors  # noqa: E402
from torch_cases import F, as_channels_last, assert_all_equal, conv_by_torch, conv_case, gradients, whole  # noqa: E402

pytestmark = [
    simt_arrays.needs_simt,
    pytest.mark.skipif(simt_arrays.ON_GPU, reason="on a GPU the tensors are on the CPU still"),
]


class Device(convx._devices.PyTorch):
    """A library as for a GPU; new tensors are NaN until a kernel writes them."""

    def describe(self, array):
        if not isinstance(array, torch.Tensor):
            return None
        assert not (array.requires_grad and torch.is_grad_enabled())
        name = self._names.get(array.dtype, str(array.dtype))
        return array.data_ptr(), tuple(array.shape), array.stride(), name, 0, True

    def empty(self, shape, dtype, device):
        empty = torch.empty(shape, dtype=getattr(torch, dtype))
        return empty.fill_(torch.nan if empty.is_floating_point() else 113)

    def stream(self, device):
        return 0


@pytest.fixture(autouse=True)
def device(monkeypatch):
    calls = []

    def dispatch(op, argument, value):
        calls.append(op)
        return Device(torch), simt_arrays._simt

    monkeypatch.setattr(convx._devices, "dispatch", dispatch)
    monkeypatch.setattr(_memory, "on_cpu", lambda tensor: False)
    return calls


both_formats = pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])


@both_formats
@pytest.mark.parametrize("seed", range(6))
def test_conv2d(seed, last, device):
    case = conv_case(seed)
    leaves = [whole(case.input_shape, 1), whole(case.weight_shape, 2), whole((case.k,), 3)]
    leaves[0] = as_channels_last(leaves[0]) if last else leaves[0]
    actual = gradients(lambda x, w, b: ct.conv2d(x, w, b, **case.options), *leaves)
    assert_all_equal(actual, gradients(lambda x, w, b: conv_by_torch(x, w, b, **case.options), *leaves), case)
    assert {"conv2d", "conv2d_backward"} <= set(device)
    for frozen in (0, 1):
        leaf = leaves[1 - frozen].requires_grad_()
        ct.conv2d(leaves[0], leaves[1], **case.options).sum().backward()
        wanted = torch.autograd.grad(conv_by_torch(leaves[0], leaves[1], None, **case.options).sum(), leaf)[0]
        assert torch.equal(leaf.grad, wanted)
        leaf.requires_grad_(False)


@both_formats
def test_the_others(last, device):
    x, w, b = whole((2, 4, 9, 8)), whole((4, 4, 3, 3), 1), whole((4,), 2)
    x = as_channels_last(x) if last else x
    for function, by_torch in (
        (ct.relu, torch.relu),
        (lambda x: ct.max_pool2d(x, 3, 2, 1), lambda x: F.max_pool2d(x, 3, 2, 1)),
        (lambda x: ct.max_pool2d(x, 2, return_indices=True)[0], lambda x: F.max_pool2d(x, 2)),
        (lambda x: ct.conv_transpose2d(x, w, b, stride=2), lambda x: F.conv_transpose2d(x, w, b, stride=2)),
    ):
        assert_all_equal(gradients(function, x), gradients(by_torch, x))
    fused = gradients(lambda *args: ct.conv2d_relu_max_pool2d(*args, padding=1, pool_kernel_size=2), x, w, b)
    assert_all_equal(fused, gradients(lambda x, w, b: F.max_pool2d(F.relu(F.conv2d(x, w, b, 1, 1)), 2), x, w, b))
    assert ct.conv2d(x, w).is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    out = torch.zeros(2, 4, 7, 6)
    assert convx.conv2d(x, w, precision="ieee", out=out) is out
    assert torch.equal(out, F.conv2d(x, w))
    assert torch.equal(convx.max_pool2d(x, 2), F.max_pool2d(x, 2))
    expected = {"relu", "relu_backward", "max_pool2d", "max_pool2d_backward", "conv2d_relu_max_pool2d"}
    assert expected <= set(device)


@both_formats
def test_what_is_not_recorded(last, device, monkeypatch):
    x, w, g = whole((2, 3, 9, 8)), whole((4, 3, 3, 3), 1), whole((2, 4, 7, 6), 2)
    x = as_channels_last(x) if last else x

    def calls():
        y, mask = convx.relu(x, return_mask=True)
        out = torch.zeros(2, 3, 9, 8)
        assert convx.conv_transpose2d(torch._neg_view(g), w, out=out) is out
        per_sample = convx.conv2d_backward(g, x, w, per_sample=True)
        return [y, mask, convx.relu_backward(y, mask), out, *per_sample, *convx.conv2d_grad_norms(g, x, w.shape)]

    found = calls()
    assert device == ["relu", "conv_transpose2d", "conv2d_backward", "relu_backward", "conv2d_grad_norms"]
    monkeypatch.setattr(_memory, "on_cpu", lambda tensor: True)
    assert_all_equal(found, calls())


def test_by_the_dispatcher(device):
    """Traced and transformed calls reach the same kernels."""
    x, w = whole((3, 4, 9, 8)), whole((4, 4, 3, 3), 1)
    loss = lambda w, x: ct.conv2d_relu_max_pool2d(x[None], w, pool_kernel_size=2).sum()  # noqa: E731
    found = torch.vmap(torch.func.grad(loss), (None, 0))(w, x)
    by_torch = lambda w, x: F.max_pool2d(F.relu(F.conv2d(x[None], w)), 2).sum()  # noqa: E731
    assert torch.equal(found, torch.vmap(torch.func.grad(by_torch), (None, 0))(w, x))
    assert "conv2d_backward" in device


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_16_bits(kind, monkeypatch):
    """A device computes with 16-bit types; small whole numbers are exact in them."""
    monkeypatch.setattr(_tensors, "_ON_CPU", (torch.float32, torch.float64, kind))
    x, w, b = (whole(shape, i, kind) for i, shape in enumerate([(2, 2, 6, 5), (3, 2, 2, 2), (3,)]))
    actual = gradients(lambda x, w, b: ct.max_pool2d(ct.conv2d(x, w, b, activation="relu"), 2), x, w, b)
    expected = gradients(lambda x, w, b: F.max_pool2d(F.relu(F.conv2d(x, w, b)), 2), *(t.float() for t in (x, w, b)))
    assert all(each.dtype == kind for each in actual)
    assert_all_equal([each.float() for each in actual], expected)
