"""The commands behind ``python -m convx``: the parser here, one module for each command.

A command module is imported only when it runs, so that `info` needs nothing but NumPy.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import CommandError

# What the extra `demo` installs: the importable name and the package.
DEMO_EXTRA = {"matplotlib": "matplotlib", "PIL": "pillow", "rich": "rich", "sklearn": "scikit-learn"}
LEARNING_RATES = {"adam": 0.005, "sgd": 0.05}
INTERRUPTED = 130  # what a shell reports for a program that SIGINT ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names (by default the process's arguments) and return its exit status.

    0 is success and 1 a failure; wrong options end the process with 2, as argparse does.
    """
    options = _parser().parse_args(argv)
    try:
        importlib.import_module(f".{options.command}", __name__).run(options)
    except CommandError as error:
        return _fail(options.command, str(error))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in DEMO_EXTRA:
            raise
        return _fail(options.command, f'this command needs {DEMO_EXTRA[missing]}: pip install "convx[demo]"')
    except KeyboardInterrupt:
        print(f"convx {options.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _fail(command: str, message: str) -> int:
    print(f"convx {command}: error: {message}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m convx", description="Fast convolution for NumPy arrays.", epilog="Without a command: info."
    )
    parser.set_defaults(command="info", json=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(command=name)
        return command

    demo = add("demo", "Take a photograph through edge kernels, ReLU and max-pooling; draw every stage.")
    demo.add_argument("--image", type=Path, metavar="FILE", help="your own photograph, in any format that Pillow reads")
    demo.add_argument(
        "--output", type=Path, metavar="FILE", default=Path("convx-demo.png"), help="the picture (default: %(default)s)"
    )

    train = add("train", "Train a small convolutional network on scikit-learn's handwritten digits.")
    count, index = whole_number(1), whole_number(0)
    train.add_argument(
        "--epochs", type=count, metavar="N", default=30, help="passes over the training digits (default: %(default)s)"
    )
    train.add_argument("--batch-size", type=count, metavar="N", default=32, help="digits a step (default: %(default)s)")
    train.add_argument(
        "--optimizer",
        choices=tuple(LEARNING_RATES),
        default="adam",
        help="sgd has a momentum of 0.9 (default: %(default)s)",
    )
    defaults = ", ".join(f"{lr} for {name}" for name, lr in LEARNING_RATES.items())
    train.add_argument(
        "--lr",
        type=positive_number,
        metavar="X",
        help=f"the first learning rate; it falls to 0 along a cosine (default: {defaults})",
    )
    train.add_argument(
        "--seed", type=index, metavar="N", default=0, help="of the split, weights and order (default: %(default)s)"
    )
    train.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where to train; cuda needs a GPU and CuPy (default: %(default)s)",
    )
    train.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        default=Path("convx-train"),
        help="the folder for the pictures (default: %(default)s)",
    )
    train.add_argument("--save", type=Path, metavar="FILE", help="write the trained parameters, as npz")

    info = add("info", "Tell what convx runs on this machine, and why.")
    info.add_argument("--json", action="store_true", help="for programs")
    return parser


def whole_number(least: int) -> Callable[[str], int]:
    """Return a converter for argparse: text to an int of at least `least`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is below {least}")
        return value

    return convert


def positive_number(text: str) -> float:
    """Convert text to a finite float above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return value
