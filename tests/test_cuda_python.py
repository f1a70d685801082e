"""The Python side of CUDA: dispatch by array, layers and training, errors, plans. A fake CuPy stands for the real one,
the shim for the GPU; see simt_arrays.py."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
import types

import numpy as np
import pytest

import convx
import cuda_mirror
import simt_arrays
from convx import cuda, nn, optim
from convx._cli import main
from simt_arrays import FakeArray, fake_cupy, needs_simt
from support import assert_equal, assert_same_bits


@pytest.fixture
def cupy(monkeypatch):
    """A fake CuPy among the loaded modules, with the shim behind convx.cuda."""
    module = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(cuda, "_module", simt_arrays._simt)
    monkeypatch.setattr(cuda, "_ready", False)
    monkeypatch.setattr(convx._devices, "_libraries", {})
    return module


@pytest.fixture
def no_cuda(monkeypatch):
    """A build without CUDA."""
    monkeypatch.setattr(cuda, "_module", None)
    monkeypatch.setattr(cuda, "_ready", False)
    monkeypatch.setitem(sys.modules, "convx._cuda", None)


def data(*shape):
    return np.random.default_rng(sum(shape)).integers(-4, 5, shape).astype("float32")


@needs_simt
class TestDispatch:
    def test_every_operation(self, cupy):
        """The same results as on the CPU, as arrays of the caller's library."""
        x, w, b = data(2, 3, 8, 9), data(4, 3, 3, 3), data(4)
        on_cuda = [cupy.asarray(array) for array in (x, w, b)]
        for precision in ("ieee", "tf32x3", "tf32"):
            options = dict(padding=1, activation="relu", algorithm="direct", precision=precision)
            y = convx.conv2d(*on_cuda, **options)
            assert type(y) is FakeArray
            wanted = convx.conv2d(x, w, b, **options)
            assert_equal(y.get(), wanted, precision)
        transposed = convx.conv_transpose2d(y, on_cuda[1], stride=2, output_padding=1)
        wanted_transposed = convx.conv_transpose2d(wanted, w, stride=2, output_padding=1)
        assert type(transposed) is FakeArray
        assert_equal(transposed.get(), wanted_transposed, "conv_transpose2d")
        grads = convx.conv_transpose2d_backward(transposed, y, on_cuda[1], stride=2, output_padding=1)
        wanted_grads = convx.conv_transpose2d_backward(wanted_transposed, wanted, w, stride=2, output_padding=1)
        for got, expected in zip(grads, wanted_grads, strict=True):
            assert_equal(got.get(), expected, "conv_transpose2d_backward")
        assert_equal(convx.relu(on_cuda[0]).get(), convx.relu(x), "relu")
        for got, expected in zip(
            convx.relu(on_cuda[0], return_mask=True), convx.relu(x, return_mask=True), strict=True
        ):
            assert type(got) is FakeArray
            assert_equal(got.get(), expected, "relu with a mask")
        mask = convx.relu(on_cuda[0], return_mask=True)[1]
        assert_equal(convx.relu_backward(on_cuda[0], mask).get(), convx.relu(x), "relu_backward from a mask")
        per_sample = convx.conv2d_backward(y, *on_cuda[:2], padding=1, per_sample=True)
        wanted_per_sample = convx.conv2d_backward(wanted, x, w, padding=1, algorithm="direct", per_sample=True)
        for got, expected in zip(per_sample, wanted_per_sample, strict=True):
            assert_equal(got.get(), expected, "conv2d_backward, per_sample")
        norms = convx.conv2d_grad_norms(y, on_cuda[0], w.shape, padding=1)
        for got, expected in zip(norms, convx.conv2d_grad_norms(wanted, x, w.shape, padding=1), strict=True):
            assert type(got) is FakeArray
            assert_equal(got.get(), expected, "conv2d_grad_norms")
        for option in ("return_indices", "return_codes"):
            pooled, chosen = convx.max_pool2d(y, 2, **{option: True})
            wanted_pooled, wanted_chosen = convx.max_pool2d(wanted, 2, **{option: True})
            assert_same_bits(pooled.get(), wanted_pooled, "max_pool2d")
            assert_same_bits(chosen.get(), wanted_chosen, option)
            g = data(*pooled.shape)
            grad = convx.max_pool2d_backward(cupy.asarray(g), chosen, y.shape, 2)
            wanted_grad = convx.max_pool2d_backward(g, wanted_chosen, wanted.shape, 2)
            assert_equal(grad.get(), wanted_grad, "max_pool2d_backward")
        grad, wanted_grad = convx.relu_backward(grad, y), convx.relu_backward(wanted_grad, wanted)
        assert_equal(grad.get(), wanted_grad, "relu_backward")
        grads = convx.conv2d_backward(grad, *on_cuda[:2], padding=1, precision="tf32")
        wanted_grads = convx.conv2d_backward(wanted_grad, x, w, padding=1, algorithm="direct")
        for got, expected in zip(grads, wanted_grads, strict=True):
            assert_equal(got.get(), expected, "conv2d_backward")

    def test_fused(self, cupy):
        x, w, b = data(2, 3, 8, 9), data(4, 3, 3, 3), data(4)
        options = dict(padding=1, pool_kernel_size=2, precision="tf32")
        y, saved = convx.conv2d_relu_max_pool2d(*map(cupy.asarray, (x, w, b)), **options)
        wanted, wanted_saved = convx.conv2d_relu_max_pool2d(x, w, b, **options)
        assert saved.precision == "tf32"
        assert_equal(y.get(), wanted, "output")
        assert_same_bits(saved.codes.get(), wanted_saved.codes, "codes")
        assert repr(saved) == repr(wanted_saved)
        g = data(*y.shape)
        grads = convx.conv2d_relu_max_pool2d_backward(cupy.asarray(g), saved)
        for got, expected in zip(grads, convx.conv2d_relu_max_pool2d_backward(g, wanted_saved), strict=True):
            assert_equal(got.get(), expected, "gradient")

    def test_views_keep_their_strides(self, cupy):
        x = data(2, 8, 9, 3)
        view = cupy.asarray(x).transpose(0, 3, 1, 2)[:, :, ::-1]
        assert_equal(convx.relu(view).get(), convx.relu(x.transpose(0, 3, 1, 2)[:, :, ::-1]), "view")

    def test_objects_with_the_interface_alone(self, cupy):
        """They are handled as CuPy's, whose asarray views them; the read-only flag is kept."""

        class Exported:
            def __init__(self, array, read_only=False):
                address = array.__array_interface__["data"][0]
                self.array = array
                self.__class__.__cuda_array_interface__ = property(lambda self: {"data": (address, read_only)})

        cupy.asarray = lambda array: FakeArray(array.array if isinstance(array, Exported) else array)
        x = data(2, 5)
        assert_equal(convx.relu(Exported(x)).get(), convx.relu(x), "relu")
        with pytest.raises(convx.ShapeError, match="relu: out is read-only"):
            convx.relu(FakeArray(x), out=Exported(np.empty_like(x), read_only=True))

    def test_an_interface_without_a_library(self, monkeypatch):
        monkeypatch.delitem(sys.modules, "cupy", raising=False)
        exported = type("Exported", (), {"__cuda_array_interface__": {}})()
        with pytest.raises(TypeError, match=r"relu: input is a .*Exported, .* import cupy"):
            convx.relu(exported)

    def test_mixed_libraries(self, cupy):
        x, w = data(1, 2, 5, 5), data(3, 2, 3, 3)
        with pytest.raises(
            TypeError, match=r"conv2d: weight is a numpy\.ndarray, expected a cupy\.ndarray as the first"
        ):
            convx.conv2d(cupy.asarray(x), w)
        with pytest.raises(TypeError, match=r"conv2d: weight is a cupy\.ndarray, expected a numpy\.ndarray"):
            convx.conv2d(x, cupy.asarray(w))
        with pytest.raises(
            TypeError, match=r"prepare_weight: weight is a cupy\.ndarray, .* conv2d packs weights of other libraries"
        ):
            convx.prepare_weight(cupy.asarray(w), x.shape)

    def test_mixed_devices(self, cupy):
        x, w = FakeArray(data(1, 2, 5, 5), device=1), FakeArray(data(3, 2, 3, 3), device=0)
        with pytest.raises(convx.ShapeError, match="conv2d: weight is on device 0, expected device 1 as input is"):
            convx.conv2d(x, w)

    def test_results_lie_on_the_device_of_the_input(self, cupy):
        x = FakeArray(data(2, 5), device=1)
        assert convx.relu(x).device.id == 1
        assert cupy.cuda.runtime.getDevice() == 0

    def test_the_stream_is_the_current_one_of_the_device(self, cupy):
        asked = []

        def current(device):
            asked.append(device)
            return types.SimpleNamespace(ptr=0)

        cupy.cuda.get_current_stream = current
        convx.relu(FakeArray(data(2, 5), device=1))
        assert asked == [1]

    def test_odd_strides_and_byte_order(self, cupy):
        packed = np.zeros(5, [("flag", "u1"), ("value", "f4")])["value"]
        with pytest.raises(convx.ShapeError, match=r"strides .* expected multiples of its item's 4"):
            convx.relu(FakeArray(packed))
        with pytest.raises(TypeError, match="relu: input has dtype byte-swapped float32"):
            convx.relu(FakeArray(np.zeros(5, ">f4")))


def test_precision_changes_nothing_on_the_cpu():
    x, w = data(1, 2, 5, 5), data(3, 2, 3, 3)
    assert_same_bits(convx.conv2d(x, w, precision="tf32"), convx.conv2d(x, w), "conv2d")
    for call in (
        lambda: convx.conv2d(x, w, precision="half"),
        lambda: convx.conv2d_backward(x, x, w, precision=None),
        lambda: convx.conv2d_relu_max_pool2d(x, w, pool_kernel_size=2, precision="half"),
        lambda: convx.explain("conv2d", x.shape, w.shape, precision="half"),
    ):
        with pytest.raises(convx.ShapeError, match=r"precision is .*, expected 'ieee', 'tf32x3' or 'tf32'"):
            call()


def test_tensors_of_pytorch():
    """Without a GPU: tensors on the CPU are not taken for tensors on a device."""
    torch = pytest.importorskip("torch")
    library = convx._devices.PyTorch(torch)
    assert library.describe(torch.zeros(3)) is None
    assert library.describe(np.zeros(3)) is None

    class OnCuda(torch.Tensor):
        is_cuda = True

        def get_device(self):
            return 2

    x = torch.zeros(4, 6, dtype=torch.bfloat16)[:, ::2].as_subclass(OnCuda)
    assert library.describe(x) == (x.data_ptr(), (4, 3), (6, 2), "bfloat16", 2, True)


class TestWithoutCuda:
    def test_reasons(self, no_cuda, capsys):
        assert not cuda.is_available()
        assert cuda.device_count() == 0
        assert cuda.unavailable_reason().startswith("convx was built without CUDA")
        with pytest.raises(RuntimeError, match="device_name: CUDA cannot be used: convx was built without CUDA"):
            cuda.device_name()
        assert main(["info"]) == 0
        assert re.search("^CUDA +cannot be used: convx was built without CUDA", capsys.readouterr().out, re.M)
        assert main(["info", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)["cuda"]
        assert facts == {"available": False, "reason": cuda.unavailable_reason(), "devices": []}

    def test_arrays_raise_with_the_reason(self, monkeypatch, no_cuda):
        monkeypatch.setitem(sys.modules, "cupy", fake_cupy())
        with pytest.raises(RuntimeError, match=r"relu: input is a cupy\.ndarray, but CUDA cannot be used: .* built"):
            convx.relu(FakeArray(np.zeros(3, "float32")))

    def test_no_driver(self, monkeypatch):
        module = types.SimpleNamespace(
            unavailable_reason=lambda: "no NVIDIA driver is installed", device_count=lambda: 0
        )
        monkeypatch.setattr(cuda, "_module", module)
        monkeypatch.setattr(cuda, "_ready", False)
        monkeypatch.setitem(sys.modules, "cupy", fake_cupy())
        with pytest.raises(RuntimeError, match="no NVIDIA driver is installed"):
            convx.relu(FakeArray(np.zeros(3, "float32")))

    def test_plans(self, no_cuda):
        with pytest.raises(RuntimeError, match="explain: there are no plans for CUDA: convx was built without"):
            convx.explain("relu", (3, 4), device="cuda")
        with pytest.raises(convx.ShapeError, match="explain: device is 'gpu', expected 'cpu' or 'cuda'"):
            convx.explain("relu", (3, 4), device="gpu")

    def test_train(self, no_cuda, capsys, tmp_path):
        pytest.importorskip("convx._cli.train", reason="needs the extra demo", exc_type=ModuleNotFoundError)
        assert main(["train", "--device", "cuda", "--output-dir", str(tmp_path)]) == 1
        assert "convx train: error: --device cuda: convx was built without CUDA" in capsys.readouterr().err

    def test_cupy_and_torch_are_not_imported(self, tmp_path):
        program = (
            "import sys, numpy, convx; convx.relu(numpy.zeros(3, 'f4')); convx.cuda.is_available();"
            "assert not {'cupy', 'torch'} & {*sys.modules}"
        )
        subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)


@needs_simt
class TestExplain:
    def test_every_operation(self, cupy):
        conv = (8, 64, 56, 56), (64, 64, 3, 3)
        (plan,) = convx.explain("conv2d", *conv, padding=1, device="cuda", precision="tf32x3")
        assert isinstance(plan, convx.CudaPlan)
        assert plan.name == "forward" and "TF32" in plan.precision and plan.flops == 1849688064
        for dtype in ("float16", "bfloat16", "float64"):
            assert dtype in convx.explain("conv2d", *conv, device="cuda", dtype=dtype)[0].precision
        names = [plan.name for plan in convx.explain("conv2d_backward", *conv, device="cuda")]
        assert names == ["grad_input", "grad_weight", "grad_bias"]
        for op, arguments in {"relu": (), "relu_backward": (), "max_pool2d": (2,), "max_pool2d_backward": (2,)}.items():
            (plan,) = convx.explain(op, conv[0], *arguments, device="cuda")
            assert plan.bytes > 0 and plan.reason
        names = [
            plan.name for plan in convx.explain("conv2d_relu_max_pool2d", *conv, pool_kernel_size=2, device="cuda")
        ]
        assert names == ["forward", "max_pool2d"]
        plans = convx.explain("conv2d_relu_max_pool2d_backward", *conv, pool_kernel_size=2, device="cuda")
        assert [plan.name for plan in plans] == ["max_pool2d_backward", "grad_input", "grad_weight", "grad_bias"]
        for word in ("tile", "blocks", "workspace", "reason", "GFLOP", "CUDA"):
            assert word in repr(plans)

    def test_errors(self, cupy):
        with pytest.raises(TypeError, match="relu: dtype is int32, expected float32, float64, float16 or bfloat16"):
            convx.explain("relu", (3, 4), dtype="int32", device="cuda")

    def test_devices(self, cupy, capsys):
        assert cuda.is_available() and cuda.device_count() == 1
        assert cuda.device_name(0) == "SIMT shim"
        with pytest.raises(convx.ShapeError, match="device_name: device is 1, expected 0 to 0"):
            cuda.device_name(1)
        convx.show_config()
        assert "0: SIMT shim" in capsys.readouterr().out


def network():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, rng=0), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3 * 9, 4, rng=1)
    )


def train(model, xp, make, steps=3):
    optimizer = make(model.parameters())
    criterion = nn.CrossEntropyLoss()
    rng = np.random.default_rng(3)
    losses = []
    for _ in range(steps):
        images, labels = rng.standard_normal((5, 1, 6, 6)).astype("float32"), rng.integers(0, 4, 5)
        scores, context = model.forward(xp.asarray(images))
        loss, loss_context = criterion.forward(scores, xp.asarray(labels))
        optimizer.zero_grad()
        model.backward(criterion.backward(loss_context), context, need_grad_input=False)
        optimizer.step()
        losses.append(float(loss))
    return losses, optimizer


@needs_simt
class TestLayers:
    @pytest.mark.parametrize("make", [lambda p: optim.SGD(p, 0.1, 0.9, 1e-3, True), lambda p: optim.Adam(p, 0.01)])
    def test_training_is_that_of_numpy(self, cupy, make, tmp_path):
        """The same formulas: parameters differ only by rounding, since sums have another order."""
        host, device = network(), network().to(cupy)
        assert all(type(parameter.value) is FakeArray for parameter in device.parameters())
        wanted, _ = train(host, np, make)
        losses, optimizer = train(device, cupy, make)
        np.testing.assert_allclose(losses, wanted, rtol=1e-5)
        for one, other in zip(device.parameters(), host.parameters(), strict=True):
            np.testing.assert_allclose(one.value.get(), other.value, atol=1e-4)
        device.save(tmp_path / "network.npz")
        again = network()
        again.load(tmp_path / "network.npz")
        for one, other in zip(device.parameters(), again.parameters(), strict=True):
            assert_same_bits(one.value.get(), other.value, "saved and loaded")
        moved = network().to(cupy)
        moved.load_state_dict(again.state_dict())
        assert all(type(parameter.value) is FakeArray for parameter in moved.parameters())
        state = {
            name: each.get() if isinstance(each, FakeArray) else each for name, each in optimizer.state_dict().items()
        }
        fresh = make(moved.parameters())
        fresh.load_state_dict(state)
        assert {type(each) for kept in fresh.state for each in kept.values()} <= {FakeArray, int}
        assert all(type(parameter.value) is np.ndarray for parameter in device.to(np).parameters())

    def test_to(self):
        with pytest.raises(TypeError, match="to: array_module is 'cuda', expected numpy or cupy"):
            network().to("cuda")
        model = network()
        before = [parameter.value for parameter in model.parameters()]
        assert model.to(np) is model
        assert all(one is parameter.value for one, parameter in zip(before, model.parameters(), strict=True))

    def test_a_label_that_is_no_class(self, cupy):
        """A bad label makes the loss NaN, since nothing waits for the device."""
        scores, labels = cupy.asarray(np.zeros((2, 4), "float32")), cupy.asarray(np.array([1, -1]))
        assert np.isnan(float(nn.CrossEntropyLoss()(scores, labels)))

    def test_command(self, cupy, capsys, tmp_path):
        pytest.importorskip("convx._cli.train", reason="needs the extra demo", exc_type=ModuleNotFoundError)
        arguments = ["train", "--epochs", "1", "--batch-size", "256", "--output-dir", str(tmp_path)]
        assert main([*arguments, "--device", "cuda", "--save", str(tmp_path / "parameters.npz")]) == 0
        on_cuda = re.search(r"loss (\d+\.\d+)", capsys.readouterr().out)[1]
        assert main(arguments) == 0
        assert abs(float(re.search(r"loss (\d+\.\d+)", capsys.readouterr().out)[1]) - float(on_cuda)) < 2e-4
        with np.load(tmp_path / "parameters.npz") as saved:
            assert saved["0.weight"].shape == (16, 1, 3, 3)


class OrdinaryMemory:
    """Stands for the memory of a device, for cuda_mirror.py."""

    def __init__(self):
        self.blocks = {}

    def allocate(self, size):
        block = ctypes.create_string_buffer(size)
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self, pointer):
        del self.blocks[pointer]

    def to_device(self, pointer, address, size):
        ctypes.memmove(pointer, address, size)

    def to_host(self, address, pointer, size):
        ctypes.memmove(address, pointer, size)

    def synchronize(self):
        pass


@needs_simt
def test_mirrored_arrays():
    """The mirror of the tests on a GPU: views keep their strides, results come back, no mirror is left."""
    memory = OrdinaryMemory()
    library = type("Mirrored", (cuda_mirror.Mirror, simt_arrays.Host), {"memory": memory})()
    module = cuda_mirror.MirroredModule(simt_arrays._simt)
    whole = np.arange(-30.0, 30.0, dtype="float32")
    expected, view = np.maximum(whole, 0), whole[::-2]
    np.testing.assert_array_equal(module.relu(library, view, False, None), expected[::-2])
    module.relu(library, view, False, view)
    np.testing.assert_array_equal(whole[::-2], expected[::-2])
    np.testing.assert_array_equal(whole[::2], np.arange(-30.0, 30.0, 2.0))
    assert not memory.blocks
