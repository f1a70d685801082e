"""
Handwritten digits in JAX
=========================

A training loop in JAX with convx's convolution, ReLU and pooling: `jax.value_and_grad` differentiates them, and
`jax.jit` compiles them into the step. The data are the 1797 digits of 8 x 8 pixels that come with scikit-learn.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import convx.jax

EPOCHS, BATCH, RATE, MOMENTUM = 15, 64, 0.05, 0.9
HELD_OUT = 360

# %%
# Data and parameters
# -------------------
# Two convolutions and a linear layer, with weights of He's variance and zero biases.

rng = np.random.default_rng(0)
digits = load_digits()
order = rng.permutation(len(digits.target))
images = (digits.images[order, None] / 16).astype(np.float32)  # (N, 1, 8, 8), from 0 to 1
labels = digits.target[order]
test_images, test_labels = jnp.asarray(images[:HELD_OUT]), labels[:HELD_OUT]
train_images, train_labels = images[HELD_OUT:], labels[HELD_OUT:]

shapes = {"conv1": (16, 1, 3, 3), "conv2": (32, 16, 3, 3), "linear": (32 * 2 * 2, 10)}
fan_in = {"conv1": 9, "conv2": 16 * 9, "linear": 32 * 2 * 2}
parameters = {}
for name, shape in shapes.items():
    parameters[name] = jnp.asarray(np.sqrt(2 / fan_in[name]) * rng.standard_normal(shape), jnp.float32)
    parameters[f"{name}.bias"] = jnp.zeros(10 if name == "linear" else shape[0])

# %%
# The network and one step
# ------------------------
# `convx.jax.conv2d_relu_max_pool2d` is convolution, ReLU and pooling as one operation. The gradient of the images is
# not used, so XLA drops its call from the compiled step.


def scores_of(p, x):
    """Return the scores of the ten classes, shape (N, 10)."""
    x = convx.jax.conv2d_relu_max_pool2d(x, p["conv1"], p["conv1.bias"], padding=1, pool_kernel_size=2)
    x = convx.jax.conv2d_relu_max_pool2d(x, p["conv2"], p["conv2.bias"], padding=1, pool_kernel_size=2)
    return x.reshape(len(x), -1) @ p["linear"] + p["linear.bias"]


def loss_of(p, x, labels):
    """Return the mean cross-entropy."""
    return -jnp.take_along_axis(jax.nn.log_softmax(scores_of(p, x)), labels[:, None], axis=1).mean()


@jax.jit
def step(p, velocity, x, labels, rate):
    """Take one step of SGD with momentum."""
    loss, grads = jax.value_and_grad(loss_of)(p, x, labels)
    velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, grads)
    return loss, jax.tree.map(lambda a, v: a - rate * v, p, velocity), velocity


# %%
# The loop
# --------

velocity = jax.tree.map(jnp.zeros_like, parameters)
losses, accuracies = [], []
for epoch in range(EPOCHS):
    rate = RATE * 0.5 * (1 + np.cos(np.pi * epoch / EPOCHS))
    order = rng.permutation(len(train_labels))
    for first in range(0, len(order) - BATCH + 1, BATCH):  # full batches: another size compiles again
        batch = order[first : first + BATCH]
        loss, parameters, velocity = step(parameters, velocity, train_images[batch], train_labels[batch], rate)
        losses.append(float(loss))
    accuracies.append(float((scores_of(parameters, test_images).argmax(axis=1) == test_labels).mean()))
print(f"{accuracies[-1]:.1%} of {HELD_OUT} held-out digits are read correctly")

# %%
# Loss and accuracy
# -----------------

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
axes[0].semilogy(losses, linewidth=0.8)
axes[0].set(title="Training loss", xlabel="step", ylabel="cross-entropy")
axes[1].plot(range(1, EPOCHS + 1), 100 * np.array(accuracies), marker="o", markersize=3)
axes[1].set(title="Held-out digits", xlabel="epoch", ylabel="read correctly, %")
for axis in axes:
    axis.grid(alpha=0.3)
plt.show()
