"""
A photograph through filters, ReLU and max-pooling
==================================================

The classic pipeline on one colour photograph: blur, edges, oriented filters, feature maps, pooling, all with
`convx.conv2d` and `convx.max_pool2d`. The photograph comes with scikit-image.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import hsv_to_rgb
from skimage import data

import convx

# sphinx_gallery_thumbnail_number = 4

# %%
# Channels last: blur in colour
# -----------------------------
# The colours of a photograph are adjacent in memory, (H, W, C); ``layout="NHWC"`` reads this layout in place. With
# ``groups=3`` each colour has its own kernel. ``padding_mode="reflect"`` mirrors the photograph at its borders, so the
# blur adds no dark frame. A Gaussian is the product of a column and a row: two convolutions of 13 taps replace one of
# 169.

photo = (data.astronaut() / 255).astype(np.float32)

distance = np.arange(-6, 7, dtype=np.float32)
gaussian = np.exp(-(distance**2) / (2 * 2.5**2))
gaussian /= gaussian.sum()
column = np.tile(gaussian[:, None], (3, 1, 1, 1))
row = np.tile(gaussian[None, :], (3, 1, 1, 1))

same = dict(padding="same", padding_mode="reflect", groups=3, layout="NHWC")
blurred = convx.conv2d(convx.conv2d(photo, column, **same), row, **same)

figure, axes = plt.subplots(1, 2, figsize=(8, 4.2), layout="constrained")
axes[0].imshow(photo)
axes[0].set_title("photograph")
axes[1].imshow(blurred.clip(0, 1))
axes[1].set_title("Gaussian blur")
for axis in axes:
    axis.axis("off")

# %%
# Edges
# -----
# Sobel's kernels compute the difference of neighbouring columns or rows. Blue is positive, red negative.

grey = (photo @ np.array([0.299, 0.587, 0.114], np.float32))[None]  # (C, H, W) with one channel
sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32)
laplace = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], np.float32)
kernels = np.stack([sobel, sobel.T, laplace])[:, None]
edges = convx.conv2d(grey, kernels, padding="same", padding_mode="reflect")

figure, axes = plt.subplots(1, 3, figsize=(8, 3), layout="constrained")
titles = ("Sobel, vertical edges", "Sobel, horizontal edges", "Laplace")
for axis, title, edge in zip(axes, titles, edges, strict=True):
    limit = np.quantile(np.abs(edge), 0.99)
    axis.imshow(edge, cmap="RdBu", vmin=-limit, vmax=limit)
    axis.set_title(title, fontsize=10)
    axis.axis("off")

# %%
# Oriented filters and their feature maps
# ---------------------------------------
# A Gabor filter is a wave under a Gaussian window. It responds to stripes and edges of one direction, like the first
# layer of a trained network. Eight directions make eight feature maps. The ReLU, fused into the convolution, keeps the
# positive responses; max-pooling keeps the strongest response of every 4 x 4 pixels.

directions = np.arange(8) * np.pi / 8
y, x = np.mgrid[-9:10, -9:10]
window = np.exp(-(x**2 + y**2) / (2 * 3.5**2))
across = np.cos(directions)[:, None, None] * x + np.sin(directions)[:, None, None] * y
gabor = window * np.cos(2 * np.pi * across / 8)
gabor -= window * (gabor.sum((1, 2), keepdims=True) / window.sum())  # an even surface gives 0
gabor = (gabor / np.abs(gabor).sum((1, 2), keepdims=True)).astype(np.float32)

maps = convx.conv2d(grey, gabor[:, None], padding="same", padding_mode="reflect", activation="relu")
pooled = convx.max_pool2d(maps, 4)

figure, axes = plt.subplots(3, 8, figsize=(8, 3.2), layout="constrained")
brightest = np.quantile(pooled, 0.98)
for index in range(8):
    axes[0, index].imshow(gabor[index], cmap="gray")
    axes[1, index].imshow(maps[index], cmap="magma", vmax=brightest)
    axes[2, index].imshow(pooled[index], cmap="magma", vmax=brightest)
for axis, title in zip(axes[:, 0], ("filter", "conv, ReLU", "max-pool"), strict=True):
    axis.set_ylabel(title)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])

# %%
# The strongest direction
# -----------------------
# The strongest of the eight responses at every pooled pixel: its direction is the hue, its strength the brightness.


def coloured(direction, strength):
    """Return RGB: the direction, from 0 to 1, as the hue, the strength as the brightness."""
    return hsv_to_rgb(np.stack([direction, np.full_like(direction, 0.9), strength], axis=-1))


strength = (pooled.max(axis=0) / brightest).clip(0, 1)
picture = coloured(pooled.argmax(axis=0) / 8, strength)

figure, axes = plt.subplots(1, 2, figsize=(7, 4.4), layout="constrained", width_ratios=(6, 1))
axes[0].imshow(picture)
axes[0].set_title(f"direction and strength, {picture.shape[0]} x {picture.shape[1]}")
axes[0].axis("off")
axes[1].imshow(coloured(np.arange(8)[:, None] / 8, np.ones((8, 1))))
names = [f"{22.5 * index:g}°" for index in range(8)]
axes[1].set(xticks=[], yticks=range(8), yticklabels=names, title="across")

# %%
# Methods
# -------
# `convx.explain` prints the methods of these calls on this machine, and the reasons.

border = dict(padding="same", padding_mode="reflect")
print(convx.explain("conv2d", grey.shape, gabor[:, None].shape, **border))
print(convx.explain("max_pool2d", maps.shape, 4))
plt.show()
