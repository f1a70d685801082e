"""``python -m convx demo``: a photograph through the classic pipeline, every stage drawn."""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.table import Table
from rich.text import Text
from sklearn.datasets import load_sample_image

from .. import ops
from . import pictures
from .console import Console
from .errors import CommandError, printable

Image32 = npt.NDArray[np.float32]

SHIPPED = "china.jpg"  # of scikit-learn: roofs and railings, with edges in every direction
KERNELS = {
    "edge kernel": [[0, -1, 0], [-1, 4, -1], [0, -1, 0]],
    "Sobel, horizontal edges": [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],
    "Sobel, vertical edges": [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
}
STDERR = 2  # the file descriptor
LEAST_SIDE = 3  # the kernels are 3 x 3
REPEATS = 7  # of each stage; the median is reported
LONGEST = 0.2  # seconds of one run, and of repeating
RECOMMENDATION_601 = (0.299, 0.587, 0.114)  # ITU-R BT.601: the share of red, green and blue in the luma


@dataclass(frozen=True)
class Stage:
    """The output of one operation for all kernels, and how long it took."""

    name: str
    maps: Image32
    milliseconds: float


def run(options: argparse.Namespace) -> None:
    """Read the photograph, run the pipeline, print the table and write the picture."""
    destination = pictures.destination(options.output, options.image)
    name, photograph = shipped() if options.image is None else (options.image.name, read(options.image))
    if min(photograph.shape[:2]) < LEAST_SIDE:
        height, width = photograph.shape[:2]
        raise CommandError(
            f"{name} is {height} x {width} pixels, the kernels need at least {LEAST_SIDE} x {LEAST_SIDE}"
        )
    grey = to_grey(photograph)
    stages = pipeline(grey)

    title = Text(printable(f"{name}: {len(KERNELS)} kernels of 3 x 3, float32"))
    table = Table(title=title, title_justify="left")
    table.add_column("stage", overflow="fold")
    for column in ("shape", "min", "max", "time, ms"):
        table.add_column(column, justify="right", overflow="fold")
    table.add_row("grey values", shape_of(grey[None]), f"{grey.min():.3f}", f"{grey.max():.3f}", "")
    for stage in stages:
        low, high, spent = f"{stage.maps.min():.3f}", f"{stage.maps.max():.3f}", f"{stage.milliseconds:.3f}"
        table.add_row(stage.name, shape_of(stage.maps), low, high, spent)
    console = Console()
    console.print(table)

    figure = pictures.pipeline(photograph, grey, KERNELS, [(stage.name, stage.maps) for stage in stages])
    pictures.write(figure, destination)
    console.say(f"wrote {destination}")


def shipped() -> tuple[str, npt.NDArray[np.uint8]]:
    """Return the name and the pixels of a photograph that comes with scikit-learn."""
    return SHIPPED, load_sample_image(SHIPPED)


def read(path: Path) -> npt.NDArray[Any]:
    """Read an image file, upright, as (H, W) or (H, W, 3)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and damaged metadata
            with _silent(), Image.open(path) as image:
                upright = ImageOps.exif_transpose(image)
                # Modes I and F hold 16-bit, 32-bit and floating-point greys, which the conversion to RGB would clip.
                if upright.mode[0] in "IF":
                    return np.asarray(upright)
                if upright.has_transparency_data:  # on white, as viewers show it
                    upright = upright.convert("RGBA")
                    upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
                return np.asarray(upright.convert("RGB"))
    except FileNotFoundError:
        raise CommandError(f"there is no file {path}") from None
    except UnidentifiedImageError:
        raise CommandError(f"{path} is not an image that can be read") from None
    except Image.DecompressionBombError as error:
        raise CommandError(f"{path} is too large: {error}") from None
    except MemoryError:
        raise
    except Exception as error:
        # Pillow raises nearly anything for a damaged file: OSError, SyntaxError, ValueError, RuntimeError (AVIF), ...
        reason = getattr(error, "strerror", None) or str(error) or "it is damaged"
        raise CommandError(f"cannot read {path}: {reason}") from None


@contextmanager
def _silent() -> Iterator[None]:
    """Discard libtiff's messages about a damaged file, since they name no file."""
    try:
        kept = os.dup(STDERR)
    except OSError:  # it is closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), STDERR)
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)


def to_grey(photograph: npt.NDArray[Any]) -> Image32:
    """Return the luma of 8-bit colours, or deeper greys, between 0 and 1 as (H, W)."""
    if photograph.ndim == 3:
        red, green, blue = (
            np.float32(share / 255) * photograph[..., channel] for channel, share in enumerate(RECOMMENDATION_601)
        )
        luma: Image32 = red + green + blue
        return luma
    finite = np.isfinite(photograph)
    if photograph.dtype.kind == "u" and photograph.dtype.itemsize == 2:
        low, high = 0.0, 65535.0
    elif finite.any():  # 32-bit and floating-point greys have no fixed range
        low, high = (float(end(photograph, where=finite, initial=photograph[finite][0])) for end in (np.min, np.max))
    else:
        raise CommandError("the photograph has no pixel that is a finite number")
    # In float64: the range of float32 numbers may be twice the largest of them.
    grey = (np.where(finite, photograph, low).astype(np.float64) - low) / (high - low or 1)
    return np.asarray(grey, np.float32)


def pipeline(grey: Image32) -> list[Stage]:
    """Run convolution with both borders, ReLU and 2 x 2 max-pooling (the last two on the zero border)."""
    image = grey[None]
    weight = np.array(list(KERNELS.values()), np.float32)[:, None]
    zero = measure("convolution, zero border", lambda out: ops.conv2d(image, weight, padding=1, out=out))
    valid = measure("convolution, valid border", lambda out: ops.conv2d(image, weight, padding="valid", out=out))
    positive = measure("ReLU", lambda out: ops.relu(zero.maps, out=out))
    pooled = measure("max-pool 2 x 2", lambda out: ops.max_pool2d(positive.maps, 2))
    return [zero, valid, positive, pooled]


def measure(name: str, operation: Callable[[Image32 | None], Image32]) -> Stage:
    """Run `operation`, then again a few times, where it can into the same memory, for the median.

    The first run warms up; where it takes long, as with the photograph of a telephone, it is the only one.
    """
    start = time.perf_counter()
    maps = operation(None)
    first = time.perf_counter() - start
    times: list[float] = []
    while first < LONGEST and len(times) < REPEATS and sum(times) < LONGEST:
        start = time.perf_counter()
        operation(maps)
        times.append(time.perf_counter() - start)
    return Stage(name, maps, 1000 * statistics.median(times or [first]))


def shape_of(maps: npt.NDArray[Any]) -> str:
    """Write a shape as text."""
    return " x ".join(map(str, maps.shape))
