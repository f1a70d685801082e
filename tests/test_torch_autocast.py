"""Autocast on the CPU: the dtypes that PyTorch returns, computed in float32 and rounded once at the end."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import convx  # noqa: E402
import convx.torch as ct  # noqa: E402
from torch_cases import F, whole  # noqa: E402

X, W, B = whole((2, 3, 8, 9)), whole((4, 3, 3, 3), 1), whole((4,), 2)

# Each operation of convx.torch, and the same in PyTorch.
OPERATIONS = {
    "conv2d": (ct.conv2d, F.conv2d),
    "conv2d with ReLU": (
        lambda x, w, b: ct.conv2d(x, w, b, activation="relu"),
        lambda x, w, b: torch.relu(F.conv2d(x, w, b)),
    ),
    "conv_transpose2d": (
        lambda x, w, b: ct.conv_transpose2d(x, w.transpose(0, 1), b),
        lambda x, w, b: F.conv_transpose2d(x, w.transpose(0, 1), b),
    ),
    "relu": (lambda x, w, b: ct.relu(x), lambda x, w, b: torch.relu(x)),
    "max_pool2d": (lambda x, w, b: ct.max_pool2d(x, 2), lambda x, w, b: F.max_pool2d(x, 2)),
    "max_pool2d with indices": (
        lambda x, w, b: ct.max_pool2d(x, 2, return_indices=True)[0],
        lambda x, w, b: F.max_pool2d(x, 2, return_indices=True)[0],
    ),
    "conv2d_relu_max_pool2d": (
        lambda x, w, b: ct.conv2d_relu_max_pool2d(x, w, b, pool_kernel_size=2),
        lambda x, w, b: F.max_pool2d(torch.relu(F.conv2d(x, w, b)), 2),
    ),
}
every_operation = pytest.mark.parametrize("name", OPERATIONS)
every_kind = pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])


@every_operation
@every_kind
class TestAsInPyTorch:
    @pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("form", ["whole", "unbatched", "channels_last", "empty"])
    def test_values_and_dtypes(self, name, kind, given, form):
        ours, theirs = OPERATIONS[name]
        x = X.to(given)
        if form == "unbatched":
            x = x[0]
        elif form == "channels_last":
            x = x.to(memory_format=torch.channels_last)
        elif form == "empty":
            x = x[:0]
        with torch.autocast("cpu", kind):
            found, expected = ours(x, W, B), theirs(x, W, B)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert torch.equal(found, theirs(x.float(), W, B).to(found.dtype))

    @pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16])
    def test_gradients_have_the_dtypes_of_what_they_belong_to(self, name, kind, given):
        gradients = []
        for run in OPERATIONS[name]:
            x, w, b = (t.clone().to(d).requires_grad_() for t, d in ((X, given), (W, torch.float32), (B, kind)))
            with torch.autocast("cpu", kind):
                y = run(x, w, b)
                loss = y.float().sum()
            loss.backward()
            gradients.append((x.grad, w.grad, b.grad))
        for one, other in zip(*gradients, strict=True):
            if other is None:
                assert one is None
                continue
            assert one.dtype == other.dtype
            torch.testing.assert_close(one.float(), other.float(), rtol=0.02, atol=0.02)

    def test_float64_stays(self, name, kind):
        ours, theirs = OPERATIONS[name]
        arguments = X.double(), W.double(), B.double()
        with torch.autocast("cpu", kind):
            found, expected = ours(*arguments), theirs(*arguments)
        assert found.dtype == expected.dtype == torch.float64
        assert torch.equal(found, expected)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_compiled(self, name, kind):
        torch._dynamo.reset()
        ours, _ = OPERATIONS[name]
        block = torch.compile(ours, fullgraph=True, backend="aot_eager")
        for x in (X, X.to(kind)):
            with torch.autocast("cpu", kind):
                found, expected = block(x, W, B), ours(x, W, B)
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)
        assert block(X, W, B).dtype == torch.float32, "compiled once more where autocast is off"

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_transforms(self, name, kind):
        ours, _ = OPERATIONS[name]
        x = torch.stack([X, -X])
        with torch.autocast("cpu", kind):
            found = torch.vmap(ours, (0, None, None))(x, W, B)
            expected = torch.stack([ours(each, W, B) for each in x])
            tangent = torch.func.jvp(lambda each: ours(each, W, B), (X,), (X,))[1]
        assert found.dtype == expected.dtype == tangent.dtype
        assert torch.equal(found, expected)


def test_one_rounding():
    """Partial sums that 16 bits cannot hold: 1024 products of 1 and one of 1/4."""
    x, w = torch.ones(1, 1025, 1, 1), torch.ones(1, 1025, 1, 1)
    x[0, 0] = 0.25
    with torch.autocast("cpu"):
        assert convx.conv2d(x, w).item() == 1024  # 1024.25 as bfloat16
        assert convx.conv2d(x, w).dtype == torch.bfloat16


def test_into_a_buffer_of_16_bits():
    """Code that stores 16-bit results of autocast works as with PyTorch's convolution."""
    buffer = torch.zeros(4, 4, 6, 7, dtype=torch.bfloat16)
    with torch.autocast("cpu"):
        buffer.index_copy_(0, torch.tensor([3, 1]), ct.conv2d(X, W, B))
    assert torch.equal(buffer[[3, 1]].float(), F.conv2d(X, W, B).bfloat16().float())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
class TestOut:
    """`out` may have the dtype of the result, or float32."""

    def test_written(self, layout, kind):
        order = (0, 2, 3, 1) if layout == "NHWC" else (0, 1, 2, 3)
        x = X.permute(order)
        calls = {
            "conv2d": lambda x, out=None: convx.conv2d(x, W, B, layout=layout, out=out),
            "conv_transpose2d": lambda x, out=None: convx.conv_transpose2d(
                x, W.transpose(0, 1).contiguous(), B, layout=layout, out=out
            ),
            "relu": lambda x, out=None: convx.relu(x, out=out),
            "relu_backward": lambda x, out=None: convx.relu_backward(x, x, out=out),
        }
        for name, call in calls.items():
            expected = call(x)
            out = torch.full(expected.shape, 7, dtype=kind)
            version = out._version
            with torch.autocast("cpu"):
                assert call(x.bfloat16(), out=out) is out, name
            assert out._version > version
            assert torch.equal(out, expected.to(kind)), name

    def test_mask(self, kind):
        out = torch.zeros(X.shape, dtype=kind)
        with torch.autocast("cpu"):
            found, mask = convx.relu(X.bfloat16(), return_mask=True, out=out)
        assert found is out
        assert torch.equal(out, torch.relu(X).to(kind))
        assert torch.equal(mask, convx.relu(X, return_mask=True)[1])

    def test_of_another_shape(self, kind):
        with torch.autocast("cpu"), pytest.raises(convx.ShapeError, match="out has shape"):
            convx.relu(X.bfloat16(), out=torch.zeros(1, 3, 8, 9, dtype=kind))


def test_errors_name_what_was_given():
    with torch.autocast("cpu"):
        with pytest.raises(TypeError, match="weight has dtype float32, expected float64"):
            ct.conv2d(X.double(), W)
        with pytest.raises(TypeError, match="input has dtype int64"):
            ct.relu(X.long())
        with pytest.raises(TypeError, match=r"expected a torch\.Tensor"):
            ct.conv2d(X, W.numpy())


def test_a_converted_network():
    """The dtypes between the layers are those of the model before convert."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3),
        torch.nn.MaxPool2d(2),
        torch.nn.ConvTranspose2d(8, 4, 2, 2),
        torch.nn.ReLU6(),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 6 * 6, 5),
    )
    converted = ct.convert(model, inplace=False, verbose=False)
    x = torch.randn(2, 3, 8, 8)
    results = []
    for each in (model, converted):
        outputs = []
        hooks = [layer.register_forward_hook(lambda *call, to=outputs: to.append(call[-1].dtype)) for layer in each]
        with torch.autocast("cpu"):
            y = each(x)
        for hook in hooks:
            hook.remove()
        y.float().square().sum().backward()
        results.append((y, outputs, [parameter.grad.clone() for parameter in each.parameters()]))
        each.zero_grad()
    (y, dtypes, gradients), (found, of_found, found_gradients) = results
    assert of_found == dtypes
    torch.testing.assert_close(found, y, rtol=0.05, atol=0.05)
    for one, other in zip(found_gradients, gradients, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.1)
