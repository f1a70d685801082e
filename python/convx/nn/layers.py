"""The layers. Names and argument order follow PyTorch; options that PyTorch lacks or orders unevenly are keyword-only.

Every ``forward`` returns ``(output, context)`` and changes nothing on the layer; every ``backward`` adds to the
gradients of the parameters and returns the gradient of the input. :class:`Module` documents the arguments of both.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._cpu import ShapeError
from .._types import FloatArray, Layout, Padding, PaddingMode, Pair
from ..ops import (
    conv2d,
    conv2d_backward,
    conv_transpose2d,
    conv_transpose2d_backward,
    max_pool2d,
    max_pool2d_backward,
    relu,
    relu_backward,
)
from .module import Module, Parameter, check_array

# A window code is one byte, and 255 stands for "no gradient".
MAX_TAPS_WITH_CODES = 255


def _positive(layer: str, name: str, value: Any) -> int:
    """Return `value` as an int, or raise the error that names the layer and the argument."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{layer}: {name} is {value!r}, expected an int")
    if value <= 0:
        raise ShapeError(f"{layer}: {name} is {value}, expected a positive number")
    return int(value)


def _pair(layer: str, name: str, value: Any) -> tuple[int, int]:
    """Return `value`, a positive int or a pair (h, w) of them, as a pair."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ShapeError(f"{layer}: {name} has {len(pair)} numbers, expected an int or a pair (h, w)")
    return _positive(layer, name, pair[0]), _positive(layer, name, pair[1])


def _accumulate(*pairs: tuple[Parameter | None, FloatArray | None]) -> None:
    """Add each gradient to its parameter, reshaped to it; a layer without a bias has neither."""
    for parameter, grad in pairs:
        if parameter is not None and grad is not None:
            parameter.accumulate(grad.reshape(parameter.value.shape))


def _changed(layer: Module, options: dict[str, Any]) -> str:
    """Write the options that differ from the constructor's defaults, as they would stand in a call."""
    defaults = inspect.signature(type(layer)).parameters
    return "".join(f", {name}={value!r}" for name, value in options.items() if value != defaults[name].default)


def he_normal(
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    rng: np.random.Generator | int | None,
    fan_in: float | None = None,
) -> FloatArray:
    """Draw weights from a normal distribution of mean 0 and variance ``2 / fan_in``.

    This keeps the variance of the activations through layers followed by a ReLU (He et al., "Delving deep into
    rectifiers", ICCV 2015, equation 10). The numbers are drawn in float64, so that float32 and float64 layers of one
    seed start from the same values up to rounding.

    Parameters
    ----------
    shape : tuple of int
        The weight's shape.
    dtype : dtype
        float32 or float64.
    rng : numpy.random.Generator, int or None
        The source of the numbers; an int seeds a new one; None takes fresh entropy from the system.
    fan_in : float, optional
        How many products an output sums, by default the product of all sizes of `shape` but the first.
    """
    if np.dtype(dtype).kind != "f":
        raise TypeError(f"he_normal: dtype is {np.dtype(dtype)}, expected floating point")
    scale = math.sqrt(2.0 / (math.prod(shape[1:]) if fan_in is None else fan_in))
    return (np.random.default_rng(rng).standard_normal(shape) * scale).astype(dtype)


class Conv2d(Module):
    """2-D convolution (cross-correlation) with a trained weight and bias: see :func:`convx.conv2d`.

    Parameters
    ----------
    in_channels, out_channels : int
        C and K.
    kernel_size : int or (int, int)
        R, S.
    stride, padding, dilation, groups, padding_mode, padding_value, layout, algorithm
        As in :func:`convx.conv2d`, which checks them at the first call, when the input's shape is known.
    bias : bool
        Whether a bias is added to each output channel.
    dtype : dtype
        float32 or float64; inputs must have the same one.
    rng : numpy.random.Generator, int or None
        Where the initial weight comes from, see :func:`he_normal`. The bias starts at zero.

    Attributes
    ----------
    weight : Parameter
        Shape (K, C/groups, R, S), in both layouts.
    bias : Parameter or None
        Shape (K,).

    Examples
    --------
    >>> import numpy as np
    >>> from convx import nn
    >>> layer = nn.Conv2d(3, 8, 5, stride=2, padding=2, rng=0)
    >>> layer(np.zeros((1, 3, 32, 32), np.float32)).shape
    (1, 8, 16, 16)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Padding = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        padding_value: float = 0.0,
        layout: Layout = "NCHW",
        algorithm: str = "auto",
        dtype: npt.DTypeLike = np.float32,
        rng: np.random.Generator | int | None = None,
    ) -> None:
        in_channels = _positive("Conv2d", "in_channels", in_channels)
        out_channels = _positive("Conv2d", "out_channels", out_channels)
        groups = _positive("Conv2d", "groups", groups)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ShapeError(f"Conv2d: {name} is {channels}, expected a multiple of groups ({groups})")
        shape = (out_channels, in_channels // groups, *_pair("Conv2d", "kernel_size", kernel_size))
        self.weight = Parameter(he_normal(shape, dtype, rng), "weight")
        self.bias = Parameter(np.zeros(out_channels, dtype), "bias") if bias else None
        self._options: dict[str, Any] = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "padding_mode": padding_mode,
            "padding_value": padding_value,
            "layout": layout,
            "algorithm": algorithm,
        }

    def forward(self, input: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Convolve `input`, which is also the context."""
        bias = None if self.bias is None else self.bias.value
        return conv2d(input, self.weight.value, bias, **self._options), input

    def backward(
        self, grad_output: FloatArray, context: FloatArray, *, need_grad_input: bool = True
    ) -> FloatArray | None:
        """Add the gradients of weight and bias; return that of the input."""
        grad_input, grad_weight, grad_bias = conv2d_backward(
            grad_output,
            context,
            self.weight.value,
            **self._options,
            output_mask=(need_grad_input, True, self.bias is not None),
        )
        _accumulate((self.weight, grad_weight), (self.bias, grad_bias))
        return grad_input

    def __repr__(self) -> str:
        out_channels, in_channels, *kernel_size = self.weight.value.shape
        in_channels *= self._options["groups"]
        options = _changed(self, {**self._options, "bias": self.bias is not None})
        return f"Conv2d({in_channels}, {out_channels}, {tuple(kernel_size)}{options})"


class ConvTranspose2d(Module):
    """Transposed 2-D convolution with a trained weight and bias: see :func:`convx.conv_transpose2d`.

    Parameters
    ----------
    in_channels, out_channels : int
        C and K.
    kernel_size : int or (int, int)
        R, S.
    stride, padding, output_padding, groups, dilation, layout, algorithm
        As in :func:`convx.conv_transpose2d`, which checks them at the first call, when the input's shape is known.
    bias : bool
        Whether a bias is added to each output channel.
    dtype : dtype
        float32 or float64; inputs must have the same one.
    rng : numpy.random.Generator, int or None
        Where the initial weight comes from, see :func:`he_normal`; `fan_in` is the number of products that an output
        sums on average, ``C/groups * R * S`` divided by both strides. The bias starts at zero.

    Attributes
    ----------
    weight : Parameter
        Shape (C, K/groups, R, S), in both layouts.
    bias : Parameter or None
        Shape (K,).

    Examples
    --------
    >>> import numpy as np
    >>> from convx import nn
    >>> layer = nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1, rng=0)
    >>> layer(np.zeros((1, 8, 16, 16), np.float32)).shape
    (1, 3, 32, 32)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Padding = 0,
        output_padding: Pair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Pair = 1,
        *,
        layout: Layout = "NCHW",
        algorithm: str = "auto",
        dtype: npt.DTypeLike = np.float32,
        rng: np.random.Generator | int | None = None,
    ) -> None:
        in_channels = _positive("ConvTranspose2d", "in_channels", in_channels)
        out_channels = _positive("ConvTranspose2d", "out_channels", out_channels)
        groups = _positive("ConvTranspose2d", "groups", groups)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ShapeError(f"ConvTranspose2d: {name} is {channels}, expected a multiple of groups ({groups})")
        taps = _pair("ConvTranspose2d", "kernel_size", kernel_size)
        strides = _pair("ConvTranspose2d", "stride", stride)
        fan_in = in_channels // groups * math.prod(taps) / math.prod(strides)
        shape = (in_channels, out_channels // groups, *taps)
        self.weight = Parameter(he_normal(shape, dtype, rng, fan_in), "weight")
        self.bias = Parameter(np.zeros(out_channels, dtype), "bias") if bias else None
        self._options: dict[str, Any] = {
            "stride": stride,
            "padding": padding,
            "output_padding": output_padding,
            "groups": groups,
            "dilation": dilation,
            "layout": layout,
            "algorithm": algorithm,
        }

    def forward(self, input: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Spread `input` over the windows; it is also the context."""
        bias = None if self.bias is None else self.bias.value
        return conv_transpose2d(input, self.weight.value, bias, **self._options), input

    def backward(
        self, grad_output: FloatArray, context: FloatArray, *, need_grad_input: bool = True
    ) -> FloatArray | None:
        """Add the gradients of weight and bias; return that of the input."""
        grad_input, grad_weight, grad_bias = conv_transpose2d_backward(
            grad_output,
            context,
            self.weight.value,
            **self._options,
            output_mask=(need_grad_input, True, self.bias is not None),
        )
        _accumulate((self.weight, grad_weight), (self.bias, grad_bias))
        return grad_input

    def __repr__(self) -> str:
        in_channels, out_channels, *kernel_size = self.weight.value.shape
        out_channels *= self._options["groups"]
        options = _changed(self, {**self._options, "bias": self.bias is not None})
        return f"ConvTranspose2d({in_channels}, {out_channels}, {tuple(kernel_size)}{options})"


class ReLU(Module):
    """``x if not (x <= 0) else 0``: see :func:`convx.relu`.

    The context is the mask of one bit an element. The output is then free as soon as the next layer does not need it (a
    pooling does not), and the backward pass reads 1/32 of it; where the next layer keeps it, the mask is 3 % more.
    """

    def forward(self, input: FloatArray) -> tuple[FloatArray, npt.NDArray[np.uint8]]:
        """Compute the output; the context is its mask."""
        return relu(input, return_mask=True)

    def backward(
        self, grad_output: FloatArray, context: npt.NDArray[np.uint8], *, need_grad_input: bool = True
    ) -> FloatArray | None:
        """Pass the gradient on where the output is not 0."""
        return relu_backward(grad_output, context) if need_grad_input else None

    def __call__(self, input: FloatArray) -> FloatArray:
        """Compute the output without a mask."""
        return relu(input)

    def __repr__(self) -> str:
        return "ReLU()"


class _Pooled(NamedTuple):
    """What the backward pass of a pooling layer needs: the chosen taps and the input's shape."""

    selection: npt.NDArray[Any]
    input_shape: tuple[int, ...]


class MaxPool2d(Module):
    """The maximum of each window: see :func:`convx.max_pool2d`.

    The context holds which tap was chosen: one byte per output element where the window has at most 255 taps, an int64
    index otherwise.

    Parameters
    ----------
    kernel_size : int or (int, int)
        R, S.
    stride : int, (int, int) or None
        None means the kernel size.
    padding, dilation, ceil_mode, layout
        As in :func:`convx.max_pool2d`, which checks them at the first call.
    """

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Padding = 0,
        *,
        dilation: Pair = 1,
        ceil_mode: bool = False,
        layout: Layout = "NCHW",
    ) -> None:
        self.kernel_size = _pair("MaxPool2d", "kernel_size", kernel_size)
        self._options: dict[str, Any] = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "ceil_mode": ceil_mode,
            "layout": layout,
        }

    def forward(self, input: FloatArray) -> tuple[FloatArray, _Pooled]:
        """Pool `input`; the context is the chosen taps and the input's shape."""
        codes = math.prod(self.kernel_size) <= MAX_TAPS_WITH_CODES
        output, selection = max_pool2d(
            input, self.kernel_size, **self._options, return_codes=codes, return_indices=not codes
        )
        return output, _Pooled(selection, input.shape)

    def backward(self, grad_output: FloatArray, context: _Pooled, *, need_grad_input: bool = True) -> FloatArray | None:
        """Send each gradient to the tap that was chosen."""
        if not need_grad_input:
            return None
        return max_pool2d_backward(
            grad_output, context.selection, context.input_shape, self.kernel_size, **self._options
        )

    def __call__(self, input: FloatArray) -> FloatArray:
        """Pool `input` without recording the chosen taps."""
        output: FloatArray = max_pool2d(input, self.kernel_size, **self._options)
        return output

    def __repr__(self) -> str:
        return f"MaxPool2d({self.kernel_size}{_changed(self, self._options)})"


class Flatten(Module):
    """Join the axes from `start_dim` to `end_dim`, both included, in row-major order.

    After an NHWC layer the order of the joined values is therefore (h, w, c), after an NCHW layer (c, h, w).
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: FloatArray) -> tuple[FloatArray, tuple[int, ...]]:
        """Reshape `input`; the context is its shape."""
        check_array("Flatten", "input", input)
        shape = input.shape
        start, end = (dim + len(shape) if dim < 0 else dim for dim in (self.start_dim, self.end_dim))
        if not 0 <= start <= end < len(shape):
            raise ShapeError(
                f"Flatten: cannot join the axes {self.start_dim} to {self.end_dim} of an input with {len(shape)} axes"
            )
        joined = math.prod(shape[start : end + 1])
        return input.reshape(*shape[:start], joined, *shape[end + 1 :]), shape

    def backward(
        self, grad_output: FloatArray, context: tuple[int, ...], *, need_grad_input: bool = True
    ) -> FloatArray | None:
        """Give the gradient the input's shape again."""
        return grad_output.reshape(context) if need_grad_input else None

    def __repr__(self) -> str:
        return f"Flatten(start_dim={self.start_dim}, end_dim={self.end_dim})"


class Linear(Module):
    """``input @ weight.T + bias`` over the last axis.

    It runs as a 1x1 convolution, so a fully-connected layer, too, gives the same bits for any number of threads, and no
    second thread pool (that of a BLAS) takes turns with convx's own. The weight is the image, whose pixels are read
    where they lie, and the rows of the input are the kernels, which get packed. The other way round the large one of
    the two would be packed: 1.9 times the time for 8 rows of 25088 features, 1.1 to 1.6 times for 128 rows.

    Parameters
    ----------
    in_features, out_features : int
        The sizes of the last axis of input and output.
    bias : bool
        Whether a bias is added.
    dtype : dtype
        float32 or float64; inputs must have the same one.
    rng : numpy.random.Generator, int or None
        Where the initial weight comes from, see :func:`he_normal`. The bias starts at zero.

    Attributes
    ----------
    weight : Parameter
        Shape (out_features, in_features).
    bias : Parameter or None
        Shape (out_features,).

    Examples
    --------
    >>> import numpy as np
    >>> from convx import nn
    >>> nn.Linear(64, 10, rng=0)(np.zeros((5, 64), np.float32)).shape
    (5, 10)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
        rng: np.random.Generator | int | None = None,
    ) -> None:
        in_features = _positive("Linear", "in_features", in_features)
        out_features = _positive("Linear", "out_features", out_features)
        self.weight = Parameter(he_normal((out_features, in_features), dtype, rng), "weight")
        self.bias = Parameter(np.zeros(out_features, dtype), "bias") if bias else None

    def forward(self, input: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Multiply the rows of `input`, which is also the context."""
        check_array("Linear", "input", input)
        weight = self.weight.value
        if input.ndim == 0 or input.shape[-1] != weight.shape[1]:
            found = f"{input.shape[-1]} features" if input.ndim else "no axis"
            raise ShapeError(f"Linear: input has {found}, expected {weight.shape[1]} (the size of the last axis)")
        if input.dtype != weight.dtype:
            raise TypeError(f"Linear: input has dtype {input.dtype}, expected {weight.dtype} (that of the weight)")
        rows = input.reshape(-1, weight.shape[1])
        output = np.empty_like(weight, shape=(len(rows), weight.shape[0]))
        if len(rows):  # no rows would be no kernels
            output[...] = conv2d(_as_image(weight), _as_kernels(rows), layout="NHWC")[0, 0].T
        if self.bias is not None:
            output += self.bias.value
        return output.reshape(*input.shape[:-1], weight.shape[0]), input

    def backward(
        self, grad_output: FloatArray, context: FloatArray, *, need_grad_input: bool = True
    ) -> FloatArray | None:
        """Add the gradients of weight and bias; return that of the input."""
        weight = self.weight.value
        rows, grad_rows = context.reshape(-1, weight.shape[1]), grad_output.reshape(-1, weight.shape[0])
        grad_weight: FloatArray | None = np.zeros_like(weight)
        grad_input: FloatArray | None = np.zeros_like(rows) if need_grad_input else None
        if len(rows):
            grad_weight, grad_input, _ = conv2d_backward(
                _as_image(grad_rows.T),
                _as_image(weight),
                _as_kernels(rows),
                layout="NHWC",
                output_mask=(True, need_grad_input, False),
            )
        _accumulate((self.weight, grad_weight), (self.bias, grad_rows.sum(axis=0)))
        return None if grad_input is None else grad_input.reshape(context.shape)

    def __repr__(self) -> str:
        out_features, in_features = self.weight.value.shape
        return f"Linear({in_features}, {out_features}, bias={self.bias is not None})"


def _as_image(matrix: FloatArray) -> FloatArray:
    """View (pixels, features) as the NHWC image (1, 1, pixels, features)."""
    return matrix[None, None]


def _as_kernels(matrix: FloatArray) -> FloatArray:
    """View (rows, features) as 1x1 kernels (rows, features, 1, 1)."""
    return matrix[:, :, None, None]


class Sequential(Module):
    """Run layers one after another; each is called as it stands, nothing is fused or reordered.

    The layers are named "0", "1", ... in :meth:`state_dict`; ``network[i]``, ``len`` and iteration give them back.
    """

    def __init__(self, *layers: Module) -> None:
        for position, layer in enumerate(layers):
            if not isinstance(layer, Module):
                raise TypeError(f"Sequential: argument {position} is {type(layer).__name__}, expected a Module")
        self.layers = layers

    def forward(self, input: FloatArray) -> tuple[FloatArray, list[Any]]:
        """Run all layers; the context is the list of theirs."""
        output, contexts = input, []
        for layer in self.layers:
            output, context = layer.forward(output)
            contexts.append(context)
        return output, contexts

    def backward(
        self, grad_output: FloatArray, context: list[Any], *, need_grad_input: bool = True
    ) -> FloatArray | None:
        """Run the layers' backward passes in reverse order."""
        # Where the input's gradient is not asked for, the pass ends at the first layer that has parameters.
        first = 0 if need_grad_input else self._first_with_parameters()
        grad: Any = grad_output
        for position in reversed(range(first, len(self.layers))):
            need = need_grad_input or position > first
            grad = self.layers[position].backward(grad, context[position], need_grad_input=need)
        return grad if need_grad_input else None

    def _first_with_parameters(self) -> int:
        positions = (position for position, layer in enumerate(self.layers) if any(True for _ in layer.parameters()))
        return next(positions, len(self.layers))

    def __call__(self, input: FloatArray) -> FloatArray:
        """Run all layers for inference: what lies between two layers is freed as soon as the second has run."""
        output = input
        for layer in self.layers:
            output = layer(output)
        return output

    def members(self) -> Iterator[tuple[str, Parameter | Module]]:
        """Yield the layers under the names "0", "1", ..."""
        for position, layer in enumerate(self.layers):
            yield str(position), layer

    def __getitem__(self, position: int) -> Module:
        return self.layers[position]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.layers)

    def __repr__(self) -> str:
        lines = (f"  {position}: " + repr(layer).replace("\n", "\n  ") for position, layer in enumerate(self.layers))
        return "\n".join(["Sequential(", *lines, ")"])
