"""What the layers refuse when they are made: options that PyTorch's constructors take and no operation does.

The checks are those of `convx.nn` (csrc/bindings/cpu_layers.cpp). What PyTorch's constructors compute with is checked
before they do, since they name no argument ("not all arguments converted during string formatting"); what else they
refuse comes in their words, before the other checks.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from .. import _cpu
from .._cpu import ShapeError
from .functional import max_pool2d


def checked(base: type[nn.Module]) -> Callable[..., None]:
    """Return the constructor of `base` with the checks behind it; `base` is a layer of PyTorch that convx has."""
    original: Callable[..., None] = base.__init__

    @functools.wraps(original)
    def construct(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        check_layer(base, self)

    return construct


def check_layer(base: type[nn.Module], layer: nn.Module, bias: object = True) -> None:
    """Refuse a layer whose options no operation takes; a layer keeps of `bias` alone what it was taken for."""
    _flag(layer, "bias", bias)
    _CHECKS[base](layer)


def listed(option: Any) -> Any:
    """Return an option that PyTorch's constructors iterate over as a tuple, one integer without axes as a number."""
    iterable = isinstance(option, Iterable) and not isinstance(option, str)
    if not iterable:
        return option
    try:
        return operator.index(option)
    except TypeError:
        pass
    try:
        return tuple(option)
    except TypeError:  # an array or tensor without axes that is no integer
        return option


def check_weight(layer: str, in_channels: Any, out_channels: Any, kernel_size: Any, groups: Any) -> None:
    """Refuse sizes that no weight has."""
    sizes = in_channels, out_channels, kernel_size
    _cpu.resolve_conv2d_layer(layer, *sizes, True, *_ANY, 1, 0, 1, groups, "zeros", 0.0, "NCHW", "auto")


def _conv2d(layer: Any) -> None:
    channels = layer.in_channels, layer.out_channels
    options = layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode
    _expect_weight(
        layer,
        _cpu.resolve_conv2d_layer("Conv2d", *channels, layer.kernel_size, True, *_ANY, *options, 0.0, "NCHW", "auto"),
    )


def _conv_transpose2d(layer: Any) -> None:
    channels = layer.in_channels, layer.out_channels
    options = layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
    _expect_weight(
        layer,
        _cpu.resolve_conv_transpose2d_layer(
            "ConvTranspose2d", *channels, layer.kernel_size, True, *_ANY, *options, "NCHW", "auto"
        ),
    )


_ANY = ("float32",)  # dtypes that convx has no kernels for run in PyTorch's


def _expect_weight(layer: Any, shape: tuple[int, ...]) -> None:
    if tuple(layer.weight.shape) != shape:  # PyTorch takes one number in a tuple for one axis here
        raise ShapeError(f"{type(layer).__name__}: kernel_size is {layer.kernel_size}, expected a pair (height, width)")


def _max_pool2d(layer: Any) -> None:
    _flag(layer, "return_indices", layer.return_indices)
    options = layer.kernel_size, layer.stride, layer.padding
    _cpu.resolve_max_pool2d_layer("MaxPool2d", *options, layer.dilation, layer.ceil_mode, "NCHW")
    # What PyTorch refuses beyond that, the function refuses.
    images = torch.empty(1, 1, 1 << 29, 1 << 29, device="meta")
    max_pool2d(images, *options, dilation=layer.dilation, ceil_mode=layer.ceil_mode)


def _activation(layer: Any) -> None:
    _flag(layer, "inplace", layer.inplace)


def _flag(layer: nn.Module, name: str, value: object) -> None:
    """Refuse what is true or false by accident; old code says 0, 1 and None."""
    if not isinstance(value, int) and value is not None:
        _cpu.truth(type(layer).__name__, name, value)


_CHECKS: dict[type[nn.Module], Callable[[Any], None]] = {
    nn.Conv2d: _conv2d,
    nn.ConvTranspose2d: _conv_transpose2d,
    nn.MaxPool2d: _max_pool2d,
    nn.ReLU: _activation,
    nn.ReLU6: _activation,
}
