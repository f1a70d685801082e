"""Tensors that convx does not work on, mixtures of them, and autocast."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import convx  # noqa: E402
import convx.torch as ct  # noqa: E402
from torch_cases import F, whole  # noqa: E402

X, W, B = whole((2, 3, 8, 9)), whole((4, 3, 3, 3), 1), whole((4,), 2)

# Every function, called with an input of any kind.
CALLS = {
    "conv2d": lambda x: ct.conv2d(x, W.to(x)),
    "conv_transpose2d": lambda x: ct.conv_transpose2d(x, W.transpose(0, 1).to(x)),
    "relu": ct.relu,
    "max_pool2d": lambda x: ct.max_pool2d(x, 2),
    "conv2d_relu_max_pool2d": lambda x: ct.conv2d_relu_max_pool2d(x, W.to(x), pool_kernel_size=2),
    "conv2d_backward": lambda x: convx.conv2d_backward(x, X.to(x), W.to(x)),
    "relu_backward": lambda x: convx.relu_backward(x, x),
    "max_pool2d_backward": lambda x: convx.max_pool2d_backward(x, x, (2, 3, 16, 18), 2),
}
every_call = pytest.mark.parametrize("name", CALLS)


@every_call
@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_not_floating(name, kind):
    first = "grad_output" if "backward" in name else "input"
    expected = f"^{name}: {first} has dtype {str(kind)[6:]}, expected float32 or float64$"
    with pytest.raises(TypeError, match=expected):
        CALLS[name](X.to(kind))


@every_call
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_16_bits_on_the_cpu(name, kind):
    with pytest.raises(TypeError, match=f"^{name}: .* has dtype {str(kind)[6:]}, .* on the CPU: pass tensor.float()"):
        CALLS[name](X.to(kind))


@every_call
def test_sparse(name):
    with pytest.raises(TypeError, match=rf"^{name}: \w+ has layout torch\.sparse_coo, expected torch\.strided"):
        CALLS[name](X.to_sparse())


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda: ct.conv2d(X, W.numpy()), TypeError, "conv2d: weight is a numpy.ndarray, expected a torch.Tensor"),
        (lambda: ct.conv2d(X.numpy(), W), TypeError, "conv2d: input is a numpy.ndarray, expected a torch.Tensor"),
        (lambda: convx.conv2d(X, W.numpy()), TypeError, "conv2d: weight is a numpy.ndarray"),
        (lambda: convx.conv2d(X.numpy(), W), TypeError, "conv2d: weight is a torch.Tensor"),
        (lambda: convx.conv2d(X, W, out=np.zeros((2, 4, 6, 7))), TypeError, "conv2d: out is a numpy.ndarray"),
        (lambda: ct.conv2d(X, W, [1.0] * 4), TypeError, "conv2d: bias is a list, expected a torch.Tensor"),
        (lambda: ct.conv2d(X, None), TypeError, "conv2d: weight is a NoneType"),
        (lambda: ct.relu(np.ones(3)), TypeError, "relu: input is a numpy.ndarray"),
        (lambda: convx.relu_backward(X, X.numpy()), TypeError, "relu_backward: output is a numpy.ndarray"),
        (
            lambda: convx.max_pool2d_backward(X, np.zeros(X.shape, np.uint8), (2, 3, 16, 18), 2),
            TypeError,
            "max_pool2d_backward: indices_or_codes has type ndarray",
        ),
        (lambda: ct.conv2d(X, W.double()), TypeError, "conv2d: weight has dtype float64, expected float32"),
        (lambda: ct.conv2d(X, W, B.double()), TypeError, "conv2d: bias has dtype float64"),
        (lambda: ct.conv2d(X, W.long()), TypeError, "conv2d: weight has dtype int64"),
        (lambda: ct.conv2d(X, W.to_sparse()), TypeError, "conv2d: weight has layout torch.sparse_coo"),
        (lambda: ct.conv2d(X, W.to("meta")), convx.ShapeError, "conv2d: weight is on device meta, expected cpu"),
        (lambda: ct.conv2d(X.to("meta"), W), convx.ShapeError, "conv2d: weight is on device cpu, expected meta"),
        (lambda: convx.relu_backward(X, X.to("meta")), convx.ShapeError, "relu_backward: output is on device meta"),
        (
            lambda: convx.max_pool2d_backward(X, X.to("meta", torch.uint8), (2, 3, 16, 18), 2),
            convx.ShapeError,
            "max_pool2d_backward: indices_or_codes is on device meta",
        ),
        (lambda: ct.conv2d(X[0, 0], W), convx.ShapeError, "conv2d: input has 2 dimensions, expected 4 or 3"),
        (lambda: ct.conv2d(X, W[0]), convx.ShapeError, "conv2d: weight has 3 dimensions, expected 4"),
        (lambda: ct.conv2d(X, W[:, :2]), convx.ShapeError, "conv2d: weight has 2 input channels per group"),
        (lambda: ct.conv2d(X, W, stride="2"), TypeError, "conv2d: stride is a str, expected an integer"),
        (lambda: ct.conv2d(X[0], W, activation="gelu"), convx.ShapeError, "conv2d: activation is 'gelu'"),
        (lambda: ct.conv2d(X, W, precision="half"), convx.ShapeError, "conv2d: precision is 'half'"),
        (lambda: ct.conv_transpose2d(X, W), convx.ShapeError, "conv_transpose2d: weight has 4 input channels"),
        (
            lambda: ct.conv_transpose2d(X, W.transpose(0, 1), stride=2, output_padding=2),
            convx.ShapeError,
            r"conv_transpose2d: output_padding is \(2, 2\), expected numbers from 0",
        ),
        (
            lambda: ct.conv_transpose2d(X, W.transpose(0, 1), padding=9),
            convx.ShapeError,
            "conv_transpose2d: the output has -8 rows or columns",
        ),
        (
            lambda: ct.conv_transpose2d(X, W.transpose(0, 1), B[:3]),
            convx.ShapeError,
            r"conv_transpose2d: bias has shape \(3,\), expected \(4,\)",
        ),
        (lambda: ct.conv_transpose2d(X, W, precision="half"), convx.ShapeError, "conv_transpose2d: precision"),
        (lambda: ct.max_pool2d(X, 9), convx.ShapeError, "max_pool2d: the window spans 9 cells in height"),
        (lambda: ct.max_pool2d(X, "2"), TypeError, "max_pool2d: kernel_size is"),
        (lambda: convx.conv2d(X, W, layout="HWCN"), convx.ShapeError, "conv2d: layout is 'HWCN'"),
        (
            lambda: convx.max_pool2d(X, 2, return_indices=True, return_codes=True),
            convx.ShapeError,
            "return_indices and return_codes are both True",
        ),
        (
            lambda: convx.max_pool2d_backward(X, X.long() + 1000, (2, 3, 16, 18), 2),
            convx.ShapeError,
            "an index outside the plane",
        ),
        (lambda: convx.conv2d_backward(X[0], X, W), convx.ShapeError, "conv2d_backward: grad_output has 3 dimensions"),
        (
            lambda: convx.max_pool2d_backward(X, X.long(), (3, 16, 18), 2),
            convx.ShapeError,
            "max_pool2d_backward: input_shape has 3 dimensions, expected 4",
        ),
    ],
)  # fmt: skip
def test_message(function, error, message):
    with pytest.raises(error, match=message):
        function()


def test_the_same_words_in_every_way():
    """Options that are wrong are named alike where the compiled module reads them and where Python settles them."""
    for options in (dict(stride=(1, 2, 3)), dict(padding="full"), dict(padding=(1, 2, 3)), dict(dilation=[1])):
        (name,) = options
        for image in (X, X.to("meta")):
            with pytest.raises(convx.ShapeError, match=f"^conv2d: {name} is .*, expected "):
                ct.conv2d(image, W.to(image.device), **options)
    for image in (X, X.to("meta")):
        with pytest.raises(TypeError, match=r"^conv2d: stride is (a float|1\.5), expected an integer or a pair"):
            ct.conv2d(image, W.to(image.device), stride=1.5)


class TestOut:
    def test_recorded(self):
        """No gradient is lost in silence."""
        x = X.clone().requires_grad_()
        for call in (
            lambda: convx.conv2d(x, W, out=torch.zeros(2, 4, 6, 7)),
            lambda: convx.relu(x, out=torch.zeros_like(X)),
            lambda: convx.relu_backward(x, X, out=torch.zeros_like(X)),
        ):
            with pytest.raises(TypeError, match="out is given, expected None where the call is recorded by autograd"):
                call()
            with torch.no_grad():
                call()

    def test_leaves(self):
        """A leaf that requires grad may be written under no_grad alone, as in PyTorch."""
        out = torch.zeros(2, 4, 6, 7, requires_grad=True)
        with pytest.raises(TypeError, match="out requires grad"):
            convx.conv2d(X, W, out=out)
        with torch.no_grad():
            convx.conv2d(X, W, out=out)
        assert torch.equal(out.detach(), F.conv2d(X, W))

    def test_shapes_and_overlaps(self):
        with pytest.raises(convx.ShapeError, match="conv2d: out has shape"):
            convx.conv2d(X, W, out=torch.zeros(2, 4, 6, 6))
        zeros = torch.zeros(2, 4, 6, 7)
        for out in (zeros.to("meta"), zeros.to_sparse(), torch._neg_view(zeros)):
            with pytest.raises(TypeError, match=r"out is on device .*, layout .*, expected a dense one on cpu"):
                convx.conv2d(X, W, out=out)
        with pytest.raises(TypeError, match="conv2d: out has dtype float64"):
            convx.conv2d(X, W, out=torch.zeros(2, 4, 6, 7, dtype=torch.float64))
        memory = torch.zeros(4000)
        x, out = memory[:432].view(2, 3, 8, 9), memory[200:536].view(2, 4, 6, 7)
        with pytest.raises(convx.ShapeError, match="out"):
            convx.conv2d(x, W, out=out)

    def test_version(self):
        """Autograd notices that a tensor that it keeps was written."""
        y = X.clone().requires_grad_() ** 2
        kept = y.detach()
        z = (y * y).sum()
        convx.relu(kept, out=kept)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.backward()


def test_lost_graph():
    """A gradient that cannot flow raises, as everywhere in PyTorch."""
    x = X.clone().requires_grad_()
    with torch.no_grad():
        y = ct.conv2d(x, W)
    with pytest.raises(RuntimeError, match="does not require grad"):
        y.sum().backward()


class TestAutocast:
    """On the CPU everything runs in float32, whatever the dtype of autocast."""

    @pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
    def test_converts_to_float32(self, kind):
        x, w, b = X.to(kind).requires_grad_(), W.clone().requires_grad_(), B.clone().requires_grad_()
        with torch.autocast("cpu", kind):
            found = [
                ct.conv2d(x, w, b),
                ct.conv_transpose2d(x, w.transpose(0, 1), b),
                ct.relu(x),
                ct.max_pool2d(x, 2),
                *ct.max_pool2d(x, 2, return_indices=True)[:1],
                ct.conv2d_relu_max_pool2d(x, w, b, pool_kernel_size=2),
            ]
        expected = [
            F.conv2d(X, W, B),
            F.conv_transpose2d(X, W.transpose(0, 1), B),
            torch.relu(X),
            F.max_pool2d(X, 2),
            F.max_pool2d(X, 2),
            F.max_pool2d(torch.relu(F.conv2d(X, W, B)), 2),
        ]
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == torch.float32
            assert torch.equal(one, other)
        sum(each.sum() for each in found).backward()
        assert x.grad.dtype == kind
        assert w.grad.dtype == b.grad.dtype == torch.float32

    def test_between_linear_layers(self):
        """A network as autocast makes it: 16 bits into convx, float32 out of it, 16 bits in what follows."""
        weight = torch.ones(9, 9)
        with torch.autocast("cpu"):
            y = ct.relu(F.linear(X, weight))
            assert y.dtype == torch.float32
            assert F.linear(y, weight).dtype == torch.bfloat16

    def test_float64_stays(self):
        with torch.autocast("cpu"):
            assert ct.conv2d(X.double(), W.double()).dtype == torch.float64
            with pytest.raises(TypeError, match="weight has dtype float32, expected float64"):
                ct.conv2d(X.double(), W)
            with pytest.raises(TypeError, match="input has dtype int64"):
                ct.relu(X.long())

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_compiled(self):
        torch._dynamo.reset()

        @torch.compile(fullgraph=True, backend="aot_eager")
        def block(x, w):
            return ct.max_pool2d(ct.conv2d(x, w), 2)

        with torch.autocast("cpu"):
            y = block(X.bfloat16(), W)
        assert torch.equal(y, F.max_pool2d(F.conv2d(X, W), 2))
