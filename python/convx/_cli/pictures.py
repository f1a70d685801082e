"""The pictures of the commands: plain arrays in, a matplotlib figure out.

Signed values have one colour scale everywhere: blue below zero, black at zero, amber above.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rcdefaults
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from .errors import CommandError, prepare_file, write_file

rcdefaults()  # the pictures do not depend on the user's settings, nor on TeX, which may be missing

Array = npt.NDArray[Any]

SIGNED = LinearSegmentedColormap.from_list(
    "signed", ["#a6dcff", "#2f86c9", "#05070a", "#d98a1f", "#ffe2a6"]
).with_extremes(bad="w")
INK = "#1f2933"
WIDEST = 2000  # pixels of a picture
SHOWN = 960  # pixels along each side of one image in it: twice its room, for a clean reduction
COUNTED = 1_000_000  # values that determine the end of a colour scale
DETAIL = 24  # the pixels along each side of the enlarged corner


def destination(path: Path, source: Path | None = None) -> Path:
    """Return the path of a picture (png by default), after checks; makes its folder and refuses `source`."""
    if os.path.isdir(path):
        raise CommandError(f"cannot write {path}: it is a folder")
    path = path if path.suffix else path.with_name(f"{path.name}.png")
    # Except pgf, which needs TeX and puts images beside the file.
    formats = Figure().canvas.get_supported_filetypes().keys() - {"pgf"}
    if path.suffix[1:].lower() not in formats:
        raise CommandError(f"cannot write {path}: its format is not one of {', '.join(sorted(formats))}")
    prepare_file(path, *([source] if source else []))
    return path


def write(figure: Figure, path: Path) -> None:
    """Save `figure` in the format of the file's suffix."""
    dpi = min(150, WIDEST / figure.get_figwidth())
    write_file(path, lambda place: figure.savefig(place, dpi=dpi, format=path.suffix[1:].lower()))


def pipeline(
    photograph: Array, grey: Array, kernels: Mapping[str, Array | list[list[int]]], stages: Sequence[tuple[str, Array]]
) -> Figure:
    """Draw the photograph and its border in detail above one row of stages for each kernel.

    Parameters
    ----------
    photograph : array, shape (H, W) or (H, W, 3)
    grey : array, shape (H, W), from 0 to 1
    kernels : the name and the 3 x 3 numbers of each kernel
    stages : the name and the maps, shape (kernels, height, width), of zero border, valid border, ReLU and pooling
    """
    rows, columns = 1 + len(kernels), 1 + len(stages)
    width = 3.6
    height = width * float(np.clip(grey.shape[0] / grey.shape[1], 0.4, 1.6))
    figure = _figure(width * (columns - 0.45), (height + 0.5) * rows + 0.7)
    grid = figure.subplots(rows, columns, width_ratios=[0.55] + [1] * len(stages))
    figure.suptitle("From a photograph to its edges", fontsize=20, fontweight="bold", color=INK)

    (zero_name, zero), (valid_name, valid) = stages[:2]
    grid[0, 0].axis("off")
    seen = photograph if photograph.ndim == 3 else grey  # matplotlib reads neither deep greys nor NaN well
    _picture(grid[0, 1], seen, f"photograph\n{_size(photograph)}", cmap="gray")
    _picture(grid[0, 2], grey, f"grey values, 0 to 1\n{_size(grey)}", cmap="gray", vmin=0, vmax=1)
    # Both corners in the coordinates of the photograph: the valid output begins one pixel further in.
    limit, side = _limit(zero[0]), min(DETAIL, *grey.shape)
    for axes, name, corner, first in (
        (grid[0, 3], zero_name, zero[0, :side, :side], 0),
        (grid[0, 4], valid_name, valid[0, : side - 1, : side - 1], 1),
    ):
        extent = (first - 0.5, first + corner.shape[1] - 0.5, first + corner.shape[0] - 0.5, first - 0.5)
        axes.set_facecolor("#e6e9ec")
        axes.imshow(corner, cmap=SIGNED, vmin=-limit, vmax=limit, extent=extent, interpolation="nearest")
        marks = range(0, side, 8)
        axes.set(xlim=(-1.5, side - 0.5), ylim=(side - 0.5, -1.5), xticks=marks, yticks=marks)
        axes.tick_params(labelsize=9, colors=INK)
        axes.set_title(f"top left corner, edge kernel\n{name.split(', ')[-1]}", fontsize=12, color=INK)

    for row, (name, kernel) in enumerate(kernels.items(), start=1):
        _numbers(grid[row, 0], np.asarray(kernel), name)
        limit = _limit(stages[0][1][row - 1])
        for axes, (stage, maps) in zip(grid[row, 1:], stages, strict=True):
            title = f"{stage.replace(' x ', ' × ')}\n{_size(maps[row - 1])}"
            image = _picture(axes, maps[row - 1], title, cmap=SIGNED, vmin=-limit, vmax=limit)
        ticks = MaxNLocator(5, symmetric=True)
        parents = list(grid[row, 1:])  # which panchor=False leaves in the middle of their columns
        bar = figure.colorbar(image, ax=parents, fraction=0.02, pad=0.01, extend="both", ticks=ticks, panchor=False)
        bar.ax.tick_params(labelsize=9, colors=INK)
    return figure


def _figure(width: float, height: float) -> Figure:
    """Make an empty white figure; the sizes are in inches."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1), facecolor="w")


def _picture(axes: Axes, image: Array, title: str, **options: Any) -> Any:
    shown = axes.imshow(reduced(image), **options)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=12, color=INK)
    return shown


def _numbers(axes: Axes, kernel: Array, title: str) -> None:
    """Draw a kernel as its numbers, on their colours."""
    limit = np.abs(kernel).max()
    _picture(axes, kernel, title.replace(", ", "\n"), cmap=SIGNED, vmin=-1.6 * limit, vmax=1.6 * limit)
    for row, column in np.ndindex(kernel.shape):
        axes.text(column, row, f"{kernel[row, column]:d}", ha="center", va="center", color="w", fontsize=16)


def _limit(values: Array) -> float:
    """Return the end of a colour scale: 99 % of the values are smaller."""
    step = -(-values.size // COUNTED)
    return float(np.percentile(np.abs(values.reshape(-1)[::step]), 99)) or 1.0


def reduced(image: Array) -> Array:
    """Return an image of at most SHOWN pixels a side: the means of square blocks of a larger one.

    Matplotlib takes 1.5 GB and 6 s for each image of 24 million pixels that it is given.
    """
    factor = -(-max(image.shape[:2]) // SHOWN)
    if factor == 1:
        return image
    height, width = min(factor, image.shape[0]), min(factor, image.shape[1])
    rows, columns = image.shape[0] // height, image.shape[1] // width
    blocks = image[: rows * height, : columns * width].reshape(rows, height, columns, width, *image.shape[2:])
    means: Array = blocks.mean(axis=(1, 3), dtype=np.float32)
    return means.astype(image.dtype)


def _size(image: Array) -> str:
    return f"{image.shape[0]} × {image.shape[1]}"


def training(losses: Array, accuracies: Array, goal: float) -> Figure:
    """Draw how the training went.

    Parameters
    ----------
    losses : array, shape (epochs, steps), the loss of every step
    accuracies : array, shape (epochs,), the share of held-out digits that were right after each epoch
    goal : the accuracy to mark
    """
    figure = _figure(12, 4.6)
    left, right = figure.subplots(1, 2, sharex=True)
    epochs = np.arange(1, len(losses) + 1)
    steps = np.arange(1, losses.size + 1) / losses.shape[1]
    left.plot(steps, losses.ravel(), color="#9fc9ea", linewidth=0.8, label="each step")
    left.plot(epochs - 0.5, losses.mean(axis=1), color="#1f6fb2", linewidth=2, marker="o", label="mean of an epoch")
    left.set(xlabel="epoch", ylabel="cross-entropy", yscale="log", title="Loss on the training digits")
    right.plot(epochs, 100 * accuracies, color="#d98a1f", linewidth=2, marker="o", label="after each epoch")
    right.axhline(100 * goal, color=INK, linewidth=1, linestyle="--", label=f"{goal:.0%}")
    right.set(xlabel="epoch", ylabel="%", title=f"Held-out digits: {accuracies[-1]:.2%} right at the end")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#e6e9ec")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def kernels(layers: Mapping[str, Array]) -> Figure:
    """Draw the weights of convolution layers: a row of kernels for each input channel, a column for each output.

    Parameters
    ----------
    layers : the name and the weight, shape (K, C, R, S), of each layer
    """
    heights = [0.6 + 0.32 * weight.shape[1] for weight in layers.values()]
    figure = _figure(13, 0.6 + sum(heights))
    grid = figure.subplots(len(layers), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (name, weight) in zip(grid, layers.items(), strict=True):
        outputs, inputs, height, width = weight.shape
        limit = _limit(weight)
        tiles = mosaic(weight.transpose(1, 0, 2, 3).reshape(-1, height, width), outputs, gap=1)
        size = f"{outputs * inputs} kernels of {height} × {width}"
        title = f"{name}: {size}; a column for each output channel, a row for each input channel"
        shown = _picture(axes, tiles, title, cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="nearest")
        figure.colorbar(shown, ax=axes, fraction=0.02, pad=0.01, extend="both", ticks=MaxNLocator(3, symmetric=True))
    return figure


def feature_maps(digit: Array, label: int, layers: Sequence[tuple[str, Array]], probabilities: Array) -> Figure:
    """Draw one digit, the output of every layer, and the network's answer.

    Parameters
    ----------
    digit : array, shape (H, W)
    label : the right answer
    layers : the name and the maps, shape (channels, height, width), of each layer in order
    probabilities : array, shape (classes,)
    """
    columns, cell = 16, 8
    rows = [-(-maps.shape[0] // columns) for _, maps in layers]
    heights = [3.0] + [0.45 + 0.8 * count for count in rows]
    figure = _figure(13.5, sum(heights) + 0.4)
    top, *bands = figure.subfigures(1 + len(layers), 1, height_ratios=heights, squeeze=False)[:, 0]
    image, bars = top.subplots(1, 2, width_ratios=[1, 3])
    _picture(image, digit, f"a held-out digit: {label}", cmap="gray", interpolation="nearest")
    answer = int(probabilities.argmax())
    colours = ["#d98a1f" if each == answer else "#9fb3c4" for each in range(len(probabilities))]
    bars.bar(range(len(probabilities)), 100 * probabilities, color=colours)
    bars.set(xticks=range(len(probabilities)), ylim=(0, 100), ylabel="%")
    bars.set_title(f"the network's answer: {answer} ({probabilities[answer]:.1%})", fontsize=12, color=INK)
    bars.spines[["top", "right"]].set_visible(False)
    for band, (name, maps) in zip(bands, layers, strict=True):
        scale = max(1, cell // maps.shape[1])
        tiles = mosaic(maps.repeat(scale, axis=1).repeat(scale, axis=2), columns, gap=1)
        axes = band.subplots()
        limit = float(np.abs(maps).max()) or 1.0
        title = f"{name}: {maps.shape[0]} maps of {_size(maps[0])}"
        shown = _picture(axes, tiles, title, cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="nearest")
        band.colorbar(shown, ax=axes, fraction=0.02, pad=0.01, ticks=MaxNLocator(3, symmetric=True))
    return figure


def mosaic(images: Array, columns: int, gap: int) -> Array:
    """Arrange images, shape (count, H, W), in rows of `columns`, with `gap` pixels of NaN between them."""
    count, height, width = images.shape
    rows = -(-count // columns)
    tiles = np.full((rows * columns, height + gap, width + gap), np.nan)
    tiles[:count, :height, :width] = images
    grid = tiles.reshape(rows, columns, height + gap, width + gap).transpose(0, 2, 1, 3)
    return grid.reshape(rows * (height + gap), columns * (width + gap))[:-gap, :-gap]
