"""
Handwritten digits in a NumPy training loop
===========================================

Forward, backward and SGD in NumPy, with convx's functions for convolution and pooling: no layers, no tape, no
framework. The data are the 1797 digits of 8 x 8 pixels that come with scikit-learn.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import convx

EPOCHS, BATCH, RATE, MOMENTUM = 20, 64, 0.05, 0.9
HELD_OUT = 360

# %%
# Data and parameters
# -------------------
# Two convolutions and a linear layer, with weights of He's variance and zero biases in a dictionary.

rng = np.random.default_rng(0)
digits = load_digits()
order = rng.permutation(len(digits.target))
images = (digits.images[order, None] / 16).astype(np.float32)  # (N, 1, 8, 8), from 0 to 1
labels = digits.target[order]
test_images, test_labels = images[:HELD_OUT], labels[:HELD_OUT]
train_images, train_labels = images[HELD_OUT:], labels[HELD_OUT:]

shapes = {"conv1": (16, 1, 3, 3), "conv2": (32, 16, 3, 3), "linear": (10, 32 * 2 * 2)}
parameters = {}
for name, shape in shapes.items():
    scale = np.sqrt(2 / np.prod(shape[1:]))
    parameters[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
    parameters[f"{name}.bias"] = np.zeros(shape[0], np.float32)

# %%
# Forward and backward
# --------------------
# `convx.conv2d_relu_max_pool2d` is convolution, ReLU and pooling as one operation. For its backward pass it keeps the
# input, the weight and one byte for each pooled element.


def forward(p, x):
    """Return the scores of the ten classes, and the saved arrays for the backward pass."""
    sizes = dict(padding=1, pool_kernel_size=2)
    pooled1, saved1 = convx.conv2d_relu_max_pool2d(x, p["conv1"], p["conv1.bias"], **sizes)
    pooled2, saved2 = convx.conv2d_relu_max_pool2d(pooled1, p["conv2"], p["conv2.bias"], **sizes)
    flat = pooled2.reshape(len(x), -1)
    return flat @ p["linear"].T + p["linear.bias"], (saved1, saved2, flat)


def cross_entropy(scores, labels):
    """Return the mean loss and its gradient with respect to the scores."""
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = -np.log(probabilities[rows, labels]).mean()
    probabilities[rows, labels] -= 1
    return loss, probabilities / len(labels)


def backward(p, grad_scores, kept):
    """Return the gradient of every parameter."""
    saved1, saved2, flat = kept
    grad_pooled2 = (grad_scores @ p["linear"]).reshape(-1, 32, 2, 2)
    grad_pooled1, weight2, bias2 = convx.conv2d_relu_max_pool2d_backward(grad_pooled2, saved2)
    # The images are data, so their gradient is not computed.
    _, weight1, bias1 = convx.conv2d_relu_max_pool2d_backward(grad_pooled1, saved1, output_mask=(False, True, True))
    return {
        "conv1": weight1, "conv1.bias": bias1, "conv2": weight2, "conv2.bias": bias2,
        "linear": grad_scores.T @ flat, "linear.bias": grad_scores.sum(axis=0),
    }  # fmt: skip


# %%
# The loop
# --------

velocity = {name: np.zeros_like(value) for name, value in parameters.items()}
losses, accuracies = [], []
for epoch in range(EPOCHS):
    rate = RATE * 0.5 * (1 + np.cos(np.pi * epoch / EPOCHS))
    order = rng.permutation(len(train_labels))
    for first in range(0, len(order), BATCH):
        batch = order[first : first + BATCH]
        scores, kept = forward(parameters, train_images[batch])
        loss, grad_scores = cross_entropy(scores, train_labels[batch])
        for name, grad in backward(parameters, grad_scores, kept).items():
            velocity[name] = MOMENTUM * velocity[name] + grad
            parameters[name] -= rate * velocity[name]
        losses.append(loss)
    answers = forward(parameters, test_images)[0].argmax(axis=1)
    accuracies.append((answers == test_labels).mean())
    if epoch % 5 == 4:
        print(f"epoch {epoch + 1}: {accuracies[-1]:.1%} of {HELD_OUT} held-out digits right")

# %%
# Loss and accuracy
# -----------------

steps = np.arange(1, len(losses) + 1) * EPOCHS / len(losses)
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
left.semilogy(steps, losses, color="0.8", label="every step")
smooth = np.convolve(losses, np.ones(15) / 15, mode="valid")
left.semilogy(steps[14:], smooth, color="C0", label="mean of 15 steps")
left.set(xlabel="epoch", ylabel="cross-entropy", title="training loss")
left.legend()
right.plot(range(1, EPOCHS + 1), accuracies, marker="o", markersize=3)
right.set(xlabel="epoch", ylabel="share right", title="held-out digits", ylim=(0.9, 1))
right.grid(alpha=0.3)

# %%
# Learned kernels
# ---------------
# The 16 kernels of the first layer, negative weights in red, positive ones in blue.

figure, axes = plt.subplots(2, 8, figsize=(7, 1.9), layout="constrained")
limit = np.abs(parameters["conv1"]).max()
for axis, kernel in zip(axes.flat, parameters["conv1"][:, 0], strict=True):
    axis.imshow(kernel, cmap="RdBu", vmin=-limit, vmax=limit)
    axis.axis("off")

# %%
# Mistakes
# --------
# Some held-out digits with a wrong answer.

wrong = np.flatnonzero(answers != test_labels)[:8]
figure, axes = plt.subplots(1, 8, figsize=(8, 1.3), layout="constrained")
for axis in axes:
    axis.axis("off")
for axis, index in zip(axes, wrong, strict=False):
    axis.imshow(test_images[index, 0], cmap="gray_r")
    axis.set_title(f"{test_labels[index]}, not {answers[index]}", fontsize=9)
plt.show()
