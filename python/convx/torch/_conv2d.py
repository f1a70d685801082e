"""conv2d and its gradients as operations of PyTorch; _conv2d_calls.py has the functions that lead to them.

One autograd.Function serves twice, here and in the files of the other operations. In plain eager training its forward
pass calls the kernel and its backward pass too, past the dispatcher: options are a tuple, in the user's forms.
Registered with the dispatcher, its forward pass is the operation below autograd, and options are resolved
(_options.py). Where the backward pass has to be recorded, traced or transformed in its turn, it is made of the
dispatcher's operations in both cases.

Convolution is linear in the weight, affine in the input: a constant border is part of the value, and not of any
derivative with respect to the input. So `padding_value` is 0 wherever a tangent or a gradient takes the input's place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _cpu
from .._cpu import PreparedWeight
from . import _library, _memory, _relu, _tensors
from ._library import Operation
from ._options import ConvOptions, Size, resolve_conv
from ._tensors import CHANNELS_LAST

Mask: TypeAlias = tuple[bool, bool, bool]
Gradients: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor | None]

conv2d_op = Operation("conv2d", "Tensor input, Tensor weight, Tensor? bias, bool relu", ConvOptions)
grad_input_op = Operation(
    "conv2d_grad_input", "Tensor grad_output, Tensor weight, SymInt[] input_size, bool channels_last", ConvOptions
)
grad_weight_op = Operation("conv2d_grad_weight", "Tensor grad_output, Tensor input, SymInt[] weight_size", ConvOptions)


# Kernels


def conv2d_kernel(
    input: Tensor, weight: Any, bias: Tensor | None, relu: bool, options: Any, layout: str, out: Tensor | None = None
) -> Tensor:
    """Run `convx.conv2d`; `weight` may be a PreparedWeight."""
    *geometry, algorithm, precision = options
    tail = ("relu" if relu else None, _tensors.AXES[layout], algorithm)
    if _memory.on_cpu(input):
        found = _memory.cpu_for[layout].conv2d(
            _memory.array_of(input, layout),
            weight if isinstance(weight, PreparedWeight) else _memory.array_of(weight),
            None if bias is None else _memory.array_of(bias),
            *geometry,
            *tail,
            None if out is None else _memory.array_of(out, layout),
        )
        return _memory.tensor_of(found) if out is None else out
    into = _memory.image_on_device(out, layout)
    found = _memory.on_device("conv2d", "input", layout, (input,), (weight, bias), *geometry, *tail, precision, into)
    return _memory.image_from_device(found, layout) if out is None else out


def backward_kernel(
    grad_output: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    sizes: tuple[Size, Size],
    layout: str,
    mask: Any,
    options: Any,
) -> Gradients:
    """Run `convx.conv2d_backward`; `input` is needed for grad_weight alone, `weight` for grad_input alone.

    `sizes` are those of the input and the weight.
    """
    op = "conv2d_backward"
    *geometry, algorithm, precision = options
    axes = _tensors.AXES[layout]
    if _memory.on_cpu(grad_output):
        found = _memory.cpu.conv2d_backward(
            _memory.array_of(grad_output, layout),
            _memory.nothing(sizes[0], grad_output, layout) if input is None else _memory.array_of(input, layout),
            _memory.nothing(sizes[1], grad_output) if weight is None else _memory.array_of(weight),
            *geometry,
            axes,
            algorithm,
            mask,
            False,
        )
        return _memory.gradients_of(found, layout)
    empty = grad_output.new_empty(())
    images = (grad_output, empty.expand(sizes[0]) if input is None else input)
    others = (empty.expand(sizes[1]) if weight is None else weight,)
    rest = (*geometry, axes, algorithm, precision, mask, False)
    grad_input, *gradients = _memory.on_device(op, "grad_output", layout, images, others, *rest)
    return _memory.image_from_device(grad_input, layout), *gradients


def _layout(channels_last: bool) -> str:
    return CHANNELS_LAST if channels_last else "NCHW"


def _grad_input_kernel(grad: Tensor, weight: Tensor, size: Size, channels_last: bool, options: Any) -> Tensor:
    sizes = (tuple(size), weight.shape)
    mask = (True, False, False)
    return backward_kernel(grad, None, weight, sizes, _layout(channels_last), mask, options)[0]  # type: ignore[return-value]


def _grad_weight_kernel(grad: Tensor, input: Tensor, size: Size, options: Any) -> Tensor:
    sizes, mask = (input.shape, tuple(size)), (False, True, False)
    return backward_kernel(grad, input, None, sizes, _tensors.layout_of(input), mask, options)[1]  # type: ignore[return-value]


# Derivatives


class _Conv2d(torch.autograd.Function):
    """apply(run, layout, input, weight, bias, relu, options)."""

    @staticmethod
    def forward(
        ctx: Any, run: Any, layout: str, input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, options: Any
    ) -> Tensor:
        """Keep the input for grad_weight, the weight for grad_input, and with ReLU the output."""
        output: Tensor = run(input, weight, bias, relu, options, layout)
        needs = ctx.needs_input_grad
        kept = output if relu else None
        ctx.save_for_backward(input if needs[3] else None, weight if needs[2] else None, kept)
        if run is not conv2d_kernel:
            ctx.save_for_forward(input, weight, kept)
        ctx.set_materialize_grads(False)
        ctx.state = (input.shape, weight.shape), layout, options
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        """Return the three gradients, each where it is needed."""
        if grad is None:
            return (None,) * 7
        input, weight, output = ctx.saved_tensors
        sizes, layout, options = ctx.state
        mask = ctx.needs_input_grad[2:5]
        straight = type(options) is tuple and _tensors.plain(grad)
        if output is not None:
            grad = (_relu.backward_kernel if straight else _relu.backward_op)(grad, output)
        gradients = backward_kernel if straight else conv2d_gradients
        return None, None, *gradients(grad, input, weight, sizes, layout, mask, options), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        """Return the tangent of the output."""
        _, _, of_input, of_weight, of_bias, *_ = tangents
        input, weight, output = ctx.saved_tensors
        found = conv2d_tangent(input, weight, of_input, of_weight, of_bias, ctx.state[2])
        return found if output is None else _relu.backward_op(found, output)


apply_conv2d = _library.applied(_Conv2d)


def _record_conv2d(input: Tensor, *args: Any) -> Tensor:
    def run(*args: Any) -> Any:
        return conv2d_op.below(*args[:-1])

    return apply_conv2d(run, _tensors.layout_of(input), input, *args)  # type: ignore[no-any-return]


def conv2d_tangent(
    input: Tensor,
    weight: Tensor,
    of_input: Tensor | None,
    of_weight: Tensor | None,
    of_bias: Tensor | None,
    options: ConvOptions,
) -> Tensor:
    """Return the tangent of a convolution, of which one of the three is given at least."""
    found: Any = None
    if of_input is not None:
        found = conv2d_op(of_input, weight, of_bias, False, options.linear())
    elif of_bias is not None:
        found = of_bias[:, None, None].expand(options.output_size(input.shape, weight.shape))
    if of_weight is not None:
        found = _library.total(found, conv2d_op(input, of_weight, None, False, options))
    return found  # type: ignore[no-any-return]


def conv2d_gradients(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    sizes: tuple[Size, Size],
    layout: str,
    mask: Any,
    options: Any,
) -> Gradients:
    """Return the gradients that `mask` asks for, made of operations that can be differentiated again."""
    grad, input, size = _tensors.nchw(grad, layout), _tensors.nchw(input, layout), _tensors.nchw_size(sizes[0], layout)
    if not isinstance(options, ConvOptions):
        options = resolve_conv("conv2d_backward", size, sizes[1], options)
    grad_input = grad_input_op(grad, weight, size, layout != "NCHW", options) if mask[0] else None
    return (
        _tensors.restored(grad_input, layout),
        grad_weight_op(grad, input, sizes[1], options) if mask[1] else None,
        grad.sum((0, 2, 3)) if mask[2] else None,
    )


class _GradInput(torch.autograd.Function):
    """apply(grad_output, weight, input_size, channels_last, options)."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, weight: Tensor, size: Any, channels_last: bool, options: ConvOptions) -> Tensor:
        """Keep both factors, each where the other's gradient is needed."""
        needs = ctx.needs_input_grad
        ctx.save_for_backward(grad if needs[1] else None, weight if needs[0] else None)
        ctx.save_for_forward(grad, weight)
        ctx.set_materialize_grads(False)
        ctx.state = size, weight.shape, channels_last, options
        return grad_input_op.below(grad, weight, size, channels_last, options)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, of_result: Tensor | None) -> tuple[Any, ...]:
        """Differentiate <of_result, grad_input> = <conv2d(of_result, weight), grad>."""
        if of_result is None:
            return (None,) * 5
        grad, weight = ctx.saved_tensors
        _, weight_size, _, options = ctx.state
        needs, options = ctx.needs_input_grad, options.linear()
        of_grad = conv2d_op(of_result, weight, None, False, options) if needs[0] else None
        of_weight = grad_weight_op(grad, of_result, weight_size, options) if needs[1] else None
        return of_grad, of_weight, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        """Return the tangent of grad_input."""
        of_grad, of_weight, *_ = tangents
        grad, weight = ctx.saved_tensors
        size, _, *rest = ctx.state
        found = None if of_grad is None else grad_input_op(of_grad, weight, size, *rest)
        return found if of_weight is None else _library.total(found, grad_input_op(grad, of_weight, size, *rest))


class _GradWeight(torch.autograd.Function):
    """apply(grad_output, input, weight_size, options)."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, input: Tensor, size: Any, options: ConvOptions) -> Tensor:
        """Keep both factors, each where the other's gradient is needed."""
        needs = ctx.needs_input_grad
        ctx.save_for_backward(grad if needs[1] else None, input if needs[0] else None)
        ctx.save_for_forward(grad, input)
        ctx.set_materialize_grads(False)
        ctx.state = input.shape, size, _tensors.layout_of(input) == CHANNELS_LAST, options
        return grad_weight_op.below(grad, input, size, options)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, of_result: Tensor | None) -> tuple[Any, ...]:
        """Differentiate <of_result, grad_weight> = <conv2d(input, of_result), grad>."""
        if of_result is None:
            return (None,) * 4
        grad, input = ctx.saved_tensors
        size, _, channels_last, options = ctx.state
        needs = ctx.needs_input_grad
        of_grad = conv2d_op(input, of_result, None, False, options) if needs[0] else None
        of_input = grad_input_op(grad, of_result, size, channels_last, options.linear()) if needs[1] else None
        return of_grad, of_input, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        """Return the tangent of grad_weight."""
        of_grad, of_input, *_ = tangents
        grad, input = ctx.saved_tensors
        _, size, _, options = ctx.state
        found = None if of_grad is None else grad_weight_op(of_grad, input, size, options)
        if of_input is None:
            return found
        return _library.total(found, grad_weight_op(grad, of_input, size, options.linear()))


# Results without data


def _conv2d_fake(input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, options: ConvOptions) -> Tensor:
    _check("conv2d", input.shape, weight.shape, options)
    if bias is not None:
        _library.match("conv2d", "bias", bias.shape, weight.shape[:1])
    return _library.empty_image(input, options.output_size(input.shape, weight.shape), _tensors.layout_of(input))


def _grad_input_fake(grad: Tensor, weight: Tensor, size: Size, channels_last: bool, options: ConvOptions) -> Tensor:
    _check_gradient(grad, size, weight.shape, options)
    return _library.empty_image(grad, size, _layout(channels_last))


def _grad_weight_fake(grad: Tensor, input: Tensor, size: Size, options: ConvOptions) -> Tensor:
    _check_gradient(grad, input.shape, size, options)
    return grad.new_empty(size)


def _check(op: str, input_size: Size, weight_size: Size, options: ConvOptions) -> None:
    def run(input: Any, weight: Any) -> None:
        resolve: Any = _cpu.resolve_conv2d
        resolve(input, weight, None, *options[:6], None, "NCHW", options.algorithm)

    _library.check(op, run, (input_size, weight_size), options)


def _check_gradient(grad: Tensor, input_size: Size, weight_size: Size, options: ConvOptions) -> None:
    op = "conv2d_backward"
    _check(op, input_size, weight_size, options)
    _library.match(op, "grad_output", grad.shape, options.output_size(input_size, weight_size))


# Batches


def conv2d_batch(
    size: Any, dims: Any, input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, options: ConvOptions
) -> tuple[Tensor, int]:
    """Convolve batched images, weights, or both."""
    of_input, of_weight, of_bias, *_ = dims
    groups = options.groups
    if not size:
        sizes = _library.single(input, of_input), _library.single(weight, of_weight)
        return _library.no_elements(options.output_size(*sizes), input, weight, bias)
    if of_weight is None:
        own = bias if of_bias is None else None
        activated = relu and of_bias is None
        if of_input is None:
            output = conv2d_op(input, weight, own, activated, options)[None]
        else:
            output = conv2d_op(_library.folded(input, of_input), weight, own, activated, options)
            output = output.unflatten(0, (size, _library.length(input, of_input, 0)))
        if of_bias is not None:
            assert bias is not None
            output = output + bias.movedim(of_bias, 0)[:, None, :, None, None]
            output = _relu.relu_op(output) if relu else output
        return output, 0
    if bias is not None:
        bias = _library.front(bias, of_bias, size)
    if of_input is None:
        bias = None if bias is None else _library.inside(bias, 0, 0, groups)
        output = conv2d_op(input, _library.inside(weight, of_weight, 0, groups), bias, relu, options)
        return _library.outside(output, 1, groups, size), 0
    bias = None if bias is None else bias.flatten()
    images, weights = _library.beside(input, of_input), _library.folded(weight, of_weight)
    output = conv2d_op(images, weights, bias, relu, options._replace(groups=groups * size))
    return output.unflatten(1, (size, _library.length(weight, of_weight, 0))), 1


def grad_input_batch(
    size: Any, dims: Any, grad: Tensor, weight: Tensor, input_size: Size, channels_last: bool, options: ConvOptions
) -> tuple[Tensor, int]:
    """Return the input gradients of batched images, weights, or both."""
    of_grad, of_weight, *_ = dims
    groups = options.groups
    n, c, h, w = input_size
    if not size:
        return _library.no_elements((n, c, h, w), grad, weight)
    if of_weight is None:
        images = _library.folded(grad, of_grad)
        found = grad_input_op(images, weight, (size * n, c, h, w), channels_last, options)
        return found.unflatten(0, (size, n)), 0
    if of_grad is None:
        weight = weight.movedim(of_weight, 1).flatten(1, 2)
        found = grad_input_op(grad, weight, (n, size * c, h, w), channels_last, options)
        return _library.outside(found, 1, groups, size), 0
    images, weights = _library.beside(grad, of_grad), _library.folded(weight, of_weight)
    wide = options._replace(groups=groups * size)
    found = grad_input_op(images, weights, (n, size * c, h, w), channels_last, wide)
    return found.unflatten(1, (size, c)), 1


def grad_weight_batch(
    size: Any, dims: Any, grad: Tensor, input: Tensor, weight_size: Size, options: ConvOptions
) -> tuple[Tensor, int]:
    """Return the weight gradients of batched images."""
    of_grad, of_input, *_ = dims
    groups = options.groups
    k, c, r, s = weight_size
    if not size:  # a batch drawn at random for per-sample gradients may be empty
        return _library.no_elements((k, c, r, s), grad, input)
    if of_input is None:
        images = _library.inside(grad, of_grad, 1, groups)
        return _library.outside(grad_weight_op(images, input, (size * k, c, r, s), options), 0, groups, size), 0
    if of_grad is None:
        images = _library.inside(input, of_input, 1, groups)
        return grad_weight_op(grad, images, (k, size * c, r, s), options).unflatten(1, (size, c)), 1
    both = _library.beside(grad, of_grad), _library.beside(input, of_input)
    found = grad_weight_op(*both, (size * k, c, r, s), options._replace(groups=groups * size))
    return found.unflatten(0, (size, k)), 0


# FLOP counts


def products(weight_size: Size, output_size: Size) -> int:
    """Return the operations of a convolution; the same number for either gradient."""
    n, _, p, q = output_size
    return int(2 * n * p * q * math.prod(weight_size))


# Decompositions


def conv2d_decomposed(input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, options: ConvOptions) -> Tensor:
    """Compute conv2d by PyTorch's operations."""
    modes = (options.padding_mode,) * 2 if isinstance(options.padding_mode, str) else options.padding_mode
    (top, bottom), (left, right) = options.padding
    within = (0, 0)
    if tuple(modes) == ("zeros", "zeros") and (top, left) == (bottom, right):
        within = (top, left)
    else:
        for mode, around in zip(modes, ((0, 0, top, bottom), (left, right, 0, 0)), strict=True):
            input = _padded(input, around, mode, options.padding_value)
    result = F.conv2d(input, weight, bias, options.stride, within, options.dilation, options.groups)
    return F.relu(result) if relu else result


def _padded(input: Tensor, around: Sequence[Any], mode: str, value: float) -> Tensor:
    if around == (0, 0, 0, 0):
        return input
    if mode in ("zeros", "constant"):
        return F.pad(input, around, value=value if mode == "constant" else 0.0)
    return F.pad(input, around, mode)


conv2d_op.implement(
    kernel=_library.lying(conv2d_kernel),
    fake=_conv2d_fake,
    derivative=_record_conv2d,
    batch=conv2d_batch,
    flops=lambda x, weight, *_, out_shape, **__: products(weight, out_shape),
    decomposition=conv2d_decomposed,
)
grad_input_op.implement(
    kernel=_grad_input_kernel,
    fake=_grad_input_fake,
    derivative=_library.applied(_GradInput),
    batch=grad_input_batch,
    flops=lambda grad, weight, *_, **__: products(weight, grad),
)
grad_weight_op.implement(
    kernel=_grad_weight_kernel,
    fake=_grad_weight_fake,
    derivative=_library.applied(_GradWeight),
    batch=grad_weight_batch,
    flops=lambda grad, x, weight_size, *_, **__: products(weight_size, grad),
)
