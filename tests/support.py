"""Shared by the test files: problems and their data, expected results, error bounds, views, comparisons.

There are three kinds of data:

- `integer`: small non-zero whole numbers. Every partial sum is exact in float32, so the result must equal the reference
  in every bit for any order of the additions, and a missing or repeated tap shows.
- `special`: the same with a few infinities or NaNs, which must reach the same results as in the reference.
- `normal`: normally distributed values, exact in float32 (both dtypes have the same numbers), compared within
  `rounding_bound`.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

import convx
from convx import _cpu, reference

ISAS: list[str] = list(_cpu.config()["isas"])
DTYPES = ("float32", "float64")
LAYOUTS = ("NCHW", "NHWC")
PADDING_MODES = ("zeros", "constant", "reflect", "replicate", "circular")
GRADIENTS = ("grad_input", "grad_weight", "grad_bias")

# Register and cache tiles of the kernels: the tests run sizes on both sides of each.
TILES = (1, 4, 6, 8, 12, 14, 16, 24, 32, 48)


def straddle(*tiles: int) -> list[int]:
    """The sizes of all tiles, and those sizes plus and minus one, from 1."""
    return sorted({size for tile in tiles for size in (tile - 1, tile, tile + 1) if size > 0})


@dataclasses.dataclass(frozen=True)
class Conv:
    """A conv2d problem: N C H W, K R S and the options."""

    n: int = 2
    c: int = 3
    h: int = 6
    w: int = 7
    k: int = 4
    r: int = 3
    s: int = 3
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    padding_mode: Any = "zeros"
    padding_value: float = 0.0

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.c, self.h, self.w

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.k, self.c // self.groups, self.r, self.s

    @property
    def options(self) -> dict[str, Any]:
        names = ("stride", "padding", "dilation", "groups", "padding_mode", "padding_value")
        return {name: getattr(self, name) for name in names}

    def replace(self, **changes: Any) -> Conv:
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class Transpose:
    """A conv_transpose2d problem; C, H and W are those of its input."""

    n: int = 2
    c: int = 3
    h: int = 6
    w: int = 7
    k: int = 4
    r: int = 3
    s: int = 3
    stride: Any = 1
    padding: Any = 0
    output_padding: Any = 0
    groups: int = 1
    dilation: Any = 1

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.c, self.h, self.w

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.c, self.k // self.groups, self.r, self.s

    @property
    def options(self) -> dict[str, Any]:
        names = ("stride", "padding", "output_padding", "groups", "dilation")
        return {name: getattr(self, name) for name in names}

    def replace(self, **changes: Any) -> Transpose:
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class Pool:
    """A max_pool2d problem."""

    n: int = 2
    c: int = 3
    h: int = 7
    w: int = 9
    kernel_size: Any = 2
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.c, self.h, self.w

    @property
    def options(self) -> dict[str, Any]:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        return {name: getattr(self, name) for name in names}

    def replace(self, **changes: Any) -> Pool:
        return dataclasses.replace(self, **changes)


CONV_PROBLEMS = {
    "1x1": Conv(c=19, h=5, w=7, k=23, r=1, s=1),
    "1x1-stride": Conv(c=9, h=9, w=8, k=17, r=1, s=1, stride=(3, 2)),
    "1x1-padded": Conv(c=5, h=4, w=5, k=9, r=1, s=1, padding=(2, 1)),
    "3x3": Conv(c=17, h=9, w=11, k=33),
    "3x3-pad1": Conv(c=8, h=14, w=14, k=32, padding=1),
    "3x3-stride2": Conv(c=6, h=13, w=15, k=14, stride=2, padding=1),
    "3x3-stride-2-1": Conv(c=4, h=12, w=9, k=6, stride=(2, 1), padding=1),
    "stride-over-kernel": Conv(c=5, h=13, w=17, k=7, r=2, s=2, stride=3),
    "stride-over-kernel-wide": Conv(c=3, h=19, w=23, k=5, r=2, s=3, stride=(5, 7), padding=1),
    "stride-over-input": Conv(c=3, h=4, w=5, k=5, stride=9, padding=1),
    "dilation2": Conv(c=5, h=13, w=12, k=9, dilation=2, padding=2),
    "dilation-2-3": Conv(c=3, h=15, w=17, k=4, dilation=(2, 3), padding=(1, 4)),
    "dilation-over-image": Conv(c=4, h=7, w=6, k=5, dilation=8, padding=8),
    "stride-dilation-coprime": Conv(c=3, h=17, w=19, k=5, stride=(2, 3), dilation=(3, 2), padding=2),
    "stride-dilation-even": Conv(c=3, h=17, w=19, k=5, stride=2, dilation=2, padding=3),
    "stride4-dilation6": Conv(c=3, h=29, w=31, k=4, stride=(4, 6), dilation=(6, 4), padding=5),
    "stride6-dilation3": Conv(c=2, h=25, w=27, k=3, stride=6, dilation=3, padding=(4, 5)),
    "per-side": Conv(c=3, h=8, w=9, k=5, padding=((2, 0), (1, 3))),
    "per-side-stride": Conv(c=3, h=8, w=9, k=5, stride=2, padding=((0, 3), (4, 1))),
    "valid": Conv(c=3, h=8, w=9, k=5, padding="valid"),
    "same": Conv(c=3, h=8, w=9, k=5, padding="same"),
    "same-even-kernel": Conv(c=3, h=8, w=9, k=5, r=4, s=2, padding="same"),
    "same-lower-even-kernel": Conv(c=3, h=8, w=9, k=5, r=4, s=2, padding="same_lower"),
    "same-stride": Conv(c=3, h=8, w=9, k=5, stride=(2, 3), padding="same"),
    "same-lower-stride": Conv(c=3, h=8, w=10, k=5, stride=(2, 3), padding="same_lower"),
    "same-stride-over-kernel": Conv(c=3, h=10, w=11, k=4, r=2, s=1, stride=4, padding="same"),
    "same-dilation": Conv(c=3, h=8, w=9, k=5, r=2, s=3, dilation=3, padding="same"),
    "kernel-is-image": Conv(c=7, h=5, w=6, k=9, r=5, s=6),
    "kernel-over-image": Conv(c=3, h=3, w=2, k=5, r=5, s=7, padding=(2, 4)),
    "padding-over-kernel": Conv(c=3, h=4, w=4, k=5, padding=5),
    "1x7": Conv(c=11, h=9, w=17, k=13, r=1, s=7, padding=(0, 3)),
    "7x1": Conv(c=11, h=17, w=9, k=13, r=7, s=1, padding=(3, 0)),
    "1x9-stride": Conv(c=3, h=5, w=41, k=6, r=1, s=9, stride=(1, 4), padding=(0, 4)),
    "first-layer-7x7": Conv(c=3, h=23, w=29, k=16, r=7, s=7, stride=2, padding=3),
    "first-layer-11x11": Conv(c=3, h=35, w=39, k=12, r=11, s=11, stride=4, padding=2),
    "small-planes": Conv(c=6, h=14, w=14, k=16, r=5, s=5),
    "small-planes-many": Conv(n=11, c=16, h=4, w=4, k=32, padding=1),
    "small-planes-odd": Conv(c=19, h=9, w=7, k=21, r=4, s=3, stride=(1, 2), padding=2),
    "short-lines": Conv(c=4, h=31, w=11, k=37, r=5, s=3, stride=2, padding=(3, 1)),
    "photo": Conv(n=1, c=1, h=37, w=53, k=1, padding=1),
    "photo-5x5": Conv(n=1, c=1, h=21, w=67, k=1, r=5, s=5),
    "21x21": Conv(n=1, c=2, h=24, w=26, k=3, r=21, s=21, padding=10),
    "one-row": Conv(c=6, h=1, w=97, k=9, r=1, s=5, stride=(1, 2), padding=(0, 2)),
    "one-column": Conv(c=6, h=97, w=1, k=9, r=5, s=1, stride=(2, 1), padding=(2, 0)),
    "one-pixel": Conv(n=7, c=40, h=1, w=1, k=50, r=1, s=1),
    "one-pixel-3x3": Conv(n=3, c=9, h=1, w=1, k=10, padding=1),
    "row-600": Conv(n=1, c=3, h=3, w=600, k=5, padding=1),
    "groups2": Conv(c=10, h=7, w=9, k=14, groups=2, padding=1),
    "groups3-odd": Conv(c=27, h=7, w=6, k=33, groups=3, padding=1),
    "groups-narrow": Conv(c=32, h=8, w=9, k=32, groups=8, padding=1),
    "groups-1x1": Conv(c=12, h=5, w=6, k=20, r=1, s=1, groups=4),
    "groups-stride": Conv(c=8, h=11, w=12, k=12, groups=4, stride=2, dilation=2, padding=2),
    "groups-of-8-stride2": Conv(c=24, h=13, w=18, k=24, groups=3, stride=2, padding=1),
    "groups-of-16": Conv(n=5, c=48, h=7, w=8, k=48, groups=3, padding=1),
    "groups-of-24-40-stride2": Conv(c=48, h=9, w=12, k=80, groups=2, stride=2, padding=1),
    "groups-of-20-stride-dilation": Conv(c=40, h=13, w=11, k=40, groups=2, stride=(3, 2), dilation=2, padding=(2, 3)),
    "groups-in-bands": Conv(c=34, h=44, w=61, k=36, groups=2, stride=(1, 2), padding=1),
    "groups-circular": Conv(c=34, h=6, w=9, k=36, groups=2, padding=2, padding_mode="circular"),
    "depthwise": Conv(c=19, h=15, w=17, k=19, groups=19, padding=1),
    "depthwise-stride2": Conv(c=16, h=15, w=18, k=16, groups=16, stride=2, padding=1),
    "depthwise-7x7-plane": Conv(n=3, c=21, h=7, w=7, k=21, groups=21, padding=1),
    "depthwise-14x14-plane": Conv(c=21, h=14, w=14, k=21, groups=21, stride=2, padding=1),
    "depthwise-5x5-stride2": Conv(c=9, h=14, w=19, k=9, r=5, s=5, groups=9, stride=2, padding=2),
    "depthwise-dilation": Conv(c=7, h=14, w=19, k=7, groups=7, dilation=(2, 3), padding=(2, 3)),
    "depthwise-7x7": Conv(c=8, h=14, w=14, k=8, r=7, s=7, groups=8, padding=3),
    "depthwise-31x31": Conv(n=1, c=3, h=33, w=34, k=3, r=31, s=31, groups=3, padding=15),
    "depthwise-multiplier": Conv(c=6, h=8, w=9, k=18, groups=6, padding=1),
    "depthwise-valid-stride3": Conv(c=5, h=16, w=17, k=5, groups=5, stride=3),
    "depthwise-reflect": Conv(c=17, h=9, w=10, k=17, groups=17, padding=2, padding_mode="reflect"),
    "depthwise-1x1": Conv(c=18, h=5, w=7, k=18, r=1, s=1, groups=18),
    "reflect": Conv(c=3, h=6, w=7, k=5, padding=2, padding_mode="reflect"),
    "reflect-widest": Conv(c=3, h=4, w=5, k=5, r=7, s=3, padding=(3, 4), padding_mode="reflect"),
    "replicate-over-image": Conv(c=3, h=3, w=4, k=5, padding=(6, 5), padding_mode="replicate"),
    "circular-widest": Conv(c=3, h=4, w=5, k=5, padding=(4, 5), padding_mode="circular"),
    "circular-stride-dilation": Conv(
        c=3, h=8, w=9, k=5, stride=(2, 3), dilation=2, padding=((3, 1), (0, 4)), padding_mode="circular"
    ),
    "constant": Conv(c=3, h=6, w=7, k=5, padding=2, padding_mode="constant", padding_value=-3.0),
    "constant-same-stride": Conv(
        c=3, h=8, w=9, k=5, stride=2, padding="same", padding_mode="constant", padding_value=2.0
    ),
    "constant-outside": Conv(c=3, h=3, w=3, k=5, stride=2, padding=6, padding_mode="constant", padding_value=2.0),
    "reduction-3x3-28": Conv(n=1, c=28, h=5, w=6, k=9, padding=1),
    "reduction-3x3-29": Conv(n=1, c=29, h=5, w=6, k=9, padding=1),
    "reduction-3x3-57": Conv(n=1, c=57, h=5, w=6, k=9, padding=1),
    "reduction-1x1-255": Conv(n=1, c=255, h=3, w=5, k=9, r=1, s=1),
    "reduction-1x1-256": Conv(n=1, c=256, h=3, w=5, k=9, r=1, s=1),
    "reduction-1x1-257": Conv(n=1, c=257, h=3, w=5, k=9, r=1, s=1),
    "reduction-1x1-513": Conv(n=1, c=513, h=3, w=5, k=9, r=1, s=1),
    "reduction-of-outputs": Conv(n=1, c=9, h=3, w=5, k=257, padding=1),
    "reduction-of-pixels": Conv(n=3, c=5, h=33, w=31, k=6, padding=1),
}


def transposed(problem: Conv) -> Transpose:
    """The transposed convolution whose output has the shape of the input of `problem`."""
    x, w = np.zeros(problem.input_shape), np.zeros(problem.weight_shape)
    n, c, h, w_out = reference.conv2d(x, w, **problem.options).shape
    result = Transpose(
        n=n, c=c, h=h, w=w_out, k=problem.c, r=problem.r, s=problem.s, stride=problem.stride,
        padding=problem.padding, groups=problem.groups, dilation=problem.dilation,
    )  # fmt: skip
    if problem.padding in ("same", "same_lower"):
        return result
    whole = reference.conv_transpose2d(np.zeros((n, c, h, w_out)), w, **result.options).shape
    return result.replace(output_padding=(problem.h - whole[2], problem.w - whole[3]))


TRANSPOSE_PROBLEMS = {
    **{name: transposed(problem) for name, problem in CONV_PROBLEMS.items() if problem.padding_mode == "zeros"},
    "upsampling-2x": Transpose(c=9, h=7, w=8, k=5, r=4, s=4, stride=2, padding=1),
    "upsampling-2x-3x3": Transpose(c=20, h=7, w=8, k=18, stride=2, padding=1, output_padding=1),
    "upsampling-3x2-depthwise": Transpose(c=6, h=5, w=6, k=6, r=4, s=3, stride=(3, 2), padding=1, groups=6),
    "groups-multiplier": Transpose(c=4, h=5, w=6, k=12, stride=2, padding=1, output_padding=(0, 1), groups=4),
    "output-padding-behind-the-padding": Transpose(r=2, s=3, stride=3, padding=(0, 1), output_padding=2),
    "output-padding-over-the-stride": Transpose(c=4, k=6, stride=(1, 2), dilation=(4, 5), output_padding=(3, 4)),
    "output-padding-over-the-stride-per-side": Transpose(
        padding=((3, 1), (0, 2)), stride=(2, 1), dilation=(5, 4), output_padding=(4, 3), groups=1
    ),
    "stride-over-kernel-padded": Transpose(c=3, k=5, r=2, s=1, stride=(3, 4), padding=(1, 0), output_padding=(2, 3)),
    "padding-over-kernel": Transpose(c=3, h=9, w=8, k=4, r=2, s=2, stride=2, padding=5),
    "same-stride-over-kernel": Transpose(c=3, k=4, r=2, s=1, stride=4, padding="same"),
    "no-window-reaches": Transpose(c=3, h=1, w=1, k=4, r=1, s=1, dilation=4, padding=1, output_padding=3),
    "no-window-reaches-a-column": Transpose(
        c=3, h=4, w=1, k=4, r=3, s=1, dilation=4, padding=(0, 1), output_padding=(1, 3)
    ),
}


def depthwise_windows(kernel: int, stride: int) -> Iterator[Conv]:
    """Every padding up to one beyond the window, planes narrower and wider than vectors, more columns than rows."""
    for padding, width in itertools.product(range(kernel + 1), (1, 2, 5, 8, 17, 34)):
        height = max(kernel, width // 2)
        if width + 2 * padding >= kernel:
            yield Conv(
                n=1, c=2, h=height, w=width, k=2, r=kernel, s=kernel, stride=stride, padding=padding, groups=2
            )  # fmt: skip


POOL_PROBLEMS = {
    "2x2": Pool(h=8, w=10),
    "2x2-odd": Pool(h=9, w=11),
    "2x2-wide": Pool(n=1, c=2, h=6, w=131),
    "2x2-ceil": Pool(h=9, w=11, ceil_mode=True),
    "3x3-stride2-pad1": Pool(h=14, w=17, kernel_size=3, stride=2, padding=1),
    "3x3-stride2": Pool(h=13, w=15, kernel_size=3, stride=2),
    "3x3-stride2-ceil": Pool(h=12, w=14, kernel_size=3, stride=2, ceil_mode=True),
    "3x3-stride1": Pool(h=7, w=9, kernel_size=3, stride=1, padding=1),
    "3x3": Pool(h=10, w=13, kernel_size=3),
    "2x3-stride-1-2": Pool(h=8, w=9, kernel_size=(2, 3), stride=(1, 2), padding=(0, 1)),
    "1x1": Pool(kernel_size=1),
    "1x1-stride2": Pool(kernel_size=1, stride=2),
    "1x1-stride2-ceil": Pool(h=6, w=8, kernel_size=1, stride=2, ceil_mode=True),
    "stride-over-kernel": Pool(h=11, w=13, kernel_size=2, stride=(3, 5)),
    "ceil-pad1": Pool(h=5, w=5, kernel_size=2, stride=2, padding=1, ceil_mode=True),
    "ceil-reduced": Pool(h=6, w=6, kernel_size=2, stride=3, padding=1, ceil_mode=True),
    "dilation2": Pool(h=11, w=12, kernel_size=3, stride=1, dilation=2),
    "dilation-padded": Pool(h=11, w=12, kernel_size=3, stride=2, padding=(2, 1), dilation=(2, 3)),
    "dilation3-widest-padding": Pool(h=9, w=10, kernel_size=3, stride=1, padding=3, dilation=3),
    "dilation-two-taps": Pool(h=9, w=8, kernel_size=2, stride=1, padding=2, dilation=3),
    "windows-without-taps": Pool(h=1, w=9, kernel_size=2, stride=1, padding=2, dilation=3),
    "per-side": Pool(h=8, w=9, kernel_size=4, stride=2, padding=((2, 0), (1, 2))),
    "per-side-ceil": Pool(h=8, w=9, kernel_size=4, stride=3, padding=((0, 2), (2, 1)), ceil_mode=True),
    "valid": Pool(kernel_size=3, padding="valid"),
    "same": Pool(h=8, w=9, kernel_size=3, stride=2, padding="same"),
    "same-even": Pool(h=8, w=9, kernel_size=2, stride=1, padding="same"),
    "same-lower-even": Pool(h=8, w=9, kernel_size=2, stride=1, padding="same_lower"),
    "same-lower": Pool(h=8, w=10, kernel_size=(2, 4), stride=(2, 3), padding="same_lower"),
    "widest-padding": Pool(h=6, w=8, kernel_size=3, stride=2, padding=2),
    "widest-padding-2x2": Pool(h=7, w=9, padding=1, stride=1),
    "widest-padding-stride1": Pool(h=7, w=19, kernel_size=(4, 5), stride=1, padding=((3, 0), (4, 3))),
    "widest-padding-ceil": Pool(h=7, w=8, kernel_size=4, stride=3, padding=3, ceil_mode=True),
    "widest-padding-dilated": Pool(h=9, w=11, kernel_size=3, stride=2, padding=(4, 6), dilation=(2, 3)),
    "widest-padding-one-cell": Pool(h=1, w=1, kernel_size=3, stride=1, padding=2),
    "same-stride-over-kernel": Pool(h=11, w=13, kernel_size=2, stride=(3, 5), padding="same"),
    # The first window of a row has no tap inside, a later one lacks its first.
    "gaps": Pool(h=7, w=2, kernel_size=3, stride=1, padding=(1, 4), dilation=(1, 3)),
    "gaps-both": Pool(h=2, w=3, kernel_size=3, stride=1, padding=8, dilation=4),
    "gaps-rows": Pool(h=3, w=17, kernel_size=(3, 2), stride=1, padding=((9, 8), (0, 1)), dilation=(5, 1)),
    # The windows over the only row start two strides before it.
    "gap-of-strides": Pool(h=1, w=9, kernel_size=2, stride=(5, 1), padding=((1, 11), (0, 0)), dilation=(11, 1)),
    "gaps-ceil": Pool(h=3, w=2, kernel_size=3, stride=3, padding=8, dilation=4, ceil_mode=True),
    # Ceil mode adds a row of windows; the taps of the row before it lie on either side of the image.
    "gaps-stride-over-kernel": Pool(
        h=4, w=9, kernel_size=2, stride=(3, 4), padding=((4, 3), (5, 5)), dilation=(5, 6), ceil_mode=True
    ),
    "global": Pool(h=7, w=8, kernel_size=(7, 8)),
    "row": Pool(h=1, w=33, kernel_size=(1, 3), stride=(1, 2)),
    "column": Pool(h=33, w=1, kernel_size=(3, 1), stride=(2, 1)),
    "15x17": Pool(n=1, h=18, w=20, kernel_size=(15, 17), stride=1),
    "5x5-stride1-pad2": Pool(h=8, w=8, kernel_size=5, stride=1, padding=2),
    "channels-33": Pool(n=1, c=33, h=6, w=7, kernel_size=3, stride=2, padding=1),
    "channels-16": Pool(n=1, c=16, h=5, w=5),
    "planes-38": Pool(c=19, h=7, w=9, kernel_size=3, stride=1, padding=1),
    "planes-38-stride2": Pool(c=19, h=13, w=14, kernel_size=3, stride=2),
    "planes-38-2x2": Pool(c=19, h=7, w=10),
    "planes-38-widest-padding": Pool(c=19, h=7, w=9, kernel_size=3, stride=2, padding=2),
    "planes-38-gaps": Pool(c=19, h=3, w=4, kernel_size=(2, 3), stride=1, padding=((5, 3), (8, 7)), dilation=(5, 5)),
    "channels-33-widest-padding": Pool(n=1, c=33, h=6, w=7, kernel_size=3, stride=1, padding=2),
    "channels-33-gaps": Pool(n=1, c=33, h=2, w=3, kernel_size=(3, 2), stride=1, padding=(7, 4), dilation=(4, 5)),
    "planes-38-3x2": Pool(c=19, h=9, w=8, kernel_size=(3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1)),
}


def numbers(shape: tuple[int, ...], kind: str, seed: int) -> np.ndarray:
    """Float64 values of the given kind (see the module docstring) that float32 represents exactly."""
    rng = np.random.default_rng(seed)
    if kind in ("integer", "special"):
        values = rng.integers(1, 5, shape) * rng.choice((-1.0, 1.0), shape)
        if kind == "special":
            values[rng.random(shape) < 0.02] = rng.choice((np.inf, -np.inf, np.nan))
        return values
    assert kind == "normal", kind
    return rng.standard_normal(shape).astype(np.float32).astype(np.float64)


def freeze(*arrays: np.ndarray) -> None:
    for array in arrays:
        array.flags.writeable = False


def rounding_bound(terms: Any, magnitude: Any, dtype: str) -> np.ndarray:
    """Bound on the error of a sum of `terms` products with absolute values that sum to `magnitude`, in any order.

    n roundings of unit u stay within n u / (1 - n u) of the magnitude (Higham, Accuracy and Stability of Numerical
    Algorithms, 3.1); roundings that are independent with mean zero stay within 8 sqrt(n) u, with probability
    1 - 2 exp(-32) (Higham and Mary 2019, theorem 2.4), which is the smaller one from n = 64. The reference's own error,
    in float64, is added.
    """
    n = np.asarray(terms, np.float64) + 1
    bound = np.zeros(np.broadcast(n, magnitude).shape)
    for unit in (2.0**-24 if dtype == "float32" else 2.0**-53, 2.0**-53):
        bound = bound + np.minimum(n / (1 - n * unit), 8 * np.sqrt(n)) * unit * magnitude
    return bound


def conv_data(problem: Conv, kind: str = "normal", seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Input, weight and bias of `problem` in NCHW and float64, read-only."""
    arrays = (
        numbers(problem.input_shape, kind, 3 * seed),
        numbers(problem.weight_shape, kind, 3 * seed + 1),
        numbers((problem.k,), kind, 3 * seed + 2),
    )
    freeze(*arrays)
    return arrays


@functools.lru_cache(maxsize=512)
def conv_expected(problem: Conv, kind: str = "normal", seed: int = 0) -> SimpleNamespace:
    """Data and reference results of `problem`: output (with bias) and gradients, each with its terms and magnitude."""
    x, w, b = conv_data(problem, kind, seed)
    g = numbers(reference.conv2d(x, w, b, **problem.options).shape, kind, seed + 1000)
    expected = conv_results(problem, x, w, b, g)
    if kind == "integer":
        assert max(m.max(initial=0) for m in expected.magnitude.values()) < 2**24, (
            f"{problem}: partial sums beyond float32's integers"
        )
    return expected


def conv_results(problem: Conv, x: np.ndarray, w: np.ndarray, b: np.ndarray, g: np.ndarray) -> SimpleNamespace:
    """The same for the caller's data."""
    output = reference.conv2d(x, w, b, **problem.options)
    gradients = reference.conv2d_backward(g, x, w, **problem.options)
    ones, sizes = problem.options, problem.options
    ones["padding_value"], sizes["padding_value"] = 1.0, abs(problem.padding_value)
    results = dict(zip(GRADIENTS, gradients, strict=True), output=output)
    count_x, count_w, count_b, count_g = (np.ones_like(a) for a in (x, w, b, g))
    abs_x, abs_w, abs_b, abs_g = (np.abs(a) for a in (x, w, b, g))
    terms = dict(zip(GRADIENTS, reference.conv2d_backward(count_g, count_x, count_w, **ones), strict=True))
    terms["output"] = reference.conv2d(count_x, count_w, count_b, **ones)
    magnitude = dict(zip(GRADIENTS, reference.conv2d_backward(abs_g, abs_x, abs_w, **sizes), strict=True))
    magnitude["output"] = reference.conv2d(abs_x, abs_w, abs_b, **sizes)
    freeze(g, *results.values())
    return SimpleNamespace(x=x, w=w, b=b, g=g, terms=terms, magnitude=magnitude, **results)


def conv_bound(expected: SimpleNamespace, name: str, dtype: str) -> np.ndarray:
    return rounding_bound(expected.terms[name], expected.magnitude[name], dtype)


@functools.lru_cache(maxsize=512)
def transpose_expected(problem: Transpose, kind: str = "normal", seed: int = 0) -> SimpleNamespace:
    """As conv_expected, for conv_transpose2d."""
    x = numbers(problem.input_shape, kind, 3 * seed)
    w = numbers(problem.weight_shape, kind, 3 * seed + 1)
    b = numbers((problem.k,), kind, 3 * seed + 2)
    g = numbers(reference.conv_transpose2d(x, w, b, **problem.options).shape, kind, seed + 1000)

    def results(x: np.ndarray, w: np.ndarray, b: np.ndarray, g: np.ndarray) -> dict[str, Any]:
        gradients = reference.conv_transpose2d_backward(g, x, w, **problem.options)
        output = reference.conv_transpose2d(x, w, b, **problem.options)
        return dict(zip(GRADIENTS, gradients, strict=True), output=output)

    data = (x, w, b, g)
    values, terms = results(*data), results(*map(np.ones_like, data))
    magnitude = results(*map(np.abs, data))
    freeze(*data, *values.values())
    assert kind != "integer" or max(m.max(initial=0) for m in magnitude.values()) < 2**24, problem
    return SimpleNamespace(x=x, w=w, b=b, g=g, terms=terms, magnitude=magnitude, **values)


def exact_algorithm(problem: Conv | Transpose) -> str:
    """The algorithm for whole numbers: "direct" where "auto" takes Winograd's method, whose transforms round."""
    shapes = problem.input_shape, problem.weight_shape
    op = "conv2d" if isinstance(problem, Conv) else "conv_transpose2d"
    passes = (op, f"{op}_backward")
    plans = [plan for each in passes for plan in convx.explain(each, *shapes, **problem.options)]
    return "direct" if any(plan.algorithm.startswith("winograd") for plan in plans) else "auto"


# Largest row sum of |A'| |G| |B'| of F(4, 3) at the points 0, +-11/16, +-3/2 (csrc/cpu/kernels/winograd.inl.h): the
# amplification of a rounding error along one axis. Along both axes the worst case is its square; the root
# sum of squares stays below the worst case of one axis.
WINOGRAD_GROWTH = 24.0


def winograd_bound(expected: SimpleNamespace, name: str, dtype: str) -> np.ndarray:
    """As conv_bound, but one bound for all elements, since the error of a tile follows its largest value."""
    bound = rounding_bound(expected.terms[name].max(), expected.magnitude[name].max(), dtype)
    return WINOGRAD_GROWTH * bound


def to_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """A contiguous copy in `layout` of an (N, C, H, W) or (C, H, W) array."""
    return np.ascontiguousarray(np.moveaxis(array, -3, -1) if layout == "NHWC" else array)


def from_layout(array: np.ndarray, layout: str) -> np.ndarray:
    return np.moveaxis(array, -1, -3) if layout == "NHWC" else array


def coordinates(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])


def assert_within(actual: np.ndarray, expected: np.ndarray, bound: Any, context: object) -> None:
    """|actual - expected| <= bound; where the reference is not finite, the same infinity, or NaN for NaN."""
    __tracebackhide__ = True
    assert actual.shape == expected.shape, f"{context}: shape {actual.shape}, expected {expected.shape}"
    finite = np.isfinite(expected)
    with np.errstate(invalid="ignore"):
        far = ~(np.abs(actual - expected) <= bound)
    wrong = np.where(finite, far, ~((actual == expected) | (np.isnan(actual) & np.isnan(expected))))
    if wrong.any():
        at = coordinates(wrong)
        allowed = np.broadcast_to(bound, expected.shape)[at]
        raise AssertionError(
            f"{context}: {int(wrong.sum())} of {wrong.size} elements differ; first at {at}: got {actual[at]!r}, "
            f"expected {expected[at]!r}, difference {actual[at] - expected[at]:.3g}, allowed {allowed:.3g}"
        )


def assert_equal(actual: np.ndarray, expected: np.ndarray, context: object) -> None:
    """Equal values, as exact arithmetic must give; NaN equals NaN, and zeros of either sign are equal."""
    __tracebackhide__ = True
    assert actual.shape == expected.shape, f"{context}: shape {actual.shape}, expected {expected.shape}"
    wrong = ~((actual == expected) | ((actual != actual) & (expected != expected)))
    if wrong.any():
        at = coordinates(wrong)
        raise AssertionError(
            f"{context}: {int(wrong.sum())} of {wrong.size} elements differ; first at {at}: "
            f"got {actual[at]!r}, expected {expected[at]!r}"
        )


def assert_same_bits(actual: Any, expected: Any, context: object) -> None:
    """The same dtype, shape and bits; tuples element by element, None equal to None."""
    __tracebackhide__ = True
    if isinstance(expected, tuple):
        assert isinstance(actual, tuple) and len(actual) == len(expected), (
            f"{context}: {len(expected)} results expected"
        )
        for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_same_bits(one, other, f"{context}, result {index}")
        return
    if expected is None:
        assert actual is None, f"{context}: expected None"
        return
    assert actual.dtype == expected.dtype, f"{context}: dtype {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{context}: shape {actual.shape}, expected {expected.shape}"
    whole = np.dtype(f"u{expected.itemsize}")
    wrong = np.ascontiguousarray(actual).view(whole) != np.ascontiguousarray(expected).view(whole)
    if wrong.any():
        at = coordinates(wrong)
        raise AssertionError(
            f"{context}: bits of {int(wrong.sum())} of {wrong.size} elements differ; first at {at}: "
            f"got {float(actual[at]).hex()}, expected {float(expected[at]).hex()}"
        )


def views(array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The same values with other strides; elements between are NaN (or no valid tap), so that a stray read shows."""
    outside = np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).max - 1
    yield "fortran", np.asfortranarray(array)
    if array.ndim >= 3:
        yield "channels last", np.moveaxis(np.moveaxis(array, -3, -1).copy(), -1, -3)
        yield "rows and columns swapped", np.swapaxes(np.swapaxes(array, -1, -2).copy(), -1, -2)
    for axis in range(array.ndim):
        yield f"axis {axis} reversed", np.flip(np.flip(array, axis).copy(), axis)
        gapped = np.full([size * (3 if i == axis else 1) for i, size in enumerate(array.shape)], outside, array.dtype)
        every_third = gapped[tuple(slice(1, None, 3) if i == axis else slice(None) for i in range(array.ndim))]
        every_third[...] = array
        yield f"axis {axis} every third", every_third
    yield "all axes reversed", np.flip(np.flip(array).copy())
    larger = np.full([size + 3 for size in array.shape], outside, array.dtype)
    inner = larger[tuple(slice(1, -2) for _ in array.shape)]
    inner[...] = array
    yield "inside a larger array", inner
    frozen = array.copy()
    freeze(frozen)
    yield "read-only", frozen
    packed = np.zeros(array.shape, [("flag", "u1"), ("value", array.dtype)])
    packed["value"] = array
    yield "unaligned field of a record", packed["value"]


def broadcasts(array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Stride-0 views: one slice of `array` repeated along each axis, along two, and along all."""
    axes = range(array.ndim)
    for repeated in [*((axis,) for axis in axes), *itertools.combinations(axes, 2), tuple(axes)]:
        one = array[tuple(slice(0, 1) if axis in repeated else slice(None) for axis in axes)]
        yield f"axes {repeated} broadcast", np.broadcast_to(one, array.shape)


@functools.cache
def layer_list(kind: str) -> list[dict[str, Any]]:
    """The rows of benchmarks/shapes/*.csv of one kind, "conv" or "pool", with sizes as integers."""
    folder = pathlib.Path(__file__).parent.parent / "benchmarks" / "shapes"
    layers = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            rows = csv.DictReader(file)
            if ("k" in (rows.fieldnames or ())) == (kind == "conv"):
                layers += [{key: value if key == "name" else int(value) for key, value in row.items()} for row in rows]
    return layers
