"""convx.torch in programs that PyTorch traces: torch.compile, torch.export, fake and meta tensors; opcheck."""

from __future__ import annotations

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

import convx  # noqa: E402
import convx.torch as ct  # noqa: E402
from convx.torch import _library  # noqa: E402
from torch_cases import as_channels_last, assert_all_equal, gradients, normal, whole  # noqa: E402

OPS = torch.ops.convx

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # PyTorch's own, many of them
    pytest.mark.filterwarnings("ignore:.*isinstance.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # opcheck reads it
]


def network(x, w, b):
    y = ct.conv2d(x, w, b, padding="same", groups=2, activation="relu", padding_mode=("reflect", "zeros"))
    y = ct.max_pool2d(y, 3, 2, 1)
    y = ct.relu(ct.conv_transpose2d(y, w, b, stride=2, groups=2, output_padding=1))
    return ct.conv2d_relu_max_pool2d(y, w, b, groups=2, pool_kernel_size=2)


def leaves(n=2, h=8, w=9):
    return whole((n, 4, h, w)), whole((4, 2, 3, 3), 1), whole((4,), 2)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class TestCompile:
    @pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
    def test_same_bits(self, last):
        x, w, b = leaves()
        x = as_channels_last(x) if last else x
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        assert_all_equal(gradients(compiled, x, w, b), gradients(network, x, w, b))
        assert compiled(x, w, b).stride() == network(x, w, b).stride()

    @pytest.mark.parametrize(
        "function",
        [
            lambda x, w: convx.conv2d(x, w, groups=2, padding=1),
            lambda x, w: convx.conv_transpose2d(x, w, groups=2),
            lambda x, w: convx.relu(x) + w.sum(),
            lambda x, w: convx.max_pool2d(x, 2) + w.sum(),
            lambda x, w: convx.max_pool2d(x, 2, return_indices=True)[0] * w.sum(),
            lambda x, w: convx.conv2d_relu_max_pool2d(x, w, groups=2, pool_kernel_size=2)[0],
        ],
        ids=["conv2d", "conv_transpose2d", "relu", "max_pool2d", "indices", "fused"],
    )
    def test_functions_of_convx_on_tensors(self, function):
        x, w, _ = leaves()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert_all_equal(gradients(compiled, x, w), gradients(function, x, w))

    def test_inductor(self, monkeypatch, tmp_path):
        """Also where CI is set: there Inductor refuses operations with a decomposition, unless it was told of them."""
        monkeypatch.setenv("CI", "1")
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

        def block(x, w):
            return ct.max_pool2d(ct.conv2d(x * 2, w, padding=1, activation="relu") + 1, 2)

        x, w, _ = leaves()
        w = w.repeat(1, 2, 1, 1)
        compiled = torch.compile(block, fullgraph=True)
        assert_all_equal(gradients(compiled, x, w), gradients(block, x, w))

    def test_inductor_on_every_operation(self):
        """Whole programs, forward and backward: the kernels return the strides that Inductor expects."""
        compiled = torch.compile(network, fullgraph=True)
        for image in (leaves()[0], as_channels_last(leaves()[0])):
            tensors = (image, *leaves()[1:])
            assert_all_equal(gradients(compiled, *tensors), gradients(network, *tensors))

    def test_before_convx_torch_is_imported(self):
        """The compiled call itself imports it."""
        code = (
            "import torch, convx; run = torch.compile(convx.relu, fullgraph=True, backend='eager');"
            "print(hasattr(convx, 'torch'), run(torch.ones(3)).tolist(), hasattr(convx, 'torch'))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False [1.0, 1.0, 1.0] True"

    def test_any_size(self):
        """One program for images of all sizes."""
        programs = []

        def backend(graph, example):
            programs.append(graph)
            return graph

        compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=backend)
        for n, h, w in ((7, 8, 9), (3, 11, 13), (5, 12, 10)):
            assert torch.equal(compiled(*leaves(n, h, w)), network(*leaves(n, h, w)))
        assert len(programs) == 1

    def test_operations_of_the_graph(self):
        """Each kernel stays one operation, and none runs during tracing."""
        seen = []

        def backend(graph, example):
            seen.extend(str(node.target) for node in graph.graph.nodes if "convx" in str(node.target))
            return graph

        torch.compile(network, fullgraph=True, backend=backend)(*leaves())
        names = ["conv2d", "max_pool2d", "conv_transpose2d", "relu", "conv2d_relu_max_pool2d"]
        assert seen == [f"convx.{name}.default" for name in names]

    def test_transforms_inside(self):
        x, w, b = leaves()
        loss = lambda w, x: network(x[None], w, b).sum()  # noqa: E731
        per_sample = torch.vmap(torch.func.grad(loss), (None, 0))
        compiled = torch.compile(per_sample, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(w, x), per_sample(w, x))

    @pytest.mark.parametrize(
        "function",
        [
            lambda x, w: ct.conv2d(x, w, groups=2, activation="relu"),
            lambda x, w: ct.max_pool2d(ct.conv2d(x, w, groups=2), 2),
            lambda x, w: ct.conv2d_relu_max_pool2d(x, w, groups=2, pool_kernel_size=2),
            lambda x, w: ct.conv_transpose2d(ct.relu(x), w, groups=2),
        ],
        ids=["conv2d", "max_pool2d", "fused", "conv_transpose2d"],
    )
    def test_forward_mode_inside(self, function):
        x, w, _ = leaves()

        def tangent(x, w):
            return torch.func.jvp(function, (x, w), (x, w))[1]

        expected = tangent(x, w)
        assert expected.abs().max() > 0
        assert torch.equal(torch.compile(tangent, fullgraph=True, backend="aot_eager")(x, w), expected)

    def test_errors_name_the_operation(self):
        compiled = torch.compile(lambda x, w: ct.conv2d(x, w), fullgraph=True, backend="eager")
        with pytest.raises(Exception, match="conv2d: weight has 3 input channels per group, expected 4"):
            compiled(torch.ones(1, 4, 5, 5), torch.ones(4, 3, 3, 3))


class TestExport:
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            _, w, b = leaves()
            self.w, self.b = torch.nn.Parameter(w), torch.nn.Parameter(b)

        def forward(self, x):
            return network(x, self.w, self.b)

    def test_fixed_and_free_sizes(self, tmp_path):
        model, x = self.Network(), leaves()[0]
        sizes = {"x": {0: torch.export.Dim("n", min=1), 2: torch.export.Dim("h", min=8, max=64)}}
        for dynamic_shapes, images in ((None, [x]), (sizes, [x, leaves(3, 11, 9)[0]])):
            program = torch.export.export(model, (x,), dynamic_shapes=dynamic_shapes)
            torch.export.save(program, tmp_path / "network.pt2")
            loaded = torch.export.load(tmp_path / "network.pt2").module()
            for image in images:
                assert torch.equal(loaded(image), model(image))

    def test_the_tracer_of_old(self):
        with (
            pytest.warns(DeprecationWarning, match="torch.jit.trace"),
            pytest.raises(NotImplementedError, match=r"relu: torch\.jit\.trace does not know .* use torch\.export"),
        ):
            torch.jit.trace(ct.relu, torch.ones(3))


CONV = ([1, 2], [1, 0, 2, 1], [1, 1], 2, "reflect,zeros", 0.0, "auto", "ieee")
CONSTANT = ([2, 1], [1, 0, 2, 1], [1, 1], 2, "constant", 1.5, "direct", "ieee")
TRANSPOSE = ([1, 2], [1, 0, 2, 1], [0, 1], 2, [1, 1], "auto", "ieee")
POOL = ([2, 3], [2, 1], [0, 1, 1, 0], [1, 1], True)
FUSED = ([1, 1], [1, 1, 1, 1], [1, 1], 2, [2, 2], [2, 2], [0, 0, 0, 0], "ieee")


def operations(last):
    """Every operation with sample arguments."""

    def image(*shape):
        return as_channels_last(normal(*shape)) if last else normal(*shape)

    x, w, b = image(2, 4, 6, 7), normal(6, 2, 3, 3, seed=1), normal(6, seed=2)
    y = image(*OPS.conv2d(x, w, b, True, *CONV).shape)
    z = image(*OPS.conv2d(x, w, b, True, *CONSTANT).shape)
    pooled, codes = (each.detach() for each in OPS.max_pool2d_with_choice(x, *POOL, False))
    indices = OPS.max_pool2d_with_choice(x, *POOL, True)[1]
    fused, chosen = (each.detach() for each in OPS.conv2d_relu_max_pool2d(x, w, b, *FUSED))
    g = image(*fused.shape)
    return {
        "conv2d": [(x, w, b, True, *CONV), (x, w, None, False, *CONSTANT)],
        "conv2d_grad_input": [(y, w, list(x.shape), last, *CONV), (z, w, list(x.shape), last, *CONSTANT)],
        "conv_transpose2d": [(y, w, normal(4, seed=3), *TRANSPOSE), (y, w, None, *TRANSPOSE)],
        "conv2d_grad_weight": [(y, x, list(w.shape), *CONV), (z, x, list(w.shape), *CONSTANT)],
        "relu": [(x,)],
        "relu_backward": [(image(2, 4, 6, 7), ct.relu(x).detach())],
        "max_pool2d": [(x, *POOL)],
        "max_pool2d_with_choice": [(x, *POOL, False), (x, *POOL, True)],
        "max_pool2d_backward": [(image(*pooled.shape), each, list(x.shape), *POOL) for each in (codes, indices)],
        "max_pool2d_gather": [(x, each, *POOL) for each in (codes, indices)],
        "conv2d_relu_max_pool2d": [(x, w, b, *FUSED), (x, w, None, *FUSED)],
        "conv2d_relu_max_pool2d_backward": [
            (g, x, w, chosen, *FUSED, [True, True, True]), (g, x, w, chosen, *FUSED, [False, True, False])
        ],
    }  # fmt: skip


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", _library.OPERATIONS)
def test_opcheck(name, last):
    """Schema, autograd registration, fake tensors (strides too), and AOTAutograd with symbolic sizes."""
    for arguments in operations(last)[name][: 1 if last else None]:
        torch.library.opcheck(_library.OPERATIONS[name].overload, arguments)


class TestMeta:
    """Shapes without data."""

    @pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
    @pytest.mark.parametrize("name", _library.OPERATIONS)
    def test_as_with_data(self, name, last):
        meta = lambda value: value.to("meta") if isinstance(value, torch.Tensor) else value  # noqa: E731
        for arguments in operations(last)[name]:
            expected = getattr(OPS, name)(*arguments)
            actual = getattr(OPS, name)(*map(meta, arguments))
            expected, actual = (each if isinstance(each, tuple) else (each,) for each in (expected, actual))
            for one, other in zip(actual, expected, strict=True):
                assert one.is_meta
                assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)

    def test_functions(self):
        x, w, b = (each.to("meta").requires_grad_() for each in leaves())
        y = network(x, w, b)
        assert y.shape == network(*leaves()).shape
        y.sum().backward()
        assert x.grad.shape == x.shape and w.grad.shape == w.shape and b.grad.is_meta
        assert convx.conv2d(x.permute(0, 2, 3, 1), w, groups=2, layout="NHWC").shape == (2, 6, 7, 4)
        assert ct.conv2d(x[0].half(), w.half(), groups=2).dtype == torch.float16

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            (lambda x, w, b: ct.conv2d(x, w), "conv2d: weight has 2 input channels per group, expected 4"),
            (lambda x, w, b: ct.conv2d(x, w, b[:3], groups=2), r"conv2d: bias has shape \(3,\), expected \(4,\)"),
            (lambda x, w, b: ct.conv2d(x, w, groups=2, stride=0), "conv2d: stride is"),
            (lambda x, w, b: ct.conv2d(x[:, :, :2], w, groups=2), "the window spans 3 cells in height"),
            (lambda x, w, b: ct.conv2d(x, w, groups=2, padding=9, padding_mode="reflect"), "padding is 9 in height"),
            (lambda x, w, b: ct.conv2d(x, w, groups=2, algorithm="fast"), "conv2d: algorithm is"),
            (lambda x, w, b: ct.conv2d(x, w, groups=2, padding_mode="mirror"), "conv2d: padding_mode is"),
            (lambda x, w, b: ct.max_pool2d(x, 9), "max_pool2d: the window spans 9 cells"),
            (lambda x, w, b: ct.max_pool2d(x, 2, padding=2), "max_pool2d: pad should be at most half"),
            (lambda x, w, b: ct.conv2d_relu_max_pool2d(x, w, b[:1], groups=2, pool_kernel_size=2), "bias has shape"),
            (lambda x, w, b: convx.conv2d_backward(x, x, w, groups=2), "conv2d_backward: grad_output has shape"),
            (lambda x, w, b: convx.relu_backward(x, w), "relu_backward: output has shape"),
        ],
    )
    def test_errors(self, function, message):
        """The message of the operation itself, for tensors with and without data."""
        for device in ("cpu", "meta"):
            with pytest.raises(convx.ShapeError, match=message):
                function(*(each.to(device) for each in leaves()))


def test_fake_tensors():
    """Such tensors have no memory behind their address, so the kernels must not get them."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode:
        x, w, b = (mode.from_tensor(each) for each in leaves())
        y = network(x, w, b)
    assert type(y).__name__ == "FakeTensor"
    assert y.shape == network(*leaves()).shape
