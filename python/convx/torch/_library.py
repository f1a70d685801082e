"""How an operation becomes one of PyTorch's: ``torch.ops.convx``, in the files of the operations.

What traces, records or transforms a program (torch.compile, torch.export, torch.func, autograd with create_graph) sees
these operations, and every one of them has all that is asked of it. They are closed under differentiation: the
gradients of a convolution are convolutions again, those of pooling are a scatter and a gather.

`torch.library.custom_op` would be shorter, but its calls take three times as long, and torch.func.grad refuses it.
`torch.library.register_autograd` refuses forward mode, and functorch's levels.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch._functorch.utils import enable_single_level_autograd_function
from torch._library.utils import get_layout_constraint_tag
from torch.autograd.forward_ad import _set_fwd_grad_enabled, unpack_dual
from torch.utils.flop_counter import register_flop_formula

from .._cpu import ShapeError
from ._options import ConvOptions, FusedOptions, PoolOptions, Size, TransposeOptions
from ._tensors import layout_of

library = torch.library.Library("convx", "DEF")

_SCHEMAS: dict[type[Any], str] = {
    ConvOptions: (
        "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, str padding_mode, float padding_value, "
        "str algorithm, str precision"
    ),
    TransposeOptions: (
        "SymInt[] stride, SymInt[] padding, SymInt[] output_padding, SymInt groups, SymInt[] dilation, "
        "str algorithm, str precision"
    ),
    PoolOptions: "SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool ceil_mode",
    FusedOptions: (
        "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, SymInt[] pool_kernel_size, "
        "SymInt[] pool_stride, SymInt[] pool_padding, str precision"
    ),
}

_MODE = ConvOptions._fields.index("padding_mode")

OPERATIONS: dict[str, Operation] = {}


class Operation:
    """An operation of the dispatcher; in Python its options are one argument, resolved (_options.py).

    For the dispatcher padding is (top, bottom, left, right) and a pair of padding modes "h,w". Images are 4-D.
    """

    def __init__(
        self, name: str, tensors: str, options: type[Any] | None = None, last: str = "", results: str = "Tensor"
    ) -> None:
        parts = (tensors, _SCHEMAS[options] if options else "", last)
        library.define(f"{name}({', '.join(filter(None, parts))}) -> {results}", tags=(torch.Tag.pt2_compliant_tag,))
        self.name, self.options = name, options
        fields = options._fields if options else ()
        self.first = len(tensors.split(", "))  # the options' first index, and the one behind them
        self.behind = self.first + len(fields)
        self._paddings = [index for index, field in enumerate(fields) if field in ("padding", "pool_padding")]
        self.overload = getattr(torch.ops.convx, name).default
        OPERATIONS[name] = self

    def __call__(self, *args: Any) -> Any:
        """Call the operation by the dispatcher."""
        return self.overload(*self._flat(args))

    def below(self, *args: Any) -> Any:
        """Call the operation without recording it once more.

        The forward pass of an autograd.Function runs with both modes of differentiation off. Inside functorch's
        transforms that would be for the outer ones too, which come next: there they are turned on again.
        """
        with torch._C._AutoDispatchBelowAutograd():
            if not torch._C._are_functorch_transforms_active():
                return self.overload(*self._flat(args))
            with torch.enable_grad(), _set_fwd_grad_enabled(True):
                return self(*args)

    def implement(
        self,
        *,
        kernel: Callable[..., Any],
        fake: Callable[..., Any],
        derivative: Callable[..., Any],
        batch: Callable[..., Any],
        flops: Callable[..., int] | None = None,
        decomposition: Callable[..., Any] | None = None,
    ) -> None:
        """Tell PyTorch all that it asks of an operation.

        Parameters
        ----------
        kernel
            Computes it, on the CPU and on CUDA.
        fake
            Returns results without data, for meta tensors, and for the fake ones of torch.compile and torch.export.
        derivative
            Takes its place where autograd or forward-mode AD may want to know of it.
        batch
            The rule of torch.vmap: takes the batch's size and the batched axes of the arguments first.
        flops
            Counts for `torch.utils.flop_counter.FlopCounterMode`, from sizes, as PyTorch counts its own operations: two
            for each product, taps that fall into the padding included, bias, ReLU and pooling not.
        decomposition
            The same made of PyTorch's own operations, for exporters that know no others.
        """
        for key in ("CPU", "CUDA"):
            library.impl(self.name, self._nesting(kernel), key)
        library.impl(self.name, _one_level(self._nesting(derivative)), "Autograd")
        meta = self._nesting(fake)
        if decomposition is not None:
            meta = self._known_to_inductor(meta)
        torch.library.register_fake(f"convx::{self.name}", meta, lib=library)
        torch.library.register_vmap(
            f"convx::{self.name}",
            lambda info, dims, *args: self._nesting(functools.partial(batch, info.batch_size, dims))(*args),
            lib=library,
        )
        if flops is not None:
            register_flop_formula(self.overload.overloadpacket)(self._nesting(flops))
        if decomposition is not None:
            register_decomposition(self.overload)(self._nesting(decomposition))
            # Where there is a decomposition and no entry for shapes, PyTorch takes the decomposition for fake tensors.
            register_decomposition(self.overload, type="meta")(meta)
            DECOMPOSITIONS[self.overload] = self._nesting(decomposition)

    def _known_to_inductor(self, meta: Callable[..., Any]) -> Callable[..., Any]:
        """Return `meta`, which also tells a loaded Inductor that the operation stays a call of it.

        Inductor would find that out alone, but where the environment has CI set, it takes any decomposition for a
        reason to refuse. ONNX wants one. Operations with one have made fake tensors before Inductor lowers them.
        """

        def known(*args: Any, **words: Any) -> Any:
            lowering = sys.modules.get("torch._inductor.lowering")
            if lowering is not None and self.overload not in lowering.lowerings:
                tag = get_layout_constraint_tag(self.overload, with_default=True)
                constraint = lowering.tag_to_layout_constraint(tag)
                lowering.make_fallback(self.overload, layout_constraint=constraint, warn=False)
            return meta(*args, **words)

        return known

    def _flat(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the dispatcher's arguments."""
        if self.options is None:
            return args
        values = list(args[self.first])
        for index in self._paddings:
            (top, bottom), (left, right) = values[index]
            values[index] = (top, bottom, left, right)
        if self.options is ConvOptions and not isinstance(values[_MODE], str):
            values[_MODE] = ",".join(values[_MODE])
        return *args[: self.first], *values, *args[self.first + 1 :]

    def _nesting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of the dispatcher's arguments that calls `function` with Python's."""
        if self.options is None:
            return function
        first, behind, options, paddings = self.first, self.behind, self.options, self._paddings
        has_modes = options is ConvOptions

        def nested(*args: Any, **words: Any) -> Any:
            values = list(args[first:behind])
            for index in paddings:
                top, bottom, left, right = values[index]
                values[index] = ((top, bottom), (left, right))
            if has_modes and "," in values[_MODE]:
                values[_MODE] = tuple(values[_MODE].split(","))
            return function(*args[:first], tuple.__new__(options, values), *args[behind:], **words)

        return nested


def lying(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return `kernel`, whose last argument is the layout, as it runs with that of the first tensor."""
    return lambda images, *args: kernel(images, *args, layout_of(images))


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {}


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return what `torch.export.ExportedProgram.run_decompositions` takes to put PyTorch's operations for convx's.

    Returns
    -------
    dict of torch._ops.OpOverload to callable
        For convolution, transposed convolution, ReLU, max-pooling and the fused operation, forward.

    Notes
    -----
    ``torch.onnx.export(model, ..., dynamo=True)`` needs none of this.

    Examples
    --------
    >>> import torch
    >>> import convx.torch
    >>> program = torch.export.export(convx.torch.ReLU(), (torch.ones(3),))
    >>> program = program.run_decompositions(convx.torch.decompositions())
    >>> [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    ['aten.relu.default']
    """
    return dict(DECOMPOSITIONS)


# Derivatives


def _one_level(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` as it may be called inside functorch's transforms.

    They have a rule for autograd.Function of their own, which starts at the outermost transform. Here the dispatcher is
    at work on one of them already; to record just that one is what PyTorch's own operations do.
    """

    def call(*args: Any) -> Any:
        if not torch._C._are_functorch_transforms_active():
            return function(*args)
        with enable_single_level_autograd_function():
            return function(*args)

    return call


def applied(function: Any) -> Any:
    """Return `apply` of one level: functorch's levels are the dispatcher's business here, which comes first."""
    return super(torch.autograd.Function, function).apply


def watched(*tensors: Tensor | None) -> bool:
    """Tell whether a derivative is asked for.

    Forward-mode AD has one level, 0. Its number in Python is not set where a compiled program has entered it.
    """
    recording = torch.is_grad_enabled()
    return any(
        each is not None and ((recording and each.requires_grad) or unpack_dual(each, level=0).tangent is not None)
        for each in tensors
    )


def total(first: Tensor | None, second: Tensor) -> Tensor:
    """Return the sum of two derivatives of which the first may be 0."""
    return second if first is None else first + second


# Results without data


def empty_image(like: Tensor, size: Any, layout: str) -> Tensor:
    """Return a new tensor of N, C, H, W in shape with the dtype and device of `like`."""
    empty = like.new_empty(size)
    return empty if layout == "NCHW" else empty.to(memory_format=torch.channels_last)


class _Described(NamedTuple):
    """What the checks of the operations ask of an array."""

    shape: tuple[int, ...]
    dtype: str = "float32"


def check(op: str, run: Callable[..., Any], sizes: tuple[Size, ...], options: Any) -> None:
    """Raise what the operation would raise for these shapes and options: `run` has the checks of its forward pass.

    Symbolic sizes are checked when the compiled program runs.
    """
    if _symbolic((sizes, options)):
        return
    try:
        run(*(_Described(tuple(size)) for size in sizes))
    except ShapeError as error:
        raise ShapeError(f"{op}: {str(error).partition(': ')[2]}") from None


def _symbolic(value: Any) -> bool:
    return isinstance(value, torch.SymInt) or (isinstance(value, (tuple, list)) and any(map(_symbolic, value)))


def match(op: str, name: str, shape: Any, expected: Any) -> None:
    """Refuse a tensor of another shape."""
    if tuple(shape) != tuple(expected):
        raise ShapeError(f"{op}: {name} has shape {tuple(shape)}, expected {tuple(expected)}")


# Batches of torch.vmap: the new axis joins one that is there
#
# A batch of images joins N. A batch of weights joins the output channels of each group, and where both are batched
# every element of the batch is a group of its own. So one call of the same operation does the whole batch.


def front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Return `tensor` with the batch in front: repeated without a copy where it has none."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def folded(tensor: Tensor, dim: int) -> Tensor:
    """Let the batch join N."""
    return tensor.movedim(dim, 0).flatten(0, 1)


def beside(tensor: Tensor, dim: int) -> Tensor:
    """Let the batch join the channels of images, in front of them."""
    return tensor.movedim(dim, 1).flatten(1, 2)


def inside(tensor: Tensor, dim: int, axis: int, groups: int) -> Tensor:
    """Let the batch join the channels, `axis` without it, of images or weights inside each group."""
    apart: Tensor = tensor.movedim(dim, 0).unflatten(axis + 1, (groups, -1))
    return apart.movedim(0, axis + 1).flatten(axis, axis + 2)


def outside(tensor: Tensor, axis: int, groups: int, size: int) -> Tensor:
    """Take the batch out of the groups of an axis again, to the front."""
    apart: Tensor = tensor.unflatten(axis, (groups, size, -1))
    return apart.movedim(axis + 1, 0).flatten(axis + 1, axis + 2)


def length(tensor: Tensor, dim: int, axis: int) -> Any:
    """Return how long an axis is, counted without the batch."""
    return tensor.shape[axis + (dim <= axis)]


def single(tensor: Tensor, dim: int | None) -> Size:
    """Return the sizes of one element of the batch."""
    shape = tuple(tensor.shape)
    return shape if dim is None else shape[:dim] + shape[dim + 1 :]


def no_elements(size: Size, *operands: Tensor | None) -> tuple[Tensor, int]:
    """Return the result for a batch of no elements, such as no models: none, with a gradient for each operand.

    Where the batch would join the groups there is nothing to be run: no groups are no convolution.
    """
    sums = [each.sum() for each in operands if each is not None]
    return torch.stack(sums).sum().expand(0, *size), 0
