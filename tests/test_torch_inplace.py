"""In-place changes around an operation: allowed where PyTorch's own operations allow them."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import convx.torch  # noqa: E402

CHANGES = {
    "div_": lambda y: y.div_(6),
    "+=": lambda y: y.add_(1),
    "mul_ of a part": lambda y: (y[..., :2].mul_(3), y)[1],
    "relu_": lambda y: F.relu(y, inplace=True),
    "relu6_": lambda y: F.relu6(y, inplace=True),
    "dropout in place": lambda y: F.dropout(y, 0.0, inplace=True),
    "zero_": lambda y: y.zero_() + 1,
}
LAYERS = {
    "conv": lambda: [nn.Conv2d(4, 4, 3)],
    "conv in channels_last": lambda: [nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)],
    "transposed": lambda: [nn.ConvTranspose2d(4, 4, 3)],
    "transposed with output padding": lambda: [nn.ConvTranspose2d(4, 4, 3, 2, output_padding=1)],
    "relu": lambda: [nn.ReLU()],
    "relu in place": lambda: [nn.Conv2d(4, 4, 3), nn.ReLU(True)],
    "relu6": lambda: [nn.ReLU6()],
    "relu6 in place": lambda: [nn.ReLU6(True)],
    "conv relu6": lambda: [nn.Conv2d(4, 4, 3), nn.ReLU6()],
    "conv relu6 in place": lambda: [nn.Conv2d(4, 4, 3), nn.ReLU6(True)],
    "pool": lambda: [nn.MaxPool2d(2)],
    "large pool": lambda: [nn.MaxPool2d(16, 1, 8)],
    "conv relu": lambda: [nn.Conv2d(4, 4, 3), nn.ReLU()],
    "conv relu pool": lambda: [nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool2d(2)],
}


def outcome(layer, change_output, change_input, frozen, x):
    """The gradients, or None where autograd refuses a change of a saved tensor."""
    for parameter in layer.parameters():
        parameter.requires_grad_(not frozen)
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    given = leaf * 4
    try:
        y = change_output(layer(given))
        if change_input:
            given.mul_(2)
        return torch.autograd.grad((y * y).sum(), [leaf, *(() if frozen else layer.parameters())], allow_unused=True)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return None


def assert_no_less(ours, theirs):
    """Where PyTorch has gradients, convx has the same."""
    if theirs is None:
        return
    assert ours is not None
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_changes_around_a_layer(name, frozen):
    torch.manual_seed(0)
    plain = nn.Sequential(*LAYERS[name]())
    converted = convx.torch.convert(plain, inplace=False, verbose=False)
    x = torch.randn(2, 4, 9, 9)
    if "channels_last" in name:
        x = x.contiguous(memory_format=torch.channels_last)
    trained = 0
    for change in (lambda y: y, *CHANGES.values()):
        for of_input in (False, True):
            theirs = outcome(plain, change, of_input, frozen, x)
            trained += theirs is not None
            assert_no_less(outcome(converted, change, of_input, frozen, x), theirs)
    assert trained


FUNCTIONS = {
    "conv2d": (lambda x, w: convx.torch.conv2d(x, w), F.conv2d),
    "conv2d relu": (lambda x, w: convx.torch.conv2d(x, w, activation="relu"), lambda x, w: F.relu(F.conv2d(x, w))),
    "conv_transpose2d": (convx.torch.conv_transpose2d, F.conv_transpose2d),
    "fused": (
        lambda x, w: convx.torch.conv2d_relu_max_pool2d(x, w, pool_kernel_size=2),
        lambda x, w: F.max_pool2d(F.relu(F.conv2d(x, w)), 2),
    ),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_operand_that_no_gradient_needs_may_change(name, memory_format):
    """With a gradient of the weight alone the weight is not kept; without one the input is not kept."""
    images, weight = (torch.randn(size, dtype=torch.float64) for size in ((2, 4, 9, 9), (4, 4, 3, 3)))
    images = images.contiguous(memory_format=memory_format)
    for wanted in (0, 1):
        for twice in (False, True):
            results = []
            for function in FUNCTIONS[name]:
                leaves = [images.clone().requires_grad_(wanted == 0), weight.clone().requires_grad_(wanted == 1)]
                used = [leaf * 1 for leaf in leaves]
                y = function(*used)
                if function is FUNCTIONS[name][0]:  # PyTorch's own operations keep both
                    used[wanted].mul_(3)
                (grad,) = torch.autograd.grad((y * y).sum(), leaves[wanted], create_graph=twice)
                if twice:
                    (grad,) = torch.autograd.grad((grad * grad).sum(), leaves[wanted])
                results.append([grad])
            assert_no_less(*results)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_relu6_changed_and_differentiated_twice(kind, inplace):
    x = (torch.randn(2, 3, 5, 7, dtype=kind) * 6).contiguous(memory_format=torch.channels_last)
    x[0, 0, 0, :3] = torch.tensor([0.0, 6.0, -0.0])
    results = []
    for layer in (nn.ReLU6(inplace), convx.torch.ReLU6(inplace)):
        leaf = x.clone().requires_grad_()
        y = layer(leaf * 1).div_(6)
        (first,) = torch.autograd.grad((y**3).sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), leaf)
        results.append((first.detach(), second))
        leaf = x.clone().requires_grad_()
        y = layer(leaf * 1)
        batch = torch.autograd.grad(y, leaf, torch.randn(3, *x.shape, dtype=kind).fill_(2), is_grads_batched=True)
        results[-1] += batch
    for theirs, ours in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_relu6_of_nan_is_pytorchs():
    """PyTorch's vector code stops a gradient where the input is NaN, its scalar tail passes it on."""
    for size in (1, 7, 8, 16, 33, 70):
        grads = []
        for layer in (nn.ReLU6(), convx.torch.ReLU6()):
            leaf = torch.full((size,), float("nan"), requires_grad=True)
            grads.append(torch.autograd.grad(layer(leaf), leaf, torch.ones(size))[0])
        assert torch.equal(*grads)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled():
    torch._dynamo.reset()
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(True))
    converted = convx.torch.convert(plain, inplace=False, verbose=False)
    compiled = torch.compile(lambda x: converted(x).div_(6), fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 8, 8)
    grads = []
    for function in (lambda x: plain(x).div_(6), compiled):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        grads.append(torch.autograd.grad((y * y).sum(), leaf)[0])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
