"""
Faces and other pictures: layers, Adam, augmentation
====================================================

A small network from `convx.nn` learns to distinguish faces from other pictures, from only 5 of each
kind. The network soon memorizes so few pictures; random shifts, mirroring and lighting make more of
them, and this example measures the gain. The pictures of 25 x 25 pixels are a subset of "Labeled Faces
in the Wild" that comes with scikit-image.
"""

import matplotlib.pyplot as plt
import numpy as np
from skimage.data import lfw_subset

import convx
from convx import nn, optim

# sphinx_gallery_thumbnail_number = 2

STEPS, RATE = 150, 1e-3
SPLITS, SHOWN = 6, 5

# %%
# The data
# --------
# The first 100 pictures are faces, the others are not. The result depends on the five pictures of each
# kind, so the example draws six splits. The other 190 pictures of a split are held out.

pictures = lfw_subset().astype(np.float32)[:, None]  # (200, 1, 25, 25), from 0 to 1
labels = np.repeat([1, 0], 100)


def split(seed):
    """Return the indices of the training pictures, and of all others."""
    rng = np.random.default_rng(seed)
    shown = np.concatenate([rng.permutation(100)[:SHOWN], 100 + rng.permutation(100)[:SHOWN]])
    return shown, np.setdiff1d(np.arange(200), shown)


figure, axes = plt.subplots(1, 10, figsize=(8, 1), layout="constrained")
for axis, index in zip(axes, split(0)[0], strict=True):
    axis.imshow(pictures[index, 0], cmap="gray")
    axis.axis("off")

# %%
# Network and training
# --------------------
# The ``forward`` of a layer returns its output and a context for ``backward``; layers hold only their
# parameters and gradients.


def build(seed):
    """Make the network, its weights drawn from `seed`."""
    rng = np.random.default_rng(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2, rng=rng), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, rng=rng), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1, rng=rng), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 3 * 3, 2, rng=rng),
    )  # fmt: skip


def augmented(batch, rng):
    """Shift each picture by up to two pixels, mirror half of them, change contrast and brightness."""
    padded = np.pad(batch, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    changed = np.empty_like(batch)
    for index, picture in enumerate(padded):
        top, left = rng.integers(0, 5, 2)
        moved = picture[:, top : top + 25, left : left + 25]
        changed[index] = moved[..., ::-1] if rng.random() < 0.5 else moved
    contrast = rng.uniform(0.7, 1.3, (len(batch), 1, 1, 1))
    brightness = rng.uniform(-0.2, 0.2, (len(batch), 1, 1, 1))
    return (contrast * changed + brightness).astype(np.float32)


def fit(network, augment, seed):
    """Train; return training loss, held-out loss and held-out accuracy every 5 steps."""
    rng = np.random.default_rng(seed)
    shown, held_out = split(seed)
    optimizer = optim.Adam(network.parameters(), RATE)
    criterion = nn.CrossEntropyLoss()
    history = []
    for step in range(1, STEPS + 1):
        optimizer.lr = RATE * 0.5 * (1 + np.cos(np.pi * step / STEPS))
        batch = augmented(pictures[shown], rng) if augment else pictures[shown]
        scores, context = network.forward(batch)
        loss, loss_context = criterion.forward(scores, labels[shown])
        optimizer.zero_grad()
        network.backward(criterion.backward(loss_context), context, need_grad_input=False)
        optimizer.step()
        if step % 5 == 0:
            scores = network(pictures[held_out])
            right = (scores.argmax(axis=1) == labels[held_out]).mean()
            history.append((loss, criterion(scores, labels[held_out]), right))
    return np.array(history)


# %%
# With and without augmentation
# -----------------------------

histories = {"as they are": [], "augmented": []}
for seed in range(SPLITS):
    for name, runs in histories.items():
        network = build(seed)
        runs.append(fit(network, name == "augmented", seed))

steps = np.arange(5, STEPS + 1, 5)
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.3), layout="constrained")
for colour, (name, runs) in zip(("C1", "C0"), histories.items(), strict=True):
    training, loss, accuracy = np.mean(runs, axis=0).T
    each = ", ".join(f"{run[-1, 2]:.0%}" for run in runs)
    print(f"{name}: {accuracy[-1]:.1%} of the other pictures right ({each})")
    left.semilogy(steps, training, color=colour, linestyle=":", label=f"{name}, shown")
    left.semilogy(steps, loss, color=colour, label=f"{name}, others")
    right.plot(steps, accuracy, color=colour, label=name)
    for run in runs:
        right.plot(steps, run[:, 2], color=colour, alpha=0.3, linewidth=0.8)
left.set(xlabel="step", ylabel="cross-entropy", title=f"loss, mean of {SPLITS} splits")
right.set(xlabel="step", ylabel="share right", title="other pictures: mean and splits", ylim=(0.7, 1))
for axis in (left, right):
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)

# %%
# Sensitivity to each pixel
# -------------------------
# The gradient of the face's score with respect to the picture, from the same ``backward``: a bright pixel
# changes the score most.

faces = split(SPLITS - 1)[1][:8]
scores, context = network.forward(pictures[faces])
grad_scores = np.zeros_like(scores)
grad_scores[:, 1] = 1
sensitivity = np.abs(network.backward(grad_scores, context))

figure, axes = plt.subplots(2, 8, figsize=(8, 2.2), layout="constrained")
for index, face in enumerate(faces):
    axes[0, index].imshow(pictures[face, 0], cmap="gray")
    axes[1, index].imshow(sensitivity[index, 0], cmap="magma")
for axis in axes.flat:
    axis.axis("off")

# %%
# The same bits on any number of threads
# --------------------------------------
# `convx.set_num_threads` changes the speed, and not one bit of the results:

with convx.threads(1):
    alone = fit(build(0), augment=True, seed=0)
print("same losses on one thread:", np.array_equal(alone, histories["augmented"][0]))
plt.show()
