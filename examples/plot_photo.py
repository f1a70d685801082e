"""
A photograph through filters, ReLU and max-pooling
==================================================

The classic pipeline on one colour photograph: blur, edges, oriented filters, feature maps, pooling. Everything is
`convx.conv2d` and `convx.max_pool2d`; the photograph comes with scikit-image.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import hsv_to_rgb
from skimage import data

import convx

# %%
# Colours as they lie in memory
# -----------------------------
# A photograph has its colours adjacent, (H, W, C). With ``layout="NHWC"`` it is taken as it is. One kernel for each
# colour, ``groups=3``, blurs the three planes apart; ``padding_mode="reflect"`` mirrors the photograph at its borders,
# so that no dark frame comes in. A Gaussian is the product of a column and a row: two convolutions of 13 taps do the
# work of 169.

photo = (data.astronaut() / 255).astype(np.float32)

distance = np.arange(-6, 7, dtype=np.float32)
gaussian = np.exp(-(distance**2) / (2 * 2.5**2))
gaussian /= gaussian.sum()
column = np.tile(gaussian[:, None], (3, 1, 1, 1))
row = np.tile(gaussian[None, :], (3, 1, 1, 1))

same = dict(padding="same", padding_mode="reflect", groups=3, layout="NHWC")
blurred = convx.conv2d(convx.conv2d(photo, column, **same), row, **same)

figure, axes = plt.subplots(1, 2, figsize=(8, 4.2), layout="constrained")
for axis, (title, picture) in zip(axes, {"photograph": photo, "Gaussian blur": blurred}.items(), strict=True):
    axis.imshow(picture.clip(0, 1))
    axis.set_title(title)
    axis.axis("off")

# %%
# Edges
# -----
# Sobel's kernels take the difference of neighbouring columns or rows. Their results have a sign, drawn in blue and red.

grey = (photo @ np.array([0.299, 0.587, 0.114], np.float32))[None]  # (C, H, W) with one channel
sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32)
laplace = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], np.float32)
kernels = {"Sobel, vertical edges": sobel, "Sobel, horizontal edges": sobel.T, "Laplace": laplace}
edges = convx.conv2d(grey, np.stack(list(kernels.values()))[:, None], padding="same", padding_mode="reflect")

figure, axes = plt.subplots(1, 3, figsize=(10, 3.7), layout="constrained")
for axis, title, edge in zip(axes, kernels, edges, strict=True):
    axis.imshow(edge, cmap="RdBu", vmin=-1.5, vmax=1.5)
    axis.set_title(title)
    axis.axis("off")

# %%
# Oriented filters and their feature maps
# ---------------------------------------
# A Gabor filter is a wave under a Gaussian window: it answers to stripes and edges of one direction, much as the first
# layer of a trained network does. Eight directions make eight feature maps; the ReLU, fused into the convolution, keeps
# the strong sides of each, and max-pooling keeps the strongest answer of every 4 x 4 pixels.

directions = np.arange(8) * np.pi / 8
y, x = np.mgrid[-9:10, -9:10]
window = np.exp(-(x**2 + y**2) / (2 * 3.5**2))
across = np.cos(directions)[:, None, None] * x + np.sin(directions)[:, None, None] * y
gabor = window * np.cos(2 * np.pi * across / 8)
gabor -= window * (gabor.sum((1, 2), keepdims=True) / window.sum())  # an even surface gives 0
gabor = (gabor / np.abs(gabor).sum((1, 2), keepdims=True)).astype(np.float32)

maps = convx.conv2d(grey, gabor[:, None], padding="same", padding_mode="reflect", activation="relu")
pooled = convx.max_pool2d(maps, 4)

figure, axes = plt.subplots(3, 8, figsize=(12, 4.8), layout="constrained")
for index in range(8):
    rows = {"filter": gabor[index], "conv + ReLU": maps[index], "max-pool 4 x 4": pooled[index]}
    for axis, (title, picture) in zip(axes[:, index], rows.items(), strict=True):
        axis.imshow(picture, cmap="gray" if title == "filter" else "magma", vmax=None if title == "filter" else 0.15)
        axis.set(xticks=[], yticks=[])
        if index == 0:
            axis.set_ylabel(title)

# %%
# Which direction wins
# --------------------
# The strongest of the eight answers at every pooled pixel: its direction as the hue, its strength as the brightness.

strength = pooled.max(axis=0)
hue = pooled.argmax(axis=0) / 8
picture = hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.9), (strength / 0.12).clip(0, 1)], axis=-1))

figure, axes = plt.subplots(1, 2, figsize=(8, 4.4), layout="constrained", width_ratios=(6, 1))
axes[0].imshow(picture)
axes[0].set_title(f"direction and strength, {picture.shape[0]} x {picture.shape[1]}")
axes[0].axis("off")
wheel = hsv_to_rgb(np.stack([np.arange(8) / 8, np.full(8, 0.9), np.ones(8)], axis=-1))[:, None]
axes[1].imshow(wheel)
axes[1].set(xticks=[], yticks=range(8), yticklabels=[f"{22.5 * index:g}°" for index in range(8)], title="direction")

# %%
# What ran
# --------
# `convx.explain` tells which loops these calls took on this machine, and why.

print(convx.explain("conv2d", grey.shape, gabor[:, None].shape, padding="same", padding_mode="reflect"))
print(convx.explain("max_pool2d", maps.shape, 4))
plt.show()
