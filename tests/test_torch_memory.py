"""Results of convx.torch are in PyTorch's own memory, and the memory of arguments is unchanged."""

from __future__ import annotations

import gc
import weakref

import pytest

torch = pytest.importorskip("torch")

import convx  # noqa: E402
import convx.torch as ct  # noqa: E402
from torch_cases import whole  # noqa: E402

X, W, B = whole((2, 3, 8, 9)), whole((4, 3, 3, 3), 1), whole((4,), 2)
G = whole((2, 4, 6, 7), 3)


def results(x, w, g):
    """Every result of every operation, by name."""
    bias = B.to(x.dtype)
    pooled, indices = ct.max_pool2d(x, 2, return_indices=True)
    _, codes = convx.max_pool2d(x, 2, return_codes=True)
    fused, saved = convx.conv2d_relu_max_pool2d(x, w, bias, pool_kernel_size=2)
    rectified, mask = convx.relu(x, return_mask=True)
    return dict(
        conv2d=ct.conv2d(x, w, bias),
        conv2d_nhwc=convx.conv2d(x.permute(0, 2, 3, 1), w, bias, layout="NHWC"),
        conv_transpose2d=ct.conv_transpose2d(g, w),
        relu=ct.relu(x),
        relu_with_mask=rectified,
        mask=mask,
        relu_backward=convx.relu_backward(x, x),
        relu_mask_backward=convx.relu_backward(x, mask),
        max_pool2d=ct.max_pool2d(x, 2),
        pooled=pooled,
        indices=indices,
        codes=codes,
        max_pool2d_backward=convx.max_pool2d_backward(pooled, codes, x.shape, 2),
        fused=fused,
        fused_codes=saved.codes,
        **dict(zip("iwb", convx.conv2d_backward(g, x, w), strict=True)),
        **{f"per_sample_{k}": v for k, v in zip("iwb", convx.conv2d_backward(g, x, w, per_sample=True), strict=True)},
        **{f"norms_{k}": v for k, v in zip("wb", convx.conv2d_grad_norms(g, x, w.shape), strict=True)},
        **{f"transposed_{k}": v for k, v in zip("iwb", convx.conv_transpose2d_backward(x, g, w), strict=True)},
        **{f"fused_{k}": v for k, v in zip("iwb", convx.conv2d_relu_max_pool2d_backward(fused, saved), strict=True)},
    )


FORMS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
}


def torch_type(dtype):
    return getattr(torch, dtype)


every_form = pytest.mark.parametrize("form", FORMS)


@every_form
class TestResults:
    def test_resize(self, form, dtype):
        """Free the memory of a tensor and allocate it again, as sharded training does."""
        x = FORMS[form](X.to(torch_type(dtype)))
        for name, result in results(x, W.to(torch_type(dtype)), G.to(torch_type(dtype))).items():
            storage = result.untyped_storage()
            assert storage.resizable(), name
            size = storage.nbytes()
            storage.resize_(0)
            storage.resize_(size)
            assert result.zero_().sum() == 0, name

    def test_as_the_destination_of_another_operation(self, form, dtype):
        x, w = FORMS[form](X.to(torch_type(dtype))), W.to(torch_type(dtype))
        for y in (ct.conv2d(x, w), ct.relu(x), ct.max_pool2d(x, 2)):
            one = y.clone()
            torch.cat([one, one], out=y.resize_(0))
            assert torch.equal(y, torch.cat([one, one]))

    def test_memory_format(self, form, dtype):
        x = FORMS[form](X.to(torch_type(dtype)))
        for y in (ct.conv2d(x, W.to(torch_type(dtype))), ct.max_pool2d(x, 2), ct.relu(x)):
            assert y._base is None
            assert y.storage_offset() == 0
            assert y.untyped_storage().nbytes() == y.numel() * y.element_size()
            assert y.is_contiguous(memory_format=torch.channels_last) == (form == "channels_last")
            y.relu_()

    def test_arguments_stay_resizable(self, form, dtype):
        x, w = (
            FORMS[form](X.to(torch_type(dtype))).clone().requires_grad_(),
            W.to(torch_type(dtype)).clone().requires_grad_(),
        )
        y = ct.max_pool2d(ct.relu(ct.conv2d(x, w)), 2)
        y.sum().backward()
        for tensor in (x, w, y, x.grad, w.grad):
            assert tensor.untyped_storage().resizable()
        out = torch.empty_like(y)
        assert convx.relu(y.detach(), out=out) is out
        assert out.untyped_storage().resizable()


def freed(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


def test_memory_that_was_freed():
    """A tensor with freed memory (a shard that was not gathered again) raises, as in PyTorch's convolution."""
    x = X.clone().requires_grad_()
    y = ct.relu(x)
    calls = {
        "input": lambda: ct.conv2d(freed(X.clone()), W),
        "weight": lambda: ct.conv2d(X, freed(W.clone())),
        "pool": lambda: ct.max_pool2d(freed(X.clone()), 2),
        "out": lambda: convx.relu(X, out=freed(X.clone())),
        "kept": lambda: torch.autograd.grad(y, x, torch.ones_like(freed(y.data))),
    }
    for call in calls.values():
        with pytest.raises(RuntimeError, match=r"has no memory: its storage was freed"):
            call()


def test_memory_ends_with_the_tensor():
    y = ct.conv2d(X, W)
    gone = weakref.ref(y)
    storage = y.untyped_storage()
    values = y.clone()
    del y
    gc.collect()
    assert gone() is None
    assert torch.equal(torch.empty(0).set_(storage, 0, values.shape, values.stride()), values)


def test_large_results():
    """Results beyond 4 MiB request huge pages; every element is written, none beyond."""
    x = torch.ones(1, 1, 1100, 1100)
    y = ct.conv2d(x, torch.ones(2, 1, 1, 1))
    assert torch.equal(y, torch.ones(1, 2, 1100, 1100))


@every_form
def test_without_elements(form):
    x, w = FORMS[form](X[:0]).clone().requires_grad_(), W.clone().requires_grad_()
    y = ct.max_pool2d(ct.relu(ct.conv2d(x, w, B)), 2)
    assert y.shape == (0, 4, 3, 3)
    y.sum().backward()
    assert torch.equal(w.grad, torch.zeros_like(W))


def test_a_default_device_or_dtype_of_another_kind():
    with torch.device("meta"):
        assert ct.conv2d(X, W).device.type == "cpu"
    torch.set_default_dtype(torch.float64)
    try:
        assert ct.conv2d(X, W).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_threads_have_allocators_of_their_own():
    """NumPy arrays beside tensors, in threads that switch in the middle of operations."""
    from concurrent.futures import ThreadPoolExecutor

    def tensors(_):
        return [ct.conv2d(X, W) for _ in range(100)]

    def arrays(_):
        return [convx.conv2d(X.numpy(), W.numpy()) for _ in range(100)]

    with ThreadPoolExecutor(4) as pool:
        mixed = [pool.submit(run, None) for run in (tensors, arrays, tensors, arrays)]
        kinds = [{type(each).__name__ for each in job.result()} for job in mixed]
    assert kinds == [{"Tensor"}, {"ndarray"}, {"Tensor"}, {"ndarray"}]


def test_an_operation_inside_the_allocator():
    """A finalizer that runs in the middle of an operation may call convx with arrays."""
    from convx._cpu import operations_with

    inner = []

    def allocate(shape, dtype):
        inner.append(convx.relu(X.numpy()))
        return torch.empty(shape)

    found = operations_with(allocate).relu(X.numpy(), False, None)
    assert isinstance(found.base, torch.Tensor)
    assert inner[0].base is None


def test_an_allocator_that_fails():
    from convx._cpu import operations_with

    def allocate(shape, dtype):
        raise MemoryError(f"no {shape}")

    with pytest.raises(MemoryError, match=r"no \(2, 3, 8, 9\)"):
        operations_with(allocate).relu(X.numpy(), False, None)
    assert isinstance(convx.relu(X.numpy()), type(X.numpy()))
