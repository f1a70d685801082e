"""
Clipping the gradient of every image: differential privacy
==========================================================

Differentially private SGD (Abadi et al., 2016) bounds the influence of each image: it scales the image's gradient down
to a norm of at most C, and adds noise of that size to the sum. `convx.conv2d_grad_norms` computes the norm for every
image without keeping a gradient for each.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import convx

EPOCHS, BATCH, RATE, MOMENTUM = 20, 128, 0.5, 0.5
NORM, NOISE = 1.0, 0.8  # C, and the standard deviation of the noise in units of C
HELD_OUT = 360

# %%
# Data, parameters, forward
# -------------------------
# The network of :doc:`plot_digits` with separate operations, since the norms are computed from the gradient at the
# output of each convolution.

rng = np.random.default_rng(0)
digits = load_digits()
order = rng.permutation(len(digits.target))
images = (digits.images[order, None] / 16).astype(np.float32)  # (N, 1, 8, 8), from 0 to 1
labels = digits.target[order]
test_images, test_labels = images[:HELD_OUT], labels[:HELD_OUT]
train_images, train_labels = images[HELD_OUT:], labels[HELD_OUT:]


def parameters():
    """Return new weights of He's variance and zero biases."""
    rng = np.random.default_rng(1)
    made = {}
    for name, shape in {"1": (16, 1, 3, 3), "2": (32, 16, 3, 3), "3": (10, 128)}.items():
        scale = np.sqrt(2 / np.prod(shape[1:]))
        made[f"w{name}"] = (scale * rng.standard_normal(shape)).astype(np.float32)
        made[f"b{name}"] = np.zeros(shape[0], np.float32)
    return made


def forward(p, x):
    """Return the scores, and the saved arrays for the backward pass."""
    y1 = convx.conv2d(x, p["w1"], p["b1"], padding=1, activation="relu")
    x2, codes1 = convx.max_pool2d(y1, 2, return_codes=True)
    y2 = convx.conv2d(x2, p["w2"], p["b2"], padding=1, activation="relu")
    x3, codes2 = convx.max_pool2d(y2, 2, return_codes=True)
    flat = x3.reshape(len(x), -1)
    return flat @ p["w3"].T + p["b3"], (x, y1, codes1, x2, y2, codes2, flat)


# %%
# Backward: norms first, then one weighted sum
# --------------------------------------------
# The gradient goes back through all layers once. The squared norm of an image's gradient is a sum over the layers; for
# the linear layer it is a product of two norms. Then the gradient at the outputs is scaled image by image, and the
# weight gradients are computed as for any batch.


def clipped(p, kept, grad_scores, norm):
    """Return the sum of the gradients of all images, each of norm at most `norm`, and the norms before clipping."""
    x, y1, codes1, x2, y2, codes2, flat = kept
    grad_pool2 = (grad_scores @ p["w3"]).reshape(len(x), 32, 2, 2)
    grad2 = convx.relu_backward(convx.max_pool2d_backward(grad_pool2, codes2, y2.shape, 2), y2)
    grad_pool1, _, _ = convx.conv2d_backward(grad2, x2, p["w2"], padding=1, output_mask=(True, False, False))
    grad1 = convx.relu_backward(convx.max_pool2d_backward(grad_pool1, codes1, y1.shape, 2), y1)

    squares = (grad_scores**2).sum(axis=1) * (1 + (flat**2).sum(axis=1))
    for grad, layer_input, weight in ((grad1, x, p["w1"]), (grad2, x2, p["w2"])):
        squares = squares + sum(convx.conv2d_grad_norms(grad, layer_input, weight.shape, padding=1))
    norms = np.sqrt(squares)

    scale = np.minimum(1, norm / norms).astype(np.float32)
    grads = {"w3": (grad_scores * scale[:, None]).T @ flat, "b3": scale @ grad_scores}
    for name, grad, layer_input in (("1", grad1, x), ("2", grad2, x2)):
        _, grads[f"w{name}"], grads[f"b{name}"] = convx.conv2d_backward(
            grad * scale[:, None, None, None], layer_input, p[f"w{name}"], padding=1,
            output_mask=(False, True, True),
        )  # fmt: skip
    return grads, norms


def fit(norm, noise):
    """Train; return the held-out accuracy and the norms before clipping, for each epoch."""
    p, rng = parameters(), np.random.default_rng(2)
    velocity = {name: np.zeros_like(value) for name, value in p.items()}
    accuracies, norms = [], []
    for _ in range(EPOCHS):
        norms.append([])
        for batch in np.split(rng.permutation(len(train_labels)), range(BATCH, len(train_labels), BATCH)):
            scores, kept = forward(p, train_images[batch])
            exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
            grad_scores = exponentials / exponentials.sum(axis=1, keepdims=True)
            grad_scores[np.arange(len(batch)), train_labels[batch]] -= 1
            grads, of_batch = clipped(p, kept, grad_scores, norm)
            for name, grad in grads.items():
                noisy = grad + noise * norm * rng.standard_normal(grad.shape, dtype=np.float32)
                velocity[name] = MOMENTUM * velocity[name] + noisy / BATCH
                p[name] -= RATE * velocity[name]
            norms[-1].extend(of_batch)
        accuracies.append((forward(p, test_images)[0].argmax(axis=1) == test_labels).mean())
    return accuracies, norms


# %%
# The cost of clipping and noise
# ------------------------------
# The example does not compute the privacy budget of the noise and the number of steps.

runs = {
    "clipped": fit(NORM, 0),
    f"clipped, noise {NOISE}": fit(NORM, NOISE),
    f"clipped, noise {4 * NOISE}": fit(NORM, 4 * NOISE),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for name, (accuracies, _) in runs.items():
    print(f"{name}: {accuracies[-1]:.1%} of {HELD_OUT} held-out digits right")
    left.plot(range(1, EPOCHS + 1), accuracies, label=name)
left.set(xlabel="epoch", ylabel="share right", title="held-out digits", ylim=(0.5, 1))
left.legend(fontsize=8)
left.grid(alpha=0.3)
_, norms = runs["clipped"]
bins = np.geomspace(1e-3, 30, 50)
for epoch in (0, 4, EPOCHS - 1):
    right.hist(norms[epoch], bins, histtype="step", label=f"epoch {epoch + 1}")
right.axvline(NORM, color="black", linewidth=0.8, linestyle=":")
right.set(xscale="log", xlabel="norm of an image's gradient", ylabel="images", title="before clipping")
right.legend(fontsize=8)

# %%
# Norms alone, or all the gradients
# ---------------------------------
# ``conv2d_backward(..., per_sample=True)`` returns the gradients themselves, one for each image, for other norms or for
# inspection. A comparison for a layer of 64 channels:

x = rng.standard_normal((64, 64, 16, 16), dtype=np.float32)
weight = rng.standard_normal((64, 64, 3, 3), dtype=np.float32)
grad = rng.standard_normal((64, 64, 16, 16), dtype=np.float32)


def all_gradients():
    """Return the squared norms, computed from the gradients, and the bytes of the gradients."""
    _, gradients, _ = convx.conv2d_backward(
        grad, x, weight, padding=1, per_sample=True, output_mask=(False, True, False)
    )
    return np.square(gradients, dtype=np.float64).sum(axis=(1, 2, 3, 4)), gradients.nbytes


def norms_alone():
    """Return the squared norms, and their bytes."""
    squares, _ = convx.conv2d_grad_norms(grad, x, weight.shape, padding=1)
    return squares, squares.nbytes


results = {}
for function in (all_gradients, norms_alone):
    function()
    start = time.perf_counter()
    results[function], size = function()
    spent = 1000 * (time.perf_counter() - start)
    print(f"{function.__name__}: {spent:.1f} ms, {size:,} bytes of results")
apart = np.abs(results[norms_alone] / results[all_gradients] - 1).max()
print(f"largest relative difference: {apart:.1e}")
plt.show()
