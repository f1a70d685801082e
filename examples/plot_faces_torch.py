"""
The same network in PyTorch, before and after convert
=====================================================

A PyTorch model, an optimizer and a loop, with one additional line: `convx.torch.convert`. Both models start from the
same weights and train on the same batches, so the example compares their losses step by step and their times epoch by
epoch. The data are the pictures of :doc:`plot_faces`.
"""

import copy
import statistics
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from skimage.data import lfw_subset
from torch import nn

import convx
import convx.torch

EPOCHS, BATCH, RATE = 15, 25, 1e-3

# One thread each: more threads gain little on pictures of this size.
torch.set_num_threads(1)
convx.set_num_threads(1)

# %%
# Data and model
# --------------

pictures = torch.from_numpy(lfw_subset()).float()[:, None]  # (200, 1, 25, 25)
labels = (torch.arange(200) < 100).long()  # 100 faces, then 100 others
order = torch.from_numpy(np.random.default_rng(0).permutation(200))
train, held_out = order[:150], order[150:]

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(32 * 3 * 3, 2),
)  # fmt: skip

# %%
# One line
# --------
# `convert` works in place. Here it converts a copy, since PyTorch's model is trained beside it.

converted = convx.torch.convert(copy.deepcopy(model))

# %%
# The loop, for both
# ------------------
# The models take turns, one epoch each, so that other load of the machine affects both.


def epoch(model, optimizer, generator):
    """Train for one epoch; return the losses and the seconds."""
    losses = []
    order = train[torch.randperm(len(train), generator=generator)]
    start = time.perf_counter()
    for batch in order.split(BATCH):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(pictures[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, time.perf_counter() - start


models = {"PyTorch": model, "convx": converted}
optimizers = {name: torch.optim.Adam(each.parameters(), RATE) for name, each in models.items()}
generators = {name: torch.Generator().manual_seed(1) for name in models}
losses, seconds = ({name: [] for name in models} for _ in range(2))
for _ in range(EPOCHS):
    for name, each in models.items():
        found, spent = epoch(each, optimizers[name], generators[name])
        losses[name] += found
        seconds[name].append(spent)

for name, each in models.items():
    with torch.no_grad():
        right = (each(pictures[held_out]).argmax(1) == labels[held_out]).float().mean()
    spent = 1000 * statistics.median(seconds[name])
    print(f"{name}: {spent:.1f} ms per epoch, {right:.0%} of the held-out pictures right")
apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
print(f"largest difference of the losses in {len(losses['convx'])} steps: {apart:.1e}")

# %%

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", width_ratios=(3, 2))
left.plot(losses["PyTorch"], color="C1", linewidth=4, alpha=0.5, label="PyTorch")
left.plot(losses["convx"], color="C0", linewidth=1, label="convx")
left.set(xlabel="step", ylabel="cross-entropy", title="training loss", ylim=(0, None))
left.legend()
right.boxplot([[1000 * each for each in seconds[name]] for name in models], tick_labels=list(models))
right.set(ylabel="ms", title="time per epoch, one thread", ylim=(0, None))
plt.show()

# %%
# Back to PyTorch
# ---------------
# `convx.torch.revert` restores PyTorch's layers, with the trained parameters.

print(convx.torch.revert(converted))
