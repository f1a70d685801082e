"""Derivatives of every operation of convx.torch: first and second, backward and forward, batched; torch.func."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")

import convx  # noqa: E402
import convx.torch as ct  # noqa: E402
from convx.torch import _conv2d_relu_max_pool2d as fused  # noqa: E402
from torch_cases import F, as_channels_last, assert_all_equal, gradients, normal, whole  # noqa: E402

OPS = torch.ops.convx

# PyTorch's own warnings, at the first use of forward-mode AD and of some derivatives.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

CONV = dict(stride=(2, 1), padding=((1, 0), (2, 1)), dilation=(1, 2), groups=2)
FUSED = dict(padding=1, groups=2, pool_kernel_size=2, pool_stride=(1, 2))


def tensors(seed=0, last=False):
    """The input, weight and bias of a small grouped convolution."""
    x, w, b = (normal(*shape, seed=seed + i) for i, shape in enumerate([(2, 4, 4, 5), (6, 2, 3, 2), (6,)]))
    return (as_channels_last(x) if last else x), w, b


FUNCTIONS = {
    "conv2d": lambda x, w, b: ct.conv2d(x, w, b, **CONV),
    "conv2d-relu": lambda x, w, b: ct.conv2d(x, w, b, activation="relu", **CONV),
    "conv2d-constant": lambda x, w, b: ct.conv2d(x, w, b, padding_mode="constant", padding_value=1.5, **CONV),
    "conv2d-reflect": lambda x, w, b: ct.conv2d(x, w, b, padding_mode=("reflect", "circular"), **CONV),
    "conv2d-unbatched": lambda x, w, b: ct.conv2d(x[0], w, b, **CONV),
    "conv2d-no-bias": lambda x, w, b: ct.conv2d(x, w, padding="same", groups=2),
    "conv_transpose2d": lambda x, w, b: ct.conv_transpose2d(
        x, w[:4], b[:4], stride=2, padding=(1, 0), output_padding=1, groups=2, dilation=(1, 2)
    ),
    "relu": lambda x, w, b: ct.relu(x),
    "max_pool2d": lambda x, w, b: ct.max_pool2d(x, (3, 2), (2, 1), (1, 0), ceil_mode=True),
    "max_pool2d-indices": lambda x, w, b: ct.max_pool2d(x, 3, 1, 1, dilation=(1, 2), return_indices=True)[0],
    "fused": lambda x, w, b: ct.conv2d_relu_max_pool2d(x, w, b, **FUSED),
    "network": lambda x, w, b: ct.max_pool2d(ct.conv2d(ct.relu(x), w, b, padding=1, groups=2), 2).sin(),
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


@every_function
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_first(function, last):
    torch.autograd.gradcheck(function, tensors(last=last), fast_mode=last)


@every_function
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_second(function, last):
    """Reverse over reverse and forward over reverse."""
    torch.autograd.gradgradcheck(
        function,
        tensors(last=last),
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        fast_mode=True,
        check_batched_grad=False,
    )


def fused_gradients(x, w, b):
    """The output and the gradients, with respect to saved arrays too, are functions of the leaves."""
    y, saved = convx.conv2d_relu_max_pool2d(x, w, b, **FUSED)
    return convx.conv2d_relu_max_pool2d_backward(y.sin(), saved)


def pool_gradient(x, w, b, **choice):
    chosen = convx.max_pool2d(x, 2, **choice)[1]
    return convx.max_pool2d_backward(x[:, :, :2, :2].sin(), chosen, x.shape, 2)


# The gradient functions of `convx`, which are recorded too for tensors that require grad.
BACKWARD = {
    "conv2d": lambda x, w, b: convx.conv2d_backward(convx.conv2d(x, w, b, **CONV).sin(), x, w, **CONV),
    "conv_transpose2d": lambda x, w, b: convx.conv_transpose2d_backward(
        convx.conv_transpose2d(x, w[:4], stride=2, groups=2).sin(), x, w[:4], stride=2, groups=2
    ),
    "relu": lambda x, w, b: convx.relu_backward(x.sin(), convx.relu(x)),
    "max_pool2d-codes": lambda x, w, b: pool_gradient(x, w, b, return_codes=True),
    "max_pool2d-indices": lambda x, w, b: pool_gradient(x, w, b, return_indices=True),
    "fused": fused_gradients,
}


@pytest.mark.parametrize("function", BACKWARD.values(), ids=BACKWARD)
def test_gradients_as_functions(function):
    torch.autograd.gradcheck(function, tensors(), fast_mode=True)
    torch.autograd.gradgradcheck(function, tensors(), fast_mode=True)


@every_function
def test_batched(function):
    """Backward passes of many gradients at once, and forward ones of many tangents: the rules of vmap."""
    torch.autograd.gradcheck(
        function, tensors(), fast_mode=True, check_forward_ad=True, check_batched_grad=True,
        check_batched_forward_grad=True,
    )  # fmt: skip


@every_function
def test_third(function):
    """The gradient of a scalar of second derivatives, by torch.autograd.gradcheck."""
    x, w, b = tensors()

    def curvature(x):
        total = function(x, w, b).sin().sum()
        (first,) = torch.autograd.grad(total, x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
        return second.square().sum()

    torch.autograd.gradcheck(curvature, x, fast_mode=True)


def test_constant_border_has_no_derivative():
    """The constant is in the value and in the weight's gradient, and nowhere else."""
    x, w, _ = tensors()
    options = dict(padding_mode="constant", padding_value=3.0, **CONV)
    grad_input, grad_weight = torch.autograd.grad(ct.conv2d(x, w, **options).sum(), (x, w))
    of_zeros = torch.autograd.grad(ct.conv2d(x, w, **CONV).sum(), (x, w))
    torch.testing.assert_close(grad_input, of_zeros[0])
    assert (grad_weight - of_zeros[1]).abs().max() > 1
    (padded,) = torch.autograd.grad(F.conv2d(F.pad(x, (2, 1, 1, 0), value=3.0), w, None, (2, 1), 0, (1, 2), 2).sum(), w)
    torch.testing.assert_close(grad_weight, padded)


class TestFunc:
    """torch.func, against PyTorch's own operations or against a loop."""

    def loss(self, x, w, b):
        y = ct.conv2d(x, w, b, padding=1, groups=2, activation="relu", padding_mode="circular")
        y = ct.max_pool2d(y, 3, 2, 1)
        y = ct.conv_transpose2d(y, w, None, stride=2, groups=2)
        return ct.conv2d_relu_max_pool2d(y, w[:, :2], b, groups=2, pool_kernel_size=2).sin().sum()

    def by_torch(self, x, w, b):
        y = torch.relu(F.conv2d(F.pad(x, (1, 1, 1, 1), "circular"), w, b, groups=2))
        y = F.max_pool2d(y, 3, 2, 1)
        y = F.conv_transpose2d(y, w, None, stride=2, groups=2)
        return F.max_pool2d(torch.relu(F.conv2d(y, w[:, :2], b, groups=2)), 2).sin().sum()

    @pytest.fixture
    def arguments(self):
        return tuple(normal(*shape, seed=i).detach() for i, shape in enumerate([(2, 4, 6, 6), (4, 2, 3, 3), (4,)]))

    def test_gradients(self, arguments):
        for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
            actual = transform(self.loss, argnums=(0, 1, 2))(*arguments)
            expected = torch.func.grad(self.by_torch, argnums=(0, 1, 2))(*arguments)
            for one, other in zip(actual, expected, strict=True):
                torch.testing.assert_close(one, other)

    def test_hessians(self, arguments):
        """Every nesting of forward and reverse mode."""
        x, w, b = arguments
        function, by_torch = (lambda b: self.loss(x, w, b)), (lambda b: self.by_torch(x, w, b))
        expected = torch.autograd.functional.hessian(by_torch, b)
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(torch.autograd.functional.hessian(function, b), expected)
        for outer, inner in itertools.product((torch.func.jacrev, torch.func.jacfwd), repeat=2):
            torch.testing.assert_close(outer(inner(function))(b), expected)

    def test_per_sample_gradients(self, arguments):
        x, w, b = arguments
        of_one = torch.func.grad(lambda w, b, x: self.loss(x[None], w, b), argnums=(0, 1))
        batched = torch.vmap(of_one, (None, None, 0))(w, b, x)
        for i in range(len(x)):
            for all_of_them, one in zip(batched, of_one(w, b, x[i]), strict=True):
                torch.testing.assert_close(all_of_them[i], one)

    def test_ensemble(self, arguments):
        """Weights of several models, each with its own images."""
        x, w, b = arguments
        many = torch.stack([x, -x, 2 * x]), torch.stack([w, w + 1, -w]), torch.stack([b, -b, b + 1])
        grads = torch.vmap(torch.func.grad(self.loss, argnums=(0, 1, 2)))(*many)
        for i in range(3):
            expected = torch.func.grad(self.loss, argnums=(0, 1, 2))(*(each[i] for each in many))
            for all_of_them, one in zip(grads, expected, strict=True):
                torch.testing.assert_close(all_of_them[i], one)

    def test_jvp_and_vjp(self, arguments):
        x, w, b = arguments
        tangents = tuple(torch.ones_like(each) for each in arguments)
        torch.testing.assert_close(
            torch.func.jvp(self.loss, arguments, tangents), torch.func.jvp(self.by_torch, arguments, tangents)
        )
        value, pull = torch.func.vjp(lambda x: ct.max_pool2d(ct.conv2d(x, w, b, groups=2), 2), x)
        torch.testing.assert_close(
            pull(value)[0], torch.func.vjp(lambda x: F.max_pool2d(F.conv2d(x, w, b, groups=2), 2), x)[1](value)[0]
        )

    @pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
    def test_linearized(self, arguments):
        value, push = torch.func.linearize(self.loss, *arguments)
        torch.testing.assert_close(value, self.by_torch(*arguments))
        expected = torch.func.jvp(self.by_torch, arguments, arguments)[1]
        torch.testing.assert_close(push(*arguments), expected)

    def test_after_the_transform(self):
        """A tensor that outlives its transform is an ordinary tensor."""
        kept = []
        torch.func.grad(lambda x: kept.append(x) or x.sum())(whole((2, 3, 4, 4)))
        assert torch.equal(ct.relu(kept[0]), torch.relu(whole((2, 3, 4, 4))))

    def test_no_grad_inside(self, arguments):
        x, w, b = arguments

        def half(x):
            with torch.no_grad():
                constant = ct.conv2d(x, w, b, groups=2)
            return (constant * ct.conv2d(x, w, b, groups=2)).sum()

        def expected(x):
            with torch.no_grad():
                constant = F.conv2d(x, w, b, groups=2)
            return (constant * F.conv2d(x, w, b, groups=2)).sum()

        torch.testing.assert_close(torch.func.grad(half)(x), torch.func.grad(expected)(x))


def stack(tensor, dim):
    """Three tensors along a new axis; None: one for all."""
    return tensor if dim is None else torch.stack([tensor, -tensor, tensor + 1], dim)


def element(tensor, dim, i):
    return tensor if dim is None else tensor.select(dim, i)


def check_vmap(function, arguments, dims):
    batched = [stack(each, dim) for each, dim in zip(arguments, dims, strict=True)]
    found = torch.vmap(function, tuple(dims))(*batched)
    found = found if isinstance(found, tuple) else (found,)
    for i in range(3):
        one = function(*(element(each, dim, i) for each, dim in zip(batched, dims, strict=True)))
        one = one if isinstance(one, tuple) else (one,)
        assert_all_equal([each[i] for each in found], one, f"element {i}, batched {dims}")


SOME_DIMS = [dims for dims in itertools.product((None, 0, 1), (None, 0, 2)) if dims != (None, None)]


class TestVmap:
    """Every combination of batched arguments, against one call for each element of the batch."""

    options = ([1, 2], [1, 0, 2, 1], [1, 1], 2, "reflect,zeros", 0.0, "auto", "ieee")

    @pytest.mark.parametrize("of_bias", ["none", None, 0, 1])
    @pytest.mark.parametrize(("of_input", "of_weight"), [(None, None), *SOME_DIMS])
    def test_conv2d(self, of_input, of_weight, of_bias):
        x, w, b = whole((2, 4, 5, 6)), whole((6, 2, 3, 3), 1), whole((6,), 2)
        function = lambda x, w, b=None: ct.conv2d(x, w, b, padding=1, groups=2, activation="relu")  # noqa: E731
        if of_bias == "none":
            if (of_input, of_weight) != (None, None):
                check_vmap(function, (x, w), (of_input, of_weight))
        elif (of_input, of_weight, of_bias) != (None, None, None):
            check_vmap(function, (x, w, b), (of_input, of_weight, of_bias))

    @pytest.mark.parametrize("of_bias", [None, 0, "none"])
    @pytest.mark.parametrize(("of_input", "of_weight"), SOME_DIMS)
    def test_conv_transpose2d(self, of_input, of_weight, of_bias):
        x, w, b = whole((2, 6, 4, 5)), whole((6, 2, 3, 2), 1), whole((4,), 2)
        options = dict(stride=(2, 1), padding=((1, 0), (0, 2)), output_padding=(1, 0), groups=2)
        function = lambda x, w, b=None: ct.conv_transpose2d(x, w, b, **options)  # noqa: E731
        dims = (of_input, of_weight) if of_bias == "none" else (of_input, of_weight, of_bias)
        check_vmap(function, (x, w, b)[: len(dims)], dims)

    @pytest.mark.parametrize("dims", SOME_DIMS)
    def test_gradients_of_conv2d(self, dims):
        x, w = whole((2, 4, 5, 6)), whole((6, 2, 3, 3), 1)
        g = whole(OPS.conv2d(x, w, None, False, *self.options).shape, 2)
        for last in (False, True):
            check_vmap(lambda g, w, last=last: OPS.conv2d_grad_input(g, w, x.shape, last, *self.options), (g, w), dims)
        check_vmap(lambda g, x: OPS.conv2d_grad_weight(g, x, w.shape, *self.options), (g, x), dims)

    @pytest.mark.parametrize("dims", SOME_DIMS)
    def test_pairs(self, dims):
        x, y = whole((2, 4, 6, 6)), whole((2, 4, 6, 6), 1)
        check_vmap(OPS.relu_backward, (x, y), dims)
        codes = convx.max_pool2d(x, 2, return_codes=True)[1]
        pool = ([2, 2], [2, 2], [0, 0, 0, 0], [1, 1], False)
        other = 3 - codes
        size = x.shape

        def choice(tensor):
            return torch.where(tensor > 0, codes, other)

        g = whole(codes.shape, 2)
        check_vmap(lambda g, c: OPS.max_pool2d_backward(g, choice(c), size, *pool), (g, whole(codes.shape, 3)), dims)
        check_vmap(lambda x, c: OPS.max_pool2d_gather(x, choice(c), *pool), (x, whole(codes.shape, 3)), dims)

    @pytest.mark.parametrize("dim", [0, 2, 4])
    def test_one_argument(self, dim):
        x = whole((2, 4, 6, 6))
        check_vmap(ct.relu, (x,), (dim,))
        check_vmap(lambda x: ct.max_pool2d(x, 2), (x,), (dim,))
        check_vmap(lambda x: ct.max_pool2d(x, 2, return_indices=True), (x,), (dim,))
        check_vmap(lambda x: ct.conv_transpose2d(x, whole((4, 3, 2, 2), 1), stride=2), (x,), (dim,))

    @pytest.mark.parametrize("dims", [(0, None, None), (1, 0, None), (None, 0, 0), (0, 0, 0), (None, None, 0)])
    def test_fused(self, dims):
        arguments = whole((2, 4, 5, 6)), whole((6, 2, 3, 3), 1), whole((6,), 2)
        options = (1, 1, 1, 2, 2, (1, 2), 0, "NCHW", "ieee")
        check_vmap(lambda x, w, b: fused.conv2d_relu_max_pool2d(x, w, b, *options), arguments, dims)
        x, w, b = arguments
        y, codes = fused.conv2d_relu_max_pool2d(x, w, b, *options)

        def backward(g, x, w):
            found = fused.conv2d_relu_max_pool2d_backward(g, x, w, codes, *options, (True, True, True))
            some = fused.conv2d_relu_max_pool2d_backward(g, x, w, codes, *options, (False, True, False))
            assert some[0] is None and some[2] is None
            return *found, some[1]

        check_vmap(backward, (whole(y.shape, 4), x, w), dims[:2] + dims[2:])

    def test_empty_batch(self):
        """A mapped axis of length 0: empty results of the right shape."""
        x, w = torch.zeros(0, 2, 3, 8, 9), whole((4, 3, 3, 3))
        for function in (
            lambda x: ct.conv2d(x, w),
            lambda x: ct.conv_transpose2d(x, w.transpose(0, 1)),
            ct.relu,
            lambda x: ct.max_pool2d(x, 2, return_indices=True)[1],
            lambda x: ct.conv2d_relu_max_pool2d(x, w, pool_kernel_size=2),
            torch.func.grad(lambda x: ct.max_pool2d(ct.conv2d(x, w), 2).sum()),
            lambda x: torch.func.jvp(lambda x: ct.max_pool2d(ct.relu(x), 2), (x,), (x,))[1],
        ):
            assert torch.vmap(function)(x).shape == (0, *function(torch.zeros(2, 3, 8, 9)).shape)
        of_weights = torch.func.grad(lambda w, x: ct.conv2d(x, w).sum())
        assert torch.vmap(of_weights, (None, 0))(w, x).shape == (0, *w.shape)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize("dims", [d for d in itertools.product((None, 0), repeat=3) if any(i == 0 for i in d)])
    def test_no_models(self, dims):
        """An ensemble of zero models gives empty results, and zero gradients for shared arguments."""
        whole_ones = whole((2, 3, 8, 9)), whole((4, 3, 3, 3), 1), whole((4,), 2)
        arguments = [t if dim is None else t.new_empty(0, *t.shape) for t, dim in zip(whole_ones, dims, strict=True)]
        adjoint = whole((4, 2, 3, 3), 3)

        def total(function):
            return lambda *arguments: function(*arguments).sum()

        for function in (
            lambda x, w, b: ct.conv2d(x, w, b, padding=1, activation="relu"),
            lambda x, w, b: ct.conv2d_relu_max_pool2d(x, w, b, pool_kernel_size=2),
            lambda x, w, b: ct.conv_transpose2d(ct.conv2d(x, w, b), adjoint, stride=2),
            lambda x, w, b: ct.conv_transpose2d(x, w.transpose(0, 1), b),
        ):
            mapped = torch.vmap(function, dims)
            assert mapped(*arguments).shape == (0, *function(*whole_ones).shape)
            each = torch.vmap(torch.func.grad(total(function), (0, 1, 2)), dims)(*arguments)
            of_all = torch.func.grad(total(mapped), (0, 1, 2))(*arguments)
            for one, grad, summed, argument in zip(whole_ones, each, of_all, arguments, strict=True):
                assert grad.shape == (0, *one.shape)
                assert torch.equal(summed, torch.zeros_like(argument))

    def test_nested(self):
        x, w = whole((3, 2, 2, 4, 5, 6)), whole((3, 6, 4, 3, 3), 1)
        found = torch.vmap(torch.vmap(ct.conv2d, (0, None)))(x, w)
        for i, j in itertools.product(range(3), range(2)):
            assert torch.equal(found[i, j], ct.conv2d(x[i, j], w[i]))


ODD_GRADIENTS = {
    "expanded": lambda g: g[:1, :, :1, :1].expand(g.shape),
    "strided": lambda g: g.repeat_interleave(2, 0).repeat_interleave(3, 2).repeat_interleave(2, 3)[::2, :, ::3, ::2],
    "axes exchanged": lambda g: g.transpose(2, 3).contiguous().transpose(2, 3),
    "channels_last": as_channels_last,
    "a negation to be done": lambda g: torch._neg_view(-g),
    "zeros without memory": lambda g: torch._efficientzerotensor(g.shape, dtype=g.dtype),
}


@pytest.mark.parametrize("change", ODD_GRADIENTS.values(), ids=ODD_GRADIENTS)
@pytest.mark.parametrize("name", ["conv2d", "conv2d-relu", "conv_transpose2d", "relu", "max_pool2d", "fused"])
def test_gradients_however_they_lie(name, change):
    """The gradient of the output may be any view."""
    leaves = [whole(each.shape, i, torch.float64).requires_grad_() for i, each in enumerate(tensors())]
    y = FUNCTIONS[name](*leaves)
    g = change(whole(y.shape, 9, torch.float64))
    found, expected = (
        torch.autograd.grad(y, leaves, each, retain_graph=True, allow_unused=True)
        for each in (g, torch.zeros(y.shape, dtype=y.dtype) + g)
    )
    assert found[0] is not None
    assert [each is None for each in found] == [each is None for each in expected]
    pairs = [(one, other) for one, other in zip(found, expected, strict=True) if one is not None]
    assert_all_equal([one for one, _ in pairs], [other for _, other in pairs], name)


class Stop(torch.autograd.Function):
    """An identity without a gradient: the operation before it gets an undefined one."""

    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


@pytest.mark.parametrize("name", ["conv2d", "conv2d-relu", "conv_transpose2d", "relu", "max_pool2d", "fused", "relu6"])
def test_no_gradient_stays_none(name):
    """The gradient is None: with zeros, optimizers would decay weights that PyTorch leaves unchanged."""
    leaves = [whole(each.shape, i, torch.float64).requires_grad_() for i, each in enumerate(tensors())]
    function = FUNCTIONS.get(name, lambda x, *_: ct.ReLU6()(x))
    Stop.apply(function(*(leaf * 1 for leaf in leaves))).sum().backward()
    assert all(leaf.grad is None for leaf in leaves)


class TestCheckpoint:
    """Activation checkpointing."""

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_same_gradients(self, reentrant):
        from torch.utils.checkpoint import checkpoint

        leaves = whole((2, 4, 9, 9)), whole((4, 4, 3, 3), 1), whole((4,), 2)

        def network(x, w, b):
            y = ct.conv2d(x, w, b, padding=1, activation="relu")
            return ct.conv2d_relu_max_pool2d(ct.max_pool2d(y, 2), w, b, pool_kernel_size=2)

        again = gradients(lambda *args: checkpoint(network, *args, use_reentrant=reentrant), *leaves)
        assert_all_equal(again, gradients(network, *leaves))

    def test_selective(self):
        """Selective checkpointing by operation: outputs of convolutions are kept, all else is computed again."""
        from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

        leaves = whole((2, 4, 9, 9)), whole((4, 4, 3, 3), 1)
        seen = []

        def policy(context, op, *args, **kwargs):
            seen.append(op)
            convolution = op is torch.ops.convx.conv2d.default
            return CheckpointPolicy.MUST_SAVE if convolution else CheckpointPolicy.PREFER_RECOMPUTE

        def network(x, w):
            return ct.relu(ct.conv2d(x, w, padding=1))

        contexts = lambda: create_selective_checkpoint_contexts(policy)  # noqa: E731
        again = gradients(lambda *args: checkpoint(network, *args, use_reentrant=False, context_fn=contexts), *leaves)
        assert torch.ops.convx.conv2d.default in seen
        assert_all_equal(again, gradients(network, *leaves))


def test_deterministic():
    """A training step has the same bits for any number of threads."""
    x, w, b = (
        each.detach().float() for each in (normal(4, 16, 20, 20), normal(32, 16, 3, 3, seed=1), normal(32, seed=2))
    )
    found = []
    for threads in (1, 2, 4):
        with convx.threads(threads):
            found.append(gradients(lambda *args: ct.conv2d_relu_max_pool2d(*args, pool_kernel_size=2), x, w, b))
    assert_all_equal(found[0], found[1])
    assert_all_equal(found[0], found[2])
