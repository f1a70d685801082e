"""convx.nn against PyTorch and finite differences; contexts, state, initialisation and errors."""

import math
import pickle
import threading

import numpy as np
import pytest

import convx
from convx import nn
from support import POOL_PROBLEMS, to_layout

EPSILON = 1e-6
# Central differences in float64: truncation error about EPSILON**2, rounding about 1e-16 / EPSILON.
DIFFERENCE_TOLERANCE = {"rtol": 1e-6, "atol": 1e-7}


def numeric_gradient(function, array):
    """Central differences of the scalar `function()` over every element of `array`, which it reads."""
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + EPSILON
        above = function()
        array[index] = kept - EPSILON
        below = function()
        array[index] = kept
        gradient[index] = (above - below) / (2 * EPSILON)
    return gradient


def check_gradients(module, x, rng):
    """Compare the gradients of input and parameters with finite differences of <output, g> for a random g."""
    output, context = module.forward(x)
    grad_output = rng.standard_normal(output.shape)
    module.zero_grad()
    grad_input = module.backward(grad_output, context)

    def scalar():
        return float((module(x) * grad_output).sum())

    np.testing.assert_allclose(grad_input, numeric_gradient(scalar, x), **DIFFERENCE_TOLERANCE)
    for name, parameter in module.named_parameters():
        expected = numeric_gradient(scalar, parameter.value)
        np.testing.assert_allclose(parameter.grad, expected, err_msg=name, **DIFFERENCE_TOLERANCE)


def distinct(rng, shape):
    """Values at least 0.01 apart and away from 0, so that neither max nor ReLU changes within EPSILON."""
    size = math.prod(shape)
    return ((rng.permutation(size) - size / 2 + 0.25) * 0.01).reshape(shape)


LAYERS = {
    "conv": lambda: nn.Conv2d(3, 4, (3, 2), 2, 1, dtype="f8", rng=0),
    "conv grouped": lambda: nn.Conv2d(4, 6, 3, 1, ((1, 0), (2, 1)), 2, 2, dtype="f8", rng=0),
    "conv without bias": lambda: nn.Conv2d(3, 2, 3, bias=False, padding="same", dtype="f8", rng=0),
    "conv reflect": lambda: nn.Conv2d(3, 2, 3, padding=2, padding_mode="reflect", dtype="f8", rng=0),
    "conv NHWC": lambda: nn.Conv2d(7, 2, 3, layout="NHWC", dtype="f8", rng=0),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, (4, 3), 2, 1, (0, 1), dtype="f8", rng=0),
    "transposed without bias": lambda: nn.ConvTranspose2d(3, 2, 3, padding="same", bias=False, dtype="f8", rng=0),
    "transposed NHWC": lambda: nn.ConvTranspose2d(7, 2, 3, 1, dilation=2, layout="NHWC", dtype="f8", rng=0),
    "relu": lambda: nn.ReLU(),
    "pool with codes": lambda: nn.MaxPool2d(2),
    "pool overlapping": lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "pool dilated": lambda: nn.MaxPool2d((2, 3), 1, dilation=2),
    "pool padded": lambda: nn.MaxPool2d((3, 2), (2, 3), ((2, 0), (1, 1)), ceil_mode=True),
    "pool NHWC": lambda: nn.MaxPool2d(2, layout="NHWC"),
    "flatten": lambda: nn.Flatten(),
    "flatten inner": lambda: nn.Flatten(1, 2),
    "linear": lambda: nn.Linear(7, 5, dtype="f8", rng=0),
    "linear without bias": lambda: nn.Linear(7, 1, bias=False, dtype="f8", rng=0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_finite_differences(name):
    rng = np.random.default_rng(1)
    channels = 4 if name == "conv grouped" else 3
    check_gradients(LAYERS[name](), distinct(rng, (2, channels, 8, 7)), rng)


@pytest.mark.parametrize("name", LAYERS)
def test_calling_gives_the_forward_output(name):
    x = np.random.default_rng(2).standard_normal((2, 4 if name == "conv grouped" else 3, 8, 7))
    layer = LAYERS[name]()
    np.testing.assert_array_equal(layer(x), layer.forward(x)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_input_gradient_can_be_left_out(name):
    x = np.random.default_rng(3).standard_normal((2, 4 if name == "conv grouped" else 3, 8, 7))
    layer = LAYERS[name]()
    output, context = layer.forward(x)
    layer.backward(output, context)
    expected = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    assert layer.backward(output, context, need_grad_input=False) is None
    for parameter, grad in zip(layer.parameters(), expected, strict=True):
        np.testing.assert_array_equal(parameter.grad, grad)


def test_pool_keeps_one_byte_per_output_where_the_window_allows():
    x = np.random.default_rng(4).standard_normal((1, 2, 40, 40))
    for kernel_size, dtype in (((15, 17), np.uint8), ((16, 16), np.int64)):
        layer = nn.MaxPool2d(kernel_size, 5)
        output, context = layer.forward(x)
        assert context.selection.dtype == dtype
        assert context.selection.shape == output.shape
    check_gradients(nn.MaxPool2d(16, 3), distinct(np.random.default_rng(4), (1, 1, 20, 20)), np.random.default_rng(5))


@pytest.mark.parametrize("name", ["gaps", "gaps-ceil", "gaps-stride-over-kernel"])
def test_pool_windows_without_a_cell(name, layout):
    problem = POOL_PROBLEMS[name]
    layer = nn.MaxPool2d(**problem.options, layout=layout)
    x = to_layout(np.random.default_rng(4).standard_normal(problem.input_shape), layout)
    output, context = layer.forward(x)
    empty = output == -np.inf
    assert empty.any() and not empty.all()
    np.testing.assert_array_equal(context.selection == 255, empty)
    np.testing.assert_array_equal(layer(x), output)
    assert layer.backward(np.ones_like(output), context).sum() == (~empty).sum()


def test_relu_keeps_one_bit_per_element():
    x = np.random.default_rng(4).standard_normal((3, 5, 7))
    output, context = nn.ReLU().forward(x)
    assert context.dtype == np.uint8
    assert context.nbytes == -(-output.size // 8)


def digit_network(dtype=np.float32, rng=0):
    rng = np.random.default_rng(rng)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, dtype=dtype, rng=rng),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1, dtype=dtype, rng=rng),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 10, dtype=dtype, rng=rng),
    )


class TestNetwork:
    def test_gradients_with_the_loss(self):
        rng = np.random.default_rng(6)
        network, criterion = digit_network("f8"), nn.CrossEntropyLoss()
        x, labels = rng.standard_normal((3, 1, 8, 8)), rng.integers(0, 10, 3)
        output, context = network.forward(x)
        _, loss_context = criterion.forward(output, labels)
        grad_input = network.backward(criterion.backward(loss_context), context)

        def loss():
            return float(criterion(network(x), labels))

        np.testing.assert_allclose(grad_input, numeric_gradient(loss, x), **DIFFERENCE_TOLERANCE)
        for name, parameter in network.named_parameters():
            expected = numeric_gradient(loss, parameter.value)
            np.testing.assert_allclose(parameter.grad, expected, err_msg=name, **DIFFERENCE_TOLERANCE)

    def test_against_torch(self, dtype):
        torch = pytest.importorskip("torch")
        tnn = torch.nn
        network, criterion = digit_network(dtype), nn.CrossEntropyLoss()
        twin = tnn.Sequential(
            tnn.Conv2d(1, 4, 3, padding=1),
            tnn.ReLU(),
            tnn.MaxPool2d(2),
            tnn.Conv2d(4, 6, 3, padding=1),
            tnn.ReLU(),
            tnn.MaxPool2d(2),
            tnn.Flatten(),
            tnn.Linear(24, 10),
        ).to(getattr(torch, np.dtype(dtype).name))
        # The names agree, so one library loads the state dict of the other.
        twin.load_state_dict({name: torch.from_numpy(value) for name, value in network.state_dict().items()})
        rng = np.random.default_rng(7)
        x, labels = rng.standard_normal((5, 1, 8, 8)).astype(dtype), rng.integers(0, 10, 5)
        output, context = network.forward(x)
        loss, loss_context = criterion.forward(output, labels)
        grad_input = network.backward(criterion.backward(loss_context), context)

        torch_x = torch.from_numpy(x).requires_grad_()
        torch_output = twin(torch_x)
        torch_loss = tnn.CrossEntropyLoss()(torch_output, torch.from_numpy(labels))
        torch_loss.backward()
        tolerance = {"rtol": 1e-4, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-11, "atol": 1e-13}
        np.testing.assert_allclose(output, torch_output.detach().numpy(), **tolerance)
        np.testing.assert_allclose(loss, torch_loss.item(), **tolerance)
        np.testing.assert_allclose(grad_input, torch_x.grad.numpy(), **tolerance)
        for (name, parameter), (torch_name, torch_parameter) in zip(
            network.named_parameters(), twin.named_parameters(), strict=True
        ):
            assert name == torch_name
            assert parameter.grad.dtype == np.dtype(dtype)
            np.testing.assert_allclose(parameter.grad, torch_parameter.grad.numpy(), err_msg=name, **tolerance)

    def test_input_gradient_can_be_left_out(self):
        x = np.random.default_rng(8).standard_normal((2, 1, 8, 8), np.float32)
        network = nn.Sequential(nn.ReLU(), *digit_network())
        output, context = network.forward(x)
        network.backward(output, context)
        expected = {name: parameter.grad for name, parameter in network.named_parameters()}
        network.zero_grad()
        assert network.backward(output, context, need_grad_input=False) is None
        for name, parameter in network.named_parameters():
            np.testing.assert_array_equal(parameter.grad, expected[name], err_msg=name)
        plain = nn.Sequential(nn.ReLU(), nn.Flatten())
        output, context = plain.forward(x)
        assert plain.backward(output, context, need_grad_input=False) is None

    def test_an_empty_batch_gives_zero_gradients(self):
        network = digit_network()
        output, context = network.forward(np.empty((0, 1, 8, 8), np.float32))
        assert output.shape == (0, 10)
        assert network.backward(output, context).shape == (0, 1, 8, 8)
        for parameter in network.parameters():
            np.testing.assert_array_equal(parameter.grad, np.zeros_like(parameter.value))

    def test_the_same_bits_for_any_number_of_threads(self):
        x = np.random.default_rng(9).standard_normal((64, 1, 8, 8), np.float32)
        results = []
        for threads in (1, 2, 3):
            convx.set_num_threads(threads)
            network = digit_network()
            output, context = network.forward(x)
            network.backward(output, context)
            results.append([output, *(parameter.grad for parameter in network.parameters())])
        for result in results[1:]:
            for array, first in zip(result, results[0], strict=True):
                np.testing.assert_array_equal(array, first)

    def test_an_autoencoder_against_pytorch(self):
        """Shapes in both directions, and a state dict that PyTorch loads."""
        torch = pytest.importorskip("torch")
        tnn = torch.nn
        layers = (nn.Conv2d(2, 6, 3, 2, 1, rng=0), nn.ConvTranspose2d(6, 2, 4, 2, 1, groups=2, rng=1))
        network = nn.Sequential(layers[0], nn.ReLU(), layers[1])
        assert repr(network[2]) == "ConvTranspose2d(6, 2, (4, 4), stride=2, padding=1, groups=2)"
        twin = tnn.Sequential(tnn.Conv2d(2, 6, 3, 2, 1), tnn.ReLU(), tnn.ConvTranspose2d(6, 2, 4, 2, 1, groups=2))
        twin.load_state_dict({name: torch.from_numpy(value) for name, value in network.state_dict().items()})
        x = np.random.default_rng(5).standard_normal((3, 2, 8, 10), np.float32)
        output, context = network.forward(x)
        network.backward(output, context)
        torch_output = twin(torch.from_numpy(x))
        torch_output.square().sum().div(2).backward()
        assert output.shape == x.shape
        np.testing.assert_allclose(output, torch_output.detach().numpy(), rtol=1e-4, atol=1e-5)
        for (name, parameter), other in zip(network.named_parameters(), twin.parameters(), strict=True):
            np.testing.assert_allclose(parameter.grad, other.grad.numpy(), rtol=1e-3, atol=1e-4, err_msg=name)

    def test_sequential_is_a_sequence(self):
        network = digit_network()
        assert len(network) == 8
        assert list(network)[7] is network[7] is network[-1]
        assert repr(network).splitlines()[1] == "  0: Conv2d(1, 4, (3, 3), padding=1)"
        assert "  2: MaxPool2d((2, 2))" in repr(network)
        with pytest.raises(TypeError, match="Sequential: argument 1 is function, expected a Module"):
            nn.Sequential(nn.ReLU(), lambda x: x)


class Twice(nn.Module):
    """conv(relu(conv(x))) with one conv."""

    def __init__(self):
        self.conv = nn.Conv2d(2, 2, 3, padding=1, dtype="f8", rng=3)
        self.relu = nn.ReLU()

    def forward(self, input):
        hidden, first = self.conv.forward(input)
        positive, middle = self.relu.forward(hidden)
        output, second = self.conv.forward(positive)
        return output, (first, middle, second)

    def backward(self, grad_output, context, *, need_grad_input=True):
        first, middle, second = context
        grad = self.relu.backward(self.conv.backward(grad_output, second), middle)
        return self.conv.backward(grad, first, need_grad_input=need_grad_input)


class TestContext:
    def test_a_layer_used_twice_gets_the_sum_of_both_gradients(self):
        rng = np.random.default_rng(10)
        check_gradients(Twice(), distinct(rng, (1, 2, 5, 4)), rng)

    def test_twice_in_a_sequential(self):
        rng = np.random.default_rng(11)
        conv = nn.Conv2d(2, 2, 3, padding=1, dtype="f8", rng=4)
        network = nn.Sequential(conv, nn.ReLU(), conv)
        check_gradients(network, distinct(rng, (1, 2, 5, 4)), rng)
        assert [name for name, _ in network.named_parameters()] == ["0.weight", "0.bias"]
        assert list(network.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]

    def test_the_sum_equals_that_of_two_layers(self):
        rng = np.random.default_rng(12)
        conv = nn.Conv2d(2, 2, 3, padding=1, dtype="f8", rng=4)
        copy = nn.Conv2d(2, 2, 3, padding=1, dtype="f8", rng=4)
        shared, separate = nn.Sequential(conv, nn.ReLU(), conv), nn.Sequential(conv, nn.ReLU(), copy)
        x = rng.standard_normal((2, 2, 6, 6))
        output, context = separate.forward(x)
        separate.backward(output, context)
        expected = conv.weight.grad + copy.weight.grad
        conv.zero_grad()
        output, context = shared.forward(x)
        shared.backward(output, context)
        np.testing.assert_allclose(conv.weight.grad, expected, rtol=1e-12)

    def test_forward_leaves_no_trace_and_contexts_do_not_mix(self):
        rng = np.random.default_rng(13)
        network = digit_network("f8")
        before = pickle.dumps(network)
        x, other = rng.standard_normal((2, 2, 1, 8, 8))
        output, context = network.forward(x)
        network.forward(other)
        network(other)
        assert pickle.dumps(network) == before
        grad_output = rng.standard_normal(output.shape)
        late = network.backward(grad_output, context)
        np.testing.assert_array_equal(late, network.backward(grad_output, network.forward(x)[1]))

    def test_gradients_add_up_until_zero_grad(self):
        x = np.random.default_rng(14).standard_normal((2, 1, 8, 8), np.float32)
        network = digit_network()
        output, context = network.forward(x)
        network.backward(output, context)
        once = [parameter.grad for parameter in network.parameters()]
        kept = [grad.copy() for grad in once]
        network.backward(output, context)
        for parameter, first, untouched in zip(network.parameters(), once, kept, strict=True):
            np.testing.assert_array_equal(parameter.grad, first + first)
            np.testing.assert_array_equal(first, untouched)
        network.zero_grad()
        assert all(parameter.grad is None for parameter in network.parameters())

    def test_forward_from_several_threads(self):
        network = digit_network()
        inputs = np.random.default_rng(15).standard_normal((4, 3, 1, 8, 8), np.float32)
        expected = [network(x) for x in inputs]
        found = [[] for _ in inputs]

        def work(position):
            for _ in range(20):
                found[position].append(network.forward(inputs[position])[0])

        threads = [threading.Thread(target=work, args=(position,)) for position in range(len(inputs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for outputs, output in zip(found, expected, strict=True):
            assert len(outputs) == 20
            for each in outputs:
                np.testing.assert_array_equal(each, output)


class TestState:
    def test_round_trip(self):
        source, target = digit_network(rng=1), digit_network(rng=2)
        arrays = [parameter.value for parameter in target.parameters()]
        target.load_state_dict(source.state_dict())
        for value, parameter, original in zip(arrays, target.parameters(), source.parameters(), strict=True):
            assert parameter.value is value
            np.testing.assert_array_equal(value, original.value)

    def test_state_dict_is_a_copy(self):
        network = digit_network()
        state = network.state_dict()
        network[0].weight.value += 1
        assert not np.array_equal(state["0.weight"], network[0].weight.value)

    def test_file_round_trip(self, tmp_path):
        source, target = digit_network(rng=1), digit_network(rng=2)
        path = tmp_path / "without extension"
        source.save(path)
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
        target.load(path)
        for name, value in target.state_dict().items():
            np.testing.assert_array_equal(value, source.state_dict()[name])
        with np.load(path) as arrays:
            assert set(arrays) == set(source.state_dict())

    def test_every_problem_is_named_and_nothing_is_loaded(self):
        network = digit_network()
        before = network.state_dict()
        state = {**digit_network(rng=1).state_dict(), "extra": np.zeros(1)}
        del state["7.bias"]
        state["3.weight"] = state["3.weight"][:, :2]
        with pytest.raises(convx.ShapeError) as caught:
            network.load_state_dict(state)
        message = str(caught.value)
        assert "missing '7.bias'" in message
        assert "unexpected 'extra'" in message
        assert "'3.weight' has shape (6, 2, 3, 3), expected (6, 4, 3, 3)" in message
        for name, value in network.state_dict().items():
            np.testing.assert_array_equal(value, before[name])

    def test_precision_converts_but_integers_do_not_load(self):
        network, double = digit_network(), digit_network("f8")
        network.load_state_dict(double.state_dict())
        assert network[0].weight.value.dtype == "float32"
        state = network.state_dict()
        with pytest.raises(TypeError, match=r"load_state_dict: '0\.bias' has dtype int64, expected floating point"):
            network.load_state_dict({**state, "0.bias": np.zeros(4, int)})
        with pytest.raises(TypeError, match=r"load_state_dict: '0\.bias' is list, expected an array"):
            network.load_state_dict({**state, "0.bias": [0.0] * 4})

    def test_files_that_are_no_state(self, tmp_path):
        network = digit_network()
        with pytest.raises(FileNotFoundError):
            network.load(tmp_path / "missing.npz")
        text = tmp_path / "text.npz"
        text.write_text("not a zip file")
        with pytest.raises(ValueError, match=r"load: .*text\.npz is not an npz file"):
            network.load(text)

        harmful = tmp_path / "harmful.npz"
        np.savez(harmful, **{"0.weight": np.array([print], dtype=object)})
        with pytest.raises(ValueError, match="allow_pickle"):
            network.load(harmful)

    def test_a_module_finds_parameters_of_its_own(self):
        class Scale(nn.Module):
            def __init__(self):
                self.factor = nn.Parameter(np.ones(1), "factor")
                self.inner = nn.Sequential(nn.Linear(2, 2, dtype="f8", rng=0))

        assert list(Scale().state_dict()) == ["factor", "inner.0.weight", "inner.0.bias"]
        with pytest.raises(NotImplementedError, match="Scale does not define forward"):
            Scale().forward(np.ones(1))
        with pytest.raises(NotImplementedError, match="Scale does not define backward"):
            Scale().backward(np.ones(1), None)


class TestInitialisation:
    def test_he_variance_and_zero_bias(self):
        layer = nn.Conv2d(64, 128, 3, groups=2, rng=0)
        assert layer.weight.value.shape == (128, 32, 3, 3)
        assert layer.weight.value.dtype == "float32"
        # 36,864 samples: the standard deviation of the estimate is 0.4 %, that of the mean 0.5 % of sigma.
        sigma = math.sqrt(2 / (32 * 3 * 3))
        assert layer.weight.value.std() == pytest.approx(sigma, rel=0.02)
        assert abs(layer.weight.value.mean()) < 0.025 * sigma
        assert not layer.bias.value.any()
        assert nn.Linear(512, 256, rng=0).weight.value.std() == pytest.approx(math.sqrt(2 / 512), rel=0.02)

    def test_the_variance_behind_a_transposed_convolution(self):
        """An input of variance 1/2, as behind a ReLU, gives an output of variance 1 for any stride."""
        x = np.random.default_rng(0).standard_normal((2, 64, 20, 20), np.float32) * math.sqrt(0.5)
        for options in (dict(stride=2), dict(stride=(1, 2), groups=4), dict()):
            layer = nn.ConvTranspose2d(64, 32, 4, rng=0, **options)
            assert layer.weight.value.shape == (64, 32 // options.get("groups", 1), 4, 4)
            # Pixels that all windows reach; 32 channels with independent weights: their variance is within 5 %.
            assert layer(x)[:, :, 4:-4, 4:-4].var() == pytest.approx(1, rel=0.1)
            assert not layer.bias.value.any()

    def test_reproducible(self):
        def weights(rng, dtype="f4"):
            return nn.Conv2d(2, 3, 3, dtype=dtype, rng=rng).weight.value

        np.testing.assert_array_equal(weights(5), weights(5))
        np.testing.assert_array_equal(weights(5), weights(np.random.default_rng(5)))
        np.testing.assert_array_equal(weights(5), weights(5, "f8").astype("f4"))
        assert not np.array_equal(weights(5), weights(6))
        assert not np.array_equal(weights(None), weights(None))
        rng = np.random.default_rng(5)
        assert not np.array_equal(weights(rng), weights(rng))


class TestCrossEntropyLoss:
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    @pytest.mark.parametrize("label_dtype", ["i8", "i4", "u1", "u8"])
    def test_against_torch(self, reduction, label_dtype):
        torch = pytest.importorskip("torch")
        rng = np.random.default_rng(16)
        scores, labels = rng.standard_normal((6, 5)) * 10, rng.integers(0, 5, 6)
        criterion = nn.CrossEntropyLoss(reduction)
        loss, context = criterion.forward(scores, labels.astype(label_dtype))
        torch_scores = torch.from_numpy(scores).requires_grad_()
        torch_loss = torch.nn.CrossEntropyLoss(reduction=reduction)(torch_scores, torch.from_numpy(labels))
        torch_loss.backward()
        assert float(loss) == pytest.approx(torch_loss.item(), rel=1e-13)
        np.testing.assert_allclose(criterion.backward(context), torch_scores.grad.numpy(), rtol=1e-12, atol=1e-16)

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_gradient_is_the_finite_difference(self, reduction):
        rng = np.random.default_rng(17)
        scores, labels = rng.standard_normal((3, 4)), rng.integers(0, 4, 3)
        criterion = nn.CrossEntropyLoss(reduction)
        grad = criterion.backward(criterion.forward(scores, labels)[1])
        expected = numeric_gradient(lambda: float(criterion(scores, labels)), scores)
        np.testing.assert_allclose(grad, expected, **DIFFERENCE_TOLERANCE)

    def test_large_scores_do_not_overflow(self):
        scores = np.array([[1e4, 0, -1e4], [-1e30, 1e30, 0]], np.float32)
        criterion = nn.CrossEntropyLoss("sum")
        loss, context = criterion.forward(scores, np.array([0, 1]))
        assert loss == 0
        assert loss.dtype == "float32"
        np.testing.assert_array_equal(criterion.backward(context), np.zeros_like(scores))
        assert criterion(scores, np.array([2, 1])) == 2e4

    def test_no_rows(self):
        scores, labels = np.empty((0, 3)), np.empty(0, int)
        criterion = nn.CrossEntropyLoss("sum")
        loss, context = criterion.forward(scores, labels)
        assert loss == 0
        assert criterion.backward(context).shape == (0, 3)
        with pytest.raises(convx.ShapeError, match="CrossEntropyLoss: input has no rows"):
            nn.CrossEntropyLoss()(scores, labels)

    @pytest.mark.parametrize(
        ("scores", "labels", "error", "message"),
        [
            (np.zeros((2, 3, 4)), np.zeros(2, int), convx.ShapeError, r"input has shape \(2, 3, 4\), expected \(N, cl"),
            (np.zeros((2, 0)), np.zeros(2, int), convx.ShapeError, r"input has shape \(2, 0\)"),
            (np.zeros((2, 3)), np.zeros(3, int), convx.ShapeError, r"labels have shape \(3,\), expected \(2,\)"),
            (np.zeros((2, 3), int), np.zeros(2, int), TypeError, "input has dtype int64, expected floating point"),
            (np.zeros((2, 3)), np.zeros(2), TypeError, "labels have dtype float64, expected integers"),
            (np.zeros((2, 3)), [0, 1], TypeError, "labels is list, expected an array"),
            ([[0.0]], np.zeros(1, int), TypeError, "input is list, expected an array"),
            (np.zeros((2, 3)), np.array([0, 3]), ValueError, "label 3 of row 1 is not a class, expected 0 to 2"),
            (np.zeros((2, 3)), np.array([-1, 0]), ValueError, "label -1 of row 0 is not a class"),
        ],
    )
    def test_errors(self, scores, labels, error, message):
        with pytest.raises(error, match=f"CrossEntropyLoss: {message}"):
            nn.CrossEntropyLoss()(scores, labels)

    def test_unknown_reduction(self):
        with pytest.raises(ValueError, match="CrossEntropyLoss: reduction is 'none', expected one of mean, sum"):
            nn.CrossEntropyLoss("none")


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: nn.Conv2d(0, 1, 3), convx.ShapeError, "Conv2d: in_channels is 0, expected a positive number"),
        (lambda: nn.Conv2d(1, 2.0, 3), TypeError, "Conv2d: out_channels is a float, expected an integer"),
        (
            lambda: nn.Conv2d(3, 4, 3, groups=2),
            convx.ShapeError,
            "Conv2d: groups is 2, expected a divisor of the 3 input channels",
        ),
        (
            lambda: nn.Conv2d(4, 3, 3, groups=2),
            convx.ShapeError,
            "Conv2d: groups is 2, expected a divisor of the 3 output",
        ),
        (
            lambda: nn.Conv2d(1, 1, (3, 0)),
            convx.ShapeError,
            r"Conv2d: kernel_size is \(3, 0\), expected positive numbers",
        ),
        (
            lambda: nn.Conv2d(1, 1, (3, 3, 3)),
            convx.ShapeError,
            r"Conv2d: kernel_size is \(3, 3, 3\), expected an integer or a pair",
        ),
        (lambda: nn.Conv2d(1, 1, 3, dtype=int), TypeError, "Conv2d: dtype is int64, expected float32 or float64"),
        (
            lambda: nn.ConvTranspose2d(4, 3, 3, groups=2),
            convx.ShapeError,
            "ConvTranspose2d: groups is 2, expected a divisor of the 3 output channels",
        ),
        (
            lambda: nn.ConvTranspose2d(4, 3, 3, 0),
            convx.ShapeError,
            r"ConvTranspose2d: stride is \(0, 0\), expected pos",
        ),
        (lambda: nn.MaxPool2d("2"), TypeError, "MaxPool2d: kernel_size is a str, expected an integer or a pair"),
        (lambda: nn.Linear(True, 1), TypeError, "Linear: in_features is a bool, expected an integer"),
        (lambda: nn.Linear(1, -1), convx.ShapeError, "Linear: out_features is -1, expected a positive number"),
        (lambda: nn.Conv2d(3, 4, 3, padding="SAME"), convx.ShapeError, "Conv2d: padding is 'SAME', expected"),
        (lambda: nn.Conv2d(3, 4, 3, padding=-1), convx.ShapeError, "Conv2d: padding is"),
        (lambda: nn.Conv2d(3, 4, 3, padding_mode="wrap"), convx.ShapeError, "Conv2d: padding_mode is 'wrap', expected"),
        (lambda: nn.Conv2d(3, 4, 3, padding_value="1"), TypeError, "Conv2d: padding_value is a str, expected"),
        (lambda: nn.Conv2d(3, 4, 3, stride=0), convx.ShapeError, r"Conv2d: stride is \(0, 0\), expected positive"),
        (lambda: nn.Conv2d(3, 4, 3, stride=1.5), TypeError, "Conv2d: stride is a float, expected an integer"),
        (lambda: nn.Conv2d(3, 4, 3, dilation=(1, 0)), convx.ShapeError, r"Conv2d: dilation is \(1, 0\), expected pos"),
        (lambda: nn.Conv2d(3, 4, 3, groups=0), convx.ShapeError, "Conv2d: groups is 0, expected"),
        (lambda: nn.Conv2d(3, 4, 3, bias="no"), TypeError, "Conv2d: bias is a str, expected"),
        (lambda: nn.Conv2d(3, 4, 3, dtype="f2"), TypeError, "Conv2d: dtype is float16, expected float32 or float64"),
        (lambda: nn.Conv2d(3, 4, 3, dtype=">f4"), TypeError, "Conv2d: dtype is >f4, expected float32 or float64"),
        (lambda: nn.Conv2d(3, 4, 3, layout="CHWN"), convx.ShapeError, "Conv2d: layout is 'CHWN', expected"),
        (lambda: nn.Conv2d(3, 4, 3, algorithm="fft"), convx.ShapeError, "Conv2d: algorithm is 'fft', expected"),
        (lambda: nn.Conv2d(3, 4, 5, algorithm="winograd"), convx.ShapeError, 'Conv2d: algorithm is "winograd" with'),
        (
            lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=2),
            convx.ShapeError,
            "ConvTranspose2d: output_padding is",
        ),
        (lambda: nn.ConvTranspose2d(3, 4, 3, padding=-1), convx.ShapeError, "ConvTranspose2d: padding is"),
        (lambda: nn.ConvTranspose2d(3, 4, 3, bias=2), TypeError, "ConvTranspose2d: bias is an int, expected"),
        (lambda: nn.MaxPool2d(2, padding=2), convx.ShapeError, "MaxPool2d: padding is"),
        (lambda: nn.MaxPool2d(2, stride=0), convx.ShapeError, r"MaxPool2d: stride is \(0, 0\), expected positive"),
        (lambda: nn.MaxPool2d(0), convx.ShapeError, r"MaxPool2d: kernel_size is \(0, 0\), expected positive"),
        (lambda: nn.MaxPool2d(2, ceil_mode="yes"), TypeError, "MaxPool2d: ceil_mode is a str, expected"),
        (lambda: nn.MaxPool2d(2, layout="nchw"), convx.ShapeError, "MaxPool2d: layout is 'nchw', expected"),
        (lambda: nn.Linear(1, 1, bias="no"), TypeError, "Linear: bias is a str, expected"),
        (lambda: nn.Linear(1, 1, dtype="f2"), TypeError, "Linear: dtype is float16, expected float32 or float64"),
        (lambda: nn.Parameter([1.0], "scale"), TypeError, "Parameter: scale is list, expected an array"),
    ],
)
def test_constructor_errors(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.Linear(4, 2)(np.zeros((2, 3), np.float32)), convx.ShapeError, r"Linear: input has 3 features, exp"),
        (lambda: nn.Linear(4, 2)(np.zeros((), np.float32)), convx.ShapeError, "Linear: input has no axis, expected 4"),
        (lambda: nn.Linear(4, 2)([0.0] * 4), TypeError, "Linear: input is list, expected an array"),
        (
            lambda: nn.Linear(4, 2)(np.zeros((1, 4))),
            TypeError,
            r"Linear: input has dtype float64, expected float32 \(that",
        ),
        (
            lambda: nn.Flatten(2)(np.zeros((2, 3))),
            convx.ShapeError,
            "Flatten: cannot join the axes 2 to -1 of an input",
        ),
        (lambda: nn.Flatten()([[0.0]]), TypeError, "Flatten: input is list, expected an array"),
        (lambda: nn.Conv2d(3, 2, 3)(np.zeros((1, 4, 8, 8), np.float32)), convx.ShapeError, "conv2d: "),
        (lambda: nn.MaxPool2d(3)(np.zeros((1, 1, 2, 2), np.float32)), convx.ShapeError, "max_pool2d: "),
        (
            lambda: nn.Parameter(np.ones(2), "scale").accumulate(np.ones(3)),
            convx.ShapeError,
            r"scale: gradient has shape",
        ),
        (
            lambda: nn.Parameter(np.ones(2), "scale").accumulate(np.ones(2, "f4")),
            TypeError,
            "scale: gradient has dtype",
        ),
    ],
)
def test_call_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
