"""``python -m convx demo``: a photograph through the classic pipeline, every stage drawn."""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_image

from .. import ops
from . import pictures
from .errors import CommandError

Image32 = npt.NDArray[np.float32]

SHIPPED = "china.jpg"  # of scikit-learn: roofs and railings, with edges in every direction
KERNELS = {
    "edge kernel": [[0, -1, 0], [-1, 4, -1], [0, -1, 0]],
    "Sobel, horizontal edges": [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],
    "Sobel, vertical edges": [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
}
LEAST_SIDE = 3  # the kernels are 3 x 3
REPEATS = 7  # of each stage; the median is reported
RECOMMENDATION_601 = (0.299, 0.587, 0.114)  # ITU-R BT.601: the share of red, green and blue in the luma


@dataclass(frozen=True)
class Stage:
    """The output of one operation for all kernels, and how long it took."""

    name: str
    maps: Image32
    milliseconds: float


def run(options: argparse.Namespace) -> None:
    """Read the photograph, run the pipeline, print the table and write the picture."""
    destination = pictures.destination(options.output)
    name, photograph = shipped() if options.image is None else (options.image.name, read(options.image))
    if min(photograph.shape[:2]) < LEAST_SIDE:
        height, width = photograph.shape[:2]
        raise CommandError(
            f"{name} is {height} x {width} pixels, the kernels need at least {LEAST_SIDE} x {LEAST_SIDE}"
        )
    grey = to_grey(photograph)
    stages = pipeline(grey)

    table = Table(title=f"{name}: {len(KERNELS)} kernels of 3 x 3, float32", title_justify="left")
    table.add_column("stage")
    for column in ("shape", "min", "max", "time, ms"):
        table.add_column(column, justify="right")
    table.add_row("grey values", shape_of(grey[None]), f"{grey.min():.3f}", f"{grey.max():.3f}", "")
    for stage in stages:
        low, high, spent = f"{stage.maps.min():.3f}", f"{stage.maps.max():.3f}", f"{stage.milliseconds:.3f}"
        table.add_row(stage.name, shape_of(stage.maps), low, high, spent)
    console = Console()
    console.print(table)

    figure = pictures.pipeline(photograph, grey, KERNELS, [(stage.name, stage.maps) for stage in stages])
    pictures.write(figure, destination)
    console.print(f"wrote {destination}", highlight=False, soft_wrap=True)


def shipped() -> tuple[str, npt.NDArray[np.uint8]]:
    """Return the name and the pixels of a photograph that scikit-learn brings along."""
    return SHIPPED, load_sample_image(SHIPPED)


def read(path: Path) -> npt.NDArray[Any]:
    """Read an image file, upright, as (H, W) or (H, W, 3)."""
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 million pixels on; twice as many are its error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                upright = ImageOps.exif_transpose(image)
                # Modes I and F hold 16-bit, 32-bit and floating-point greys, which the conversion to RGB would clip.
                return np.asarray(upright if upright.mode[0] in "IF" else upright.convert("RGB"))
    except FileNotFoundError:
        raise CommandError(f"there is no file {path}") from None
    except UnidentifiedImageError:
        raise CommandError(f"{path} is not an image that can be read") from None
    except Image.DecompressionBombError as error:
        raise CommandError(f"{path} is too large: {error}") from None
    except (OSError, SyntaxError, ValueError) as error:
        # Pillow raises any of the three for a damaged file.
        raise CommandError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def to_grey(photograph: npt.NDArray[Any]) -> Image32:
    """Return the luma of 8-bit colours, or deeper greys, between 0 and 1 as (H, W)."""
    low, high = 0.0, 255.0
    if photograph.ndim == 3:
        photograph = photograph @ np.array(RECOMMENDATION_601)
    elif photograph.dtype == np.uint16:
        high = 65535.0
    else:  # 32-bit and floating-point greys have no fixed range
        low, high = float(photograph.min()), float(photograph.max())
    grey: Image32 = ((photograph - low) / (high - low or 1)).astype(np.float32)
    return grey


def pipeline(grey: Image32) -> list[Stage]:
    """Run convolution with both borders, ReLU and 2 x 2 max-pooling (the last two on the zero border)."""
    image = grey[None]
    weight = np.array(list(KERNELS.values()), np.float32)[:, None]
    zero = measure("convolution, zero border", lambda: ops.conv2d(image, weight, padding=1))
    valid = measure("convolution, valid border", lambda: ops.conv2d(image, weight, padding="valid"))
    positive = measure("ReLU", lambda: ops.relu(zero.maps))
    pooled = measure("max-pool 2 x 2", lambda: ops.max_pool2d(positive.maps, 2))
    return [zero, valid, positive, pooled]


def measure(name: str, operation: Callable[[], Image32]) -> Stage:
    """Run `operation` once to warm up, then a few times for the median."""
    maps = operation()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        operation()
        times.append(time.perf_counter() - start)
    return Stage(name, maps, 1000 * statistics.median(times))


def shape_of(maps: npt.NDArray[Any]) -> str:
    """Write a shape as text."""
    return " x ".join(map(str, maps.shape))
