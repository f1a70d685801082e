"""Rules for batches (torch.vmap, torch.func.jacrev, per-sample gradients): the new axis joins one that is there.

A batch of images joins N. A batch of weights joins the output channels of each group, and where both are batched every
element of the batch is a group of its own. So one call of the same operation does the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _autograd, _kernels, _library, _options


def _front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Return `tensor` with the batch in front: repeated without a copy where it has none."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _folded(tensor: Tensor, dim: int) -> Tensor:
    """Let the batch join N."""
    return tensor.movedim(dim, 0).flatten(0, 1)


def _beside(tensor: Tensor, dim: int) -> Tensor:
    """Let the batch join the channels of images, in front of them."""
    return tensor.movedim(dim, 1).flatten(1, 2)


def _inside(tensor: Tensor, dim: int, axis: int, groups: int) -> Tensor:
    """Let the batch join the channels, `axis` without it, of images or weights inside each group."""
    front: Tensor = tensor.movedim(dim, 0).unflatten(axis + 1, (groups, -1))
    return front.movedim(0, axis + 1).flatten(axis, axis + 2)


def _outside(tensor: Tensor, axis: int, groups: int, size: int) -> Tensor:
    """Take the batch out of the groups of an axis again, to the front."""
    apart: Tensor = tensor.unflatten(axis, (groups, size, -1))
    return apart.movedim(axis + 1, 0).flatten(axis + 1, axis + 2)


def _length(tensor: Tensor, dim: int, axis: int) -> Any:
    """Return how long an axis is, counted without the batch."""
    return tensor.shape[axis + (dim <= axis)]


def _single(tensor: Tensor, dim: int | None) -> tuple[int, ...]:
    """Return the sizes of one element of the batch."""
    shape = tuple(tensor.shape)
    return shape if dim is None else shape[:dim] + shape[dim + 1 :]


def _nothing(size: tuple[int, ...], *operands: Tensor | None) -> tuple[Tensor, int]:
    """Return the result for a batch of no elements, such as no models: none, with a gradient for each operand.

    Where the batch would join the groups there is nothing to be run: no groups are no convolution.
    """
    sums = [each.sum() for each in operands if each is not None]
    return torch.stack(sums).sum().expand(0, *size), 0


def _with_groups(options: Any, factor: int) -> Any:
    stride, padding, dilation, groups, *rest = options
    return stride, padding, dilation, groups * factor, *rest


def _conv2d(
    info: Any, dims: Any, input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, *options: Any
) -> tuple[Tensor, int]:
    of_input, of_weight, of_bias, *_ = dims
    size, groups = info.batch_size, options[3]
    if not size:
        sizes = _single(input, of_input), _single(weight, of_weight)
        return _nothing(_options.conv_output_size(*sizes, *options[:3]), input, weight, bias)
    if of_weight is None:
        own = bias if of_bias is None else None
        activated = relu and of_bias is None
        if of_input is None:
            output = _library.conv2d(input, weight, own, activated, *options)[None]
        else:
            output = _library.conv2d(_folded(input, of_input), weight, own, activated, *options)
            output = output.unflatten(0, (size, _length(input, of_input, 0)))
        if of_bias is not None:
            assert bias is not None
            output = output + bias.movedim(of_bias, 0)[:, None, :, None, None]
            output = _library.relu(output) if relu else output
        return output, 0
    if bias is not None:
        bias = _front(bias, of_bias, size)
    if of_input is None:
        bias = None if bias is None else _inside(bias, 0, 0, groups)
        output = _library.conv2d(input, _inside(weight, of_weight, 0, groups), bias, relu, *options)
        return _outside(output, 1, groups, size), 0
    bias = None if bias is None else bias.flatten()
    options = _with_groups(options, size)
    output = _library.conv2d(_beside(input, of_input), _folded(weight, of_weight), bias, relu, *options)
    return output.unflatten(1, (size, _length(weight, of_weight, 0))), 1


def _conv2d_grad_input(
    info: Any, dims: Any, grad: Tensor, weight: Tensor, input_size: Any, last: bool, *options: Any
) -> tuple[Tensor, int]:
    of_grad, of_weight, *_ = dims
    size, groups = info.batch_size, options[3]
    n, c, h, w = input_size
    if not size:
        return _nothing((n, c, h, w), grad, weight)
    if of_weight is None:
        found = _library.conv2d_grad_input(_folded(grad, of_grad), weight, (size * n, c, h, w), last, *options)
        return found.unflatten(0, (size, n)), 0
    if of_grad is None:
        weight = weight.movedim(of_weight, 1).flatten(1, 2)
        found = _library.conv2d_grad_input(grad, weight, (n, size * c, h, w), last, *options)
        return _outside(found, 1, groups, size), 0
    options = _with_groups(options, size)
    found = _library.conv2d_grad_input(
        _beside(grad, of_grad), _folded(weight, of_weight), (n, size * c, h, w), last, *options
    )
    return found.unflatten(1, (size, c)), 1


def _conv2d_grad_weight(
    info: Any, dims: Any, grad: Tensor, input: Tensor, weight_size: Any, *options: Any
) -> tuple[Tensor, int]:
    of_grad, of_input, *_ = dims
    size, groups = info.batch_size, options[3]
    k, c, r, s = weight_size
    if not size:  # a batch drawn at random for per-sample gradients may be empty
        return _nothing((k, c, r, s), grad, input)
    if of_input is None:
        found = _library.conv2d_grad_weight(_inside(grad, of_grad, 1, groups), input, (size * k, c, r, s), *options)
        return _outside(found, 0, groups, size), 0
    if of_grad is None:
        found = _library.conv2d_grad_weight(grad, _inside(input, of_input, 1, groups), (k, size * c, r, s), *options)
        return found.unflatten(1, (size, c)), 1
    found = _library.conv2d_grad_weight(
        _beside(grad, of_grad), _beside(input, of_input), (size * k, c, r, s), *_with_groups(options, size)
    )
    return found.unflatten(0, (size, k)), 0


def _relu(info: Any, dims: Any, input: Tensor) -> tuple[Tensor, int]:
    return _library.relu(input), dims[0]


def _relu_backward(info: Any, dims: Any, grad: Tensor, output: Tensor) -> tuple[Tensor, int]:
    size = info.batch_size
    return _library.relu_backward(_front(grad, dims[0], size), _front(output, dims[1], size)), 0


def _max_pool2d(info: Any, dims: Any, input: Tensor, *options: Any) -> tuple[Tensor, int]:
    output = _library.max_pool2d(_folded(input, dims[0]), *options)
    return output.unflatten(0, (info.batch_size, _length(input, dims[0], 0))), 0


def _max_pool2d_with_choice(
    info: Any, dims: Any, input: Tensor, *options: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    output, choice = _library.max_pool2d_with_choice(_folded(input, dims[0]), *options)
    batch = info.batch_size, _length(input, dims[0], 0)
    return (output.unflatten(0, batch), choice.unflatten(0, batch)), (0, 0)


def _max_pool2d_backward(
    info: Any, dims: Any, grad: Tensor, choice: Tensor, input_size: Any, *options: Any
) -> tuple[Tensor, int]:
    size = info.batch_size
    grad, choice = _front(grad, dims[0], size).flatten(0, 1), _front(choice, dims[1], size).flatten(0, 1)
    n, c, h, w = input_size
    found = _library.max_pool2d_backward(grad, choice, (size * n, c, h, w), *options)
    return found.unflatten(0, (size, n)), 0


def _max_pool2d_gather(info: Any, dims: Any, input: Tensor, choice: Tensor, *options: Any) -> tuple[Tensor, int]:
    size = info.batch_size
    input, choice = _front(input, dims[0], size), _front(choice, dims[1], size)
    found = _library.max_pool2d_gather(input.flatten(0, 1), choice.flatten(0, 1), *options)
    return found.unflatten(0, (size, input.shape[1])), 0


def _fused(
    info: Any, dims: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    of_input, of_weight, of_bias, *_ = dims
    if of_weight is None and of_bias is None:
        found = _library.conv2d_relu_max_pool2d(_folded(input, of_input), weight, bias, *options)
        batch = info.batch_size, _length(input, of_input, 0)
        output, codes = (each.unflatten(0, batch) for each in found)
        return (output, codes), (0, 0)
    conv, pool = _autograd.parts(options)
    dense, dim = _conv2d(info, dims, input, weight, bias, True, *conv)
    (output, codes), _ = _max_pool2d_with_choice(info, (dim,), dense, *pool, False)
    return (output, codes.masked_fill(output <= 0, 255)), (0, 0)


def _fused_backward(
    info: Any, dims: Any, grad: Tensor, input: Tensor, weight: Tensor, codes: Tensor, *options: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    of_grad, of_input, of_weight, of_codes, *_ = dims
    *fused, mask = options
    conv, pool = _autograd.parts(fused)
    if not info.batch_size:
        channels = _single(weight, of_weight)[:1]
        sizes = _single(input, of_input), _single(weight, of_weight), channels
        asked = [size if wanted else (0,) for size, wanted in zip(sizes, mask, strict=True)]
        return tuple(_nothing(size, grad, input, weight)[0] for size in asked), (0, 0, 0)
    one_input = input if of_input is None else input.select(of_input, 0)
    one_weight = weight if of_weight is None else weight.select(of_weight, 0)
    last = _kernels.channels_last(one_input)
    size = _options.conv_output_size(one_input.shape, one_weight.shape, *conv[:3])
    dense, _ = _max_pool2d_backward(info, (of_grad, of_codes), grad, codes, size, *pool)
    none = grad.new_empty(info.batch_size, 0), 0
    of_results: tuple[tuple[Tensor, int], ...] = (
        _conv2d_grad_input(info, (0, of_weight), dense, weight, one_input.shape, last, *conv) if mask[0] else none,
        _conv2d_grad_weight(info, (0, of_input), dense, input, one_weight.shape, *conv) if mask[1] else none,
        (dense.sum((1, 3, 4)), 0) if mask[2] else none,
    )
    return tuple(result for result, _ in of_results), tuple(dim for _, dim in of_results)


_RULES: dict[str, Callable[..., Any]] = {
    "conv2d": _conv2d,
    "conv2d_grad_input": _conv2d_grad_input,
    "conv2d_grad_weight": _conv2d_grad_weight,
    "relu": _relu,
    "relu_backward": _relu_backward,
    "max_pool2d": _max_pool2d,
    "max_pool2d_with_choice": _max_pool2d_with_choice,
    "max_pool2d_backward": _max_pool2d_backward,
    "max_pool2d_gather": _max_pool2d_gather,
    "conv2d_relu_max_pool2d": _fused,
    "conv2d_relu_max_pool2d_backward": _fused_backward,
}
for _name, _rule in _RULES.items():
    torch.library.register_vmap(f"convx::{_name}", _rule, lib=_library.library)
