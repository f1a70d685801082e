"""What the dispatcher does with an operation when autograd or forward-mode AD may want to know of it.

`torch.library.register_autograd` would do the same for backward mode, but refuses forward mode, and functorch's levels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.forward_ad import _set_fwd_grad_enabled, unpack_dual

from . import _autograd, _kernels, _library


def _below(op: Any) -> Callable[..., Any]:
    """Return a function that calls `op` without recording it once more.

    The forward pass of an autograd.Function runs with both modes of differentiation off. Inside functorch's transforms
    that would be for the outer ones too, which come next: there they are turned on again.
    """

    def call(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            if not torch._C._are_functorch_transforms_active():
                return op(*args)
            with torch.enable_grad(), _set_fwd_grad_enabled(True):
                return op(*args)

    return call


def _watched(*tensors: Tensor | None) -> bool:
    """Tell whether a derivative is asked for.

    Forward-mode AD has one level, 0. Its number in Python is not set where a compiled program has entered it.
    """
    recording = torch.is_grad_enabled()
    return any(
        each is not None and ((recording and each.requires_grad) or unpack_dual(each, level=0).tangent is not None)
        for each in tensors
    )


_conv2d = _below(_library.conv2d)
_conv2d_grad_input = _below(_library.conv2d_grad_input)
_conv2d_grad_weight = _below(_library.conv2d_grad_weight)
_relu = _below(_library.relu)
_relu_backward = _below(_library.relu_backward)
_max_pool2d = _below(_library.max_pool2d)
_max_pool2d_with_choice = _below(_library.max_pool2d_with_choice)
_max_pool2d_backward = _below(_library.max_pool2d_backward)
_max_pool2d_gather = _below(_library.max_pool2d_gather)
_fused = _below(_library.conv2d_relu_max_pool2d)
_fused_backward = _below(_library.conv2d_relu_max_pool2d_backward)


def _pool(input: Tensor, kernel_size: Any, *options: Any) -> Any:
    """Ask for what is chosen only where a derivative will need it."""
    if not _watched(input):
        return _max_pool2d(input, kernel_size, *options)
    indices = kernel_size[0] * kernel_size[1] > _kernels.MOST_CODES
    return _autograd.max_pool2d(_max_pool2d_with_choice, True, input, indices, False, kernel_size, *options)


def _pool_with_choice(input: Tensor, *options: Any) -> Any:
    *pool, indices = options
    return _autograd.max_pool2d(_max_pool2d_with_choice, True, input, indices, True, *pool)


def _derived_fused_backward(grad: Tensor, input: Tensor, weight: Tensor, codes: Tensor, *options: Any) -> Any:
    if not _watched(grad, input, weight):
        return _fused_backward(grad, input, weight, codes, *options)
    *fused, mask = options
    sizes, last = (input.shape, weight.shape), _kernels.channels_last(input)
    found = _autograd.fused_gradients(grad, input, weight, codes, sizes, last, fused, mask)
    return tuple(grad.new_empty(0) if each is None else each for each in found)


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


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "conv2d": lambda *args: _autograd.conv2d(_conv2d, True, *args),
    "conv2d_grad_input": lambda *args: _autograd.conv2d_grad_input(_conv2d_grad_input, True, *args),
    "conv2d_grad_weight": lambda *args: _autograd.conv2d_grad_weight(_conv2d_grad_weight, *args),
    "relu": lambda tensor: _autograd.relu(_relu, tensor),
    "relu_backward": lambda grad, output: _autograd.relu_backward(_relu_backward, grad, output),
    "max_pool2d": _pool,
    "max_pool2d_with_choice": _pool_with_choice,
    "max_pool2d_backward": lambda *args: _autograd.max_pool2d_backward(_max_pool2d_backward, *args),
    "max_pool2d_gather": lambda *args: _autograd.max_pool2d_gather(_max_pool2d_gather, *args),
    "conv2d_relu_max_pool2d": lambda *args: _autograd.fused(_fused, True, *args),
    "conv2d_relu_max_pool2d_backward": _derived_fused_backward,
}
for _name, _function in _FUNCTIONS.items():
    _library.library.impl(_name, _one_level(_function), "Autograd")
