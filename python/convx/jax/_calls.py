"""One compiled operation as a node of a JAX program: an XLA FFI call or a Python callback.

`convx._jax` has the handlers that XLA calls directly. Without it (not built, or refused by this jaxlib), XLA calls
Python, and Python calls the functions for NumPy arrays.
"""

from __future__ import annotations

import functools
import importlib.metadata
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .. import _cpu, ops
from ._specs import ConvSpec, PoolSpec, channel_axis

_HOW_TO_BUILD = "install it from source with CONVX_JAX=ON in the environment (README.md, section JAX)"


@functools.cache
def slow_reason() -> str | None:
    """Register the handlers; return why calls go through Python, None where XLA calls convx directly."""
    try:
        from .. import _jax
    except ImportError as error:
        return f"convx was built without its module _jax ({error}); {_HOW_TO_BUILD}"
    try:
        for name, handler in _jax.handlers.items():
            jax.ffi.register_ffi_target(f"convx.{name}", handler, platform="cpu")
    except Exception as error:  # jaxlib raises a class of its own
        version, installed = ".".join(map(str, _jax.ffi_api_version)), importlib.metadata.version("jaxlib")
        return (
            f"convx._jax was built for version {version} of XLA's foreign function interface, which the installed "
            f"jaxlib {installed} does not load: install a newer jaxlib, or build convx with the headers of this one "
            f"(CONVX_JAX_INCLUDE); jaxlib's error: {error}"
        )
    return None


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(
        f"convx.jax goes through jax.pure_callback, 100 us and more a call: {reason}",
        RuntimeWarning,
        stacklevel=2,
    )


def call(
    name: str,
    results: Sequence[jax.ShapeDtypeStruct],
    arrays: Sequence[jax.Array],
    specs: Mapping[str, ConvSpec | PoolSpec],
) -> tuple[jax.Array, ...]:
    """Add the operation `name` to the traced program; `specs` has the options under "conv" and "pool"."""
    if reason := slow_reason():
        _warn_once(reason)
        function = functools.partial(_FUNCTIONS[name], [result.shape for result in results], **specs)
        return tuple(jax.pure_callback(functools.partial(_on_numpy, function), list(results), *arrays))
    attributes = {name: value for spec in specs.values() for name, value in _attributes(spec, len(specs) > 1).items()}
    return tuple(jax.ffi.ffi_call(f"convx.{name}", list(results))(*arrays, **attributes))


def _attributes(spec: ConvSpec | PoolSpec, fused: bool) -> dict[str, Any]:
    """Return the attributes that csrc/bindings/jax_calls.cpp reads."""

    def numbers(*values: int) -> Any:
        return np.array(values, np.int64)

    window = {
        "stride": numbers(*spec.stride),
        "padding": numbers(*spec.padding[0], *spec.padding[1]),
        "dilation": numbers(*spec.dilation),
    }
    channels_last = {"channels_last": spec.layout == "NHWC"}
    if isinstance(spec, PoolSpec):
        window |= {"kernel_size": numbers(*spec.kernel_size), "ceil_mode": spec.ceil_mode}
        return {f"pool_{name}" if fused else name: value for name, value in window.items()} | channels_last
    return window | channels_last | {
        "groups": np.int64(spec.groups),
        "padding_mode_h": spec.padding_mode[0],
        "padding_mode_w": spec.padding_mode[1],
        "padding_value": np.float64(spec.padding_value),
        "relu": spec.activation == "relu",
        "algorithm": spec.algorithm,
    }  # fmt: skip


# The functions behind the callbacks: NumPy arrays in, results in the order of the handlers of convx._jax.


def _on_numpy(function: Callable[..., tuple[Any, ...]], *arrays: Any) -> list[Any]:
    return list(function(*map(np.asarray, arrays)))


def _nothing_of(shape: Sequence[int], like: Any) -> Any:
    """Return an array of zeros without memory of its own, for an argument of which only the shape is read."""
    return np.broadcast_to(np.zeros((), like.dtype), shape)


def _border(conv: ConvSpec) -> dict[str, Any]:
    names = ("padding_mode", "padding_value", "layout", "algorithm")
    return {name: getattr(conv, name) for name in names}


def _conv2d(_: Any, x: Any, weight: Any, bias: Any = None, *, conv: ConvSpec) -> tuple[Any, ...]:
    window = (conv.stride, conv.padding, conv.dilation, conv.groups)
    return (ops.conv2d(x, weight, bias, *window, activation=conv.activation, **_border(conv)),)


def _conv2d_backward(g: Any, x: Any, weight: Any, conv: ConvSpec, mask: tuple[bool, bool, bool]) -> tuple[Any, ...]:
    window = (conv.stride, conv.padding, conv.dilation, conv.groups)
    gradients = ops.conv2d_backward(g, x, weight, *window, **_border(conv), output_mask=mask)
    return tuple(gradient for gradient in gradients if gradient is not None)


def _conv2d_grad_input(shapes: Any, g: Any, weight: Any, bias: Any = None, *, conv: ConvSpec) -> tuple[Any, ...]:
    if bias is None:
        return _conv2d_backward(g, _nothing_of(shapes[0], g), weight, conv, (True, False, False))
    # The output padding: the rows and columns of the padded input that no window reaches.
    sizes = zip(conv.input_size, conv.padding, conv.kernel_size, conv.stride, conv.dilation, strict=True)
    rows, columns = ((n + sum(sides) - d * (k - 1) - 1) % s for n, sides, k, s, d in sizes)
    options = (conv.stride, conv.padding, (rows, columns), conv.groups, conv.dilation, conv.layout, conv.algorithm)
    return (_cpu.conv_transpose2d(g, weight, bias, *options, None),)


def _conv2d_grad_weight(shapes: Any, g: Any, x: Any, *, conv: ConvSpec) -> tuple[Any, ...]:
    return _conv2d_backward(g, x, _nothing_of(shapes[0], g), conv, (False, True, False))


def _conv2d_grad_bias(_: Any, g: Any, *, conv: ConvSpec) -> tuple[Any, ...]:
    # The bias gradient of a 1x1 convolution with this output and an input of zero channels.
    none = (g.shape[0], 0, *g.shape[2:]) if conv.layout == "NCHW" else (*g.shape[:3], 0)
    weight = np.empty((g.shape[channel_axis(conv.layout)], 0, 1, 1), g.dtype)
    mask = (False, False, True)
    return (ops.conv2d_backward(g, np.empty(none, g.dtype), weight, layout=conv.layout, output_mask=mask)[2],)


def _relu(_: Any, x: Any) -> tuple[Any, ...]:
    return (ops.relu(x),)


def _relu_backward(_: Any, g: Any, y: Any) -> tuple[Any, ...]:
    return (ops.relu_backward(g, y),)


def _max_pool2d(shapes: Any, x: Any, *, pool: PoolSpec) -> tuple[Any, ...]:
    want = len(shapes) > 1
    result = _cpu.max_pool2d(
        x,
        pool.kernel_size,
        pool.stride,
        pool.padding,
        pool.dilation,
        pool.ceil_mode,
        pool.layout,
        want and not pool.has_codes(),
        want and pool.has_codes(),
    )
    if not isinstance(result, tuple):
        return (result,)
    y, selection = result
    return (y, selection if pool.has_codes() else selection.view(np.uint32).reshape(shapes[1]))


def _max_pool2d_backward(shapes: Any, g: Any, selection: Any, *, pool: PoolSpec) -> tuple[Any, ...]:
    if not pool.has_codes():
        selection = np.ascontiguousarray(selection).view(np.int64).reshape(g.shape)
    return (
        ops.max_pool2d_backward(
            g,
            selection,
            shapes[0],
            pool.kernel_size,
            pool.stride,
            pool.padding,
            dilation=pool.dilation,
            ceil_mode=pool.ceil_mode,
            layout=pool.layout,
        ),
    )


def _fused_options(conv: ConvSpec, pool: PoolSpec) -> tuple[Any, Any, Any, Any, Any, Any, Any, Any]:
    window = (conv.stride, conv.padding, conv.dilation, conv.groups)
    return (*window, pool.kernel_size, pool.stride, pool.padding, pool.layout)


def _conv2d_relu_max_pool2d(
    _: Any, x: Any, weight: Any, bias: Any = None, *, conv: ConvSpec, pool: PoolSpec
) -> tuple[Any, ...]:
    return _cpu.conv2d_relu_max_pool2d(x, weight, bias, *_fused_options(conv, pool))


def _fused_backward(
    g: Any, x: Any, weight: Any, codes: Any, conv: ConvSpec, pool: PoolSpec, mask: tuple[bool, bool, bool]
) -> tuple[Any, ...]:
    gradients = _cpu.conv2d_relu_max_pool2d_backward(g, x, weight, codes, *_fused_options(conv, pool), mask)
    return tuple(gradient for gradient in gradients if gradient is not None)


def _fused_grad_input(
    shapes: Any, g: Any, weight: Any, codes: Any, *, conv: ConvSpec, pool: PoolSpec
) -> tuple[Any, ...]:
    return _fused_backward(g, _nothing_of(shapes[0], g), weight, codes, conv, pool, (True, False, False))


def _fused_grad_weight(shapes: Any, g: Any, x: Any, codes: Any, *, conv: ConvSpec, pool: PoolSpec) -> tuple[Any, ...]:
    return _fused_backward(g, x, _nothing_of(shapes[0], g), codes, conv, pool, (False, True, len(shapes) > 1))


_FUNCTIONS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "conv2d": _conv2d,
    "conv2d_grad_input": _conv2d_grad_input,
    "conv2d_grad_weight": _conv2d_grad_weight,
    "conv2d_grad_bias": _conv2d_grad_bias,
    "relu": _relu,
    "relu_backward": _relu_backward,
    "max_pool2d": _max_pool2d,
    "max_pool2d_backward": _max_pool2d_backward,
    "conv2d_relu_max_pool2d": _conv2d_relu_max_pool2d,
    "conv2d_relu_max_pool2d_grad_input": _fused_grad_input,
    "conv2d_relu_max_pool2d_grad_weight": _fused_grad_weight,
}
