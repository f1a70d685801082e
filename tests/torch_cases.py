"""Shared by the tests of convx.torch: problems with random options, and PyTorch's results.

Results are compared on whole numbers: both must be exact (support.py) for any order of the additions.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

MODES = {"zeros": "constant", "constant": "constant", "reflect": "reflect", "replicate": "replicate"}


@dataclasses.dataclass
class ConvCase:
    """A random convolution."""

    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    bias: bool
    options: dict[str, Any]

    @property
    def k(self) -> int:
        return self.weight_shape[0]


def draw(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high))


def conv_case(seed: int) -> ConvCase:
    rng = np.random.default_rng(seed)
    groups = draw(rng, 1, 4)
    r, s, dilation = draw(rng, 1, 4), draw(rng, 1, 4), (draw(rng, 1, 3), draw(rng, 1, 3))
    h, w = dilation[0] * (r - 1) + draw(rng, 3, 8), dilation[1] * (s - 1) + draw(rng, 3, 8)
    options = dict(
        stride=(draw(rng, 1, 3), draw(rng, 1, 3)),
        padding=tuple((draw(rng, 0, 3), draw(rng, 0, 3)) for _ in range(2)),
        dilation=dilation,
        groups=groups,
        padding_mode=str(rng.choice([*MODES, "circular"])),
    )
    if options["padding_mode"] == "constant":
        options["padding_value"] = 2.0
    if rng.integers(2):
        options["activation"] = "relu"
    channels, outputs = groups * draw(rng, 1, 4), groups * draw(rng, 1, 4)
    shape = (draw(rng, 1, 4), channels, h, w)
    return ConvCase(shape, (outputs, channels // groups, r, s), bool(rng.integers(2)), options)


def conv_by_torch(x: Any, w: Any, b: Any, **options: Any) -> Any:
    """The image padded by torch.nn.functional.pad, for a convolution without padding."""
    (top, bottom), (left, right) = options["padding"]
    mode = options["padding_mode"]
    value = dict(value=options.get("padding_value", 0.0)) if MODES.get(mode) == "constant" else {}
    padded = F.pad(x, (left, right, top, bottom), MODES.get(mode, mode), **value)
    y = F.conv2d(padded, w, b, options["stride"], 0, options["dilation"], options["groups"])
    return torch.relu(y) if options.get("activation") else y


def pool_case(seed: int) -> tuple[tuple[int, ...], dict[str, Any]]:
    """A shape, and options that PyTorch has as well."""
    rng = np.random.default_rng(seed)
    kernel, dilation = (draw(rng, 1, 5), draw(rng, 1, 5)), (draw(rng, 1, 3), draw(rng, 1, 3))
    size = [dilation[axis] * (kernel[axis] - 1) + draw(rng, 1, 9) for axis in (0, 1)]
    options = dict(
        kernel_size=kernel,
        stride=(draw(rng, 1, 4), draw(rng, 1, 4)),
        padding=tuple(draw(rng, 0, side // 2 + 1) for side in kernel),
        dilation=dilation,
        ceil_mode=bool(rng.integers(2)),
    )
    return (draw(rng, 1, 4), draw(rng, 1, 5), *size), options


def whole(shape: Any, seed: int = 0, dtype: Any = torch.float32) -> Any:
    """Non-zero whole numbers from -4 to 4."""
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 5, shape) * rng.choice([-1, 1], shape)
    return torch.tensor(values, dtype=dtype)


def normal(*shape: int, seed: int = 0, dtype: Any = torch.float64) -> Any:
    """Leaves that require grad."""
    return torch.tensor(np.random.default_rng(seed).normal(size=shape), dtype=dtype, requires_grad=True)


def as_channels_last(x: Any) -> Any:
    return x.detach().contiguous(memory_format=torch.channels_last).requires_grad_(x.requires_grad)


def gradients(function: Any, *leaves: Any) -> list[Any]:
    """The output, and the gradients of a weighted sum of it."""
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    output = function(*leaves)
    weights = whole(output.shape, 99, output.dtype)
    (output * weights).sum().backward()
    return [output.detach(), *(leaf.grad for leaf in leaves)]


def assert_all_equal(actual: Any, expected: Any, context: object = "") -> None:
    __tracebackhide__ = True
    assert len(actual) == len(expected)
    for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert one.shape == other.shape, f"{context}, result {index}: {tuple(one.shape)} for {tuple(other.shape)}"
        assert torch.equal(one, other), f"{context}, result {index}: {(one - other).abs().max()} apart"
