"""``python -m convx train``: a small convolutional network learns scikit-learn's handwritten digits.

The data are 1797 digits of 8 x 8 pixels (UCI "Optical Recognition of Handwritten Digits", the test part). They
come with scikit-learn; 80 % train the network, the others are held out and only measured.
"""

from __future__ import annotations

import argparse
import importlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits

from .. import cuda, nn, optim
from . import LEARNING_RATES, pictures
from .console import Console
from .errors import CommandError, prepare_file, write_file

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

CLASSES = 10
HELD_OUT = 0.2
GOAL = 0.98
MOMENTUM = 0.9
SHIFTED = 0.3  # the share of training digits that are shifted along an axis
NAMES = {nn.Conv2d: "convolution 3 × 3", nn.ReLU: "ReLU", nn.MaxPool2d: "max-pool 2 × 2"}
PICTURES = ("loss.png", "kernels.png", "feature-maps.png")
BRIGHTEST = 16  # the digits' pixels count the dark points of a 4 x 4 block


@dataclass(frozen=True)
class Digits:
    """The data: images of shape (N, 1, 8, 8), from 0 to 1, and their labels."""

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels


def run(options: argparse.Namespace) -> None:
    """Train, report the accuracy of each class, and write the pictures."""
    xp = array_module(options.device)
    files = [options.output_dir / name for name in PICTURES]
    for path in files:
        prepare_file(path)
    if options.save is not None:
        prepare_file(options.save, *files)
    console = Console()
    rng = np.random.default_rng(options.seed)
    digits = load(rng)
    if options.batch_size > len(digits.train_labels):
        raise CommandError(
            f"--batch-size is {options.batch_size}, there are {len(digits.train_labels)} training digits"
        )
    network = build(rng).to(xp)

    start = time.perf_counter()
    losses, accuracies = fit(network, digits, options, rng, console, xp)
    seconds = time.perf_counter() - start

    network.to(np)
    answers = network(digits.test_images).argmax(axis=1)
    right = int((answers == digits.test_labels).sum())
    console.print(report(digits.test_labels, answers))
    console.say(
        f"held-out accuracy {right / len(answers):.2%}: {right} of {len(answers)} digits,"
        f" after {options.epochs} epoch{'s' * (options.epochs != 1)} in {seconds:.1f} s",
    )
    if options.save is not None:
        write_file(options.save, network.save)
        console.say(f"wrote {options.save}")
    for path, figure in zip(files, draw(network, digits, losses, accuracies), strict=True):
        pictures.write(figure, path)
        console.say(f"wrote {path}")


def load(rng: np.random.Generator) -> Digits:
    """Load the digits and hold out the same share of every class."""
    data = load_digits()
    images, labels = (data.images[:, None] / BRIGHTEST).astype(np.float32), data.target.astype(np.int64)
    held_out = np.zeros(len(labels), bool)
    for digit in range(CLASSES):
        members = rng.permutation(np.flatnonzero(labels == digit))
        held_out[members[: round(HELD_OUT * len(members))]] = True
    return Digits(images[~held_out], labels[~held_out], images[held_out], labels[held_out])


def build(rng: np.random.Generator) -> nn.Sequential:
    """Make the network, its weights drawn from `rng`."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, rng=rng),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, rng=rng),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 2 * 2, CLASSES, rng=rng),
    )


def array_module(device: str) -> Any:
    """Return the library whose arrays train on `device`: NumPy or CuPy."""
    if device == "cpu":
        return np
    if reason := cuda.unavailable_reason():
        raise CommandError(f"--device cuda: {reason}")
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise CommandError(f"--device cuda needs CuPy (pip install cupy-cuda13x): {error}") from None


def fit(
    network: nn.Sequential,
    digits: Digits,
    options: argparse.Namespace,
    rng: np.random.Generator,
    console: Console,
    xp: Any = np,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Train `network`; return the loss of every step, shape (epochs, steps), and the accuracy after every epoch.

    The digits lie in NumPy's arrays, batches and everything computed from them in those of `xp`.
    """
    rate = LEARNING_RATES[options.optimizer] if options.lr is None else options.lr
    optimizer: optim.Optimizer
    if options.optimizer == "adam":
        optimizer = optim.Adam(network.parameters(), rate)
    else:
        optimizer = optim.SGD(network.parameters(), rate, MOMENTUM)
    criterion = nn.CrossEntropyLoss()
    count = len(digits.train_labels)
    steps = -(-count // options.batch_size)
    losses: list[list[float]] = []
    accuracies: list[float] = []

    # A learning rate that is too high overflows first; the check of the loss reports it, not a warning.
    with progress(console, options.epochs, steps) as tell, np.errstate(over="ignore", invalid="ignore"):
        for epoch in range(options.epochs):
            optimizer.lr = rate * 0.5 * (1 + math.cos(math.pi * (epoch / options.epochs)))
            order = rng.permutation(count)
            losses.append([])
            for step in range(steps):
                batch = order[step * options.batch_size : (step + 1) * options.batch_size]
                scores, context = network.forward(xp.asarray(shifted(digits.train_images[batch], rng)))
                loss, loss_context = criterion.forward(scores, xp.asarray(digits.train_labels[batch]))
                loss = float(loss)
                if not np.isfinite(loss):
                    raise diverged(f"the loss is {loss}", epoch, rate)
                optimizer.zero_grad()
                network.backward(criterion.backward(loss_context), context, need_grad_input=False)
                optimizer.step()
                losses[-1].append(loss)
                tell(epoch, loss, None)
            scores = network(xp.asarray(digits.test_images))
            if not math.isfinite(float(scores.sum())):  # no loss follows the last step of an epoch
                raise diverged("scores are not finite", epoch, rate)
            accuracies.append(float((scores.argmax(axis=1) == xp.asarray(digits.test_labels)).mean()))
            tell(epoch, float(np.mean(losses[-1])), accuracies[-1])
    return np.array(losses), np.array(accuracies)


def diverged(what: str, epoch: int, rate: float) -> CommandError:
    """Return the error of a training that overflowed."""
    return CommandError(f"{what} in epoch {epoch + 1}: try a --lr below {rate:g}")


def shifted(images: Images, rng: np.random.Generator) -> Images:
    """Shift each image by -1, 0 or 1 pixel along each axis; zeros fill the border.

    The network then learns shapes more than places: the mean accuracy of 16 seeds rose from 98.5 to 99.0 %, the lowest
    from 96.4 to 98.1 %.
    """
    count, _, height, width = images.shape
    framed = np.pad(images[:, 0], ((0, 0), (1, 1), (1, 1)))
    top, left = rng.choice(3, (2, count, 1, 1), p=(SHIFTED / 2, 1 - SHIFTED, SHIFTED / 2))
    rows, columns = top + np.arange(height)[:, None], left + np.arange(width)
    moved: Images = framed[np.arange(count)[:, None, None], rows, columns][:, None]
    return moved


Tell = Callable[[int, float, float | None], None]


@contextmanager
def progress(console: Console, epochs: int, steps: int) -> Iterator[Tell]:
    """Show the progress of the training: a bar in a terminal, one line for each epoch in a log file.

    The function that it gives takes the epoch (from 0), the loss, and the accuracy: None after a step, a number after
    an epoch.
    """
    digits = len(str(epochs))
    if not console.is_interactive:

        def write(epoch: int, loss: float, accuracy: float | None) -> None:
            if accuracy is not None:
                console.say(f"epoch {epoch + 1:>{digits}}/{epochs}  loss {loss:.4f}  held-out {accuracy:7.2%}")

        yield write
        return

    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("loss {task.fields[loss]}  held-out {task.fields[accuracy]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, expand=True) as bar:
        task = bar.add_task(
            "", total=epochs * steps, epoch=f"{0:>{digits}}/{epochs}", loss="      ", accuracy="       "
        )

        def advance(epoch: int, loss: float, accuracy: float | None) -> None:
            bar.update(task, epoch=f"{epoch + 1:>{digits}}/{epochs}", loss=f"{loss:.4f}")
            if accuracy is None:
                bar.advance(task)
            else:
                bar.update(task, accuracy=f"{accuracy:7.2%}")

        yield advance


def report(labels: Labels, answers: Labels) -> Table:
    """Make the table of the accuracy of each class."""
    table = Table(title="Held-out digits", title_justify="left")
    for column in ("digit", "images", "right", "accuracy"):
        table.add_column(column, justify="right", overflow="fold")
    table.add_column("mistaken for (times)", overflow="fold")
    for digit in range(CLASSES):
        given = answers[labels == digit]
        right = int((given == digit).sum())
        others, counts = np.unique(given[given != digit], return_counts=True)
        wrong = ", ".join(f"{other} ({count})" for other, count in zip(others, counts, strict=True))
        table.add_row(str(digit), str(len(given)), str(right), f"{right / len(given):.1%}", wrong)
    return table


def draw(
    network: nn.Sequential,
    digits: Digits,
    losses: npt.NDArray[np.float64],
    accuracies: npt.NDArray[np.float64],
) -> tuple[Figure, ...]:
    """Draw PICTURES: the loss, the kernels, and one held-out digit, the first that is right, after each layer."""
    shown = int((network(digits.test_images).argmax(axis=1) == digits.test_labels).argmax())
    output: npt.NDArray[Any] = digits.test_images[shown : shown + 1]
    layers = []
    for layer in network:
        output = layer(output)
        if output.ndim == 4:
            layers.append((NAMES[type(layer)], output[0]))
    exponentials = np.exp(output[0] - output[0].max())
    weights = {
        f"convolution {number}": layer.weight.value
        for number, layer in enumerate((layer for layer in network if isinstance(layer, nn.Conv2d)), start=1)
    }
    return (
        pictures.training(losses, accuracies, GOAL),
        pictures.kernels(weights),
        pictures.feature_maps(
            digits.test_images[shown, 0], int(digits.test_labels[shown]), layers, exponentials / exponentials.sum()
        ),
    )
