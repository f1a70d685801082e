"""convert and revert where a model refers to itself or cannot be copied: hooks, closures, lists; in place or not."""

# ruff: noqa: E402 (nothing here can be imported where PyTorch is not)
from __future__ import annotations

import collections
import copy
import functools
import io
import pickle
import threading
import types
import weakref

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn.utils import parametrizations, parametrize

import convx
import convx.torch as ct
from torch_cases import as_channels_last

BOTH = pytest.mark.parametrize("inplace", [True, False], ids=["in place", "a copy"])


@pytest.fixture(autouse=True)
def calm_torch():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def images(n=1, size=8):
    return torch.randn(n, 3, size, size)


def kinds(model):
    return [type(each) for each in model.modules()]


def is_convx(layer):
    return type(layer).__module__ == "convx.torch.modules"


def quietly(function, model, **options):
    return function(model, verbose=False, **options)


class Body(nn.Module):
    """A convolution, a ReLU and a convolution; `hold` makes the other attributes."""

    def __init__(self, hold=None):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.kept = {}
        if hold:
            hold(self)

    def forward(self, x):
        return self.body(x)


def generator():
    yield 1


HELD = {
    "activation": lambda y: y,
    "list": lambda y: [y],
    "dict": lambda y: {"a": [y]},
    "tuple": lambda y: (y, (y,)),
    "named tuple": lambda y: collections.namedtuple("Kept", "y")(y),
    "deque": lambda y: collections.deque([y]),
    "namespace": lambda y: types.SimpleNamespace(y=y),
    "lock": lambda y: threading.Lock(),
    "thread": lambda y: threading.current_thread(),
    "event": lambda y: {"done": threading.Event()},
    "generator": lambda y: generator(),
    "weak reference": lambda y: weakref.ref(y),
    "closure over a lock": lambda y: lambda lock=threading.Lock(): lock,  # noqa: B008
    "file": lambda y: io.BytesIO(b"x"),
    "module": lambda y: threading,
    "graph": lambda y: y.grad_fn,
}


class TestWhatAModelHolds:
    @BOTH
    @pytest.mark.parametrize("name", HELD)
    def test_nothing_of_it_is_copied(self, name, inplace):
        model, x = Body(), images()
        y = model(x)
        model.kept = kept = HELD[name](y)
        converted = quietly(ct.convert, model, inplace=inplace)
        assert converted.kept is kept
        torch.testing.assert_close(converted(x), y)
        reverted = quietly(ct.revert, converted, inplace=inplace)
        assert reverted.kept is kept
        assert not any(map(is_convx, reverted.modules()))
        assert torch.equal(reverted(x), y)

    def test_in_place_is_the_default_and_the_model_itself(self):
        model = Body()
        layers, state = list(model.modules()), model.state_dict(keep_vars=True)
        assert quietly(ct.convert, model) is model
        assert all(one is other for one, other in zip(model.modules(), layers, strict=True))
        assert all(value is state[name] for name, value in model.state_dict(keep_vars=True).items())
        assert [type(each) for each in model.body] == [ct.Conv2d, ct.ReLU, ct.Conv2d]
        assert quietly(ct.revert, model) is model
        assert [type(each) for each in model.body] == [nn.Conv2d, nn.ReLU, nn.Conv2d]

    @BOTH
    def test_nothing_is_left_after_revert(self, inplace):
        model = Body()
        model.body[0].register_forward_hook(print)
        before = [(type(each), vars(each).keys()) for each in model.modules()]
        hooks = dict(model.body[0]._forward_hooks)
        converted = quietly(ct.convert, model, inplace=inplace, algorithm="direct")
        for _ in range(2):
            converted = quietly(ct.revert, converted, inplace=inplace)
            assert [(type(each), vars(each).keys()) for each in converted.modules()] == before
            assert converted.body[0]._forward_hooks == hooks

    def test_twice(self):
        model, x = Body(), images()
        expected = model(x)
        for _ in range(2):
            quietly(ct.convert, model)
            torch.testing.assert_close(model(x), expected)
        assert kinds(model)[1:] == [ct.Sequential, ct.Conv2d, ct.ReLU, ct.Conv2d]

    def test_inside_inference_mode(self):
        model, x = Body(), images()
        with torch.inference_mode():
            expected = model(x)
            for inplace in (True, False):
                torch.testing.assert_close(quietly(ct.convert, model, inplace=inplace)(x), expected)
        model(x).sum().backward()


class Saver:
    """A hook that is an object with its own class."""

    def __init__(self, model):
        self.model = model

    def __call__(self, module, args, output):
        self.model.feature = output


def bound(model):
    model.body[1].register_forward_hook(types.MethodType(lambda self, *args: setattr(self, "feature", args[2]), model))


def weak(model):
    proxy = weakref.proxy(model)
    model.body[1].register_forward_hook(lambda *args: setattr(proxy, "feature", args[2]))


def forward(model):
    plain = model.body[1].forward
    model.body[1].forward = lambda x: model.__dict__.__setitem__("feature", plain(x)) or model.feature


HOOKS = {
    "dict": lambda model: model.body[1].register_forward_hook(lambda *args: setattr(model, "feature", args[2])),
    "before": lambda model: model.body[2].register_forward_pre_hook(
        lambda *args: setattr(model, "feature", args[1][0])
    ),
    "partial": lambda model: model.body[1].register_forward_hook(
        functools.partial(lambda model, *args: setattr(model, "feature", args[2]), model)
    ),
    "object": lambda model: model.body[1].register_forward_hook(Saver(model)),
    "on the model": lambda model: model.body.register_forward_hook(lambda *args: setattr(model, "feature", args[2])),
    "bound": bound,
    "weak": weak,
    "forward": forward,
}


class Features(Body):
    def forward(self, x):
        self.body(x)
        return self.feature


class TestReferencesToTheModel:
    @pytest.mark.parametrize("run_before", [False, True], ids=["never run", "run before"])
    @pytest.mark.parametrize("name", HOOKS)
    def test_hooks_that_write_into_it(self, name, run_before):
        model, plain, x = Features(HOOKS[name]), Features(HOOKS[name]), images()
        plain.load_state_dict(model.state_dict())
        if run_before:
            with torch.no_grad():
                model(x)
        converted = quietly(ct.convert, model)
        assert converted.conversion.swapped
        for factor in (1, 2):
            torch.testing.assert_close(converted(factor * x), plain(factor * x))
        assert torch.equal(quietly(ct.revert, converted)(x), plain(x))

    def test_a_copy_says_what_refers_to_the_original(self):
        def hold(model):
            HOOKS["dict"](model)
            model.layers = [model.body[0], model.body[2]]
            model.act = lambda x: model.body[1](x)
            model.bound = model.body.forward

        model = Body(hold)
        converted = quietly(ct.convert, model, inplace=False)
        assert converted.conversion.references == ["layers[0]", "layers[1]", "act", "bound", "a hook of body.1"]
        assert converted.conversion.copied == ["", "body", "body.0", "body.2"]
        assert "refers to the original: layers[0]" in str(converted.conversion)
        assert "converted a copy: 4 modules are new" in str(converted.conversion)
        assert not quietly(ct.convert, model).conversion.references

    @BOTH
    def test_layers_in_a_plain_list_too(self, inplace):
        class Listed(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
                self.layers = [self.first, self.second]

            def forward(self, x):
                for layer in self.layers:
                    x = layer(x)
                return x

        model, x = Listed(), images()
        expected = model(x)
        converted = quietly(ct.convert, model, inplace=inplace)
        torch.testing.assert_close(converted(x), expected)
        assert not converted.conversion.skipped
        assert is_convx(converted.layers[0]) == inplace

    @BOTH
    @pytest.mark.parametrize("registered", [False, True])
    def test_children_that_hold_their_parent(self, inplace, registered):
        model, x = Body(), images()
        if registered:
            model.body.parent = model
        else:
            model.body[0].parents = [model]
        model.body.forward = lambda x: nn.Sequential(*list(model.body)[:3])(x)
        expected = model(x)
        converted = quietly(ct.convert, model, inplace=inplace)
        torch.testing.assert_close(converted(x), expected)
        if registered:
            assert converted.body.parent is converted
        assert not any(map(is_convx, quietly(ct.revert, converted, inplace=inplace).modules()))


@BOTH
@pytest.mark.parametrize("layer", [nn.Conv2d(3, 3, 1), nn.ConvTranspose2d(3, 3, 1), nn.ReLU(), nn.ReLU6()])
def test_a_forward_wrapped_after_converting_outlives_revert(layer, inplace, capsys):
    """Wraps forward, like tools that place layers on devices."""
    model, x = quietly(ct.convert, nn.Sequential(copy.deepcopy(layer))), images()
    plain = model[0].forward
    model[0].forward = lambda x: 2 * plain(x)
    reverted = ct.revert(model, inplace=inplace)
    assert f"skipped: 0: {type(layer).__name__}: its forward was replaced" in capsys.readouterr().out
    torch.testing.assert_close(reverted(x), 2 * layer(x))
    del model[0].forward
    assert not any(map(is_convx, quietly(ct.revert, model).modules()))


def test_a_replaced_forward_is_not_said_to_be_fused():
    model, x = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), images()
    plain = model.forward
    model.forward = lambda x: 2 * plain(x)
    expected = model(x)
    converted = quietly(ct.convert, model)
    assert not converted.conversion.fused
    assert type(converted) is nn.Sequential
    torch.testing.assert_close(converted(x), expected)


TEACHERS = {
    "list": lambda teacher: [teacher],
    "nested": lambda teacher: {"deep": ((teacher,),)},
    "dict": lambda teacher: {"t": teacher},
    "closure": lambda teacher: lambda x: teacher(x),
    "bound": lambda teacher: teacher.forward,
    "partial": lambda teacher: functools.partial(teacher),
    "set": lambda teacher: {teacher},
}


class Distilled(nn.Module):
    def __init__(self, held):
        super().__init__()
        self.student, self.teacher = nn.Conv2d(3, 3, 1), held
        self.anchors = [torch.zeros(3)]


class TestUnregistered:
    @BOTH
    @pytest.mark.parametrize("name", TEACHERS)
    def test_modules_are_shared_and_named(self, name, inplace, capsys):
        teacher = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Linear(3, 3))
        model = Distilled(TEACHERS[name](teacher))
        converted = ct.convert(model, inplace=inplace)
        assert converted.teacher is model.teacher
        assert converted.anchors is model.anchors
        assert converted.student.weight is model.student.weight
        assert kinds(teacher) == [nn.Sequential, nn.Conv2d, nn.ReLU, nn.Linear]
        ((where, why),) = converted.conversion.skipped.items()
        assert where.startswith("teacher")
        assert why.startswith("1 Conv2d, 1 ReLU not swapped: not registered")
        assert f"skipped: {where}: {why}" in capsys.readouterr().out
        quietly(ct.convert, teacher)
        ct.revert(converted, inplace=inplace)
        assert f"skipped: {where}: 1 Sequential, 1 Conv2d, 1 ReLU not swapped back" in capsys.readouterr().out

    def test_an_attribute_past_registration(self):
        model = Body(lambda model: object.__setattr__(model, "aside", nn.Conv2d(3, 3, 1)))
        assert list(quietly(ct.convert, model).conversion.skipped) == ["aside"]
        assert type(model.aside) is nn.Conv2d

    def test_however_deep_and_whatever_the_keys(self):
        class Key:
            def __repr__(self):
                raise RuntimeError

        deep = [nn.Conv2d(3, 3, 1)]
        for _ in range(5000):
            deep = [deep]
        deep.append(deep)
        model = Distilled({Key(): nn.Conv2d(3, 3, 1), 2: deep, "same": deep})
        named = list(quietly(ct.convert, model).conversion.skipped)
        assert [name.count("[") for name in named] == [1, 5002]
        assert named[0] == "teacher[test_however_deep_and_whatever_the_keys.<locals>.Key]".replace(
            "test_", "TestUnregistered.test_"
        )

    def test_what_has_no_such_layers_is_not_named(self):
        model = Distilled([nn.Linear(3, 3), nn.BatchNorm2d(3)])
        assert not quietly(ct.convert, model).conversion.skipped

    @BOTH
    def test_an_optimizer_made_before(self, inplace):
        class Model(Distilled):
            def forward(self, x):
                return self.student(x) - self.teacher[0](x)

        model = Model([nn.Conv2d(3, 3, 1)])
        optimizer = torch.optim.SGD([*model.parameters(), *model.teacher[0].parameters()], 0.1)
        converted = quietly(ct.convert, model, inplace=inplace)
        converted(images()).square().sum().backward()
        assert all(each.grad is not None for each in optimizer.param_groups[0]["params"])


class TestCopies:
    def test_only_what_leads_to_layers_of_convx_is_copied(self):
        model = nn.Sequential(Body(), nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.BatchNorm2d(4))
        converted = quietly(ct.convert, model, inplace=False)
        assert converted[1] is model[1]
        assert converted[2] is model[2]
        assert not any(map(is_convx, model.modules()))
        assert [is_convx(each) for each in converted[0].body] == [True] * 3
        again = quietly(ct.revert, converted, inplace=False)
        assert is_convx(converted[0].body[0])
        assert kinds(again) == kinds(model)

    def test_what_is_registered_later_is_in_one_alone(self):
        model = Body()
        converted = quietly(ct.convert, model, inplace=False)
        converted.extra = nn.Linear(2, 2)
        converted.register_buffer("more", torch.zeros(1))
        converted.body[0].register_forward_hook(print)
        converted.body[0].register_full_backward_hook(print)
        assert not hasattr(model, "extra")
        assert not hasattr(model, "more")
        assert not hasattr(model, "conversion")
        assert not model.body[0]._forward_hooks
        assert not model.body[0]._backward_hooks

    def test_models_of_torch_fx(self):
        model, x = torch.fx.symbolic_trace(Body()), images()
        expected, code = model(x), model.code
        converted = quietly(ct.convert, model, inplace=False)
        torch.testing.assert_close(converted(x), expected)
        for node in converted.graph.nodes:
            if node.op == "output":
                with converted.graph.inserting_before(node):
                    node.args = (converted.graph.call_function(torch.neg, node.args),)
        converted.recompile()
        torch.testing.assert_close(converted(x), -expected)
        assert torch.equal(model(x), expected)
        assert model.code == code

    @BOTH
    def test_parametrized_modules_around_layers(self, inplace):
        class Scaled(Body):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.ones(4, 4))

            def forward(self, x):
                return super().forward(x) * self.scale.sum()

        model, x = Scaled(), images()
        parametrizations.orthogonal(model, "scale")
        expected = model(x)
        converted = quietly(ct.convert, model, inplace=inplace)
        torch.testing.assert_close(converted(x), expected)
        parametrize.remove_parametrizations(converted, "scale", leave_parametrized=False)
        assert type(converted) is Scaled
        converted(x)
        if not inplace:
            assert torch.equal(model(x), expected)

    @BOTH
    def test_parametrized_after_converting(self, inplace):
        model, x = Body(), images()
        converted = quietly(ct.convert, model)
        parametrizations.weight_norm(converted.body[0])
        expected = converted(x)
        reverted = quietly(ct.revert, converted, inplace=inplace)
        assert is_convx(converted.body[2]) == (not inplace)
        parametrize.remove_parametrizations(reverted.body[0], "weight")
        assert type(reverted.body[0]) is nn.Conv2d
        torch.testing.assert_close(reverted(x), expected)

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_of_a_converted_model(self, duplicate):
        model, x = quietly(ct.convert, Body(), algorithm="direct"), images()
        again = duplicate(model)
        assert kinds(again) == kinds(model)
        assert again.body[0].algorithm == "direct"
        assert torch.equal(again(x), model(x))
        assert str(again.conversion) == str(model.conversion)


class Stubborn(nn.Module):
    """A model that refuses to set attributes from outside, and looks up missing ones elsewhere."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def __setattr__(self, name, value):
        if name == "conversion":
            raise RuntimeError("frozen")
        super().__setattr__(name, value)

    def __getattr__(self, name):
        if name == "conversion":
            raise KeyError(name)
        return super().__getattr__(name)


class Computed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    @property
    def conversion(self):
        raise RuntimeError("not yet")


@pytest.mark.parametrize("make", [Stubborn, Computed])
def test_attributes_with_a_mind_of_their_own(make):
    model = quietly(ct.convert, make())
    assert is_convx(model.conv)
    assert not is_convx(quietly(ct.revert, model).conv)


class TestAlgorithm:
    def test_all_convolutions_have_it(self, capsys):
        model = nn.Sequential(
            nn.Conv2d(16, 16, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 16, 3),
        )
        x = torch.randn(1, 16, 12, 12)
        with convx.default_algorithm("direct"):
            expected = ct.convert(copy.deepcopy(model), False, verbose=False)(x)
        converted = ct.convert(model, algorithm="direct")
        assert torch.equal(converted(x), expected)
        out = capsys.readouterr().out
        assert "algorithm: direct: 3" in out
        assert "not fused: 0: Conv2d-ReLU-MaxPool2d: the fused operation has no algorithm 'direct'" in out
        assert converted.conversion.fused == {"0": "Conv2d-ReLU", "3": "Conv2d-ReLU"}
        assert "algorithm=direct" in repr(converted)

    def test_where_it_is_not_possible(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 5), nn.Conv2d(4, 4, 3, stride=2))
        converted = quietly(ct.convert, model, algorithm="winograd")
        assert [each.algorithm for each in converted] == ["winograd", "auto", "auto"]
        assert converted.conversion.algorithm["0"] == "winograd"
        assert converted.conversion.algorithm["1"].startswith("not winograd: kernel (5, 5), stride (1, 1)")
        converted(images(1, 16))

    def test_layers_that_were_convxs_before(self):
        model = nn.Sequential(ct.Conv2d(3, 4, 3, algorithm="winograd"), ct.Conv2d(4, 4, 3))
        quietly(ct.convert, model)
        assert [each.algorithm for each in model] == ["winograd", "auto"]
        quietly(ct.convert, model, algorithm="direct")
        assert [each.algorithm for each in model] == ["direct", "direct"]

    @BOTH
    def test_words_that_are_none(self, inplace):
        model = Body()
        with pytest.raises(convx.ShapeError, match=r"^convert: algorithm is 'fft', expected \"auto\", \"dir"):
            quietly(ct.convert, model, inplace=inplace, algorithm="fft")
        with pytest.raises(TypeError, match=r"^convert: algorithm is an int, expected"):
            quietly(ct.convert, model, inplace=inplace, algorithm=1)
        assert not any(map(is_convx, model.modules()))

    def test_saved_without_one(self):
        """Layers pickled by a release without `algorithm` lack the attribute."""
        layer = quietly(ct.convert, nn.Conv2d(3, 4, 3))
        assert "algorithm" not in vars(layer)
        assert "algorithm" not in repr(layer)
        layer(as_channels_last(images()))
