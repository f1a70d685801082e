"""max_pool2d and its gradient as operations of PyTorch, as _conv2d.py.

Derivatives need the selected taps alone: the gradient scatters to them, and its adjoint, the tangent, gathers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _cpu
from .._cpu import ShapeError
from . import _library, _memory, _tensors
from ._library import Operation
from ._options import PoolOptions, Size, resolve_pool, sizes, taps
from ._tensors import DISPATCHER, KERNEL, PAST_DISPATCHER, Path

MOST_CODES = 255
"""Windows of more taps have int64 indices instead of one-byte codes."""

CODES = {torch.uint8: "codes"}

max_pool2d_op = Operation("max_pool2d", "Tensor input", PoolOptions)
with_selection_op = Operation("max_pool2d_with_choice", "Tensor input", PoolOptions, "bool indices", "(Tensor, Tensor)")
backward_op = Operation("max_pool2d_backward", "Tensor grad_output, Tensor choice, SymInt[] input_size", PoolOptions)
gather_op = Operation("max_pool2d_gather", "Tensor input, Tensor choice", PoolOptions)


# Calls


@_tensors.entry_point
def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: Any,
    layout: Any,
    return_indices: Any,
    return_codes: Any,
) -> Any:
    """Run `convx.max_pool2d`."""
    if layout != "NCHW":
        _tensors.expect_layout("max_pool2d", layout)
    options = (kernel_size, stride, padding, dilation, ceil_mode)
    path = _tensors.path_of(input)
    if path not in PAST_DISPATCHER or input.dim() != 4 or (return_indices and return_codes):
        return _by_dispatcher(path, input, options, layout, return_indices, return_codes)
    memory = _tensors.layout_of(input, layout)
    if path is KERNEL:
        return kernel(input, options, memory, bool(return_indices), bool(return_codes))
    both = bool(return_indices or return_codes)
    indices = return_indices if both else taps("max_pool2d", kernel_size) > MOST_CODES
    return _apply_max_pool2d(_with_selection_kernel, memory, input, options, bool(indices), both)


def _by_dispatcher(path: Path, input: Tensor, options: Any, layout: str, return_indices: Any, return_codes: Any) -> Any:
    op = "max_pool2d"

    def again(input: Tensor, *_: Any) -> Any:
        run: Any = max_pool2d
        return run(input, *options, layout, return_indices, return_codes)

    if path is not DISPATCHER or input.dim() != 4 or (return_indices and return_codes):
        if _tensors.autocasts(input):
            return _tensors.in_float32(op, again, (0,), input)
        if return_indices and return_codes:
            raise ShapeError(f"{op}: return_indices and return_codes are both True, expected at most one")
        (input,), _ = _tensors.checked(op, input=input)
        if input.dim() == 3:
            found = again(input.unsqueeze(0))
            return tuple(each.squeeze(0) for each in found) if isinstance(found, tuple) else found.squeeze(0)
    images = _tensors.nchw(input, layout)
    resolved = resolve_pool(op, images.shape, options)
    if not (return_indices or return_codes):
        return _tensors.restored(max_pool2d_op(images, resolved), layout)
    output, selected = with_selection_op(images, resolved, bool(return_indices))
    return _tensors.restored(output, layout), _tensors.restored(selected, layout)


@_tensors.entry_point
def max_pool2d_backward(grad_output: Tensor, selected: Any, input_shape: Any, *options: Any) -> Tensor:
    """Run `convx.max_pool2d_backward`."""
    op = "max_pool2d_backward"
    *pool, layout = options
    if _tensors.autocasts(grad_output):
        args = (grad_output, selected, input_shape, *options)
        return _tensors.in_float32(op, lambda *args: max_pool2d_backward(*args[:-1]), (0,), *args)  # type: ignore[no-any-return]
    _tensors.expect_layout(op, layout)
    size = sizes(op, "input_shape", input_shape)
    (grad_output,), _ = _tensors.checked(op, grad_output=grad_output)
    expected = {torch.int64: "indices"} | CODES
    selected = _tensors.selection(op, "indices_or_codes", selected, grad_output, "grad_output", expected)
    if grad_output.dim() == 3 and selected.dim() == 3 and len(size) == 3:
        return max_pool2d_backward(grad_output.unsqueeze(0), selected.unsqueeze(0), (1, *size), *options).squeeze(0)
    _tensors.expect_images(op, grad_output=grad_output, indices_or_codes=selected)
    if len(size) != 4:
        raise ShapeError(f"{op}: input_shape has {len(size)} dimensions, expected {grad_output.dim()}")
    if _tensors.path_of(grad_output) is KERNEL:
        memory = _tensors.layout_of(selected, layout)
        return backward_kernel(grad_output, selected, size, pool, memory)
    return differentiable_backward(grad_output, selected, size, pool, layout)


def differentiable_backward(grad: Tensor, selected: Tensor, size: Size, options: Any, layout: str) -> Tensor:
    """Return the gradient, made of an operation that can be differentiated again."""
    size = _tensors.nchw_size(size, layout)
    if not isinstance(options, PoolOptions):
        options = resolve_pool("max_pool2d_backward", size, options)
    found = backward_op(_tensors.nchw(grad, layout), _tensors.nchw(selected, layout), size, options)
    return _tensors.restored(found, layout)  # type: ignore[no-any-return]


# Kernels


def kernel(input: Tensor, options: Any, layout: str, indices: bool, codes: bool) -> Any:
    """Run `convx.max_pool2d`."""
    tail = (_tensors.AXES[layout], indices, codes)
    if _memory.on_cpu(input):
        found = _memory.cpu_for[layout].max_pool2d(_memory.array_of(input, layout), *options, *tail)
        if not (indices or codes):
            return _memory.tensor_of(found)
        output, selected = found
        return _memory.tensor_of(output), _memory.tensor_of(selected)
    found = _memory.on_device("max_pool2d", "input", layout, (input,), (), *options, *tail)
    if not (indices or codes):
        return _memory.image_from_device(found, layout)
    output, selected = found
    return _memory.image_from_device(output, layout), _memory.image_from_device(selected, layout)


def _with_selection_kernel(input: Tensor, options: Any, indices: bool, layout: str) -> Any:
    return kernel(input, options, layout, indices, not indices)


def backward_kernel(grad_output: Tensor, selected: Tensor, size: Sequence[int], options: Any, layout: str) -> Tensor:
    """Run `convx.max_pool2d_backward`."""
    op, axes = "max_pool2d_backward", "NHWC"
    n, c, h, w = size
    if layout is _tensors.CHANNELS_LAST:
        size = (n, h, w, c)
    elif layout == "NCHW":
        axes, size = "NCHW", (n, c, h, w)
    if _memory.on_cpu(grad_output):
        images = _memory.array_of(grad_output, layout), _memory.array_of(selected, layout)
        return _memory.tensor_of(_memory.cpu_for[layout].max_pool2d_backward(*images, size, *options, axes))
    found = _memory.on_device(op, "grad_output", layout, (grad_output, selected), (), size, *options, axes)
    return _memory.image_from_device(found, layout)  # type: ignore[no-any-return]


def _backward_by_dispatcher(grad: Tensor, selected: Tensor, size: Size, options: PoolOptions) -> Tensor:
    return backward_kernel(grad, selected, size, options, _tensors.layout_of(selected))


def _gather_kernel(input: Tensor, selected: Tensor, options: PoolOptions) -> Tensor:
    """Take the selected pixels of `input`; 0 for code 255, and for index -1 of a window without a pixel."""
    h, w = input.shape[2:]
    dead = None
    if selected.dtype == torch.uint8:
        (top, _), (left, _) = options.padding
        dead = selected == 255
        tap = selected.masked_fill(dead, 0).long()
        rows = torch.arange(selected.shape[2], device=selected.device)[:, None] * options.stride[0] - top
        columns = torch.arange(selected.shape[3], device=selected.device) * options.stride[1] - left
        row = rows + torch.div(tap, options.kernel_size[1], rounding_mode="floor") * options.dilation[0]
        column = columns + tap % options.kernel_size[1] * options.dilation[1]
        # Dead windows may have no tap inside the image; what is read for them is not used.
        selected = row.clamp(0, h - 1) * w + column.clamp(0, w - 1)
    elif tuple(options.dilation) != (1, 1):  # only dilation carries a window over the image
        dead = selected < 0
        selected = selected.clamp(min=0)
    result = input.flatten(2).gather(2, selected.flatten(2)).reshape(selected.shape)
    if dead is not None:
        result.masked_fill_(dead, 0)
    return result.contiguous()


# Derivatives


class _MaxPool2d(torch.autograd.Function):
    """apply(run, layout, input, options, indices, both): `both` returns the selected taps too."""

    @staticmethod
    def forward(ctx: Any, run: Any, layout: str, input: Tensor, options: Any, indices: bool, both: bool) -> Any:
        """Keep the selected taps: one byte for each output, or eight where windows are large or indices wanted."""
        output, selected = run(input, options, indices, layout)
        ctx.save_for_backward(selected)
        if run is not _with_selection_kernel:
            ctx.save_for_forward(selected)
        ctx.set_materialize_grads(False)
        ctx.state = input.shape, both, options, layout
        if not both:
            return output
        ctx.mark_non_differentiable(selected)
        return output, selected

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None = None) -> tuple[Any, ...]:
        """Scatter the gradient to the selected pixels."""
        if grad is None:
            return (None,) * 6
        (selected,) = ctx.saved_tensors
        size, _, options, layout = ctx.state
        straight = type(options) is tuple and _tensors.plain(grad)
        run = backward_kernel if straight else differentiable_backward
        return None, None, run(grad, selected, size, options, layout), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Gather the tangents of the selected pixels; what is selected has none."""
        (selected,) = ctx.saved_tensors
        _, both, options, _ = ctx.state
        found = gather_op(tangents[2], selected, options)
        return (found, None) if both else found


class _Scatter(torch.autograd.Function):
    """apply(grad_output, selected, input_size, options): linear in the first."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, selected: Tensor, size: Any, options: PoolOptions) -> Tensor:
        """Keep the selected taps."""
        ctx.save_for_backward(selected)
        ctx.save_for_forward(selected)
        ctx.set_materialize_grads(False)
        ctx.size, ctx.options = size, options
        return backward_op.below(grad, selected, size, options)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, of_result: Tensor | None) -> tuple[Any, ...]:
        """Gather, the adjoint of the scatter."""
        if of_result is None:
            return (None,) * 4
        return gather_op(of_result, *ctx.saved_tensors, ctx.options), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """Scatter the tangent."""
        result: Tensor = backward_op(tangents[0], *ctx.saved_tensors, ctx.size, ctx.options)
        return result


class _Gather(torch.autograd.Function):
    """apply(input, selected, options): linear in the first."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, selected: Tensor, options: PoolOptions) -> Tensor:
        """Keep the selected taps."""
        ctx.save_for_backward(selected)
        ctx.save_for_forward(selected)
        ctx.set_materialize_grads(False)
        ctx.size, ctx.options = input.shape, options
        return gather_op.below(input, selected, options)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, of_result: Tensor | None) -> tuple[Any, ...]:
        """Scatter, the adjoint of the gather."""
        if of_result is None:
            return (None,) * 3
        return backward_op(of_result, *ctx.saved_tensors, ctx.size, ctx.options), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """Gather the tangent."""
        result: Tensor = gather_op(tangents[0], *ctx.saved_tensors, ctx.options)
        return result


_apply_max_pool2d = _library.applied(_MaxPool2d)


def _run_below(input: Tensor, options: PoolOptions, indices: bool, _: str) -> Any:
    return with_selection_op.below(input, options, indices)


def _record_max_pool2d(input: Tensor, options: PoolOptions) -> Any:
    """Ask for the selected taps only where a derivative will need them."""
    if not _library.watched(input):
        return max_pool2d_op.below(input, options)
    indices = options.kernel_size[0] * options.kernel_size[1] > MOST_CODES
    return _apply_max_pool2d(_run_below, "NCHW", input, options, indices, False)


def _record_with_selection(input: Tensor, options: PoolOptions, indices: bool) -> Any:
    return _apply_max_pool2d(_run_below, "NCHW", input, options, indices, True)


# Results without data


def _max_pool2d_fake(input: Tensor, options: PoolOptions) -> Tensor:
    _check("max_pool2d", input.shape, options)
    return _library.empty_image(input, options.output_size(input.shape), _tensors.layout_of(input))


def _with_selection_fake(input: Tensor, options: PoolOptions, indices: bool) -> tuple[Tensor, Tensor]:
    output = _max_pool2d_fake(input, options)
    return output, torch.empty_like(output, dtype=torch.int64 if indices else torch.uint8)


def _backward_fake(grad: Tensor, selected: Tensor, size: Size, options: PoolOptions) -> Tensor:
    op = "max_pool2d_backward"
    _check(op, size, options)
    expected = options.output_size(size)
    _library.match(op, "grad_output", grad.shape, expected)
    _library.match(op, "indices_or_codes", selected.shape, expected)
    return _library.empty_image(grad, size, _tensors.layout_of(selected))


def _check(op: str, input_size: Size, options: PoolOptions) -> None:
    _library.check(op, lambda x: _cpu.resolve_max_pool2d(x, *options, "NCHW"), (input_size,), options)


# Batches


def _max_pool2d_batch(size: int, dims: Any, input: Tensor, options: PoolOptions) -> tuple[Tensor, int]:
    output = max_pool2d_op(_library.folded(input, dims[0]), options)
    return output.unflatten(0, (size, _library.length(input, dims[0], 0))), 0


def with_selection_batch(
    size: int, dims: Any, input: Tensor, options: PoolOptions, indices: bool
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """Pool batched images."""
    output, selected = with_selection_op(_library.folded(input, dims[0]), options, indices)
    batch = size, _library.length(input, dims[0], 0)
    return (output.unflatten(0, batch), selected.unflatten(0, batch)), (0, 0)


def backward_batch(
    size: int, dims: Any, grad: Tensor, selected: Tensor, input_size: Size, options: PoolOptions
) -> tuple[Tensor, int]:
    """Scatter batched gradients."""
    grad = _library.front(grad, dims[0], size).flatten(0, 1)
    selected = _library.front(selected, dims[1], size).flatten(0, 1)
    n, c, h, w = input_size
    return backward_op(grad, selected, (size * n, c, h, w), options).unflatten(0, (size, n)), 0


def _gather_batch(size: int, dims: Any, input: Tensor, selected: Tensor, options: PoolOptions) -> tuple[Tensor, int]:
    input, selected = _library.front(input, dims[0], size), _library.front(selected, dims[1], size)
    found = gather_op(input.flatten(0, 1), selected.flatten(0, 1), options)
    return found.unflatten(0, (size, input.shape[1])), 0


# Decompositions


def _decomposed(input: Tensor, options: PoolOptions) -> Tensor:
    input, within, size = _border(input, options)
    stride, dilation, ceil_mode = options.stride, options.dilation, options.ceil_mode
    result = F.max_pool2d(input, options.kernel_size, stride, within, dilation, ceil_mode)
    return result if size is None else result[:, :, : size[2], : size[3]]


def _border(input: Tensor, options: PoolOptions) -> tuple[Tensor, tuple[Any, Any], Size | None]:
    """Return the input, with a border of its own where PyTorch's pooling has none like it, and what is left to pad.

    The size of the output is the third where the border lets it grow, so that it is to be cut; else None.
    """
    (top, bottom), (left, right) = options.padding
    kernel_size = options.kernel_size
    if (top, left) == (bottom, right) and 2 * top <= kernel_size[0] and 2 * left <= kernel_size[1]:
        return input, (top, left), None
    size = options.output_size(input.shape) if options.ceil_mode else None
    return F.pad(input, (left, right, top, bottom), value=-float("inf")), (0, 0), size


def with_selection_decomposed(input: Tensor, options: PoolOptions, indices: bool) -> tuple[Tensor, Tensor]:
    """Compute max_pool2d and the selected taps by PyTorch's operations."""
    padded, within, size = _border(input, options)
    stride, dilation, ceil_mode = options.stride, options.dilation, options.ceil_mode
    kernel_size = options.kernel_size
    output, found = F.max_pool2d_with_indices(padded, kernel_size, stride, within, dilation, ceil_mode)
    if size is not None:
        output, found = output[:, :, : size[2], : size[3]], found[:, :, : size[2], : size[3]]
    if indices and padded is input:
        return output, found
    (top, _), (left, _) = options.padding
    row = found // padded.shape[3]
    column = found - row * padded.shape[3]  # exporters to ONNX know no remainder by a size that is not known
    row, column = row - (top - within[0]), column - (left - within[1])
    if indices:
        return output, row * input.shape[3] + column
    rows = torch.arange(output.shape[2], device=input.device)[:, None] * stride[0] - top
    columns = torch.arange(output.shape[3], device=input.device) * stride[1] - left
    tap = (row - rows) // dilation[0] * kernel_size[1] + (column - columns) // dilation[1]
    return output, tap.to(torch.uint8)


max_pool2d_op.implement(
    kernel=lambda x, options: kernel(x, options, _tensors.layout_of(x), False, False),
    fake=_max_pool2d_fake,
    derivative=_record_max_pool2d,
    batch=_max_pool2d_batch,
    decomposition=_decomposed,
)
with_selection_op.implement(
    kernel=_library.lying(_with_selection_kernel),
    fake=_with_selection_fake,
    derivative=_record_with_selection,
    batch=with_selection_batch,
    decomposition=with_selection_decomposed,
)
backward_op.implement(
    kernel=_backward_by_dispatcher,
    fake=_backward_fake,
    derivative=_library.applied(_Scatter),
    batch=backward_batch,
)
gather_op.implement(
    kernel=_gather_kernel,
    fake=lambda x, selected, options: x.new_empty(selected.shape),
    derivative=_library.applied(_Gather),
    batch=_gather_batch,
)
