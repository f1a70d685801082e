"""An axis of vmap, folded into the axes that the kernels have: one call instead of many.

Folding into the batch is free. Folding into channels moves the axis beside them, a copy, free too where it meets no
other axis on its way, as with images one by one in NCHW.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def into_batch(array: jax.Array) -> jax.Array:
    """Turn (B, N, ...) into (B*N, ...)."""
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])


def out_of_batch(array: jax.Array, size: int) -> jax.Array:
    """Turn (B*N, ...) into (B, N, ...)."""
    return array.reshape(size, array.shape[0] // size, *array.shape[1:])


def into_channels(array: jax.Array, axis: int, groups: int = 1) -> jax.Array:
    """Turn (B, ..., C, ...) into (..., G*B*C/G, ...): every group has the B parts of its channels side by side.

    `axis` is the one of the channels without B.
    """
    size, shape = array.shape[0], array.shape[1:]
    apart = array.reshape(size, *shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])
    return jnp.moveaxis(apart, 0, axis + 1).reshape(*shape[:axis], size * shape[axis], *shape[axis + 1 :])


def out_of_channels(array: jax.Array, axis: int, size: int, groups: int = 1) -> jax.Array:
    """Undo `into_channels`."""
    shape = array.shape
    channels = shape[axis] // size
    apart = array.reshape(*shape[:axis], groups, size, channels // groups, *shape[axis + 1 :])
    return jnp.moveaxis(apart, axis + 1, 0).reshape(size, *shape[:axis], channels, *shape[axis + 1 :])


def spread(array: jax.Array, size: int, batched: bool) -> jax.Array:
    """Return `array` with the axis of vmap in front, repeated where it has none."""
    return array if batched else jnp.broadcast_to(array, (size, *array.shape))
