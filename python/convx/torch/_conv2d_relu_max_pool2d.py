"""conv2d_relu_max_pool2d and its gradients as operations of PyTorch, as _conv2d.py.

Derivatives of the gradients go through the three parts, of which every one has its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _cpu
from .._cpu import ShapeError
from .._types import check_precision
from . import _conv2d, _library, _max_pool2d, _memory, _tensors
from ._conv2d import Gradients
from ._library import Operation
from ._options import FusedOptions, Size, resolve_fused
from ._tensors import DISPATCHER, KERNEL, LOWER, PAST_DISPATCHER, Path

fused_op = Operation(
    "conv2d_relu_max_pool2d", "Tensor input, Tensor weight, Tensor? bias", FusedOptions, results="(Tensor, Tensor)"
)
# What output_mask leaves out is a tensor without elements.
backward_op = Operation(
    "conv2d_relu_max_pool2d_backward",
    "Tensor grad_output, Tensor input, Tensor weight, Tensor codes",
    FusedOptions,
    "bool[] output_mask",
    "(Tensor, Tensor, Tensor)",
)


# Calls


@_tensors.entry_point
def conv2d_relu_max_pool2d(
    input: Tensor,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    pool_kernel_size: Any,
    pool_stride: Any,
    pool_padding: Any,
    layout: Any,
    precision: Any,
) -> tuple[Tensor, Tensor]:
    """Run `convx.conv2d_relu_max_pool2d`; return the output and the codes."""
    op = "conv2d_relu_max_pool2d"
    if layout != "NCHW":
        _tensors.expect_layout(op, layout)
    if precision != "ieee":
        check_precision(op, precision)
    options = (stride, padding, dilation, groups, pool_kernel_size, pool_stride, pool_padding, precision)
    path = _tensors.path_of(input, weight) if bias is None else _tensors.path_of(input, weight, bias)
    if path not in PAST_DISPATCHER or input.dim() != 4:
        return _by_dispatcher(path, input, weight, bias, options, layout)
    memory = _tensors.layout_of(input, layout)
    if path is KERNEL:
        return kernel(input, weight, bias, options, memory)
    return _apply_fused(kernel, memory, input, weight, bias, options)  # type: ignore[no-any-return]


def _by_dispatcher(
    path: Path, input: Tensor, weight: Any, bias: Any, options: Any, layout: str
) -> tuple[Tensor, Tensor]:
    op = "conv2d_relu_max_pool2d"

    def again(input: Tensor, weight: Any, bias: Any, *_: Any) -> tuple[Tensor, Tensor]:
        run: Any = conv2d_relu_max_pool2d
        return run(input, weight, bias, *options[:-1], layout, options[-1])  # type: ignore[no-any-return]

    if path is not DISPATCHER or input.dim() != 4 or weight.dim() != 4:
        if _tensors.autocasts(input):
            return _tensors.in_float32(op, again, (LOWER,), input, weight, bias)  # type: ignore[no-any-return]
        (input, weight, bias), converted = _tensors.checked(op, input=input, weight=weight, bias=bias)
        if converted:
            return again(input, weight, bias)
        if input.dim() == 3:
            output, codes = again(input.unsqueeze(0), weight, bias)
            return output.squeeze(0), codes.squeeze(0)
    images = _tensors.nchw(input, layout)
    output, codes = fused_op(images, weight, bias, resolve_fused(op, images.shape, weight.shape, options))
    return _tensors.restored(output, layout), _tensors.restored(codes, layout)


@_tensors.entry_point
def conv2d_relu_max_pool2d_backward(grad_output: Tensor, input: Any, weight: Any, codes: Any, *rest: Any) -> Gradients:
    """Run `convx.conv2d_relu_max_pool2d_backward`."""
    op = "conv2d_relu_max_pool2d_backward"
    *geometry, layout, precision, mask = rest
    options = (*geometry, precision)
    if _tensors.autocasts(grad_output):

        def again(grad_output: Tensor, input: Any, weight: Any, _: None) -> Gradients:
            return conv2d_relu_max_pool2d_backward(grad_output, input, weight, codes, *rest)

        return _tensors.in_float32(op, again, (1, 2, 0), grad_output, input, weight)  # type: ignore[no-any-return]
    _tensors.expect_layout(op, layout)
    straight = _tensors.path_of(grad_output, input, weight) is KERNEL
    if not straight:
        named = dict(grad_output=grad_output, input=input, weight=weight)
        (grad_output, input, weight), _ = _tensors.checked(op, **named)
    codes = _tensors.selection(op, "codes", codes, grad_output, "grad_output", _max_pool2d.CODES)
    if grad_output.dim() == input.dim() == codes.dim() == 3:
        images = grad_output.unsqueeze(0), input.unsqueeze(0), weight, codes.unsqueeze(0)
        gradients = conv2d_relu_max_pool2d_backward(*images, *rest)
        return None if gradients[0] is None else gradients[0].squeeze(0), *gradients[1:]
    _tensors.expect_images(op, grad_output=grad_output, input=input, codes=codes)
    sizes = (input.shape, weight.shape)
    if straight:
        memory = _tensors.layout_of(input, layout)
        return backward_kernel(grad_output, input, weight, codes, sizes, memory, mask, options)
    if codes.shape != grad_output.shape:
        found, expected = (tuple(_tensors.nchw(each, layout).shape) for each in (codes, grad_output))
        raise ShapeError(f"{op}: codes has shape {found}, expected {expected} as grad_output has")
    return _differentiable_backward(grad_output, input, weight, codes, sizes, layout, mask, options)


# Kernels


def kernel(input: Tensor, weight: Tensor, bias: Tensor | None, options: Any, layout: str) -> tuple[Tensor, Tensor]:
    """Run `convx.conv2d_relu_max_pool2d`: the output, and the codes for the backward pass."""
    op = "conv2d_relu_max_pool2d"
    *geometry, precision = options
    axes = _tensors.AXES[layout]
    if _memory.on_cpu(input):
        output, codes = _memory.cpu_for[layout].conv2d_relu_max_pool2d(
            _memory.array_of(input, layout),
            _memory.array_of(weight),
            None if bias is None else _memory.array_of(bias),
            *geometry,
            axes,
        )
        return _memory.tensor_of(output), _memory.tensor_of(codes)
    rest = (*geometry, axes, precision)
    output, codes = _memory.on_device(op, "input", layout, (input,), (weight, bias), *rest)
    return _memory.image_from_device(output, layout), _memory.image_from_device(codes, layout)


def backward_kernel(
    grad_output: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    codes: Tensor,
    sizes: tuple[Size, Size],
    layout: str,
    mask: Any,
    options: Any,
) -> Gradients:
    """Run `convx.conv2d_relu_max_pool2d_backward`.

    `input` is needed for grad_weight alone, `weight` for grad_input alone; `sizes` are theirs.
    """
    op = "conv2d_relu_max_pool2d_backward"
    *geometry, precision = options
    axes = _tensors.AXES[layout]
    empty = grad_output.new_zeros(()) if input is None or weight is None else grad_output
    input = empty.expand(sizes[0]) if input is None else input
    weight = empty.expand(sizes[1]) if weight is None else weight
    if _memory.on_cpu(grad_output):
        found = _memory.cpu.conv2d_relu_max_pool2d_backward(
            _memory.array_of(grad_output, layout),
            _memory.array_of(input, layout),
            _memory.array_of(weight),
            _memory.array_of(codes, layout),
            *geometry,
            axes,
            mask,
        )
        return _memory.gradients_of(found, layout)
    # The codes stand behind the weight, which has no layout: they are permuted here.
    others = (weight, _memory.image_on_device(codes, layout))
    rest = (*geometry, axes, precision, mask)
    grad_input, *gradients = _memory.on_device(op, "grad_output", layout, (grad_output, input), others, *rest)
    return _memory.image_from_device(grad_input, layout), *gradients


def _backward_by_dispatcher(
    grad: Tensor, input: Tensor, weight: Tensor, codes: Tensor, options: FusedOptions, mask: Any
) -> tuple[Tensor, ...]:
    sizes, layout = (input.shape, weight.shape), _tensors.layout_of(input)
    return _without_none(grad, backward_kernel(grad, input, weight, codes, sizes, layout, mask, options))


def _without_none(grad: Tensor, gradients: Gradients) -> tuple[Tensor, ...]:
    return tuple(grad.new_empty(0) if each is None else each for each in gradients)


# Derivatives


class _Fused(torch.autograd.Function):
    """apply(run, layout, input, weight, bias, options)."""

    @staticmethod
    def forward(
        ctx: Any, run: Any, layout: str, input: Tensor, weight: Tensor, bias: Tensor | None, options: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep the codes, the input for grad_weight and the weight for grad_input; the convolution never exists."""
        output, codes = run(input, weight, bias, options, layout)
        needs = ctx.needs_input_grad
        ctx.save_for_backward(input if needs[3] else None, weight if needs[2] else None, codes)
        if run is not kernel:
            ctx.save_for_forward(input, weight, codes)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(codes)
        ctx.state = (input.shape, weight.shape), layout, options
        return output, codes

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None = None) -> tuple[Any, ...]:
        """Return the three gradients, each where it is needed."""
        if grad is None:
            return (None,) * 6
        input, weight, codes = ctx.saved_tensors
        mask = ctx.needs_input_grad[2:5]
        sizes, layout, options = ctx.state
        straight = type(options) is tuple and _tensors.plain(grad)
        run = backward_kernel if straight else _differentiable_backward
        return None, None, *run(grad, input, weight, codes, sizes, layout, mask, options), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, None]:
        """Gather the tangent of the convolution's output; dead pixels have none."""
        input, weight, codes = ctx.saved_tensors
        conv, pool = ctx.state[2].parts()
        _, _, of_input, of_weight, of_bias, _ = tangents
        found = _conv2d.conv2d_tangent(input, weight, of_input, of_weight, of_bias, conv)
        return _max_pool2d.gather_op(found, codes, pool), None


_apply_fused = _library.applied(_Fused)


def _record_fused(input: Tensor, *args: Any) -> Any:
    def run(*args: Any) -> Any:
        return fused_op.below(*args[:-1])

    return _apply_fused(run, _tensors.layout_of(input), input, *args)


def _differentiable_backward(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    codes: Tensor,
    sizes: tuple[Size, Size],
    layout: str,
    mask: Any,
    options: Any,
) -> Gradients:
    """Return the gradients, made of operations that can be differentiated again; None where not asked for."""
    grad, input, codes = (_tensors.nchw(each, layout) for each in (grad, input, codes))
    sizes = (_tensors.nchw_size(sizes[0], layout), sizes[1])
    if not isinstance(options, FusedOptions):
        options = resolve_fused("conv2d_relu_max_pool2d_backward", *sizes, options)
    if input is not None and weight is not None:
        found = backward_op(grad, input, weight, codes, options, mask)
        found = tuple(each if wanted else None for each, wanted in zip(found, mask, strict=True))
    else:
        found = _by_parts(grad, input, weight, codes, sizes, layout != "NCHW", mask, options)
    return _tensors.restored(found[0], layout), found[1], found[2]


def _by_parts(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    codes: Tensor,
    sizes: tuple[Size, Size],
    channels_last: bool,
    mask: Any,
    options: FusedOptions,
) -> Gradients:
    conv, pool = options.parts()
    dense = _max_pool2d.backward_op(grad, codes, conv.output_size(*sizes), pool)
    layout = _tensors.CHANNELS_LAST if channels_last else "NCHW"
    return _conv2d.conv2d_gradients(dense, input, weight, sizes, layout, mask, conv)


def _record_backward(
    grad: Tensor, input: Tensor, weight: Tensor, codes: Tensor, options: FusedOptions, mask: Any
) -> tuple[Tensor, ...]:
    if not _library.watched(grad, input, weight):
        return backward_op.below(grad, input, weight, codes, options, mask)  # type: ignore[no-any-return]
    sizes, channels_last = (input.shape, weight.shape), _tensors.layout_of(input) != "NCHW"
    return _without_none(grad, _by_parts(grad, input, weight, codes, sizes, channels_last, mask, options))


# Results without data


def _fused_fake(input: Tensor, weight: Tensor, bias: Tensor | None, options: FusedOptions) -> tuple[Tensor, Tensor]:
    op = "conv2d_relu_max_pool2d"
    _check(op, input.shape, weight.shape, options)
    if bias is not None:
        _library.match(op, "bias", bias.shape, weight.shape[:1])
    size, layout = options.output_size(input.shape, weight.shape), _tensors.layout_of(input)
    output = _library.empty_image(input, size, layout)
    return output, torch.empty_like(output, dtype=torch.uint8)


def _backward_fake(
    grad: Tensor, input: Tensor, weight: Tensor, codes: Tensor, options: FusedOptions, mask: Any
) -> tuple[Tensor, Tensor, Tensor]:
    op = "conv2d_relu_max_pool2d_backward"
    _check(op, input.shape, weight.shape, options)
    expected = options.output_size(input.shape, weight.shape)
    _library.match(op, "grad_output", grad.shape, expected)
    _library.match(op, "codes", codes.shape, expected)
    return (
        _library.empty_image(grad, input.shape, _tensors.layout_of(input)) if mask[0] else grad.new_empty(0),
        grad.new_empty(weight.shape if mask[1] else 0),
        grad.new_empty(weight.shape[:1] if mask[2] else 0),
    )


def _check(op: str, input_size: Size, weight_size: Size, options: FusedOptions) -> None:
    def run(input: Any, weight: Any) -> None:
        _cpu.resolve_conv2d_relu_max_pool2d(input, weight, None, *options[:7], "NCHW")

    _library.check(op, run, (input_size, weight_size), options)


# Batches


def _fused_batch(
    size: int, dims: Any, input: Tensor, weight: Tensor, bias: Tensor | None, options: FusedOptions
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    of_input, of_weight, of_bias, *_ = dims
    if of_weight is None and of_bias is None:
        found = fused_op(_library.folded(input, of_input), weight, bias, options)
        batch = size, _library.length(input, of_input, 0)
        output, codes = (each.unflatten(0, batch) for each in found)
        return (output, codes), (0, 0)
    conv, pool = options.parts()
    dense, dim = _conv2d.conv2d_batch(size, dims, input, weight, bias, True, conv)
    (output, codes), _ = _max_pool2d.with_selection_batch(size, (dim,), dense, pool, False)
    return (output, codes.masked_fill(output <= 0, 255)), (0, 0)


def _backward_batch(
    size: int, dims: Any, grad: Tensor, input: Tensor, weight: Tensor, codes: Tensor, options: FusedOptions, mask: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    of_grad, of_input, of_weight, of_codes, *_ = dims
    input_size, weight_size = _library.single(input, of_input), _library.single(weight, of_weight)
    if not size:
        asked = [
            each if wanted else (0,)
            for each, wanted in zip((input_size, weight_size, weight_size[:1]), mask, strict=True)
        ]
        return tuple(_library.no_elements(each, grad, input, weight)[0] for each in asked), (0, 0, 0)
    conv, pool = options.parts()
    one = input if of_input is None else input.select(of_input, 0)
    last = _tensors.layout_of(one) != "NCHW"
    scatter = (of_grad, of_codes)
    dense, _ = _max_pool2d.backward_batch(size, scatter, grad, codes, conv.output_size(input_size, weight_size), pool)
    none = grad.new_empty(size, 0), 0
    found: tuple[tuple[Tensor, int], ...] = (
        _conv2d.grad_input_batch(size, (0, of_weight), dense, weight, input_size, last, conv) if mask[0] else none,
        _conv2d.grad_weight_batch(size, (0, of_input), dense, input, weight_size, conv) if mask[1] else none,
        (dense.sum((1, 3, 4)), 0) if mask[2] else none,
    )
    return tuple(result for result, _ in found), tuple(dim for _, dim in found)


# FLOP counts and decomposition


def _fused_flops(input: Size, weight: Size, bias: Any, options: FusedOptions, **_: Any) -> int:
    return _conv2d.products(weight, options.parts()[0].output_size(input, weight))


def _backward_flops(
    grad: Any, input: Size, weight: Size, codes: Any, options: FusedOptions, mask: Any, **_: Any
) -> int:
    return int(sum(mask[:2])) * _fused_flops(input, weight, None, options)


def _decomposed(input: Tensor, weight: Tensor, bias: Tensor | None, options: FusedOptions) -> tuple[Tensor, Tensor]:
    conv, pool = options.parts()
    dense = _conv2d.conv2d_decomposed(input, weight, bias, True, conv)
    output, codes = _max_pool2d.with_selection_decomposed(dense, pool, False)
    return output, codes.masked_fill(output <= 0, 255)


fused_op.implement(
    kernel=_library.lying(kernel),
    fake=_fused_fake,
    derivative=_record_fused,
    batch=_fused_batch,
    flops=_fused_flops,
    decomposition=_decomposed,
)
backward_op.implement(
    kernel=_backward_by_dispatcher,
    fake=_backward_fake,
    derivative=_record_backward,
    batch=_backward_batch,
    flops=_backward_flops,
)
