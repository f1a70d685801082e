"""convx in JAX programs: the operations over JAX arrays on the CPU, under ``jit``, ``grad`` and ``vmap``.

The functions have the names, arguments and results of those in `convx`, without `out` and `precision`. XLA calls the
kernels directly where convx was built with its module ``_jax``. Otherwise it calls them through ``jax.pure_callback``
(100 us and more a call), and a warning says so once.

>>> import jax
>>> import jax.numpy as jnp
>>> import convx.jax
>>> images, weight = jnp.ones((8, 3, 32, 32)), jnp.ones((16, 3, 3, 3))
>>> def loss(weight):
...     features = convx.jax.conv2d(images, weight, padding=1, activation="relu")
...     return convx.jax.max_pool2d(features, 2).mean()
>>> jax.jit(jax.grad(loss))(weight).shape
(16, 3, 3, 3)

Gradients of any order work in reverse mode (``jax.grad`` of ``jax.grad``). Forward mode (``jax.jvp``, ``jax.jacfwd``,
``jax.hessian``) raises JAX's TypeError for functions with a custom reverse mode; ``jax.jacrev(jax.jacrev(f))`` is the
Hessian. ``jax.vmap`` makes one call of a kernel: the mapped axis is folded into the batch where only the images have
it, otherwise into channels and groups.
"""

from .functions import conv2d, conv2d_relu_max_pool2d, conv_transpose2d, max_pool2d, relu

__all__ = ["conv2d", "conv2d_relu_max_pool2d", "conv_transpose2d", "max_pool2d", "relu"]
