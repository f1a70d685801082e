"""
Clipping the gradient of every image: differential privacy
==========================================================

Differentially private SGD (Abadi et al., 2016) bounds what a single image can change: its gradient is scaled down to a
length of at most C, and noise of that size is added to the sum. The length of every image's gradient is what
frameworks have trouble with. `convx.conv2d_grad_norms` computes it without keeping one gradient for each image.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import convx

EPOCHS, BATCH, RATE, MOMENTUM = 20, 128, 0.5, 0.5
LENGTH, NOISE = 1.0, 0.8  # C, and the noise's standard deviation in units of C
HELD_OUT = 360

# %%
# Data, parameters, forward
# -------------------------
# The network of :doc:`plot_digits`, its operations one by one: the gradient at the output of each convolution is what
# the lengths are computed from.

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
    """Return the scores, and what the backward pass needs."""
    y1 = convx.conv2d(x, p["w1"], p["b1"], padding=1, activation="relu")
    x2, codes1 = convx.max_pool2d(y1, 2, return_codes=True)
    y2 = convx.conv2d(x2, p["w2"], p["b2"], padding=1, activation="relu")
    x3, codes2 = convx.max_pool2d(y2, 2, return_codes=True)
    flat = x3.reshape(len(x), -1)
    return flat @ p["w3"].T + p["b3"], (x, y1, codes1, x2, y2, codes2, flat)


# %%
# Backward: lengths first, then one weighted sum
# ----------------------------------------------
# The gradient goes back through all layers once. The squared length of an image's gradient is the sum over layers; for
# the linear layer it is a product of two lengths. Then every image's gradient at the outputs is scaled, and the weight
# gradients are those of an ordinary batch.


def clipped(p, kept, grad_scores, length):
    """Return the sum of the gradients of all images, each of at most `length`, and the lengths."""
    x, y1, codes1, x2, y2, codes2, flat = kept
    grad_pool2 = (grad_scores @ p["w3"]).reshape(len(x), 32, 2, 2)
    grad2 = convx.relu_backward(convx.max_pool2d_backward(grad_pool2, codes2, y2.shape, 2), y2)
    grad_pool1, _, _ = convx.conv2d_backward(grad2, x2, p["w2"], padding=1, output_mask=(True, False, False))
    grad1 = convx.relu_backward(convx.max_pool2d_backward(grad_pool1, codes1, y1.shape, 2), y1)

    squares = (grad_scores**2).sum(axis=1) * (1 + (flat**2).sum(axis=1))
    for grad, layer_input, weight in ((grad1, x, p["w1"]), (grad2, x2, p["w2"])):
        squares = squares + sum(convx.conv2d_grad_norms(grad, layer_input, weight.shape, padding=1))
    lengths = np.sqrt(squares)

    scale = np.minimum(1, length / lengths).astype(np.float32)
    grads = {"w3": (grad_scores * scale[:, None]).T @ flat, "b3": scale @ grad_scores}
    for name, grad, layer_input in (("1", grad1, x), ("2", grad2, x2)):
        _, grads[f"w{name}"], grads[f"b{name}"] = convx.conv2d_backward(
            grad * scale[:, None, None, None], layer_input, p[f"w{name}"], padding=1,
            output_mask=(False, True, True),
        )  # fmt: skip
    return grads, lengths


def fit(length, noise):
    """Train; return the held-out accuracy of every epoch, and the lengths met in each."""
    p, rng = parameters(), np.random.default_rng(2)
    velocity = {name: np.zeros_like(value) for name, value in p.items()}
    accuracies, met = [], []
    for _ in range(EPOCHS):
        found = []
        for batch in np.split(rng.permutation(len(train_labels)), range(BATCH, len(train_labels), BATCH)):
            scores, kept = forward(p, train_images[batch])
            exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
            grad_scores = exponentials / exponentials.sum(axis=1, keepdims=True)
            grad_scores[np.arange(len(batch)), train_labels[batch]] -= 1
            grads, lengths = clipped(p, kept, grad_scores, length)
            for name, grad in grads.items():
                noisy = grad + noise * length * rng.standard_normal(grad.shape, dtype=np.float32)
                velocity[name] = MOMENTUM * velocity[name] + noisy / BATCH
                p[name] -= RATE * velocity[name]
            found.append(lengths)
        accuracies.append((forward(p, test_images)[0].argmax(axis=1) == test_labels).mean())
        met.append(np.concatenate(found))
    return accuracies, met


# %%
# What clipping and noise cost
# ----------------------------
# Which privacy a noise buys over so many steps is a matter of accounting, which is not done here.

runs = {
    "clipped": fit(LENGTH, 0),
    f"clipped, noise {NOISE}": fit(LENGTH, NOISE),
    f"clipped, noise {4 * NOISE}": fit(LENGTH, 4 * NOISE),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for name, (accuracies, _) in runs.items():
    print(f"{name}: {accuracies[-1]:.1%} of {HELD_OUT} held-out digits right")
    left.plot(range(1, EPOCHS + 1), accuracies, label=name)
left.set(xlabel="epoch", ylabel="share right", title="held-out digits", ylim=(0.5, 1))
left.legend(fontsize=8)
left.grid(alpha=0.3)
_, met = runs["clipped"]
bins = np.geomspace(1e-3, 30, 50)
for epoch in (0, 4, EPOCHS - 1):
    right.hist(met[epoch], bins, histtype="step", label=f"epoch {epoch + 1}")
right.axvline(LENGTH, color="black", linewidth=0.8, linestyle=":")
right.set(xscale="log", xlabel="length of an image's gradient", ylabel="images", title="before clipping")
right.legend(fontsize=8)

# %%
# Norms alone, or all the gradients
# ---------------------------------
# ``conv2d_backward(..., per_sample=True)`` returns the gradients themselves, one weight for each image: to look at, or
# for other norms. For a layer of 64 channels:

x = rng.standard_normal((64, 64, 16, 16), dtype=np.float32)
weight = rng.standard_normal((64, 64, 3, 3), dtype=np.float32)
grad = rng.standard_normal((64, 64, 16, 16), dtype=np.float32)


def all_gradients():
    """Return the squared lengths by way of the gradients, and the bytes of these."""
    _, gradients, _ = convx.conv2d_backward(
        grad, x, weight, padding=1, per_sample=True, output_mask=(False, True, False)
    )
    return np.square(gradients, dtype=np.float64).sum(axis=(1, 2, 3, 4)), gradients.nbytes


def norms_alone():
    """Return the squared lengths, and the bytes of these."""
    squares, _ = convx.conv2d_grad_norms(grad, x, weight.shape, padding=1)
    return squares, squares.nbytes


results = {}
for way in (all_gradients, norms_alone):
    way()
    start = time.perf_counter()
    results[way], size = way()
    spent = 1000 * (time.perf_counter() - start)
    print(f"{way.__name__}: {spent:.1f} ms, {size:,} bytes of results")
apart = np.abs(results[norms_alone] / results[all_gradients] - 1).max()
print(f"largest relative difference: {apart:.1e}")
plt.show()
