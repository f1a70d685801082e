"""The public functions: arguments checked and resolved when they are called or traced, then one jitted call."""

from __future__ import annotations

import functools
from typing import Any, Literal, TypeAlias, overload

import jax

from .. import _cpu
from .._devices import described
from .._types import Activation, Layout, Padding, PaddingMode, Pair
from . import _operations
from ._specs import ConvSpec, PoolSpec

Array: TypeAlias = jax.Array


def conv2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
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
) -> Array:
    """Convolve images with kernels, as `convx.conv2d` does, in a JAX program.

    Parameters
    ----------
    input : jax.Array of float32 or float64, shape (N, C, H, W) or (C, H, W)
        The images, (N, H, W, C) or (H, W, C) with ``layout="NHWC"``.
    weight : jax.Array, shape (K, C/G, R, S)
        The kernels, in this order for both layouts.
    bias : jax.Array, shape (K,), optional
        Added to every pixel of an output channel.
    stride, padding, dilation, groups, padding_mode, padding_value, activation, layout, algorithm
        As in `convx.conv2d`; none of them may be traced.

    Returns
    -------
    jax.Array, shape (N, K, P, Q), or (N, P, Q, K) with ``layout="NHWC"``; 3-D for a 3-D input

    Raises
    ------
    ShapeError
        For inconsistent shapes and for options out of range; under ``jax.jit`` at tracing.
    TypeError
        For arrays that are not JAX's, dtypes other than float32 and float64, and dtypes that differ.
    ValueError
        For an array on another device than the CPU.

    References
    ----------
    Those of `convx.conv2d`.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import convx.jax
    >>> image = jnp.array([[[1.0, 2.0, 3.0]]])
    >>> weight = jnp.array([[[[10.0, 100.0]]]])
    >>> convx.jax.conv2d(image, weight)
    Array([[[210., 320.]]], dtype=float32)
    >>> jax.grad(lambda weight: convx.jax.conv2d(image, weight).sum())(weight)
    Array([[[[3., 5.]]]], dtype=float32)
    """
    _check_arrays("conv2d", input=input, weight=weight, bias=bias)
    _, spec = _cpu.resolve_conv2d(
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
        padding_mode,
        padding_value,
        activation,
        layout,
        algorithm,
    )
    y: Array = _conv2d(ConvSpec(*spec), input, weight, bias)
    return y


def conv_transpose2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
    *,
    layout: Layout = "NCHW",
    algorithm: str = "auto",
) -> Array:
    """Spread every pixel over a window of the output, as `convx.conv_transpose2d` does: the adjoint of `conv2d`.

    Parameters
    ----------
    input : jax.Array of float32 or float64, shape (N, C, H, W) or (C, H, W)
        (N, H, W, C) or (H, W, C) with ``layout="NHWC"``.
    weight : jax.Array, shape (C, K/G, R, S)
        The kernels, in this order for both layouts.
    bias : jax.Array, shape (K,), optional
        Added to every pixel of an output channel.
    stride, padding, output_padding, groups, dilation, layout, algorithm
        As in `convx.conv_transpose2d`; none of them may be traced.

    Returns
    -------
    jax.Array, shape (N, K, P, Q), or (N, P, Q, K) with ``layout="NHWC"``; 3-D for a 3-D input

    Raises
    ------
    ShapeError, TypeError, ValueError
        As `conv2d` does.

    References
    ----------
    Those of `convx.conv_transpose2d`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import convx.jax
    >>> x = jnp.array([[[1.0, 2.0]]])
    >>> weight = jnp.array([[[[1.0, 10.0, 100.0]]]])
    >>> convx.jax.conv_transpose2d(x, weight, stride=(1, 2))
    Array([[[  1.,  10., 102.,  20., 200.]]], dtype=float32)
    """
    _check_arrays("conv_transpose2d", input=input, weight=weight, bias=bias)
    shape, spec = _cpu.resolve_conv_transpose2d(
        input, weight, bias, stride, padding, output_padding, groups, dilation, layout, algorithm
    )
    size = shape[-2:] if layout == "NCHW" else shape[-3:-1]
    y: Array = _conv_transpose2d(ConvSpec(*spec), size, input, weight, bias)
    return y


def relu(input: Array) -> Array:
    """Compute ``x if not (x <= 0) else 0`` for every element, as `convx.relu` does: NaN stays NaN.

    The gradient at 0 is 0.

    Parameters
    ----------
    input : jax.Array of float32 or float64, any shape

    Returns
    -------
    jax.Array of the shape and dtype of `input`

    Raises
    ------
    TypeError
        For an array that is not JAX's and for other dtypes.
    ValueError
        For an array on another device than the CPU.

    References
    ----------
    Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 6.3.1.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import convx.jax
    >>> convx.jax.relu(jnp.array([-1.0, 0.0, 2.0]))
    Array([0., 0., 2.], dtype=float32)
    """
    _check_arrays("relu", input=input)
    _cpu.resolve_relu(input)
    y: Array = _relu(input)
    return y


@overload
def max_pool2d(
    input: Array,
    kernel_size: Pair,
    stride: Pair | None = ...,
    padding: Padding = ...,
    *,
    dilation: Pair = ...,
    ceil_mode: bool = ...,
    layout: Layout = ...,
    return_indices: Literal[False] = ...,
) -> Array: ...


@overload
def max_pool2d(
    input: Array,
    kernel_size: Pair,
    stride: Pair | None = ...,
    padding: Padding = ...,
    *,
    dilation: Pair = ...,
    ceil_mode: bool = ...,
    layout: Layout = ...,
    return_indices: bool,
) -> Array | tuple[Array, Array]: ...


def max_pool2d(
    input: Array,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    *,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    layout: Layout = "NCHW",
    return_indices: bool = False,
) -> Array | tuple[Array, Array]:
    """Take the largest value of every window, as `convx.max_pool2d` does.

    The gradient goes to the selected pixel: the first of equal ones.

    Parameters
    ----------
    input : jax.Array of float32 or float64, shape (N, C, H, W) or (C, H, W)
        The images, (N, H, W, C) or (H, W, C) with ``layout="NHWC"``.
    kernel_size, stride, padding, dilation, ceil_mode, layout
        As in `convx.max_pool2d`; none of them may be traced.
    return_indices : bool, default False
        Also return indices: ``h*W + w`` of the selected pixel, -1 where a window has none; int32, or int64 in JAX's
        64-bit mode.

    Returns
    -------
    output : jax.Array, shape (N, C, P, Q), or (N, P, Q, C) with ``layout="NHWC"``; 3-D for a 3-D input
    indices : jax.Array, the shape of `output`
        Only on request; then the result is a pair.

    Raises
    ------
    ShapeError
        For options out of range, windows larger than the padded image, and sizes of 0 other than N; under ``jax.jit``
        at tracing.
    TypeError
        For an array that is not JAX's and for other dtypes.
    ValueError
        For an array on another device than the CPU.

    References
    ----------
    Those of `convx.max_pool2d`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import convx.jax
    >>> x = jnp.array([[[1.0, 2.0, 5.0, 6.0], [3.0, 4.0, 7.0, 8.0]]])
    >>> convx.jax.max_pool2d(x, 2)
    Array([[[4., 8.]]], dtype=float32)
    >>> convx.jax.max_pool2d(x, 2, return_indices=True)[1]
    Array([[[5, 7]]], dtype=int32)
    """
    _check_arrays("max_pool2d", input=input)
    if not isinstance(return_indices, bool):
        raise TypeError(f"max_pool2d: return_indices is {return_indices!r}, expected a bool")
    _, spec = _cpu.resolve_max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, layout)
    result: Array | tuple[Array, Array] = _max_pool2d(PoolSpec(*spec), return_indices, input)
    return result


def conv2d_relu_max_pool2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    pool_kernel_size: Pair,
    pool_stride: Pair | None = None,
    pool_padding: Padding = 0,
    layout: Layout = "NCHW",
) -> Array:
    """Compute ``max_pool2d(relu(conv2d(input, weight, bias)))`` as one operation for training.

    The backward pass needs the input, the weight and one byte for each pooled element. The output of the convolution
    is not kept; second derivatives compute it again.

    Parameters
    ----------
    input, weight, bias, stride, padding, dilation, groups, layout
        As in `conv2d`; the border is zero.
    pool_kernel_size, pool_stride, pool_padding
        `kernel_size`, `stride` and `padding` of `max_pool2d`; the window has at most 255 taps.

    Returns
    -------
    jax.Array, shape (N, K, P', Q'), or (N, P', Q', K) with ``layout="NHWC"``; 3-D for a 3-D input
        P' and Q' are the pooled P and Q.

    Raises
    ------
    ShapeError, TypeError, ValueError
        As `conv2d` and `max_pool2d` do.

    References
    ----------
    Those of `convx.conv2d_relu_max_pool2d`.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import convx.jax
    >>> x = jnp.array([[[1.0, -2.0, 3.0, 4.0]]])
    >>> weight = jnp.array([[[[10.0]]]])
    >>> block = lambda x: convx.jax.conv2d_relu_max_pool2d(x, weight, pool_kernel_size=(1, 2))
    >>> block(x)
    Array([[[10., 40.]]], dtype=float32)
    >>> jax.grad(lambda x: block(x).sum())(x)
    Array([[[10.,  0.,  0., 10.]]], dtype=float32)
    """
    _check_arrays("conv2d_relu_max_pool2d", input=input, weight=weight, bias=bias)
    _, conv, pool = _cpu.resolve_conv2d_relu_max_pool2d(
        input, weight, bias, stride, padding, dilation, groups, pool_kernel_size, pool_stride, pool_padding, layout
    )
    y: Array = _conv2d_relu_max_pool2d(ConvSpec(*conv), PoolSpec(*pool), input, weight, bias)
    return y


# Jitted: a call outside of jit then costs one dispatch instead of a walk through every rule (1 ms). Inlined: inside of
# jit they leave no trace.


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _conv2d(spec: ConvSpec, x: Array, weight: Array, bias: Array | None) -> Array:
    return _unbatched(x, _operations.conv2d(spec, _batched(x), weight, bias))


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _conv_transpose2d(spec: ConvSpec, size: Any, x: Array, weight: Array, bias: Array | None) -> Array:
    return _unbatched(x, _operations.conv_transpose2d(spec, size, _batched(x), weight, bias))


@functools.partial(jax.jit, inline=True)
def _relu(x: Array) -> Array:
    return _operations.relu(x)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _max_pool2d(spec: PoolSpec, return_indices: bool, x: Array) -> Any:
    if not return_indices:
        return _unbatched(x, _operations.max_pool2d(spec, _batched(x)))
    y, selection = _operations.max_pool2d_selected(spec, _batched(x))
    return _unbatched(x, y), _unbatched(x, _operations.selected_indices(spec, selection))


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _conv2d_relu_max_pool2d(conv: ConvSpec, pool: PoolSpec, x: Array, weight: Array, bias: Array | None) -> Array:
    return _unbatched(x, _operations.conv2d_relu_max_pool2d(conv, pool, _batched(x), weight, bias)[0])


def _batched(image: Array) -> Array:
    return image[None] if image.ndim == 3 else image


def _unbatched(like: Array, image: Array) -> Array:
    return image[0] if like.ndim == 3 else image


def _check_arrays(op: str, **arrays: Any) -> None:
    """Refuse all but JAX arrays on the CPU; the device of a traced array is unknown."""
    for name, array in arrays.items():
        if array is None and name == "bias":
            continue
        if not isinstance(array, jax.Array):
            what = "None" if array is None else described(type(array))
            raise TypeError(f"{op}: {name} is {what}, expected a jax.Array: pass jax.numpy.asarray({name})")
        if not all(isinstance(size, int) for size in array.shape):
            raise TypeError(
                f"{op}: {name} has the symbolic shape {array.shape}, expected sizes that are numbers: "
                "export the function once for each shape"
            )
        if isinstance(array, jax.core.Tracer):
            continue
        for device in _devices_of(array):
            if device.platform != "cpu":
                raise ValueError(
                    f"{op}: {name} is on {device}, expected the CPU, the only device of convx.jax; "
                    f"pass jax.device_put({name}, jax.devices('cpu')[0])"
                )


def _devices_of(array: Any) -> Any:
    return array.devices()
