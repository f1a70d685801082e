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

from .. import _cpu
from .._cpu import ShapeError
from .._quiet import quiet
from .._types import FloatArray, Layout, Padding, PaddingMode, Pair, plain
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

# An argmax code is one byte; 255 means "no gradient".
MAX_TAPS_WITH_CODES = 255


def _dtype(dtype: Any) -> Any:
    """Return `dtype` as a dtype of NumPy, for messages; None, which NumPy takes as float64, and all else unchanged."""
    try:
        return None if dtype is None else np.dtype(dtype)
    except (TypeError, ValueError):
        return dtype


def _accumulate(*pairs: tuple[Parameter | None, FloatArray | None]) -> None:
    """Add each gradient to its parameter, in the parameter's shape; None stands for a bias that the layer lacks."""
    for parameter, grad in pairs:
        if parameter is not None and grad is not None:
            parameter.accumulate(grad.reshape(parameter.value.shape))


def _changed(layer: Module, options: dict[str, Any]) -> str:
    """Return the options that differ from the constructor's defaults, as text of a call."""
    defaults = inspect.signature(type(layer)).parameters
    return "".join(f", {name}={value!r}" for name, value in options.items() if value != defaults[name].default)


@quiet
def he_normal(
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    rng: np.random.Generator | int | None,
    fan_in: float | None = None,
) -> FloatArray:
    """Draw weights from a normal distribution of mean 0 and variance ``2 / fan_in``.

    This preserves the variance of the activations through layers followed by a ReLU (He et al., "Delving deep into
    rectifiers", ICCV 2015, equation 10). The numbers are drawn in float64, so that float32 and float64 layers of one
    seed start from the same values up to rounding.

    Parameters
    ----------
    shape : tuple of int
        The weight's shape.
    dtype : dtype
        float32 or float64.
    rng : numpy.random.Generator, int or None
        The generator; an int seeds a new one; None takes fresh entropy from the system.
    fan_in : float, optional
        The number of products in an output, by default the product of all sizes of `shape` but the first.

    Returns
    -------
    ndarray of the given shape and dtype

    Raises
    ------
    TypeError
        Where `dtype` is not floating point.
    """
    if np.dtype(dtype).kind != "f":
        raise TypeError(f"he_normal: dtype is {np.dtype(dtype)}, expected floating point")
    scale = math.sqrt(2.0 / (math.prod(shape[1:]) if fan_in is None else fan_in))
    return (np.random.default_rng(rng).standard_normal(shape) * scale).astype(dtype)


class _WithOptions(Module):
    """A layer with the options of its operation as attributes, under the names of the constructor.

    The operation checks later assignments in the next call.
    """

    def _keep(self, options: dict[str, Any]) -> None:
        self._names = tuple(options)
        vars(self).update({name: plain(option) for name, option in options.items()})

    @property
    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names}


class Conv2d(_WithOptions):
    """2-D convolution (cross-correlation) with a trained weight and bias: see :func:`convx.conv2d`.

    Parameters
    ----------
    in_channels, out_channels : int
        C and K.
    kernel_size : int or (int, int)
        R, S.
    stride, padding, dilation, groups, padding_mode, padding_value, layout, algorithm
        As in :func:`convx.conv2d`.
    bias : bool
        Whether a bias is added to each output channel.
    dtype : dtype
        float32 or float64; inputs must have the same one.
    rng : numpy.random.Generator, int or None
        The generator of the initial weight, see :func:`he_normal`. The bias starts at zero.

    Attributes
    ----------
    weight : Parameter
        Shape (K, C/groups, R, S), in both layouts.
    bias : Parameter or None
        Shape (K,).
    stride, padding, dilation, groups, padding_mode, padding_value, layout, algorithm
        The options. Later assignments are checked in the next call.

    Raises
    ------
    ShapeError, TypeError
        For bad sizes, options and dtypes, as :func:`convx.conv2d` does.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import nn
    >>> layer = nn.Conv2d(3, 8, 5, stride=2, padding=2, rng=0)
    >>> layer(np.zeros((1, 3, 32, 32), np.float32)).shape
    (1, 8, 16, 16)
    """

    stride: Pair
    padding: Padding
    dilation: Pair
    groups: int
    padding_mode: PaddingMode
    padding_value: float
    layout: Layout
    algorithm: str

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
        options: dict[str, Any] = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "padding_mode": padding_mode,
            "padding_value": padding_value,
            "layout": layout,
            "algorithm": algorithm,
        }
        shape = _cpu.resolve_conv2d_layer(
            "Conv2d", in_channels, out_channels, kernel_size, bias, _dtype(dtype), *options.values()
        )
        self.weight = Parameter(he_normal(shape, dtype, rng), "weight")
        self.bias = Parameter(np.zeros(shape[0], dtype), "bias") if bias else None
        self._keep(options)

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
        in_channels *= self.groups
        options = _changed(self, {**self._options, "bias": self.bias is not None})
        return f"Conv2d({in_channels}, {out_channels}, {tuple(kernel_size)}{options})"


class ConvTranspose2d(_WithOptions):
    """Transposed 2-D convolution with a trained weight and bias: see :func:`convx.conv_transpose2d`.

    Parameters
    ----------
    in_channels, out_channels : int
        C and K.
    kernel_size : int or (int, int)
        R, S.
    stride, padding, output_padding, groups, dilation, layout, algorithm
        As in :func:`convx.conv_transpose2d`.
    bias : bool
        Whether a bias is added to each output channel.
    dtype : dtype
        float32 or float64; inputs must have the same one.
    rng : numpy.random.Generator, int or None
        The generator of the initial weight, see :func:`he_normal`; `fan_in` is the mean number of products in an
        output, ``C/groups * R * S`` divided by both strides. The bias starts at zero.

    Attributes
    ----------
    weight : Parameter
        Shape (C, K/groups, R, S), in both layouts.
    bias : Parameter or None
        Shape (K,).
    stride, padding, output_padding, groups, dilation, layout, algorithm
        The options. Later assignments are checked in the next call.

    Raises
    ------
    ShapeError, TypeError
        For bad sizes, options and dtypes, as :func:`convx.conv_transpose2d` does.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import nn
    >>> layer = nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1, rng=0)
    >>> layer(np.zeros((1, 8, 16, 16), np.float32)).shape
    (1, 3, 32, 32)
    """

    stride: Pair
    padding: Padding
    output_padding: Pair
    groups: int
    dilation: Pair
    layout: Layout
    algorithm: str

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
        options: dict[str, Any] = {
            "stride": stride,
            "padding": padding,
            "output_padding": output_padding,
            "groups": groups,
            "dilation": dilation,
            "layout": layout,
            "algorithm": algorithm,
        }
        shape = _cpu.resolve_conv_transpose2d_layer(
            "ConvTranspose2d", in_channels, out_channels, kernel_size, bias, _dtype(dtype), *options.values()
        )
        self._keep(options)
        channels, of_group, *taps = shape
        strides = np.broadcast_to(self.stride, 2).tolist()
        fan_in = channels // self.groups * math.prod(taps) / math.prod(strides)
        self.weight = Parameter(he_normal(shape, dtype, rng, fan_in), "weight")
        self.bias = Parameter(np.zeros(of_group * self.groups, dtype), "bias") if bias else None

    def forward(self, input: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Compute the transposed convolution of `input`, which is also the context."""
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
        out_channels *= self.groups
        options = _changed(self, {**self._options, "bias": self.bias is not None})
        return f"ConvTranspose2d({in_channels}, {out_channels}, {tuple(kernel_size)}{options})"


class ReLU(Module):
    """``x if not (x <= 0) else 0``: see :func:`convx.relu`.

    The context is a mask of one bit an element. So the output can be freed where the next layer does not keep it (a
    pooling does not), and the backward pass reads 1/32 of it. Where the next layer keeps it, the mask adds 3 %.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import nn
    >>> layer = nn.ReLU()
    >>> output, context = layer.forward(np.array([-1.0, 2.0]))
    >>> output, layer.backward(np.array([5.0, 6.0]), context)
    (array([0., 2.]), array([0., 6.]))
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
    """The context of a pooling layer: the selected taps and the input's shape."""

    selection: npt.NDArray[Any]
    input_shape: tuple[int, ...]


class MaxPool2d(_WithOptions):
    """The maximum of each window: see :func:`convx.max_pool2d`.

    The context holds the selected taps: argmax codes (one byte per output element) where the window has at most 255
    taps, int64 indices otherwise.

    Parameters
    ----------
    kernel_size : int or (int, int)
        R, S.
    stride : int, (int, int) or None
        None means the kernel size.
    padding, dilation, ceil_mode, layout
        As in :func:`convx.max_pool2d`.

    Attributes
    ----------
    kernel_size, stride, padding, dilation, ceil_mode, layout
        The options. Later assignments are checked in the next call.

    Raises
    ------
    ShapeError, TypeError
        For bad options, as :func:`convx.max_pool2d` does.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import nn
    >>> nn.MaxPool2d(3, stride=2, padding=1)(np.zeros((1, 8, 32, 32), np.float32)).shape
    (1, 8, 16, 16)
    """

    kernel_size: Pair
    stride: Pair | None
    padding: Padding
    dilation: Pair
    ceil_mode: bool
    layout: Layout

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
        options: dict[str, Any] = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "ceil_mode": ceil_mode,
            "layout": layout,
        }
        self.kernel_size = _cpu.resolve_max_pool2d_layer("MaxPool2d", kernel_size, *options.values())
        self._keep(options)

    def forward(self, input: FloatArray) -> tuple[FloatArray, _Pooled]:
        """Pool `input`; the context is the selected taps and the input's shape."""
        options = self._options
        kernel = _cpu.resolve_max_pool2d_layer("MaxPool2d", self.kernel_size, *options.values())
        codes = math.prod(kernel) <= MAX_TAPS_WITH_CODES
        output, selection = max_pool2d(input, kernel, **options, return_codes=codes, return_indices=not codes)
        return output, _Pooled(selection, input.shape)

    def backward(self, grad_output: FloatArray, context: _Pooled, *, need_grad_input: bool = True) -> FloatArray | None:
        """Add each gradient to the selected pixel."""
        if not need_grad_input:
            return None
        return max_pool2d_backward(
            grad_output, context.selection, context.input_shape, self.kernel_size, **self._options
        )

    def __call__(self, input: FloatArray) -> FloatArray:
        """Pool `input` without recording the selected taps."""
        output: FloatArray = max_pool2d(input, self.kernel_size, **self._options)
        return output

    def __repr__(self) -> str:
        return f"MaxPool2d({self.kernel_size!r}{_changed(self, self._options)})"


class Flatten(Module):
    """Join the axes from `start_dim` to `end_dim`, both included, in row-major order.

    After an NHWC layer the order of the joined values is therefore (h, w, c), after an NCHW layer (c, h, w).

    Parameters
    ----------
    start_dim, end_dim : int
        The first and the last axis; negative numbers count from the last axis of the input.

    Raises
    ------
    ShapeError
        Where `start_dim` lies behind `end_dim`, and in `forward` where the input lacks one of them.
    TypeError
        Where one is not an integer.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import nn
    >>> nn.Flatten()(np.zeros((8, 32, 2, 2))).shape
    (8, 128)
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim
        start, end = self._ends()
        if (start < 0) == (end < 0) and start > end:
            raise ShapeError(f"Flatten: cannot join the axes {start} to {end} of any input")

    def _ends(self) -> tuple[int, int]:
        return (
            _cpu.integer("Flatten", "start_dim", self.start_dim),
            _cpu.integer("Flatten", "end_dim", self.end_dim),
        )

    def forward(self, input: FloatArray) -> tuple[FloatArray, tuple[int, ...]]:
        """Reshape `input`; the context is its shape."""
        check_array("Flatten", "input", input)
        shape = input.shape
        start, end = (dim + len(shape) if dim < 0 else dim for dim in self._ends())
        if not 0 <= start <= end < len(shape):
            raise ShapeError(
                f"Flatten: cannot join the axes {self.start_dim} to {self.end_dim} of an input with {len(shape)} axes"
            )
        joined = math.prod(shape[start : end + 1])
        return input.reshape(*shape[:start], joined, *shape[end + 1 :]), shape

    def backward(
        self, grad_output: FloatArray, context: tuple[int, ...], *, need_grad_input: bool = True
    ) -> FloatArray | None:
        """Reshape the gradient to the input's shape."""
        return grad_output.reshape(context) if need_grad_input else None

    def __repr__(self) -> str:
        return f"Flatten(start_dim={self.start_dim}, end_dim={self.end_dim})"


class Linear(Module):
    """``input @ weight.T + bias`` over the last axis.

    It runs as a 1x1 convolution. So a fully-connected layer also has the same bits for any number of threads, and no
    second thread pool (that of a BLAS) competes with convx's own. The weight is the image, whose pixels are read in
    place; the rows of the input are the kernels, which are packed. With the roles exchanged the larger operand would be
    packed (1.9 times the time for 8 rows of 25088 features, 1.1 to 1.6 times for 128 rows).

    Parameters
    ----------
    in_features, out_features : int
        The sizes of the last axis of input and output.
    bias : bool
        Whether a bias is added.
    dtype : dtype
        float32 or float64; inputs must have the same one.
    rng : numpy.random.Generator, int or None
        The generator of the initial weight, see :func:`he_normal`. The bias starts at zero.

    Attributes
    ----------
    weight : Parameter
        Shape (out_features, in_features).
    bias : Parameter or None
        Shape (out_features,).

    Raises
    ------
    ShapeError, TypeError
        For bad sizes and dtypes, and in `forward` for an input with another last axis or dtype.

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
        shape = _cpu.resolve_linear_layer("Linear", in_features, out_features, bias, _dtype(dtype))
        self.weight = Parameter(he_normal(shape, dtype, rng), "weight")
        self.bias = Parameter(np.zeros(shape[0], dtype), "bias") if bias else None

    @quiet
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

    @quiet
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
    """Run layers one after another, without fusion or reordering.

    The layers are named "0", "1", ... in :meth:`state_dict`; ``network[i]``, ``len`` and iteration work on them.

    Parameters
    ----------
    *layers : Module
        The layers, in the order of the forward pass.

    Raises
    ------
    TypeError
        Where an argument is not a Module.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import nn
    >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    >>> output, context = network.forward(np.zeros((2, 1, 8, 8), np.float32))
    >>> output.shape, network.backward(output, context).shape
    ((2, 4, 3, 3), (2, 1, 8, 8))
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
        # Without the gradient of the input, the pass ends at the first layer that has parameters.
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
        """Run all layers for inference; an intermediate result is freed as soon as the next layer has run."""
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
