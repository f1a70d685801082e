"""The commands of ``python -m convx``: the parser here, one module for each command.

A command module is imported only when it runs, so that `info` needs only NumPy.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from .errors import CommandError, printable

# The packages of the extra `demo`, by importable name.
DEMO_EXTRA = {"matplotlib": "matplotlib", "PIL": "pillow", "rich": "rich", "sklearn": "scikit-learn"}
LEARNING_RATES = {"adam": 0.005, "sgd": 0.05}
BROKEN_PIPE = 141  # the exit status of a program ended by SIGPIPE, in a shell
_signals: list[int] = []  # received by `end`


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (by default the process's arguments) and return its exit status.

    0 is success and 1 a failure; wrong options end the process with 2, as in argparse. All errors of a command end
    here, with at most one line on standard error.
    """
    _make_printable()
    command = "convx"
    try:
        try:
            options = _parser().parse_args(argv)
            command = f"convx {options.command}"
            _run(options)
        finally:
            sys.stdout.flush()  # here, where the errors of a full disk or a closed pipe are still handled
    except CommandError as error:
        return _fail(command, str(error))
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and missing in DEMO_EXTRA:
            return _fail(command, f'this command needs {DEMO_EXTRA[missing]}: pip install "convx[demo]"')
        return _fail(command, str(error))
    except MemoryError:
        return _fail(command, "there is not enough memory")
    except KeyboardInterrupt:
        return _interrupted(command)
    except OSError as error:
        if error.filename is not None or error.strerror is None:
            return _fail(command, str(error))
        # Commands turn errors of their own files into CommandError, so this is an error of the standard output.
        _discard_output()
        if error.errno == errno.EPIPE:
            return BROKEN_PIPE
        return _fail(command, f"cannot write to the standard output: {error.strerror}")
    except Exception:
        if not _signals:
            raise
        return _interrupted(command)  # matplotlib's C++ replaced KeyboardInterrupt by an exception of its own
    return 0


def end(number: int, _: object) -> None:
    """Handle a signal as Python handles SIGINT: by an exception, so that half-written files are removed."""
    _signals.append(number)
    raise KeyboardInterrupt


def _interrupted(command: str) -> int:
    print(f"{command}: interrupted", file=sys.stderr)
    return 128 + (_signals or [signal.SIGINT])[0]  # the exit status of a program ended by a signal, in a shell


def _run(options: argparse.Namespace) -> None:
    """Check the environment's settings, then run the command."""
    from .._cpu import config

    try:
        config()
    except RuntimeError as error:
        raise CommandError(str(error)) from None
    except UnicodeDecodeError as error:  # the message quotes a variable's bytes
        raise CommandError(os.fsdecode(error.object)) from None
    importlib.import_module(f".{options.command}", __name__).run(options)


def _fail(command: str, message: str) -> int:
    print(f"{command}: error: {printable(message)}", file=sys.stderr)
    return 1


def _make_printable() -> None:
    """Print characters that the terminal cannot show as escapes, and replace closed streams by the null device."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)  # open until the process ends
            setattr(sys, name, os.fdopen(nowhere, "w", errors="backslashreplace", closefd=False))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Discard buffered output, so that it does not fail again when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with one line; argparse prints up to seven lines of usage before it, as --help does."""
        self.exit(2, f"{self.prog}: error: {printable(message)}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m convx", description="Fast convolution for NumPy arrays.", epilog="Without a command: info."
    )
    parser.set_defaults(command="info", json=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(command=name)
        return command

    demo = add("demo", "Send a photograph through edge kernels, ReLU and max-pooling; draw every stage.")
    demo.add_argument("--image", type=Path, metavar="FILE", help="a photograph, in any format that Pillow reads")
    demo.add_argument(
        "--output", type=Path, metavar="FILE", default=Path("convx-demo.png"), help="the picture (default: %(default)s)"
    )

    train = add("train", "Train a small convolutional network on scikit-learn's handwritten digits.")
    count, index = whole_number(1), whole_number(0)
    train.add_argument(
        "--epochs", type=count, metavar="N", default=30, help="passes over the training digits (default: %(default)s)"
    )
    train.add_argument(
        "--batch-size", type=count, metavar="N", default=32, help="digits per step (default: %(default)s)"
    )
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
        help=f"the initial learning rate; it falls to 0 along a cosine (default: {defaults})",
    )
    train.add_argument(
        "--seed", type=index, metavar="N", default=0, help="seed of the split, weights and order (default: %(default)s)"
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

    info = add("info", "Print what convx runs on this machine, and why.")
    info.add_argument("--json", action="store_true", help="print JSON, for programs")
    return parser


def whole_number(least: int) -> Callable[[str], int]:
    """Return a converter for argparse: from text to an int of at least `least`."""

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
