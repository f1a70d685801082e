"""convx.optim against PyTorch over several steps; state, and errors."""

import numpy as np
import pytest

import convx
from convx import nn, optim

CASES = [
    (optim.SGD, {"lr": 0.1}),
    (optim.SGD, {"lr": 0.1, "weight_decay": 0.3}),
    (optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    (optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    (optim.Adam, {}),
    (optim.Adam, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2}),
]
STEPS = 7
identify = [f"{kind.__name__}-{'-'.join(options)}" for kind, options in CASES]


def parameters(dtype="f8"):
    rng = np.random.default_rng(0)
    return [nn.Parameter(rng.standard_normal(shape).astype(dtype)) for shape in ((3, 2, 3, 3), (4,))]


def gradients(dtype="f8", steps=STEPS):
    rng = np.random.default_rng(1)
    return [[rng.standard_normal(each.value.shape).astype(dtype) for each in parameters()] for _ in range(steps)]


def run(optimizer, steps):
    for grads in steps:
        optimizer.zero_grad()
        for parameter, grad in zip(optimizer.parameters, grads, strict=True):
            if grad is not None:
                parameter.accumulate(grad)
        optimizer.step()


@pytest.mark.parametrize(("kind", "options"), CASES, ids=identify)
def test_against_torch(kind, options, dtype):
    torch = pytest.importorskip("torch")
    ours = parameters(dtype)
    theirs = [torch.nn.Parameter(torch.from_numpy(each.value.copy())) for each in ours]
    optimizer = kind(ours, **options)
    twin = getattr(torch.optim, kind.__name__)(theirs, **options)
    # The second parameter has no gradient in the third step: it and its step count must stay.
    steps = gradients(dtype)
    steps[2][1] = None
    for grads in steps:
        run(optimizer, [grads])
        for parameter, grad in zip(theirs, grads, strict=True):
            parameter.grad = None if grad is None else torch.from_numpy(grad)
        twin.step()
        tolerance = {"rtol": 2e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-14}
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.value.dtype == np.dtype(dtype)
            np.testing.assert_allclose(mine.value, other.detach().numpy(), **tolerance)


@pytest.mark.parametrize(("kind", "options"), CASES, ids=identify)
def test_steps_change_values_in_place_and_leave_gradients(kind, options):
    ours, grads = parameters(), gradients(steps=1)[0]
    arrays, before = [each.value for each in ours], [each.value.copy() for each in ours]
    kept = [grad.copy() for grad in grads]
    run(kind(ours, **options), [grads])
    for parameter, array, old, grad, original in zip(ours, arrays, before, grads, kept, strict=True):
        assert parameter.value is array
        assert not np.array_equal(array, old)
        np.testing.assert_array_equal(grad, original)


@pytest.mark.parametrize(("kind", "options"), CASES, ids=identify)
@pytest.mark.parametrize("through_file", [False, True])
def test_training_goes_on_after_a_round_trip(kind, options, through_file, tmp_path):
    steps = gradients()
    whole = kind(parameters(), **options)
    run(whole, steps)

    first = kind(parameters(), **options)
    run(first, steps[:3])
    state = first.state_dict()
    if through_file:
        np.savez(tmp_path / "state.npz", **state)
        with np.load(tmp_path / "state.npz", allow_pickle=False) as arrays:
            state = dict(arrays)
    # Other hyperparameters, which loading the state replaces.
    second = kind([nn.Parameter(each.value.copy()) for each in first.parameters], lr=0.5)
    second.load_state_dict(state)
    run(first, steps[3:5])  # the state dict is a copy: this must not reach the second
    run(second, steps[3:])
    assert repr(second) == repr(whole)
    for found, expected in zip(second.parameters, whole.parameters, strict=True):
        np.testing.assert_array_equal(found.value, expected.value)


def test_state_errors_name_everything_and_change_nothing():
    optimizer = optim.Adam(parameters())
    run(optimizer, gradients(steps=1))
    before = repr(optimizer), optimizer.state_dict()
    state = optimizer.state_dict()
    del state["lr"], state["1.exp_avg"]
    state.update({"2.exp_avg": np.zeros(3), "momentum": 0.9, "0.exp_avg_sq": np.zeros(5)})
    with pytest.raises(convx.ShapeError) as caught:
        optimizer.load_state_dict(state)
    for part in (
        "load_state_dict: Adam: missing 'lr'",
        "missing '1.exp_avg'",
        "unexpected '2.exp_avg'",
        "unexpected 'momentum'",
        "'0.exp_avg_sq' has shape (5,), expected (3, 2, 3, 3)",
    ):
        assert part in str(caught.value)
    assert repr(optimizer) == before[0]
    for name, value in optimizer.state_dict().items():
        np.testing.assert_array_equal(value, before[1][name])


def test_hyperparameters_are_attributes():
    parameter = nn.Parameter(np.array([1.0]))
    optimizer = optim.SGD([parameter], lr=1.0)
    optimizer.lr *= 0.5
    run(optimizer, [[np.array([1.0])]])
    assert parameter.value.tolist() == [0.5]


def test_the_same_layer_twice_is_trained_once():
    layer = nn.Linear(2, 2, rng=0)
    network = nn.Sequential(layer, layer)
    assert len(optim.SGD(network.parameters(), 0.1).parameters) == 2


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: optim.SGD([], 0.1), ValueError, "SGD: there are no parameters"),
        (lambda: optim.SGD([np.zeros(3)], 0.1), TypeError, "SGD: parameter 0 is a numpy.ndarray, expected a convx"),
        (lambda: optim.Adam(parameters()[:1] * 2), ValueError, r"Adam: parameter 1 \(parameter\) occurs twice"),
        (lambda: optim.SGD(parameters(), -0.1), ValueError, r"SGD: lr is -0\.1, expected 0 <= lr < inf"),
        (lambda: optim.SGD(parameters(), float("nan")), ValueError, "SGD: lr is nan"),
        (lambda: optim.SGD(parameters(), "fast"), TypeError, "SGD: lr is 'fast', expected a number"),
        (lambda: optim.SGD(parameters(), 0.1, 1.0), ValueError, r"momentum is 1\.0, expected 0 <= momentum < 1"),
        (lambda: optim.SGD(parameters(), 0.1, nesterov=True), ValueError, "SGD: nesterov needs a momentum above 0"),
        (lambda: optim.SGD(parameters(), 0.1, weight_decay=-1), ValueError, "SGD: weight_decay is -1"),
        (lambda: optim.Adam(parameters(), betas=(0.9, 1)), ValueError, r"Adam: betas\[1\] is 1, expected 0 <= betas"),
        (lambda: optim.Adam(parameters(), betas=0.9), TypeError, r"Adam: betas is 0\.9, expected a pair of numbers"),
        (lambda: optim.Adam(parameters(), eps=float("inf")), ValueError, "Adam: eps is inf"),
    ],
)
def test_constructor_errors(build, error, message):
    with pytest.raises(error, match=message):
        build()
