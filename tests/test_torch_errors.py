"""Unsupported tensors, and mixtures of libraries, devices and dtypes."""

from __future__ import annotations

import dataclasses

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


class Subclass(torch.Tensor):
    pass


class OnDevice:
    """An array of another library, on a CUDA device by its interface."""

    shape, dtype = (4, 3, 3, 3), np.dtype("float32")
    __cuda_array_interface__ = dict(shape=shape, typestr="<f4", data=(4096, False), version=3)  # noqa: RUF012


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


@every_call
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested(name):
    parts = list(X[:, :, :, :8].unbind())
    with pytest.raises(TypeError, match=rf"^{name}: \w+ is a nested tensor, expected one of a single shape"):
        CALLS[name](torch.nested.nested_tensor(parts))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantized():
    image = torch.quantize_per_tensor(X, 0.1, 0, torch.quint8)
    for name in ("relu", "max_pool2d", "relu_backward"):
        with pytest.raises(TypeError, match=rf"^{name}: \w+ has dtype quint8, expected float32 or float64$"):
            CALLS[name](image)
    with pytest.raises(TypeError, match=r"^conv2d: input has dtype quint8, expected float32 or float64$"):
        ct.conv2d(image, W)
    with pytest.raises(TypeError, match=r"^conv2d: weight has dtype quint8, expected float32 or float64$"):
        ct.conv2d(X, image)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda: ct.conv2d(X, W.numpy()), TypeError, "conv2d: weight is a numpy.ndarray, expected a torch.Tensor"),
        (lambda: ct.conv2d(X.numpy(), W), TypeError, "conv2d: input is a numpy.ndarray, expected a torch.Tensor"),
        (lambda: convx.conv2d(X, W.numpy()), TypeError, "conv2d: weight is a numpy.ndarray"),
        (lambda: convx.conv2d(X.numpy(), W), TypeError, "conv2d: weight is a torch.Tensor"),
        (lambda: convx.conv2d(X, W, out=np.zeros((2, 4, 6, 7))), TypeError, "conv2d: out is a numpy.ndarray"),
        (lambda: convx.conv2d(X[0], W, out=np.zeros((4, 6, 7))), TypeError, "conv2d: out is a numpy.ndarray"),
        (lambda: ct.conv2d(X, W, [1.0] * 4), TypeError, "conv2d: bias is a list, expected a torch.Tensor"),
        (lambda: ct.conv2d(X, None), TypeError, "conv2d: weight is a NoneType"),
        (lambda: ct.relu(np.ones(3)), TypeError, "relu: input is a numpy.ndarray"),
        (lambda: convx.relu_backward(X, X.numpy()), TypeError, "relu_backward: output is a numpy.ndarray"),
        (
            lambda: convx.max_pool2d_backward(X, np.zeros(X.shape, np.uint8), (2, 3, 16, 18), 2),
            TypeError,
            "max_pool2d_backward: indices_or_codes is a numpy.ndarray",
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
            "conv_transpose2d: output_padding is 2 in height, expected 0 to 1",
        ),
        (
            lambda: ct.conv_transpose2d(X, W.transpose(0, 1), padding=9),
            convx.ShapeError,
            r"conv_transpose2d: padding is \(9, 9\) in height, expected at most 9 in all",
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
        (
            lambda: convx.max_pool2d_backward(X, X.long(), None, 2),
            TypeError,
            "max_pool2d_backward: input_shape is a NoneType, expected a tuple of integers",
        ),
        (
            lambda: convx.max_pool2d_backward(X, X.int(), (2, 3, 16, 18), 2),
            TypeError,
            r"max_pool2d_backward: indices_or_codes has dtype int32, expected int64 \(indices\) or uint8 \(codes\)",
        ),
        (
            lambda: convx.max_pool2d_backward(X, X.long().to_sparse(), (2, 3, 16, 18), 2),
            TypeError,
            r"max_pool2d_backward: indices_or_codes has layout torch\.sparse_coo",
        ),
        (lambda: convx.prepare_weight(W, X.shape), TypeError, r"prepare_weight: weight is a torch\.Tensor"),
        (
            lambda: convx.conv2d(X, convx.prepare_weight(W.numpy(), X.shape), B.numpy()),
            TypeError,
            "conv2d: bias is a numpy.ndarray, expected a torch.Tensor",
        ),
        (
            lambda: convx.nn.Conv2d(3, 4, 3).load_state_dict(torch.nn.Conv2d(3, 4, 3).state_dict()),
            TypeError,
            "load_state_dict: 'weight' is Tensor, expected an array of NumPy or CuPy",
        ),
        (lambda: convx.nn.Linear(9, 4)(X), TypeError, "Linear: input is Tensor, expected an array of NumPy or CuPy"),
        (
            lambda: convx.optim.SGD([torch.nn.Parameter(W)], 0.1),
            TypeError,
            r"SGD: parameter 0 is a torch\.nn\.parameter\.Parameter, expected a convx\.nn\.Parameter",
        ),
    ],
)  # fmt: skip
def test_message(function, error, message):
    with pytest.raises(error, match=message):
        function()


UNRECORDED = {
    "conv2d_backward": lambda g, x, w, out=None: convx.conv2d_backward(g, x, w, per_sample=True),
    "conv2d_grad_norms": lambda g, x, w, out=None: convx.conv2d_grad_norms(g, x, (4, 3, 3, 3)),
    "conv_transpose2d": lambda g, x, w, out=None: convx.conv_transpose2d(
        g, w, out=torch.zeros(2, 3, 8, 10) if out is None else out
    ),
    "relu": lambda g, x, w, out=None: convx.relu(g, return_mask=True, out=out),
    "relu_backward": lambda g, x, w, out=None: convx.relu_backward(g, MASK, out=out),
}
G = whole((2, 4, 6, 8), 3)
MASK = convx.relu(G, return_mask=True)[1]


@pytest.mark.parametrize("name", UNRECORDED)
class TestUnrecorded:
    """Operations without a rule in autograd check their arguments as well."""

    arguments = (G, whole((2, 3, 8, 10)), W)

    def mixed(self, name, change, *positions):
        """The arguments of the operation, with some replaced."""
        has = dict(conv2d_backward=(0, 1, 2), conv2d_grad_norms=(0, 1), conv_transpose2d=(0, 2)).get(name, (0,))
        some = [i for i in has if i in positions]
        return [[change(t) if i == j else t for j, t in enumerate(self.arguments)] for i in some]

    @pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.int32, torch.complex64])
    def test_dtypes(self, name, kind):
        for arguments in self.mixed(name, lambda t: t.to(kind), 0, 1, 2):
            with pytest.raises(TypeError, match=rf"^{name}: \w+ has dtype {str(kind)[6:]}, expected float32"):
                UNRECORDED[name](*arguments)
        for arguments in self.mixed(name, lambda t: t.double(), 1, 2):
            with pytest.raises(TypeError, match=rf"^{name}: \w+ has dtype float64, expected float32 as \w+ has"):
                UNRECORDED[name](*arguments)

    def test_places(self, name):
        for change, words in (
            (lambda t: t.to("meta"), "on device meta"),
            (lambda t: t.to_sparse(), r"of layout torch\.sparse_coo"),
            (lambda t: t.as_subclass(Subclass), r"a test_torch_errors\.Subclass"),
        ):
            for arguments in self.mixed(name, change, 0, 1, 2):
                with pytest.raises(TypeError, match=rf"^{name}: \w+ is {words}, expected a dense torch\.Tensor with"):
                    UNRECORDED[name](*arguments)

    def test_gradients_would_be_lost(self, name):
        for arguments in self.mixed(name, lambda t: t.clone().requires_grad_(), 0, 1, 2):
            with pytest.raises(TypeError, match=rf"^{name}: (\w+) requires grad, .* not recorded .* pass \1\.detach"):
                UNRECORDED[name](*arguments)

    def test_transforms(self, name):
        arguments = [t[None] for t in self.arguments]
        with pytest.raises(TypeError, match=rf"^{name}: this operation is neither traced nor transformed"):
            torch.vmap(lambda *each: UNRECORDED[name](*each))(*arguments)

    def test_autocast(self, name):
        """Computed in float32 and rounded to the arguments' dtype; norms stay float64, and `out` keeps its dtype."""
        with torch.autocast("cpu"):
            found = UNRECORDED[name](*(t.bfloat16() for t in self.arguments))
        expected = UNRECORDED[name](*self.arguments)
        for one, other in zip(found, expected, strict=True):
            rounded = other.dtype == torch.float32 and name != "conv_transpose2d"
            assert one.dtype == (torch.bfloat16 if rounded else other.dtype)
            assert torch.equal(one, other.to(one.dtype))

    def test_negations_still_to_be_done(self, name):
        found = UNRECORDED[name](*(torch._neg_view(t) for t in self.arguments))
        expected = UNRECORDED[name](*(-t for t in self.arguments))
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("input", lambda: convx.conv2d_backward(G, np.zeros((2, 3, 8, 10), np.float32), W, per_sample=True)),
        ("weight", lambda: convx.conv2d_backward(G, torch.zeros(2, 3, 8, 10), W.numpy(), per_sample=True)),
        ("input", lambda: convx.conv2d_grad_norms(G, np.zeros((2, 3, 8, 10), np.float32), W.shape)),
        ("weight", lambda: convx.conv_transpose2d(G, W.numpy(), out=torch.zeros(2, 3, 8, 10))),
        ("bias", lambda: convx.conv_transpose2d(G, W, np.zeros(3, np.float32), out=torch.zeros(2, 3, 8, 10))),
        ("out", lambda: convx.conv_transpose2d(G, W, out=np.zeros((2, 3, 8, 10), np.float32))),
        ("out", lambda: convx.relu(G, return_mask=True, out=np.zeros(G.shape, np.float32))),
        ("out", lambda: convx.relu_backward(G, MASK, out=np.zeros(G.shape, np.float32))),
        ("output", lambda: convx.relu_backward(G, MASK.numpy())),
    ],
)
def test_arrays_among_tensors(argument, call):
    """Such arrays are never taken for tensors, on any dispatch path."""
    with pytest.raises(TypeError, match=rf"^\w+: {argument} is a numpy\.ndarray, expected a torch\.Tensor"):
        call()


class TestSaved:
    """The saved arrays of the fused operation come back from the user, perhaps on another device."""

    @pytest.mark.parametrize("recorded", [False, True])
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda t: t.numpy(), TypeError, r"is a numpy\.ndarray, expected a torch\.Tensor of uint8 \(codes\)"),
            (lambda t: t.long(), TypeError, r"has dtype int64, expected uint8 \(codes\)"),
            (lambda t: t.to("meta"), convx.ShapeError, "is on device meta, expected cpu as grad_output is"),
            (lambda t: t[0], convx.ShapeError, "has 3 dimensions, expected 4"),
            (lambda t: t[:, :1], convx.ShapeError, r"has shape \(2, 1, 3, 3\), expected \(2, 4, 3, 3\)"),
        ],
    )
    def test_codes(self, change, error, message, recorded):
        y, saved = convx.conv2d_relu_max_pool2d(X, W, pool_kernel_size=2)
        saved = dataclasses.replace(saved, codes=change(saved.codes))
        with pytest.raises(error, match=f"^conv2d_relu_max_pool2d_backward: codes {message}"):
            convx.conv2d_relu_max_pool2d_backward(y.requires_grad_(recorded), saved)

    def test_gradient_of_another_kind(self):
        y, saved = convx.conv2d_relu_max_pool2d(X, W, pool_kernel_size=2)
        for grad, error, message in (
            (y.numpy(), TypeError, r"input is a torch\.Tensor, expected a numpy\.ndarray"),
            (y.double(), TypeError, "input has dtype float32, expected float64 as grad_output has"),
            (y.to("meta"), convx.ShapeError, "input is on device cpu, expected meta"),
        ):
            with pytest.raises(error, match=f"^conv2d_relu_max_pool2d_backward: {message}"):
                convx.conv2d_relu_max_pool2d_backward(grad, saved)


@pytest.mark.parametrize("kind", ["jax", "on a device"])
def test_arrays_of_other_libraries(kind):
    """The first argument determines the library, for all functions."""
    if kind == "jax":
        numpy = pytest.importorskip("jax.numpy")
        other, name = numpy.zeros((4, 3, 3, 3)), r"jaxlib\.\S+"
    else:
        other, name = OnDevice(), r"test_torch_errors\.OnDevice"
    saved = convx.conv2d_relu_max_pool2d(X, W, pool_kernel_size=2)[1]
    for argument, call in [
        ("weight", lambda: ct.conv2d(X, other)),
        ("weight", lambda: convx.conv2d(X, other)),
        ("bias", lambda: convx.conv2d(X, W, other)),
        ("out", lambda: convx.conv2d(X, W, out=other)),
        ("weight", lambda: ct.conv_transpose2d(X, other)),
        ("weight", lambda: ct.conv2d_relu_max_pool2d(X, other, pool_kernel_size=2)),
        ("input", lambda: ct.conv2d(other, W)),
        ("input", lambda: ct.relu(other)),
        ("input", lambda: ct.max_pool2d(other, 2)),
        ("output", lambda: convx.relu_backward(X, other)),
        ("input", lambda: convx.conv2d_backward(X, other, W)),
        ("indices_or_codes", lambda: convx.max_pool2d_backward(X, other, (2, 3, 16, 18), 2)),
        (
            "codes",
            lambda: convx.conv2d_relu_max_pool2d_backward(whole((2, 4, 3, 3)), dataclasses.replace(saved, codes=other)),
        ),
    ]:
        with pytest.raises(TypeError, match=rf"^\w+: {argument} is a {name}, expected a torch\.Tensor"):
            call()
    with pytest.raises(TypeError, match=rf"^conv2d: input is a {name}, expected a numpy\.ndarray"):
        convx.conv2d(other, W)


def test_the_same_words_in_every_way():
    """Bad options have one message, where the compiled module reads them and where Python resolves them."""
    for options in (dict(stride=(1, 2, 3)), dict(padding="full"), dict(padding=(1, 2, 3)), dict(dilation=[])):
        (name,) = options
        for image in (X, X.to("meta")):
            with pytest.raises(convx.ShapeError, match=f"^conv2d: {name} is .*, expected "):
                ct.conv2d(image, W.to(image.device), **options)
    for image in (X, X.to("meta")):
        with pytest.raises(TypeError, match=r"^conv2d: stride is (a float|1\.5), expected an integer or a pair"):
            ct.conv2d(image, W.to(image.device), stride=1.5)


class TestOut:
    def test_recorded(self):
        """A call that would lose a gradient raises."""
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
        """A leaf that requires grad may be written only under no_grad, as in PyTorch."""
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
        for out, found in (
            (zeros.to("meta"), "on device meta"),
            (zeros.to_sparse(), r"of layout torch\.sparse_coo"),
            (torch._neg_view(zeros), "the view of a negation"),
            (zeros.as_subclass(Subclass), r"a test_torch_errors\.Subclass"),
        ):
            with pytest.raises(
                TypeError, match=rf"conv2d: out is {found}, expected a dense torch\.Tensor on device cpu"
            ):
                convx.conv2d(X, W, out=out)
        with pytest.raises(TypeError, match="conv2d: out has dtype float64"):
            convx.conv2d(X, W, out=torch.zeros(2, 4, 6, 7, dtype=torch.float64))
        memory = torch.zeros(4000)
        x, out = memory[:432].view(2, 3, 8, 9), memory[200:536].view(2, 4, 6, 7)
        with pytest.raises(convx.ShapeError, match="out"):
            convx.conv2d(x, W, out=out)

    def test_version(self):
        """Autograd notices writes to its saved tensors."""
        y = X.clone().requires_grad_() ** 2
        kept = y.detach()
        z = (y * y).sum()
        convx.relu(kept, out=kept)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.backward()


def test_what_has_no_gradient():
    """Indices are integers; inference tensors cannot be saved for a backward pass."""
    chosen = ct.max_pool2d(X.clone().requires_grad_(), 2, return_indices=True)[1]
    with pytest.raises(RuntimeError, match="only Tensors of floating point dtype can require gradients"):
        chosen.requires_grad_()
    with pytest.raises(RuntimeError, match="does not require grad"):
        chosen.sum().backward()
    with torch.inference_mode():
        image = X * 1
        assert torch.equal(convx.relu(image, out=torch.zeros(X.shape)), torch.relu(X))
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        ct.conv2d(image, W.clone().requires_grad_())


def test_lost_graph():
    """A gradient that autograd cannot pass on raises, as elsewhere in PyTorch."""
    x = X.clone().requires_grad_()
    with torch.no_grad():
        y = ct.conv2d(x, W)
    with pytest.raises(RuntimeError, match="does not require grad"):
        y.sum().backward()
