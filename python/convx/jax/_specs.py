"""Resolved problems: what the checks make of shapes and options, hashable, so that jit traces once for each.

`convx._cpu` fills them in (csrc/bindings/cpu_resolve.cpp); everything behind takes them at their word.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from .._types import Activation, Layout, Mode

Size: TypeAlias = tuple[int, int]
Sides: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
"""((top, bottom), (left, right))."""


class ConvSpec(NamedTuple):
    """A convolution without its batch and channels, which the arrays have."""

    input_size: Size
    kernel_size: Size
    output_size: Size
    stride: Size
    padding: Sides
    dilation: Size
    groups: int
    padding_mode: tuple[Mode, Mode]
    padding_value: float
    activation: Activation
    layout: Layout
    algorithm: str

    def linear(self) -> ConvSpec:
        """Return the part that is linear in the input: a border of zeros instead of a constant, no activation."""
        h, w = self.padding_mode
        modes: tuple[Mode, Mode] = ("zeros" if h == "constant" else h, "zeros" if w == "constant" else w)
        return self._replace(padding_mode=modes, padding_value=0.0, activation=None)


class PoolSpec(NamedTuple):
    """A pooling without its batch and channels."""

    input_size: Size
    kernel_size: Size
    output_size: Size
    stride: Size
    padding: Sides
    dilation: Size
    ceil_mode: bool
    layout: Layout

    def has_codes(self) -> bool:
        """Tell whether one byte can name every tap of the window."""
        return self.kernel_size[0] * self.kernel_size[1] <= 255


def channel_axis(layout: Layout) -> int:
    """Return the axis of the channels in a batch of images."""
    return 1 if layout == "NCHW" else 3


def image_shape(layout: Layout, batch: int, channels: int, size: Size) -> tuple[int, int, int, int]:
    """Return the shape of a batch of images."""
    return (batch, channels, *size) if layout == "NCHW" else (batch, *size, channels)
