"""convx in JAX programs: the operations over JAX arrays on the CPU, under ``jit``, ``grad`` and ``vmap``.

The functions have the names, arguments and results of those in `convx`, without `out` and `precision`. XLA calls the
kernels directly, where convx was built with its module ``_jax``; otherwise through ``jax.pure_callback``, which takes
100 us and more for every call, and a warning says so once.

>>> import jax
>>> import jax.numpy as jnp
>>> import convx.jax
>>> images, weight = jnp.ones((8, 3, 32, 32)), jnp.ones((16, 3, 3, 3))
>>> def loss(weight):
...     features = convx.jax.conv2d(images, weight, padding=1, activation="relu")
...     return convx.jax.max_pool2d(features, 2).mean()
>>> jax.jit(jax.grad(loss))(weight).shape
(16, 3, 3, 3)

Gradients of any order work in reverse mode, ``jax.grad`` of ``jax.grad``. Forward mode (``jax.jvp``, ``jax.jacfwd``,
``jax.hessian``) raises JAX's TypeError for functions with rules for reverse mode: ``jax.jacrev(jax.jacrev(f))`` is the
Hessian. An axis of ``jax.vmap`` is folded into the batch where it is the images' alone, otherwise into channels and
groups: one call of a kernel either way.
"""

from .functions import conv2d, conv2d_relu_max_pool2d, conv_transpose2d, max_pool2d, relu

__all__ = ["conv2d", "conv2d_relu_max_pool2d", "conv_transpose2d", "max_pool2d", "relu"]
