"""The calls of conv2d and its gradients: past the dispatcher to kernels, or by it to the operations of _conv2d.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .._cpu import PreparedWeight, ShapeError
from .._types import check_precision
from . import _conv2d, _memory, _tensors
from ._conv2d import Gradients
from ._options import resolve_conv
from ._tensors import DISPATCHER, KERNEL, LOWER, PAST_DISPATCHER, Path


@_tensors.entry_point
def conv2d(
    input: Tensor,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: Any,
    padding_value: Any,
    activation: Any,
    layout: Any,
    algorithm: Any,
    precision: Any,
    out: Any = None,
) -> Tensor:
    """Run `convx.conv2d`."""
    if layout != "NCHW":
        _tensors.expect_layout("conv2d", layout)
    if activation is not None and activation != "relu":
        raise ShapeError(f"conv2d: activation is {activation!r}, expected None or 'relu'")
    if precision != "ieee":
        check_precision("conv2d", precision)
    relu = activation is not None
    options = (stride, padding, dilation, groups, padding_mode, padding_value, algorithm, precision)
    path = _tensors.path_of(input, weight) if bias is None else _tensors.path_of(input, weight, bias)
    if path not in PAST_DISPATCHER or input.dim() != 4:
        return _conv2d_by_dispatcher(path, input, weight, bias, relu, options, layout, out)
    memory = _tensors.layout_of(input, layout)
    if out is None:
        if path is KERNEL:
            return _conv2d.conv2d_kernel(input, weight, bias, relu, options, memory)
        return _conv2d.apply_conv2d(_conv2d.conv2d_kernel, memory, input, weight, bias, relu, options)  # type: ignore[no-any-return]
    _tensors.destination("conv2d", out, input)
    if path is not KERNEL:
        _tensors.refuse_out("conv2d", out)
    return _tensors.written(_conv2d.conv2d_kernel(input, weight, bias, relu, options, memory, out))


def _conv2d_by_dispatcher(
    path: Path, input: Tensor, weight: Any, bias: Any, relu: bool, options: tuple[Any, ...], layout: str, out: Any
) -> Tensor:
    def again(input: Tensor, weight: Any, bias: Any, out: Any) -> Tensor:
        run: Any = conv2d
        return run(input, weight, bias, *options[:6], "relu" if relu else None, layout, *options[6:], out)  # type: ignore[no-any-return]

    # The checks cost 5 us.
    if path is not DISPATCHER or input.dim() != 4 or weight.dim() != 4:
        if _tensors.autocasts(input):
            return _tensors.in_float32("conv2d", again, (LOWER,), input, weight, bias, out=out)  # type: ignore[no-any-return]
        if isinstance(weight, PreparedWeight):
            return _with_prepared_weight(input, weight, bias, relu, options, layout, out)
        (input, weight, bias), converted = _tensors.checked("conv2d", input=input, weight=weight, bias=bias)
        if converted:
            return again(input, weight, bias, out)
        if input.dim() == 3:
            batch = None if out is None else _tensors.expect_tensor("conv2d", "out", out).unsqueeze(0)
            result = again(input.unsqueeze(0), weight, bias, batch)
            return result.squeeze(0) if out is None else out
    _tensors.refuse_out("conv2d", out)
    images = _tensors.nchw(input, layout)
    resolved = resolve_conv("conv2d", images.shape, weight.shape, options)
    return _tensors.restored(_conv2d.conv2d_op(images, weight, bias, relu, resolved), layout)  # type: ignore[no-any-return]


def _with_prepared_weight(
    input: Tensor, weight: PreparedWeight, bias: Any, relu: bool, options: Any, layout: str, out: Any
) -> Tensor:
    if bias is not None:
        _tensors.expect_tensor("conv2d", "bias", bias)
    path = _tensors.path_of(input) if bias is None else _tensors.path_of(input, bias)
    if path is not KERNEL or not input.is_cpu:
        raise TypeError(
            "conv2d: weight is a convx.PreparedWeight, which serves inference alone: expected eager float32 or float64 "
            "tensors on the CPU, and torch.no_grad() where one requires grad"
        )
    if out is not None:
        _tensors.destination("conv2d", out, input)
    if input.dim() == 3:
        batch = None if out is None else out.unsqueeze(0)
        result = _with_prepared_weight(input.unsqueeze(0), weight, bias, relu, options, layout, batch)
        return result.squeeze(0) if out is None else out
    result = _conv2d.conv2d_kernel(input, weight, bias, relu, options, _tensors.layout_of(input, layout), out)
    return result if out is None else _tensors.written(result)


@_tensors.entry_point
def conv2d_backward(
    grad_output: Tensor,
    input: Any,
    weight: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: Any,
    padding_value: Any,
    layout: Any,
    algorithm: Any,
    precision: Any,
    mask: Any,
    per_sample: Any,
) -> Gradients:
    """Run `convx.conv2d_backward`."""
    op = "conv2d_backward"
    options = (stride, padding, dilation, groups, padding_mode, padding_value, algorithm, precision)
    if per_sample is False:
        run = (_conv2d.backward_kernel, _conv2d.conv2d_gradients)
        return convolution_backward(op, run, grad_output, input, weight, layout, mask, options)

    def call(grad_output: Tensor, input: Any, weight: Any, *_: Any) -> Gradients:
        tensors = _tensors.unrecorded(op, None, grad_output=grad_output, input=input, weight=weight)
        rest = (*options[:6], layout, algorithm)
        return _memory.run_unrecorded(op, tensors, rest, precision, (mask, per_sample))  # type: ignore[no-any-return]

    if _tensors.autocasts(grad_output):
        return _tensors.in_float32(op, call, (1, 2, 0), grad_output, input, weight)  # type: ignore[no-any-return]
    return call(grad_output, input, weight)


def convolution_backward(
    op: str,
    run: tuple[Callable[..., Gradients], Callable[..., Gradients]],
    grad_output: Tensor,
    input: Any,
    weight: Any,
    layout: Any,
    mask: Any,
    options: tuple[Any, ...],
) -> Gradients:
    """Run the gradients of conv2d or of conv_transpose2d: by the kernel, or by what can be differentiated again."""

    def again(grad_output: Tensor, input: Any, weight: Any, *_: Any) -> Gradients:
        return convolution_backward(op, run, grad_output, input, weight, layout, mask, options)

    if _tensors.autocasts(grad_output):
        return _tensors.in_float32(op, again, (1, 2, 0), grad_output, input, weight)  # type: ignore[no-any-return]
    _tensors.expect_layout(op, layout)
    if options[-1] != "ieee":
        check_precision(op, options[-1])
    straight = _tensors.path_of(grad_output, input, weight) is KERNEL
    if not straight:
        named = dict(grad_output=grad_output, input=input, weight=weight)
        (grad_output, input, weight), _ = _tensors.checked(op, **named)
    if input.dim() == 3 and grad_output.dim() == 3:
        gradients = again(grad_output.unsqueeze(0), input.unsqueeze(0), weight)
        return None if gradients[0] is None else gradients[0].squeeze(0), *gradients[1:]
    _tensors.expect_images(op, grad_output=grad_output, input=input)
    kernel, differentiable = run
    memory, sizes = _tensors.layout_of(input, layout), (input.shape, weight.shape)
    return (kernel if straight else differentiable)(grad_output, input, weight, sizes, memory, mask, options)


@_tensors.entry_point
def conv2d_grad_norms(grad_output: Tensor, input: Any, weight_shape: Any, *options: Any) -> Any:
    """Run `convx.conv2d_grad_norms`."""
    op = "conv2d_grad_norms"
    if _tensors.autocasts(grad_output):
        args = (grad_output, input, weight_shape, *options)
        return _tensors.in_float32(op, lambda *args: conv2d_grad_norms(*args[:-1]), (0,), *args)
    *rest, precision = options
    tensors = _tensors.unrecorded(op, None, grad_output=grad_output, input=input)
    return _memory.run_unrecorded(op, tensors, (weight_shape, *rest), precision)
