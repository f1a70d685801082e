"""The error of a command, printable text, and writing of files."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path


class CommandError(Exception):
    """A message for the user of the command line: printed in one line, without a traceback."""


def printable(text: object) -> str:
    """Return text in one line, with unprintable characters (for example in file names) as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def prepare_file(path: Path, *others: Path) -> None:
    """Make the folder of an output file, and check before a long computation that the file can be written.

    Refused are a folder, a write-protected file, and any of `others` under any name.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot create the folder {path.parent}: {error.strerror}") from None
    for other in others:
        if _same(path, other):
            raise CommandError(f"cannot write {path}: it is the same file as {other}")
    try:
        with contextlib.suppress(FileNotFoundError):
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise CommandError(f"cannot write {path}: it is a folder")
            if not os.access(path, os.W_OK):
                raise CommandError(f"cannot write {path}: it is write-protected")
            if not stat.S_ISREG(mode):
                return
        with tempfile.TemporaryFile(dir=Path(os.path.realpath(path)).parent):
            pass
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from None


def _same(path: Path, other: Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:  # one of them does not exist
        return os.path.realpath(path) == os.path.realpath(other)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write(path)`` atomically: after an error or an interrupt the file is unchanged.

    A temporary file beside it is written and moved into its place; a link stays a link. A device or a pipe is written
    in place.
    """
    try:
        if path.exists() and not path.is_file():
            write(path)
            return
        place = Path(os.path.realpath(path))
        handle, name = tempfile.mkstemp(prefix=".convx-", dir=place.parent)
        os.close(handle)
        beside = Path(name)
        try:
            write(beside)
            if place.exists():
                shutil.copymode(place, beside)
            else:
                umask = os.umask(0)
                os.umask(umask)
                beside.chmod(0o666 & ~umask)
            os.replace(beside, place)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}") from None
