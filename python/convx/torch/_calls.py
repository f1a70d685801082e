"""The way of a call: straight to the kernels, through autograd to the kernels, or through PyTorch's dispatcher.

Plain eager calls go straight; those that are traced, transformed or watched are operations ``torch.ops.convx.*``. Both
compute the same bits. Options are the user's, in the order of _kernels.py; images are N, C, H, W or C, H, W in shape.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .._cpu import PreparedWeight, ShapeError
from ..ops import check_precision
from . import _autograd, _kernels, _library, _options
from ._arguments import Way, checked, destination, expect_tensor, selection, way
from ._autocast import LOWER, in_float32

_CODES = {torch.uint8: "codes"}


@in_float32(LOWER)
def conv2d(
    input: Tensor, weight: Any, bias: Tensor | None, activation: object, *options: Any, out: Tensor | None = None
) -> Tensor:
    """Run conv2d with `ConvOptions`."""
    if activation is not None and activation != "relu":
        raise ShapeError(f"conv2d: activation is {activation!r}, expected None or 'relu'")
    if options[-1] != "ieee":
        check_precision("conv2d", options[-1])
    relu = activation is not None
    if isinstance(weight, PreparedWeight):
        return _with_prepared_weight(input, weight, bias, relu, options, out)
    found = way(input, weight) if bias is None else way(input, weight, bias)
    if found is not Way.DISPATCHER and input.dim() == 4:
        if out is not None:
            destination("conv2d", out, input)
        if found is Way.RECORDED:
            _refuse_out("conv2d", out)
            return _autograd.conv2d(_kernels.conv2d, False, input, weight, bias, relu, *options)  # type: ignore[no-any-return]
        return _kernels.conv2d(input, weight, bias, relu, *options, out=out)
    (input, weight, bias), converted = checked("conv2d", input=input, weight=weight, bias=bias)
    if converted:
        return conv2d(input, weight, bias, activation, *options, out=out)
    if input.dim() == 3:
        batch = None if out is None else out.unsqueeze(0)
        return conv2d(input.unsqueeze(0), weight, bias, activation, *options, out=batch).squeeze(0)
    _refuse_out("conv2d", out)
    resolved = _options.conv_options("conv2d", input.shape, weight.shape, *options)
    return _library.conv2d(input, weight, bias, relu, *resolved)  # type: ignore[no-any-return]


def _with_prepared_weight(
    input: Tensor, weight: PreparedWeight, bias: Tensor | None, relu: bool, options: Any, out: Tensor | None
) -> Tensor:
    if bias is not None:
        expect_tensor("conv2d", "bias", bias)
    found = way(input) if bias is None else way(input, bias)
    if found is not Way.KERNEL or not input.is_cpu:
        raise TypeError(
            "conv2d: weight is a convx.PreparedWeight, which serves inference alone: expected eager float32 or float64 "
            "tensors on the CPU, and torch.no_grad() where one requires grad"
        )
    if out is not None:
        destination("conv2d", out, input)
    if input.dim() == 3:
        batch = None if out is None else out.unsqueeze(0)
        return _kernels.conv2d(input.unsqueeze(0), weight, bias, relu, *options, out=batch).squeeze(0)
    return _kernels.conv2d(input, weight, bias, relu, *options, out=out)


def _refuse_out(op: str, out: Tensor | None) -> None:
    if out is not None:
        raise TypeError(
            f"{op}: out is given, expected None where the call is recorded by autograd, traced or transformed"
        )


@in_float32(LOWER)
def conv_transpose2d(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """Run conv_transpose2d: stride, padding, output_padding, groups, dilation, algorithm, precision."""
    op = "conv_transpose2d"
    if options[-1] != "ieee":
        check_precision(op, options[-1])
    (input, weight, bias), _ = checked(op, input=input, weight=weight, bias=bias)
    if input.dim() == 3:
        return conv_transpose2d(input.unsqueeze(0), weight, bias, *options).squeeze(0)
    size, conv, (rows, columns) = _options.transposed(op, input.shape, weight.shape, *options)
    if bias is not None and tuple(bias.shape) != (size[1],):
        raise ShapeError(f"{op}: bias has shape {tuple(bias.shape)}, expected {(size[1],)}")
    last = _kernels.channels_last(input)
    found = way(input, weight)
    if found is Way.DISPATCHER:
        resolved = _options.conv_options(op, size, weight.shape, *conv)
        result = _library.conv2d_grad_input(input, weight, size, last, *resolved)
    elif found is Way.RECORDED:
        result = _autograd.conv2d_grad_input(_kernels.conv2d_grad_input, False, input, weight, size, last, *conv)
    else:
        result = _kernels.conv2d_grad_input(input, weight, size, last, *conv)
    if rows or columns:
        result = torch.nn.functional.pad(result, (0, columns, 0, rows))
    return result if bias is None else result + bias[:, None, None]  # type: ignore[no-any-return]


@in_float32(1, 2, 0)
def conv_transpose2d_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, mask: tuple[bool, bool, bool], *options: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Run conv_transpose2d_backward with the same options: a convolution, and the weight gradient of it."""
    op = "conv_transpose2d_backward"
    (grad_output, input, weight), _ = checked(op, grad_output=grad_output, input=input, weight=weight)
    if input.dim() == 3 and grad_output.dim() == 3:
        batch = grad_output.unsqueeze(0), input.unsqueeze(0), weight
        gradients = conv_transpose2d_backward(*batch, mask, *options)
        return None if gradients[0] is None else gradients[0].squeeze(0), *gradients[1:]
    _expect_images(op, grad_output=grad_output, input=input)
    (n, k, h, w), conv, (rows, columns) = _options.transposed(op, input.shape, weight.shape, *options)
    if tuple(grad_output.shape) != (n, k, h + rows, w + columns):
        expected = (n, k, h + rows, w + columns)
        raise ShapeError(f"{op}: grad_output has shape {tuple(grad_output.shape)}, expected {expected}")
    seen = grad_output[:, :, :h, :w]
    return (
        conv2d(seen, weight, None, None, *conv) if mask[0] else None,
        conv2d_backward(input, seen, weight, (False, True, False), *conv)[1] if mask[1] else None,
        grad_output.sum((0, 2, 3)) if mask[2] else None,
    )


@in_float32(1, 2, 0)
def conv2d_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, mask: tuple[bool, bool, bool], *options: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Run conv2d_backward with `ConvOptions`."""
    op = "conv2d_backward"
    if options[-1] != "ieee":
        check_precision(op, options[-1])
    tensors = grad_output, input, weight
    plain = way(*tensors) is Way.KERNEL
    if not plain:
        (grad_output, input, weight), _ = checked(op, grad_output=grad_output, input=input, weight=weight)
    if input.dim() == 3 and grad_output.dim() == 3:
        gradients = conv2d_backward(grad_output.unsqueeze(0), input.unsqueeze(0), weight, mask, *options)
        return None if gradients[0] is None else gradients[0].squeeze(0), *gradients[1:]
    _expect_images(op, grad_output=grad_output, input=input)
    if plain:
        sizes = tuple(input.shape), tuple(weight.shape)
        last = _kernels.channels_last(input)
        return _kernels.conv2d_backward(grad_output, input, weight, *sizes, last, mask, *options)
    resolved = _options.conv_options(op, input.shape, weight.shape, *options)
    last = _kernels.channels_last(input)
    return _autograd.conv2d_gradients(grad_output, input, weight, (input.shape, weight.shape), last, mask, resolved)


@in_float32(0)
def relu(input: Tensor, out: Tensor | None = None) -> Tensor:
    """Run relu."""
    found = way(input)
    if found is not Way.DISPATCHER:
        if out is not None:
            destination("relu", out, input)
        if found is Way.RECORDED:
            _refuse_out("relu", out)
            return _autograd.relu(_kernels.relu, input)  # type: ignore[no-any-return]
        return _kernels.relu(input, out)
    _refuse_out("relu", out)
    (input,), converted = checked("relu", input=input)
    if converted:
        return relu(input, out)
    return _library.relu(input)  # type: ignore[no-any-return]


@in_float32(0)
def relu_backward(grad_output: Tensor, output: Tensor, out: Tensor | None = None) -> Tensor:
    """Run relu_backward."""
    op = "relu_backward"
    found = way(grad_output, output)
    if found is not Way.DISPATCHER:
        if out is not None:
            destination(op, out, grad_output)
        if found is Way.RECORDED:
            _refuse_out(op, out)
            return _autograd.relu_backward(_kernels.relu_backward, grad_output, output)  # type: ignore[no-any-return]
        return _kernels.relu_backward(grad_output, output, out)
    _refuse_out(op, out)
    (grad_output, output), _ = checked(op, grad_output=grad_output, output=output)
    return _library.relu_backward(grad_output, output)  # type: ignore[no-any-return]


@in_float32(0)
def max_pool2d(input: Tensor, choice: Literal["indices", "codes"] | None, *options: Any) -> Any:
    """Run max_pool2d with `PoolOptions`; with a `choice` the result is a pair."""
    indices = choice == "indices"
    found = way(input)
    if found is not Way.DISPATCHER and input.dim() == 4:
        if found is Way.RECORDED:
            if choice is None:
                indices = _options.taps("max_pool2d", options[0]) > _kernels.MOST_CODES
            run = _kernels.max_pool2d_with_choice
            return _autograd.max_pool2d(run, False, input, indices, choice is not None, *options)
        if choice is not None:
            return _kernels.max_pool2d_with_choice(input, *options, indices)
        return _kernels.max_pool2d(input, *options)
    (input,), converted = checked("max_pool2d", input=input)
    if converted:
        return max_pool2d(input, choice, *options)
    if input.dim() == 3:
        batch = max_pool2d(input.unsqueeze(0), choice, *options)
        return batch.squeeze(0) if choice is None else (batch[0].squeeze(0), batch[1].squeeze(0))
    resolved = _options.pool_options("max_pool2d", input.shape, *options)
    if choice is not None:
        return _library.max_pool2d_with_choice(input, *resolved, indices)
    return _library.max_pool2d(input, *resolved)


@in_float32(0)
def max_pool2d_backward(grad_output: Tensor, choice: Any, size: tuple[int, ...], *options: Any) -> Tensor:
    """Run max_pool2d_backward with `PoolOptions`; `size` is that of the input."""
    op = "max_pool2d_backward"
    (grad_output,), _ = checked(op, grad_output=grad_output)
    choice = selection(op, "indices_or_codes", choice, grad_output, "grad_output", {torch.int64: "indices"} | _CODES)
    if grad_output.dim() == 3 and choice.dim() == 3 and len(size) == 3:
        batch = max_pool2d_backward(grad_output.unsqueeze(0), choice.unsqueeze(0), (1, *size), *options)
        return batch.squeeze(0)
    _expect_images(op, grad_output=grad_output, indices_or_codes=choice)
    if len(size) != 4:
        raise ShapeError(f"{op}: input_shape has {len(size)} dimensions, expected {grad_output.dim()}")
    if way(grad_output) is Way.KERNEL:
        return _kernels.max_pool2d_backward(grad_output, choice, size, *options)
    resolved = _options.pool_options(op, size, *options)
    return _library.max_pool2d_backward(grad_output, choice, size, *resolved)  # type: ignore[no-any-return]


@in_float32(LOWER)
def conv2d_relu_max_pool2d(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> tuple[Tensor, Tensor]:
    """Run the fused operation with `FusedOptions`; return the output and the codes."""
    op = "conv2d_relu_max_pool2d"
    if options[-1] != "ieee":
        check_precision(op, options[-1])
    found = way(input, weight) if bias is None else way(input, weight, bias)
    if found is not Way.DISPATCHER and input.dim() == 4:
        run = _kernels.conv2d_relu_max_pool2d
        if found is Way.RECORDED:
            return _autograd.fused(run, False, input, weight, bias, *options)  # type: ignore[no-any-return]
        return run(input, weight, bias, *options)
    (input, weight, bias), converted = checked(op, input=input, weight=weight, bias=bias)
    if converted:
        return conv2d_relu_max_pool2d(input, weight, bias, *options)
    if input.dim() == 3:
        output, codes = conv2d_relu_max_pool2d(input.unsqueeze(0), weight, bias, *options)
        return output.squeeze(0), codes.squeeze(0)
    resolved = _options.fused_options(op, input.shape, weight.shape, *options)
    return _library.conv2d_relu_max_pool2d(input, weight, bias, *resolved)  # type: ignore[no-any-return]


@in_float32(1, 2, 0)
def conv2d_relu_max_pool2d_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, codes: Any, mask: tuple[bool, bool, bool], *options: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Run the gradients of the fused operation with `FusedOptions`."""
    op = "conv2d_relu_max_pool2d_backward"
    tensors = grad_output, input, weight
    plain = way(*tensors) is Way.KERNEL
    if not plain:
        (grad_output, input, weight), _ = checked(op, grad_output=grad_output, input=input, weight=weight)
    codes = selection(op, "codes", codes, grad_output, "grad_output", _CODES)
    if grad_output.dim() == input.dim() == codes.dim() == 3:
        batch = grad_output.unsqueeze(0), input.unsqueeze(0), weight, codes.unsqueeze(0)
        gradients = conv2d_relu_max_pool2d_backward(*batch, mask, *options)
        return None if gradients[0] is None else gradients[0].squeeze(0), *gradients[1:]
    _expect_images(op, grad_output=grad_output, input=input, codes=codes)
    if plain:
        sizes, last = (input.shape, weight.shape), _kernels.channels_last(input)
        return _kernels.conv2d_relu_max_pool2d_backward(grad_output, input, weight, codes, *sizes, last, *options, mask)
    if codes.shape != grad_output.shape:
        found, expected = tuple(codes.shape), tuple(grad_output.shape)
        raise ShapeError(f"{op}: codes has shape {found}, expected {expected} as grad_output has")
    resolved = _options.fused_options(op, input.shape, weight.shape, *options)
    return _autograd.fused_backward(grad_output, input, weight, codes, resolved, mask)


def _expect_images(op: str, **named: Tensor) -> None:
    for name, tensor in named.items():
        if tensor.dim() != 4:
            raise ShapeError(f"{op}: {name} has {tensor.dim()} dimensions, expected 4, or 3 (unbatched) in all")
