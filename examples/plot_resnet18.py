"""
ResNet-18, forward and backward, before and after convert
=========================================================

A residual network with batch normalisation on four photographs of 224 x 224 pixels, before and after
`convx.torch.convert`: time, and error of the gradients, against PyTorch in both memory layouts. The weights are random.
"""

import copy
import statistics
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from skimage import data
from skimage.transform import resize
from torch import nn

import convx
import convx.torch

# One thread each; the benchmarks measure on all threads, in a process for each library.
torch.set_num_threads(1)
convx.set_num_threads(1)

# %%
# The network
# -----------
# He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (2015), table 1.


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, c, k, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, k, 3, stride, 1, bias=False), nn.BatchNorm2d(k)
        self.conv2, self.bn2 = nn.Conv2d(k, k, 3, 1, 1, bias=False), nn.BatchNorm2d(k)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity()
        if stride != 1 or c != k:
            self.shortcut = nn.Sequential(nn.Conv2d(c, k, 1, stride, bias=False), nn.BatchNorm2d(k))

    def forward(self, x):
        """Add the shortcut to the two convolutions."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet18(classes=1000):
    """Return a new network."""
    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)]
    layers += [nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    for c, k, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        layers += [Block(c, k, stride), Block(k, k, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


torch.manual_seed(0)
model = resnet18()
converted = convx.torch.convert(model, inplace=False)

# %%
# Four photographs
# ----------------

photographs = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
squares = [photo[:, : photo.shape[0]] for photo in photographs]  # the left part
pixels = np.stack([resize(square, (224, 224), anti_aliasing=True) for square in squares])
images = torch.from_numpy((pixels - 0.45) / 0.225).float().permute(0, 3, 1, 2).contiguous()
labels = torch.tensor([0, 1, 2, 3])

# %%
# Time and gradients
# ------------------
# The converted model shares the parameters of the first. The models take turns; the plot shows medians.


def step(model, images):
    """Run forward and backward; return the seconds of each."""
    model.zero_grad()
    start = time.perf_counter()
    loss = nn.functional.cross_entropy(model(images), labels)
    middle = time.perf_counter()
    loss.backward()
    return middle - start, time.perf_counter() - middle


channels_last = images.to(memory_format=torch.channels_last)
variants = {
    "PyTorch": (model, images),
    "PyTorch,\nchannels_last": (model, channels_last),
    "convx": (converted, images),
    "convx,\nchannels_last": (converted, channels_last),
}
seconds, gradients = {name: [] for name in variants}, {}
for turn in range(5):
    for name, (network, batch) in variants.items():
        spent = step(network, batch)
        if turn:  # the first one warms up
            seconds[name].append(spent)
        gradients[name] = [parameter.grad.clone() for parameter in network.parameters()]

figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
bottom = np.zeros(len(variants))
for index, (part, colour) in enumerate((("forward", "C0"), ("backward", "C2"))):
    medians = [1000 * statistics.median(spent[index] for spent in seconds[name]) for name in variants]
    bars = axis.bar(list(variants), medians, bottom=bottom, label=part, color=colour, width=0.6)
    axis.bar_label(bars, fmt="%.0f", label_type="center", color="white")
    bottom += np.array(medians)
axis.bar_label(bars, [f"{total:.0f} ms" for total in bottom], padding=2)
axis.set(
    ylabel="ms",
    title=f"ResNet-18, {len(images)} images, one thread",
    ylim=(0, 1.15 * bottom.max()),
)
axis.legend()

# %%
# Error of the gradients
# ----------------------
# The distance to the gradient of the same step in float64. In float32 rounding may move an activation to
# the other side of zero; the ReLU then passes the whole gradient of that pixel, or nothing.

exact = copy.deepcopy(model).double()
step(exact, images.double())
truth = [parameter.grad for parameter in exact.parameters()]
length = sum(float((t**2).sum()) for t in truth) ** 0.5
for name in ("PyTorch", "convx"):
    found = zip(gradients[name], truth, strict=True)
    apart = sum(float(((a - t) ** 2).sum()) for a, t in found) ** 0.5
    print(f"{name}: distance from the exact gradient {apart / length:.1e} of its length")
plt.show()
