"""
Rounding errors, measured
=========================

The largest error of `convx.conv2d` against a float64 result, for the direct algorithm and Winograd's, beside the bounds
of the tests. Normally distributed data, 3 x 3 kernels, float32.
"""

import matplotlib.pyplot as plt
import numpy as np

import convx

# %%
# Error over the number of channels
# ---------------------------------
# `convx.reference` is the same operation in plain NumPy; in float64 its own error is 2**29 times smaller. Errors are
# relative to the largest value of the result.

channels = [4, 8, 16, 32, 64, 128, 256, 512]
errors = {"direct": [], "winograd": []}
for count in channels:
    rng = np.random.default_rng(count)
    x = rng.standard_normal((1, count, 28, 28), dtype=np.float32)
    w = rng.standard_normal((16, count, 3, 3), dtype=np.float32)
    truth = convx.reference.conv2d(x.astype(np.float64), w.astype(np.float64), padding=1)
    for algorithm, found in errors.items():
        y = convx.conv2d(x, w, padding=1, algorithm=algorithm)
        found.append(np.abs(y - truth).max() / np.abs(truth).max())

figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
for algorithm, found in errors.items():
    axis.loglog(channels, found, marker="o", base=2, label=f"{algorithm}, measured")
axis.plot([64, 512], [2.5e-6, 5e-6], "kv", label="winograd, stated bound")
axis.set_xticks(channels, channels)
axis.set_yscale("log", base=10)
axis.set(xlabel="input channels", ylabel="largest error / largest value", ylim=(1e-7, 1e-5))
axis.grid(alpha=0.3)
axis.legend()

# %%
# One large value among small ones
# --------------------------------
# The error of each element, in units of the bound ``8 sqrt(n + 1) u M``, for n products whose absolute values add up to
# M and the unit roundoff u = 2**-24. The direct algorithm stays far below the bound. The error of Winograd's method
# follows the largest value in a tile of 6 x 6 inputs, so small results beside a large value lose digits.

x[0, :, 14, 14] *= 1e4
exact_x, exact_w = x.astype(np.float64), w.astype(np.float64)
truth = convx.reference.conv2d(exact_x, exact_w, padding=1)
magnitude = convx.reference.conv2d(np.abs(exact_x), np.abs(exact_w), padding=1)
bound = 8 * np.sqrt(9 * channels[-1] + 1) * 2.0**-24 * magnitude

figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
for axis, algorithm in zip(axes, errors, strict=True):
    y = convx.conv2d(x, w, padding=1, algorithm=algorithm)
    share = (np.abs(y - truth) / bound).max(axis=(0, 1))
    drawn = axis.imshow(share, norm="log", cmap="magma", vmin=1e-4, vmax=1e2)
    axis.set_title(f"{algorithm}: at most {share.max():.2g} of the bound")
    axis.axis("off")
figure.colorbar(drawn, ax=axes, label="largest error of a pixel / its bound")
plt.show()
