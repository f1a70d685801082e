"""conv_transpose2d as an operation of PyTorch, as _conv2d.py: its gradients are those of the convolution it adjoins."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _cpu
from .._types import check_precision
from . import _conv2d, _library, _memory, _tensors
from ._conv2d import Gradients, Mask
from ._conv2d_calls import convolution_backward
from ._library import Operation
from ._options import Size, TransposeOptions, resolve_transpose
from ._tensors import DISPATCHER, KERNEL, LOWER, PAST_DISPATCHER, Path

transpose_op = Operation("conv_transpose2d", "Tensor input, Tensor weight, Tensor? bias", TransposeOptions)


# Calls


@_tensors.entry_point
def conv_transpose2d(
    input: Tensor,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
    layout: Any,
    algorithm: Any,
    precision: Any,
    out: Any = None,
) -> Tensor:
    """Run `convx.conv_transpose2d`."""
    op = "conv_transpose2d"
    if layout != "NCHW":
        _tensors.expect_layout(op, layout)
    if precision != "ieee":
        check_precision(op, precision)
    options = (stride, padding, output_padding, groups, dilation, algorithm, precision)
    path = _tensors.path_of(input, weight) if bias is None else _tensors.path_of(input, weight, bias)
    if path not in PAST_DISPATCHER or input.dim() != 4 or out is not None:
        return _by_dispatcher(path, input, weight, bias, options, layout, out)
    memory = _tensors.layout_of(input, layout)
    if path is KERNEL:
        return kernel(input, weight, bias, options, memory)
    return _apply_transpose(kernel, memory, input, weight, bias, options)  # type: ignore[no-any-return]


def _by_dispatcher(path: Path, input: Tensor, weight: Any, bias: Any, options: Any, layout: str, out: Any) -> Tensor:
    op = "conv_transpose2d"

    def again(input: Tensor, weight: Any, bias: Any, out: Any = None) -> Tensor:
        run: Any = conv_transpose2d
        return run(input, weight, bias, *options[:5], layout, *options[5:], out)  # type: ignore[no-any-return]

    if path is not DISPATCHER or out is not None or input.dim() != 4 or weight.dim() != 4:
        if _tensors.autocasts(input):
            return _tensors.in_float32(op, again, (LOWER,), input, weight, bias, out=out)  # type: ignore[no-any-return]
        if out is not None:
            tensors = _tensors.unrecorded(op, out, input=input, weight=weight, bias=bias)
            rest = (*options[:5], layout, options[5])
            return _memory.run_unrecorded(op, tensors, rest, options[6], (out,))  # type: ignore[no-any-return]
        (input, weight, bias), converted = _tensors.checked(op, input=input, weight=weight, bias=bias)
        if converted:
            return again(input, weight, bias)
        if input.dim() == 3:
            return again(input.unsqueeze(0), weight, bias).squeeze(0)
    images = _tensors.nchw(input, layout)
    resolved = resolve_transpose(op, images.shape, weight.shape, options)
    return _tensors.restored(transpose_op(images, weight, bias, resolved), layout)  # type: ignore[no-any-return]


@_tensors.entry_point
def conv_transpose2d_backward(
    grad_output: Tensor,
    input: Any,
    weight: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
    layout: Any,
    algorithm: Any,
    precision: Any,
    mask: Any,
) -> Gradients:
    """Run `convx.conv_transpose2d_backward`."""
    op = "conv_transpose2d_backward"
    options = (stride, padding, output_padding, groups, dilation, algorithm, precision)
    run = (backward_kernel, _differentiable_backward)
    return convolution_backward(op, run, grad_output, input, weight, layout, mask, options)


# Kernels


def kernel(input: Tensor, weight: Tensor, bias: Tensor | None, options: Any, layout: str) -> Tensor:
    """Run `convx.conv_transpose2d`."""
    op = "conv_transpose2d"
    *geometry, algorithm, precision = options
    tail = (_tensors.AXES[layout], algorithm)
    if _memory.on_cpu(input):
        found = _memory.cpu_for[layout].conv_transpose2d(
            _memory.array_of(input, layout),
            _memory.array_of(weight),
            None if bias is None else _memory.array_of(bias),
            *geometry,
            *tail,
            None,
        )
        return _memory.tensor_of(found)
    rest = (*geometry, *tail, precision, None)
    found = _memory.on_device(op, "input", layout, (input,), (weight, bias), *rest)
    return _memory.image_from_device(found, layout)  # type: ignore[no-any-return]


def backward_kernel(
    grad_output: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    sizes: tuple[Size, Size],
    layout: str,
    mask: Any,
    options: Any,
) -> Gradients:
    """Run `convx.conv_transpose2d_backward`; `input` is needed for grad_weight alone, `weight` for grad_input alone."""
    op = "conv_transpose2d_backward"
    *geometry, algorithm, precision = options
    axes = _tensors.AXES[layout]
    empty = grad_output.new_zeros(()) if input is None or weight is None else grad_output
    input = empty.expand(sizes[0]) if input is None else input
    weight = empty.expand(sizes[1]) if weight is None else weight
    if _memory.on_cpu(grad_output):
        arrays = _memory.array_of(grad_output, layout), _memory.array_of(input, layout)
        found = _memory.cpu.conv_transpose2d_backward(
            *arrays, _memory.array_of(weight), *geometry, axes, algorithm, mask
        )
        return _memory.gradients_of(found, layout)
    rest = (*geometry, axes, algorithm, precision, mask)
    grad_input, *gradients = _memory.on_device(op, "grad_output", layout, (grad_output, input), (weight,), *rest)
    return _memory.image_from_device(grad_input, layout), *gradients


# Derivatives


class _ConvTranspose2d(torch.autograd.Function):
    """apply(run, layout, input, weight, bias, options)."""

    @staticmethod
    def forward(
        ctx: Any, run: Any, layout: str, input: Tensor, weight: Tensor, bias: Tensor | None, options: Any
    ) -> Tensor:
        """Keep the input for grad_weight, the weight for grad_input."""
        output: Tensor = run(input, weight, bias, options, layout)
        needs = ctx.needs_input_grad
        ctx.save_for_backward(input if needs[3] else None, weight if needs[2] else None)
        if run is not kernel:
            ctx.save_for_forward(input, weight)
        ctx.set_materialize_grads(False)
        ctx.state = (input.shape, weight.shape), layout, options
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        """Return the three gradients, each where it is needed."""
        if grad is None:
            return (None,) * 6
        input, weight = ctx.saved_tensors
        sizes, layout, options = ctx.state
        straight = type(options) is tuple and _tensors.plain(grad)
        run = backward_kernel if straight else _differentiable_backward
        return None, None, *run(grad, input, weight, sizes, layout, ctx.needs_input_grad[2:5], options), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        """Return the tangent: the operation is linear in the input and in the weight."""
        _, _, of_input, of_weight, of_bias, _ = tangents
        input, weight = ctx.saved_tensors
        (input_size, weight_size), _, options = ctx.state
        found = None
        if of_input is not None:
            found = transpose_op(of_input, weight, of_bias, options)
        elif of_bias is not None:
            found = of_bias[:, None, None].expand(options.output_size(input_size, weight_size))
        return found if of_weight is None else _library.total(found, transpose_op(input, of_weight, None, options))


_apply_transpose = _library.applied(_ConvTranspose2d)


def _record_transpose(input: Tensor, *args: Any) -> Tensor:
    def run(*args: Any) -> Any:
        return transpose_op.below(*args[:-1])

    return _apply_transpose(run, _tensors.layout_of(input), input, *args)  # type: ignore[no-any-return]


def _differentiable_backward(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    sizes: tuple[Size, Size],
    layout: str,
    mask: Mask,
    options: Any,
) -> Gradients:
    """Return the gradients, made of operations that can be differentiated again: a convolution, and the weight's."""
    op = "conv_transpose2d_backward"
    grad, input = _tensors.nchw(grad, layout), _tensors.nchw(input, layout)
    input_size, weight_size = _tensors.nchw_size(sizes[0], layout), sizes[1]
    if not isinstance(options, TransposeOptions):
        options = resolve_transpose(op, input_size, weight_size, options)
    size = options.output_size(input_size, weight_size)
    _library.match(op, "grad_output", grad.shape, size)
    reached, conv = options.convolution(input_size, weight_size)
    seen = grad
    for axis in (2, 3):
        if reached[axis] != size[axis]:
            seen = seen.narrow(axis, 0, reached[axis])
    grad_input = _conv2d.conv2d_op(seen, weight, None, False, conv) if mask[0] else None
    return (
        _tensors.restored(grad_input, layout),
        _conv2d.grad_weight_op(input, seen, weight_size, conv) if mask[1] else None,
        grad.sum((0, 2, 3)) if mask[2] else None,
    )


# Results without data, and batches


def _fake(input: Tensor, weight: Tensor, bias: Tensor | None, options: TransposeOptions) -> Tensor:
    *geometry, algorithm, _ = options

    def run(input: Any, weight: Any) -> None:
        resolve: Any = _cpu.resolve_conv_transpose2d
        resolve(input, weight, None, *geometry, "NCHW", algorithm)

    _library.check("conv_transpose2d", run, (input.shape, weight.shape), options)
    size = options.output_size(input.shape, weight.shape)
    if bias is not None:
        _library.match("conv_transpose2d", "bias", bias.shape, size[1:2])
    return _library.empty_image(input, size, _tensors.layout_of(input))


def _batch(
    size: int, dims: Any, input: Tensor, weight: Tensor, bias: Tensor | None, options: TransposeOptions
) -> tuple[Tensor, int]:
    of_input, of_weight, of_bias, *_ = dims
    groups = options.groups
    if not size:
        sizes = _library.single(input, of_input), _library.single(weight, of_weight)
        return _library.no_elements(options.output_size(*sizes), input, weight, bias)
    if of_weight is None:
        own = bias if of_bias is None else None
        if of_input is None:
            output = transpose_op(input, weight, own, options)[None]
        else:
            output = transpose_op(_library.folded(input, of_input), weight, own, options)
            output = output.unflatten(0, (size, _library.length(input, of_input, 0)))
        if of_bias is not None:
            assert bias is not None
            output = output + bias.movedim(of_bias, 0)[:, None, :, None, None]
        return output, 0
    if bias is not None:
        bias = _library.front(bias, of_bias, size)
    if of_input is None:
        bias = None if bias is None else _library.inside(bias, 0, 0, groups)
        output = transpose_op(input, weight.movedim(of_weight, 1).flatten(1, 2), bias, options)
        return _library.outside(output, 1, groups, size), 0
    bias = None if bias is None else bias.flatten()
    images, weights = _library.beside(input, of_input), _library.folded(weight, of_weight)
    output = transpose_op(images, weights, bias, options._replace(groups=groups * size))
    return output.unflatten(1, (size, -1)), 1


# Decomposition


def _decomposed(input: Tensor, weight: Tensor, bias: Tensor | None, options: TransposeOptions) -> Tensor:
    size = options.output_size(input.shape, weight.shape)
    within = tuple(before if before == after else 0 for before, after in options.padding)
    rest = (options.stride, within, options.output_padding, options.groups, options.dilation)
    result = F.conv_transpose2d(input, weight, bias, *rest)
    for axis, ((before, after), cut) in enumerate(zip(options.padding, within, strict=True)):
        if before != cut or after != cut:
            result = result.narrow(2 + axis, before, size[2 + axis])
    return result


transpose_op.implement(
    kernel=_library.lying(kernel),
    fake=_fake,
    derivative=_record_transpose,
    batch=_batch,
    flops=lambda x, weight, *_, **__: _conv2d.products(weight, x),
    decomposition=_decomposed,
)
