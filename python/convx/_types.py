"""The types of the options, and the saved arrays of the fused operation."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from numbers import Real
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from ._cpu import ShapeError

FloatT = TypeVar("FloatT", bound=np.floating[Any])
FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]

Pair: TypeAlias = int | tuple[int, int]
"""One number for both axes, or (h, w)."""

Padding: TypeAlias = (
    int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] | Literal["valid", "same", "same_lower"]
)
"""One number, (h, w), ((top, bottom), (left, right)), or a rule."""

Mode: TypeAlias = Literal["zeros", "constant", "reflect", "replicate", "circular"]
PaddingMode: TypeAlias = Mode | tuple[Mode, Mode]
"""The values outside the image: one mode for both axes, or (h, w)."""

Layout: TypeAlias = Literal["NCHW", "NHWC"]
Activation: TypeAlias = Literal["relu"] | None

Precision: TypeAlias = Literal["ieee", "tf32x3", "tf32"]
"""The precision of float32 products on CUDA."""
PRECISIONS = ("ieee", "tf32x3", "tf32")

OutputMask: TypeAlias = tuple[bool, bool, bool]
"""Which of grad_input, grad_weight and grad_bias to compute."""

Gradients: TypeAlias = tuple[npt.NDArray[FloatT] | None, npt.NDArray[FloatT] | None, npt.NDArray[FloatT] | None]


def check_precision(op: str, precision: object) -> None:
    """Refuse on the CPU, where `precision` has no effect, the same values as on CUDA."""
    if precision not in PRECISIONS:
        raise ShapeError(f"{op}: precision is {precision!r}, expected 'ieee', 'tf32x3' or 'tf32'")


def plain(option: Any) -> Any:
    """Return a checked option as immutable numbers, strings and tuples.

    Examples
    --------
    >>> import numpy as np
    >>> from convx._types import plain
    >>> plain([np.int8(1), np.array(2)]), plain("same"), plain(None)
    ((1, 2), 'same', None)
    """
    if isinstance(option, (tuple, list)) or (isinstance(option, np.ndarray) and option.ndim):
        return tuple(map(plain, option))
    return operator.index(option) if hasattr(option, "__index__") and not isinstance(option, bool) else option


def real(value: Any) -> float | None:
    """Return a number of Python or NumPy as a float (inf on overflow), None for everything else.

    Examples
    --------
    >>> import numpy as np
    >>> from convx._types import real
    >>> real(np.float32(0.5)), real(np.array(2)), real(10**400), real(True), real("0.5"), real(1j)
    (0.5, 2.0, inf, None, None, None)
    """
    scalar: Any = value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value
    if isinstance(scalar, bool) or not isinstance(scalar, Real):  # NumPy's numbers are registered as such
        return None
    try:
        return float(scalar)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


@dataclass(frozen=True, eq=False, repr=False)
class SavedConv2dReluMaxPool2d(Generic[FloatT]):
    """What `conv2d_relu_max_pool2d` keeps for its backward pass.

    Attributes
    ----------
    input, weight : ndarray
        The arrays of the forward pass, not copies.
    codes : ndarray of uint8, the shape of the output
        Argmax codes: the selected tap ``r*S + s`` of each pooling window, 255 where the ReLU is dead.
    stride, padding, dilation, groups, pool_kernel_size, pool_stride, pool_padding, layout, precision
        The options of the forward pass.

    Examples
    --------
    >>> import numpy as np
    >>> import convx
    >>> x = np.array([[[1.0, 2.0, -3.0, -4.0]]])
    >>> _, saved = convx.conv2d_relu_max_pool2d(x, np.ones((1, 1, 1, 1)), pool_kernel_size=(1, 2))
    >>> saved.codes
    array([[[  1, 255]]], dtype=uint8)
    """

    input: npt.NDArray[FloatT]
    weight: npt.NDArray[FloatT]
    codes: npt.NDArray[np.uint8]
    stride: Pair
    padding: Padding
    dilation: Pair
    groups: int
    pool_kernel_size: Pair
    pool_stride: Pair | None
    pool_padding: Padding
    layout: Layout
    precision: Precision = "ieee"

    def __repr__(self) -> str:
        arrays = (("input", self.input), ("weight", self.weight), ("codes", self.codes))
        parts = (
            f"{name}={str(array.dtype).removeprefix('torch.')}{tuple(array.shape)} {array.nbytes} bytes"
            for name, array in arrays
        )
        return f"{type(self).__name__}({', '.join(parts)})"
