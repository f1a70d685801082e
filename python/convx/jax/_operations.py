"""The operations on resolved problems, with their derivatives and their rules for vmap.

A convolution is three maps, each linear in both arguments: y = F(x, w), grad_input = I(g, w), grad_weight = W(g, x).
They are adjoint to each other: <F(x, w), g> = <x, I(g, w)> = <w, W(g, x)>. So the derivatives of each are the other
two, and derivatives of any order are calls of these three. F and I also add a bias; its gradient is S, the sum over all
axes but the channels. Images are 4-D here.

Every forward rule calls its own function, not the kernel, so that the derivative can be differentiated again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from ._calls import call
from ._folding import Foldable, into_batch, into_channels, out_of_batch, out_of_channels, spread, struct
from ._specs import ConvSpec, PoolSpec, Size, channel_axis, image_shape

Array: TypeAlias = jax.Array


def _like(array: Array, shape: Sequence[int]) -> Any:
    return struct(shape, array.dtype)


# conv2d


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def conv2d(conv: ConvSpec, x: Array, weight: Array, bias: Array | None) -> Array:
    """F: (x, weight, bias) -> y."""
    arrays = (x, weight) if bias is None else (x, weight, bias)
    y: Array = _forward(conv, lambda spec, *arrays: _call_conv2d(spec, arrays), arrays)
    return y


def _conv2d_forward(conv: ConvSpec, x: Array, weight: Array, bias: Array | None) -> tuple[Array, Any]:
    y = conv2d(conv, x, weight, bias)
    return y, (x, weight, bias, y if conv.activation else None)


def _conv2d_backward(conv: ConvSpec, kept: Any, g: Array) -> tuple[Any, ...]:
    x, weight, bias, y = kept
    if conv.activation:
        g = relu_backward(g, y)
    grad_weight = conv2d_grad_weight(conv._replace(activation=None), g, x)
    return conv2d_grad_input(conv.linear(), g, weight, None), grad_weight, _grad_bias(conv, g, bias)


conv2d.defvjp(_conv2d_forward, _conv2d_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def conv2d_grad_input(conv: ConvSpec, g: Array, weight: Array, bias: Array | None) -> Array:
    """I: (g, weight, bias of the input channels) -> grad_input, for a linear `conv`."""

    @Foldable
    def run(g: Array, weight: Array, *bias: Array) -> Array:
        channels = weight.shape[1] * conv.groups
        shape = image_shape(conv.layout, g.shape[0], channels, conv.input_size)
        (grad_input,) = call("conv2d_grad_input", [_like(g, shape)], (g, weight, *bias), {"conv": conv})
        return grad_input

    @run.def_vmap
    def fold(size: int, batched: list[bool], g: Array, *weights: Array) -> tuple[Array, bool]:
        axis = channel_axis(conv.layout)
        if not any(batched[1:]):
            return out_of_batch(_grad_input(conv, into_batch(g), *weights), size), True
        weight, *bias = (spread(array, size, has) for array, has in zip(weights, batched[1:], strict=True))
        if not batched[0]:
            bias = [into_channels(array, 0, conv.groups) for array in bias]
            grad_input = _grad_input(conv, g, into_channels(weight, 1), *bias)
            return out_of_channels(grad_input, axis, size, conv.groups), True
        wide, bias = conv._replace(groups=size * conv.groups), [into_channels(array, 0) for array in bias]
        grad_input = _grad_input(wide, into_channels(g, axis), into_channels(weight, 0), *bias)
        return out_of_channels(grad_input, axis, size), True

    grad_input: Array = run(g, weight) if bias is None else run(g, weight, bias)
    return grad_input


def _grad_input(conv: ConvSpec, g: Array, weight: Array, bias: Array | None = None) -> Array:
    return conv2d_grad_input(conv, g, weight, bias)


def _conv2d_grad_input_forward(conv: ConvSpec, g: Array, weight: Array, bias: Array | None) -> tuple[Array, Any]:
    return conv2d_grad_input(conv, g, weight, bias), (g, weight, bias)


def _conv2d_grad_input_backward(conv: ConvSpec, kept: Any, c: Array) -> tuple[Any, ...]:
    g, weight, bias = kept
    return conv2d(conv, c, weight, None), conv2d_grad_weight(conv, g, c), _grad_bias(conv, c, bias)


conv2d_grad_input.defvjp(_conv2d_grad_input_forward, _conv2d_grad_input_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def conv2d_grad_weight(conv: ConvSpec, g: Array, x: Array) -> Array:
    """W: (g, x) -> grad_weight."""
    axis = channel_axis(conv.layout)

    @Foldable
    def run(g: Array, x: Array) -> Array:
        shape = (g.shape[axis], x.shape[axis] // conv.groups, *conv.kernel_size)
        (grad_weight,) = call("conv2d_grad_weight", [_like(g, shape)], (g, x), {"conv": conv})
        return grad_weight

    @run.def_vmap
    def fold(size: int, batched: list[bool], g: Array, x: Array) -> tuple[Array, bool]:
        if not batched[1]:
            grad_weight = conv2d_grad_weight(conv, into_channels(g, axis, conv.groups), x)
            return out_of_channels(grad_weight, 0, size, conv.groups), True
        if not batched[0]:
            grad_weight = conv2d_grad_weight(conv, g, into_channels(x, axis, conv.groups))
            return out_of_channels(grad_weight, 1, size), True
        wide = conv._replace(groups=size * conv.groups)
        return out_of_channels(conv2d_grad_weight(wide, into_channels(g, axis), into_channels(x, axis)), 0, size), True

    grad_weight: Array = run(g, x)
    return grad_weight


def _conv2d_grad_weight_forward(conv: ConvSpec, g: Array, x: Array) -> tuple[Array, Any]:
    return conv2d_grad_weight(conv, g, x), (g, x)


def _conv2d_grad_weight_backward(conv: ConvSpec, kept: Any, c: Array) -> tuple[Any, ...]:
    g, x = kept
    return conv2d(conv, x, c, None), conv2d_grad_input(conv.linear(), g, c, None)


conv2d_grad_weight.defvjp(_conv2d_grad_weight_forward, _conv2d_grad_weight_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def conv2d_grad_bias(conv: ConvSpec, g: Array) -> Array:
    """S: g -> its sum over all axes but the channels."""
    axis = channel_axis(conv.layout)

    @Foldable
    def run(g: Array) -> Array:
        (grad_bias,) = call("conv2d_grad_bias", [_like(g, (g.shape[axis],))], (g,), {"conv": conv})
        return grad_bias

    @run.def_vmap
    def fold(size: int, batched: list[bool], g: Array) -> tuple[Array, bool]:
        return out_of_channels(conv2d_grad_bias(conv, into_channels(g, axis)), 0, size), True

    grad_bias: Array = run(g)
    return grad_bias


def _conv2d_grad_bias_forward(conv: ConvSpec, g: Array) -> tuple[Array, Array]:
    return conv2d_grad_bias(conv, g), g


def _conv2d_grad_bias_backward(conv: ConvSpec, g: Array, c: Array) -> tuple[Array]:
    return (jnp.broadcast_to(c[:, None, None] if conv.layout == "NCHW" else c, g.shape),)


conv2d_grad_bias.defvjp(_conv2d_grad_bias_forward, _conv2d_grad_bias_backward)


def _grad_bias(conv: ConvSpec, g: Array, bias: Array | None) -> Array | None:
    return None if bias is None else conv2d_grad_bias(conv, g)


def _call_conv2d(conv: ConvSpec, arrays: Sequence[Array]) -> Array:
    x, weight = arrays[:2]
    shape = image_shape(conv.layout, x.shape[0], weight.shape[0], conv.output_size)
    (y,) = call("conv2d", [_like(x, shape)], arrays, {"conv": conv})
    return y


def _forward(conv: ConvSpec, function: Callable[..., Any], arrays: Sequence[Array]) -> Any:
    """Call ``function(conv, input, weight, bias)``, whose results are images of K channels, with a rule for vmap."""

    @Foldable
    def run(*arrays: Array) -> Any:
        return function(conv, *arrays)

    @run.def_vmap
    def fold(size: int, batched: list[bool], x: Array, *weights: Array) -> tuple[Any, Any]:
        axis = channel_axis(conv.layout)
        if not any(batched[1:]):
            images = _forward(conv, function, (into_batch(x), *weights))
            images = jax.tree.map(lambda image: out_of_batch(image, size), images)
            return images, jax.tree.map(lambda _: True, images)
        spec, groups = conv, conv.groups
        if batched[0]:
            spec, groups, x = conv._replace(groups=size * conv.groups), 1, into_channels(x, axis)
        spread_weights = [spread(array, size, has) for array, has in zip(weights, batched[1:], strict=True)]
        images = _forward(spec, function, (x, *(into_channels(array, 0, groups) for array in spread_weights)))
        images = jax.tree.map(lambda image: out_of_channels(image, axis, size, groups), images)
        return images, jax.tree.map(lambda _: True, images)

    return run(*arrays)


def conv_transpose2d(conv: ConvSpec, size: Size, x: Array, weight: Array, bias: Array | None) -> Array:
    """Compute I(x, weight, bias), extended to `size` by pixels that no window reaches: the bias alone."""
    if conv.input_size == size and x.shape[channel_axis(conv.layout)] > 0:
        return conv2d_grad_input(conv, x, weight, bias)
    channels = weight.shape[1] * conv.groups
    if x.size and min(conv.input_size) > 0:
        y = conv2d_grad_input(conv, x, weight, None)
        behind = [(0, n - reached) for n, reached in zip(size, conv.input_size, strict=True)]
        none = (0, 0)
        y = jnp.pad(y, [none, none, *behind] if conv.layout == "NCHW" else [none, *behind, none])
    else:
        y = jnp.zeros(image_shape(conv.layout, x.shape[0], channels, size), x.dtype)
    if bias is None:
        return y
    return y + (bias[:, None, None] if conv.layout == "NCHW" else bias)


# relu


@jax.custom_vjp
def relu(x: Array) -> Array:
    """Compute ReLU of an array of any shape."""
    return _elementwise("relu", x)


def _relu_forward(x: Array) -> tuple[Array, Array]:
    y = relu(x)
    return y, y


def _relu_backward(y: Array, g: Array) -> tuple[Array]:
    return (relu_backward(g, y),)


relu.defvjp(_relu_forward, _relu_backward)


@jax.custom_vjp
def relu_backward(g: Array, y: Array) -> Array:
    """Compute ``0 if y <= 0 else g``: linear in g, with zero derivative in y."""
    return _elementwise("relu_backward", g, y)


def _relu_backward_forward(g: Array, y: Array) -> tuple[Array, Array]:
    return relu_backward(g, y), y


def _relu_backward_backward(y: Array, c: Array) -> tuple[Array, None]:
    return relu_backward(c, y), None


relu_backward.defvjp(_relu_backward_forward, _relu_backward_backward)


def _elementwise(name: str, *arrays: Array) -> Array:
    @Foldable
    def run(*arrays: Array) -> Array:
        (result,) = call(name, [_like(arrays[0], arrays[0].shape)], arrays, {})
        return result

    @run.def_vmap
    def fold(size: int, batched: list[bool], *arrays: Array) -> tuple[Array, bool]:
        return _elementwise(name, *(spread(array, size, has) for array, has in zip(arrays, batched, strict=True))), True

    result: Array = run(*arrays)
    return result


# max_pool2d


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def max_pool2d(pool: PoolSpec, x: Array) -> Array:
    """Compute the maxima without codes."""
    return _call_max_pool2d(pool, x, False)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def max_pool2d_selected(pool: PoolSpec, x: Array) -> tuple[Array, Array]:
    """Compute the maxima and their argmax codes; for windows of over 255 taps int64 indices, as pairs of uint32."""
    y, selection = _call_max_pool2d(pool, x, True)
    return y, selection


def _max_pool2d_forward(pool: PoolSpec, x: Array) -> tuple[Array, Array]:
    return max_pool2d_selected(pool, x)


def _max_pool2d_backward(pool: PoolSpec, selection: Array, g: Array) -> tuple[Array]:
    return (max_pool2d_backward(pool, g, selection),)


def _max_pool2d_selected_forward(pool: PoolSpec, x: Array) -> tuple[tuple[Array, Array], Array]:
    y, selection = max_pool2d_selected(pool, x)
    return (y, selection), selection


def _max_pool2d_selected_backward(pool: PoolSpec, selection: Array, cotangents: Any) -> tuple[Array]:
    return (max_pool2d_backward(pool, cotangents[0], selection),)


max_pool2d.defvjp(_max_pool2d_forward, _max_pool2d_backward)
max_pool2d_selected.defvjp(_max_pool2d_selected_forward, _max_pool2d_selected_backward)


def _call_max_pool2d(pool: PoolSpec, x: Array, want: bool) -> tuple[Array, ...]:
    @Foldable
    def run(x: Array) -> tuple[Array, ...]:
        shape = image_shape(pool.layout, x.shape[0], x.shape[channel_axis(pool.layout)], pool.output_size)
        selection = struct(shape, jnp.uint8) if pool.has_codes() else struct((*shape, 2), jnp.uint32)
        return call("max_pool2d", [_like(x, shape), selection][: 1 + want], (x,), {"pool": pool})

    @run.def_vmap
    def fold(size: int, batched: list[bool], x: Array) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
        results = tuple(out_of_batch(result, size) for result in _call_max_pool2d(pool, into_batch(x), want))
        return results, (True,) * len(results)

    found: tuple[Array, ...] = run(x)
    return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def max_pool2d_backward(pool: PoolSpec, g: Array, selection: Array) -> Array:
    """Add g to the selected pixels: linear in g."""

    @Foldable
    def run(g: Array, selection: Array) -> Array:
        shape = image_shape(pool.layout, g.shape[0], g.shape[channel_axis(pool.layout)], pool.input_size)
        (grad_input,) = call("max_pool2d_backward", [_like(g, shape)], (g, selection), {"pool": pool})
        return grad_input

    @run.def_vmap
    def fold(size: int, batched: list[bool], *arrays: Array) -> tuple[Array, bool]:
        g, selection = (into_batch(spread(array, size, has)) for array, has in zip(arrays, batched, strict=True))
        return out_of_batch(max_pool2d_backward(pool, g, selection), size), True

    grad_input: Array = run(g, selection)
    return grad_input


def _max_pool2d_backward_forward(pool: PoolSpec, g: Array, selection: Array) -> tuple[Array, Array]:
    return max_pool2d_backward(pool, g, selection), selection


def _max_pool2d_backward_backward(pool: PoolSpec, selection: Array, c: Array) -> tuple[Array, None]:
    return gather_selected(pool, c, selection), None


max_pool2d_backward.defvjp(_max_pool2d_backward_forward, _max_pool2d_backward_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gather_selected(pool: PoolSpec, x: Array, selection: Array) -> Array:
    """Gather the selected pixels, 0 where a window has none: the adjoint of `max_pool2d_backward`."""
    indices = selected_indices(pool, selection)
    (h, w), channels_last = pool.input_size, pool.layout == "NHWC"
    axis = 1 if channels_last else 2

    def as_planes(array: Array, size: int) -> Array:
        n, c = array.shape[0], array.shape[channel_axis(pool.layout)]
        return array.reshape((n, size, c) if channels_last else (n, c, size))

    p, q = pool.output_size
    found = jnp.take_along_axis(as_planes(x, h * w), as_planes(jnp.maximum(indices, 0), p * q), axis=axis)
    return jnp.where(indices >= 0, found.reshape(indices.shape), 0)


def _gather_selected_forward(pool: PoolSpec, x: Array, selection: Array) -> tuple[Array, Array]:
    return gather_selected(pool, x, selection), selection


def _gather_selected_backward(pool: PoolSpec, selection: Array, c: Array) -> tuple[Array, None]:
    return max_pool2d_backward(pool, c, selection), None


gather_selected.defvjp(_gather_selected_forward, _gather_selected_backward)


def selected_indices(pool: PoolSpec, selection: Array) -> Array:
    """Return the selected pixels as indices ``h*W + w``, -1 for none: int64 in JAX's 64-bit mode, otherwise int32."""
    integer = jax.dtypes.canonicalize_dtype(jnp.int64)
    if not pool.has_codes():
        return jax.lax.bitcast_convert_type(selection if integer == jnp.int64 else selection[..., 0], integer)
    code = selection.astype(integer)
    rows, columns = (2, 3) if pool.layout == "NCHW" else (1, 2)

    def position(tap: Array, axis: int, along: int) -> Array:
        window = jax.lax.broadcasted_iota(integer, code.shape, axis)
        return window * pool.stride[along] - pool.padding[along][0] + tap * pool.dilation[along]

    h = position(code // pool.kernel_size[1], rows, 0)
    w = position(code % pool.kernel_size[1], columns, 1)
    return jnp.where(code == 255, -1, h * pool.input_size[1] + w)


# conv2d_relu_max_pool2d. Its two gradients are separate calls, so that XLA drops the one that is not used. One call for
# both would scatter the gradient over the windows once instead of twice; that made no measurable difference.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def conv2d_relu_max_pool2d(
    conv: ConvSpec, pool: PoolSpec, x: Array, weight: Array, bias: Array | None
) -> tuple[Array, Array]:
    """Compute the fused block: (output, argmax codes)."""

    def run(spec: ConvSpec, x: Array, *weights: Array) -> tuple[Array, ...]:
        shape = image_shape(spec.layout, x.shape[0], weights[0].shape[0], pool.output_size)
        results = [_like(x, shape), struct(shape, jnp.uint8)]
        return call("conv2d_relu_max_pool2d", results, (x, *weights), {"conv": spec, "pool": pool})

    y, codes = _forward(conv, run, (x, weight) if bias is None else (x, weight, bias))
    return y, codes


def _conv2d_relu_max_pool2d_forward(
    conv: ConvSpec, pool: PoolSpec, x: Array, weight: Array, bias: Array | None
) -> tuple[Any, Any]:
    y, codes = conv2d_relu_max_pool2d(conv, pool, x, weight, bias)
    return (y, codes), (x, weight, bias, codes)


def _conv2d_relu_max_pool2d_backward(conv: ConvSpec, pool: PoolSpec, kept: Any, cotangents: Any) -> tuple[Any, ...]:
    x, weight, bias, codes = kept
    g, plain = cotangents[0], conv.linear()
    grad_weight, grad_bias = fused_grad_weight(plain, pool, bias is not None, g, x, codes)
    return fused_grad_input(plain, pool, g, weight, codes), grad_weight, grad_bias


conv2d_relu_max_pool2d.defvjp(_conv2d_relu_max_pool2d_forward, _conv2d_relu_max_pool2d_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def fused_grad_input(conv: ConvSpec, pool: PoolSpec, g: Array, weight: Array, codes: Array) -> Array:
    """Compute I(U(g), weight), where U scatters the gradient over the windows (0 where the ReLU is dead)."""
    axis = channel_axis(conv.layout)

    @Foldable
    def run(g: Array, weight: Array, codes: Array) -> Array:
        shape = image_shape(conv.layout, g.shape[0], weight.shape[1] * conv.groups, conv.input_size)
        specs: dict[str, ConvSpec | PoolSpec] = {"conv": conv, "pool": pool}
        (grad_input,) = call("conv2d_relu_max_pool2d_grad_input", [_like(g, shape)], (g, weight, codes), specs)
        return grad_input

    @run.def_vmap
    def fold(size: int, batched: list[bool], g: Array, weight: Array, codes: Array) -> tuple[Array, bool]:
        g, codes = spread(g, size, batched[0]), spread(codes, size, batched[2])
        if not batched[1]:
            return out_of_batch(fused_grad_input(conv, pool, into_batch(g), weight, into_batch(codes)), size), True
        wide = conv._replace(groups=size * conv.groups)
        images = (into_channels(g, axis), into_channels(weight, 0), into_channels(codes, axis))
        return out_of_channels(fused_grad_input(wide, pool, *images), axis, size), True

    grad_input: Array = run(g, weight, codes)
    return grad_input


def _fused_grad_input_forward(
    conv: ConvSpec, pool: PoolSpec, g: Array, weight: Array, codes: Array
) -> tuple[Array, Any]:
    return fused_grad_input(conv, pool, g, weight, codes), (g, weight, codes)


def _fused_grad_input_backward(conv: ConvSpec, pool: PoolSpec, kept: Any, c: Array) -> tuple[Any, ...]:
    g, weight, codes = kept
    grad_weight = conv2d_grad_weight(conv, max_pool2d_backward(pool, g, codes), c)
    return gather_selected(pool, conv2d(conv, c, weight, None), codes), grad_weight, None


fused_grad_input.defvjp(_fused_grad_input_forward, _fused_grad_input_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def fused_grad_weight(
    conv: ConvSpec, pool: PoolSpec, biased: bool, g: Array, x: Array, codes: Array
) -> tuple[Array, Array | None]:
    """Compute W(U(g), x): (grad_weight, grad_bias or None)."""
    axis = channel_axis(conv.layout)

    @Foldable
    def run(g: Array, x: Array, codes: Array) -> tuple[Array, ...]:
        channels = g.shape[axis]
        shapes = [(channels, x.shape[axis] // conv.groups, *conv.kernel_size), (channels,)]
        specs: dict[str, ConvSpec | PoolSpec] = {"conv": conv, "pool": pool}
        results = [_like(g, shape) for shape in shapes[: 1 + biased]]
        return call("conv2d_relu_max_pool2d_grad_weight", results, (g, x, codes), specs)

    @run.def_vmap
    def fold(size: int, batched: list[bool], *arrays: Array) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
        wide = conv._replace(groups=size * conv.groups)
        images = (into_channels(spread(a, size, has), axis) for a, has in zip(arrays, batched, strict=True))
        gradients = fused_grad_weight(wide, pool, biased, *images)
        folded = tuple(out_of_channels(gradient, 0, size) for gradient in gradients if gradient is not None)
        return folded, (True,) * len(folded)

    results = run(g, x, codes)
    return results[0], results[1] if biased else None


def _fused_grad_weight_forward(
    conv: ConvSpec, pool: PoolSpec, biased: bool, g: Array, x: Array, codes: Array
) -> tuple[Any, Any]:
    return fused_grad_weight(conv, pool, biased, g, x, codes), (g, x, codes)


def _fused_grad_weight_backward(
    conv: ConvSpec, pool: PoolSpec, biased: bool, kept: Any, cotangents: Any
) -> tuple[Any, ...]:
    g, x, codes = kept
    weight, bias = cotangents
    grad_input = conv2d_grad_input(conv, max_pool2d_backward(pool, g, codes), weight, None)
    return gather_selected(pool, conv2d(conv, x, weight, bias), codes), grad_input, None


fused_grad_weight.defvjp(_fused_grad_weight_forward, _fused_grad_weight_backward)
