"""An axis of vmap, folded into the axes that the kernels have: one call instead of many.

Folding into the batch is free. Folding into channels moves the axis beside them, a copy, free too where it meets no
other axis on its way, as with images one by one in NCHW.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


class Foldable:
    """A function whose calls under vmap are folded into one, by a rule as `custom_vmap.def_vmap` takes it.

    An axis of length 0 is not folded: no call is made, since no kernel has zero channels. As `custom_vmap` does, it
    takes and gives arrays, or tuples of them.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._run: Any = custom_vmap(function)

    def __call__(self, *arrays: jax.Array) -> Any:
        return self._run(*arrays)

    def def_vmap(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Set the rule: ``rule(size, batched, *arrays)`` gives the results and whether each has the axis."""

        def fold(size: int, batched: list[bool], *arrays: jax.Array) -> Any:
            if size > 0:
                return rule(size, batched, *arrays)
            singles = (a.shape[1:] if has else a.shape for a, has in zip(arrays, batched, strict=True))
            structs = (struct(shape, a.dtype) for shape, a in zip(singles, arrays, strict=True))
            results = jax.eval_shape(self._function, *structs)
            empty = jax.tree.map(lambda result: jnp.zeros((0, *result.shape), result.dtype), results)
            return empty, jax.tree.map(lambda _: True, empty)

        self._run.def_vmap(fold)
        return rule


def struct(shape: Any, dtype: Any) -> Any:
    """Return the shape and dtype of an array, without one."""
    untyped: Any = jax.ShapeDtypeStruct
    return untyped(tuple(shape), dtype)


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
