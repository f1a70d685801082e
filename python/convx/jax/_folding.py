"""The mapped axis of vmap, folded into the batch or the channels of one call.

Folding into the batch is free. Folding into channels copies, since the mapped axis moves beside the channels; it is
free where no axis lies between the two (NCHW, one image at a time).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


class Foldable:
    """A function with a rule that folds its calls under vmap into one, in the form of `custom_vmap.def_vmap`.

    It takes and returns arrays or tuples of them. A mapped axis of length 0 gives empty results without a call, since
    no kernel has zero channels.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._run: Any = custom_vmap(function)

    def __call__(self, *arrays: jax.Array) -> Any:
        return self._run(*arrays)

    def def_vmap(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Set the rule: ``rule(size, batched, *arrays)`` returns the results, and which of them are batched."""

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
    """Return a shape and a dtype as a `jax.ShapeDtypeStruct`."""
    untyped: Any = jax.ShapeDtypeStruct
    return untyped(tuple(shape), dtype)


def into_batch(array: jax.Array) -> jax.Array:
    """Turn (B, N, ...) into (B*N, ...)."""
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])


def out_of_batch(array: jax.Array, size: int) -> jax.Array:
    """Turn (B*N, ...) into (B, N, ...)."""
    return array.reshape(size, array.shape[0] // size, *array.shape[1:])


def into_channels(array: jax.Array, axis: int, groups: int = 1) -> jax.Array:
    """Turn (B, ..., C, ...) into (..., G*B*C/G, ...): group by group, the B slices of its channels are adjacent.

    `axis` is the channel axis of an array without B.
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
    """Return `array` with the mapped axis in front, broadcast where it has none."""
    return array if batched else jnp.broadcast_to(array, (size, *array.shape))
