"""Tracers and exporters on converted models: torch.fx, make_fx, torch.export, ONNX, TorchScript, quantization."""

# ruff: noqa: E402 (nothing here can be imported where PyTorch is not)
from __future__ import annotations

import copy
import functools
import logging
import pickle

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch import fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.module import register_module_forward_hook

import convx.torch as ct
from convx.torch import _library
from torch_cases import whole

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # PyTorch's own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]


@pytest.fixture(autouse=True)
def calm_torch():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch._dynamo.reset()


def layer_cases():
    return {
        "conv": nn.Conv2d(3, 4, 3),
        "conv reflect": nn.Conv2d(3, 4, (4, 3), padding="same", padding_mode="reflect"),
        "conv same": nn.Conv2d(3, 6, (4, 3), padding="same", dilation=2, groups=3, bias=False),
        "conv stride": nn.Conv2d(3, 4, 3, stride=[2], padding=(1, 0)),
        "transposed": nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1),
        "transposed stride": nn.ConvTranspose2d(3, 6, (3, 2), stride=3, dilation=2, groups=3, bias=False),
        "relu": nn.ReLU(),
        "relu in place": nn.ReLU(inplace=True),
        "relu6": nn.ReLU6(),
        "relu6 in place": nn.ReLU6(inplace=True),
        "pool": nn.MaxPool2d(2),
        "pool ceil": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        "pool dilation": nn.MaxPool2d((2, 3), 1, dilation=2),
        "block": nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        "pool first": nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.ReLU()),
    }


LAYERS = list(layer_cases())


class Around(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x + 0) * 2


def converted(model):
    return ct.convert(copy.deepcopy(model), verbose=False)


def images(n=2):
    return torch.randn(n, 3, 13, 12, generator=torch.Generator().manual_seed(n))


FUNCTIONS = {
    "relu": lambda x, w, b: ct.relu(x),
    "conv2d": lambda x, w, b: ct.conv2d(x, w, b, padding="same", activation="relu", padding_mode="reflect"),
    "conv2d weight": lambda x, w, b: ct.conv2d(torch.ones(1, 3, 5, 5), w),
    "conv2d bias": lambda x, w, b: ct.conv2d(torch.ones(1, 3, 5, 5), torch.ones(3, 3, 3, 3), b, algorithm="direct"),
    "conv2d names": lambda x, w, b: ct.conv2d(weight=w, input=x, stride=(2, 1)),
    "transposed": lambda x, w, b: ct.conv_transpose2d(x, w, b, 2, output_padding=1),
    "pool": lambda x, w, b: ct.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "indices": lambda x, w, b: ct.max_pool2d(x, 2, return_indices=True)[1],
    "fused": lambda x, w, b: ct.conv2d_relu_max_pool2d(x, w, b, padding=1, pool_kernel_size=2),
}


class TestFx:
    @pytest.mark.parametrize("name", LAYERS)
    def test_layers_are_nodes_as_pytorchs_are(self, name):
        plain = Around(layer_cases()[name])
        model, x = converted(plain), images()
        traced, expected = fx.symbolic_trace(model), fx.symbolic_trace(plain)
        nodes = [[(node.op, str(node.target), node.name) for node in each.graph.nodes] for each in (traced, expected)]
        assert nodes[0] == nodes[1]
        torch.testing.assert_close(traced(x), plain(x))
        again = fx.symbolic_trace(traced)
        assert again.code == traced.code == expected.code
        torch.testing.assert_close(again(x), plain(x))
        torch.testing.assert_close(fx.Transformer(traced).transform()(x), plain(x))
        torch.testing.assert_close(fx.Interpreter(traced).run(x), plain(x))

    # All arguments of the root are proxies; a transposed convolution tests whether output_size is None.
    @pytest.mark.parametrize("name", [each for each in LAYERS if "transposed" not in each])
    def test_a_layer_that_is_the_whole_model(self, name):
        plain = layer_cases()[name]
        model, x = converted(plain), images()
        traced = fx.symbolic_trace(model)
        if len(list(model.children())) == 0 and "relu6" not in name and "place" not in name:
            assert [node.target for node in traced.graph.nodes if node.op == "call_function"][-1:] == [
                {"conv": ct.conv2d, "relu": ct.relu, "pool": ct.max_pool2d}[name[:4]]
            ]
        torch.testing.assert_close(traced(x), plain(x))
        torch.testing.assert_close(fx.symbolic_trace(traced)(x), plain(x))
        torch.testing.assert_close(pickle.loads(pickle.dumps(traced))(x), plain(x))

    def test_gradients_and_16_bits(self):
        """A traced layer keeps the model's Parameters, and sends 16-bit inputs to PyTorch's kernels."""
        model = converted(Around(layer_cases()["block"]))
        traced = fx.symbolic_trace(model)
        traced(images()).sum().backward()
        assert all(each.grad is not None for each in model.parameters())
        assert traced.bfloat16()(images().bfloat16()).dtype == torch.bfloat16

    @pytest.mark.parametrize("leaf", [True, False])
    def test_tracers_decide_what_is_a_node(self, leaf):
        class Tracer(fx.Tracer):
            def is_leaf_module(self, module, name):
                return leaf and isinstance(module, nn.Conv2d)

        plain, x = Around(layer_cases()["block"]), images()
        model = converted(plain)
        graphs = [Tracer().trace(each) for each in (plain, model)]
        nodes = [[str(node.target) for node in graph.nodes if node.op == "call_module"] for graph in graphs]
        assert nodes[0] == nodes[1] == (["layer.0"] if leaf else [])
        torch.testing.assert_close(fx.GraphModule(model, graphs[1])(x), plain(x))

    def test_parametrized_layers(self):
        model, x = Around(converted(nn.Conv2d(3, 4, 3))), images()
        nn.utils.parametrizations.weight_norm(model.layer)
        traced = fx.symbolic_trace(model)
        assert "self.layer(add)" in traced.code
        assert torch.equal(traced(x), model(x))

    def test_hooks_are_traced_once(self):
        plain, x = Around(nn.Conv2d(3, 4, 3)), images()
        model = converted(plain)
        model.layer.register_forward_hook(lambda module, args, output: output + 1)
        traced = fx.symbolic_trace(model)
        torch.testing.assert_close(traced(x), model(x))
        assert not torch.allclose(traced(x), plain(x))
        handle = register_module_forward_hook(
            lambda module, args, output: output * 1 if module is model.layer else None
        )
        try:
            torch.testing.assert_close(fx.symbolic_trace(converted(plain))(x), plain(x))
        finally:
            handle.remove()

    def test_models_converted_after_tracing(self):
        plain, x = Around(layer_cases()["block"]), images()
        model = ct.convert(fx.symbolic_trace(plain), verbose=False)
        assert type(model.get_submodule("layer.0")) is ct.Conv2d
        torch.testing.assert_close(model(x), plain(x))
        torch.testing.assert_close(fx.symbolic_trace(model)(x), plain(x))

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_functions(self, name):
        function, args = FUNCTIONS[name], (images(), torch.randn(3, 3, 3, 3), torch.randn(3))
        expected = function(*args)
        traced = fx.symbolic_trace(function)
        assert "convx_torch_functional_" in traced.code
        for again in (traced, fx.symbolic_trace(traced), copy.deepcopy(traced)):
            assert torch.equal(again(*args), expected)

    def test_functions_of_numpy_say_where_to_go(self):
        with pytest.raises(TypeError, match=r"^relu: input is a torch\.fx\.proxy\.Proxy, .* call convx\.torch$"):
            fx.symbolic_trace(lambda x: ct_relu_of_numpy()(x))

    def test_what_is_no_proxy_is_refused_as_before(self):
        for value in (None, [1.0], images().numpy(), object()):
            with pytest.raises(TypeError, match=r"^relu: input is a .*, expected a torch\.Tensor$"):
                ct.relu(value)
            with pytest.raises(TypeError, match=r"^conv2d: weight is a .*, expected a torch\.Tensor$"):
                ct.conv2d(images(), value)


def ct_relu_of_numpy():
    import convx

    return convx.relu


class TestExport:
    @pytest.mark.parametrize("strict", [False, True])
    @pytest.mark.parametrize("name", LAYERS)
    def test_torch_export(self, name, strict):
        plain = Around(layer_cases()[name]).eval()
        model = converted(plain)
        n = torch.export.Dim("n", min=1, max=64)
        for shapes in (None, ({0: n},)):
            program = torch.export.export(model, (images(),), dynamic_shapes=shapes, strict=strict)
            x = images() if shapes is None else images(5)
            targets = {str(node.target) for node in program.graph.nodes}
            assert any("convx" in each for each in targets) or "relu6" in name or "place" in name
            assert torch.equal(program.module()(x), model(x))
            assert torch.equal(program.run_decompositions().module()(x), model(x))
            decomposed = program.run_decompositions(ct.decompositions())
            assert not any("convx" in str(node.target) for node in decomposed.graph.nodes)
            torch.testing.assert_close(decomposed.module()(x), plain(x))

    @pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
    @pytest.mark.parametrize("name", LAYERS)
    def test_make_fx(self, name, mode):
        model, x = converted(Around(layer_cases()[name])), images()
        values = dict(model.named_parameters())
        traced = make_fx(lambda values, x: functional_call(model, values, x), tracing_mode=mode)(values, x)
        assert torch.equal(traced(values, x), model(x))
        assert torch.equal(make_fx(traced, tracing_mode=mode)(values, x)(values, x), model(x))

    @pytest.mark.parametrize("name", LAYERS)
    def test_compiled(self, name):
        model = converted(Around(layer_cases()[name]))
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
        for n in (2, 3):
            assert torch.equal(compiled(images(n)), model(images(n)))


def onnx_outputs(program, x, reference=True):
    """By ONNX Runtime, and by ONNX's reference, which has errors in ConvTranspose's groups and MaxPool's indices."""
    name, model = program.model_proto.graph.input[0].name, program.model_proto
    if reference:
        evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator(model)
    else:
        evaluator = pytest.importorskip("onnxruntime").InferenceSession(model.SerializeToString())
    return [torch.tensor(each) for each in evaluator.run(None, {name: x.numpy()})]


class TestOnnx:
    @pytest.fixture(autouse=True)
    def quiet(self):
        pytest.importorskip("onnxscript")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)

    @pytest.mark.parametrize("dynamic", [False, True])
    @pytest.mark.parametrize("name", LAYERS)
    def test_models(self, name, dynamic):
        plain = Around(layer_cases()[name]).eval()
        model, x = converted(plain), images()
        shapes = ({0: torch.export.Dim("n", min=1, max=64)},) if dynamic else None
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False, dynamic_shapes=shapes)
        x = images(5) if dynamic else x
        torch.testing.assert_close(onnx_outputs(program, x, name != "transposed stride")[0], plain(x).detach())
        assert {node.domain for node in program.model_proto.graph.node} == {""}

    def test_a_program_of_torch_export(self):
        plain, x = layer_cases()["block"].eval(), images()
        program = torch.onnx.export(torch.export.export(converted(plain), (x,)), dynamo=True, verbose=False)
        kinds = [node.op_type for node in program.model_proto.graph.node]
        assert kinds == ["Conv", "Relu", "MaxPool"]
        torch.testing.assert_close(onnx_outputs(program, x)[0], plain(x).detach())

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_functions(self, dynamic):
        class Model(nn.Module):
            def forward(self, x):
                w = torch.ones(4, 3, 3, 2)
                y = ct.conv2d(x, w, padding=((1, 0), (2, 1)), padding_mode=("reflect", "constant"), padding_value=2.0)
                y, where = ct.max_pool2d(y, 3, 2, ((1, 0), (0, 1)), ceil_mode=True, return_indices=True)
                return ct.conv_transpose2d(y, w, stride=2, padding=((1, 0), (0, 1)), output_padding=1), where

        model, x = Model().eval(), whole((2, 3, 9, 8))
        shapes = ({axis: torch.export.Dim(f"d{axis}", min=1, max=64) for axis in (0, 2, 3)},) if dynamic else None
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False, dynamic_shapes=shapes)
        x = whole((3, 3, 12, 15)) if dynamic else x
        outputs = onnx_outputs(program, x, reference=False)
        for found, expected in zip(outputs, model(x), strict=True):
            torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize("model", [nn.ReLU(), nn.Conv2d(3, 4, 3)])
    def test_the_exporter_of_old_says_what_to_do(self, model, tmp_path):
        with pytest.raises(NotImplementedError, match=r"torch\.onnx\.export with dynamo=True, or convx\.torch\.revert"):
            torch.onnx.export(converted(model), (images(),), tmp_path / "m.onnx", dynamo=False, verbose=False)


CONV = ((1, 1), (1, 0, 2, 1), (1, 1), 1, "zeros", 0.0, "auto", "ieee")


class TestDecompositions:
    """Decompositions have the results of the operations."""

    def assert_same(self, name, *args):
        operation = _library.OPERATIONS[name].overload
        found, expected = ct.decompositions()[operation](*args), operation(*args)
        found, expected = (each if isinstance(each, tuple) else (each,) for each in (found, expected))
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)

    @pytest.mark.parametrize("relu", [False, True])
    @pytest.mark.parametrize("mode", ["zeros", "constant", "reflect", "replicate", "circular", "reflect,constant"])
    @pytest.mark.parametrize("padding", [(1, 1, 2, 2), (1, 0, 2, 1), (0, 0, 0, 1), (0, 0, 0, 0)])
    def test_conv2d(self, padding, mode, relu):
        x, w, b = whole((2, 4, 7, 8)), whole((6, 2, 3, 2), 1), whole((6,), 2)
        for stride, dilation in (((1, 1), (1, 1)), ((2, 1), (1, 3))):
            self.assert_same("conv2d", x, w, b, relu, stride, padding, dilation, 2, mode, 1.5, "auto", "ieee")

    @pytest.mark.parametrize("padding", [(1, 1, 2, 2), (1, 0, 2, 1), (0, 2, 0, 1), (0, 0, 0, 0)])
    @pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
    def test_conv_transpose2d(self, padding, stride):
        x, w, b = whole((2, 6, 4, 5)), whole((6, 2, 3, 2), 1), whole((4,), 2)
        for extra in ((0, 0), (0, 1)):
            for bias in (b, None):
                self.assert_same("conv_transpose2d", x, w, bias, stride, padding, extra, 2, (1, 2), "auto", "ieee")

    @pytest.mark.parametrize("ceil_mode", [False, True])
    @pytest.mark.parametrize("padding", [(1, 1, 0, 0), (1, 0, 1, 2), (2, 2, 2, 2), (0, 1, 0, 0)])
    @pytest.mark.parametrize("stride", [(1, 1), (2, 3), (3, 2)])
    def test_max_pool2d(self, padding, stride, ceil_mode):
        for h in (7, 8, 9):
            x = whole((2, 3, h, 10))
            for dilation in ((1, 1), (2, 1)):
                args = (x, (4, 5), stride, padding, dilation, ceil_mode)
                self.assert_same("max_pool2d", *args)
                for indices in (True, False):
                    self.assert_same("max_pool2d_with_choice", *args, indices)

    @pytest.mark.parametrize("pool_padding", [(0, 0, 0, 0), (1, 1, 1, 0)])
    def test_fused(self, pool_padding):
        x, w, b = whole((2, 4, 9, 8)), whole((6, 2, 3, 2), 1), whole((6,), 2)
        args = (x, w, b, (1, 1), (1, 1, 0, 1), (1, 1), 2, (3, 2), (2, 2), pool_padding, "ieee")
        self.assert_same("conv2d_relu_max_pool2d", *args)

    def test_they_are_all_registered(self):
        table = ct.decompositions()
        assert set(table) <= set(torch._decomp.decomposition_table)
        assert not set(table) & set(torch.export.default_decompositions())
        table.clear()
        assert ct.decompositions()


class TestWhatIsRefused:
    @pytest.mark.parametrize("name", LAYERS)
    def test_script(self, name):
        model = converted(Around(layer_cases()[name]))
        with pytest.raises(
            NotImplementedError, match=r"^torch\.jit\.script: \w+ is a layer of convx, .* convx\.torch\.rev"
        ):
            torch.jit.script(model)
        ct.revert(model, verbose=False)
        if name != "conv stride":  # PyTorch does not script lists of length 1
            torch.jit.script(model)

    @pytest.mark.parametrize("name", [each for each in LAYERS if "relu6" not in each and "place" not in each])
    def test_trace(self, name):
        model, x = converted(Around(layer_cases()[name])), images()
        with pytest.raises(NotImplementedError, match=r"torch\.jit\.trace does not know .* convx\.torch\.revert"):
            torch.jit.trace(model, x)
        torch.jit.trace(ct.revert(model, verbose=False), x)

    FUSED = (("0", "1"), ("0", "2"), ("0", "1", "2"), ("3", "4"))

    @pytest.mark.parametrize("names", FUSED)
    def test_fusing_for_quantization(self, names):
        made = {"0": nn.Conv2d(3, 4, 3), "1": nn.BatchNorm2d(4), "2": nn.ReLU(), "3": nn.Linear(3, 4), "4": nn.ReLU()}
        model = nn.Sequential(*made.values()).eval()
        fuse = functools.partial(torch.ao.quantization.fuse_modules, modules_to_fuse=[list(names)])
        expected = fuse(model)
        with pytest.raises(
            NotImplementedError, match=r"fuse_modules: .* call convx\.torch\.revert for the model first"
        ):
            fuse(ct.convert(model, verbose=False))
        assert repr(fuse(ct.revert(model, verbose=False))) == repr(expected)

    @pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
    @pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(3, 4, 3)])
    def test_quantizing(self, layer):
        model = converted(torch.ao.quantization.QuantWrapper(layer).eval())
        model.qconfig = torch.ao.quantization.default_qconfig
        prepared = torch.ao.quantization.prepare(model)
        prepared(images())
        with pytest.raises(NotImplementedError, match=r"input is quantized, .* call convx\.torch\.revert"):
            torch.ao.quantization.convert(prepared)(images())

    def test_folding_batch_normalisation(self):
        """fuse_conv_bn_eval, which fuse_modules calls, keeps the type of the layer."""
        conv, norm, x = nn.Conv2d(3, 4, 3).eval(), nn.BatchNorm2d(4).eval(), images()
        norm.running_mean.normal_()
        expected = norm(conv(x))
        folded = nn.utils.fusion.fuse_conv_bn_eval(ct.convert(conv, verbose=False), norm)
        assert type(folded) is ct.Conv2d
        torch.testing.assert_close(folded(x), expected)
        torch.testing.assert_close(F.relu(folded(x)), F.relu(expected))
