"""Derivatives of the operations, backward and forward mode.

One autograd.Function for each serves twice. In plain eager training its forward pass calls the kernels (_kernels.py)
and its backward pass too, past the dispatcher: options are the user's. Registered with the dispatcher (_recording.py),
its forward pass is the operation below autograd, and options are resolved. Where the backward pass has to be recorded,
traced or transformed in its turn, it is made of the dispatcher's operations in both cases.

Convolution is linear in the weight, affine in the input: a constant border is part of the value, and not of any
derivative with respect to the input. So `padding_value` is 0 wherever a tangent or a gradient takes the input's place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _kernels, _library, _options
from ._eager import plain


class Conv2d(torch.autograd.Function):
    """apply(run, resolved, input, weight, bias, relu, *ConvOptions)."""

    @staticmethod
    def forward(
        ctx: Any,
        run: Any,
        resolved: bool,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        relu: bool,
        *options: Any,
    ) -> Tensor:
        """Keep the input for grad_weight, the weight for grad_input, and with ReLU the output."""
        output: Tensor = run(input, weight, bias, relu, *options)
        needs = ctx.needs_input_grad
        kept = output if relu else None
        ctx.save_for_backward(input if needs[3] else None, weight if needs[2] else None, kept)
        if resolved:
            ctx.save_for_forward(input, weight, kept)
        ctx.set_materialize_grads(False)
        ctx.state = resolved, (input.shape, weight.shape), _kernels.channels_last(input), options
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        """Return the three gradients, each where it is needed."""
        if grad is None:
            return (None,) * 14
        input, weight, output = ctx.saved_tensors
        resolved, sizes, last, options = ctx.state
        mask = ctx.needs_input_grad[2:5]
        if not resolved and plain(grad):
            if output is not None:
                grad = _kernels.relu_backward(grad, output)
            gradients = _kernels.conv2d_backward(grad, input, weight, *sizes, last, mask, *options)
        else:
            if output is not None:
                grad = _library.relu_backward(grad, output)
            gradients = conv2d_gradients(grad, input, weight, sizes, last, mask, _resolved_conv(ctx))
        return None, None, *gradients, *(None,) * 9

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        """Return the tangent of the output."""
        _, _, of_input, of_weight, of_bias, *_ = tangents
        input, weight, output = ctx.saved_tensors
        found = _conv_tangent(input, weight, of_input, of_weight, of_bias, ctx.state[3])
        return found if output is None else _library.relu_backward(found, output)


def _conv_tangent(
    input: Tensor,
    weight: Tensor,
    of_input: Tensor | None,
    of_weight: Tensor | None,
    of_bias: Tensor | None,
    options: Any,
) -> Tensor:
    found = None
    if of_input is not None:
        found = _library.conv2d(of_input, weight, of_bias, False, *_linear(options))
    elif of_bias is not None:
        size = _options.conv_output_size(input.shape, weight.shape, *options[:3])
        found = of_bias[:, None, None].expand(size)
    return found if of_weight is None else _sum(found, _library.conv2d(input, of_weight, None, False, *options))  # type: ignore[return-value]


def conv2d_gradients(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    sizes: Any,
    last: bool,
    mask: tuple[bool, bool, bool],
    options: Any,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients that `mask` asks for, made of operations that can be differentiated again.

    `sizes` are those of the input and the weight.
    """
    return (
        _library.conv2d_grad_input(grad, weight, sizes[0], last, *options) if mask[0] else None,
        _library.conv2d_grad_weight(grad, input, sizes[1], *options) if mask[1] else None,
        grad.sum((0, 2, 3)) if mask[2] else None,
    )


class Conv2dGradInput(torch.autograd.Function):
    """apply(run, resolved, grad_output, weight, input_size, channels_last, *ConvOptions)."""

    @staticmethod
    def forward(
        ctx: Any, run: Any, resolved: bool, grad: Tensor, weight: Tensor, size: Any, last: bool, *options: Any
    ) -> Tensor:
        """Keep both factors, each where the other's gradient is needed."""
        needs = ctx.needs_input_grad
        ctx.save_for_backward(grad if needs[3] else None, weight if needs[2] else None)
        if resolved:
            ctx.save_for_forward(grad, weight)
        ctx.set_materialize_grads(False)
        ctx.state = resolved, (size, weight.shape), last, options
        result: Tensor = run(grad, weight, size, last, *options)
        return result

    @staticmethod
    def backward(ctx: Any, of_result: Tensor | None) -> tuple[Any, ...]:
        """Differentiate <of_result, grad_input> = <conv2d(of_result, weight), grad>."""
        if of_result is None:
            return (None,) * 14
        grad, weight = ctx.saved_tensors
        resolved, sizes, _, options = ctx.state
        needs = ctx.needs_input_grad
        ops: Any = _kernels
        if resolved or not plain(of_result):
            ops, options = _library, _resolved_conv(ctx)
        options = _linear(options)
        of_grad = ops.conv2d(of_result, weight, None, False, *options) if needs[2] else None
        of_weight = ops.conv2d_grad_weight(grad, of_result, sizes[1], *options) if needs[3] else None
        return None, None, of_grad, of_weight, *(None,) * 10

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        """Return the tangent of grad_input."""
        _, _, of_grad, of_weight, *_ = tangents
        grad, weight = ctx.saved_tensors
        _, sizes, last, options = ctx.state
        rest = (sizes[0], last, *options)
        found = None if of_grad is None else _library.conv2d_grad_input(of_grad, weight, *rest)
        return found if of_weight is None else _sum(found, _library.conv2d_grad_input(grad, of_weight, *rest))


class Conv2dGradWeight(torch.autograd.Function):
    """apply(run, grad_output, input, weight_size, *ConvOptions)."""

    @staticmethod
    def forward(ctx: Any, run: Any, grad: Tensor, input: Tensor, size: Any, *options: Any) -> Tensor:
        """Keep both factors, each where the other's gradient is needed."""
        needs = ctx.needs_input_grad
        ctx.save_for_backward(grad if needs[2] else None, input if needs[1] else None)
        ctx.save_for_forward(grad, input)
        ctx.set_materialize_grads(False)
        ctx.state = (input.shape, size), _kernels.channels_last(input), options
        result: Tensor = run(grad, input, size, *options)
        return result

    @staticmethod
    def backward(ctx: Any, of_result: Tensor | None) -> tuple[Any, ...]:
        """Differentiate <of_result, grad_weight> = <conv2d(input, of_result), grad>."""
        if of_result is None:
            return (None,) * 12
        grad, input = ctx.saved_tensors
        sizes, last, options = ctx.state
        needs = ctx.needs_input_grad
        of_grad = _library.conv2d(input, of_result, None, False, *options) if needs[1] else None
        rest = (sizes[0], last, *_linear(options))
        of_input = _library.conv2d_grad_input(grad, of_result, *rest) if needs[2] else None
        return None, of_grad, of_input, *(None,) * 9

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        """Return the tangent of grad_weight."""
        _, of_grad, of_input, *_ = tangents
        grad, input = ctx.saved_tensors
        (_, size), _, options = ctx.state
        found = None if of_grad is None else _library.conv2d_grad_weight(of_grad, input, size, *options)
        if of_input is None:
            return found
        return _sum(found, _library.conv2d_grad_weight(grad, of_input, size, *_linear(options)))


class ReLU(torch.autograd.Function):
    """apply(run, input)."""

    @staticmethod
    def forward(ctx: Any, run: Any, input: Tensor) -> Tensor:
        """Keep the output, which the next operation mostly keeps as well."""
        output: Tensor = run(input)
        ctx.save_for_backward(output)
        if run is not _kernels.relu:
            ctx.save_for_forward(output)
        ctx.set_materialize_grads(False)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        """Pass the gradient where the output is not <= 0."""
        if grad is None:
            return None, None
        (output,) = ctx.saved_tensors
        return None, (_kernels if plain(grad) else _library).relu_backward(grad, output)

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor) -> Tensor:
        """Pass the tangent likewise."""
        result: Tensor = _library.relu_backward(tangent, *ctx.saved_tensors)
        return result


class ReLUBackward(torch.autograd.Function):
    """apply(run, grad_output, output): linear in the first, constant in the second wherever it has a derivative."""

    @staticmethod
    def forward(ctx: Any, run: Any, grad: Tensor, output: Tensor) -> Tensor:
        """Keep the output of the ReLU."""
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)
        ctx.set_materialize_grads(False)
        result: Tensor = run(grad, output)
        return result

    @staticmethod
    def backward(ctx: Any, of_result: Tensor | None) -> tuple[Any, ...]:
        """Pass the gradient where the output is not <= 0: the operation is its own adjoint."""
        if of_result is None:
            return None, None, None
        (output,) = ctx.saved_tensors
        _, needs_grad, needs_output = ctx.needs_input_grad
        relu_backward = (_kernels if plain(of_result) else _library).relu_backward
        # Zeros, not None: the derivative in the output exists, and is 0.
        return (
            None,
            relu_backward(of_result, output) if needs_grad else None,
            torch.zeros_like(output) if needs_output else None,
        )

    @staticmethod
    def jvp(ctx: Any, _: None, of_grad: Tensor | None, __: Tensor | None) -> Tensor:
        """Pass the tangent likewise."""
        (output,) = ctx.saved_tensors
        return torch.zeros_like(output) if of_grad is None else _library.relu_backward(of_grad, output)


class MaxPool2d(torch.autograd.Function):
    """apply(run, resolved, input, indices, both, *PoolOptions): `both` returns what was chosen too."""

    @staticmethod
    def forward(ctx: Any, run: Any, resolved: bool, input: Tensor, indices: bool, both: bool, *options: Any) -> Any:
        """Keep what was chosen: one byte for each output, or eight where windows are large or indices wanted."""
        output, choice = run(input, *options, indices)
        ctx.save_for_backward(choice)
        if resolved:
            ctx.save_for_forward(choice)
        ctx.set_materialize_grads(False)
        ctx.state = resolved, both, input.shape, options
        if not both:
            return output
        ctx.mark_non_differentiable(choice)
        return output, choice

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None = None) -> tuple[Any, ...]:
        """Scatter the gradient to the cells that were chosen."""
        if grad is None:
            return (None,) * 10
        (choice,) = ctx.saved_tensors
        resolved, _, size, options = ctx.state
        if not resolved and plain(grad):
            found = _kernels.max_pool2d_backward(grad, choice, size, *options)
        else:
            if not resolved:
                options = _options.pool_options("max_pool2d_backward", size, *options)
            found = _library.max_pool2d_backward(grad, choice, size, *options)
        return None, None, found, *(None,) * 7

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Gather the tangents of the cells that were chosen; what was chosen has none."""
        (choice,) = ctx.saved_tensors
        _, both, _, options = ctx.state
        found = _library.max_pool2d_gather(tangents[2], choice, *options)
        return (found, None) if both else found


class MaxPool2dBackward(torch.autograd.Function):
    """apply(run, grad_output, choice, input_size, *PoolOptions): linear in the first."""

    @staticmethod
    def forward(ctx: Any, run: Any, grad: Tensor, choice: Tensor, size: Any, *options: Any) -> Tensor:
        """Keep what was chosen."""
        ctx.save_for_backward(choice)
        ctx.save_for_forward(choice)
        ctx.set_materialize_grads(False)
        ctx.size, ctx.options = size, options
        result: Tensor = run(grad, choice, size, *options)
        return result

    @staticmethod
    def backward(ctx: Any, of_result: Tensor | None) -> tuple[Any, ...]:
        """Gather, the adjoint of the scatter."""
        if of_result is None:
            return (None,) * 9
        found = _library.max_pool2d_gather(of_result, *ctx.saved_tensors, *ctx.options)
        return None, found, *(None,) * 7

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """Scatter the tangent."""
        result: Tensor = _library.max_pool2d_backward(tangents[1], *ctx.saved_tensors, ctx.size, *ctx.options)
        return result


class MaxPool2dGather(torch.autograd.Function):
    """apply(run, input, choice, *PoolOptions): linear in the first."""

    @staticmethod
    def forward(ctx: Any, run: Any, input: Tensor, choice: Tensor, *options: Any) -> Tensor:
        """Keep what was chosen."""
        ctx.save_for_backward(choice)
        ctx.save_for_forward(choice)
        ctx.set_materialize_grads(False)
        ctx.size, ctx.options = input.shape, options
        result: Tensor = run(input, choice, *options)
        return result

    @staticmethod
    def backward(ctx: Any, of_result: Tensor | None) -> tuple[Any, ...]:
        """Scatter, the adjoint of the gather."""
        if of_result is None:
            return (None,) * 8
        found = _library.max_pool2d_backward(of_result, *ctx.saved_tensors, ctx.size, *ctx.options)
        return None, found, *(None,) * 6

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """Gather the tangent."""
        result: Tensor = _library.max_pool2d_gather(tangents[1], *ctx.saved_tensors, *ctx.options)
        return result


class Fused(torch.autograd.Function):
    """apply(run, resolved, input, weight, bias, *FusedOptions)."""

    @staticmethod
    def forward(
        ctx: Any, run: Any, resolved: bool, input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep the codes, the input for grad_weight and the weight for grad_input; the convolution never exists."""
        output, codes = run(input, weight, bias, *options)
        needs = ctx.needs_input_grad
        ctx.save_for_backward(input if needs[3] else None, weight if needs[2] else None, codes)
        if resolved:
            ctx.save_for_forward(input, weight, codes)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(codes)
        ctx.state = resolved, (input.shape, weight.shape), _kernels.channels_last(input), options
        return output, codes

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None = None) -> tuple[Any, ...]:
        """Return the three gradients, each where it is needed."""
        if grad is None:
            return (None,) * 13
        input, weight, codes = ctx.saved_tensors
        mask = ctx.needs_input_grad[2:5]
        resolved, sizes, last, options = ctx.state
        if not resolved and plain(grad):
            gradients = _kernels.conv2d_relu_max_pool2d_backward(
                grad, input, weight, codes, *sizes, last, *options, mask
            )
        else:
            if not resolved:
                options = _options.fused_options("conv2d_relu_max_pool2d_backward", *sizes, *options)
            if input is not None and weight is not None:
                gradients = fused_backward(grad, input, weight, codes, options, mask)
            else:
                gradients = fused_gradients(grad, input, weight, codes, sizes, last, options, mask)
        return None, None, *gradients, *(None,) * 8

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, None]:
        """Gather the tangent of the convolution's output; dead cells have none."""
        input, weight, codes = ctx.saved_tensors
        conv, pool = parts(ctx.state[3])
        _, _, of_input, of_weight, of_bias, *_ = tangents
        found = _conv_tangent(input, weight, of_input, of_weight, of_bias, conv)
        return _library.max_pool2d_gather(found, codes, *pool), None


def fused_backward(
    grad: Tensor, input: Tensor, weight: Tensor, codes: Tensor, options: Any, mask: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of the fused operation by the dispatcher's operation; None where not asked for."""
    found = _library.conv2d_relu_max_pool2d_backward(grad, input, weight, codes, *options, mask)
    first, second, third = (each if wanted else None for each, wanted in zip(found, mask, strict=True))
    return first, second, third


def fused_gradients(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    codes: Tensor,
    sizes: Any,
    last: bool,
    options: Any,
    mask: Any,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the same by the three parts, which can be differentiated; as `conv2d_gradients`."""
    conv, pool = parts(options)
    size = _options.conv_output_size(*sizes, *conv[:3])
    dense = _library.max_pool2d_backward(grad, codes, size, *pool)
    return conv2d_gradients(dense, input, weight, sizes, last, mask, conv)


def _resolved_conv(ctx: Any) -> Any:
    resolved, sizes, _, options = ctx.state
    return options if resolved else _options.conv_options("conv2d_backward", *sizes, *options)


def parts(options: Any) -> tuple[Any, Any]:
    """Split resolved `FusedOptions` into `ConvOptions` and `PoolOptions`."""
    *conv, kernel_size, stride, padding, precision = options
    return (*conv, "zeros", 0.0, "auto", precision), (kernel_size, stride, padding, (1, 1), False)


def _linear(options: Any) -> Any:
    """Return `ConvOptions` without the constant outside the image."""
    *geometry, _, algorithm, precision = options
    return *geometry, 0.0, algorithm, precision


def _sum(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first + second


def _applied(function: Any) -> Any:
    """Return `apply` of one level: functorch's levels are the dispatcher's business here, which comes first."""
    return super(torch.autograd.Function, function).apply


conv2d = _applied(Conv2d)
conv2d_grad_input = _applied(Conv2dGradInput)
conv2d_grad_weight = _applied(Conv2dGradWeight)
relu = _applied(ReLU)
relu_backward = _applied(ReLUBackward)
max_pool2d = _applied(MaxPool2d)
max_pool2d_backward = _applied(MaxPool2dBackward)
max_pool2d_gather = _applied(MaxPool2dGather)
fused = _applied(Fused)
