"""The operations of convx in plain NumPy: the arithmetic to read, and the oracle of the tests.

The code is independent of the compiled kernels. Every function loops over the taps (r, s) of the kernel and computes
all n, c, p, q at once, in the dtype of the arrays: float64 arrays give a truth for float32.

Parameters, shapes, results and the sources of the formulas are those of the functions of the same name in `convx`. Any
floating-point dtype is accepted. `algorithm` and `precision` are ignored. Bad shapes and options raise ValueError,
wrong dtypes TypeError.

Notation: N batch, C input channels, H W input size, K output channels, R S kernel size, P Q output size, G groups.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from convx._quiet import quiet
from convx._types import (
    Activation,
    FloatArray,
    Gradients,
    Layout,
    OutputMask,
    Padding,
    PaddingMode,
    Pair,
    Precision,
    SavedConv2dReluMaxPool2d,
    real,
)

__all__ = [
    "conv2d",
    "conv2d_backward",
    "conv2d_grad_norms",
    "conv2d_relu_max_pool2d",
    "conv2d_relu_max_pool2d_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "relu",
    "relu_backward",
]

_MODES = ("zeros", "constant", "reflect", "replicate", "circular")
_RULES = ("same", "same_lower")
_NO_GRADIENT = 255


@dataclass(frozen=True)
class _Axis:
    """One spatial axis of a problem: (H, R, P) or (W, S, Q)."""

    size: int
    taps: int
    stride: int
    dilation: int
    before: int
    after: int
    mode: str = "zeros"
    ceil_mode: bool = False

    @property
    def extent(self) -> int:
        """Pixels from the first tap of a window to the last."""
        return self.dilation * (self.taps - 1) + 1

    @property
    def out(self) -> int:
        """P of this H, or Q of this W."""
        rounding = self.stride - 1 if self.ceil_mode else 0
        out = (self.size + self.before + self.after - self.extent + rounding) // self.stride + 1
        if self.ceil_mode and (out - 1) * self.stride >= self.size + self.before:
            out -= 1  # no window starts in the bottom or right padding
        return out

    def outputs(self, tap: int) -> slice:
        """Return the outputs to which this tap adds: under "zeros", those whose tap falls inside the image."""
        if self.mode != "zeros":
            return slice(0, self.out)
        offset = tap * self.dilation - self.before
        first = max(0, -(offset // self.stride))
        stop = min(self.out, (self.size - 1 - offset) // self.stride + 1)
        return slice(first, max(first, stop))

    def taps_inside(self) -> npt.NDArray[np.intp]:
        """Return the number of taps inside the image, for each output."""
        count = np.zeros(self.out, np.intp)
        for tap in range(self.taps):
            count[self.outputs(tap)] += 1
        return count

    def reads(self, tap: int) -> slice:
        """Return the pixels of the padded image that this tap reads, one for each of `outputs`."""
        outputs = self.outputs(tap)
        start = outputs.start * self.stride + tap * self.dilation
        return slice(start, start + (outputs.stop - outputs.start) * self.stride, self.stride)

    def sources(self) -> npt.NDArray[np.intp]:
        """Return the source pixel of each pixel of the padded image; -1 for a constant."""
        position = np.arange(-self.before, self.size + self.after)
        if self.mode == "replicate":
            return position.clip(0, self.size - 1)
        if self.mode == "circular":
            return position % self.size
        if self.mode == "reflect":
            return self.size - 1 - abs(self.size - 1 - abs(position))
        return np.where((position >= 0) & (position < self.size), position, -1)


@dataclass(frozen=True)
class _TransposedAxis:
    """One spatial axis of a transposed convolution: input pixel p adds to outputs p*stride + r*dilation - before."""

    size: int
    stride: int
    dilation: int
    before: int
    out: int

    def reaches(self, tap: int) -> tuple[slice, slice]:
        """Return the input pixels whose tap lies inside the output, and the outputs to which they add."""
        offset = tap * self.dilation - self.before
        outputs = np.arange(self.size) * self.stride + offset
        inside = np.flatnonzero((outputs >= 0) & (outputs < self.out))
        if inside.size == 0:
            return slice(0), slice(0)
        first, last = int(inside[0]), int(inside[-1])
        start = first * self.stride + offset
        return slice(first, last + 1), slice(start, last * self.stride + offset + 1, self.stride)


@quiet
def conv2d(
    input: FloatArray,
    weight: FloatArray,
    bias: FloatArray | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    padding_value: float = 0.0,
    activation: Activation = None,
    layout: Layout = "NCHW",
    algorithm: str = "auto",
    precision: Precision = "ieee",
    out: FloatArray | None = None,
) -> FloatArray:
    """Compute ``y[n,k,p,q] = b[k] + sum_{c,r,s} x[n,c,h,w] * w[k,c,r,s]``, h = p*stride + r*dilation - top, w alike.

    Taps outside the image are skipped under "zeros", whatever the mode of the other axis; under "constant" they read
    `padding_value`. See `convx.conv2d` for the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import reference
    >>> reference.conv2d(np.array([[[1.0, 2.0, 3.0]]]), np.array([[[[10.0, 100.0]]]]))
    array([[[210., 320.]]])
    """
    x, unbatched = _to_nchw("conv2d", input, layout)
    groups = _integer("conv2d", "groups", groups)
    rows, cols = _conv_axes("conv2d", x, weight, stride, padding, dilation, groups, padding_mode)
    _expect_dtypes("conv2d", input, weight=weight, bias=bias, out=out)
    n, k = len(x), len(weight)
    if bias is not None:
        _expect("conv2d", "bias", bias.shape, (k,))
    if activation not in (None, "relu"):
        raise ValueError(f'conv2d: activation is {activation!r}, expected None or "relu"')

    padded = _split_groups(_pad(x, rows, cols, padding_value), groups)  # n g c h w
    kernel = weight.reshape(groups, k // groups, *weight.shape[1:])  # g k c r s
    y = np.zeros((n, k, rows.out, cols.out), x.dtype)
    y_groups = _split_groups(y, groups)
    for r, s in _taps(rows, cols):
        outputs, reads = _slices(r, s, rows, cols)
        patch = padded[reads]
        total = kernel[..., r, s] @ _flatten_plane(patch)  # g k c @ n g c pq
        y_groups[outputs] += total.reshape(*total.shape[:-1], *patch.shape[-2:])
    if bias is not None:
        y += bias[:, None, None]
    if activation == "relu":
        y = relu(y)
    return _store("conv2d", _from_nchw(y, layout, unbatched), out)


@quiet
def conv2d_backward(
    grad_output: FloatArray,
    input: FloatArray,
    weight: FloatArray,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    padding_value: float = 0.0,
    layout: Layout = "NCHW",
    algorithm: str = "auto",
    precision: Precision = "ieee",
    output_mask: OutputMask = (True, True, True),
    per_sample: bool = False,
) -> Gradients[np.floating[Any]]:
    """Compute the gradients of `conv2d`: (grad_input, grad_weight, grad_bias), None where `output_mask` is False.

    With `per_sample` the gradients of weight and bias have a batch axis in front, unless the input has none. See
    `convx.conv2d_backward` for the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import reference
    >>> x, w = np.array([[[1.0, 2.0, 3.0]]]), np.array([[[[10.0, 100.0]]]])
    >>> grad_input, grad_weight, grad_bias = reference.conv2d_backward(np.ones((1, 1, 2)), x, w)
    >>> grad_input, grad_weight.ravel(), grad_bias
    (array([[[ 10., 110., 100.]]]), array([3., 5.]), array([2.]))
    """
    x, unbatched = _to_nchw("conv2d_backward", input, layout)
    groups = _integer("conv2d_backward", "groups", groups)
    rows, cols = _conv_axes("conv2d_backward", x, weight, stride, padding, dilation, groups, padding_mode)
    _expect_dtypes("conv2d_backward", input, weight=weight, grad_output=grad_output)
    g = _to_nchw_like("conv2d_backward", "grad_output", grad_output, input.ndim, layout)
    k = len(weight)
    _expect("conv2d_backward", "grad_output (as NCHW)", g.shape, (len(x), k, rows.out, cols.out))

    padded = _split_groups(_pad(x, rows, cols, padding_value), groups)
    kernel = weight.reshape(groups, k // groups, *weight.shape[1:])
    g_groups = _split_groups(g, groups)
    grad_padded = np.zeros(padded.shape, g.dtype)
    grad_kernel = np.zeros((len(x), *kernel.shape), g.dtype)
    for r, s in _taps(rows, cols):
        outputs, reads = _slices(r, s, rows, cols)
        g_tap = _flatten_plane(g_groups[outputs])  # n g k pq
        patch = padded[reads]
        if output_mask[0]:
            total = kernel[..., r, s].swapaxes(1, 2) @ g_tap  # g c k @ n g k pq
            grad_padded[reads] += total.reshape(patch.shape)
        if output_mask[1]:
            grad_kernel[..., r, s] = g_tap @ _flatten_plane(patch).swapaxes(-1, -2)  # n g k c

    grad_input = None
    if output_mask[0]:
        grad_x = _unpad(grad_padded.reshape(*x.shape[:2], *padded.shape[-2:]), rows, cols)
        grad_input = _from_nchw(grad_x, layout, unbatched)
    grad_weight, grad_bias = grad_kernel.reshape(len(x), *weight.shape), g.sum(axis=(2, 3))
    if not per_sample or unbatched:
        grad_weight, grad_bias = grad_weight.sum(axis=0), grad_bias.sum(axis=0)
    return grad_input, grad_weight if output_mask[1] else None, grad_bias if output_mask[2] else None


@quiet
def conv2d_grad_norms(
    grad_output: FloatArray,
    input: FloatArray,
    weight_shape: Sequence[int],
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    padding_value: float = 0.0,
    layout: Layout = "NCHW",
    algorithm: str = "auto",
    precision: Precision = "ieee",
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Compute the squared norms of every image's gradients of weight and bias, in float64.

    See `convx.conv2d_grad_norms` for the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import reference
    >>> x = np.array([[[[1.0, 2.0, 3.0]]], [[[1.0, 0.0, 0.0]]]])
    >>> reference.conv2d_grad_norms(np.ones((2, 1, 1, 2)), x, (1, 1, 1, 2))
    (array([34.,  1.]), array([4., 4.]))
    """
    _, grad_weight, grad_bias = conv2d_backward(
        grad_output,
        input,
        np.zeros(weight_shape, input.dtype),
        stride,
        padding,
        dilation,
        groups,
        padding_mode=padding_mode,
        padding_value=padding_value,
        layout=layout,
        output_mask=(False, True, True),
        per_sample=True,
    )
    assert grad_weight is not None and grad_bias is not None
    weight_norms, bias_norms = (
        np.square(gradient, dtype=np.float64).sum(axis=tuple(range(input.ndim - 3, gradient.ndim)))
        for gradient in (grad_weight, grad_bias)
    )
    return weight_norms, bias_norms


@quiet
def conv_transpose2d(
    input: FloatArray,
    weight: FloatArray,
    bias: FloatArray | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
    *,
    layout: Layout = "NCHW",
    algorithm: str = "auto",
    precision: Precision = "ieee",
    out: FloatArray | None = None,
) -> FloatArray:
    """Add ``x[n,c,p,q] * w[c,k,r,s]`` to ``y[n,k,h,w]``, h = p*stride + r*dilation - top, w alike, and the bias.

    Products that fall outside the output are left out. See `convx.conv_transpose2d` for the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import reference
    >>> reference.conv_transpose2d(np.array([[[1.0, 2.0]]]), np.array([[[[1.0, 10.0, 100.0]]]]), stride=(1, 2))
    array([[[  1.,  10., 102.,  20., 200.]]])
    """
    op = "conv_transpose2d"
    x, unbatched = _to_nchw(op, input, layout)
    groups = _integer(op, "groups", groups)
    rows, cols = _transposed_axes(op, x, weight, stride, padding, output_padding, groups, dilation)
    _expect_dtypes(op, input, weight=weight, bias=bias, out=out)
    n, k = len(x), weight.shape[1] * groups
    if bias is not None:
        _expect(op, "bias", bias.shape, (k,))

    x_groups = _split_groups(x, groups)  # n g c p q
    kernel = weight.reshape(groups, x.shape[1] // groups, *weight.shape[1:])  # g c k r s
    y = np.zeros((n, k, rows.out, cols.out), x.dtype)
    y_groups = _split_groups(y, groups)
    for r, s in _taps_of(weight):
        (pixels_h, outputs_h), (pixels_w, outputs_w) = rows.reaches(r), cols.reaches(s)
        patch = x_groups[..., pixels_h, pixels_w]
        total = kernel[..., r, s].swapaxes(-1, -2) @ _flatten_plane(patch)  # g k c @ n g c pq
        y_groups[..., outputs_h, outputs_w] += total.reshape(*total.shape[:-1], *patch.shape[-2:])
    if bias is not None:
        y += bias[:, None, None]
    return _store(op, _from_nchw(y, layout, unbatched), out)


@quiet
def conv_transpose2d_backward(
    grad_output: FloatArray,
    input: FloatArray,
    weight: FloatArray,
    stride: Pair = 1,
    padding: Padding = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
    *,
    layout: Layout = "NCHW",
    algorithm: str = "auto",
    precision: Precision = "ieee",
    output_mask: OutputMask = (True, True, True),
) -> Gradients[np.floating[Any]]:
    """Compute the gradients of `conv_transpose2d`: (grad_input, grad_weight, grad_bias), None where masked.

    See `convx.conv_transpose2d_backward` for the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import reference
    >>> x, w = np.array([[[1.0, 2.0]]]), np.array([[[[1.0, 10.0, 100.0]]]])
    >>> grad_input, grad_weight, grad_bias = reference.conv_transpose2d_backward(np.ones((1, 1, 4)), x, w)
    >>> grad_input, grad_weight.ravel(), grad_bias
    (array([[[111., 111.]]]), array([3., 3., 3.]), array([4.]))
    """
    op = "conv_transpose2d_backward"
    x, unbatched = _to_nchw(op, input, layout)
    groups = _integer(op, "groups", groups)
    rows, cols = _transposed_axes(op, x, weight, stride, padding, output_padding, groups, dilation)
    _expect_dtypes(op, input, weight=weight, grad_output=grad_output)
    g = _to_nchw_like(op, "grad_output", grad_output, input.ndim, layout)
    _expect(op, "grad_output (as NCHW)", g.shape, (len(x), weight.shape[1] * groups, rows.out, cols.out))

    x_groups, g_groups = _split_groups(x, groups), _split_groups(g, groups)
    kernel = weight.reshape(groups, x.shape[1] // groups, *weight.shape[1:])
    grad_x = np.zeros(x.shape, g.dtype)
    grad_x_groups = _split_groups(grad_x, groups)
    grad_kernel = np.zeros(kernel.shape, g.dtype)
    for r, s in _taps_of(weight):
        (pixels_h, outputs_h), (pixels_w, outputs_w) = rows.reaches(r), cols.reaches(s)
        g_tap = _flatten_plane(g_groups[..., outputs_h, outputs_w])  # n g k pq
        patch = x_groups[..., pixels_h, pixels_w]
        if output_mask[0]:
            grad_x_groups[..., pixels_h, pixels_w] += (kernel[..., r, s] @ g_tap).reshape(patch.shape)
        if output_mask[1]:
            grad_kernel[..., r, s] = (_flatten_plane(patch) @ g_tap.swapaxes(-1, -2)).sum(axis=0)
    return (
        _from_nchw(grad_x, layout, unbatched) if output_mask[0] else None,
        grad_kernel.reshape(weight.shape) if output_mask[1] else None,
        g.sum(axis=(0, 2, 3)) if output_mask[2] else None,
    )


@quiet
def relu(input: FloatArray, *, return_mask: bool = False, out: FloatArray | None = None) -> Any:
    """Compute ``x if not (x <= 0) else 0``: NaN stays NaN. With `return_mask` also the bits of ``not (y <= 0)``.

    See `convx.relu` for the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import reference
    >>> reference.relu(np.array([-1.0, 0.0, 2.0, np.nan]), return_mask=True)
    (array([ 0.,  0.,  2., nan]), array([12], dtype=uint8))
    """
    _expect_dtypes("relu", input, out=out)
    output = _store("relu", np.where(input <= 0, input.dtype.type(0), input), out)
    return (output, np.packbits(~(output <= 0), bitorder="little")) if return_mask else output


@quiet
def relu_backward(
    grad_output: FloatArray,
    output: FloatArray | npt.NDArray[np.uint8],
    *,
    out: FloatArray | None = None,
) -> FloatArray:
    """Compute ``0 if y <= 0 else grad`` from the output of `relu` or its mask: a NaN output passes the gradient on.

    See `convx.relu_backward` for the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import reference
    >>> reference.relu_backward(np.array([5.0, 6.0, 7.0]), np.array([0.0, 2.0, np.nan]))
    array([0., 6., 7.])
    """
    size, zero = grad_output.size, grad_output.dtype.type(0)
    if output.dtype == np.uint8:
        mask = cast("npt.NDArray[np.uint8]", output)
        _expect("relu_backward", "output (a mask)", mask.shape, (-(-size // 8),))
        stops = np.unpackbits(mask, count=size, bitorder="little").reshape(grad_output.shape) == 0
    else:
        _expect_dtypes("relu_backward", grad_output, output=cast("FloatArray", output))
        _expect("relu_backward", "output", output.shape, grad_output.shape)
        stops = output <= 0
    _expect_dtypes("relu_backward", grad_output, out=out)
    return _store("relu_backward", np.where(stops, zero, grad_output), out)


@quiet
def max_pool2d(
    input: FloatArray,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    *,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    layout: Layout = "NCHW",
    return_indices: bool = False,
    return_codes: bool = False,
) -> Any:
    """Take the largest value of each window, alone or with int64 indices ``h*W + w`` or uint8 codes ``r*S + s``.

    Ties go to the first tap. A window with NaN gives NaN and selects the last NaN. A window whose taps all fall outside
    the image (by dilation) gives -inf, index -1 and code 255. See `convx.max_pool2d` for the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import reference
    >>> x = np.array([[[1.0, 2.0, 5.0, 6.0], [3.0, 4.0, 7.0, 8.0]]])
    >>> reference.max_pool2d(x, 2, return_indices=True)
    (array([[[4., 8.]]]), array([[[5, 7]]]))
    """
    x, unbatched = _to_nchw("max_pool2d", input, layout)
    rows, cols = _pool_axes("max_pool2d", x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    _expect_dtypes("max_pool2d", input)
    if return_indices and return_codes:
        raise ValueError("max_pool2d: return_indices and return_codes are both set, expected at most one")

    padded = _pad(x, rows, cols, -np.inf)
    best = np.full((*x.shape[:2], rows.out, cols.out), -np.inf, x.dtype)
    tap = np.full(best.shape, -1)
    for r, s in _taps(rows, cols):
        outputs, reads = _slices(r, s, rows, cols)
        value, best_here, tap_here = padded[reads], best[outputs], tap[outputs]
        replace = (tap_here < 0) | (value > best_here) | np.isnan(value)
        best_here[replace] = value[replace]
        tap_here[replace] = r * cols.taps + s

    output = _from_nchw(best, layout, unbatched)
    if return_indices:
        return output, _from_nchw(_tap_to_index(tap, rows, cols), layout, unbatched)
    if return_codes:
        _expect_codes_fit("max_pool2d", rows, cols)
        return output, _from_nchw(np.where(tap < 0, _NO_GRADIENT, tap).astype(np.uint8), layout, unbatched)
    return output


@quiet
def max_pool2d_backward(
    grad_output: FloatArray,
    indices_or_codes: npt.NDArray[Any],
    input_shape: tuple[int, ...],
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    *,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    layout: Layout = "NCHW",
) -> FloatArray:
    """Compute ``grad_input[index] += grad_output``, windows in row-major order; code 255 adds nothing.

    Index -1 adds nothing either. It is an error except for a window without a tap inside the image. See
    `convx.max_pool2d_backward` for the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import reference
    >>> reference.max_pool2d_backward(np.array([[[4.0, 8.0]]]), np.array([[[5, 7]]]), (1, 2, 4), 2)
    array([[[0., 0., 0., 0.],
            [0., 4., 0., 8.]]])
    """
    op = "max_pool2d_backward"
    input_shape = tuple(_integer(op, "input_shape", size) for size in input_shape)
    n, c, h, w = _nchw_shape(op, input_shape, layout)
    g = _to_nchw_like(op, "grad_output", grad_output, len(input_shape), layout)
    chosen = _to_nchw_like(op, "indices_or_codes", indices_or_codes, len(input_shape), layout)
    rows, cols = _pool_axes(op, (n, c, h, w), kernel_size, stride, padding, dilation, ceil_mode)
    _expect_dtypes(op, grad_output)
    _expect(op, "grad_output (as NCHW)", g.shape, (n, c, rows.out, cols.out))
    _expect(op, "indices_or_codes (as NCHW)", chosen.shape, g.shape)

    if chosen.dtype == np.uint8:
        _expect_codes_fit(op, rows, cols)
        tap = np.where(chosen == _NO_GRADIENT, -1, chosen.astype(np.int64))
        if (tap >= rows.taps * cols.taps).any():
            raise ValueError(f"{op}: a code lies outside the window of {rows.taps} x {cols.taps} taps")
        index = _tap_to_index(tap, rows, cols)
    elif chosen.dtype == np.int64:
        index = chosen
    else:
        raise TypeError(f"{op}: indices_or_codes has dtype {chosen.dtype}, expected int64 (indices) or uint8 (codes)")
    empty = (rows.taps_inside() == 0)[:, None] | (cols.taps_inside() == 0)
    absent = (index == -1) & (empty | (chosen.dtype == np.uint8))
    if ((index < 0) & ~absent).any() or (index >= h * w).any():
        raise ValueError(f"{op}: an index lies outside the plane of {h} x {w} pixels")

    has_gradient = index >= 0
    plane = np.arange(n * c).reshape(n, c, 1, 1) * (h * w)
    grad_x = np.zeros(n * c * h * w, g.dtype)
    np.add.at(grad_x, (plane + index)[has_gradient], g[has_gradient])
    return _from_nchw(grad_x.reshape(n, c, h, w), layout, len(input_shape) == 3)


@quiet
def conv2d_relu_max_pool2d(
    input: FloatArray,
    weight: FloatArray,
    bias: FloatArray | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    pool_kernel_size: Pair,
    pool_stride: Pair | None = None,
    pool_padding: Padding = 0,
    layout: Layout = "NCHW",
    precision: Precision = "ieee",
) -> tuple[FloatArray, SavedConv2dReluMaxPool2d[Any]]:
    """Compute ``max_pool2d(relu(conv2d(...)))``, and what its backward pass needs.

    See `convx.conv2d_relu_max_pool2d` for the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import reference
    >>> x, w = np.array([[[1.0, -2.0, 3.0, 4.0]]]), np.array([[[[10.0]]]])
    >>> y, saved = reference.conv2d_relu_max_pool2d(x, w, pool_kernel_size=(1, 2))
    >>> y, saved.codes
    (array([[[10., 40.]]]), array([[[0, 1]]], dtype=uint8))
    """
    y = conv2d(input, weight, bias, stride, padding, dilation, groups, activation="relu", layout=layout)
    output, codes = max_pool2d(y, pool_kernel_size, pool_stride, pool_padding, layout=layout, return_codes=True)
    codes[output <= 0] = _NO_GRADIENT
    pooling = (pool_kernel_size, pool_stride, pool_padding)
    saved = SavedConv2dReluMaxPool2d(
        input, weight, codes, stride, padding, dilation, groups, *pooling, layout, precision
    )
    return output, saved


def conv2d_relu_max_pool2d_backward(
    grad_output: FloatArray, saved: SavedConv2dReluMaxPool2d[Any], *, output_mask: OutputMask = (True, True, True)
) -> Gradients[np.floating[Any]]:
    """Compute the gradients of the three operations in sequence; `saved` may come from `convx` or from this module.

    See `convx.conv2d_relu_max_pool2d_backward` for the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import reference
    >>> x, w = np.array([[[1.0, -2.0, 3.0, 4.0]]]), np.array([[[[10.0]]]])
    >>> y, saved = reference.conv2d_relu_max_pool2d(x, w, pool_kernel_size=(1, 2))
    >>> reference.conv2d_relu_max_pool2d_backward(np.ones_like(y), saved)[0]
    array([[[10.,  0.,  0., 10.]]])
    """
    op = "conv2d_relu_max_pool2d_backward"
    x, _ = _to_nchw(op, saved.input, saved.layout)
    groups = _integer(op, "groups", saved.groups)
    rows, cols = _conv_axes(op, x, saved.weight, saved.stride, saved.padding, saved.dilation, groups, "zeros")
    k, p, q = len(saved.weight), rows.out, cols.out
    conv_shape = (*saved.input.shape[:-3], *((k, p, q) if saved.layout == "NCHW" else (p, q, k)))
    grad_conv = max_pool2d_backward(
        grad_output,
        saved.codes,
        conv_shape,
        saved.pool_kernel_size,
        saved.pool_stride,
        saved.pool_padding,
        layout=saved.layout,
    )
    return conv2d_backward(
        grad_conv,
        saved.input,
        saved.weight,
        saved.stride,
        saved.padding,
        saved.dilation,
        saved.groups,
        layout=saved.layout,
        output_mask=output_mask,
    )


def _taps(rows: _Axis, cols: _Axis) -> Iterator[tuple[int, int]]:
    return ((r, s) for r in range(rows.taps) for s in range(cols.taps))


def _taps_of(weight: FloatArray) -> Iterator[tuple[int, int]]:
    return ((r, s) for r in range(weight.shape[2]) for s in range(weight.shape[3]))


def _slices(r: int, s: int, rows: _Axis, cols: _Axis) -> tuple[Any, Any]:
    """Return the outputs to which tap (r, s) adds, and the pixels of the padded image that it reads for them."""
    return (..., rows.outputs(r), cols.outputs(s)), (..., rows.reads(r), cols.reads(s))


def _split_groups(array: FloatArray, groups: int) -> FloatArray:
    n, channels, h, w = array.shape
    return array.reshape(n, groups, channels // groups, h, w)


def _flatten_plane(array: FloatArray) -> FloatArray:
    return array.reshape(*array.shape[:-2], array.shape[-2] * array.shape[-1])


def _pad(x: FloatArray, rows: _Axis, cols: _Axis, value: float) -> FloatArray:
    if real(value) is None:
        raise TypeError(f"padding_value is {value!r}, expected a number")
    for axis, problem in ((2, rows), (3, cols)):
        sources = problem.sources()
        x = np.take(x, sources.clip(min=0), axis)
        x[(slice(None),) * axis + (sources < 0,)] = value
    return x


def _unpad(grad_padded: FloatArray, rows: _Axis, cols: _Axis) -> FloatArray:
    """Apply the adjoint of `_pad`: every padded pixel adds its gradient to its source pixel."""
    for axis, problem in ((2, rows), (3, cols)):
        padded = np.moveaxis(grad_padded, axis, 0)
        folded = np.zeros((problem.size, *padded.shape[1:]), padded.dtype)
        for position, source in enumerate(problem.sources()):
            if source >= 0:
                folded[source] += padded[position]
        grad_padded = np.moveaxis(folded, 0, axis)
    return grad_padded


def _tap_to_index(tap: npt.NDArray[np.int64], rows: _Axis, cols: _Axis) -> npt.NDArray[np.int64]:
    """Return ``h*W + w`` of each window's tap ``r*S + s``: -1 for no tap, H*W for a tap outside the image."""
    h = np.arange(rows.out)[:, None] * rows.stride - rows.before + tap // cols.taps * rows.dilation
    w = np.arange(cols.out) * cols.stride - cols.before + tap % cols.taps * cols.dilation
    inside = (h >= 0) & (h < rows.size) & (w >= 0) & (w < cols.size)
    return np.where(tap < 0, -1, np.where(inside, h * cols.size + w, rows.size * cols.size))


def _to_nchw(op: str, array: npt.NDArray[Any], layout: str, name: str = "input") -> tuple[npt.NDArray[Any], bool]:
    """Return a 4-D NCHW view, and whether the array had no batch axis."""
    if layout not in ("NCHW", "NHWC"):
        raise ValueError(f'{op}: layout is {layout!r}, expected "NCHW" or "NHWC"')
    if array.ndim not in (3, 4):
        raise ValueError(f"{op}: {name} has {array.ndim} dimensions, expected 4 or 3 (unbatched)")
    batched = array if array.ndim == 4 else array[None]
    return (batched if layout == "NCHW" else batched.transpose(0, 3, 1, 2)), array.ndim == 3


def _to_nchw_like(op: str, name: str, array: npt.NDArray[Any], ndim: int, layout: str) -> npt.NDArray[Any]:
    if array.ndim != ndim:
        raise ValueError(f"{op}: {name} has {array.ndim} dimensions, expected {ndim} as the input has")
    return _to_nchw(op, array, layout, name)[0]


def _from_nchw(array: npt.NDArray[Any], layout: str, unbatched: bool) -> npt.NDArray[Any]:
    array = np.ascontiguousarray(array if layout == "NCHW" else array.transpose(0, 2, 3, 1))
    return cast("npt.NDArray[Any]", array[0]) if unbatched else array


def _nchw_shape(op: str, shape: tuple[int, ...], layout: str) -> tuple[int, int, int, int]:
    if len(shape) not in (3, 4):
        raise ValueError(f"{op}: input_shape has {len(shape)} numbers, expected 4 or 3 (unbatched)")
    n, a, b, c = shape if len(shape) == 4 else (1, *shape)
    return (n, a, b, c) if layout == "NCHW" else (n, c, a, b)


def _conv_axes(
    op: str,
    x: FloatArray,
    weight: FloatArray,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    padding_mode: PaddingMode,
) -> tuple[_Axis, _Axis]:
    c, h, w = x.shape[1:]
    if weight.ndim != 4:
        raise ValueError(f"{op}: weight has {weight.ndim} dimensions, expected 4 (K, C/groups, R, S)")
    k, c_per_group, r, s = weight.shape
    if groups < 1 or c % groups or k % groups:
        raise ValueError(f"{op}: groups is {groups}, expected a divisor of {c} input and {k} output channels")
    if c_per_group != c // groups:
        raise ValueError(
            f"{op}: weight has {c_per_group} input channels per group, expected {c // groups} "
            f"(input channels {c} / groups {groups})"
        )
    if min(h, w, k, r, s) < 1:
        raise ValueError(f"{op}: input {x.shape} and weight {weight.shape} have a size of zero other than N or C")
    modes = (padding_mode, padding_mode) if isinstance(padding_mode, str) else padding_mode
    if len(modes) != 2 or any(mode not in _MODES for mode in modes):
        raise ValueError(f"{op}: padding_mode is {padding_mode!r}, expected one of {_MODES} or a pair of them")
    axes = _axes(op, (h, w), (r, s), stride, padding, dilation, modes)
    for axis in axes:
        limit = {"reflect": axis.size - 1, "circular": axis.size}.get(axis.mode)
        if limit is not None and max(axis.before, axis.after) > limit:
            raise ValueError(f"{op}: padding is {max(axis.before, axis.after)}, expected at most {limit} ({axis.mode})")
    return axes


def _transposed_axes(
    op: str,
    x: FloatArray,
    weight: FloatArray,
    stride: Pair,
    padding: Padding,
    output_padding: Pair,
    groups: int,
    dilation: Pair,
) -> tuple[_TransposedAxis, _TransposedAxis]:
    c, h, w = x.shape[1:]
    if weight.ndim != 4:
        raise ValueError(f"{op}: weight has {weight.ndim} dimensions, expected 4 (C, K/groups, R, S)")
    if len(weight) != c:
        raise ValueError(f"{op}: weight has {len(weight)} input channels, expected {c}")
    if groups < 1 or c % groups:
        raise ValueError(f"{op}: groups is {groups}, expected a divisor of {c} input channels")
    if min(h, w, *weight.shape[1:]) < 1:
        raise ValueError(f"{op}: input {x.shape} and weight {weight.shape} have a size of zero other than N or C")
    strides, dilations = _pair(op, "stride", stride), _pair(op, "dilation", dilation)
    extra = _numbers(op, "output_padding", output_padding)

    def axis(i: int) -> _TransposedAxis:
        size, extent = x.shape[2 + i], dilations[i] * (weight.shape[2 + i] - 1) + 1
        if not 0 <= extra[i] < max(strides[i], dilations[i]):
            raise ValueError(f"{op}: output_padding is {output_padding}, expected less than stride or dilation")
        if isinstance(padding, str) and padding in _RULES:
            if extra[i]:
                raise ValueError(f"{op}: output_padding is {output_padding}, expected 0 with padding {padding!r}")
            before, _ = _sides(op, padding, i, size * strides[i], extent, strides[i])
            return _TransposedAxis(size, strides[i], dilations[i], before, size * strides[i])
        before, after = _sides(op, padding, i, size, extent, strides[i])
        out = (size - 1) * strides[i] + extent - before - after + extra[i]
        if out < 1:
            raise ValueError(f"{op}: padding is {padding!r}, which leaves an output of size {out}")
        return _TransposedAxis(size, strides[i], dilations[i], before, out)

    return axis(0), axis(1)


def _pool_axes(
    op: str,
    nchw: tuple[int, ...],
    kernel_size: Pair,
    stride: Pair | None,
    padding: Padding,
    dilation: Pair,
    ceil_mode: bool,
) -> tuple[_Axis, _Axis]:
    if min(nchw[1:]) < 1:
        raise ValueError(f"{op}: input {nchw} (NCHW) has a size of zero other than N")
    taps = _pair(op, "kernel_size", kernel_size)
    steps = taps if stride is None or _entries(stride) == () else stride
    axes = _axes(op, nchw[2:], taps, steps, padding, dilation, ("zeros",) * 2, ceil_mode)
    for axis in axes:
        if max(axis.before, axis.after) > axis.extent - 1:
            raise ValueError(
                f"{op}: padding is {max(axis.before, axis.after)}, "
                f"expected at most {axis.extent - 1} (one less than the window's extent {axis.extent})"
            )
    return axes


def _axes(
    op: str,
    sizes: tuple[int, ...],
    taps: tuple[int, int],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    modes: tuple[str, ...],
    ceil_mode: bool = False,
) -> tuple[_Axis, _Axis]:
    strides, dilations = _pair(op, "stride", stride), _pair(op, "dilation", dilation)

    def axis(i: int) -> _Axis:
        extent = dilations[i] * (taps[i] - 1) + 1
        before, after = _sides(op, padding, i, sizes[i], extent, strides[i])
        problem = _Axis(sizes[i], taps[i], strides[i], dilations[i], before, after, modes[i], ceil_mode)
        if problem.out < 1:
            raise ValueError(
                f"{op}: the window spans {extent} pixels in {'height' if i == 0 else 'width'}, "
                f"expected at most {sizes[i] + before + after} (input {sizes[i]} + padding {before} + {after})"
            )
        return problem

    return axis(0), axis(1)


def _sides(op: str, padding: Padding, axis: int, size: int, extent: int, stride: int) -> tuple[int, int]:
    """Return (top, bottom) for axis 0, (left, right) for axis 1."""
    if isinstance(padding, str):
        if padding == "valid":
            return 0, 0
        if padding not in _RULES:
            raise ValueError(f'{op}: padding is {padding!r}, expected numbers, "valid", "same" or "same_lower"')
        out = -(-size // stride)
        total = max(0, (out - 1) * stride + extent - size)
        small, large = total // 2, total - total // 2
        return (small, large) if padding == "same" else (large, small)
    sides = _entries(padding)
    if sides is None or (len(sides) == 1 and _entries(sides[0]) is None):
        sides = _numbers(op, "padding", padding)
    if len(sides) != 2 or any(min(_numbers(op, "padding", side)) < 0 for side in sides):
        raise ValueError(
            f"{op}: padding is {padding!r}, expected n, (h, w) or ((top, bottom), (left, right)), each >= 0"
        )
    return _numbers(op, "padding", sides[axis])


def _pair(op: str, name: str, value: Pair) -> tuple[int, int]:
    pair = _numbers(op, name, value)
    if min(pair) < 1:
        raise ValueError(f"{op}: {name} is {value!r}, expected a positive number or a pair of them")
    return pair


def _numbers(op: str, name: str, value: Any) -> tuple[int, int]:
    """Return one number for both axes or a pair of them as a pair."""
    entries = _entries(value)
    entries = (value,) if entries is None else entries
    if len(entries) not in (1, 2):
        raise ValueError(f"{op}: {name} is {value!r}, expected a number or a pair of them")
    return _integer(op, name, entries[0]), _integer(op, name, entries[-1])


def _entries(value: Any) -> tuple[Any, ...] | None:
    """Return what a tuple, a list or an array with axes holds, None for everything else."""
    if isinstance(value, (tuple, list)) or (isinstance(value, np.ndarray) and value.ndim):
        return tuple(value)
    return None


def _integer(op: str, name: str, value: Any) -> int:
    """Return `value` as an int: Python's, NumPy's, an array or a tensor of one integer."""
    if not isinstance(value, (bool, np.bool_)):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{op}: {name} is {value!r}, expected an integer")


def _store(op: str, result: FloatArray, out: FloatArray | None) -> FloatArray:
    if out is None:
        return result
    _expect(op, "out", out.shape, result.shape)
    out[...] = result
    return out


def _expect(op: str, name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if got != expected:
        raise ValueError(f"{op}: {name} has shape {got}, expected {expected}")


def _expect_dtypes(op: str, first: FloatArray, **others: FloatArray | None) -> None:
    if not np.issubdtype(first.dtype, np.floating):
        raise TypeError(f"{op}: the first array has dtype {first.dtype}, expected floating point")
    for name, array in others.items():
        if array is not None and array.dtype != first.dtype:
            raise TypeError(f"{op}: {name} has dtype {array.dtype}, expected {first.dtype}")


def _expect_codes_fit(op: str, rows: _Axis, cols: _Axis) -> None:
    if rows.taps * cols.taps > _NO_GRADIENT:
        raise ValueError(f"{op}: the window has {rows.taps * cols.taps} taps, expected at most 255 for one-byte codes")
